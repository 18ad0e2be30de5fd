"""A model before it is trained: what may be removed from it."""

from __future__ import annotations

from sslprune.values.measure import Record


class AxisFacts(Record):
    """An axis as ``inspect`` tells it; what one group saves is the mean over the axis's groups.

    ``pruned``: the recipe names it. ``reason``: the operator that froze the axis or makes its removal inexact. ``tie``:
    how it goes with the other axes ``tied_to``, as the recipe's section says.
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
    tie: str | None = None
    tied_to: list[str] = []


class AxisSensitivity(Record):
    """How far the outputs are from the dense model's when groups of one axis alone go, those that carry least first.

    ``divergence`` has a number for each of ``gone``, counts of groups.
    """

    name: str
    kind: str
    size: int
    gone: list[int]
    divergence: list[float]


class BudgetSensitivity(Record):
    """What calibration leaves at one budget: the outputs' divergence as cut and repaired, and the test metrics."""

    fraction: float
    cut: float
    repaired: float
    metrics: dict[str, float]


class Sensitivity(Record):
    """A map of what the model feels, on ``samples`` samples; divergences are of those held out among them."""

    samples: int
    measure: str
    dense: dict[str, float]
    axes: list[AxisSensitivity]
    budgets: list[BudgetSensitivity]


class Least(Record):
    """The least ``fraction`` of the dense ``measure`` that can remain: by one kind, by "all", or by the "recipe"."""

    what: str
    measure: str
    fraction: float
    axes: int


class BudgetLook(Record):
    """What one budget leaves where all axes give about the same share: groups by axis, and what the model would cost.

    ``ms``: the layers with multiply-accumulates, each timed by itself, one thread. None: it cannot be reached.
    """

    fraction: float
    measure: str
    macs: int | None = None
    parameters: int | None = None
    dense_ms: float | None = None
    ms: float | None = None
    widths: dict[str, int] = {}


class Inspection(Record):
    """A model with what may be removed from it; ``notes`` are what its loader and its tracing had to say.

    ``untrained``: how many of the parameters do not train; they count in every share, and in a budget of parameters.
    """

    model: str
    parameters: int
    untrained: int = 0
    macs: int
    axes: list[AxisFacts]
    notes: list[str]
    least: list[Least] = []
    budgets: list[BudgetLook] = []
    sensitivity: Sensitivity | None = None
