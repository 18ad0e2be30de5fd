"""Ridge regression by second moments: what is kept of all rows is their products' sums."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # times the mean of H's diagonal


class Moments:
    """H = Σ u uᵀ, C = Σ u rᵀ and Σ r² over rows u, with a 1 at their end, and errors r; float64.

    Shapes (groups, columns + 1, columns + 1), (groups, columns + 1, made) and (groups, made).
    """

    def __init__(self) -> None:
        self.count = 0  # rows

    def add(self, rows: Tensor, errors: Tensor) -> None:
        """More rows: (groups, n, columns) and (groups, n, made). Products are summed in float64, batch by batch."""
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
        sums = (rows.transpose(1, 2) @ rows).double(), (rows.transpose(1, 2) @ errors).double()
        if not self.count:
            self.h, self.c = (torch.zeros_like(found) for found in sums)
            self.squares = torch.zeros_like(errors[:, 0], dtype=torch.float64)
        self.h += sums[0]
        self.c += sums[1]
        self.squares += errors.double().square().sum(1)
        self.count += rows.shape[1]

    def error(self, change: Tensor) -> Tensor:
        """Σ (r - uᵀ change)² of each output, (groups, made), for a ``change`` (groups, columns + 1, made)."""
        return self.squares - 2 * (change * self.c).sum(1) + (change * (self.h @ change)).sum(1)

    def ridge(self, columns: Tensor, damping: float, intercept: bool) -> Tensor:
        """The change of the weight that makes the error small and stays small itself: (groups, columns + 1, made).

        (H + damping x mean diagonal) Δ = C over the ``columns`` (bool) that may change; the intercept, the last row,
        is not damped.
        """
        free = torch.cat([columns, columns.new_tensor([intercept])]).nonzero()[:, 0]
        n = int(columns.sum())
        h, c = self.h[:, free][:, :, free].clone(), self.c[:, free]
        diagonal = h.diagonal(dim1=1, dim2=2)
        diagonal[:, :n] += damping * diagonal[:, :n].mean(1, keepdim=True)
        diagonal += 1e-9 * diagonal.mean(1, keepdim=True) + 1e-30  # columns that are never anything but zero
        change = torch.zeros_like(self.c)
        change[:, free] = torch.linalg.solve(h, c)
        return change


def best_change(made: Moments, held: Moments, columns: Tensor, intercept: bool, damping: float | None) -> Tensor:
    """The change of `Moments.ridge` with the damping, of `RIDGES` if none is given, that serves the ``held`` rows best.

    Outputs whose error on the held rows it would not lessen do not change.
    """
    tried = [made.ridge(columns, ridge, intercept) for ridge in (RIDGES if damping is None else (damping,))]
    errors = [held.error(change) for change in tried]
    best = min(range(len(tried)), key=lambda i: float(errors[i].sum()))
    return torch.where((errors[best] < held.squares)[:, None], tried[best], 0.0)
