"""The budget: which groups go to zero, and when, so that the cost ends where the recipe says.

The cost of what is kept follows a planned curve. While it is above the plan, the group goes next that carries least for
what it costs; it then decays to exact zero over some steps, so nothing is ever cut. The last few groups are chosen
together, to land on the budget. What is chosen is `sslprune.choose`'s to say; when, and how it reaches zero, is said
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sslprune.choose.blocks import Goal
from sslprune.choose.curve import Curve
from sslprune.choose.landing import land, onward
from sslprune.recipe import LassoSection
from sslprune.train.criteria import Criterion, Sight, first_order
from sslprune.train.lasso import GroupLasso
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection
from sslprune.values.team import Alone, Team

NUM_WARM_UP = 8  # steps whose loss decides λ
LEAST_FACTOR = 0.5  # a group that was not chosen may shrink, but one step never zeroes it
MEMORY = 100  # steps over which evidence is averaged


class BudgetController:
    """Steers a ``GroupLasso`` through ``num_steps`` optimizer steps to a ``goal``: a fraction of the dense cost.

    Call ``observe`` before and ``step`` after each optimizer step, in place of ``lasso.step``. ``strengths`` (relative,
    per axis) come from the recipe's prune sections. ``begin``: what an earlier point of a sweep has at zero; it is held
    from the first step on, and the plan falls from there. Of a ``team`` the first process chooses, from the evidence of
    all; ``criterion`` gives it. Raises BudgetError, before any training, when the constraints leave more than the goal.
    """

    def __init__(
        self,
        lasso: GroupLasso,
        goal: Goal,
        section: LassoSection,
        num_steps: int,
        strengths: Sequence[float] | None = None,
        begin: Selection | None = None,
        team: Team | None = None,
        criterion: Criterion = first_order,
    ) -> None:
        self.criterion = criterion
        self.lasso, self.goal, self.section, self.team = lasso, goal, section, team or Alone()
        self.axes: tuple[Axis, ...] = lasso.axes
        self.strengths = [1.0] * len(self.axes) if strengths is None else list(strengths)
        self.num_steps = num_steps
        self.decay = max(1, min(section.decay, num_steps // 3))
        self.last_choice = max(0, min(int(0.8 * num_steps), num_steps - self.decay))
        self.interval = max(1, min(section.interval, self.last_choice // 10))
        # gradients are there at each step; whatever else is looked at is looked at twice between two choices
        self.every = 1 if criterion is first_order else max(1, self.interval // 2)
        self.taken = 0  # steps
        self.landed = False  # the last groups are chosen
        self.loss_sum = 0.0
        self.carries = torch.zeros(lasso.num_groups, device=lasso.strength.device)  # running mean of the evidence
        lasso.set_strength([np.zeros(axis.size) for axis in self.axes])
        lasso.least[:-1] = LEAST_FACTOR
        self.begin(begin if begin is not None else Selection.none(self.axes))
        if self.team.first:
            goal.check_reachable(self.selection)

    def begin(self, selection: Selection) -> None:
        """``selection`` is at zero already, and stays there as far as the ties let it; the plan falls from its cost."""
        self.selection = self.goal.constraints.kept_to(selection)
        self.now = self.goal.of(self.selection)
        self.curve = Curve(self.now / self.goal.dense, self.goal.fraction, self.last_choice)
        self.lasso.alive[:-1] = torch.from_numpy(~np.concatenate(self.selection.masks)).to(self.lasso.alive)

    def gone(self, zeros: Selection) -> Selection:
        """What goes: what is chosen, and what of ``zeros``, which are exactly zero, the ties let go as well."""
        return self.goal.constraints.kept_to(self.selection | zeros, self.selection)

    @property
    def fraction(self) -> float:
        """The cost of what is kept, as a fraction of the dense cost; groups that still decay count as gone."""
        return self.now / self.goal.dense

    @property
    def planned(self) -> float:
        """The fraction that the plan allows at this step."""
        return self.curve.at(self.taken)

    def observe(self, loss: float | torch.Tensor, sight: Sight | None = None) -> None:
        """Take note of a batch's ``loss`` and of its gradients: call between ``backward`` and the optimizer's step.

        ``sight``: what else there is to see, for a criterion that looks at batches.
        """
        if self.taken < NUM_WARM_UP:
            value = loss.detach() if isinstance(loss, torch.Tensor) else torch.tensor(loss, dtype=torch.float64)
            self.loss_sum += float(self.team.mean(value))
        if self.taken + 1 == NUM_WARM_UP:
            self._set_strength(self.loss_sum / NUM_WARM_UP)
        if not self.landed and self.taken % self.every == 0:
            found = self.criterion(self.lasso, sight, self.taken * self.team.world + self.team.rank)
            self.carries.lerp_(found, min(1.0, self.every / min(self.taken + self.every, MEMORY)))
        if self.lasso.method == "subgradient":
            self.lasso.add_gradient()

    def step(self, lr: float) -> None:
        """One step of the lasso of length ``lr``: call after the optimizer's step."""
        last = self.taken == self.curve.length
        if not self.landed and (last or self.taken % self.interval == 0):
            self._take(*self._agreed(last))
        self.lasso.step(lr)
        self.taken += 1
        if self.taken == self.num_steps:
            self.lasso.set_strength([np.zeros(axis.size) for axis in self.axes])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors and numbers."""
        return {
            "lasso": self.lasso.state_dict(),
            "gone": torch.from_numpy(np.concatenate(self.selection.masks)),
            "carries": self.carries.clone(),
            "begin": self.curve.begin,
            "round_to": self.goal.constraints.round_to,
            "taken": self.taken,
            "landed": self.landed,
            "loss_sum": self.loss_sum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, on the grain of the machine that began."""
        self.lasso.load_state_dict(state["lasso"])
        self.selection = Selection.of(self.axes, self.lasso.split(state["gone"].numpy()))
        self.carries.copy_(state["carries"])
        self.goal = self.goal.rounded_to(state["round_to"])
        self.taken, self.landed, self.loss_sum = state["taken"], state["landed"], state["loss_sum"]
        self.curve = replace(self.curve, begin=state["begin"])
        if self.landed and self.team.first:
            self.goal.cost.measured(self.selection)
        self.now = self.goal.of(self.selection)

    def _agreed(self, last: bool) -> tuple[Selection, bool]:
        """What the first process chooses, by the evidence of all, on each of them."""
        self.carries = self.team.mean(self.carries)
        selection, landed = self._chosen(last) if self.team.first else (self.selection, False)
        gone, landed = self.team.broadcast((torch.from_numpy(np.concatenate(selection.masks)), landed))
        return Selection.of(self.axes, self.lasso.split(gone.numpy())), landed

    def _chosen(self, last: bool) -> tuple[Selection, bool]:
        """What goes from this step on, and whether that is all."""
        carries = self.lasso.split(self.carries.double().cpu().numpy())
        evidence = [carried / strength for carried, strength in zip(carries, self.strengths, strict=True)]
        room = self.curve.at(self.taken + self.decay // 2) * self.goal.dense  # half-way through a decay
        begin = self.selection
        selection, due = onward(self.goal, evidence, begin, self.planned * self.goal.dense, room)
        return (land(self.goal, evidence, selection, begin), True) if due or last else (selection, False)

    def _take(self, selection: Selection, landed: bool) -> None:
        new = np.flatnonzero(np.concatenate((selection - self.selection).masks))
        if new.size:
            self.lasso.decay(new, self.decay)
        self.selection, self.landed, self.now = selection, landed, self.goal.of(selection)

    def _set_strength(self, loss: float) -> None:
        """λ_g = λ √(size of g) √(its share of the saved cost), λ so that the penalty is ``ratio`` of the loss.

        A divergence from a teacher that is the student itself may be a rounding error below zero.
        """
        savings = np.concatenate([np.asarray(s, float) for s in self._savings()])
        share = np.sqrt(np.maximum(savings, 0) / max(savings.mean(), 1e-12))
        relative = np.concatenate([np.full(a.size, s) for a, s in zip(self.axes, self.strengths, strict=True)])
        weights = np.sqrt(self.lasso.sizes) * share * relative
        penalty = float((weights * np.concatenate(self.lasso.norms())).sum())
        scale = self.section.ratio * max(loss, 0.0) / penalty if penalty > 0 else 0.0
        strength = self.team.broadcast(torch.from_numpy(scale * weights))
        self.lasso.set_strength(self.lasso.split(strength.numpy()))

    def _savings(self) -> list[np.ndarray]:
        """What a group saves at first; where cost has stairs, its share of what all that may go save together."""
        goal, constraints = self.goal, self.goal.constraints
        if goal.measure != "latency":
            return goal.cost.savings(self.selection, goal.measure)
        going: list[dict[int, np.ndarray]] = []
        for i, (axis, floor) in enumerate(zip(self.axes, constraints.floors, strict=True)):
            grain = constraints.grain(i, constraints.round_to)
            rest = -(-floor // grain) * grain
            going.append({i: np.arange(rest if rest < axis.size else floor, axis.size)})
        saved = goal.cost.saved(self.selection, going, goal.measure)
        return [np.full(a.size, saved[i] / max(1, len(going[i][i]))) for i, a in enumerate(self.axes)]
