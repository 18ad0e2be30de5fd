"""The second stage: what is zero leaves the model, and it is proven that nothing changed."""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence

import torch
from torch import nn

from sslprune.analysis.factors import DOWN, UP
from sslprune.bench.fit import Fitted, latency_cost
from sslprune.capture.demands import check_for_run
from sslprune.capture.mode import evaluating
from sslprune.capture.program import Program
from sslprune.capture.trace import trace
from sslprune.choose.constraints import constraints_of
from sslprune.choose.sections import select_with_sections
from sslprune.cost.counts import Cost
from sslprune.cost.grain import grain as machine_grain
from sslprune.data import Data, build_data
from sslprune.errors import RepackError
from sslprune.export.program import save_program
from sslprune.kinds.find import find_axes
from sslprune.kinds.table import kind_of
from sslprune.models.build import count_parameters, count_zeros, device_of, load_trained
from sslprune.recipe import PruneSection, Recipe
from sslprune.removal.factors import fold_
from sslprune.removal.packed import Packed
from sslprune.removal.plan import Plan, plan_of, read_plan, write_plan
from sslprune.removal.remove import removable, remove
from sslprune.report import AxisChange, Budget, Equivalence, RepackResult, Size
from sslprune.run.directory import RunDirectory
from sslprune.run.points import lay_points
from sslprune.show.terminal import Show
from sslprune.train.checkpoint import write_weights
from sslprune.train.evaluate import evaluate, full_precision
from sslprune.values.axes import Axis
from sslprune.values.compare import Beside
from sslprune.values.inputs import arguments, other_lengths, random_like, with_length
from sslprune.values.selection import Selection

EXACT = 1e-4  # relative difference between masked and repacked above which an exact plan has failed


def repack(directory: RunDirectory, show: Show, program: Program | None = None) -> RepackResult:
    """Remove what training made zero, prove that nothing changed on the test data, and write the smaller model.

    ``program``: of the run's model, where this process has traced it. Of a sweep, the earlier points first, where they
    are not repacked yet. Raises RepackError, and writes nothing, when masked and repacked model differ by more than
    1e-4 (relative).
    """
    directory.require("train")
    with directory.writing():
        lay_points(directory, show, program)
        for point in directory.points:
            if point.damaged("repack"):
                repack(point, show, program)
        with directory.stage("repack") as target:
            return _repack(directory, target, show, program)


def _repack(directory: RunDirectory, target: RunDirectory, show: Show, program: Program | None) -> RepackResult:
    """Read from ``directory``, write to ``target``. At most two models are in memory, and one while it is written."""
    recipe = directory.recipe()
    show.stage("repack", f"{recipe.name}: the zeros go, the function stays")
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    data = build_data(recipe, show)
    data, dense = _dense(directory, recipe, data, show)
    small, plan, result = _made(directory, recipe, data, dense, show, program)
    gc.collect()  # the graphs of the masked model go round in circles
    cut, kwargs = data.example_for(small)
    with show.progress("writing the repacked model"):
        save_program(small.deployed(), cut, target.program, kwargs, sequence=data.sequence)
        write_weights(target.weights, small)
        write_plan(target.plan, plan)
        data.save(target.tokenizer)
    result.save(target.result)
    before, after, proof = result.dense, result.repacked, result.equivalence
    show.say(f"{before.parameters:,} parameters -> {after.parameters:,}, {before.macs:,} MACs -> {after.macs:,}")
    show.say(f"masked = repacked to {proof.max_relative:.1e} (relative) on {proof.samples:,} test samples")
    return result


def _dense(directory: RunDirectory, recipe: Recipe, data: Data, show: Show) -> tuple[Data, Size]:
    """The data, with what the dense model says where the task has no labels; and its figures, but for its MACs."""
    dense, device = fold_(load_trained(recipe.model, directory.dense)), device_of(recipe.run)
    data = data.taught_by(dense)
    zeros, parameters = count_zeros(dense), count_parameters(dense)
    with full_precision(), torch.inference_mode(), show.progress("evaluating dense", len(data.test)) as bar:
        metrics = evaluate(dense.to(device), bar.over(data.test), data.task)
    return data, Size(parameters=parameters, macs=0, metrics=metrics, zeros=zeros)


