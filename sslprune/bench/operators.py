"""Where the time of an ONNX file goes, operator by operator, from ONNX Runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from sslprune.bench.timing import pinned
from sslprune.errors import ExportError, first_line
from sslprune.export.session import session_options
from sslprune.values.measure import OperatorTime

NUM_WARM_UP = 3  # runs


def operator_times(
    path: str | Path, feeds: Mapping[str, np.ndarray], *, threads: int = 1, runs: int = 20
) -> list[OperatorTime]:
    """Milliseconds per run that each kind of operator takes on the CPU, the longest first: medians over ``runs``.

    Kinds are those of the optimized graph that really runs: ``FusedConv`` is a convolution with its activation,
    ``ReorderInput`` what a change of memory layout costs. Profiling itself adds to each operator, so that the sum is
    above the latency. Raises ExportError for a file that ONNX Runtime cannot run.
    """
    with tempfile.TemporaryDirectory() as folder, pinned(threads):
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for _ in range(NUM_WARM_UP + runs):
                session.run(None, dict(feeds))
        except Exception as error:
            raise ExportError(f"{path}: ONNX Runtime cannot run it: {first_line(error)}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _summed(events)


def _summed(events: list[dict]) -> list[OperatorTime]:
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    spent: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(starts)))
    calls: dict[str, int] = defaultdict(int)
    for event in kernels:
        run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        kind = event["args"]["op_name"]
        spent[kind][run] += event["dur"] / 1e3
        calls[kind] += 1
    found = [
        OperatorTime(operator=kind, calls=calls[kind] // len(starts), ms=float(np.median(ms[NUM_WARM_UP:])))
        for kind, ms in spent.items()
    ]
    return sorted(found, key=lambda operator: -operator.ms)
