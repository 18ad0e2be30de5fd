"""`calibrate`: a smaller model from a few hundred samples; what goes is chosen and made up for without training."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslprune.calibration.divergence import divergences_of
from sslprune.calibration.evidence import TOGETHER, felt, magnitudes, mean_of
from sslprune.calibration.factor import SAMPLES, as_inputs, copied, factored_copy, first_of
from sslprune.calibration.lockstep import Lockstep
from sslprune.calibration.matrices import asked
from sslprune.calibration.repair import Fitted, Repair, gone_entries
from sslprune.calibration.samples import Samples, collect
from sslprune.capture.mode import evaluating
from sslprune.capture.program import Program
from sslprune.capture.trace import trace
from sslprune.choose.blocks import Evidence, Goal, goal_of
from sslprune.choose.landing import choose
from sslprune.choose.sections import check_counted, select_with_sections
from sslprune.cost.counts import Cost
from sslprune.errors import BudgetError, CalibrationError, RecipeError
from sslprune.kinds.find import find_axes
from sslprune.kinds.table import kind_of
from sslprune.recipe import CalibrateSection
from sslprune.recipe.settings import Prune, calibration_of
from sslprune.removal.packed import Packed
from sslprune.removal.remove import removable, remove
from sslprune.values.axes import Axis, tensors_of, zero_mask
from sslprune.values.selection import Selection
from sslprune.values.tasks import Task
from sslprune.values.voice import SILENT, Voice

MEGABYTE = 1_000_000  # bytes
POWERS = (1.0, 0.5, 0.75, 0.35)  # of the evidence: the less, the more evenly all axes give


@dataclass(frozen=True)
class Calibrated:
    """What goes, and the weights that are left. Divergences are means over samples that were held out.

    ``weights`` are by the names of the program's graphs, in their full shape, zero where something goes. ``cut``: the
    divergence without any repair; ``repaired``: with it.
    """

    selection: Selection
    weights: dict[str, Tensor]
    cut: float
    repaired: float
    layers: tuple[Fitted, ...]
    skipped: Mapping[str, str]  # weights that were not fitted, each with the reason

    @torch.no_grad()
    def load_into(self, model: nn.Module, program: Program) -> None:
        """Give ``model``, of the class that was traced, these weights; in place."""
        own = tensors_of(model)
        for name in program.aliases:
            own[name].copy_(self.weights[name])


class Calibration:
    """Everything that is asked of one model and its samples, for any number of goals.

    ``dense``: the model to be like, by its program's names. ``task``: of what the outputs are about; None: the mean
    squared error of all of them.
    """

    def __init__(
        self,
        program: Program,
        dense: Mapping[str, Tensor],
        samples: Samples,
        section: CalibrateSection,
        task: Task | None = None,
        seed: int = 0,
        show: Voice = SILENT,
    ) -> None:
        self.program, self.dense, self.samples, self.section = program, dict(dense), samples, section
        self.seed, self.show = seed, show
        self.memory: float = section.memory * MEGABYTE
        self._gathered: dict[tuple[Axis, ...], list[Evidence]] = {}
        self.divergences = divergences_of(program, task)
        self.divergence = self.divergences[0]

    def calibrated(self, goal: Goal, begin: Mapping[str, Tensor] | None = None) -> Calibrated:
        """The best of the candidates that meet ``goal``. ``begin``: weights of which something is gone already.

        Raises BudgetError for a goal that the constraints do not allow, and CalibrationError for values that are not
        finite.
        """
        axes = goal.constraints.axes
        begin = {**self.dense, **(begin or {})}
        start = _zeros(axes, begin)
        goal.check_reachable(start)
        began, section = time.monotonic(), self.section
        best: Calibrated | None = None
        with self.show.progress("repairing" if section.repair != "none" else "choosing", section.candidates) as bar:
            for selection in self._candidates(goal, start):
                found = self._one(selection, begin)
                best = found if best is None or found.repaired < best.repaired else best
                bar.advance()
                if section.seconds is not None and time.monotonic() - began > section.seconds:
                    break
        assert best is not None
        return best

    def _candidates(self, goal: Goal, start: Selection) -> Iterator[Selection]:
        """Up to ``candidates`` selections that differ.

        A switch that is felt little near 1 says little of a whole branch: those that keep all branches come first.
        """
        axes, seen = goal.constraints.axes, list[Selection]()
        whole = tuple(axis.size if kind_of(axis).is_whole else 0 for axis in axes)
        floors = tuple(max(pair) for pair in zip(whole, goal.constraints.floors, strict=True))
        kept = replace(goal, constraints=replace(goal.constraints, floors=floors))
        for base in self.evidence(axes):
            for within, powers in ((kept, POWERS[:2]), (goal, POWERS)) if any(whole) else ((goal, POWERS),):
                for power in powers if self.section.evidence == "second-order" else powers[1:]:
                    try:
                        found = choose(within, [values**power for values in base], start)
                    except BudgetError:
                        if within is goal:
                            raise
                        continue  # it takes a branch to get there
                    if not any(found == other for other in seen):
                        seen.append(found)
                        yield found
                    if len(seen) == self.section.candidates:
                        return

    def evidence(self, axes: tuple[Axis, ...]) -> list[Evidence]:
        """What each group of ``axes`` carries, by what the recipe names; the best first. Gathered once."""
        if self.section.evidence == "magnitude":
            return [magnitudes(axes, self.dense)]
        if axes not in self._gathered:
            small = list(self.samples.pieces(TOGETHER))
            with self.show.progress("gathering evidence", len(small)) as bar:
                found = felt(self.program, axes, self.dense, bar.over(small), self.divergences, self.seed)
            self._gathered[axes] = [mean_of(found), *(found if len(found) > 1 else ())]
        return self._gathered[axes]

    def cut(self, selection: Selection) -> float:
        """How far the outputs are without the groups of ``selection``, nothing repaired."""
        return self._cut(_masked(self.dense, gone_entries(self.dense, selection)))

    def _cut(self, masked: Mapping[str, Tensor]) -> float:
        order = list(self.program.evaluation.nodes)
        return self._apart(Lockstep(order, self.dense, masked).run(self.samples.batches[-self.samples.held :]))

    def _one(self, selection: Selection, begin: Mapping[str, Tensor]) -> Calibrated:
        """What comes of one selection."""
        batches, held, gone = self.samples.batches, self.samples.held, gone_entries(self.dense, selection)
        masked = _masked(begin, gone)
        cut = self._cut(masked)
        if self.section.repair == "none":
            return Calibrated(selection, masked, cut, cut, (), {})
        damping = None if self.section.damping == "auto" else self.section.damping
        repair = Repair(
            self.program, self.dense, masked, gone, held=held, damping=damping, seed=self.seed, memory=self.memory
        )
        repaired = self._apart(repair.run(batches))  # masked is what is repaired from here on
        if not repaired <= cut:  # fitted layer by layer, and worse at the end: undone
            return Calibrated(selection, _masked(begin, gone), cut, cut, (), repair.skipped)
        return Calibrated(selection, masked, cut, repaired, tuple(repair.layers), repair.skipped)

    def _apart(self, outputs: Sequence[tuple[list[Any], list[Any]]]) -> float:
        found = float(np.mean([self.divergence.between(dense, pruned) for dense, pruned in outputs]))
        if not np.isfinite(found):
            raise CalibrationError("the outputs of the samples are not finite; look at the weights and the inputs")
        return found


def _masked(weights: Mapping[str, Tensor], gone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``weights`` with zeros for what is ``gone``; those that lose nothing are the same tensors."""
    return {n: t.masked_fill(gone[n], 0) if n in gone and gone[n].any() else t for n, t in weights.items()}


