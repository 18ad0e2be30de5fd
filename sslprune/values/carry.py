"""State that a model carries from one batch to the next, as recurrent networks do over a text.

A model carries state if it has a method ``initial_state(batch_size)`` that returns zeros, one row a sample (a tensor,
or tensors nested in tuples, lists and dicts), takes such a state as its last argument, and returns
``(output, new state)``. Everything here leaves other models as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree

from sslprune.values.inputs import Inputs, arguments, each, length_of, tensors_in, with_length


def carries(model: nn.Module) -> bool:
    """Whether ``model`` takes and returns state."""
    return callable(getattr(model, "initial_state", None))


def with_state(model: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """``args`` and, for a model that carries state, its initial state for as many samples."""
    if not carries(model):
        return args
    rows = next(leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor))
    begin = cast(Callable[[int], Any], model.initial_state)

    def moved(leaf: Any) -> Any:
        leaf = leaf.full_tensor() if isinstance(leaf, DTensor) else leaf  # made like a weight that is shared out
        return leaf.to(rows.device) if isinstance(leaf, Tensor) else leaf

    return (*args, pytree.tree_map(moved, begin(len(rows))))


def example_for(model: nn.Module, inputs: Inputs, sequence: int | None) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    """The example ``inputs`` on the CPU as what ``model`` is called with, its state included where it carries one."""
    args, kwargs = arguments(each(inputs, lambda tensor: tensor.cpu()))
    full = with_state(model, args)
    while sequence and length_of(args) in {leaf.shape[1] for leaf in tensors_in(full[len(args) :])}:
        args, kwargs = with_length((args, kwargs), length_of(args) + 1)  # a length is told by its size: let it differ
        full = with_state(model, args)
    return full, kwargs


class FromTheStart(nn.Module):
    """``model`` as a module that takes its inputs alone, each time with its initial state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*with_state(self.model, args), **kwargs)


class Carrying:
    """``model`` as a function of its inputs alone: the state of one call, detached, is the next one's.

    Truncated backpropagation (Werbos 1990): gradients end at the batch. A batch of another size starts anew.
    """

    def __init__(self, model: nn.Module, wrapper: Callable[..., Any] | None = None) -> None:
        self.model, self.call, self.state, self.rows = model, model if wrapper is None else wrapper, None, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rows = len(next(leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)))
        if rows != self.rows:
            self.rows, self.state = rows, with_state(self.model, args)[-1]
        output, state = self.call(*args, self.state, **kwargs)
        self.state = pytree.tree_map(Tensor.detach, state)
        return output


def carrying(model: nn.Module, wrapper: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """What calls ``model`` batch after batch, from its initial state on; the model itself where it carries none.

    ``wrapper``: what is called in its place, as that of several processes is.
    """
    if carries(model):
        return Carrying(model, wrapper)
    return model if wrapper is None else wrapper  # a module may have a length, and that be 0
