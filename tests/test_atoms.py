"""The algebra of axes: sizes and orders are kept, and no chain of views is ever misunderstood."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sslprune
from sslprune.analysis.atoms import Atoms, concatenate, fixed, merge
from sslprune.values.compare import difference

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(SIZES)
def test_split_undoes_merge(sizes: list[int]) -> None:
    atoms = Atoms()
    dims = [atoms.fresh(n) if n > 1 else fixed(1) for n in sizes]
    again = atoms.split(merge(dims), sizes, "a view")
    for before, after, n in zip(dims, again, sizes, strict=True):
        assert after.size == n
        if n > 1:
            assert (atoms.rows(before) == atoms.rows(after)).all()


@given(SIZES, st.randoms())
def test_split_binds_a_fresh_dimension_to_its_factors(sizes: list[int], random) -> None:
    atoms = Atoms()
    whole = atoms.fresh(prod(sizes))
    parts = atoms.split(whole, sizes, "a view")
    grid = np.indices(sizes).reshape(len(sizes), -1).T
    for row, place in zip(atoms.rows(whole), grid, strict=True):
        expected = {int(a) for part, i in zip(parts, place, strict=True) for a in atoms.rows(part)[i]}
        assert {int(a) for a in row} - {0} == expected - {0}


@given(st.integers(1, 6), st.integers(1, 6))
def test_concatenate_then_take_gives_the_parts_back(one: int, other: int) -> None:
    atoms = Atoms()
    a, b = atoms.fresh(one), atoms.fresh(other)
    joined = concatenate([a, b])
    assert joined.size == one + other
    assert (atoms.rows(joined.take(np.arange(one))) == atoms.rows(a)).all()
    assert (atoms.rows(joined.take(np.arange(one, one + other))) == atoms.rows(b)).all()


@given(st.integers(2, 6), st.integers(2, 6))
def test_unify_makes_rows_equal(heads: int, size: int) -> None:
    atoms = Atoms()
    flat, pair = atoms.fresh(heads * size), merge([atoms.fresh(heads), atoms.fresh(size)])
    atoms.unify(flat, pair, "an addition")
    assert (np.sort(atoms.rows(flat)) == np.sort(atoms.rows(pair))).all()


def test_places_of_one_pair_go_together() -> None:
    """A grouped convolution's channels (3 groups x 2), flattened with 4 places: a layer reads 4 inputs a channel."""
    atoms = Atoms()
    groups, inner, read = atoms.fresh(3), atoms.fresh(2), atoms.fresh(24)
    atoms.unify(read, merge([groups, inner, fixed(4)]), "a flatten")
    rows = atoms.rows(read)
    assert rows.shape == (24, 2) and len(np.unique(rows, axis=0)) == 6
    assert (rows.reshape(3, 2, 4, 2) == rows.reshape(3, 2, 4, 2)[:, :, :1]).all()
    assert set(rows[:8].flat) & set(rows[8:16].flat) == set(inner.rows.flat)  # two groups share the channels within


def test_a_fixed_dimension_freezes_what_it_meets() -> None:
    atoms = Atoms()
    dim = atoms.fresh(3)
    atoms.unify(dim, fixed(3, "the input"), "an addition")
    assert atoms.rows(dim).shape == (3, 0)
    assert [atoms.reasons[i] for i in atoms.why(dim)] == ["the input"] * 3


def test_two_factorisations_that_disagree_freeze() -> None:
    """(2, 3) against (3, 2) of one dimension: neither can lose a row without breaking the other."""
    atoms = Atoms()
    six = atoms.fresh(6)
    atoms.split(six, (2, 3), "one view")
    parts = atoms.split(six, (3, 2), "another view")
    assert all(atoms.rows(part).shape[1] == 0 for part in parts)


