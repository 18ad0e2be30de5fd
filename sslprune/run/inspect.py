"""What can be removed from a model, and what it costs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import nn

from sslprune.calibration.matrices import asked
from sslprune.capture.trace import trace
from sslprune.choose.constraints import constraints_of
from sslprune.choose.sections import select_with_sections
from sslprune.cost.counts import Cost
from sslprune.data import Data, build_data
from sslprune.errors import DataError, RecipeError
from sslprune.kinds.find import find_axes
from sslprune.kinds.table import KINDS
from sslprune.models.build import build_model, count_parameters, count_trained, model_table
from sslprune.models.example import Example, example_from, example_of
from sslprune.recipe import ModelSection, PruneSection, Recipe, overridden, parse_recipe
from sslprune.removal.factors import Factored, fold_
from sslprune.report import AxisFacts, Inspection
from sslprune.run.look import check_fractions, least_of, looks, proposed
from sslprune.run.sensitivity import sensitivity
from sslprune.show.terminal import Show
from sslprune.train.prepare import Prepared, factored, prepare
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection


def inspect(
    recipe: Recipe,
    show: Show,
    samples: int | None = None,
    *,
    inputs: Sequence[str] = (),
    budgets: Sequence[float] = (),
    bare: bool = False,
) -> Inspection:
    """Every axis of the recipe's model, with what one group costs and whether the recipe prunes it.

    With ``samples`` of the training data also a map of what the model feels. ``budgets``: fractions of which the widths
    and their costs are told. ``inputs`` say what the model is called with ("1,3,224,224"); no data are read then, nor
    for a ``bare`` recipe, which is of a model alone and prunes all that it can.
    """
    check_fractions(budgets)
    given = example_from(inputs) if inputs else None
    model, notes = _model(recipe.model)
    data, example = (None, given) if given or bare else _data(recipe, model, show, notes)
    if data is None and samples is not None:
        raise RecipeError("--sensitivity: it reads samples of the training data; give a recipe with [data]")
    if data is None:
        example = example or example_of(model, recipe.model.factory)
        example.check(model)
        args, kwargs, sequence = example.args, example.kwargs, example.sequence
        if not bare and asked(recipe.prune):
            prepared = factored(Prepared(model), (args, kwargs), recipe.prune, sequence=sequence)
            model, notes = prepared.model, [*notes, *prepared.notes]
    else:
        prepared = prepare(model, data, recipe.prune)
        model, notes = prepared.model, [*notes, *prepared.notes]
        args, kwargs = data.example_for(model)
        sequence = data.sequence
    with show.progress("finding the axes"):
        program = trace(model, args, kwargs, sequence=sequence)
        axes = find_axes(program, () if bare else recipe.prune)
        sections = proposed(axes) if bare else recipe.prune
        chosen: list[tuple[Axis, PruneSection]] = []
        try:
            chosen = select_with_sections(axes, sections)
        except RecipeError as error:  # the axes are what a person needs to see to mend it
            notes, sections = [*notes, str(error)], []
        pruned = {axis.name for axis, _ in chosen}
        tied = _ties(chosen)
        cost = Cost(program, axes)
        nothing = Selection.none(axes)
        savings = [cost.savings(nothing, "parameters"), cost.savings(nothing, "macs")]
        least = least_of(program, axes, sections, recipe.budget, recipe.lasso)
    batch = (recipe.bench.batch_sizes or [1])[0]
    found = looks(model, program, chosen, recipe.budget, recipe.lasso, budgets, batch, show) if chosen else []
    whole = fold_(copy.deepcopy(model)) if any(isinstance(m, Factored) for m in model.modules()) else model
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
            tie=tied[axis.name][0] if axis.name in tied else None,
            tied_to=[name for name in tied[axis.name][1] if name != axis.name] if axis.name in tied else [],
        )
        for axis, parameters, macs in zip(axes, *savings, strict=True)
    ]
    return Inspection(
        model=recipe.model.factory,
        parameters=count_parameters(whole),
        untrained=count_parameters(model) - count_trained(model, without),
        macs=round(cost.macs()),
        axes=facts,
        notes=[*notes, *program.notes],
        least=least,
        budgets=found,
        sensitivity=sensitivity(recipe, model, program, data, samples, show) if samples is not None and data else None,
    )


def _ties(chosen: Sequence[tuple[Axis, PruneSection]]) -> dict[str, tuple[str | None, list[str]]]:
    """Of each axis that is tied how, and the names of all in its tie."""
    found: dict[str, tuple[str | None, list[str]]] = {}
    for tie in constraints_of(chosen, 0.0, 1).ties:
        names = [chosen[i][0].name for i in tie.axes]
        found |= dict.fromkeys(names, (chosen[tie.axes[0]][1].tie, names))
    return found


def _model(section: ModelSection) -> tuple[nn.Module, list[str]]:
    """The model; what may be removed of it does not depend on a checkpoint that is not there yet."""
    if section.checkpoint is None or Path(section.checkpoint).exists():
        return build_model(section)
    model, notes = build_model(section.model_copy(update={"checkpoint": None, "key": None}))
    return model, [*notes, f"{section.checkpoint}: no such checkpoint; the weights are those that the factory gives"]


def _data(recipe: Recipe, model: nn.Module, show: Show, notes: list[str]) -> tuple[Data | None, Example | None]:
    """The recipe's data; where they cannot be read, what the model says of its inputs itself, with a note."""
    try:
        data = build_data(recipe, show)
        data.check(model)
        return data, None
    except (DataError, RecipeError) as error:
        if recipe.data.absent():  # what is there, and not as it should be, is told as it is
            with suppress(RecipeError):
                example = example_of(model, recipe.model.factory)
                notes.append(f"the data are not read ({error}): inputs are as the model says itself")
                return None, example
            error.add_note("or say what the model is called with: --input 1,3,224,224")
        raise


def bare_recipe(model: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of a ``model`` alone, "torchvision:resnet50" or any factory: what is not the model's is never read."""
    values = {
        "model": model_table(model),
        "data": {"factory": "no.py:data"},
        "prune": [{"kind": next(iter(KINDS))}],  # see `proposed`
        "budget": {"macs": 0.5},
        "schedule": {"sparse": "1ep", "heal": "1ep"},
    }
    return parse_recipe(overridden(values, overrides), "inspect")