def _zeros(axes: Sequence[Any], weights: Mapping[str, Tensor]) -> Selection:
    return Selection.of(axes, [zero_mask(nn.Module(), axis, weights) for axis in axes])


def state_of(program: Program, model: nn.Module) -> dict[str, Tensor]:
    """The numbers of ``model`` by the names of the graphs of ``program``, its constants included."""
    own = tensors_of(model)
    return {name: own.get(name, tensor).detach() for name, tensor in program.tensors.items()}


def calibrate(
    model: nn.Module,
    args: tuple[Any, ...],
    samples: Iterable[Any],
    *,
    prune: Prune,
    macs: float | None = None,
    parameters: float | None = None,
    kwargs: Mapping[str, Any] | None = None,
    task: Task | None = None,
    sequence: int | None = None,
    round_to: Any = "auto",
    seed: int = 0,
    max_samples: int = 1024,
    **settings: Any,
) -> Packed:
    """``model`` at the fraction ``macs`` or ``parameters`` of its cost, chosen and repaired by ``samples`` alone.

    ``args`` and ``kwargs`` are example inputs, first dimension = batch. ``samples`` yields batches: a tensor, a tuple
    of positional inputs, or a dict of them by name, without labels; the first ``max_samples`` are read. ``prune`` is as
    in `Sparsity`; other keywords are fields of a recipe's [calibrate]. ``task``: what the outputs are, a
    `sslprune.values.tasks.Task`; left out, any outputs, by their mean squared error. ``model`` is not changed.

    Groups are ranked by the Fisher information of their presence, and what is left is fitted by least squares, in
    order, to what the dense model gives (Hassibi and Stork 1993, eq. 5; ZipLM: Kurtić et al. 2023; on the sums of
    residual branches, errors so far included). Raises RecipeError, TraceError, BudgetError and CalibrationError.
    """
    found = calibration_of(prune, macs, parameters, round_to, seed, samples=max_samples, **settings)
    section = found.calibrate
    if task is not None and not isinstance(task, Task):
        raise RecipeError(f"task: {type(task).__name__}; expected a sslprune.values.tasks.Task, or None")
    with torch.inference_mode(False), evaluating(model):
        if asked(found.prune):
            samples = list(first_of(samples, section.samples))
            batches = map(as_inputs, first_of(samples, SAMPLES))
            model = factored_copy(model, args, dict(kwargs or {}), found.prune, list(batches), sequence)
        program = trace(model, args, dict(kwargs or {}), sequence=sequence)
        chosen = select_with_sections(find_axes(program, found.prune), found.prune)
        check_counted(chosen, found.budget.measure)
        axes = [axis for axis, _ in chosen]
        goal = goal_of(chosen, Cost(program, axes), found.budget, found.lasso.floor)
        dense = state_of(program, model)
        gathered = collect(program, samples, section.samples, section.memory * MEGABYTE)
        result = Calibration(program, dense, gathered, section, task, seed).calibrated(goal)
        masked = copied(model)
        result.load_into(masked, program)
        exact = all(axis.exact for axis in axes)
        return remove(masked, program, removable(program, result.selection, allow_inexact=not exact), verify=exact)
