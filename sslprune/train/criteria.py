"""What groups are ranked by while a budget is trained to: each criterion is a function, and a row of ``CRITERIA``.

A criterion gives one number a group. Its mean over the latest steps, and over all processes, is what a group carries;
that is compared with what the group costs, so it has to be of one scale on all axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sslprune.calibration.beta_rank import beta_ranks, made_by, makers_of
from sslprune.calibration.calibrate import state_of
from sslprune.calibration.divergence import divergences_of
from sslprune.calibration.evidence import TOGETHER, felt, mean_of, shares
from sslprune.calibration.samples import BATCH, collect
from sslprune.capture.program import Program
from sslprune.errors import RecipeError, TrainingError
from sslprune.train.lasso import GroupLasso
from sslprune.values.axes import Axis
from sslprune.values.inputs import num_rows
from sslprune.values.tasks import Task


@dataclass(frozen=True)
class Sight:
    """What there is to look at between a batch's gradients and the optimizer's step.

    ``restore`` gives the whole model that ``program`` was traced from, with its numbers as they are now. ``inputs`` are
    those of this process's part of the batch; None: nobody has told. ``task``: what the outputs are about, if known.
    """

    program: Program
    restore: Callable[[], nn.Module]
    inputs: Any
    task: Task | None

    def state(self) -> dict[str, Tensor]:
        """The numbers by the names of the program's graphs."""
        return state_of(self.program, self.restore())

    def pieces(self, size: int) -> list[list[tuple[Any, ...]]]:
        """The batch as the graph takes it, about ``size`` rows together, each in parts; raises TrainingError."""
        if self.inputs is None:
            raise TrainingError("choose.evidence: it looks at batches; tell them as well: observe(loss, inputs)")
        device = next(iter(self.program.tensors.values())).device
        batch = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), self.inputs)
        return list(collect(self.program, [batch], num_rows(batch), holds=False).pieces(size))


Criterion = Callable[[GroupLasso, Sight | None, int], Tensor]  # (what acts, what is seen, a seed) -> shape (groups,)


def first_order(lasso: GroupLasso, sight: Sight | None = None, seed: int = 0) -> Tensor:
    """(Σ w · ∂loss/∂w)² of each group, over this batch (Molchanov et al. 2019, eq. 8)."""
    return lasso.sensitivities()


def magnitude(lasso: GroupLasso, sight: Sight | None = None, seed: int = 0) -> Tensor:
    """‖w_g‖² as shares of their mean over the axis (Zhu and Gupta 2017, on groups); a whole branch is its mean."""
    return _together(lasso, [shares(norms**2) for norms in lasso.norms()])


def second_order(lasso: GroupLasso, sight: Sight | None, seed: int) -> Tensor:
    """The Fisher information of the groups' presence, by targets drawn from the outputs: as calibration has it."""
    assert sight is not None
    state, pieces = sight.state(), sight.pieces(TOGETHER)
    seen = divergences_of(sight.program, sight.task)
    return _together(lasso, mean_of(felt(sight.program, lasso.axes, state, pieces, seen, seed)))


def beta_rank_of(program: Program, axes: Sequence[Axis]) -> Criterion:
    """Weights times what they make of the spread of what they read; raises RecipeError for what no filter makes."""
    makers = makers_of(program)
    without = next((axis for axis in axes if not made_by(makers, axis)), None)
    if without is not None:
        raise RecipeError(
            f'choose.evidence: "beta-rank" ranks the filters of convolutions and linear layers, and none makes '
            f'{without.name} [{without.kind}]; leave it out with exclude, or take "first-order"'
        )

    def beta_rank(lasso: GroupLasso, sight: Sight | None, seed: int) -> Tensor:
        assert sight is not None
        batches = [leaves for parts in sight.pieces(BATCH) for leaves in parts]
        return _together(lasso, beta_ranks(program, lasso.axes, sight.state(), batches, makers))

    return beta_rank


CRITERIA: dict[str, Callable[[Program, Sequence[Axis]], Criterion]] = {
    "first-order": lambda program, axes: first_order,
    "magnitude": lambda program, axes: magnitude,
    "second-order": lambda program, axes: second_order,
    "beta-rank": beta_rank_of,
}


def _together(lasso: GroupLasso, values: Sequence[np.ndarray]) -> Tensor:
    """One array an axis as one tensor over all groups, where the lasso has its own."""
    return torch.from_numpy(np.concatenate(values)).to(lasso.strength)
