"""The budget: which groups go to zero, and when, so that the cost ends where the recipe says.

The cost of what is kept follows a planned curve that falls early and flattens out (the cubic of Zhu and Gupta 2017,
eq. 1). While the cost is above the plan, the group goes next that carries least for what it costs; it then decays to
exact zero over some steps, so nothing is ever cut. The last few groups are chosen together, to land on the budget.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from sslprune.errors import BudgetError
from sslprune.recipe import BudgetSection, LassoSection
from sslprune.recipe.fields import Measure
from sslprune.train.lasso import GroupLasso
from sslprune.values.axes import Axis

TOLERANCE = 0.01  # the cost ends between (1 - TOLERANCE) x budget and the budget
NUM_WARM_UP = 8  # steps whose loss decides λ
LEAST_FACTOR = 0.5  # a group that was not chosen may shrink, but one step never zeroes it
MEMORY = 100  # steps over which sensitivities are averaged
RESERVE = 3  # blocks of the usual size that are left for the landing ...
MOST_RESERVE = 0.25  # ... and where there are few, this share of all that has to go
MOST_SUMS = 3000  # that the landing looks at
MOST_LANDINGS = 5  # that are measured, where the cost is an estimate

Kept = list[np.ndarray]  # per axis, bool (size,)


class Cost(Protocol):
    """What a model costs when some groups are gone; ``sslprune.cost.counts.Cost`` is one."""

    def macs(self, kept: Kept | None = None) -> float: ...
    def parameters(self, kept: Kept | None = None) -> float: ...
    def latency(self, kept: Kept | None = None) -> float: ...
    def savings(self, kept: Kept, measure: Measure) -> list[np.ndarray]: ...
    def measured(self, kept: Kept) -> float | None: ...
    def saved(self, kept: Kept, blocks: Mapping[int, np.ndarray], measure: Measure) -> dict[int, float]: ...


@dataclass(frozen=True)
class Limit:
    """Of all groups of ``axes`` (places in the lasso's) together, ``least`` stay."""

    axes: tuple[int, ...]
    least: int


@dataclass(frozen=True)
class Block:
    """Groups of one axis that go together: one of them, or as many as bring its width to the next multiple."""

    axis: int
    groups: np.ndarray  # indices within the axis
    saving: float  # estimated, in the measure of the budget
    score: float  # what the groups carry for what they cost; the lowest goes first


class BudgetController:
    """Steers a ``GroupLasso`` through ``num_steps`` optimizer steps to a fraction of the dense cost.

    Call ``observe`` before and ``step`` after each optimizer step, in place of ``lasso.step``. Widths stay multiples of
    ``round_to`` as far as the budget allows, counted in rows of a matrix: a head has as many as it is wide, an LSTM's
    unit four. ``floors`` (groups that stay, per axis), ``limits`` (groups that stay, of several axes) and ``strengths``
    (relative, per axis) come from the recipe's prune sections. ``kept`` (per axis, which groups are not zero yet)
    begins where an earlier point of a sweep ended: its zeros are held from the first step on, and the plan falls from
    there; fractions stay those of the whole model. Raises BudgetError, before any training, when the floors and limits
    leave more than the budget.
    """

    def __init__(
        self,
        lasso: GroupLasso,
        cost: Cost,
        budget: BudgetSection,
        section: LassoSection,
        num_steps: int,
        round_to: int = 1,
        floors: Sequence[int] | None = None,
        strengths: Sequence[float] | None = None,
        kept: Kept | None = None,
        limits: Sequence[Limit] = (),
    ) -> None:
        self.lasso, self.cost, self.budget, self.section = lasso, cost, budget, section
        self.axes: tuple[Axis, ...] = lasso.axes
        self.round_to = round_to
        self.floors = [floor_of(axis, section.floor, least) for axis, least in _with(self.axes, floors, 1)]
        self.strengths = [strength for _, strength in _with(self.axes, strengths, 1.0)]
        self.limits = tuple(limits)
        self.features = [_features(axis) for axis in self.axes]
        self.num_steps = num_steps
        self.decay = max(1, min(section.decay, num_steps // 3))
        self.last_choice = max(0, min(int(0.8 * num_steps), num_steps - self.decay))
        self.interval = max(1, min(section.interval, self.last_choice // 10))
        whole: Kept = [np.ones(axis.size, bool) for axis in self.axes]
        self.dense = self._cost(whole)
        self.kept = whole if kept is None else kept
        self.now = self.begin = self._cost(self.kept)
        self.limit = budget.fraction * self.dense
        self.taken = 0  # steps
        self.landed = False  # the last groups are chosen
        self.loss_sum = 0.0
        self.carries = torch.zeros(lasso.num_groups, device=lasso.strength.device)  # running mean of sensitivities
        self.check_reachable(budget.fraction)
        lasso.set_strength([np.zeros(axis.size) for axis in self.axes])
        lasso.alive[:-1] = torch.from_numpy(np.concatenate(self.kept))
        lasso.least[:-1] = LEAST_FACTOR

    @property
    def fraction(self) -> float:
        """The cost of what is kept, as a fraction of the dense cost; groups that still decay count as gone."""
        return self.now / self.dense

    @property
    def planned(self) -> float:
        """The fraction that the plan allows at this step."""
        return self._planned(self.taken)

    def _planned(self, step: int) -> float:
        left = max(0.0, 1 - step / self.last_choice) if self.last_choice else 0.0
        above = max(0.0, self.begin / self.dense - self.budget.fraction)
        return self.budget.fraction + above * left**3

    def observe(self, loss: float | torch.Tensor) -> None:
        """Take note of a batch's ``loss`` and of its gradients: call between ``backward`` and the optimizer's step."""
        if self.taken < NUM_WARM_UP:
            self.loss_sum += float(loss.detach()) if isinstance(loss, torch.Tensor) else loss
        if self.taken + 1 == NUM_WARM_UP:
            self._set_strength(self.loss_sum / NUM_WARM_UP)
        if not self.landed:
            self.carries.lerp_(self.lasso.sensitivities(), 1 / min(self.taken + 1, MEMORY))
        if self.lasso.method == "subgradient":
            self.lasso.add_gradient()

    def step(self, lr: float) -> None:
        """One step of the lasso of length ``lr``: call after the optimizer's step."""
        last = self.taken == self.last_choice
        due = not self.landed and (last or self.taken % self.interval == 0)
        if due and (self._choose(self.planned * self.dense) or last):
            self._land()
        self.lasso.step(lr)
        self.taken += 1
        if self.taken == self.num_steps:
            self.lasso.set_strength([np.zeros(axis.size) for axis in self.axes])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors and numbers."""
        return {
            "lasso": self.lasso.state_dict(),
            "kept": torch.from_numpy(np.concatenate(self.kept)),
            "carries": self.carries.clone(),
            "round_to": self.round_to,
            "taken": self.taken,
            "landed": self.landed,
            "loss_sum": self.loss_sum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.lasso.load_state_dict(state["lasso"])
        self.kept = [part.copy() for part in self.lasso.split(state["kept"].numpy())]
        self.carries.copy_(state["carries"])
        self.round_to, self.taken, self.loss_sum = state["round_to"], state["taken"], state["loss_sum"]
        self.landed = state.get("landed", self.taken > self.last_choice)  # absent before it could be sooner
        if self.landed:
            self.cost.measured(self.kept)
        self.now = self._cost(self.kept)

    def _cost(self, kept: Kept) -> float:
        match self.budget.measure:
            case "macs":
                return float(self.cost.macs(kept))
            case "parameters":
                return float(self.cost.parameters(kept))
            case "latency":
                return float(self.cost.latency(kept))

    def check_reachable(self, fraction: float) -> None:
        """Raise BudgetError if the floors and limits leave more than ``fraction`` of the dense cost."""
        least = self._least(self.kept)
        if least > fraction * self.dense:
            measure, limits = self.budget.measure, ", prune.least" if self.limits else ""
            raise BudgetError(
                f"budget.{measure}: {fraction:g} of the dense model cannot be reached; the least reachable "
                f"is {np.ceil(1000 * least / self.dense) / 1000:.3f}; raise it, prune more kinds, or lower "
                f"prune.min_groups{limits} or lasso.floor"
            )

    def _least(self, kept: Kept) -> float:
        """The least cost within the floors and limits: what saves most goes first, as long as anything may go."""
        while True:
            blocks = sorted(self._next_blocks(kept), key=lambda block: -block.saving / len(block.groups))
            if not blocks:
                return self._cost(kept)
            # a limit is used up by what saves most; where there is none, all go down together, which is faster
            kept = _without(kept, blocks[:1] if self.limits else blocks)

    def _within_limits(self, kept: Kept, axis: int, count: int) -> bool:
        """Whether ``count`` groups of ``axis`` may go."""
        return all(
            sum(int(kept[i].sum()) for i in limit.axes) - count >= limit.least
            for limit in self.limits
            if axis in limit.axes
        )

    def _set_strength(self, loss: float) -> None:
        """λ_g = λ √(size of g) √(its share of the saved cost), λ so that the penalty is ``ratio`` of the loss."""
        savings = np.concatenate([np.asarray(s, float) for s in self._savings()])
        share = np.sqrt(np.maximum(savings, 0) / max(savings.mean(), 1e-12))
        relative = np.concatenate([np.full(a.size, s) for a, s in zip(self.axes, self.strengths, strict=True)])
        weights = np.sqrt(self.lasso.sizes) * share * relative
        penalty = float((weights * np.concatenate(self.lasso.norms())).sum())
        scale = self.section.ratio * loss / penalty if penalty > 0 else 0.0
        self.lasso.set_strength(self.lasso.split(scale * weights))

    def _savings(self) -> list[np.ndarray]:
        """What a group saves at first; where cost has stairs, its share of what all that may go save together."""
        measure = self.budget.measure
        if measure != "latency":
            return self.cost.savings(self.kept, measure)
        going = {}
        for i, (axis, floor) in enumerate(zip(self.axes, self.floors, strict=True)):
            grain = self._grain(i, self.round_to)
            rest = -(-floor // grain) * grain
            going[i] = np.arange(rest if rest < axis.size else floor, axis.size)
        saved = self.cost.saved(self.kept, going, measure)
        return [np.full(a.size, saved[i] / max(1, len(going[i]))) for i, a in enumerate(self.axes)]

    def _choose(self, allowed: float) -> bool:
        """Take the lowest blocks until the cost is at ``allowed``, leaving enough to choose from for the landing.

        What costs much, such as a whole branch, waits until the plan has room for it: half-way through its decay.
        Returns whether the landing is due: nothing else may go, and the plan is nearer to the budget than to the cost.
        """
        if self.now <= allowed:
            return False
        room = self._planned(self.taken + self.decay // 2) * self.dense
        while self.now > allowed:
            blocks = self._next_blocks(self.kept)
            reserve = min(RESERVE * self._usual(blocks), MOST_RESERVE * (self.dense - self.limit))
            blocks = [block for block in blocks if self.now - block.saving >= max(room, self.limit + reserve)]
            block = self._lowest(self.kept, blocks)
            if block is None:
                return room <= self.limit + reserve and allowed <= (self.limit + self.now) / 2
            self._take([block])
        return False

    def _lowest(self, kept: Kept, blocks: Sequence[Block]) -> Block | None:
        """The block with the lowest score from which the budget can still be reached: limits may stand in the way."""
        for block in sorted(blocks, key=lambda block: block.score):
            if not self.limits or self._least(_without(kept, [block])) <= self.limit:
                return block
        return None

    def _usual(self, blocks: Sequence[Block]) -> float:
        """What a block saves, at the middle; many large branches beside fine groups do not make it large."""
        fine = [block.saving for block in blocks if self.axes[block.axis].kind != "layers"]
        return float(min(np.median([block.saving for block in blocks]), 2 * np.median(fine))) if fine else 0.0

    def _land(self) -> None:
        """Choose the last blocks; where the cost is an estimate, measure where that leads, and land again from there.

        What was measured nearest to just below the budget is taken, and nothing above it if there is a choice.
        """
        start = self.kept
        landed: list[tuple[bool, float, Kept]] = []
        for _ in range(MOST_LANDINGS):
            kept = self._landing(start)
            share = self.cost.measured(kept)
            if share is None:
                landed = [(False, 0.0, kept)]
                break
            over = share / self.budget.fraction - 1
            known = any(_same(kept, other) for *_, other in landed)
            off = abs(over + TOLERANCE / 2)  # just below the budget: the next timing differs a little
            landed.append((over > TOLERANCE, off, kept))
            if off <= TOLERANCE / 2 or known:
                break
        *_, kept = min(landed, key=lambda one: one[:2])
        self.cost.measured(kept)
        self._take([Block(i, np.flatnonzero(a & ~b), 0, 0) for i, (a, b) in enumerate(zip(start, kept, strict=True))])
        self.landed = True

    def _landing(self, kept: Kept) -> Kept:
        """From a little above the budget, choose the last blocks together so that the cost ends just below it.

        Where no sum of blocks comes within the tolerance, half-size blocks are tried, and so on down to single groups:
        a width or two off the grain are better than a missed budget. Failing that too: the highest cost below it.
        """
        while self._cost(kept) > self.limit:
            best: tuple[float, list[Block]] = (0.0, [])
            for step in _halved(self.round_to):
                if best[0] < (1 - TOLERANCE) * self.limit:
                    best = max(best, self._best_sum(kept, step), key=lambda found: found[0])
            if not best[1]:  # none at all: still far away, so go nearer
                block = self._lowest(kept, self._next_blocks(kept))
                best = 0.0, [block] if block is not None else []
            if not best[1] and self.budget.measure == "latency":
                break  # it is no sum of what its blocks save: what was left to go did not do it, and the report says so
            if not best[1]:
                raise BudgetError(
                    f"budget.{self.budget.measure}: {self.budget.fraction:g} was planned, and at {self.fraction:.3f} of"
                    " the dense model nothing more can go; raise it, prune more kinds, or lower lasso.floor"
                )
            kept = _without(kept, best[1])
        return kept

    def _best_sum(self, kept: Kept, step: int) -> tuple[float, list[Block]]:
        """The highest cost within the budget, and the blocks that lead there: best-first, the lowest scores first."""
        paths: list[tuple[float, list[int], list[Block]]] = [(0.0, [], [])]
        seen: set[tuple[int, ...]] = set()
        best: tuple[float, list[Block]] = (0.0, [])
        while paths and len(seen) < MOST_SUMS and best[0] < (1 - TOLERANCE) * self.limit:
            score, _, chosen = heapq.heappop(paths)
            for block in self._blocks(_without(kept, chosen), step):
                more = [*chosen, block]
                key = sorted(b.axis for b in more)  # the order within an axis is fixed
                if tuple(key) not in seen:
                    seen.add(tuple(key))
                    cost = self._cost(_without(kept, more))
                    if cost > self.limit:
                        heapq.heappush(paths, (score + block.score, key, more))
                    elif cost > best[0]:
                        best = cost, more
        return best

    def _next_blocks(self, kept: Kept) -> list[Block]:
        """What could go next: whole blocks, or parts of them where no axis has a whole one left."""
        return next((blocks for step in _halved(self.round_to) if (blocks := self._blocks(kept, step))), [])

    def _blocks(self, kept: Kept, step: int) -> list[Block]:
        """The next block of each axis that still has one to give and saves something, down to a multiple of step."""
        carries = self.lasso.split(self.carries.double().cpu().numpy())
        measure = self.budget.measure
        savings = self.cost.savings(kept, "macs" if measure == "latency" else measure)
        next_groups: dict[int, np.ndarray] = {}
        for i, axis in enumerate(self.axes):
            alive = np.flatnonzero(kept[i])
            worth = alive[savings[i][alive] > 0]  # of a kernel's positions only the outermost can go
            count = (len(alive) - 1) % self._grain(i, step) + 1 if axis.kind != "layers" else len(alive)
            enough = len(alive) - count >= self.floors[i] and self._within_limits(kept, i, count)
            if 0 < count <= len(worth) and enough:
                next_groups[i] = worth[np.argsort(carries[i][worth], kind="stable")[:count]]
        blocks = []
        for i, saving in self.cost.saved(kept, next_groups, measure).items():
            if saving > 0:
                score = float(carries[i][next_groups[i]].sum()) / (saving / self.dense) / self.strengths[i]
                blocks.append(Block(i, next_groups[i], saving, score))
        return blocks

    def _grain(self, axis: int, step: int) -> int:
        """How many groups of an axis make ``step`` rows of a matrix, or the fewest whole multiples of it."""
        return step // math.gcd(step, self.features[axis])

    def _take(self, blocks: Sequence[Block]) -> None:
        self.kept = _without(self.kept, blocks)
        for block in blocks:
            self.lasso.decay(self.lasso.starts[block.axis] + block.groups, self.decay)
        self.now = self._cost(self.kept)


def _without(kept: Kept, blocks: Sequence[Block]) -> Kept:
    """``kept`` without the groups of ``blocks``; the one that is given stays as it is."""
    fewer = list(kept)
    for block in blocks:
        fewer[block.axis] = fewer[block.axis].copy()
        fewer[block.axis][block.groups] = False
    return fewer


def _same(one: Kept, other: Kept) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def floor_of(axis: Axis, share: float, least: int) -> int:
    """How many groups of ``axis`` stay; a branch can always go."""
    return 0 if axis.kind == "layers" else min(axis.size, max(least, math.ceil(share * axis.size)))


def _features(axis: Axis) -> int:
    """How many rows of a weight one group of ``axis`` is; 0 where it is none, and no width: a kernel's, or a column."""
    return max((member.positions.shape[1] for member in axis.members if member.dim == 0 and not member.flat), default=0)


def _halved(step: int) -> Iterator[int]:
    """``step``, half of it, and so on down to 1."""
    while step:
        yield step
        step //= 2


def _with(axes: Sequence[Axis], values: Sequence[Any] | None, default: Any) -> list[tuple[Axis, Any]]:
    return list(zip(axes, values if values is not None else [default] * len(axes), strict=True))
