"""A look before the run: how small a model can get at all, and what widths, MACs and milliseconds a budget leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from sslprune.bench.table import LayerTable
from sslprune.calibration.calibrate import state_of
from sslprune.calibration.evidence import magnitudes
from sslprune.capture.program import Program
from sslprune.choose.blocks import Evidence, Goal, goal_of
from sslprune.choose.landing import choose
from sslprune.choose.sections import select_with_sections
from sslprune.cost.counts import Cost
from sslprune.errors import BudgetError, RecipeError
from sslprune.kinds.table import kind_of
from sslprune.recipe import BudgetSection, LassoSection, PruneSection
from sslprune.recipe.fields import Measure
from sslprune.report import BudgetLook, Least
from sslprune.show.terminal import Show
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection

NEARLY_ALL = 0.99  # of the cost: a goal that is asked for its least alone


def proposed(axes: Sequence[Axis]) -> list[PruneSection]:
    """A section for each kind of which anything can be removed exactly, but for what lies inside single layers."""
    kinds = {a.kind for a in axes if a.prunable and a.exact and not kind_of(a).is_inside and kind_of(a).is_feature}
    return [PruneSection(kind=kind) for kind in sorted(kinds)]


def least_of(
    program: Program, axes: Sequence[Axis], sections: Sequence[PruneSection], budget: BudgetSection, lasso: LassoSection
) -> list[Least]:
    """The least that may remain of the ``budget``'s measure: of each kind by itself, of all of them, by ``sections``.

    A kind that the sections name goes by its section: its floors, includes and excludes.
    """
    named = {section.kind for section in sections}
    every = [*sections, *(section for section in proposed(axes) if section.kind not in named)]
    single = {section.kind: [s for s in every if s.kind == section.kind] for section in every}
    asked = {**dict(sorted(single.items())), "all": every, "recipe": list(sections)}
    measured = budget if budget.given and budget.measure != "latency" else BudgetSection(macs=(NEARLY_ALL,))
    found = []
    for name, chosen in asked.items():
        pairs = select_with_sections(axes, chosen) if chosen else []
        if pairs:
            goal = goal_of(pairs, Cost(program, [axis for axis, _ in pairs]), measured, lasso.floor)
            least = goal.least(Selection.none(goal.constraints.axes)) / goal.dense
            found.append(Least(what=name, measure=measured.measure, fraction=least, axes=len(pairs)))
    return found


def looks(
    model: nn.Module,
    program: Program,
    chosen: Sequence[tuple[Axis, PruneSection]],
    budget: BudgetSection,
    lasso: LassoSection,
    fractions: Sequence[float],
    batch: int,
    show: Show,
) -> list[BudgetLook]:
    """What stays at each of ``fractions`` of the budget's measure (MACs where there is none), and what it would cost.

    All axes give about the same share, whole branches last: an example, where training takes what is worth least.
    Milliseconds are sums over the layers with multiply-accumulates, each timed by itself in ONNX Runtime on one
    thread of this machine. A fraction that the constraints do not allow has no widths.
    """
    axes = [axis for axis, _ in chosen]
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    cost = Cost(program, axes, LayerTable(num_bytes=size), batch)
    given = budget if budget.given else BudgetSection(macs=(NEARLY_ALL,))
    goal = goal_of(chosen, cost, given, lasso.floor)
    evidence = evenly(cost, magnitudes(axes, state_of(program, model)), given.measure)
    found: list[BudgetLook] = []
    with show.progress("measuring layers", len(fractions) + 1) as bar:
        dense = cost.latency() / 1e3
        bar.advance()
        for fraction in fractions:
            selection = _chosen(replace(goal, fraction=fraction), evidence)
            if selection is None:
                found.append(BudgetLook(fraction=fraction, measure=given.measure))
            else:
                left = {f"{axis.name} {axis.kind}": selection.left(i) for i, axis in enumerate(axes)}
                found.append(
                    BudgetLook(
                        fraction=fraction,
                        measure=given.measure,
                        macs=round(cost.macs(selection)),
                        parameters=round(cost.parameters(selection)),
                        dense_ms=dense,
                        ms=cost.latency(selection) / 1e3,
                        widths=left,
                    )
                )
            bar.advance()
    return found


def evenly(cost: Cost, evidence: Evidence, measure: Measure) -> Evidence:
    """Evidence by which all axes give the same share: a group's place among those of its axis, at any saving."""
    savings = cost.savings(None, "macs" if measure == "latency" else measure)
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in evidence]
    return [saved * (rank + 1) / max(1, len(rank)) for saved, rank in zip(savings, ranks, strict=True)]


def _chosen(goal: Goal, evidence: Evidence) -> Selection | None:
    try:
        return choose(goal, evidence)
    except BudgetError:
        return None


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise RecipeError for a fraction that is none."""
    for fraction in fractions:
        if not 0 < fraction < 1:
            raise RecipeError(f"--budget: {fraction:g}; expected what may remain, above 0 and below 1")
