"""Ridge regression: of many rows their products' sums are kept, of few the rows themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sslprune.calibration.lockstep import wide

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # times the mean of H's diagonal
BLOCK = 512  # rows of H that are added to at once


class Moments:
    """H = Σ u uᵀ, C = Σ u rᵀ and Σ r² over rows u, with a 1 at their end, and errors r; float64.

    Shapes (groups, columns + 1, columns + 1), (groups, columns + 1, made) and (groups, made). As long as there are
    fewer rows than columns, H is not made: the rows are less, and decide the same (ridge regression's kernel form).
    """

    def __init__(self) -> None:
        self.count = 0  # rows
        self._rows: list[Tensor] = []  # (groups, n, columns + 1) each, while they are few ...
        self._errors: list[Tensor] = []  # ... (groups, n, made)
        self._h: Tensor | None = None
        self.squares = torch.zeros(())
        self.dtype = torch.float32  # of the rows

    def add(self, rows: Tensor, errors: Tensor) -> None:
        """More rows: (groups, n, columns) and (groups, n, made). Products are summed in float64, batch by batch."""
        rows, errors = wide(rows), wide(errors)
        self.dtype = rows.dtype
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
        squares = errors.double().square().sum(1)
        self.squares = self.squares + squares if self.count else squares
        self.count += rows.shape[1]
        if self._h is None:
            self._rows.append(rows)
            self._errors.append(errors)
            if self.count < rows.shape[2]:
                return
            width = rows.shape[2]
            self._h = rows.new_zeros(len(rows), width, width, dtype=torch.float64)
            self._c = rows.new_zeros(len(rows), width, errors.shape[2], dtype=torch.float64)
            for one, other in zip(self._rows, self._errors, strict=True):
                self._sum(one, other)
            self._rows, self._errors = [], []
        else:
            self._sum(rows, errors)

    def _sum(self, rows: Tensor, errors: Tensor) -> None:
        assert self._h is not None
        left = rows.transpose(1, 2)
        for block in _blocks(rows.shape[2]):
            self._h[:, block] += left[:, block] @ rows
        self._c += left @ errors

    def _few(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self._rows, 1).double(), torch.cat(self._errors, 1).double()

    @property
    def is_finite(self) -> bool:
        """Whether the sums are numbers; those of H are where those of its diagonal, squares, are."""
        squares = (self.squares, self._h.diagonal(dim1=1, dim2=2)) if self._h is not None else (self.squares,)
        return all(bool(part.isfinite().all()) for part in squares)

    def error(self, change: Tensor) -> Tensor:
        """Σ (r - uᵀ change)² of each output, (groups, made), for a ``change`` (groups, columns + 1, made)."""
        change = change.double()
        if self._h is None:
            rows, errors = self._few()
            return (errors - rows @ change).square().sum(1)
        return self.squares - 2 * (change * self._c).sum(1) + (change * (self._h @ change)).sum(1)

    def ridge(self, intercept: bool) -> Callable[[float], Tensor]:
        """By the damping, the change of the weight that makes the error small and stays small itself.

        Its shape is (groups, columns + 1, made). (H + damping x mean diagonal) Δ = C; the intercept, the last row, is
        not damped. H is given up for it: two of them may not fit.
        """
        if self._h is None:
            rows, errors = self._few()
            u = rows[:, :, :-1]
            mean = u.square().sum((1, 2)) / max(1, u.shape[2])
            shift_u, shift_r = (part.mean(1, keepdim=True) * intercept for part in (u, errors))
            u, r = u - shift_u, errors - shift_r
            kernel = u @ u.transpose(1, 2)
            free = lambda damping: u.transpose(1, 2) @ _solved(kernel, r, damping * mean)  # noqa: E731
        else:
            h, ones = self._h[:, :-1, :-1], self._h[:, :-1, -1:].clone()
            self._h = None
            mean = h.diagonal(dim1=1, dim2=2).mean(1)
            shift_u, shift_r = (part / self.count * intercept for part in (ones.transpose(1, 2), self._c[:, -1:]))
            for block in _blocks(h.shape[1]):  # about the means, so that the intercept is free
                h[:, block] -= ones[:, block] * shift_u
            c = self._c[:, :-1] - ones @ shift_r
            free = lambda damping: _solved(h, c, damping * mean)  # noqa: E731

        def change(damping: float) -> Tensor:
            found = free(damping)
            return torch.cat([found, shift_r - shift_u @ found], 1)

        return change


def _blocks(count: int) -> list[slice]:
    """Rows of H in parts: what is added to all of it at once would be as large as H."""
    return [slice(begin, begin + BLOCK) for begin in range(0, count, BLOCK)]


def _solved(matrix: Tensor, right: Tensor, damping: Tensor) -> Tensor:
    """(matrix + damping I)⁻¹ right, of a matrix that is positive up to rounding.

    A factor by columns is made in place: a wide layer's matrix is larger than all its weights.
    """
    factor = torch.empty_like(matrix.mT, memory_format=torch.contiguous_format).mT.copy_(matrix)
    diagonal = factor.diagonal(dim1=1, dim2=2)
    diagonal += damping[:, None] + 1e-9 * diagonal.mean(1, keepdim=True).clamp(min=0) + 1e-30
    torch.linalg.cholesky(factor, out=factor)
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def changes(made: Moments, intercept: bool, damping: float | None) -> Iterator[Tensor]:
    """The changes of `Moments.ridge` with the damping, or with each of `RIDGES` if none is given; as exact as rows."""
    ridge = made.ridge(intercept)
    for strength in RIDGES if damping is None else (damping,):
        yield ridge(strength).to(made.dtype)


def best_of(found: list[Tensor], held: Moments) -> tuple[Tensor, Tensor]:
    """The one of some changes that serves the ``held`` rows best, and its error there, (groups, made).

    Outputs whose error on the held rows it would not lessen do not change.
    """
    errors = [held.error(change) for change in found]
    best = min(range(len(found)), key=lambda i: float(errors[i].sum()))
    better = errors[best] < held.squares
    return torch.where(better[:, None], found[best], 0.0), torch.where(better, errors[best], held.squares)
