"""A look at what a model feels, before anything is decided: on a few samples, without training."""

from __future__ import annotations

import copy

from torch import nn

from sslprune.calibration.calibrate import MEGABYTE, Calibration, state_of
from sslprune.calibration.samples import collect
from sslprune.calibration.sensitivity import BUDGETS, by_axis, by_budget
from sslprune.capture.mode import evaluating
from sslprune.capture.program import Program
from sslprune.choose.blocks import goal_of
from sslprune.choose.sections import select_with_sections
from sslprune.cost.counts import Cost
from sslprune.data import Data
from sslprune.errors import RecipeError
from sslprune.kinds.find import find_axes
from sslprune.recipe import CalibrateSection, Recipe
from sslprune.report import AxisSensitivity, BudgetSensitivity, Sensitivity
from sslprune.show.terminal import Show
from sslprune.train.evaluate import evaluate
from sslprune.values.inputs import num_rows


def sensitivity(
    recipe: Recipe, model: nn.Module, program: Program, data: Data, samples: int, show: Show
) -> Sensitivity:
    """The divergence of the outputs by what is removed, of each axis that the recipe names, and by budgets.

    Test data say what each budget's model scores: a forecast, and no choice is made by it. Raises RecipeError for a
    recipe without a budget, and for one whose measure is latency.
    """
    if not recipe.budget.given or recipe.budget.measure == "latency":
        raise RecipeError("--sensitivity: it goes by budget.macs or budget.parameters, and the recipe has neither")
    data = data.taught_by(model)
    section = (recipe.calibrate or CalibrateSection()).model_copy(update={"candidates": 1, "samples": samples})
    chosen = select_with_sections(find_axes(program, recipe.prune), recipe.prune)
    axes = [axis for axis, _ in chosen]
    goal = goal_of(chosen, Cost(program, axes), recipe.budget, recipe.lasso.floor)
    with evaluating(model):
        inputs = (inputs for inputs, _ in data.train.epoch(0))
        gathered = collect(program, inputs, samples, section.memory * MEGABYTE)
        found = Calibration(program, state_of(program, model), gathered, section, data.task, recipe.run.seed)
        with show.progress("removing, axis by axis", len(axes)) as bar:
            felt = list(bar.over(by_axis(found, axes)))
        budgets = []
        small = copy.deepcopy(model)
        with show.progress("removing, budget by budget", len(BUDGETS)) as bar:
            for fraction, calibrated in bar.over(by_budget(found, goal)):
                calibrated.load_into(small, program)
                metrics = evaluate(small, data.test, data.task)
                budgets.append(
                    BudgetSensitivity(
                        fraction=fraction, cut=calibrated.cut, repaired=calibrated.repaired, metrics=metrics
                    )
                )
        dense = evaluate(model, data.test, data.task)
    by_name = [
        AxisSensitivity(
            name=steps[0].axis.name,
            kind=steps[0].axis.kind,
            size=steps[0].axis.size,
            gone=[step.gone for step in steps],
            divergence=[step.divergence for step in steps],
        )
        for steps in felt
    ]
    seen = sum(num_rows(leaves) for leaves in gathered.batches)
    return Sensitivity(samples=seen, measure=recipe.budget.measure, dense=dense, axes=by_name, budgets=budgets)