def test_a_frozen_factor_leaves_the_other_free() -> None:
    atoms = Atoms()
    whole = atoms.fresh(12)
    heads, inner = atoms.split(whole, (3, 4), "a view")
    atoms.freeze([heads], "selected")
    assert len(np.unique(atoms.rows(whole))) == 4
    assert (atoms.rows(inner)[:, 0] == np.unique(atoms.rows(whole))).all()


# -- any chain of views --------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """A linear layer, a chain of moves of its features, and a linear layer that reads what comes out."""

    def __init__(self, width: int, moves: list[tuple[str, int]]) -> None:
        super().__init__()
        self.first, self.moves = nn.Linear(5, width), moves
        self.last = nn.Linear(self.moved(torch.zeros(2, width)).flatten(1).shape[1], 3)

    def moved(self, x: Tensor) -> Tensor:
        for name, seed in self.moves:
            x = MOVES[name](x, seed)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.moved(self.first(x))).flatten(1))


def _view(x: Tensor, seed: int) -> Tensor:
    """The features as some factorisation of their number, into up to three dimensions."""
    total, random = x[0].numel(), np.random.default_rng(seed)
    sizes = []
    for _ in range(2):
        divisors = [d for d in range(1, total + 1) if total % d == 0]
        sizes.append(int(random.choice(divisors)))
        total //= sizes[-1]
    return x.reshape(x.shape[0], *sizes, total)


def _permute(x: Tensor, seed: int) -> Tensor:
    return x.permute(0, *(1 + np.random.default_rng(seed).permutation(x.dim() - 1)).tolist())


def _halves(x: Tensor, seed: int) -> Tensor:
    d = 1 + seed % (x.dim() - 1)
    if x.shape[d] % 2:
        return x
    one, other = x.chunk(2, d)
    return torch.cat([other, one], d)


def _strided(x: Tensor, seed: int) -> Tensor:
    d = 1 + seed % (x.dim() - 1)
    return torch.cat([x[(slice(None),) * d + (slice(0, None, 2),)], x[(slice(None),) * d + (slice(1, None, 2),)]], d)


def _gate(x: Tensor, seed: int) -> Tensor:
    d = 1 + seed % (x.dim() - 1)
    if x.shape[d] % 2:
        return x
    one, other = x.chunk(2, d)
    return torch.cat([one * torch.sigmoid(other), one], d)


MOVES = {
    "view": _view,
    "permute": _permute,
    "halves": _halves,
    "strided": _strided,
    "gate": _gate,
    "flip": lambda x, seed: x.flip(1 + seed % (x.dim() - 1)),
    "flatten": lambda x, seed: x.flatten(1),
    "mirror": lambda x, seed: x + x.flip(x.dim() - 1),
    "pad": lambda x, seed: nn.functional.pad(x, (1, seed % 3)),
}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.sampled_from([12, 16, 24]),
    st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 99)), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_any_chain_of_views_is_understood_or_frozen(width: int, moves: list[tuple[str, int]], seed: int) -> None:
    check_chain(width, moves, seed)


@pytest.mark.parametrize(
    "moves",
    [
        [("view", 3), ("permute", 1), ("flatten", 0)],
        [("halves", 0), ("view", 5), ("permute", 2), ("flatten", 0), ("halves", 0)],
        [("strided", 0), ("mirror", 0)],
        [("pad", 2), ("flip", 0), ("gate", 0)],
    ],
)
def test_known_chains(moves: list[tuple[str, int]]) -> None:
    check_chain(24, moves, 0)


def check_chain(width: int, moves: list[tuple[str, int]], seed: int) -> None:
    torch.manual_seed(seed)
    model = Chain(width, moves)
    program = sslprune.trace(model, (torch.randn(3, 5),))
    axes = sslprune.find_axes(program)
    random = np.random.default_rng(seed)
    for axis in axes:
        if axis.exact:
            sslprune.zero_groups(model, axis, random.permutation(axis.size)[: axis.size // 2])
    small, x = sslprune.repack(model, program, axes), torch.randn(5, 5)
    assert difference(*(run.eval()(x) for run in (model, small)))[1] < 1e-5
