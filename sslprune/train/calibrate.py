"""Calibration as a step of a run: before sparse training, or in place of all training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sslprune.calibration.calibrate import MEGABYTE, Calibrated, Calibration, state_of
from sslprune.calibration.samples import collect
from sslprune.capture.mode import evaluating
from sslprune.data import Data
from sslprune.errors import few
from sslprune.recipe import Recipe
from sslprune.train.budget import BudgetController
from sslprune.train.sparsity import Sparsity
from sslprune.values.inputs import Inputs, each
from sslprune.values.voice import Voice


def calibrate_(
    sparsity: Sparsity, recipe: Recipe, data: Data, dense: Mapping[str, Tensor] | None, show: Voice
) -> Calibrated:
    """Bring the model of ``sparsity``, in place, to the budget as far as `[calibrate]` says, and hold it there.

    ``dense``: the weights of the model to be like, by their names, where it is not the model itself. Samples are the
    first of the training data.
    """
    section, model, program, controller = recipe.calibrate, sparsity.model, sparsity.program, sparsity.controller
    assert section is not None and isinstance(controller, BudgetController)
    goal = controller.goal if section.fraction is None else replace(controller.goal, fraction=section.fraction)
    now = state_of(program, model)
    like = now if dense is None else {n: dense[n].to(t) if n in dense else t for n, t in now.items()}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        samples = collect(program, _inputs(data, device), section.samples, section.memory * MEGABYTE)
        calibration = Calibration(program, like, samples, section, data.task, recipe.run.seed, show)
        found = calibration.calibrated(goal, now)
    found.load_into(model, program)
    controller.begin(found.selection)
    controller.landed = section.fraction is None
    _tell(found, sum(layer.few for layer in found.layers), show)
    return found


def _inputs(data: Data, device: torch.device) -> Iterator[Inputs]:
    for inputs, _ in data.train.epoch(0):
        yield each(inputs, lambda value: value.to(device))


def _tell(found: Calibrated, num_few: int, show: Voice) -> None:
    show.say(f"divergence from the dense outputs: {found.cut:.4g} as cut, {found.repaired:.4g} repaired")
    if num_few:
        show.say(f"{num_few} layers have fewer samples than weights to fit; raise calibrate.samples", "yellow")
    if found.skipped:
        show.say(f"not fitted: {few([f'{name} ({why})' for name, why in found.skipped.items()], 4)}")
