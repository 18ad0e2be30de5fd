"""What a node multiplies by its weights, row by row, and what it makes of it: what least squares is fitted on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sslprune.analysis.contraction import Contraction, Window
from sslprune.analysis.inference import arguments
from sslprune.calibration.lockstep import State, Values, evaluate, value_of

Shapes = Sequence[torch.Size]
FEW = 256  # rows that are enough to see whether they are what a node multiplies


class Rows(ABC):
    """``made = rows @ matrixᵀ + what the rows do not decide``, in ``groups`` of their own.

    ``weights`` are the names of the tensors whose columns, side by side, are the matrix (groups, made, columns).
    """

    node: fx.Node
    weights: tuple[str, ...]

    @abstractmethod
    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """The matrix that ``tensors``, in the shapes of the weights, make: (groups, made, columns)."""

    @abstractmethod
    def split(self, matrix: Tensor, shapes: Shapes) -> list[Tensor]:
        """The inverse of ``matrix``."""

    @abstractmethod
    def rows(self, values: Values, state: State, picked: Tensor | None) -> Tensor:
        """(groups, n, columns): those at flat ``picked``, or all."""

    @abstractmethod
    def made(self, values: Values, state: State) -> Tensor:
        """What the node makes of its rows: any shape that ``by_row`` knows."""

    @abstractmethod
    def by_row(self, made: Tensor, picked: Tensor | None) -> Tensor:
        """(groups, n, made), in the order of ``rows``."""

    def lie_alike(self, made: Tensor, values: Values, state: State) -> bool:
        """Whether there is a row for each that is made, of as many numbers as the matrix has columns."""
        return True

    def count(self, made: Tensor) -> int:
        """How many rows there are."""
        return self.by_row(made, None).shape[1]


class Product(Rows):
    """A matrix product with a parameter (batch..., columns) @ weight, or a convolution."""

    def __init__(self, contraction: Contraction, shape: torch.Size) -> None:
        self.contraction, self.node, self.weights = contraction, contraction.node, (str(contraction.weight.target),)
        self.window: Window | None = contraction.window
        self.groups = self.window.conv_groups if self.window is not None else 1
        self.kernel = shape[2:] if self.window is not None else torch.Size()
        self._order = (*contraction.makes, *contraction.reads)

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        flat = tensors[0].permute(self._order)
        return flat.reshape(self.groups, flat.shape[0] // self.groups, -1)

    def split(self, matrix: Tensor, shapes: Shapes) -> list[Tensor]:
        permuted = matrix.reshape([shapes[0][d] for d in self._order])
        return [permuted.permute([self._order.index(d) for d in range(len(self._order))]).contiguous()]

    def rows(self, values: Values, state: State, picked: Tensor | None) -> Tensor:
        assert self.contraction.input is not None
        x = value_of(self.contraction.input, values, state)
        if self.window is None:
            return _taken(x, picked, x.dim() - 1)[None]
        spatial = len(self.kernel)
        x = F.pad(x if x.dim() == spatial + 2 else x[None], _padding(self.window, self.kernel))
        for i, (size, step, apart) in enumerate(
            zip(self.kernel, self.window.stride, self.window.dilation, strict=True)
        ):
            x = x.unfold(2 + i, apart * (size - 1) + 1, step)[..., ::apart]  # a view: nothing is copied yet
        taken = _taken(x.movedim(1, 1 + spatial), picked, 1 + spatial)  # (n, channels, *kernel)
        return taken.reshape(len(taken), self.groups, -1).transpose(0, 1)

    def lie_alike(self, made: Tensor, values: Values, state: State) -> bool:
        if self.window is not None:
            return True
        assert self.contraction.input is not None
        x = value_of(self.contraction.input, values, state)
        columns = self.matrix([state[name] for name in self.weights]).shape[2]
        return bool(x.shape[-1] == columns and x.shape[:-1] == made.shape[:-1])

    def made(self, values: Values, state: State) -> Tensor:
        return evaluate(self.node, values, state)

    def by_row(self, made: Tensor, picked: Tensor | None) -> Tensor:
        if self.window is not None:
            made = (made if made.dim() == len(self.kernel) + 2 else made[None]).movedim(1, -1)
        taken = _taken(made, picked, made.dim() - 1)
        return taken.reshape(len(taken), self.groups, -1).transpose(0, 1)


class Recurrent(Rows):
    """A recurrent layer of one direction: rows are (input, state before), what it makes are its gates' sums."""

    def __init__(self, node: fx.Node, weights: tuple[str, ...]) -> None:
        self.node, self.weights = node, weights

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), 1)[None]

    def split(self, matrix: Tensor, shapes: Shapes) -> list[Tensor]:
        return [part.contiguous() for part in matrix[0].split([shape[1] for shape in shapes], 1)]

    def _all(self, values: Values, state: State) -> Tensor:
        """(batch, steps, input + hidden) or with the first two swapped, as the layer has them."""
        a = arguments(self.node)
        x: Tensor = value_of(a.input, values, state)
        first = a.hx[0] if isinstance(a.hx, (list, tuple)) else a.hx
        begin = value_of(first, values, state)  # (1, batch, hidden)
        out: Tensor = evaluate(self.node, values, state)[0]
        steps = 1 if a.batch_first else 0
        begin = begin.transpose(0, 1) if a.batch_first else begin
        before = torch.cat([begin, out.narrow(steps, 0, out.shape[steps] - 1)], steps)
        return torch.cat([x, before], -1)

    def rows(self, values: Values, state: State, picked: Tensor | None) -> Tensor:
        every = self._all(values, state)
        return _taken(every, picked, every.dim() - 1)[None]

    def made(self, values: Values, state: State) -> Tensor:
        return self._all(values, state) @ self.matrix([state[name] for name in self.weights])[0].T

    def by_row(self, made: Tensor, picked: Tensor | None) -> Tensor:
        return _taken(made, picked, made.dim() - 1)[None]


