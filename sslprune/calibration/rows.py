"""What a node multiplies by its weights, row by row, and what it makes of it: what least squares is fitted on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from sslprune.analysis.contraction import Contraction, Window
from sslprune.analysis.inference import arguments
from sslprune.calibration.lockstep import State, Values, evaluate, value_of

FEW = 256  # rows that are enough to see whether they are what a node multiplies


class Rows(ABC):
    """``made = rows @ matrixᵀ + what the rows do not decide``, in ``groups`` of their own.

    ``weights`` are the names of the tensors whose columns, side by side, are the matrix (groups, made, columns).
    ``part``: which entries of a bias, one for each that the whole node makes, are of what these rows make.
    """

    node: fx.Node
    weights: tuple[str, ...]
    part: slice = slice(None)

    @property
    def bias(self) -> fx.Node | None:
        """The parameter, or what else there is, that is added to all that the rows make."""
        found = getattr(arguments(self.node), "bias", None)
        return found if isinstance(found, fx.Node) else None

    @abstractmethod
    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """The matrix that ``tensors``, in the shapes of the weights, make: (groups, made, columns)."""

    @abstractmethod
    def split(self, matrix: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """``tensors`` with the numbers of ``matrix`` in the places that `matrix` takes them from."""

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

    def real(self, made: Tensor, mask: Tensor) -> Tensor | None:
        """The numbers of the rows that ``mask`` (batch, length) calls real; None where rows are no tokens."""
        lead = made.shape[:-1]
        if lead == mask.shape or lead == (mask.numel(),):
            return mask.flatten().nonzero()[:, 0]
        return mask.T.flatten().nonzero()[:, 0] if lead == mask.T.shape else None


class Product(Rows):
    """A matrix product with a parameter (batch..., columns) @ weight, or a convolution.

    A transposed convolution is one of the input with zeros between its places, by the flipped kernel (Dumoulin and
    Visin 2016, section 4.6).
    """

    def __init__(self, contraction: Contraction, shape: torch.Size) -> None:
        self.contraction, self.node, self.weights = contraction, contraction.node, (str(contraction.weight.target),)
        self.window: Window | None = contraction.window
        self.groups = self.window.conv_groups if self.window is not None else 1
        self.kernel = shape[2:] if self.window is not None else torch.Size()
        self._order = (*contraction.makes, *contraction.reads)
        self._flipped = tuple(range(3, 3 + len(self.kernel)))

    @property
    def _transposed(self) -> bool:
        return self.window is not None and self.window.transposed

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        if self._transposed:  # (in, out / groups, *kernel)
            split = tensors[0].unflatten(0, (self.groups, -1)).transpose(1, 2)
            return split.flip(self._flipped).flatten(2)
        flat = tensors[0].permute(self._order)
        return flat.reshape(self.groups, flat.shape[0] // self.groups, -1)

    def split(self, matrix: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        shape = tensors[0].shape
        if self._transposed:
            split = matrix.unflatten(2, (-1, *self.kernel)).flip(self._flipped)
            return [split.transpose(1, 2).reshape(shape)]
        permuted = matrix.reshape([shape[d] for d in self._order])
        return [permuted.permute([self._order.index(d) for d in range(len(self._order))]).contiguous()]

    def rows(self, values: Values, state: State, picked: Tensor | None) -> Tensor:
        assert self.contraction.input is not None
        x = value_of(self.contraction.input, values, state)
        if self.window is None:
            return _taken(x, picked, x.dim() - 1)[None]
        spatial = len(self.kernel)
        x = x if x.dim() == spatial + 2 else x[None]
        stride = self.window.stride
        if self._transposed:
            sizes = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], stride, strict=True)]
            apart = x.new_zeros(*x.shape[:2], *sizes)
            apart[(..., *(slice(None, None, step) for step in stride))] = x
            x, stride, padding = apart, (1,) * spatial, self._padding_transposed()
        else:
            padding = _padding(self.window, self.kernel)
        return _patches(x, self.kernel, stride, self.window.dilation, padding, self.groups, picked)

    def _padding_transposed(self) -> list[tuple[int, int]]:
        """Places before and behind; below 0 they are cut off."""
        assert self.window is not None and not isinstance(self.window.padding, str)
        more = arguments(self.node).output_padding
        found = []
        for i, size in enumerate(self.kernel):
            low = self.window.dilation[i] * (size - 1) - self.window.padding[i]
            found.append((low, low + (more[i] if len(more) > 1 else more[0])))
        return found

    def lie_alike(self, made: Tensor, values: Values, state: State) -> bool:
        if self.window is not None:
            return True
        assert self.contraction.input is not None
        x = value_of(self.contraction.input, values, state)
        columns = self.matrix([state[name] for name in self.weights]).shape[2]
        return bool(x.shape[-1] == columns and x.shape[:-1] == made.shape[:-1])

    def real(self, made: Tensor, mask: Tensor) -> Tensor | None:
        return super().real(made, mask) if self.window is None else None

    def made(self, values: Values, state: State) -> Tensor:
        return values[self.node] if self.node in values else evaluate(self.node, values, state)

    def by_row(self, made: Tensor, picked: Tensor | None) -> Tensor:
        if self.window is not None:
            made = (made if made.dim() == len(self.kernel) + 2 else made[None]).movedim(1, -1)
        taken = _taken(made, picked, made.dim() - 1)
        return taken.reshape(len(taken), self.groups, -1).transpose(0, 1)


class Recurrent(Rows):
    """One direction of one layer in a recurrent operator, or some of its gates.

    Rows are (input, state before), what it makes are its gates' sums. A GRU's last gate has two, which its reset gate
    mixes: one of the input, and one of the state (Cho et al. 2014, eq. 8).
    """

    def __init__(self, node: fx.Node, at: int, gates: slice, takes: Sequence[int]) -> None:
        """``at``: which direction of which layer, in the order of the operator; ``takes``: its input's weight, 0, its
        state's, 1, or both."""
        self.node, self.at, self.part, self.takes = node, at, gates, tuple(takes)
        a: Any = arguments(node)
        self.directions = 2 if a.bidirectional else 1
        self.per = len(a.params) // (a.num_layers * self.directions)
        self._bias: fx.Node | None = a.params[at * self.per + 2 + takes[0]] if a.has_biases else None
        self.weights = tuple(str(a.params[at * self.per + which].target) for which in takes)

    @property
    def bias(self) -> fx.Node | None:
        return self._bias

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor[self.part] for tensor in tensors], 1)[None]

    def split(self, matrix: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        found = [tensor.clone() for tensor in tensors]
        for tensor, part in zip(found, matrix[0].split([tensor.shape[1] for tensor in tensors], 1), strict=True):
            tensor[self.part] = part
        return found

    def _all(self, values: Values, state: State) -> Tensor:
        """(batch, steps, columns) or with the first two swapped, as the layer has them."""
        a: Any = arguments(self.node)
        layer, direction = divmod(self.at, self.directions)
        x: Tensor = value_of(a.input, values, state)
        several = isinstance(a.hx, (list, tuple))
        first = [value_of(hx, values, state) for hx in (a.hx if several else [a.hx])]  # (layers x directions, batch, ·)
        params = [value_of(param, values, state) for param in a.params]

        def run(x: Tensor, low: int, high: int, layers: int, both: bool) -> Tensor:
            begin = [hx[low:high] for hx in first]
            given = (begin if several else begin[0], params[low * self.per : high * self.per])
            found: Tensor = self.node.target(  # type: ignore[operator]
                x, *given, a.has_biases, layers, 0.0, False, both, a.batch_first
            )[0]
            return found

        if layer:
            x = run(x, 0, layer * self.directions, layer, self.directions == 2)
        steps = 1 if a.batch_first else 0
        x = x.flip(steps) if direction else x
        before = first[0][self.at : self.at + 1]  # (1, batch, hidden)
        if 1 in self.takes:
            out = run(x, self.at, self.at + 1, 1, False)
            before = before.transpose(0, 1) if a.batch_first else before
            before = torch.cat([before, out.narrow(steps, 0, out.shape[steps] - 1)], steps)
        return torch.cat([(x, before)[which] for which in self.takes], -1)

    def rows(self, values: Values, state: State, picked: Tensor | None) -> Tensor:
        every = self._all(values, state)
        return _taken(every, picked, every.dim() - 1)[None]

    def real(self, made: Tensor, mask: Tensor) -> Tensor | None:
        return super().real(made, mask.flip(1) if self.at % self.directions else mask)

    def made(self, values: Values, state: State) -> Tensor:
        return self._all(values, state) @ self.matrix([state[name] for name in self.weights])[0].T

    def by_row(self, made: Tensor, picked: Tensor | None) -> Tensor:
        return _taken(made, picked, made.dim() - 1)[None]


def rows_of(node: fx.Node, contractions: Sequence[Contraction], state: State) -> list[Rows]:
    """How ``node`` can be written as rows times weights that are parameters; those before first. Empty: it cannot."""
    if any(c.weight.op != "get_attr" for c in contractions) or not contractions:
        return []
    first, *more = contractions
    shape = state[str(first.weight.target)].shape
    # a weight that makes several dimensions, or has one of its own for each of several products, is no matrix
    matrix = len(first.makes) == 1 and sorted((*first.makes, *first.reads)) == list(range(len(shape)))
    if matrix and not more and first.input is not None:
        return [Product(first, shape)]
    return _recurrent(node, contractions, state)


def _recurrent(node: fx.Node, contractions: Sequence[Contraction], state: State) -> list[Rows]:
    a: Any = arguments(node)
    count = a.num_layers * (2 if a.bidirectional else 1) if hasattr(a, "num_layers") and hasattr(a, "params") else 0
    # two products for each direction of each layer; a projection's would be a third
    if not count or not hasattr(a, "hx") or len(contractions) != 2 * count:
        return []
    found: list[Rows] = []
    for at in range(count):
        gates = contractions[2 * at].times
        hidden = state[str(contractions[2 * at].weight.target)].shape[0] // gates
        if gates == 3:
            last = slice(2 * hidden, 3 * hidden)
            found.append(Recurrent(node, at, slice(2 * hidden), (0, 1)))
            found.extend(Recurrent(node, at, last, (which,)) for which in (0, 1))
        else:
            found.append(Recurrent(node, at, slice(None), (0, 1)))
    return found


def agrees(rows: Rows, whole: Tensor, values: Values, state: State) -> bool:
    """Whether the node makes ``whole`` as its rows say, up to what is added to each alike; some of them are asked."""
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


def _patches(
    x: Tensor,  # (n, channels, *sizes)
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
    groups: int,
    picked: Tensor | None,
) -> Tensor:
    """What a kernel meets at the flat places ``picked``, or all: (groups, places, channels / groups x kernel).

    The channels of a place lie side by side, so that a row is copied in as many runs as its kernel has positions.
    """
    sizes = x.shape[2:]
    reach = [apart * (size - 1) + 1 for size, apart in zip(kernel, dilation, strict=True)]
    made = [(n + sum(p) - r) // step + 1 for n, p, r, step in zip(sizes, padding, reach, stride, strict=True)]
    if picked is None:
        picked = torch.arange(len(x) * prod(made), device=x.device)
    index, *starts = torch.unravel_index(picked, (len(x), *made))
    inside = torch.ones_like(index, dtype=torch.bool)
    for start, n, size, step, apart, (low, _) in zip(starts, sizes, kernel, stride, dilation, padding, strict=True):
        line = (start * step - low)[:, None] + apart * torch.arange(size, device=x.device)  # (places, size)
        line = line.reshape(len(line), *[1] * (index.dim() - 1), size)
        index, inside = index[..., None] * n + line.clamp(0, n - 1), inside[..., None] & (line >= 0) & (line < n)
    taken = x.movedim(1, -1).reshape(-1, x.shape[1]).index_select(0, index.flatten())
    taken[~inside.flatten()] = 0
    return taken.view(len(picked), prod(kernel), groups, -1).permute(2, 0, 3, 1).flatten(2)


def _padding(window: Window, kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Places before and behind, of each dimension."""
    found = []
    for i, size in enumerate(kernel):
        reach = window.dilation[i] * (size - 1)
        if isinstance(window.padding, str):
            found.append((reach // 2, reach - reach // 2) if window.padding == "same" else (0, 0))
        else:
            found.append((window.padding[i], window.padding[i]))
    return found
