"""``report.json``: what was gained and what it cost, as values with a schema.

Everything is measured on this machine in this run, or said to be absent. Units are in the names: ``_ms`` are
milliseconds, ``_bytes`` bytes; ``macs`` are multiply-accumulates for one sample; accuracy is in percent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sslprune.errors import RunError
from sslprune.files import write_text

SCHEMA: Literal[1] = 1
SCHEMA_FILE = Path(__file__).parent / "report.schema.json"


class _Value(BaseModel):
    """Prints as JSON and reads itself back."""

    # keys that a later version of the same schema added are passed over
    model_config = ConfigDict(frozen=True, extra="ignore", validate_by_name=True, serialize_by_alias=True)

    def save(self, path: Path) -> Path:
        return write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote; raises RunError, naming the field, for anything else."""
        try:
            text = path.read_text(encoding="utf-8")
            newer = _schema_of(text)
            if newer is not None and newer > SCHEMA:
                raise RunError(
                    f"{path}: schema {newer}, written by a newer sslprune; this one reads schema {SCHEMA}: upgrade it"
                )
            return cls.model_validate_json(text)
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: cannot be read: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise RunError(
                f"{path}: not what this version of sslprune (schema {SCHEMA}) writes: {where}: {first['msg']}"
            ) from error


def _schema_of(text: str) -> int | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    version = value.get("schema") if isinstance(value, dict) else None
    return version if isinstance(version, int) else None


class Absent(_Value):
    """A device that is not there, or that this build of ``runtime`` cannot use: said rather than left out."""

    device: str
    absent: Literal[True] = True
    runtime: str | None = None
    reason: str | None = None


class Latency(_Value):
    """One model in one setting. ``threads`` are those of the runtime on the CPU."""

    device: str
    runtime: str
    batch_size: int
    threads: int
    median_ms: float
    p95_ms: float
    repetitions: int
    samples_per_second: float | None = None
    length: int | None = None  # of the sequences, where the model takes any


class Speedup(_Value):
    """``ratio``: the median of the paired dense / repacked ratios; ``low`` to ``high`` its 95 % bootstrap interval.

    ``realised``: the share of the theoretical gain, ``ratio`` over the ratio of MACs, where both models have MACs.
    """

    device: str
    runtime: str
    batch_size: int
    threads: int
    ratio: float
    low: float
    high: float
    realised: float | None = None
    length: int | None = None

    @property
    def clear(self) -> bool:
        """Whether there is a measurable difference: 1 lies outside the interval."""
        return not self.low <= 1 <= self.high


class OnnxCheck(_Value):
    """The ONNX file in ONNX Runtime on the test data: its metrics, and its largest relative difference from torch."""

    metrics: dict[str, float]
    max_relative: float
    samples: int


class Size(_Value):
    """One model. ``macs`` are for one sample; ``metrics`` are on the test data after the last epoch."""

    parameters: int
    macs: int
    metrics: dict[str, float]


class Figures(Size):
    """One model with its ONNX file (of ``file_bytes``) and how fast it runs.

    ``load_ms`` and ``peak_bytes`` are of a fresh process with one thread, one sample, and nothing but the runtime.
    """

    file_bytes: int
    latency: list[Latency | Absent]
    onnx: OnnxCheck | None = None
    load_ms: float | None = None
    peak_bytes: int | None = None


class Variant(_Value):
    """A model beside dense and repacked: a quantized one, or a control. ``metrics`` are measured in ONNX Runtime.

    ``max_relative``: how far a quantized model's output is from the repacked model's on the test data. ``speedup`` is
    over the dense model, ``over_repacked`` over the repacked one.
    """

    name: str
    kind: Literal["quantized", "control"]
    file: str
    parameters: int | None
    macs: int | None
    metrics: dict[str, float]
    file_bytes: int
    latency: list[Latency | Absent]
    speedup: list[Speedup | Absent]
    over_repacked: list[Speedup | Absent]
    max_relative: float | None = None
    load_ms: float | None = None
    peak_bytes: int | None = None
    notes: list[str] = []


