"""How much faster: two models timed in turns in one process, compared pair by pair."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sslprune.errors import ExportError
from sslprune.export import evaluating, first_line, open_session
from sslprune.report import Absent, Latency, Speedup

WARM_UP = 0.15  # seconds per model
ENOUGH = 1.0  # seconds of pairs, beyond the number of repetitions asked for
MOST = 1000  # repetitions


class Progress(Protocol):
    """What ``show.progress`` yields."""

    def advance(self, n: int = 1, **fields: Any) -> None: ...


@dataclass(frozen=True)
class Comparison:
    """``dense`` and ``repacked`` measured in the same settings; ``speedup`` is dense / repacked."""

    dense: tuple[Latency | Absent, ...]
    repacked: tuple[Latency | Absent, ...]
    speedup: tuple[Speedup | Absent, ...]

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(self.dense + other.dense, self.repacked + other.repacked, self.speedup + other.speedup)


def compare_onnx(
    dense: str | Path,
    repacked: str | Path,
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1, 0),
    repetitions: int = 30,
    example: Mapping[str, np.ndarray] | None = None,
    dims: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Time two ONNX files on the CPU: every batch size with every number of threads (0: all of this process's cores).

    Inputs are rows of ``example`` (name -> array) where given, else noise whose symbolic dimensions other than the
    first come from ``dims``. Raises ExportError when a file cannot be run or the two take different inputs.
    """
    wanted = list(dict.fromkeys(n or num_cores() for n in threads))
    result = Comparison((), (), ())
    for num_threads in wanted:
        sessions = [open_session(path, num_threads) for path in (dense, repacked)]
        _same_inputs(sessions[0], sessions[1], dense, repacked)
        for batch_size in dict.fromkeys(batch_sizes):
            runs = [
                _runner(session, _feeds(session, batch_size, example, dims or {}, path), path)
                for session, path in zip(sessions, (dense, repacked), strict=True)
            ]
            times = interleave(runs[0], runs[1], repetitions)
            setting = {"device": "cpu", "runtime": "onnxruntime", "batch_size": batch_size, "threads": num_threads}
            result += summarize(times, setting)
            if progress is not None:
                progress.advance(batch=batch_size, threads=num_threads)
    return result


def compare_modules(
    dense: nn.Module,
    repacked: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    device: str = "cuda",
    batch_sizes: Sequence[int] = (1,),
    repetitions: int = 30,
    progress: Progress | None = None,
) -> Comparison:
    """Time two modules with torch on ``device``, on rows of an example; a device that is not there is absent."""
    if device == "cuda" and not torch.cuda.is_available():
        absent = Absent(device=device)
        return Comparison((absent,), (absent,), (absent,))
    result = Comparison((), (), ())
    homes = [
        next((t.device for t in module.state_dict().values()), torch.device("cpu")) for module in (dense, repacked)
    ]
    try:
        dense.to(device), repacked.to(device)
        for batch_size in dict.fromkeys(batch_sizes):
            inputs = _rows((args, dict(kwargs or {})), batch_size, device)
            with torch.inference_mode(), evaluating(dense), evaluating(repacked):
                times = interleave(_caller(dense, inputs, device), _caller(repacked, inputs, device), repetitions)
            setting = {
                "device": device,
                "runtime": "torch",
                "batch_size": batch_size,
                "threads": torch.get_num_threads(),
            }
            result += summarize(times, setting)
            if progress is not None:
                progress.advance(batch=batch_size, device=device)
    finally:
        dense.to(homes[0]), repacked.to(homes[1])
    return result


def interleave(first: Callable[[], Any], second: Callable[[], Any], repetitions: int) -> np.ndarray:
    """Seconds of each call, taken in turns after a warm-up: shape (repetitions or more, 2).

    Who goes first alternates, so that a drift of the clock or a busy neighbour meets both alike. Short calls are
    repeated more often, until they have been watched for a second.
    """
    for call in (first, second):
        started = time.perf_counter()
        while True:
            call()
            if time.perf_counter() - started > WARM_UP:
                break
    times: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(times) < repetitions or (len(times) < MOST and time.perf_counter() - started < ENOUGH):
        pair = [0.0, 0.0]
        for index in (0, 1) if len(times) % 2 == 0 else (1, 0):
            before = time.perf_counter()
            (first, second)[index]()
            pair[index] = time.perf_counter() - before
        times.append((pair[0], pair[1]))
    return np.array(times)


