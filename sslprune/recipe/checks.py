"""What two sections of a recipe cannot say together: each check raises ValueError, in one line."""

from __future__ import annotations

from collections.abc import Sequence

from sslprune.recipe.fields import Span
from sslprune.recipe.method import (
    BudgetSection,
    CalibrateSection,
    ChooseSection,
    LassoSection,
    PruneSection,
    ScheduleSection,
)


def check_strength(budget: BudgetSection, lasso: LassoSection) -> None:
    """ValueError unless either the budget decides how much goes, or a strength does, with the fields that it reads."""
    if budget.given and lasso.strength is not None:
        raise ValueError(
            f"budget.{budget.measure} and lasso.strength: the one finds λ, the other gives it; leave one of them out"
        )
    if not budget.given and lasso.strength is None:
        raise ValueError(
            "nothing says how much may go: give budget.macs, .parameters or .latency, the fraction that may remain"
            " (0.5), or the penalty's λ as lasso.strength (1e-4)"
        )
    for_budget, for_strength = ("ratio", "decay", "interval"), ("weights", "threshold")
    for name in for_strength if budget.given else for_budget:
        if getattr(lasso, name) != LassoSection.model_fields[name].default:
            reads = "lasso.strength reads it" if budget.given else "a budget reads it"
            raise ValueError(f"lasso.{name}: only {reads}, and there is none; leave it out")
    if lasso.threshold != LassoSection.model_fields["threshold"].default and lasso.method != "subgradient":
        raise ValueError('lasso.threshold: only method = "subgradient" has one; the proximal step gives exact zeros')


def check_ties(prune: Sequence[PruneSection], budget: BudgetSection) -> None:
    """ValueError for a tie where λ decides, axis by axis, what goes."""
    for number, section in enumerate(prune):
        if section.tie is not None and not budget.given:
            raise ValueError(
                f"prune.{number}.tie: a given lasso.strength takes each group by itself; give a budget, or leave it out"
            )


def check_calibration(section: CalibrateSection | None, budget: BudgetSection, schedule: ScheduleSection) -> None:
    """ValueError for a calibration without a budget, or with one of its own that nothing goes on from."""
    if section is None:
        return
    if not budget.given:
        raise ValueError("calibrate: it goes by a budget; give budget.macs, .parameters or .latency, as 0.5")
    if section.fraction is not None and not schedule.sparse.count:
        raise ValueError("calibrate.fraction: no sparse phase goes on from it; leave it out, or give schedule.sparse")
    if section.fraction is not None and section.fraction < budget.points[0]:
        raise ValueError(
            f"calibrate.fraction: {section.fraction:g} is below the budget, {budget.points[0]:g}; leave it out"
        )


def check_choice(
    section: ChooseSection, budget: BudgetSection, sparse: Span | None = None, calibrate: CalibrateSection | None = None
) -> None:
    """ValueError for evidence where nothing is chosen by it."""
    if section == ChooseSection():
        return
    if not budget.given:
        raise ValueError("choose.evidence: only a budget reads it, and there is none; leave it out")
    if sparse is not None and not sparse.count:
        raise ValueError("choose.evidence: no sparse phase reads it; leave it out, or give schedule.sparse")
    if calibrate is not None and calibrate.fraction is None:
        raise ValueError("choose.evidence: calibration chooses all that goes, by calibrate.evidence; leave it out")
