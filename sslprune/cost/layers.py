"""What a node of the graph asks of ONNX Runtime, in the sizes that are kept: a `Layer` to look up in the table.

What has no multiply-accumulates, additions and norms and what else runs over elements, is cheap and often fused into a
layer: it is no layer here, and comes in when the sum over layers is fitted to models measured whole (`Cost.fit`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from operator import add, mul
from types import SimpleNamespace
from typing import Protocol

from torch import fx

from sslprune.analysis.atoms import Dim
from sslprune.analysis.contraction import Contraction
from sslprune.analysis.factors import Pair
from sslprune.analysis.inference import Inference, arguments

Sizes = list[list[int]]  # the kept sizes of each operand
Rows = Callable[[int], int]


@dataclass(frozen=True)
class Layer:
    """What ONNX Runtime is asked to run, with one sample or a few.

    ``kind``: a key of ``sslprune.bench.table.BUILDERS``. ``widths``: the sizes that pruning changes, rounded to this
    machine's stairs before they are timed; ``settings``: all else that the time depends on, each a tuple of numbers.
    """

    kind: str
    widths: tuple[int, ...]
    settings: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        parts = [self.widths, *self.settings]
        return f"{self.kind} " + " ".join("x".join(map(str, part)) or "-" for part in parts)


class Table(Protocol):
    """How long layers take; ``sslprune.bench.table.LayerTable`` is one."""

    def microseconds(self, layers: Iterable[Layer]) -> list[float]: ...


@dataclass(frozen=True)
class Asked:
    """One layer of a node: ``make`` turns the kept sizes of ``operands`` into it, for a batch of one row."""

    operands: Sequence[Sequence[Dim]]
    make: Callable[[Sizes], Layer]


def layers_of(g: Inference, node: fx.Node, batch: int, columns: Collection[str] = ()) -> list[Asked]:
    """The layers that ``node`` is in ONNX Runtime at ``batch`` rows: one for all contractions that run as one.

    ``columns``: the weights whose single columns can go.
    """
    parts: dict[int, list[Contraction]] = {}
    for contraction in g.facts[node].contractions:
        parts.setdefault(contraction.part, []).append(contraction)
    return [_layer(g, found, batch, columns) for found in parts.values()]


def layer_of_product(g: Inference, pair: Pair, batch: int) -> Asked:
    """The one layer that a factored weight is where it is folded."""
    down, up = (_layer(g, [part], batch, ()) for part in (pair.down, pair.up))

    def make(sizes: Sizes) -> Layer:
        first, second = down.make(sizes[: len(down.operands)]), up.make(sizes[len(down.operands) :])
        widths = (*first.widths[:-1], second.widths[-1])
        if first.kind != "Conv":
            return Layer(first.kind, widths, second.settings)
        rows, sides, *windows = first.settings
        joins: tuple[Callable[[int, int], int], ...] = (mul, mul, add, max)  # kernel, stride, padding, dilation
        both = zip(joins, windows, second.settings[2:], strict=True)
        joined = [tuple(map(join, one, other)) for join, one, other in both]
        return Layer("Conv", widths, (rows, sides, *joined))

    return Asked([*down.operands, *up.operands], make)


def _layer(g: Inference, found: list[Contraction], batch: int, columns: Collection[str]) -> Asked:
    first = found[0]
    rows = lambda count: max(1, count * batch // g.program.batch)  # noqa: E731 the example's rows as those of the batch
    match first.runs_as:
        case "Conv" | "ConvTranspose":
            asked = _convolution(g, first, rows)
            return _by_column(g, first, asked) if str(first.weight.target) in columns else asked
        case "Attention":
            return _attention(first, found[1], rows)
        case "LSTM" | "GRU" | "RNN":
            given, state = found[-2:]  # a projection, where there is one, stands first
            return _recurrent(given, state, arguments(first.node), rows)
        case _:
            return _product(first, rows)


def _product(c: Contraction, rows: Rows) -> Asked:
    operands = [argument for argument in c.node.args if argument in (c.input, c.weight)]
    first = len(operands) == 2 and operands[1] is not c.weight  # the weight's rows are those of the result

    def make(sizes: Sizes) -> Layer:
        (*batch, others), made, inner = sizes[0] or [1], prod(sizes[1]), max(1, prod(sizes[2]))
        if c.runs_as == "MatMul":
            return Layer("MatMul", (inner, max(1, made)), ((rows(c.times * prod(batch) * others),),))
        count, outer = (made, others) if first else (others, made)
        return Layer("MatMul2", (inner, max(1, outer)), ((rows(prod(batch)), count),))

    return Asked([c.batched, c.made, tuple(c.summed)], make)


def _convolution(g: Inference, c: Contraction, rows: Rows) -> Asked:
    """A kernel that has lost its rim is asked for with the map, padding and dilation that the whole one had."""
    assert c.window is not None and c.input is not None
    window, spatial = c.window, len(c.window.stride)

    def pads(kernel: tuple[int, ...]) -> tuple[int, ...]:
        if not isinstance(window.padding, str):
            return window.padding
        same = window.padding == "same"
        return tuple(d * (k - 1) // 2 if same else 0 for d, k in zip(window.dilation, kernel, strict=True))

    def make(sizes: Sizes) -> Layer:
        x, w = sizes
        sides, kernel, channels = tuple(x[len(x) - spatial :]), tuple(w[2:]), x[len(x) - spatial - 1]
        # channels of a group go from every group alike, whole groups with their channels
        groups = max(1, channels // max(1, w[0] // window.conv_groups if window.transposed else w[1]))
        widths = (groups, max(1, channels // groups), max(1, w[1] if window.transposed else w[0] // groups))
        settings = (sides, kernel, window.stride, pads(kernel), window.dilation)
        return Layer(c.runs_as, widths, ((rows(x[0]) if len(x) == spatial + 2 else 1,), *settings))

    return Asked([g.dims(c.input), g.dims(c.weight)], make)


def _by_column(g: Inference, c: Contraction, asked: Asked) -> Asked:
    """A convolution that has lost columns is a pointwise one over those that are left."""

    def make(sizes: Sizes) -> Layer:
        whole, (left,) = asked.make(sizes[:-2]), sizes[-1]
        if left == whole.widths[1] * prod(whole.settings[2]):
            return whole
        ones = (1,) * len(whole.settings[2])
        zeros = (0,) * len(ones)
        sides = tuple(sizes[-2][-len(ones) :])
        return Layer("Conv", (1, max(1, left), whole.widths[2]), (whole.settings[0], sides, ones, ones, zeros, ones))

    return Asked([*asked.operands, g.dims(c.node), [g.columns[str(c.weight.target)].dim]], make)


def _attention(scores: Contraction, values: Contraction, rows: Rows) -> Asked:
    def make(sizes: Sizes) -> Layer:
        (*heads, queries), keys, query, value = sizes
        return Layer("Attention", (max(1, *query), max(1, *value)), ((rows(prod(heads)), queries, *keys),))

    return Asked([scores.batched, scores.made, tuple(scores.summed), values.made], make)


def _recurrent(given: Contraction, state: Contraction, a: SimpleNamespace, rows: Rows) -> Asked:
    def make(sizes: Sizes) -> Layer:
        lead, read, kept = sizes  # lead: (batch, steps) or (steps, batch), or the steps of one sequence
        steps, count = (lead[0], 1) if len(lead) == 1 else (lead[::-1] if a.batch_first else lead)
        setting = (steps, rows(count) if len(lead) > 1 else 1, 2 if a.bidirectional else 1)
        return Layer(given.runs_as, (max(1, *read), max(1, *kept)), (setting,))

    return Asked([given.batched, tuple(given.summed), tuple(state.summed)], make)
