"""The grain of this machine: on which widths ONNX Runtime's convolutions are fast.

Vector units work on 8 or 16 channels at once, so 52, 56, 60 and 64 channels can take the same time (and 63 more than
any of them). Widths between two steps save multiply-accumulates and no time. The step is measured once, and cached.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from sslprune.errors import SslpruneError
from sslprune.files import write_json

WIDEST = 64  # channels of the widest convolution that is timed
STEPS = (16, 8, 4)  # candidates, the coarsest first
SAME = 0.92  # a narrower convolution that takes this share of the time or more has saved none
NUM_ROUNDS = 15
STAIRS = (64, 63, 60, 56, 52, 48, 47, 44, 40, 36, 32, 31)  # widths that show where the steps are


def grain() -> int:
    """The step in channels on which a convolution gets faster on this machine: 16, 8, 4, or 1 where there is none.

    Measured in about a second with ONNX Runtime on one thread, and cached under ``~/.cache/sslprune`` (or
    ``XDG_CACHE_HOME``) by processor and runtime version.
    """
    import onnxruntime

    key = f"{processor()}, onnxruntime {onnxruntime.__version__}"
    known = _cached()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if int(known[key]) in (*STEPS, 1):
            return int(known[key])
    widths = [WIDEST, *(WIDEST - step // 2 for step in STEPS)]
    seconds = _time(widths)
    step = next((s for s in STEPS if seconds[WIDEST - s // 2] >= SAME * seconds[WIDEST]), 1)
    _keep(known, key, step)
    return step


def staircase() -> tuple[int, dict[int, float]]:
    """``grain()``, and the seconds that a convolution of each width in ``STAIRS`` takes here; cached alike."""
    import onnxruntime

    key = f"stairs of {processor()}, onnxruntime {onnxruntime.__version__}"
    step, known = grain(), _cached()
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        seconds = {int(width): float(taken) for width, taken in known[key].items()}
        if set(seconds) == set(STAIRS):
            return step, seconds
    seconds = _time(list(STAIRS))
    _keep(known, key, seconds)
    return step, seconds


def cache_folder() -> Path:
    """Where this machine's figures are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sslprune"


def _cache() -> Path:
    return cache_folder() / "grain.json"


def _cached() -> dict[str, Any]:
    try:
        known = json.loads(_cache().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _keep(known: dict[str, Any], key: str, value: Any) -> None:
    with contextlib.suppress(SslpruneError):  # a home that cannot be written is no reason not to train
        write_json(_cache(), {**known, key: value})


def processor() -> str:
    """The processor's name and the width of its vector units: what measured figures hold for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        wide = "avx512" if any("avx512f" in line for line in lines if line.startswith("flags")) else "no avx512"
        return f"{model}, {wide}"
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}".strip()


def _time(widths: list[int]) -> dict[int, float]:
    """Median seconds of three 3x3 convolutions of each width on 16x16 maps, timed in turns."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions, inputs = {}, {}
    for width in widths:
        nodes, weights, value = [], [], "x"
        for i in range(3):
            kernel = random.standard_normal((width, width, 3, 3)).astype(np.float32)
            weights.append(numpy_helper.from_array(kernel, f"w{i}"))
            nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"y{i}"], pads=[1, 1, 1, 1]))
            value = f"y{i}"
        shape = [4, width, 16, 16]
        graph = helper.make_graph(
            nodes,
            "widths",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
            weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        sessions[width] = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        inputs[width] = {"x": random.standard_normal(shape).astype(np.float32)}
    times: dict[int, list[float]] = {width: [] for width in widths}
    for turn in range(NUM_ROUNDS + 2):
        for width in widths:
            start = time.perf_counter()
            sessions[width].run(None, inputs[width])
            if turn >= 2:  # the first rounds warm up
                times[width].append(time.perf_counter() - start)
    return {width: float(np.median(values)) for width, values in times.items()}
