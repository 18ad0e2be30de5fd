"""A dry run: everything is built and a few steps of each phase are taken, to say how long the run would be."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslprune.calibration.calibrate import state_of
from sslprune.calibration.evidence import magnitudes
from sslprune.choose.landing import choose
from sslprune.data import Data, build_data
from sslprune.models.build import build_model
from sslprune.recipe import Recipe
from sslprune.removal.remove import removable, remove
from sslprune.report import PhasePlan, RunPlan
from sslprune.run.check import check, check_chance, check_model
from sslprune.run.look import evenly
from sslprune.show.terminal import Show
from sslprune.train.budget import BudgetController
from sslprune.train.checkpoint import TrainingFiles, write_checkpoint
from sslprune.train.evaluate import evaluate
from sslprune.train.loop import Trainer
from sslprune.train.optimizer import build_optimizer
from sslprune.train.prepare import prepare
from sslprune.values.carry import carrying
from sslprune.values.inputs import Inputs, call, each
from sslprune.values.tasks import MODEL
from sslprune.values.threads import threads
from sslprune.values.voice import SILENT

STEPS = 3  # of each phase that are timed, behind one that is not
BATCHES = 4  # of the test data


def rehearse(recipe: Recipe, show: Show, *, force: bool = False) -> RunPlan:
    """What a run of ``recipe`` would take; it is built as a run builds it, and nothing is written but for a while.

    Raises what a run raises before its training and in its first steps.
    """
    check(recipe)
    with threads(recipe.run.threads), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(recipe.run.seed)
        data = build_data(recipe, show)
        model, _ = build_model(recipe.model)
        data.check(model)
        model = prepare(model, data, recipe.prune).model
        check_model(recipe, data, model)
        check_chance(recipe, data, model, show, force=force)
        data = data.taught_by(model)
        files = TrainingFiles(Path(folder))
        trainer = Trainer(recipe, files, data, model, SILENT)
        phases = [_timed(trainer, phase, show) for phase, steps in trainer.schedule.steps.items() if steps]
        with show.progress("evaluating"):
            began = time.perf_counter()
            judged = data.valid or data.test
            evaluate(trainer.trained, islice(judged, BATCHES), data.task)
            judging = (time.perf_counter() - began) / min(BATCHES, len(judged)) * len(judged)
        smaller = _smaller(trainer, data)
        write_checkpoint(files.checkpoint, trainer.state_dict())
        weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        written = files.checkpoint.stat().st_size
    points = 1 if recipe.budget.nested else max(1, len(recipe.budget.points))  # nested ones are trained together
    shrinks, seconds = smaller is not None and trainer.shrinks, 0.0
    for phase in phases:
        share = {"dense": 1.0, "sparse": (1 + (smaller or 1)) / 2, "heal": smaller or 1}[phase.name] if shrinks else 1.0
        times = 1 if phase.name == "dense" else points
        seconds += times * (phase.steps * phase.step_seconds * share + phase.epochs * judging)
    left = recipe.budget.fraction if recipe.budget.given else 1.0
    return RunPlan(
        recipe=recipe.name,
        phases=phases,
        points=points,
        evaluation_seconds=judging,
        smaller=smaller,
        shrinks=shrinks,
        calibrates=recipe.calibrate is not None,
        seconds=seconds,
        peak_bytes=_peak(trainer.device),
        disk_bytes=round(points * (written + weights * (2 + 3 * left)) + 2 * weights),
    )


def _timed(trainer: Trainer, name: str, show: Show) -> PhasePlan:
    """A few steps of a phase, as the run would take them."""
    epochs = [epoch for epoch in trainer.schedule.epochs if epoch.phase == name]
    steps = min(STEPS, epochs[0].num_steps)
    with show.progress(f"{name}: {steps} steps"):
        trainer.enter(name)
        trainer.epoch(replace(epochs[0], num_steps=1))
        began = time.perf_counter()
        trainer.epoch(replace(epochs[0], num_steps=steps))
        taken = (time.perf_counter() - began) / steps
        taken *= trainer.sparsity.passes_in(name) if trainer.sparsity is not None else 1.0
    return PhasePlan(name=name, epochs=len(epochs), steps=trainer.schedule.steps[name], step_seconds=taken)


def _smaller(trainer: Trainer, data: Data) -> float | None:
    """How long a training step takes at the budget, over one of the whole model; None where no budget says so.

    All axes give about the same share, as `inspect --budget` has it. Both train in turns on one batch.
    """
    sparsity, program = trainer.sparsity, trainer.program
    if sparsity is None or program is None or not isinstance(sparsity.controller, BudgetController):
        return None
    if program.training is None or trainer.recipe.train.loss == MODEL:
        return None  # it trains at its full size alone
    goal = sparsity.controller.goal
    evidence = evenly(goal.cost, magnitudes(goal.constraints.axes, state_of(program, trainer.model)), goal.measure)
    selection = removable(program, choose(goal, evidence))
    small = remove(trainer.model, program, selection, verify=False)
    inputs, targets = next(iter(data.train.epoch(0)))
    inputs = each(inputs, lambda value: value.to(trainer.device))
    taken: dict[str, float] = {}
    for _ in range(2):  # the first time for nothing
        for name, one in (("whole", trainer.model), ("small", small.to(trainer.device))):
            taken[name] = _seconds_of(one, inputs, targets, trainer, data)
    return taken["small"] / taken["whole"]


def _seconds_of(model: nn.Module, inputs: Inputs, targets: Any, trainer: Trainer, data: Data) -> float:
    optimizer = build_optimizer(model, trainer.recipe.train)
    model.train()
    began = time.perf_counter()
    for _ in range(STEPS):
        optimizer.zero_grad()
        data.task.loss(call(carrying(model), inputs), targets).backward()
        optimizer.step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _peak(device: torch.device) -> int:
    """The most memory that was held, of the card where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
