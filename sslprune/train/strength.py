"""A strength that a person gives, in place of a budget: what λ takes to zero is what goes.

For who reproduces papers, which name λ and report the size that came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sslprune.cost.counts import Cost
from sslprune.recipe import LassoSection
from sslprune.train.criteria import Sight
from sslprune.train.lasso import GroupLasso
from sslprune.values.selection import Selection


class StrengthController:
    """Runs a ``GroupLasso`` through ``num_steps`` optimizer steps at λ_g = strength x weight_g, then holds its zeros.

    weight_g is √(numbers in g) or 1 by ``section.weights``, times the strength of its prune section. With the proximal
    step a group goes when it reaches exact zero; with the subgradient, when the last step finds it below
    ``section.threshold``. ``floors``: how many groups of each axis stay. Call ``observe`` before
    and ``step`` after each optimizer step, as for a budget.
    """

    planned = None  # there is no plan: the cost ends where λ takes it

    def __init__(
        self,
        lasso: GroupLasso,
        cost: Cost,
        section: LassoSection,
        num_steps: int,
        floors: Sequence[int],
        strengths: Sequence[float] | None = None,
    ) -> None:
        assert section.strength is not None
        self.lasso, self.cost, self.section, self.num_steps = lasso, cost, section, num_steps
        lasso.floors = list(floors)
        relative = [1.0] * len(lasso.axes) if strengths is None else strengths
        weights = np.sqrt(lasso.sizes) if section.weights == "sqrt-size" else np.ones(lasso.num_groups)
        per_axis = zip(lasso.split(weights), relative, strict=True)
        lasso.set_strength([section.strength * strength * weight for weight, strength in per_axis])
        self.dense = float(cost.macs())
        self.taken = 0  # steps

    @property
    def selection(self) -> Selection:
        """What would go if the sparse phase ended now."""
        if self.lasso.method == "subgradient" and self.taken < self.num_steps:
            return Selection.of(self.lasso.axes, self.lasso.below(self.section.threshold))
        return Selection.of(self.lasso.axes, self.lasso.split(self.lasso.alive[:-1].cpu().numpy() == 0))

    def gone(self, zeros: Selection) -> Selection:
        """What goes: what λ took to zero, and ``zeros``, which are so anyhow."""
        return self.selection | zeros

    @property
    def fraction(self) -> float:
        """The MACs of what is kept, as a fraction of the dense model's."""
        return float(self.cost.macs(self.selection)) / self.dense

    def observe(self, loss: float | torch.Tensor, sight: Sight | None = None) -> None:
        """Call between ``backward`` and the optimizer's step; what is added to the gradients is added here."""
        if self.lasso.method == "subgradient" and self.taken < self.num_steps:
            self.lasso.add_gradient()

    def step(self, lr: float) -> None:
        """One step of the lasso of length ``lr``: call after the optimizer's step."""
        self.lasso.step(lr)
        self.taken += 1
        if self.taken == self.num_steps:
            if self.lasso.method == "subgradient":
                self.lasso.zero_below(self.section.threshold)
            self.lasso.set_strength([np.zeros(axis.size) for axis in self.lasso.axes])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors and numbers."""
        return {"lasso": self.lasso.state_dict(), "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.lasso.load_state_dict(state["lasso"])
        self.taken = state["taken"]
