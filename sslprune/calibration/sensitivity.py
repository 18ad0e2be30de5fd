"""A map of what a model feels: its divergence by what is removed, axis by axis, and by budgets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sslprune.calibration.calibrate import Calibrated, Calibration
from sslprune.choose.blocks import Goal
from sslprune.errors import BudgetError
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection

SHARES = (0.25, 0.5, 0.75)  # of an axis's groups that go
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the dense cost that may remain


@dataclass(frozen=True)
class Felt:
    """How far the outputs are from the dense model's without the ``gone`` groups of one axis that carry least."""

    axis: Axis
    gone: int
    divergence: float


def by_axis(calibration: Calibration, axes: Sequence[Axis], shares: Sequence[float] = SHARES) -> Iterator[list[Felt]]:
    """Of each axis alone what goes with each of ``shares`` of its groups, nothing repaired; a branch goes whole."""
    evidence = calibration.evidence(tuple(axes))[0]
    for i, axis in enumerate(axes):
        order = np.argsort(evidence[i], kind="stable")
        felt = []
        for count in dict.fromkeys(max(1, round(share * axis.size)) for share in shares):
            selection = Selection.none(axes).plus({i: order[:count]})
            felt.append(Felt(axis, count, calibration.cut(selection)))
        yield felt


def by_budget(
    calibration: Calibration, goal: Goal, budgets: Sequence[float] = BUDGETS
) -> Iterator[tuple[float, Calibrated]]:
    """What calibration leaves at each of ``budgets``, as far down as the constraints allow."""
    for fraction in budgets:
        try:
            yield fraction, calibration.calibrated(replace(goal, fraction=fraction))
        except BudgetError:
            return
