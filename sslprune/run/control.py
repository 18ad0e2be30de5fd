"""Controls: was it worth learning what to remove? Each is one training without sparsity, beside a finished run.

dense     the dense model, trained on for as long as the run was sparse and healed
scratch   the run's small architecture with weights drawn anew, trained for as long as the whole run
          (Liu et al. 2019, "Rethinking the Value of Network Pruning")
ticket    the same architecture, rewound to the weights that the run itself began with
          (Frankle and Carbin 2019, "The Lottery Ticket Hypothesis", for structures)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sslprune.calibration.factor import anew_
from sslprune.capture.trace import trace
from sslprune.choose.sections import select_with_sections
from sslprune.cost.counts import Cost
from sslprune.data import build_data
from sslprune.errors import RunError
from sslprune.kinds.find import find_axes
from sslprune.models.build import build_model, count_parameters, device_of, load_checkpoint, load_trained, load_weights
from sslprune.recipe import Recipe, Span, load_recipe
from sslprune.removal.factors import fold_
from sslprune.removal.plan import prepared_as
from sslprune.removal.remove import removable, remove
from sslprune.report import Control, Report
from sslprune.run.directory import ControlName, RunDirectory
from sslprune.run.repack import selection_of
from sslprune.run.written import beside, write_report
from sslprune.show.terminal import Show
from sslprune.train.evaluate import evaluate, full_precision
from sslprune.train.training import train


def control(
    directory: RunDirectory,
    name: ControlName,
    show: Show,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
) -> Control:
    """Train the control ``name`` of a run, into ``RUN/controls/<name>/``, and put it into the run's report.

    It follows the run's recipe, ``overrides`` apart ("schedule.dense=10ep"), with the sparse epochs as ordinary ones.
    Raises RunError for a ticket whose beginning was not kept, and for a control that is there, unless it goes on
    (``resume``) or is trained over (``force``).
    """
    directory.require("repack")
    files = directory.control(name)
    if files.started and not resume and not force:
        raise RunError(f"{files.folder}: holds a control; go on with --resume, or train over it with --force")
    with directory.writing():
        result = _train(directory, name, show, overrides, resume=resume)
        if directory.report.is_file():
            write_report(beside(Report.load(directory.report), directory), directory)
    return result


def _train(
    directory: RunDirectory, name: ControlName, show: Show, overrides: Sequence[str], *, resume: bool
) -> Control:
    files = directory.control(name)
    recipe = load_recipe(directory.recipe_file, overrides)
    dense = fold_(load_trained(recipe.model, directory.dense))
    data = build_data(recipe, show).taught_by(dense)
    recipe = _without_sparsity(recipe, name, len(data.train))
    spans = recipe.schedule
    if not spans.dense.count and not spans.heal.count:
        raise RunError(
            f"{directory.path}: the run trained no step, so a control has none either; say for how long it trains, "
            "as --set schedule.heal=5ep"
        )
    show.stage("control", f"{name}: {spans.dense} and {spans.heal}, without sparsity, on {device_of(recipe.run)}")
    model = _start(directory, recipe, name)
    if name != "dense":
        with show.progress("finding the axes"):
            masked = load_trained(recipe.model, directory.masked)
            program = trace(masked, *data.example_for(masked), sequence=data.sequence)
            chosen = select_with_sections(find_axes(program, recipe.prune), recipe.prune)
            exact = all(axis.exact for axis, _ in chosen)
            removed = removable(program, selection_of(directory, masked, chosen), allow_inexact=not exact)
            model = remove(model, program, removed, verify=False)  # nothing in it is zero: another function
    macs = Cost(trace(model, *data.example_for(model), sequence=data.sequence), []).macs()
    train(recipe, files, show, model, like=dense, begin=lambda _: None if resume else files.clear())
    with full_precision(), show.progress("evaluating", len(data.test)) as bar:
        metrics = evaluate(model, bar.over(data.test), data.task)
    result = Control(
        name=name,
        parameters=count_parameters(model),
        macs=round(macs),
        metrics=metrics,
        epochs=f"{spans.dense} + {spans.heal}" if spans.dense.count else str(spans.heal),
    )
    result.save(files.result)
    return result


def _without_sparsity(recipe: Recipe, name: ControlName, epoch_steps: int) -> Recipe:
    """The recipe with as many steps, none of them sparse."""
    spans = recipe.schedule
    times = max(1, len(recipe.budget.points))  # a sweep went through as many to get here, and nested points heal once
    steps = times * spans.sparse.steps(epoch_steps)
    steps += (1 if recipe.budget.nested else times) * spans.heal.steps(epoch_steps)
    whole = Span(steps, "it") if steps % epoch_steps else Span(steps // epoch_steps, "ep")
    dense = Span(0, "ep") if name == "dense" else spans.dense
    schedule = spans.model_copy(update={"dense": dense, "sparse": Span(0, "ep"), "heal": whole})
    return recipe.model_copy(update={"schedule": schedule, "calibrate": None, "distill": None})


def _start(directory: RunDirectory, recipe: Recipe, name: ControlName) -> nn.Module:
    """The model at its full size with the weights that the control begins with."""
    if name == "dense":
        return fold_(load_trained(recipe.model, directory.dense))
    if name == "ticket" and recipe.model.checkpoint is not None:
        model = anew_(prepared_as(build_model(recipe.model)[0], directory.masked))
        if not recipe.schedule.dense.count:  # what two factors began with was weighed by samples, and kept as dense
            load_weights(model, load_checkpoint(directory.dense), directory.dense)
        return model
    if name == "ticket" and not directory.initial.is_file():
        raise RunError(f"{directory.initial}: the run did not keep the weights that it began with; train it again")
    torch.manual_seed(recipe.run.seed + 1)  # not the run's own beginning, which is the ticket's
    model = prepared_as(build_model(recipe.model.model_copy(update={"checkpoint": None}))[0], directory.masked)
    if name == "ticket":
        load_weights(model, load_checkpoint(directory.initial), directory.initial)
        return model
    return anew_(model)
