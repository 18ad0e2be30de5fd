"""The stages in order, each reading and writing one run directory: train, repack, export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from sslprune.axes import Axis
from sslprune.carry import carrying, with_state
from sslprune.data import Data, build_data
from sslprune.errors import RecipeError, RepackError
from sslprune.export import difference, evaluating, random_like, save_program
from sslprune.files import write_atomic
from sslprune.graph.cost import Cost
from sslprune.graph.find import find_axes
from sslprune.graph.repack import removed_groups
from sslprune.graph.repack import repack as repack_model
from sslprune.graph.trace import trace
from sslprune.inputs import Inputs, arguments, each, length_of, num_rows, other_lengths, tensors_in, with_length
from sslprune.models import build_model, device_of, load_checkpoint, load_weights
from sslprune.plan import write_plan
from sslprune.recipe import Recipe
from sslprune.report import (
    AxisChange,
    AxisFacts,
    Budget,
    Equivalence,
    Inspection,
    RepackResult,
    Report,
    Size,
)
from sslprune.rundir import RunDirectory
from sslprune.show import Show
from sslprune.train.evaluate import evaluate
from sslprune.train.loop import train as train_model
from sslprune.train.select import select

EXACT = 1e-4  # relative difference between masked and repacked above which an exact plan has failed


def inspect(recipe: Recipe, show: Show) -> Inspection:
    """Every axis of the recipe's model, with what one group costs and whether the recipe prunes it."""
    model, notes = build_model(recipe.model)
    data = build_data(recipe, show)
    data.check(model)
    args, kwargs = example_of(model, data)
    with show.progress("finding the axes"):
        program = trace(model, args, kwargs, sequence=data.sequence)
        axes = find_axes(program)
        try:
            pruned = {axis.name for axis in select(axes, recipe.prune)}
        except RecipeError as error:  # the axes are what a person needs to see to mend it
            pruned, notes = set(), [*notes, str(error)]
        cost = Cost(program, axes)
        everything = [np.ones(axis.size, bool) for axis in axes]
        savings = [cost.savings(everything, "parameters"), cost.savings(everything, "macs")]
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
        parameters=count(model),
        macs=round(cost.macs()),
        axes=facts,
        notes=[*notes, *program.notes],
    )


def run(
    recipe: Recipe, directory: RunDirectory, show: Show, *, resume: bool = False, baseline: Path | None = None
) -> Report:
    """Train, repack and export; with ``resume``, stages that are finished already are left as they are."""
    from sslprune.building import check  # both stand on the stages here
    from sslprune.exporting import export

    check(recipe)
    if baseline is not None:
        Report.load(baseline)  # one that cannot be read is said now, not after training
    train(recipe, directory, show, resume=resume)
    if resume and directory.finished("repack"):
        show.stage("repack", f"finished already: {directory.program}")
    else:
        repack(directory, show)
    return export(directory, show, baseline=baseline)


def train(recipe: Recipe, directory: RunDirectory, show: Show, *, resume: bool = False) -> None:
    """Sparse training, then healing, into ``directory``; starts over unless ``resume``.

    The points of a sweep in their order, each from where the one before it ended, the last into ``directory`` itself.
    """
    directory.claim(recipe)
    if not resume:
        directory.clear("train")
    try:
        previous = None
        for point, place in directory.each_point(recipe):
            place.claim(point)
            if place.finished("train"):
                show.stage("train", f"finished already: {place.masked}")
            else:
                show.stage("train", _plan(point, previous is None))
                train_model(point, place, show, previous=previous, goal=min(recipe.budget.points, default=None))
            previous = place
    except BaseException:
        directory.release()
        raise


def _plan(recipe: Recipe, first: bool) -> str:
    """What is about to be trained, in words."""
    spans, device = recipe.schedule, device_of(recipe.run)
    measure = "MACs" if recipe.budget.measure == "macs" else "parameters"
    given = recipe.budget.given
    goal = f"to {100 * recipe.budget.fraction:g} % of the {measure}" if given else f"at λ = {recipe.lasso.strength:g}"
    begin = f"{spans.dense} dense" if first else f"from {100 * recipe.budget.points[-2]:g} %"
    return f"{recipe.name} {goal}: {begin}, {spans.sparse} sparse, {spans.heal} heal, on {device}"


