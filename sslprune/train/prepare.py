"""What is done to a model once, before anything is learned: it is cut to the classes that its data are of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sslprune.capture.mode import evaluating
from sslprune.capture.program import Program
from sslprune.capture.trace import trace
from sslprune.cost.counts import Cost
from sslprune.data import Data
from sslprune.data.kept import FIELD, AllNumbers
from sslprune.errors import RecipeError, RepackError
from sslprune.models.build import count_parameters
from sslprune.removal.classes import keep_classes
from sslprune.removal.plan import Plan
from sslprune.report import Size
from sslprune.train.evaluate import evaluate, full_precision
from sslprune.values.voice import Voice


@dataclass(frozen=True)
class Prepared:
    """The model that a run learns from, and, where it is not as it was built, the ``plan`` that made it of ``whole``.

    ``program`` is what the whole model was traced to.
    """

    model: nn.Module
    plan: Plan | None = None
    whole: nn.Module | None = None
    program: Program | None = None


def prepare(model: nn.Module, data: Data) -> Prepared:
    """``model`` as a run on ``data`` needs it; ``model`` itself where nothing is to be done.

    Raises RecipeError, naming the field, where it cannot be.
    """
    if data.kept is None:
        return Prepared(model)
    program = trace(model, *data.example_for(model), sequence=data.sequence)
    try:
        small, plan = keep_classes(model, program, data.task.logits, data.kept.numbers)
    except RepackError as error:
        raise RecipeError(f"{FIELD}: {error}") from error
    return Prepared(small, plan, model, program)


def fitted(model: nn.Module, data: Data) -> nn.Module:
    """Another model for the same data, a teacher or a control: cut as well where it knows more classes than are kept.

    Raises RecipeError where it cannot be.
    """
    if data.kept is None:
        return model
    args, kwargs = data.example_for(model)
    with torch.no_grad(), evaluating(model):
        known = data.task.logits(model(*args, **kwargs)).shape[1]
    return model if known == len(data.kept.numbers) else prepare(model, data).model


def whole_size(prepared: Prepared, data: Data, device: torch.device, show: Voice) -> Size:
    """The whole model, which chooses among all of its classes, on the test data of those that are kept."""
    whole, program, kept = prepared.whole, prepared.program, data.kept
    assert whole is not None and program is not None and kept is not None
    with full_precision(), show.progress("evaluating the whole model", len(data.test)) as bar:
        metrics = evaluate(whole.to(device), bar.over(AllNumbers(data.test, kept)), data.task)
    whole.cpu()
    return Size(parameters=count_parameters(whole), macs=round(Cost(program, []).macs()), metrics=metrics)
