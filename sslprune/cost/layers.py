"""What a node of the graph asks of ONNX Runtime, in the sizes that are kept: a `Layer` to look up in the table.

What has no multiply-accumulates, additions and norms and what else runs over elements, is cheap and often fused into a
layer: it is no layer here, and comes in when the sum over layers is fitted to models measured whole (`Cost.fit`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Protocol

from torch import fx

from sslprune.analysis.atoms import Dim
from sslprune.analysis.inference import Inference, arguments
from sslprune.capture.program import operator_name

Sizes = list[list[int]]  # the kept sizes of each operand


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

    operands: list[list[Dim]]
    make: Callable[[Sizes], Layer]


def layers_of(g: Inference, node: fx.Node, batch: int, columns: Collection[str] = ()) -> list[Asked]:
    """The layers that ``node`` is in ONNX Runtime at ``batch`` rows; a matrix product as large where it has no reader.

    ``columns``: the weights whose single columns can go.
    """
    reader = READERS.get(operator_name(node)) if node.op == "call_function" else None
    asked = reader(g, node, arguments(node), batch) if reader is not None else _products(g, node, batch)
    return [_by_column(g, node, one, columns) for one in asked] if columns else asked


def _by_column(g: Inference, node: fx.Node, asked: Asked, columns: Collection[str]) -> Asked:
    """A convolution that has lost columns is a pointwise one over those that are left."""
    weight = next((str(n.target) for n in node.all_input_nodes if n.op == "get_attr" and str(n.target) in columns), "")
    if not weight:
        return asked

    def make(sizes: Sizes) -> Layer:
        whole, (left,) = asked.make(sizes[:-2]), sizes[-1]
        if whole.kind != "Conv" or left == whole.widths[1] * prod(whole.settings[2]):
            return whole
        ones = (1,) * len(whole.settings[2])
        zeros = (0,) * len(ones)
        sides = tuple(sizes[-2][-len(ones) :])
        return Layer("Conv", (1, max(1, left), whole.widths[2]), (whole.settings[0], sides, ones, ones, zeros, ones))

    return Asked([*asked.operands, g.dims(node), [g.columns[weight].dim]], make)


def _rows(g: Inference, count: int, batch: int) -> int:
    """Rows of the example's batch as those of ``batch``."""
    return max(1, count * batch // g.program.batch)


def _products(g: Inference, node: fx.Node, batch: int) -> list[Asked]:
    def asked(constant: float, dims: list[Dim]) -> Asked:
        def make(sizes: Sizes) -> Layer:
            outer, inner = (*(max(1, n) for n in sizes[0]), 1, 1)[:2] if len(dims) < 2 else sizes[0][-2:]
            macs = constant * prod(sizes[0]) * batch / g.program.batch
            rows = max(1, round(macs / (max(1, inner) * max(1, outer))))
            return Layer("MatMul", (max(1, inner), max(1, outer)), ((rows,),))

        return Asked([dims], make)

    return [asked(constant, dims) for constant, dims in g.facts[node].macs]


def _convolution(g: Inference, node: fx.Node, a: SimpleNamespace, batch: int) -> list[Asked]:
    """A kernel that has lost its rim is asked for with the map, padding and dilation that the whole one had."""
    transposed = getattr(a, "transposed", False) or operator_name(node).startswith("conv_transpose")
    spatial = len(g.shape(a.weight)) - 2
    wide = lambda value: tuple(value) * (spatial if len(value) == 1 else 1)  # noqa: E731
    strides, dilations = wide(a.stride), wide(a.dilation)
    padding = wide(a.padding) if isinstance(a.padding, Sequence) and not isinstance(a.padding, str) else None

    def make(sizes: Sizes) -> Layer:
        x, w = sizes
        sides, kernel = tuple(x[len(x) - spatial :]), tuple(w[2:])
        pads = (
            padding if padding is not None else tuple(d * (k - 1) // 2 for d, k in zip(dilations, kernel, strict=True))
        )
        channels = x[len(x) - spatial - 1]
        rows = (_rows(g, x[0], batch) if len(x) == spatial + 2 else 1,)
        # channels of a group go from every group alike, whole groups with their channels
        groups = max(1, channels // (max(1, w[0] // a.groups) if transposed else max(1, w[1])))
        widths = (groups, max(1, channels // groups), max(1, w[1] if transposed else w[0] // groups))
        if padding is None and a.padding == "valid":
            pads = (0,) * spatial
        kind = "ConvTranspose" if transposed else "Conv"
        return Layer(kind, widths, (rows, sides, kernel, strides, pads, dilations))

    return [Asked([g.dims(a.input), g.dims(a.weight)], make)]


def _linear(g: Inference, node: fx.Node, a: SimpleNamespace, batch: int) -> list[Asked]:
    def make(sizes: Sizes) -> Layer:
        x, w = sizes
        return Layer("MatMul", (max(1, w[1]), max(1, w[0])), ((_rows(g, prod(x[:-1]), batch),),))

    return [Asked([g.dims(a.input), g.dims(a.weight)], make)]


def _multiply(g: Inference, node: fx.Node, left: fx.Node, right: fx.Node, batch: int) -> list[Asked]:
    x, y = g.dims(left), g.dims(right)
    weight = right.op == "get_attr" and len(y) == 2

    def make(sizes: Sizes) -> Layer:
        one, other = sizes
        inner, outer = max(1, one[-1]), max(1, other[-1] if len(other) > 1 else 1)
        if weight:
            return Layer("MatMul", (inner, outer), ((_rows(g, prod(one[:-1]), batch),),))
        lead = one[:-2] if len(one) >= len(other) else other[:-2]
        rows = one[-2] if len(one) > 1 else 1
        return Layer("MatMul2", (inner, outer), ((_rows(g, prod(lead), batch), rows),))

    return [Asked([x, y], make)]


def _matmul(g: Inference, node: fx.Node, a: SimpleNamespace, batch: int) -> list[Asked]:
    other = getattr(a, "other", None) or getattr(a, "mat2", None) or getattr(a, "vec", None) or a.tensor
    return _multiply(g, node, a.self, other, batch)


def _addmm(g: Inference, node: fx.Node, a: SimpleNamespace, batch: int) -> list[Asked]:
    left, right = (a.mat1, a.mat2) if hasattr(a, "mat1") else (a.batch1, a.batch2)
    return _multiply(g, node, left, right, batch)


def _attention(g: Inference, node: fx.Node, a: SimpleNamespace, batch: int) -> list[Asked]:
    def make(sizes: Sizes) -> Layer:
        query, key, value = sizes
        heads = _rows(g, prod(query[:-2]), batch)
        return Layer("Attention", (max(1, query[-1]), max(1, value[-1])), ((heads, query[-2], key[-2]),))

    return [Asked([g.dims(a.query), g.dims(a.key), g.dims(a.value)], make)]


def _recurrent(kind: str) -> Callable[[Inference, fx.Node, SimpleNamespace, int], list[Asked]]:
    def read(g: Inference, node: fx.Node, a: SimpleNamespace, batch: int) -> list[Asked]:
        if not hasattr(a, "batch_first"):  # a packed sequence
            return []
        directions = 2 if a.bidirectional else 1
        per = len(a.params) // (a.num_layers * directions)

        def make(sizes: Sizes) -> Layer:
            x, w_ih, w_hh = sizes
            rows = x[0 if a.batch_first else 1] if len(x) == 3 else 1
            steps = x[1 if a.batch_first and len(x) == 3 else 0]
            setting = (steps, _rows(g, rows, batch) if len(x) == 3 else 1, directions)
            return Layer(kind, (max(1, w_ih[1]), max(1, w_hh[1])), (setting,))

        asked = []
        for index in range(a.num_layers):
            w_ih, w_hh = a.params[index * directions * per :][:2]
            asked.append(Asked([g.dims(a.input), g.dims(w_ih), g.dims(w_hh)], make))
        return asked

    return read


Reader = Callable[[Inference, fx.Node, SimpleNamespace, int], list[Asked]]
READERS: dict[str, Reader] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "scaled_dot_product_attention": _attention,
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    **dict.fromkeys(("rnn_tanh", "rnn_relu"), _recurrent("RNN")),
}
