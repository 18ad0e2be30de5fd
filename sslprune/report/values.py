"""``report.json``: what was gained and what it cost, as values with a schema.

Everything is measured on this machine in this run, or said to be absent. Units are in the names: ``_ms`` are
milliseconds, ``_bytes`` bytes; ``macs`` are multiply-accumulates for one sample; accuracy is in percent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from sslprune.report.course import Course
from sslprune.report.figures import Control, Decoding, Figures, Size, Variant
from sslprune.report.inspection import Sensitivity
from sslprune.report.judgement import Baseline, Gate
from sslprune.values.measure import SCHEMA, Absent, Profile, Record, Speedup

MANY_ZEROS = 0.01  # the share of the parameters from which zeros are worth a word
SCHEMA_FILE = Path(__file__).parent / "report.schema.json"


class Staircase(Record):
    """How long a lone convolution of each width takes on this machine, relative to the widest, and what follows.

    Widths were to be multiples of ``round_to``. ``gain``: what a width off the machine's ``step`` costs per
    multiply-accumulate, over one on it.
    """

    round_to: int
    step: int
    seconds: dict[int, float]
    gain: float | None


class Equivalence(Record):
    """Masked against repacked model: the largest differences over ``samples`` test samples and random inputs.

    ``max_relative`` is relative to the largest output. ``metrics`` are the masked model's on the test data.
    """

    max_abs: float
    max_relative: float
    samples: int
    metrics: dict[str, float]


class AxisChange(Record):
    """How many groups of one axis there were and are.

    ``grain``: what ``after`` was to be a multiple of, as far as the budget allowed; None where it is no width.
    """

    name: str
    kind: str
    before: int
    after: int
    grain: int | None = None

    @property
    def off_grain(self) -> bool:
        """Whether what was taken left a width between two steps."""
        return self.grain is not None and self.after not in (self.before, 0) and self.after % self.grain != 0


class Budget(Record):
    """``fraction`` of the dense model's ``measure`` was allowed to remain; ``reached`` does.

    Where the recipe gave a ``strength`` (λ) in place of a budget, ``fraction`` is null and ``reached`` what λ left.
    Of latency, ``reached`` is measured, with the models whole and in turns; ``low`` to ``high`` is its 95 % interval.
    ``predicted`` is what the table of layers said, ``table_ms`` the sum that it has for the dense model, to which
    ``whole_ms``, measured before training, was held. ``nested``: the run's points are parts of one set of weights.
    """

    measure: str
    fraction: float | None
    reached: float
    strength: float | None = None
    low: float | None = None
    high: float | None = None
    predicted: float | None = None
    table_ms: float | None = None
    whole_ms: float | None = None
    nested: bool = False

    @property
    def met(self) -> bool:
        """Whether what remains is within 1 % of what was allowed, as far as it can be measured."""
        if self.fraction is None:
            return True
        low, high = self.low or self.reached, self.high or self.reached
        return low <= 1.01 * self.fraction and high >= 0.99 * self.fraction


class RepackResult(Record):
    """What the repack stage found: the first half of a report, kept in the run directory for the second."""

    budget: Budget
    dense: Size
    repacked: Size
    equivalence: Equivalence
    axes: list[AxisChange]
    whole: Size | None = None


class CurvePoint(Size):
    """One point of a sweep: what may remain and does, what it scores, and how fast it is beside the dense model.

    ``run`` is its run directory, relative to the report's: "." is the report's own, the last point.
    """

    run: str
    budget: Budget
    speedup: list[Speedup | Absent]
    gates: list[Gate]
    controls: list[Control] = []


class Report(Record):
    """The whole verdict on one run."""

    version: Literal[1] = Field(default=SCHEMA, alias="schema")
    recipe: str
    budget: Budget
    dense: Figures
    repacked: Figures
    whole: Size | None = None  # before it was cut to some of its classes: it chooses among all, on the same test data
    speedup: list[Speedup | Absent]
    equivalence: Equivalence
    axes: list[AxisChange]
    environment: dict[str, str | int]
    gates: list[Gate]
    controls: list[Control] = []
    curve: list[CurvePoint] = []  # of a sweep: every point, the largest budget first
    variants: list[Variant] = []
    profiles: list[Profile] = []
    decoding: list[Decoding] = []  # where the decoder was written with a cache
    staircase: Staircase | None = None
    baseline: Baseline | None = None
    sensitivity: Sensitivity | None = None  # of the dense model, where RUN/sensitivity.json has it
    course: Course | None = None  # of reports since there is one
    recipe_sha256: str | None = None
    lower_is_better: list[str] = []  # the metrics in which less is better
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

    @property
    def whole_text(self) -> str:
        """What the whole model scores, where the dense one was cut to some of its classes."""
        if self.whole is None:
            return ""
        said = ", ".join(f"{name} {value:.2f}" for name, value in self.whole.metrics.items())
        return f"{self.whole.parameters:,} parameters, all classes and tokens: {said} on the same test data"

    @property
    def zeros_text(self) -> str:
        """How much of the repacked model is zero and stays, where that is much."""
        small = self.repacked
        if small.zeros < MANY_ZEROS * small.parameters:
            return ""
        share = 100 * small.zeros / small.parameters
        return (
            f"{small.zeros:,} of the {small.parameters:,} parameters that are left ({share:.1f} %) are zero: they stay"
            " in dense weights, and save no time"
        )

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
