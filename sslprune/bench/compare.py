"""Models compared in every setting that was asked for: device, runtime, batch size, threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from sslprune.bench.contenders import PROVIDERS, Contender, check_same_inputs, feeds_for, of_length, open_length
from sslprune.bench.timing import in_blocks, num_cores, pinned, summarize
from sslprune.errors import ExportError, first_line
from sslprune.values.measure import Absent, Latency, Speedup
from sslprune.values.voice import SILENT_BAR, Bar


@dataclass(frozen=True)
class Platform:
    """A device and the runtime on it: ``("cpu", "onnxruntime")``."""

    device: str
    runtime: str

    @property
    def absent(self) -> Absent | None:
        """What is missing here, if anything is."""
        if self.device == "cuda" and not torch.cuda.is_available() and not _has_provider("CUDAExecutionProvider"):
            return Absent(device="cuda", runtime=self.runtime, reason="no CUDA device")
        provider = PROVIDERS.get((self.device, self.runtime))
        if provider is not None and not _has_provider(provider):
            return Absent(device=self.device, runtime=self.runtime, reason=f"this onnxruntime has no {provider}")
        if self.device == "cuda" and provider is None and not torch.cuda.is_available():
            return Absent(device="cuda", runtime=self.runtime, reason="this torch sees no CUDA device")
        return None


@dataclass(frozen=True)
class Timed:
    """One model's figures; ``speedup`` is over the first model, ``against`` over the others by their names."""

    name: str
    latency: list[Latency | Absent] = field(default_factory=list)
    speedup: list[Speedup | Absent] = field(default_factory=list)
    against: dict[str, list[Speedup | Absent]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Models in the order that they were given; the first is the one to compare with."""

    models: tuple[Timed, ...]

    def __getitem__(self, name: str) -> Timed:
        return next(model for model in self.models if model.name == name)

    @property
    def dense(self) -> list[Latency | Absent]:
        return self.models[0].latency

    @property
    def repacked(self) -> list[Latency | Absent]:
        return self.models[1].latency

    @property
    def speedup(self) -> list[Speedup | Absent]:
        """The second model's over the first."""
        return self.models[1].speedup


def platforms_for(runtimes: Sequence[str], devices: Sequence[str] = ("cpu", "cuda")) -> list[Platform]:
    """Every pair of a device and a runtime that makes sense: TensorRT is for CUDA alone."""
    return [Platform(d, r) for d in devices for r in runtimes if (d, r) != ("cpu", "tensorrt")]


def once_absent(platforms: Sequence[Platform]) -> list[Platform]:
    """A device that is not there at all is said once, not once for each of its runtimes."""
    kept: list[Platform] = []
    for platform in platforms:
        absent = platform.absent
        if absent is None or not any(k.absent and k.absent.reason == absent.reason for k in kept):
            kept.append(platform)
    return kept


def compare(
    models: Sequence[Contender],
    platforms: Sequence[Platform] = (Platform("cpu", "onnxruntime"),),
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1, 0),
    repetitions: int = 30,
    example: Mapping[str, np.ndarray] | None = None,
    dims: Mapping[str, int] | None = None,
    lengths: Sequence[int] = (),
    also_against: str | None = None,
    mixed: bool = False,
    progress: Bar = SILENT_BAR,
) -> Comparison:
    """Time ``models`` in turns: on every platform, with every batch size and number of threads (0: all cores).

    A model that a platform's runtime cannot run sits out there; with ``mixed`` it runs in the runtime it has (a
    ``.pt2`` beside ONNX files). Inputs are rows of ``example``, else noise, in each of ``lengths`` where given.
    ``also_against`` names a second model to hold all others against. Raises ExportError when a file cannot be run, when
    models take different inputs, and when a device goes away. A platform that is not there is absent.
    """
    if len({model.name for model in models}) < len(models):
        raise ExportError(f"models need different names; got {', '.join(model.name for model in models)}")
    check_same_inputs(models)
    found = Comparison(tuple(Timed(model.name, against={also_against: []} if also_against else {}) for model in models))
    for platform in platforms:
        entered = [m for m in models if platform.runtime in m.runtimes]
        absent = platform.absent
        if absent is not None:
            for model in entered:
                timed = found[model.name]
                timed.latency.append(absent)
                for values in (timed.speedup, *timed.against.values()):
                    values.append(absent)
            continue
        if mixed:
            entered = [m for m in models if m in entered or not Platform(platform.device, m.runtimes[0]).absent]
        runtimes = [platform.runtime if platform.runtime in m.runtimes else m.runtimes[0] for m in entered]
        wanted = dict.fromkeys(n or num_cores() for n in threads) if platform.device == "cpu" else [1]
        for num_threads in wanted:
            for batch_size, length in product(dict.fromkeys(batch_sizes), dict.fromkeys(lengths) or [None]):
                feeds = [feeds_for(model, batch_size, example, dims) for model in entered]
                if length is not None:
                    feeds = [of_length(model, given, length) for model, given in zip(entered, feeds, strict=True)]
                _add(
                    found, entered, runtimes, platform.device, num_threads, feeds, batch_size, repetitions, also_against
                )
                progress.advance(batch=batch_size, threads=num_threads)
    return found


def compare_onnx(dense: str | Path, repacked: str | Path, **settings: Any) -> Comparison:
    """``compare`` for two ONNX files."""
    return compare([Contender("dense", onnx=Path(dense)), Contender("repacked", onnx=Path(repacked))], **settings)


def _add(
    found: Comparison,
    models: Sequence[Contender],
    runtimes: Sequence[str],
    device: str,
    threads: int,
    feeds: Sequence[Mapping[str, np.ndarray]],
    batch_size: int,
    repetitions: int,
    also_against: str | None,
) -> None:
    """Time ``models`` in one setting, and append the figures to ``found``."""
    before = torch.get_num_threads()
    try:
        with pinned(threads):
            blocks = in_blocks(
                lambda: [m.open(r, device, threads, f) for m, r, f in zip(models, runtimes, feeds, strict=True)],
                repetitions,
            )
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"{device}: failed while {' and '.join(m.name for m in models)} were timed: {first_line(error)}"
        ) from error
    finally:
        torch.set_num_threads(before)
    length = open_length(models[0], feeds[0]) if models else None
    settings = [
        {"device": device, "runtime": r, "batch_size": batch_size, "threads": threads, "length": length}
        for r in runtimes
    ]
    names = [model.name for model in models]
    latencies, speedups = summarize(blocks, settings)
    others = summarize(blocks, settings, names.index(also_against))[1] if also_against in names else None
    for index, name in enumerate(names):
        found[name].latency.append(latencies[index])
        found[name].speedup.append(speedups[index])
        if others is not None and also_against is not None:
            found[name].against[also_against].append(others[index])


def _has_provider(name: str) -> bool:
    return name in onnxruntime.get_available_providers()