def summarize(times: np.ndarray, setting: Mapping[str, Any]) -> Comparison:
    """Medians, 95th percentiles and the median of the paired ratios of ``times`` in seconds, shape (repetitions, 2)."""
    medians, p95s = np.median(times, axis=0) * 1e3, np.percentile(times, 95, axis=0) * 1e3
    dense, repacked = (
        Latency(**setting, median_ms=float(medians[i]), p95_ms=float(p95s[i]), repetitions=len(times)) for i in (0, 1)
    )
    ratios = times[:, 0] / times[:, 1]
    low, high = median_interval(ratios)
    speedup = Speedup(**setting, ratio=float(np.median(ratios)), low=low, high=high)
    return Comparison((dense,), (repacked,), (speedup,))


def median_interval(values: np.ndarray, confidence: float = 0.95, draws: int = 1000) -> tuple[float, float]:
    """Percentile bootstrap interval of the median (Efron 1979); the same values give the same interval."""
    sample = np.random.default_rng(0).choice(values, (draws, len(values)))
    low, high = np.quantile(np.median(sample, axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _runner(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray], path: str | Path) -> Callable[[], Any]:
    try:
        session.run(None, feeds)
    except Exception as error:
        raise ExportError(f"{path}: ONNX Runtime cannot run it: {first_line(error)}") from error
    return lambda: session.run(None, feeds)


def _caller(module: nn.Module, inputs: tuple[Any, Any], device: str) -> Callable[[], Any]:
    def call() -> None:
        module(*inputs[0], **inputs[1])
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def _rows(value: Any, batch_size: int, device: str) -> Any:
    """``batch_size`` rows of every tensor in ``value``, on ``device``; rows repeat where there are too few."""

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return (leaf[torch.arange(batch_size, device=leaf.device) % leaf.shape[0]] if leaf.dim() else leaf).to(device)

    return pytree.tree_map(take, value)


_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


def _same_inputs(
    a: onnxruntime.InferenceSession, b: onnxruntime.InferenceSession, dense: str | Path, repacked: str | Path
) -> None:
    carried = [{o.name for o in s.get_outputs()} for s in (a, b)]  # the state of a smaller model is narrower
    takes = [
        {
            i.name: (i.type, [d if isinstance(d, int) and f"next_{i.name}" not in outputs else "?" for d in i.shape])
            for i in s.get_inputs()
        }
        for s, outputs in zip((a, b), carried, strict=True)
    ]
    for name in [*takes[0], *takes[1]]:
        one, other = (take.get(name) for take in takes)
        if one != other:
            said = [f"takes {t[0]} {t[1]}" if t else "has no such input" for t in (one, other)]
            raise ExportError(
                f"input {name!r}: {dense} {said[0]}, {repacked} {said[1]}; compare models that take the same inputs"
            )


def _feeds(
    session: onnxruntime.InferenceSession,
    batch_size: int,
    example: Mapping[str, np.ndarray] | None,
    dims: Mapping[str, int],
    path: str | Path,
) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for node in session.get_inputs():
        if example is not None and node.name in example:
            rows = example[node.name]
            feeds[node.name] = rows[np.arange(batch_size) % len(rows)] if rows.ndim else rows
            continue
        shape = []
        for index, size in enumerate(node.shape):
            named = dims.get(str(size))
            if isinstance(size, int):
                shape.append(size)
            elif named is not None or index == 0:
                shape.append(batch_size if named is None else named)
            else:
                raise ExportError(
                    f"{path}: input {node.name!r} has a dimension {size!r} of any size; say which: --dim {size}=128"
                )
        kind = _TYPES.get(node.type)
        if kind is None:
            raise ExportError(f"{path}: input {node.name!r} is a {node.type}; known are {', '.join(_TYPES)}")
        floating = np.issubdtype(kind, np.floating)
        feeds[node.name] = generator.standard_normal(shape).astype(kind) if floating else np.ones(shape, kind)
    return feeds
