"""Kernels: a row or a column of a convolution's kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sslprune.analysis.analysis import Analysis
from sslprune.kinds.kind import Kind
from sslprune.values.axes import Axis


class KernelKind(Kind):
    """Positions along one side of a kernel: it can lose its outside, or become a dilation."""

    def find(self, analysis: Analysis, labelled: Sequence[Axis]) -> list[Axis]:
        return [axis for axis in super().find(analysis, labelled) if not axis.frozen]  # frozen ones are no news

    def closed(self, gone: np.ndarray, left: np.ndarray | None) -> np.ndarray:
        return even_kernel(gone) if gone.any() else gone

    def next(self, alive: np.ndarray) -> np.ndarray:
        found, outer = np.zeros(alive.size, bool), np.flatnonzero(alive)
        found[[*outer[:1], *outer[-1:]]] = True
        return found


def even_kernel(zero: np.ndarray) -> np.ndarray:
    """Which positions along a kernel's side can go when those in ``zero`` are zero: bool, shape (size,).

    A kernel can lose its outer positions, and inner ones where what is left is evenly spaced, as a dilation is.
    """
    left = np.flatnonzero(~zero)
    if not left.size:
        left = np.array([zero.size // 2])
    step = max(1, int(np.gcd.reduce(np.diff(left)))) if left.size > 1 else 1
    gone = np.ones(zero.size, bool)
    gone[left[0] : left[-1] + 1 : step] = False
    return gone
