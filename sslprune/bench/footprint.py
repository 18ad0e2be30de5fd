"""What a model's file asks of a machine: how long it takes to load, and how much memory it needs.

Both are measured in a process of their own, which has loaded nothing else: this file is its script, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 600.0  # seconds


@dataclass(frozen=True)
class Footprint:
    """``load_ms``: from the file to a model that can run. ``peak_bytes``: memory at its highest while loading and
    running, less what the runtime itself takes; None where the system does not tell.
    """

    load_ms: float
    peak_bytes: int | None


def footprint(path: str | Path, feeds: Mapping[str, np.ndarray], threads: int = 1) -> Footprint | None:
    """Load ``path`` (.onnx or .pt2) in a fresh process, and run it on ``feeds``; None where that process fails."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "feeds.npz", **dict(feeds))  # type: ignore[arg-type]
        command = [sys.executable, "-P", __file__, str(path), str(threads), str(Path(folder) / "feeds.npz")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
            return Footprint(**json.loads(done.stdout.splitlines()[-1]))
        except (subprocess.SubprocessError, OSError, ValueError, IndexError):
            return None


def main(path: str, threads: int, feeds_file: str) -> None:
    with np.load(feeds_file) as file:
        feeds: dict[str, Any] = {name: file[name] for name in file.files}
    if path.endswith(".pt2"):
        import torch

        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout may not be installed
        from sslprune.models.pt2 import read_program

        torch.set_num_threads(threads)
        values = [torch.from_numpy(value) for value in feeds.values()]
        before = _start_peak()
        started = time.perf_counter()
        program, _ = read_program(path)
        module = program.module()
        seconds = time.perf_counter() - started
        args, kwargs = torch.utils._pytree.tree_unflatten(values, program.call_spec.in_spec)
        with torch.inference_mode():
            module(*args, **kwargs)
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        before = _start_peak()
        started = time.perf_counter()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        seconds = time.perf_counter() - started
        session.run(None, feeds)
    after = _status("VmHWM")
    peak = None if before is None or after is None else max(0, after - before)
    print(json.dumps({"load_ms": seconds * 1e3, "peak_bytes": peak}))


def _start_peak() -> int | None:
    """Let the kernel count the peak from now on, where it can; the bytes in use now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
    except (OSError, StopIteration):
        return None


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
