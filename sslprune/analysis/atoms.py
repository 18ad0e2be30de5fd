"""The algebra of axes: what each index of each dimension depends on.

An *atom* is one removable thing. A dimension of size n is an int64 matrix of shape (n, k), one row an index: the index
exists as long as *every* atom in its row is kept. Atom 0, ``ALWAYS``, is never removed and pads short rows. So

* a fresh dimension has n atoms of its own, shape (n, 1); a fixed one has none, shape (n, 0);
* ``cat``, ``slice``, ``flip``, ``pad`` and any gather along a dimension are gathers of rows;
* flattening ``(heads, head_dim)`` makes rows of two atoms: index (h, d) dies with h and with d;
* viewing a fresh dimension as ``(heads, head_dim)`` *binds* each of its atoms to a pair of new ones.

Two dimensions that must stay equal are *unified* row by row: atom with atom joins them (union-find), atom with pair
binds it, and what cannot be made equal is *frozen*. Freezing is always right: it can miss a saving, never lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

ALWAYS = 0  # the atom that is never removed


@dataclass(frozen=True, eq=False)
class Dim:
    """What each index of one dimension depends on: ``rows`` of shape (n, k). ``why`` says why a fixed one is fixed."""

    rows: np.ndarray
    why: str = ""

    @property
    def size(self) -> int:
        return self.rows.shape[0]

    def take(self, positions: np.ndarray) -> Dim:
        """The dimension after a gather: index i of the result is index ``positions[i]`` of this one."""
        return Dim(self.rows[positions], self.why)


def fixed(size: int, why: str = "") -> Dim:
    """A dimension that nothing is ever removed from."""
    return Dim(np.empty((size, 0), np.int64), why)


def concatenate(dims: Sequence[Dim]) -> Dim:
    """The dimension of a concatenation."""
    width = max(dim.rows.shape[1] for dim in dims)
    padded = [np.pad(dim.rows, ((0, 0), (0, width - dim.rows.shape[1]))) for dim in dims]
    return Dim(np.concatenate(padded), next((dim.why for dim in dims if dim.why), ""))


def merge(dims: Sequence[Dim]) -> Dim:
    """The dimension that flattening ``dims`` gives, row-major."""
    if len(dims) == 1:
        return dims[0]
    sizes = [dim.size for dim in dims]
    grid = np.indices(sizes).reshape(len(sizes), -1) if any(dim.rows.shape[1] for dim in dims) else None
    why = next((dim.why for dim in dims if dim.why), "")
    if grid is None:
        return fixed(prod(sizes), why)
    return Dim(np.concatenate([dim.rows[index] for dim, index in zip(dims, grid, strict=True)], axis=1), why)


def _pattern(column: np.ndarray) -> np.ndarray:
    """Relabel values by first appearance, so that columns that repeat alike compare equal."""
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


class Atoms:
    """All atoms of one program: which are joined, bound to others, or frozen and by what."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, np.int64)
        self._bound = np.zeros((1, 2), np.int64)  # the pair that an atom stands for; (0, 0) where it stands for itself
        self._why = np.zeros(1, np.int64)  # index into reasons; 0 where not frozen
        self._rank = np.zeros(1, np.int64)  # the kind word with the highest rank that any user gave
        self.reasons = [""]
        self._count = 1

    def __len__(self) -> int:
        return self._count

    def fresh(self, size: int) -> Dim:
        """A dimension with atoms of its own."""
        start, self._count = self._count, self._count + size
        if self._count > len(self._parent):
            room = max(self._count, 2 * len(self._parent)) - len(self._parent)
            old = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(old, old + room)])
            self._bound = np.concatenate([self._bound, np.zeros((room, 2), np.int64)])
            self._why = np.concatenate([self._why, np.zeros(room, np.int64)])
            self._rank = np.concatenate([self._rank, np.zeros(room, np.int64)])
        return Dim(np.arange(start, self._count)[:, None])

    # -- reading ------------------------------------------------------------------------------------------------------

    def roots(self, atoms: np.ndarray) -> np.ndarray:
        """The representative of each atom."""
        found = self._parent[atoms]
        while True:
            above = self._parent[found]
            if (above == found).all():
                self._parent[atoms] = found
                return found
            found = above

    def rows(self, dim: Dim) -> np.ndarray:
        """The rows of ``dim`` as they stand now: roots only, bindings expanded, frozen atoms dropped; (n, k)."""
        found = self._expand(dim.rows)
        found = np.where(self._why[found] > 0, ALWAYS, found)
        if not found.shape[1]:
            return found
        keep = (found != ALWAYS).any(axis=0)
        for i in range(1, found.shape[1]):
            for j in range(i):
                if keep[j]:
                    found[:, i] = np.where(found[:, i] == found[:, j], ALWAYS, found[:, i])
            keep[i] = (found[:, i] != ALWAYS).any()
        return found if keep.all() else found[:, keep]

    def expanded(self, dim: Dim) -> np.ndarray:
        """The rows of ``dim`` with frozen atoms left in; (n, k)."""
        return self._expand(dim.rows)

    def _expand(self, rows: np.ndarray) -> np.ndarray:
        """Roots with every binding replaced by what it stands for."""
        rows = self.roots(rows)
        while rows.size:
            pairs = self._bound[rows]
            bound = pairs[..., 1] > 0
            columns = bound.any(axis=0)
            if not columns.any():
                break
            left = np.where(bound, pairs[..., 0], rows)
            right = np.where(bound, pairs[..., 1], ALWAYS)[:, columns]
            rows = self.roots(np.concatenate([left, right], axis=1))
        return rows

    def of(self, dims: Sequence[Dim]) -> np.ndarray:
        """The distinct removable atoms in ``dims``, sorted."""
        found = [self.rows(dim).reshape(-1) for dim in dims]
        atoms = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
        return atoms[atoms != ALWAYS]

    def why(self, dim: Dim) -> np.ndarray:
        """Index into ``reasons`` for each row of ``dim``: why it is frozen, 0 where it is not; shape (n,)."""
        expanded = self._expand(dim.rows)
        return self._why[expanded].max(axis=1) if expanded.shape[1] else np.zeros(dim.size, np.int64)

    def rank(self, atoms: np.ndarray) -> np.ndarray:
        return self._rank[atoms]

    # -- constraints --------------------------------------------------------------------------------------------------

    def label(self, dim: Dim, rank: int) -> None:
        """Remember how the atoms of ``dim`` are used; the highest rank wins."""
        atoms = self.of([dim])
        self._rank[atoms] = np.maximum(self._rank[atoms], rank)

    def freeze(self, dims: Sequence[Dim], why: str) -> None:
        """Never remove anything from ``dims``."""
        self._freeze(self.of(dims), why)

    def _freeze(self, atoms: np.ndarray, why: str) -> None:
        atoms = np.unique(self._expand(atoms[:, None]))
        atoms = atoms[(atoms != ALWAYS) & (self._why[atoms] == 0)]
        if atoms.size:
            if self.reasons[-1] != why:
                self.reasons.append(why)
            self._why[atoms] = len(self.reasons) - 1

    def unify(self, one: Dim, other: Dim, why: str) -> None:
        """Whatever is removed from one dimension is removed from the other; ``why`` explains what has to be frozen."""
        assert one.size == other.size, f"{one.size} against {other.size}: {why}"
        a, b = self.rows(one), self.rows(other)
        if a.shape == b.shape and (a == b).all():
            return
        why = one.why or other.why or self._first_reason(one) or self._first_reason(other) or why
        if a.shape[1] <= 1 and b.shape[1] <= 1:
            self._unify_block(a, b, why)
            return
        shape = np.concatenate([a != ALWAYS, b != ALWAYS], axis=1)  # rows of one shape are solved together
        patterns = np.unique(shape, axis=0)
        if len(patterns) == 1:
            self._unify_block(a, b, why)
            return
        for pattern in patterns:  # read afresh each time: solving one block can bind atoms of the next
            rows = np.flatnonzero((shape == pattern).all(axis=1))
            self.unify(one.take(rows), other.take(rows), why)

    def _first_reason(self, dim: Dim) -> str:
        """What froze ``dim``, or part of it; "" where nothing did."""
        why = self.why(dim)
        return self.reasons[why[np.argmax(why > 0)]] if dim.size else ""

    def _unify_block(self, a: np.ndarray, b: np.ndarray, why: str) -> None:
        if a.shape[1] == 1 and b.shape[1] == 1:
            one, other = a[:, 0], b[:, 0]
            both = (one != ALWAYS) & (other != ALWAYS)
            lone = np.concatenate([one[other == ALWAYS], other[one == ALWAYS]])
            self._union(one[both], other[both])
            self._freeze(lone, why)
            return
        left = [a[:, i] for i in range(a.shape[1])]
        right = [b[:, i] for i in range(b.shape[1])]
        for same in (np.array_equal, lambda x, y: np.array_equal(_pattern(x), _pattern(y))):
            for column in list(left):
                match = next((i for i, candidate in enumerate(right) if same(column, candidate)), None)
                if match is not None:
                    self._union(column, right.pop(match))
                    left = [kept for kept in left if kept is not column]
        if len(right) == 1:
            left, right = right, left
        if len(left) == 1 and len(right) > 1 and self._bind(left[0], np.stack(right, axis=1)):
            return
        self._freeze(np.concatenate([np.empty(0, np.int64), *left, *right]), why)

    def _union(self, one: np.ndarray, other: np.ndarray) -> None:
        while True:
            a, b = self.roots(one), self.roots(other)
            differ = a != b
            if not differ.any():
                return
            if (self._bound[a[differ], 1] > 0).any() or (self._bound[b[differ], 1] > 0).any():
                self._freeze(np.concatenate([a, b]), "two factorisations of one dimension that do not agree")
                return
            low, high = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
            self._parent[high] = low
            joined = self._parent[high]
            np.maximum.at(self._why, joined, self._why[high])
            np.maximum.at(self._rank, joined, self._rank[high])

    def _bind(self, column: np.ndarray, parts: np.ndarray) -> bool:
        """Let each atom of ``column`` stand for the atoms in its row of ``parts``; False where rows disagree.

        Atoms of ``column`` whose rows of ``parts`` are the same are one: flattened places of one (group, channel).
        """
        column, parts = self.roots(column), self.roots(parts)
        if (self._why[column] > 0).any() or (self._bound[column, 1] > 0).any() or (self._bound[parts, 1] > 0).any():
            return False
        _, first, joint = np.unique(parts, axis=0, return_index=True, return_inverse=True)
        joint = joint.reshape(-1)
        if len(np.unique(np.stack([column, joint]), axis=1)[0]) == len(np.unique(column)):
            self._union(column, column[first[joint]])
            column = self.roots(column)
        if not np.array_equal(_pattern(column), _pattern(joint)) or np.intersect1d(column, parts).size:
            return False
        _, first = np.unique(column, return_index=True)
        column, parts = column[first], parts[first]
        while parts.shape[1] > 2:
            pair = self.fresh(len(parts)).rows[:, 0]
            self._bound[pair] = parts[:, -2:]
            parts = np.concatenate([parts[:, :-2], pair[:, None]], axis=1)
        self._bound[column] = parts
        return True

    def split(self, dim: Dim, sizes: Sequence[int], why: str) -> list[Dim]:
        """The dimensions that viewing ``dim`` as ``sizes`` (row-major) gives; freezes what is not a product of them."""
        assert prod(sizes) == dim.size, f"{dim.size} as {tuple(sizes)}: {why}"
        columns: list[list[np.ndarray]] = [[] for _ in sizes]
        rows = self.rows(dim)
        for c in range(rows.shape[1]):
            grid = rows[:, c].reshape(sizes)
            classes, reduced = [], grid  # indices of an axis whose slices are identical are one class
            for i in range(len(sizes)):
                slices = np.moveaxis(grid, i, 0).reshape(sizes[i], -1)
                if (slices == slices[0]).all():
                    first, inverse = np.zeros(1, np.int64), np.zeros(sizes[i], np.int64)
                else:
                    _, first, inverse = np.unique(slices, axis=0, return_index=True, return_inverse=True)
                classes.append(inverse.reshape(-1))
                reduced = np.take(reduced, first, axis=i)
            vary = [i for i in range(len(sizes)) if reduced.shape[i] > 1]
            if len(vary) <= 1:
                at = vary[0] if vary else next((i for i, size in enumerate(sizes) if size > 1), 0)
                columns[at].append(reduced.reshape(-1)[classes[at]])
                continue
            fresh = [self.fresh(reduced.shape[i]).rows[:, 0] for i in vary]
            parts = np.stack([part.reshape(-1) for part in np.meshgrid(*fresh, indexing="ij")], axis=1)
            atoms = reduced.reshape(-1)
            if (atoms == ALWAYS).any() or len(np.unique(atoms)) < atoms.size or not self._bind(atoms, parts):
                self._freeze(atoms[atoms != ALWAYS], why)
                continue
            for i, part in zip(vary, fresh, strict=True):
                columns[i].append(part[classes[i]])
        return [
            Dim(np.stack(found, axis=1) if found else np.empty((size, 0), np.int64), dim.why)
            for found, size in zip(columns, sizes, strict=True)
        ]
