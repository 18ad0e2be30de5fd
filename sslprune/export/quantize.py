"""Fewer bits on top: variants of a float32 ONNX file, made by ONNX Runtime's own tools.

int8-static    8-bit weights and activations, in convolutions too; ranges are those seen on calibration data
int8-dynamic   8-bit weights in matrix products and recurrent layers, activations quantized as they come. Convolutions
               stay: ONNX Runtime has only an unfused ConvInteger for them, ten times slower than float32 on a ResNet
fp16           half precision throughout; inputs and outputs stay float32. For GPUs: a CPU mostly converts back
bf16           weights stored in bfloat16 and widened when the file is loaded: half the file, the speed of float32
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from sslprune.errors import ExportError, first_line
from sslprune.export.file import read_graph
from sslprune.export.onnx import PROTOBUF_LIMIT
from sslprune.files import write_beside
from sslprune.values.machine import has_vnni

CALIBRATION_BATCH = 32  # samples at a time: the calibrator keeps every activation
DYNAMIC_OPERATORS = ["MatMul", "Gemm", "LSTM", "Attention", "EmbedLayerNormalization", "Gather"]
PRODUCTS = ["Conv", "MatMul", "Gemm"]
RECURRENT = ["LSTM", "GRU", "RNN"]  # no kernel in half precision on a CPU
SMALLEST = 256  # values: storing fewer in half the bytes saves nothing

Feeds = Mapping[str, np.ndarray]


def quantize(source: str | Path, path: str | Path, kind: str, calibration: Iterable[Feeds]) -> list[str]:
    """Write the variant ``kind`` of the ONNX file ``source`` to ``path``; returns what a person should know of it.

    ``calibration`` gives inputs by name; only int8-static reads it. Raises ExportError, and writes nothing, when there
    is nothing to quantize, when the tools fail, or when ONNX Runtime cannot open the result.
    """
    source, path = Path(source), Path(path)

    def write(temporary: Path) -> None:
        try:
            with _silent():
                MAKERS[kind](source, temporary, calibration)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(f"export.quantize: {kind} of {source.name} failed: {first_line(error)}") from error
        _check_opens(temporary, f"export.quantize: {kind} of {source.name}")

    write_beside(path, write)
    return notes(kind, source)


def notes(kind: str, source: str | Path) -> list[str]:
    """What to expect of ``kind`` of the ONNX file ``source`` on this processor."""
    if kind.startswith("int8") and has_vnni() is False:
        return [f"{kind}: this processor has no VNNI (8-bit dot products); float32 is usually faster on it"]
    if kind == "int8-static" and _attends(Path(source)):
        return ["int8-static: attention's activations have outliers that fixed ranges serve badly; try int8-dynamic"]
    if kind == "fp16":
        return ["fp16: on a CPU, ONNX Runtime computes most operators in float32 and converts; it is meant for GPUs"]
    if kind == "bf16":
        return ["bf16: weights are stored in bfloat16 and computed with in float32: a smaller file, no faster"]
    return []


def _static(source: Path, path: Path, calibration: Iterable[Feeds]) -> None:
    with _prepared(source) as prepared:
        quantize_static(
            str(prepared),
            str(path),
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=PRODUCTS if _attends(source) else None,
            per_channel=True,
            # without VNNI, products of u8 and s8 are summed in 16 bits, and saturate
            reduce_range=has_vnni() is False,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=_large(source),
        )
    _check_quantized(path, "int8-static")


def _dynamic(source: Path, path: Path, calibration: Iterable[Feeds]) -> None:
    with _prepared(source) as prepared:
        quantize_dynamic(
            str(prepared),
            str(path),
            op_types_to_quantize=DYNAMIC_OPERATORS,
            per_channel=True,
            reduce_range=has_vnni() is False,
            weight_type=QuantType.QInt8,
            use_external_data_format=_large(source),
        )
    _check_quantized(path, "int8-dynamic")


def _fp16(source: Path, path: Path, calibration: Iterable[Feeds]) -> None:
    model = convert_float_to_float16(
        onnx.load(str(source)), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *RECURRENT]
    )
    # a value that a recurrent operator reads twice (its first h and c) is widened twice, under the same name
    nodes = {tuple(node.output): node for node in model.graph.node}
    del model.graph.node[:]
    model.graph.node.extend(nodes.values())
    _save(model, path, _large(source))


def _bf16(source: Path, path: Path, calibration: Iterable[Feeds]) -> None:
    model = onnx.load(str(source))
    stored = [w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and np.prod(w.dims) >= SMALLEST]
    casts = []
    for weight in stored:
        values = numpy_helper.to_array(weight).astype(ml_dtypes.bfloat16)
        name = weight.name
        weight.CopyFrom(
            TensorProto(
                name=f"{name}_bf16", data_type=TensorProto.BFLOAT16, dims=values.shape, raw_data=values.tobytes()
            )
        )
        casts.append(onnx.helper.make_node("Cast", [f"{name}_bf16"], [name], f"{name}_widened", to=TensorProto.FLOAT))
    if not casts:
        raise ExportError(f"export.quantize: {source.name} has no float32 weights for bf16")
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _save(model, path, _large(source))


MAKERS: dict[str, Callable[[Path, Path, Iterable[Feeds]], None]] = {
    "int8-static": _static,
    "int8-dynamic": _dynamic,
    "fp16": _fp16,
    "bf16": _bf16,
}


class _Reader(CalibrationDataReader):
    """Calibration data in small batches."""

    def __init__(self, calibration: Iterable[Feeds]) -> None:
        self.batches = self._small(calibration)

    @staticmethod
    def _small(calibration: Iterable[Feeds]) -> Iterator[dict[str, np.ndarray]]:
        for feeds in calibration:
            counts = {len(value) for value in feeds.values() if value.ndim}
            rows = max(counts, default=1)
            if len(counts) > 1:  # entries of one may count the rows of another
                yield dict(feeds)
                continue
            for start in range(0, rows, CALIBRATION_BATCH):
                end = start + CALIBRATION_BATCH
                yield {name: value[start:end] if value.ndim else value for name, value in feeds.items()}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@contextmanager
def _prepared(source: Path) -> Iterator[Path]:
    """``source`` with constants folded and shapes inferred anew, as the quantizer wants it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / source.name
        large = _large(source)
        quant_pre_process(
            str(source), str(path), skip_symbolic_shape=True, skip_optimization=large, save_as_external_data=large
        )
        model = onnx.load(str(path), load_external_data=False)
        del model.graph.value_info[:]  # it also describes weights that folding has transposed since
        onnx.save(model, str(path))
        yield path


