"""How long one layer takes in ONNX Runtime on this machine: measured when first asked for, and cached.

A table of layers knows what a count of multiply-accumulates does not: that 60 channels take as long as 64, that 48 are
faster and 47 slower than 48. A layer's time is the difference between two tiny models, one of which has it several
times more: what a call costs is in neither, and ONNX Runtime's profiler, which adds a sixth to a small model, has no
part in it. A model whose weights do not fit into a core's cache finds them cold at each call: so do its layers here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from sslprune.bench.timing import pinned
from sslprune.cost.grain import cache_folder, grain, processor
from sslprune.cost.layers import Layer
from sslprune.errors import SslpruneError
from sslprune.export.session import session_options
from sslprune.files import write_json

FINEST = 4  # channels: below the step, and off it, layers still differ from one multiple of this to the next
LEAST_ROUNDS, MOST_ROUNDS, NUM_WARM_UP = 15, 40, 3
ENOUGH = 0.5  # seconds that layers which are timed in turns are watched
MOST_LAYERS, MOST_BYTES = 12, 1 << 28  # timed in turns
COPIES, SMALL = 8, 1 << 19  # of a layer in one model, as long as their weights are no more bytes than these


REFERENCE = Layer("Conv", (1, 64, 64), ((1,), (16, 16), (3, 3), (1, 1), (1, 1), (1, 1)))


class LayerTable:
    """Microseconds of layers on one thread; what is not known yet is measured and cached.

    Cached under ``~/.cache/sslprune`` (or ``XDG_CACHE_HOME``) by processor and runtime version, so that a second run
    measures nothing. ``num_bytes`` is the size of the weights of the model that the layers are of. ``measure`` takes
    layers and gives how many times as long as ``REFERENCE`` each takes: by default on this machine.
    """

    def __init__(
        self,
        step: int | None = None,
        num_bytes: int = 0,
        measure: Callable[[Sequence[Layer]], list[float]] | None = None,
        path: Path | None = None,
    ) -> None:
        self.step = grain() if step is None else step
        self.num_measured = 0  # by this table, not read from the cache
        self._measure = measure or functools.partial(time_layers, cold=num_bytes > core_cache())
        self._cold = "cold " if num_bytes > core_cache() else ""
        self._path = path or cache_folder() / "layers.json"
        self._key = f"{processor()}, onnxruntime {onnxruntime.__version__}"
        self._known: dict[str, float] = self._cached().get(self._key, {})
        self._exact: dict[Layer, float] = {}  # by layer as it was asked for

    def microseconds(self, layers: Iterable[Layer]) -> list[float]:
        """How long each of ``layers`` takes; all that are not known are measured in one go."""
        layers = list(layers)
        rounded = {layer: self._rounded(layer) for layer in layers if layer not in self._exact}
        missing = [layer for layer in dict.fromkeys(rounded.values()) if f"{self._cold}{layer}" not in self._known]
        if missing:
            for layer, taken in zip(missing, self._measure(missing), strict=True):
                self._known[f"{self._cold}{layer}"] = float(taken)
            self.num_measured += len(missing)
            self.keep()
        unit = self.recall(f"microseconds of {REFERENCE}", reference_microseconds) if rounded else 0.0
        self._exact.update({layer: unit * self._known[f"{self._cold}{other}"] for layer, other in rounded.items()})
        return [self._exact[layer] for layer in layers]

    def recall(self, name: str, measure: Callable[[], float]) -> float:
        """A figure of this machine that is not of one layer: measured once, then cached beside them."""
        if name not in self._known:
            self._known[name] = float(measure())
            self.num_measured += 1
            self.keep()
        return self._known[name]

    def keep(self) -> None:
        """Write the cache; what another process has put there meanwhile stays."""
        known = self._cached()
        merged = {**known.get(self._key, {}), **self._known}
        with contextlib.suppress(SslpruneError):  # a home that cannot be written is no reason not to train
            write_json(self._path, {**known, self._key: merged})

    def _cached(self) -> dict[str, dict[str, float]]:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            return {key: {str(k): float(v) for k, v in found.items()} for key, found in known.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _rounded(self, layer: Layer) -> Layer:
        return Layer(layer.kind, tuple(stair(width, self.step) for width in layer.widths), layer.settings)


def stair(width: int, step: int) -> int:
    """The width that is timed in place of ``width``: up to the next step; below the first one, and off it, finer.

    >>> [stair(width, 16) for width in (64, 60, 52, 48, 47, 12, 3)]
    [64, 64, 64, 48, 47, 12, 3]
    """
    if step == 1 or width < FINEST:
        return width
    if width % FINEST:  # vector units are left half empty: a class of its own
        return -(-width // FINEST) * FINEST - 1
    unit = step if width > step else FINEST
    return -(-width // unit) * unit


def core_cache() -> int:
    """Bytes of the cache that a core has for itself: where a model's weights fit into it, they stay there."""
    with contextlib.suppress(OSError, ValueError):
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="utf-8").strip()
        return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]] if text[-1] in "KM" else int(text)
    return 1 << 20


