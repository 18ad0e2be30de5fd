"""``report.json``: what was gained and what it cost, as values with a schema; and the gates that judge them.

Everything is measured on this machine in this run, or said to be absent. Units are in the names: ``_ms`` are
milliseconds, ``_bytes`` bytes; ``macs`` are multiply-accumulates for one sample; accuracy is in percent.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sslprune.errors import RunError
from sslprune.files import write_text
from sslprune.recipe import GatesSection
from sslprune.tasks import LOWER_IS_BETTER

SCHEMA: Literal[1] = 1


class _Value(BaseModel):
    """Prints as JSON and reads itself back."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)

    def save(self, path: Path) -> Path:
        return write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote; raises RunError, naming the field, for anything else."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: cannot be read: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise RunError(
                f"{path}: not what this version of sslprune (schema {SCHEMA}) writes: {where}: {first['msg']}"
            ) from error


class Absent(_Value):
    """A device that is not there, said rather than left out."""

    device: str
    absent: Literal[True] = True


class Latency(_Value):
    """One model in one setting. ``threads`` are those of the runtime on the CPU."""

    device: str
    runtime: str
    batch_size: int
    threads: int
    median_ms: float
    p95_ms: float
    repetitions: int


class Speedup(_Value):
    """``ratio``: the median of the paired dense / repacked ratios; ``low`` to ``high`` its 95 % bootstrap interval."""

    device: str
    runtime: str
    batch_size: int
    threads: int
    ratio: float
    low: float
    high: float


class Size(_Value):
    """One model. ``macs`` are for one sample; ``metrics`` are on the test data after the last epoch."""

    parameters: int
    macs: int
    metrics: dict[str, float]


class Figures(Size):
    """One model with its ONNX file (of ``file_bytes``) and how fast it runs."""

    file_bytes: int
    latency: list[Latency | Absent]


class Equivalence(_Value):
    """Masked against repacked model: the largest differences over ``samples`` test samples and random inputs.

    ``max_relative`` is relative to the largest output. ``metrics`` are the masked model's on the test data.
    """

    max_abs: float
    max_relative: float
    samples: int
    metrics: dict[str, float]


class AxisChange(_Value):
    """How many groups of one axis there were and are."""

    name: str
    kind: str
    before: int
    after: int


class Budget(_Value):
    """``fraction`` of the dense model's ``measure`` was allowed to remain; ``reached`` does."""

    measure: str
    fraction: float
    reached: float


class RepackResult(_Value):
    """What the repack stage found: the first half of a report, kept in the run directory for the second."""

    budget: Budget
    dense: Size
    repacked: Size
    equivalence: Equivalence
    axes: list[AxisChange]


class Control(Size):
    """A model trained without sparsity beside the run: ``name`` says from where, ``epochs`` for how long."""

    name: str
    epochs: str


def read_controls(files: Sequence[Path]) -> list[Control]:
    """The figures of finished controls."""
    return [Control.load(file) for file in files]


class AxisFacts(_Value):
    """An axis as ``inspect`` tells it; what one group saves is the mean over the axis's groups.

    ``pruned``: the recipe names it. ``reason``: the operator that froze the axis or makes its removal inexact.
    """

    name: str
    kind: str
    size: int
    parameters_per_group: float
    macs_per_group: float
    exact: bool
    frozen: bool
    pruned: bool
    reason: str


class Inspection(_Value):
    """A model with what may be removed from it; ``notes`` are what its loader and its tracing had to say."""

    model: str
    parameters: int
    macs: int
    axes: list[AxisFacts]
    notes: list[str]


class Gate(_Value):
    """One promise of the recipe: ``value`` was measured (None: could not be) against ``limit``."""

    name: str
    limit: float
    value: float | None
    passed: bool


class Report(_Value):
    """The whole verdict on one run."""

    version: Literal[1] = Field(default=SCHEMA, alias="schema")
    recipe: str
    budget: Budget
    dense: Figures
    repacked: Figures
    speedup: list[Speedup | Absent]
    equivalence: Equivalence
    axes: list[AxisChange]
    environment: dict[str, str | int]
    gates: list[Gate]
    controls: list[Control] = []

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


def judge(
    gates: GatesSection,
    dense: Figures,
    repacked: Figures,
    speedup: Sequence[Speedup | Absent],
    equivalence: Equivalence,
    batch_size: int,
    lower_is_better: Collection[str] = LOWER_IS_BETTER,
) -> list[Gate]:
    """Hold what was measured against the recipe's gates; gates that the recipe does not set are left out.

    ``max_metric_drop`` is the largest loss in any metric, in its own points. ``min_speedup`` is the smallest ratio on
    the CPU at ``batch_size``, over the numbers of threads. A value that could not be measured (NaN) fails.
    """
    drops = [
        (after - before) if name in lower_is_better else (before - after)
        for name, before, after in ((name, dense.metrics[name], repacked.metrics[name]) for name in dense.metrics)
    ]
    ratios = [s.ratio for s in speedup if isinstance(s, Speedup) and s.device == "cpu" and s.batch_size == batch_size]
    values: dict[str, tuple[float | None, float]] = {
        "max_metric_drop": (gates.max_metric_drop, max(drops, default=float("nan"))),
        "min_speedup": (gates.min_speedup, min(ratios, default=float("nan"))),
        "max_macs": (gates.max_macs, repacked.macs / dense.macs),
        "max_parameters": (gates.max_parameters, repacked.parameters),
        "max_file_bytes": (gates.max_file_bytes, repacked.file_bytes),
        "max_output_difference": (gates.max_output_difference, equivalence.max_relative),
    }
    return [
        Gate(
            name=name,
            limit=limit,
            value=None if math.isnan(value) else value,
            passed=value >= limit if name.startswith("min_") else value <= limit,
        )
        for name, (limit, value) in values.items()
        if limit is not None
    ]


def environment() -> dict[str, str | int]:
    """The machine and the versions that the figures were measured with."""
    packages = ("sslprune", "torch", "numpy", "onnx", "onnxruntime", "onnxscript")
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