def _attends(source: Path) -> bool:
    """Whether there is a softmax inside: masks of -1e38 and layer norms around it must stay float32."""
    return any(node.op_type == "Softmax" for node in read_graph(source).graph.node[:-1])


OPEN = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
try:
    onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
except Exception as error:
    sys.exit(str(error).splitlines()[0])
"""


def _check_opens(path: Path, what: str) -> None:
    """Raise ExportError unless ONNX Runtime opens ``path``: in another process, since some variants crash it."""
    done = subprocess.run([sys.executable, "-P", "-c", OPEN, str(path)], capture_output=True, text=True)
    if done.returncode < 0:
        raise ExportError(
            f"{what}: ONNX Runtime {onnxruntime.__version__} crashes on the result; leave {path.stem} out"
        )
    if done.returncode:
        raise ExportError(f"{what}: ONNX Runtime {onnxruntime.__version__} cannot open it: {done.stderr.strip()}")


def _check_quantized(path: Path, kind: str) -> None:
    model = read_graph(path)
    if not any(w.data_type in (TensorProto.INT8, TensorProto.UINT8) and w.dims for w in model.graph.initializer):
        raise ExportError(f"export.quantize: {kind} finds no operator to quantize in {path.name}")


def _save(model: onnx.ModelProto, path: Path, external: bool) -> None:
    onnx.save(model, str(path), save_as_external_data=external, location=f"{path.name}.data" if external else None)


def _large(source: Path) -> bool:
    return sum(f.stat().st_size for f in source.parent.glob(f"{source.name}*")) > PROTOBUF_LIMIT


@contextmanager
def _silent() -> Iterator[None]:
    """The quantizer talks through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
