"""What was promised against what was measured, and what has changed since an earlier report."""

from __future__ import annotations

from typing import Literal

from sslprune.values.measure import Record


class Gate(Record):
    """One promise of the recipe: ``value`` was measured (None: could not be) against ``limit``.

    ``variant`` is the model that it is about, ``where`` the timings, if it is about some: "cpu, batch 1, 1 thread".
    ``judged``: of those the one that ``value`` is of, the slowest.
    """

    name: str
    limit: float
    value: float | None
    passed: bool
    variant: str = "repacked"
    where: str = ""
    judged: str = ""

    def without_gain(self) -> Gate:
        """The gate where the dense model was never trained: a gain over it is none."""
        if self.name != "max_metric_drop" or self.value is None or self.value >= 0:
            return self
        return self.model_copy(update={"passed": False, "where": "the dense model is not trained"})

    def __str__(self) -> str:
        return self.told()

    def told(self, title: str = "") -> str:
        """In one line, under another ``title`` if one is given."""
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        at = f" at {self.judged}" if self.judged else ""
        return f"{title or self.title} is {value}{at}, limit {self.limit:g}"

    @property
    def title(self) -> str:
        name = self.name if self.variant == "repacked" else f"{self.variant}: {self.name}"
        return f"{name} ({self.where})" if self.where else name


class Change(Record):
    """One figure in an earlier report and in this one. ``verdict``: better, worse, or same (no measurable change)."""

    variant: str
    name: str
    before: float
    after: float
    verdict: Literal["better", "worse", "same"]


class Baseline(Record):
    """An earlier report held beside this one."""

    file: str
    recipe: str
    same_machine: bool
    changes: list[Change]