def rows_of(node: fx.Node, contractions: Sequence[Contraction], state: State) -> Rows | None:
    """How ``node`` can be written as rows times weights that are parameters; None where it cannot."""
    if any(c.weight.op != "get_attr" for c in contractions) or not contractions:
        return None
    first, *more = contractions
    shape = state[str(first.weight.target)].shape
    # a weight that makes several dimensions, or has one of its own for each of several products, is no matrix
    matrix = len(first.makes) == 1 and sorted((*first.makes, *first.reads)) == list(range(len(shape)))
    if matrix and not more and first.input is not None and not (first.window is not None and first.window.transposed):
        return Product(first, shape)
    return _recurrent(node, contractions)


def _recurrent(node: fx.Node, contractions: Sequence[Contraction]) -> Recurrent | None:
    a: Any = arguments(node)
    fused = hasattr(a, "num_layers") and hasattr(a, "hx") and hasattr(a, "params")
    # the sums of a GRU's third gate are two, which the reset gate mixes: no one product
    if not fused or a.num_layers != 1 or a.bidirectional or len(contractions) != 2 or contractions[0].times == 3:
        return None
    return Recurrent(node, tuple(str(c.weight.target) for c in contractions))


def agrees(rows: Rows, values: Values, state: State) -> bool:
    """Whether the node makes what its rows say, up to what is added to each of them alike; some of them are asked."""
    whole = rows.made(values, state)
    if not rows.lie_alike(whole, values, state):
        return False
    picked = torch.linspace(0, rows.count(whole) - 1, FEW, device=whole.device).long()
    made = rows.by_row(whole, picked)
    product = rows.rows(values, state, picked) @ rows.matrix([state[name] for name in rows.weights]).transpose(1, 2)
    close = max(1e-3, 4 * torch.finfo(made.dtype).eps)
    if product.shape != made.shape:
        return False
    rest = made - product
    return bool((rest - rest[:, :1]).abs().max() <= close * made.abs().max().clamp(min=1e-12))


def _taken(x: Tensor, picked: Tensor | None, lead: int) -> Tensor:
    """Over the first ``lead`` dimensions, flattened, the entries at ``picked``, without a copy of the others."""
    if picked is None:
        return x.reshape(prod(x.shape[:lead]), *x.shape[lead:])
    return x[torch.unravel_index(picked, x.shape[:lead])]


def _padding(window: Window, kernel: Sequence[int]) -> list[int]:
    """As F.pad wants it: the last dimension first."""
    found: list[int] = []
    for i, size in enumerate(kernel):
        reach = window.dilation[i] * (size - 1)
        if isinstance(window.padding, str):
            low, high = (reach // 2, reach - reach // 2) if window.padding == "same" else (0, 0)
        else:
            low = high = window.padding[i]
        found = [low, high, *found]
    return found
