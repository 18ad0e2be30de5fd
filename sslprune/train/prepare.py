"""What is done to a model once, before anything is learned.

It is cut to the classes and to the tokens that its data are of, its routers get gates where experts may go, and
matrices whose rank is learned become two factors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sslprune.calibration.factor import SAMPLES, factored_, first_of
from sslprune.calibration.matrices import asked, chosen, told
from sslprune.capture.mode import evaluating
from sslprune.capture.program import Program
from sslprune.capture.trace import trace
from sslprune.choose.sections import named_by
from sslprune.cost.counts import Cost
from sslprune.data import Data
from sslprune.data.kept import FIELD, AllNumbers
from sslprune.errors import RecipeError, RepackError
from sslprune.kinds.find import find_axes
from sslprune.kinds.table import KINDS
from sslprune.models.build import count_parameters
from sslprune.models.vocabulary import FIELD as TOKENS
from sslprune.recipe import PruneSection
from sslprune.removal.classes import keep_classes
from sslprune.removal.gates import gate_, gates_for
from sslprune.removal.keeping import Logits
from sslprune.removal.plan import Plan
from sslprune.removal.vocabulary import keep_tokens, tables_of
from sslprune.report import Size
from sslprune.train.evaluate import evaluate, full_precision
from sslprune.values.carry import carries
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
    notes: tuple[str, ...] = ()  # what there is to say of it


def prepare(model: nn.Module, data: Data, prune: Sequence[PruneSection] = ()) -> Prepared:
    """``model`` as a run on ``data`` that prunes by these sections needs it; itself where nothing is to be done.

    Raises RecipeError, naming the field, where it cannot be.
    """
    prepared = Prepared(model)
    if data.kept is not None:
        program = _traced(model, data)
        try:
            small, plan = keep_classes(model, program, data.task.logits, data.kept.numbers)
        except RepackError as error:
            raise RecipeError(f"{FIELD}: {error}") from error
        prepared = Prepared(small, plan, model, program)
    if data.tokens is not None:
        program = _traced(prepared.model, data)
        try:
            logits = _logits(prepared.model, data) if data.tokens.said else None
            small, plan = keep_tokens(prepared.model, program, data.tokens.numbers, logits)
        except RepackError as error:
            raise RecipeError(f"{TOKENS}: {error}") from error
        plan = plan.model_copy(update={"first": prepared.plan})
        prepared = Prepared(small, plan, model, prepared.program or program)
    gates = _gates(prepared.model, data, prune)
    if gates:
        plan = Plan(axes=(), tensors={}, zeroed=(), operators=(), gates=gates, first=prepared.plan)
        gated = copy.deepcopy(prepared.model) if prepared.model is model else prepared.model
        prepared = replace(prepared, model=gate_(gated, gates), plan=plan)
    if asked(prune):
        example = data.example_for(prepared.model)
        samples = list(first_of((inputs for inputs, _ in data.train.epoch(0)), SAMPLES))
        prepared = factored(prepared, example, prune, samples, data.sequence)
    return prepared


def factored(
    prepared: Prepared,
    example: tuple[tuple[Any, ...], dict[str, Any]],
    prune: Sequence[PruneSection],
    samples: Sequence[Any] | None = None,
    sequence: int | None = None,
) -> Prepared:
    """``prepared`` with two factors for each matrix that the sections of ``prune`` name; ``samples`` weigh the errors.

    Raises RecipeError, naming the field, for a matrix that has no rank to learn.
    """
    program = trace(prepared.model, *example, sequence=sequence)
    names, notes = chosen(prepared.model, program, prune)
    model = copy.deepcopy(prepared.model)
    forms = factored_(model, program, names, samples)
    plan = Plan(axes=(), tensors={}, zeroed=(), operators=(), factors=forms, first=prepared.plan)
    return replace(prepared, model=model, plan=plan, notes=(*told(forms), *notes))


def _logits(model: nn.Module, data: Data) -> Logits:
    """What finds the logits among all that ``model`` gives, the state that it carries behind them."""
    return (lambda outputs: data.task.logits(outputs[0])) if carries(model) else data.task.logits


def _traced(model: nn.Module, data: Data) -> Program:
    return trace(model, *data.example_for(model), sequence=data.sequence)


def _gates(model: nn.Module, data: Data, prune: Sequence[PruneSection]) -> tuple[str, ...]:
    """The weights of routers that need gates, so that what the sections name is exact; not where they allow it not to
    be."""
    asking = [s for s in prune if s.kind in KINDS and KINDS[s.kind].prepares and not s.allow_inexact]
    if not asking:
        return ()
    program = _traced(model, data)
    axes = find_axes(program)
    return gates_for(program, [axis for section in asking for axis in named_by(axes, section)])


def fitted(model: nn.Module, data: Data) -> nn.Module:
    """Another model for the same data, a teacher or a control: cut as well where it knows more than is kept.

    Raises RecipeError where it cannot be.
    """
    tokens, kept = data.tokens, data.kept
    if tokens is not None and set(tables_of(_traced(model, data)).values()) == {len(tokens.numbers)}:
        tokens = None
    if kept is not None:
        args, kwargs = data.example_for(model)
        with torch.no_grad(), evaluating(model):
            known = data.task.logits(model(*args, **kwargs)).shape[1]
        kept = kept if known != len(kept.numbers) else None
    return prepare(model, replace(data, kept=kept, tokens=tokens)).model


def whole_size(prepared: Prepared, data: Data, device: torch.device, show: Voice) -> Size:
    """The whole model, which chooses among all of its classes and knows all of its tokens, on the same test data."""
    whole, program = prepared.whole, prepared.program
    assert whole is not None and program is not None
    test = AllNumbers(data.tokens.test if data.tokens is not None else data.test, data.kept)
    with full_precision(), show.progress("evaluating the whole model", len(test)) as bar:
        metrics = evaluate(whole.to(device), bar.over(test), data.task)
    whole.cpu()
    return Size(parameters=count_parameters(whole), macs=round(Cost(program, []).macs()), metrics=metrics)