def repack(directory: RunDirectory, show: Show) -> RepackResult:
    """Remove what training made zero, prove that nothing changed on the test data, and write the smaller model.

    Of a sweep, the earlier points first, where they are not repacked yet. Raises RepackError, and writes nothing, when
    masked and repacked model differ by more than 1e-4 (relative).
    """
    directory.require("train")
    for point in directory.points:
        if not point.finished("repack"):
            repack(point, show)
    directory.clear("repack")
    recipe = directory.recipe()
    show.stage("repack", f"{recipe.name}: the zeros go, the function stays")
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    data, device = build_data(recipe, show), device_of(recipe.run)
    dense, masked = trained(recipe, directory.dense), trained(recipe, directory.masked)
    args, kwargs = example_of(masked, data)
    with show.progress("repacking"):
        program = trace(masked, args, kwargs, sequence=data.sequence)
        axes = select(find_axes(program), recipe.prune)
        exact = all(axis.exact for axis in axes)  # the recipe allowed the others by name
        small = repack_model(masked, program, axes, allow_inexact=not exact)
        cut, _ = example_of(small, data)
        macs = [Cost(p, []).macs() for p in (program, trace(small, cut, kwargs))]
    metrics, equivalence = prove(dense, masked, small, data, device, show, exact=exact)
    sizes = [
        Size(parameters=count(model), macs=round(cost), metrics=metrics[name])
        for name, model, cost in (("dense", dense, macs[0]), ("repacked", small, macs[1]))
    ]
    result = RepackResult(
        budget=Budget(
            measure=recipe.budget.measure,
            fraction=recipe.budget.fraction if recipe.budget.given else None,
            strength=recipe.lasso.strength,
            reached=getattr(sizes[1], recipe.budget.measure) / getattr(sizes[0], recipe.budget.measure),
        ),
        dense=sizes[0],
        repacked=sizes[1],
        equivalence=equivalence,
        axes=changes(axes, removed_groups(masked, program, axes, not exact), small),
    )
    with show.progress("writing the repacked model"):
        save_program(small.deployed(), cut, directory.program, kwargs, sequence=data.sequence)
        weights = {name: tensor.detach().clone().contiguous() for name, tensor in small.state_dict().items()}
        write_atomic(directory.weights, lambda path: path.write_bytes(save(weights)))
        write_plan(directory.plan, masked, program, axes, allow_inexact=not exact)
        data.save(directory.tokenizer)
    result.save(directory.result)
    before, after, proof = sizes[0], sizes[1], result.equivalence
    show.say(f"{before.parameters:,} parameters -> {after.parameters:,}, {before.macs:,} MACs -> {after.macs:,}")
    show.say(f"masked = repacked to {proof.max_relative:.1e} (relative) on {proof.samples:,} test samples")
    return result


def prove(
    dense: nn.Module, masked: nn.Module, small: nn.Module, data: Data, device: torch.device, show: Show, *, exact: bool
) -> tuple[dict[str, dict[str, float]], Equivalence]:
    """The metrics of the three models on the test data, and the largest difference between masked and repacked.

    They are compared on every test batch and on random inputs. Raises RepackError for a difference above 1e-4.
    """
    beside = Beside(masked, small)
    with full_precision(), torch.inference_mode(), show.progress("evaluating", 3 * len(data.test)) as bar:
        metrics = {}
        for name, model in (("dense", dense), ("masked", masked), ("repacked", beside)):
            with evaluating(model.to(device)):
                metrics[name] = evaluate(model, counted(data.test, bar), data.task)
        samples = beside.samples
        with evaluating(beside):
            lengths = [
                data.example,
                *(with_length(data.example, n) for n in other_lengths(data.example, data.sequence)),
            ]
            for size in (1, 7):
                for example in lengths:
                    args, kwargs = arguments(random_like(example, size, seed=size))
                    beside(*args, **kwargs)
    for model in (dense, masked, small):
        model.cpu()
    if exact and not beside.max_relative <= EXACT:
        raise RepackError(
            f"repacked and masked model differ by {beside.max_relative:.1e} (relative) on the test data, at most"
            f" {EXACT:.0e} is expected; nothing was written: please report this model"
        )
    return metrics, Equivalence(
        max_abs=beside.max_abs, max_relative=beside.max_relative, samples=samples, metrics=metrics["masked"]
    )


class Beside(nn.Module):
    """The repacked model, watched: every input also goes through the masked one, and the difference is kept.

    Each carries its own state, where they carry any.
    """

    def __init__(self, masked: nn.Module, small: nn.Module) -> None:
        super().__init__()
        self.masked, self.small = masked, small
        self.runs = carrying(masked), carrying(small)
        self.max_abs = self.max_relative = 0.0
        self.samples = 0

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        output = self.runs[1](*args, **kwargs)
        distance, relative = difference(self.runs[0](*args, **kwargs), output)
        self.max_abs = float(np.maximum(self.max_abs, distance))  # unlike max, keeps a NaN
        self.max_relative = float(np.maximum(self.max_relative, relative))
        self.samples += num_rows((args, kwargs))
        return output


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 inside the block: a proof at 1e-4 is not for numbers of ten bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def trained(recipe: Recipe, weights: Any) -> nn.Module:
    """The recipe's model on the CPU with the weights of a file in the run directory."""
    model, _ = build_model(recipe.model.model_copy(update={"checkpoint": None}))
    load_weights(model, load_checkpoint(weights), weights)
    return model.eval()


def changes(axes: Sequence[Axis], removed: Sequence[np.ndarray], small: nn.Module) -> list[AxisChange]:
    """How many groups of each axis remain; none of those inside a branch that is gone."""
    left = set(small.state_dict())
    return [
        AxisChange(
            name=axis.name,
            kind=axis.kind,
            before=axis.size,
            after=axis.size - int(gone.sum()) if any(member.name in left for member in axis.members) else 0,
        )
        for axis, gone in zip(axes, removed, strict=True)
    ]


def count(model: nn.Module) -> int:
    """The parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def counted(batches: Iterable[Any], bar: Any) -> Iterator[Any]:
    for batch in batches:
        yield batch
        bar.advance()


def example_of(model: nn.Module, data: Data) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    """The data's example as what ``model`` is called with, its state included where it carries one."""
    args, kwargs = arguments(on_cpu(data.example))
    full = with_state(model, args)
    while data.sequence and length_of(args) in {leaf.shape[1] for leaf in tensors_in(full[len(args) :])}:
        args, kwargs = with_length((args, kwargs), length_of(args) + 1)  # a length is told by its size: let it differ
        full = with_state(model, args)
    return full, kwargs


def on_cpu(inputs: Inputs) -> Inputs:
    return each(inputs, lambda tensor: tensor.cpu())
