"""What can be removed from a model, and what it costs."""

from __future__ import annotations

import numpy as np

from sslprune.capture.trace import trace
from sslprune.choose.sections import select
from sslprune.cost.counts import Cost
from sslprune.data import build_data
from sslprune.errors import RecipeError
from sslprune.kinds.find import find_axes
from sslprune.models.build import build_model, count_parameters, count_trained
from sslprune.recipe import Recipe
from sslprune.report import AxisFacts, Inspection
from sslprune.run.sensitivity import sensitivity
from sslprune.show.terminal import Show
from sslprune.values.selection import Selection


def inspect(recipe: Recipe, show: Show, samples: int | None = None) -> Inspection:
    """Every axis of the recipe's model, with what one group costs and whether the recipe prunes it.

    With ``samples`` of the training data also a map of what the model feels.
    """
    model, notes = build_model(recipe.model)
    data = build_data(recipe, show)
    data.check(model)
    args, kwargs = data.example_for(model)
    with show.progress("finding the axes"):
        program = trace(model, args, kwargs, sequence=data.sequence)
        axes = find_axes(program)
        try:
            pruned = {axis.name for axis in select(axes, recipe.prune)}
        except RecipeError as error:  # the axes are what a person needs to see to mend it
            pruned, notes = set(), [*notes, str(error)]
        cost = Cost(program, axes)
        nothing = Selection.none(axes)
        savings = [cost.savings(nothing, "parameters"), cost.savings(nothing, "macs")]
    without = {alias for name in program.untrained for alias in program.aliases[name]}
    facts = [
        AxisFacts(
            name=axis.name,
            kind=axis.kind,
            size=axis.size,
            parameters_per_group=float(np.mean(parameters)) if len(parameters) else 0.0,
            macs_per_group=float(np.mean(macs)) if len(macs) else 0.0,
            exact=axis.exact,
            frozen=axis.frozen,
            pruned=axis.name in pruned,
            reason=axis.reason,
        )
        for axis, parameters, macs in zip(axes, *savings, strict=True)
    ]
    return Inspection(
        model=recipe.model.factory,
        parameters=count_parameters(model),
        untrained=count_parameters(model) - count_trained(model, without),
        macs=round(cost.macs()),
        axes=facts,
        notes=[*notes, *program.notes],
        sensitivity=sensitivity(recipe, model, program, data, samples, show) if samples is not None else None,
    )
