"""`train`: a recipe from its data and its model to the masked model, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sslprune.capture.program import Program
from sslprune.data import Data, build_data
from sslprune.models.build import build_model, load_checkpoint, load_weights
from sslprune.recipe import Recipe
from sslprune.removal.plan import Plan, apply_plan, write_plan
from sslprune.report import Size
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.loop import Trainer
from sslprune.train.parts import check_divides
from sslprune.train.prepare import Prepared, prepare, whole_size
from sslprune.train.step import multiplies_bfloat16
from sslprune.train.teacher import dense_of
from sslprune.values.axes import tensors_of
from sslprune.values.team import Alone, Team
from sslprune.values.threads import threads
from sslprune.values.voice import SILENT, Voice


def train(
    recipe: Recipe,
    files: TrainingFiles,
    show: Voice = SILENT,
    start: nn.Module | None = None,
    *,
    previous: TrainingFiles | None = None,
    goal: float | None = None,
    begin: Callable[[nn.Module], None] = lambda _: None,
    ready: Callable[[Data, nn.Module], None] = lambda data, model: None,
    like: nn.Module | None = None,
    team: Team | None = None,
) -> Program | None:
    """Train ``recipe``, or ``start`` by it, into ``files``; where its checkpoint exists, go on from there, to the same.

    Writes checkpoint.pt and history.json after each epoch, dense.safetensors (the model before any sparsity) and, last,
    selection.json and masked.safetensors; after the first epoch, the weights that a model without a checkpoint began
    with; before it, what was done to the model beforehand, with the figures of the whole one. Raises the errors of the
    recipe, its data, its model and its budget before any training, and TrainingError for a loss that is not finite.
    ``ready`` is given data and model, and may raise before anything else does. ``like``: what a task without labels
    learns from, where that is not the model that training begins with.

    In a sweep, ``previous`` is the finished point before this one: its masked weights and zeros are the beginning, and
    its dense model stays the dense one. ``goal`` is the sweep's smallest fraction, which has to be reachable as well.
    ``begin`` is given the model as it begins when all is read and built, before anything in ``files`` is looked at.
    Of a ``team`` every process calls it; only the first reads and writes ``files``, and calls ``ready`` and ``begin``.

    Returns the program that the model was traced to, where anything is to be removed.
    """
    team = team or Alone()
    with threads(recipe.run.threads):
        torch.manual_seed(recipe.run.seed)
        data = build_data(recipe, show)
        check_divides(recipe, getattr(data.train, "batch_size", None), team.world)
        section = recipe.model if previous is None else recipe.model.model_copy(update={"checkpoint": None})
        model, notes = (start, []) if start is not None else build_model(section)
        for note in notes if previous is None else ():
            show.say(note)
        data.check(model)
        prepared = Prepared(model) if start is not None else _prepared(recipe, model, data, previous, team)
        for note in prepared.notes if previous is None else ():
            show.say(note)
        model = prepared.model
        if previous is not None and team.first:
            load_weights(model, load_checkpoint(previous.masked), previous.masked)
        if data.task.taught:
            dense = dense_of(like or model, previous if team.first else None)
            team.share_(tensors_of(dense).values())
            data = data.taught_by(dense)
        if team.first:
            ready(data, model)
        team.share_(tensors_of(model).values())
        trainer = Trainer(recipe, files, data, model, show, previous, team)
        if recipe.train.amp == "bf16" and not multiplies_bfloat16(trainer.device):
            show.say("train.amp: this processor has no products in bfloat16; it trains in float32", "yellow")
        if team.first:
            if goal is not None and trainer.sparsity is not None:
                trainer.sparsity.check_reachable(goal)
            begin(trainer.model)
            if prepared.plan is not None:
                write_plan(files.prepared, prepared.plan)
            if previous is not None and previous.whole.is_file():
                Size.load(previous.whole).save(files.whole)
            elif prepared.whole is not None and not recipe.schedule.dense.count:
                whole_size(prepared, data, trainer.device, show).save(files.whole)
        del prepared
        begun = team.first and files.checkpoint.is_file()
        state = team.broadcast(load_checkpoint(files.checkpoint) if begun else None)
        if state is not None:
            trainer.load_state_dict(state)
            show.say(f"resuming after epoch {len(trainer.history)} of {len(trainer.schedule.epochs)}")
        try:
            trainer.fit()
        except BaseException:
            if team.first and not trainer.history:  # nothing is kept: a log of it would be all there is
                files.untell()
            raise
        return trainer.program


def _prepared(recipe: Recipe, model: nn.Module, data: Data, previous: TrainingFiles | None, team: Team) -> Prepared:
    """``model`` as the run needs it; in a sweep as its first point found it, which knew the weights."""
    if previous is None:
        return prepare(model, data, recipe.prune)
    found = previous.prepared.read_text(encoding="utf-8") if team.first and previous.prepared.is_file() else None
    said = team.broadcast(found)
    plan = Plan.model_validate_json(said) if said is not None else None
    return Prepared(model if plan is None else apply_plan(model, plan), plan)