def _made(
    directory: RunDirectory, recipe: Recipe, data: Data, dense: Size, show: Show, program: Program | None
) -> tuple[Packed, Plan, RepackResult]:
    """The smaller model, held against the masked one; what made it, and what is to be said of it."""
    masked = load_trained(recipe.model, directory.masked)
    args, kwargs = data.example_for(masked)
    with show.progress("repacking"):
        program = program.on("cpu") if program is not None else None
        if program is None or not program.serves(masked):
            program = trace(masked, args, kwargs, sequence=data.sequence)
        check_for_run(program, masked)
        chosen = select_with_sections(find_axes(program, recipe.prune), recipe.prune)
        axes = [axis for axis, _ in chosen]
        exact = all(axis.exact for axis in axes)  # the recipe allowed the others by name
        removed = removable(program, selection_of(directory, masked, chosen), allow_inexact=not exact)
        small = remove(masked, program, removed, verify=exact)
        cost = Cost(program, axes)
        macs = round(cost.macs()), round(cost.macs(removed))
        timed = recipe.budget.measure == "latency"
        fitted = latency_cost(masked, data.example, data.sequence, recipe) if timed else None
    device = device_of(recipe.run)
    metrics, equivalence = prove(masked, small, data, device, show, exact=exact, closed=program.closed)
    sizes = [
        dense.model_copy(update={"macs": macs[0]}),
        Size(parameters=count_parameters(small), macs=macs[1], metrics=metrics, zeros=count_zeros(small)),
    ]
    first = read_plan(directory.training.prepared) if directory.training.prepared.is_file() else None
    result = RepackResult(
        budget=_reached(recipe, sizes, fitted, removed),
        dense=sizes[0],
        repacked=sizes[1],
        equivalence=equivalence,
        axes=changes(removed, small, grains_of(recipe, chosen)),
        whole=Size.load(directory.training.whole) if directory.training.whole.is_file() else None,
    )
    return small, plan_of(program, removed).model_copy(update={"first": first}), result


def selection_of(directory: RunDirectory, masked: nn.Module, chosen: Sequence[tuple[Axis, PruneSection]]) -> Selection:
    """What training chose of the ``chosen`` axes; where it wrote none, as without a sparse phase, what is zero."""
    axes = [axis for axis, _ in chosen]
    if not directory.selection.is_file():
        return constraints_of(chosen, 0.0, 1).kept_to(Selection.zeros(masked, axes))
    return Selection.from_json(directory.selection.read_text(encoding="utf-8"), axes, str(directory.selection))


def _reached(recipe: Recipe, sizes: Sequence[Size], fitted: Fitted | None, removed: Selection) -> Budget:
    """What of the budget's measure remains; of latency what the table predicts, until the export measures it."""
    budget = recipe.budget
    if fitted is None:
        dense, small = (getattr(size, budget.measure) for size in sizes)
        fraction = budget.fraction if budget.given else None
        strength, nested = recipe.lasso.strength, budget.nested
        return Budget(
            measure=budget.measure, fraction=fraction, strength=strength, reached=small / dense, nested=nested
        )
    reached = fitted.cost.latency(removed) / fitted.cost.latency()
    return Budget(
        measure="latency",
        fraction=budget.fraction,
        reached=reached,
        predicted=reached,
        table_ms=fitted.table / 1e3,
        whole_ms=fitted.whole / 1e3,
        nested=budget.nested,
    )


def prove(
    masked: nn.Module,
    small: nn.Module,
    data: Data,
    device: torch.device,
    show: Show,
    *,
    exact: bool,
    closed: Collection[int] = (),
) -> tuple[dict[str, float], Equivalence]:
    """The metrics of the repacked model on the test data, and the largest difference between it and the masked one.

    They are compared on every test batch, and on random inputs in which the ``closed`` ones keep their rows. Raises
    RepackError for a difference above 1e-4.
    """
    watched = Beside(masked, small)
    for model in (masked, small):
        model.to(device)
    with (
        full_precision(),
        torch.inference_mode(),
        evaluating(masked),
        evaluating(small),
        show.progress("evaluating", 2 * len(data.test)) as bar,
    ):
        models = {"masked": masked, "repacked": watched}
        metrics = {name: evaluate(model, bar.over(data.test), data.task) for name, model in models.items()}
        samples = watched.samples
        lengths = [data.example, *(with_length(data.example, n) for n in other_lengths(data.example, data.sequence))]
        for size in (1, 7):
            for example in lengths:
                args, kwargs = arguments(random_like(example, size, size, closed))
                watched(*args, **kwargs)
    for model in (masked, small):
        model.cpu()
    if exact and not watched.max_relative <= EXACT:
        raise RepackError(
            f"repacked and masked model differ by {watched.max_relative:.1e} (relative) on the test data, at most"
            f" {EXACT:.0e} is expected; nothing was written: please report this model"
        )
    return metrics["repacked"], Equivalence(
        max_abs=watched.max_abs, max_relative=watched.max_relative, samples=samples, metrics=metrics["masked"]
    )


def grains_of(recipe: Recipe, chosen: Sequence[tuple[Axis, PruneSection]]) -> list[int | None]:
    """What the width of each axis was to be a multiple of; None where it is no width, and where no budget chose."""
    if not recipe.budget.given:
        return [None] * len(chosen)
    step = machine_grain() if recipe.budget.round_to == "auto" else recipe.budget.round_to
    constraints = constraints_of(chosen, 0.0, step)
    return [constraints.grain(i, step) if kind_of(axis).is_width else None for i, (axis, _) in enumerate(chosen)]


def changes(removed: Selection, small: nn.Module, grains: Sequence[int | None]) -> list[AxisChange]:
    """How many groups of each axis remain; none of those inside a branch that is gone."""
    names = set(small.state_dict())
    left = names | {name + factor for name in names for factor in (DOWN, UP)}  # those of what is one matrix again
    return [
        AxisChange(
            name=axis.name,
            kind=axis.kind,
            before=axis.size,
            after=removed.left(axis) if any(member.name in left for member in axis.members) else 0,
            grain=grain,
        )
        for axis, grain in zip(removed.axes, grains, strict=True)
    ]
