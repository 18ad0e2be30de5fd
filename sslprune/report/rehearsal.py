"""What a run would take, by a few of its steps."""

from __future__ import annotations

from sslprune.values.measure import Record


class PhasePlan(Record):
    """One phase of training: "dense", "sparse" or "heal"; seconds of one step at the full size."""

    name: str
    epochs: int
    steps: int
    step_seconds: float


class RunPlan(Record):
    """The length and size of a run. ``smaller``: a step at the budget over one at the full size.

    ``seconds``: of training and of judging each epoch; calibration, exports and timings come on top. ``points``: of a
    sweep, each of which trains the sparse and the healing phase. ``disk_bytes``: of what the run would leave.
    """

    recipe: str
    phases: list[PhasePlan]
    points: int
    evaluation_seconds: float
    smaller: float | None
    shrinks: bool
    calibrates: bool
    seconds: float
    peak_bytes: int
    disk_bytes: int