def time_layers(layers: Sequence[Layer], cold: bool = False) -> list[float]:
    """How many times as long as ``REFERENCE``, timed in turns with it, each layer takes in ONNX Runtime on one thread.

    Medians over rounds. A clock that drifts, or a busy neighbour, meets a layer and the reference alike. ``cold``: with
    nothing in the core's own cache.
    """
    return [taken / times[0] for times in _in_turns(layers, cold) for taken in times[1:]]


def reference_microseconds() -> float:
    """What ``REFERENCE`` takes now."""
    return next(_in_turns([REFERENCE], False))[0]


def _in_turns(layers: Sequence[Layer], cold: bool) -> Iterator[list[float]]:
    """Microseconds of ``REFERENCE`` and of some of the layers, some at a time."""
    reference = _Pair(REFERENCE)
    pairs = [reference]
    for layer in layers:
        pairs.append(_Pair(layer))
        if len(pairs) > MOST_LAYERS or sum(pair.num_bytes for pair in pairs) > MOST_BYTES:
            yield _time(pairs, cold)
            pairs = [reference]
    if len(pairs) > 1:
        yield _time(pairs, cold)


class _Model:
    """An ONNX model under construction: sums of what is ``made`` in it."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.feeds: dict[str, np.ndarray] = {}
        self.total = ""
        self._source = ""
        self._random = np.random.default_rng(0)

    def given(self, *shape: int) -> str:
        """An input; copies of a layer read the same ones, in turn."""
        key = f"x{'x'.join(map(str, shape))}"
        if key not in self.feeds:
            self.inputs.append(helper.make_tensor_value_info(key, TensorProto.FLOAT, shape))
            self.feeds[key] = self._random.standard_normal(shape, np.float32)
        return key

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        values = self._random.standard_normal(shape, np.float32) / max(1.0, np.sqrt(np.prod(shape[1:])))
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def once(self, operator: str, inputs: Sequence[str], shape: tuple[int, ...]) -> str:
        """The output of an operator with a weight of ``shape``, the same one for all copies of a layer."""
        if not self._source:
            self._source = self.add(operator, [*inputs, self.weight(*shape)])
        return self._source

    def made(self, value: str) -> None:
        self.total = self.add("Add", [value, self.total]) if self.total else value

    @property
    def num_bytes(self) -> int:
        return sum(weight.ByteSize() for weight in self.weights)

    def call(self) -> Callable[[], Any]:
        result = helper.make_tensor_value_info(self.total, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "table", self.inputs, [result], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(1), ["CPUExecutionProvider"])
        return lambda: session.run(None, self.feeds)


class _Pair:
    """Two models that differ by ``count`` copies of a layer."""

    def __init__(self, layer: Layer) -> None:
        build, one = BUILDERS[layer.kind], _Model()
        one.made(build(one, layer))
        self.count = max(1, min(COPIES, SMALL // max(1, one.num_bytes)))
        self.fewer, self.more = one, _Model()
        for _ in range(1 + self.count):
            self.more.made(build(self.more, layer))

    @property
    def num_bytes(self) -> int:
        return self.more.num_bytes + self.fewer.num_bytes


def _time(pairs: Sequence[_Pair], cold: bool) -> list[float]:
    """Microseconds of each layer: medians of the differences, in turns."""
    other = np.zeros(2 * core_cache() if cold else 0, np.int8)
    calls = [(pair.more.call(), pair.fewer.call()) for pair in pairs]
    rounds: list[list[float]] = []
    with pinned(1):
        started = time.perf_counter()
        while len(rounds) < NUM_WARM_UP + LEAST_ROUNDS or (
            len(rounds) < NUM_WARM_UP + MOST_ROUNDS and time.perf_counter() - started < ENOUGH
        ):
            rounds.append([_seconds(more, other) - _seconds(fewer, other) for more, fewer in calls])
    times = np.median(rounds[NUM_WARM_UP:], axis=0)
    return [float(max(taken, 0.0) * 1e6 / pair.count) for taken, pair in zip(times, pairs, strict=True)]


def _seconds(call: Callable[[], Any], other: np.ndarray) -> float:
    """Of a call after one like it, as a model alone finds its weights in the cache; or after ``other`` bytes."""
    if other.size:
        other += 1
    else:
        call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


Builder = Callable[["_Model", Layer], str]


def _conv(model: _Model, layer: Layer) -> str:
    """Widths (groups, in / groups, out / groups); settings: batch, map, kernel, stride, padding, dilation."""
    groups, inner, outer = layer.widths
    (batch,), sides, kernel, strides, padding, dilations = layer.settings
    # made by another convolution, in the layout that this one leaves it in
    source = model.once("Conv", [model.given(batch, 1, *sides)], (groups * inner, 1, *(1,) * len(sides)))
    transposed = layer.kind == "ConvTranspose"
    shape = (groups * inner, outer) if transposed else (groups * outer, inner)
    return model.add(
        layer.kind,
        [source, model.weight(*shape, *kernel), model.weight(groups * outer)],
        group=groups,
        strides=strides,
        dilations=dilations,
        pads=[*padding, *padding],
        kernel_shape=kernel,
    )


def _product(model: _Model, layer: Layer) -> str:
    """Rows of activations with a weight: widths (in, out); settings: rows."""
    inner, outer = layer.widths
    ((rows,),) = layer.settings
    return model.add("MatMul", [model.given(rows, inner), model.weight(inner, outer)])


def _pairs(model: _Model, layer: Layer) -> str:
    """Two activations multiplied: widths (in, out); settings: (matrices, rows)."""
    inner, outer = layer.widths
    ((count, rows),) = layer.settings
    # a weight of one number keeps copies apart
    left = model.add("Mul", [model.given(count, rows, inner), model.weight(1)])
    return model.add("MatMul", [left, model.given(count, inner, outer)])


def _attention(model: _Model, layer: Layer) -> str:
    """Widths (query and key, value) of a head; settings: (heads, queries, keys)."""
    inner, outer = layer.widths
    ((heads, queries, keys),) = layer.settings
    query = model.add("Mul", [model.given(1, heads, queries, inner), model.weight(1)])
    scores = model.add("MatMul", [query, model.given(1, heads, inner, keys)])
    shares = model.add("Softmax", [scores], axis=-1)
    return model.add("MatMul", [shares, model.given(1, heads, keys, outer)])


def _recurrent(operator: str, gates: int) -> Builder:
    """Widths (in, hidden); settings: (steps, batch, directions)."""

    def build(model: _Model, layer: Layer) -> str:
        inner, hidden = layer.widths
        ((steps, batch, directions),) = layer.settings
        weights = [model.weight(directions, gates * hidden, n) for n in (inner, hidden)]
        return model.add(
            operator,
            [model.given(steps, batch, inner), *weights],
            hidden_size=hidden,
            direction="bidirectional" if directions == 2 else "forward",
        )

    return build


BUILDERS: dict[str, Builder] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "MatMul": _product,
    "MatMul2": _pairs,
    "Attention": _attention,
    "LSTM": _recurrent("LSTM", 4),
    "GRU": _recurrent("GRU", 3),
    "RNN": _recurrent("RNN", 1),
}