class OperatorTime(_Value):
    """One kind of operator in one run of a model: how many of it there are, and the milliseconds they take together."""

    operator: str
    calls: int
    ms: float


class Profile(_Value):
    """Where one model's time goes in ONNX Runtime on the CPU."""

    model: str
    batch_size: int
    threads: int
    operators: list[OperatorTime]


class Staircase(_Value):
    """How long a lone convolution of each width takes on this machine, relative to the widest, and what follows.

    Widths were kept on multiples of ``round_to``. ``gain``: what a width off the machine's ``step`` costs per
    multiply-accumulate, over one on it.
    """

    round_to: int
    step: int
    seconds: dict[int, float]
    gain: float | None


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
    """``fraction`` of the dense model's ``measure`` was allowed to remain; ``reached`` does.

    Where the recipe gave a ``strength`` (λ) in place of a budget, ``fraction`` is null and ``reached`` what λ left.
    """

    measure: str
    fraction: float | None
    reached: float
    strength: float | None = None


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
    """One promise of the recipe: ``value`` was measured (None: could not be) against ``limit``.

    ``variant`` is the model that it is about, ``where`` the timing, if it is about one: "cpu, batch 1, 1 thread".
    """

    name: str
    limit: float
    value: float | None
    passed: bool
    variant: str = "repacked"
    where: str = ""

    def __str__(self) -> str:
        return self.told()

    def told(self, title: str = "") -> str:
        """In one line, under another ``title`` if one is given."""
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        return f"{title or self.title} is {value}, limit {self.limit:g}"

    @property
    def title(self) -> str:
        name = self.name if self.variant == "repacked" else f"{self.variant}: {self.name}"
        return f"{name} ({self.where})" if self.where else name


class CurvePoint(Size):
    """One point of a sweep: what may remain and does, what it scores, and how fast it is beside the dense model.

    ``run`` is its run directory, relative to the report's: "." is the report's own, the last point.
    """

    run: str
    budget: Budget
    speedup: list[Speedup | Absent]
    gates: list[Gate]
    controls: list[Control] = []


class Change(_Value):
    """One figure in an earlier report and in this one. ``verdict``: better, worse, or same (no measurable change)."""

    variant: str
    name: str
    before: float
    after: float
    verdict: Literal["better", "worse", "same"]


class Baseline(_Value):
    """An earlier report held beside this one."""

    file: str
    recipe: str
    same_machine: bool
    changes: list[Change]


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
    curve: list[CurvePoint] = []  # of a sweep: every point, the largest budget first
    variants: list[Variant] = []
    profiles: list[Profile] = []
    staircase: Staircase | None = None
    baseline: Baseline | None = None
    recipe_sha256: str | None = None
    notes: list[str] = []

    @property
    def macs_ratio(self) -> float:
        """The theoretical gain: dense over repacked MACs."""
        return self.dense.macs / self.repacked.macs if self.repacked.macs else float("inf")

    @property
    def every_gate(self) -> list[tuple[str, Gate]]:
        """The gates with what each is called; those of every point, where this is a sweep."""
        at = [(f"at {point.budget.fraction:g}: {gate.title}", gate) for point in self.curve for gate in point.gates]
        return at or [(gate.title, gate) for gate in self.gates]

    @property
    def passed(self) -> bool:
        return all(gate.passed for _, gate in self.every_gate)

    def as_point(self, run: str) -> CurvePoint:
        """This report as a point of a sweep's curve."""
        own = {name: getattr(self, name) for name in ("budget", "speedup", "gates", "controls")}
        small = self.repacked.model_dump(include={"parameters", "macs", "metrics"})
        return CurvePoint(run=run, **small, **own)


def report_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``report.json``, as ``SCHEMA_FILE`` publishes it."""
    schema = Report.model_json_schema(by_alias=True, mode="serialization")
    schema["required"] = [key for key, field in _aliased(Report) if field.is_required() or key == "schema"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _aliased(model: type[BaseModel]) -> list[tuple[str, Any]]:
    return [(field.alias or name, field) for name, field in model.model_fields.items()]
