"""ONNX Runtime sessions."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime

from sslprune.errors import ExportError, first_line


def open_session(
    path: str | Path, threads: int = 0, provider: str = "CPUExecutionProvider"
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session with ``threads`` threads (0: as many as it likes).

    Raises ExportError in one line for a file that is missing, no ONNX, or uses an operator that the runtime lacks, and
    for a provider whose device is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    try:
        session = onnxruntime.InferenceSession(str(path), session_options(threads), providers=[provider])
    except Exception as error:
        raise ExportError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot open it: {first_line(error)}"
        ) from error
    if provider not in session.get_providers():  # it falls back on the CPU, and only logs that
        raise ExportError(f"{path}: ONNX Runtime has {provider}, and it finds no device to run on")
    return session


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options for ``threads`` threads that leave other sessions of this process alone, and log nothing."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Idle threads of one session must not take the cores from the other while two are compared.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def knows_opset(opset: int) -> bool:
    """Whether ONNX Runtime here opens files of the operator set ``opset``."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "one", [value], [])
    graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True
