"""The smallest model around an operator: layer -> operator -> layer, once for each way in which it is called.

What the operator makes is read twice: by weights, whose columns go with what they read, and by a sum, which has only
the operator's word for what is zero. Each reading has layers of its own before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ROWS, FEATURES = 2, 5  # of the model's input
SHAPE = (6, 4)  # of an operand, without the batch, where nothing asks for another
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Operand:
    """A tensor (batch, *shape) that a layer of its own makes; each of its dimensions is an axis."""

    shape: tuple[int, ...] = SHAPE
    change: Change | None = None  # into what the operator is defined for


@dataclass(frozen=True)
class Weight:
    """A parameter of that shape."""

    shape: tuple[int, ...]
    change: Change | None = None


@dataclass(frozen=True)
class Constant:
    """A tensor of the model that does not train, such as an index."""

    value: Any
    dtype: torch.dtype = torch.int64


@dataclass(frozen=True)
class FromInput:
    """An argument that is read off the model's input: a size, a mask."""

    read: Callable[[Tensor], Any]


@dataclass(frozen=True)
class Mode:
    """An argument that says whether the model trains."""


def sizes(*after: int) -> FromInput:
    """The batch size and what comes after it."""
    return FromInput(lambda x: [x.shape[0], *after])


@dataclass(frozen=True)
class Call:
    """One way to call an operator: its overload and its arguments.

    ``after`` brings what it gives to (batch, *); it takes the operands ``beside`` too, where a result has to meet some.
    """

    overload: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    after: Callable[..., Any] | None = None
    beside: tuple[Operand, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Call:
        return self  # a copy of the model finds its layers by these very operands


def operands_of(call: Call) -> list[Any]:
    """The tensors among a call's arguments, those in lists included."""
    values = [*call.args, *call.kwargs.values(), *call.beside]
    flat = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    return [value for value in flat if isinstance(value, Operand | Weight | Constant)]


class Reading(nn.Module):
    """One call of the operator, with its layers before and after; ``summed``: a sum stands between."""

    def __init__(self, operator: Any, call: Call, summed: bool) -> None:
        super().__init__()
        self.operator, self.call, self.summed = operator, call, summed
        self.before, self.weights = nn.ModuleList(), nn.ParameterList()
        self.place: dict[int, int] = {}
        for value in operands_of(call):
            if id(value) in self.place:
                continue
            if isinstance(value, Operand):
                self.place[id(value)] = len(self.before)
                self.before.append(nn.Linear(FEATURES, int(torch.Size(value.shape).numel())))
            elif isinstance(value, Weight):
                self.place[id(value)] = len(self.weights)
                self.weights.append(nn.Parameter(torch.randn(value.shape)))
            else:
                self.place[id(value)] = len(self.place)
                self.register_buffer(f"constant{len(self.place) - 1}", torch.tensor(value.value, dtype=value.dtype))
        with torch.no_grad():
            made = self.made(torch.randn(ROWS, FEATURES))
        self.after = nn.ModuleList(nn.Linear(1 if summed or y.dim() < 2 else y[0].numel(), 3) for y in made)

    def made(self, x: Tensor) -> list[Tensor]:
        """What the operator gives, as tensors of numbers (batch, *)."""
        take = lambda value: self.taken(value, x)  # noqa: E731
        result = self.operator(*map(take, self.call.args), **{k: take(v) for k, v in self.call.kwargs.items()})
        if self.call.after is not None:
            result = self.call.after(result, *map(take, self.call.beside))
        values = result if isinstance(result, tuple | list) else [result]
        return [_numbers(value) for value in values if isinstance(value, Tensor)]

    def taken(self, value: Any, x: Tensor) -> Any:
        if isinstance(value, list):
            return [self.taken(entry, x) for entry in value]
        if isinstance(value, FromInput):
            return value.read(x)
        if isinstance(value, Mode):
            return self.training
        if isinstance(value, Weight):
            weight = self.weights[self.place[id(value)]]
            return value.change(weight) if value.change else weight
        if isinstance(value, Constant):
            return getattr(self, f"constant{self.place[id(value)]}")
        if isinstance(value, Operand):
            y = self.before[self.place[id(value)]](x).unflatten(1, value.shape)
            return value.change(y) if value.change else y
        return value

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum(1, keepdim=True)
        for value, layer in zip(self.made(x), self.after, strict=True):
            if not value.dim():  # a reduction of the batch as well
                value = value.expand(x.shape[0])
            value = value[:, None] if value.dim() == 1 else value.flatten(1)
            total = total + layer(value.sum(1, keepdim=True) if self.summed else value)
        return total


def _numbers(value: Tensor) -> Tensor:
    value = value.real if value.is_complex() else value
    return value if value.dtype is torch.float32 else value.float()


class Smallest(nn.Module):
    """Every way to call one operator, each read by weights and by a sum."""

    def __init__(self, packet: Any, calls: Sequence[Call]) -> None:
        super().__init__()
        self.by_weights, self.by_sum = (
            nn.ModuleList(Reading(getattr(packet, call.overload), call, summed) for call in calls)
            for summed in (False, True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [reading(x) for reading in (*self.by_weights, *self.by_sum)]
