"""Choosing, by its public functions: evidence, constraints and a goal in, a Selection out; no training in it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import sslprune
from sslprune.choose import landing
from sslprune.choose.blocks import Goal, blocks_of, next_blocks
from sslprune.choose.constraints import Constraints, Limit, constraints_of
from sslprune.choose.curve import Curve
from sslprune.choose.landing import choose
from sslprune.errors import BudgetError
from sslprune.recipe import PruneSection
from sslprune.values.selection import Selection


def chain(*widths: int):
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths)))
    program = sslprune.trace(model, (torch.zeros(2, widths[0]),))
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    assert [axis.size for axis in axes] == list(widths[1:-1])
    return axes, sslprune.Cost(program, axes)


def goal(axes, cost, fraction, floors=None, **constraints) -> Goal:
    return Goal(cost, Constraints(tuple(axes), floors or (1,) * len(axes), **constraints), "macs", fraction)


def test_what_carries_least_for_what_it_costs_goes():
    axes, cost = chain(4, 3, 4)
    selection = choose(goal(axes, cost, 2 / 3), [np.array([3.0, 1.0, 2.0])])
    assert selection[axes[0]].tolist() == [False, True, False]


def test_evidence_decides_between_axes_by_cost():
    axes, cost = chain(2, 40, 20, 40, 2)  # a neuron of the first and third axis costs 22, one of the second 80
    evidence = [np.ones(40), np.ones(20), np.ones(40)]
    selection = choose(goal(axes, cost, 0.75), evidence)
    assert selection.left(axes[1]) <= 16 and selection.left(axes[0]) + selection.left(axes[2]) >= 77
    evidence[1] *= 9
    selection = choose(goal(axes, cost, 0.75), evidence)
    assert selection.left(axes[1]) >= 19 and selection.left(axes[0]) + selection.left(axes[2]) <= 64


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.2])
def test_it_lands_within_a_percent_and_selections_of_a_sweep_are_nested(fraction):
    axes, cost = chain(16, 64, 48, 64, 10)
    random = np.random.default_rng(0)
    evidence = [random.random(axis.size) for axis in axes]
    larger = choose(goal(axes, cost, fraction), evidence)
    assert 0.99 * fraction <= cost.macs(larger) / cost.macs() <= fraction
    smaller = choose(goal(axes, cost, 0.8 * fraction), evidence, larger)
    assert larger <= smaller and not smaller <= larger


def test_floors_limits_and_the_grain_hold():
    axes, cost = chain(16, 64, 64, 10)
    evidence = [np.ones(64), np.ones(64)]
    on_grain = choose(goal(axes, cost, 0.5, round_to=16), evidence)
    assert sum(on_grain.left(axis) % 16 != 0 for axis in axes) <= 1
    floored = choose(goal(axes, cost, 0.4, floors=(50, 1)), evidence)
    assert floored.left(axes[0]) >= 50
    limited = choose(goal(axes, cost, 0.4, limits=(Limit((0, 1), 80),)), evidence)
    assert limited.left(axes[0]) + limited.left(axes[1]) >= 80
    with pytest.raises(BudgetError, match=r"budget\.macs: 0\.05 .* the least reachable is 0\.\d+"):
        choose(goal(axes, cost, 0.05, floors=(50, 50)), evidence)


def test_of_very_many_axes_several_blocks_go_in_a_step(monkeypatch):
    axes, cost = chain(*(12,) * 130)
    steps = []

    def counted(*given):
        steps.append(given)
        return next_blocks(*given)

    monkeypatch.setattr(landing, "next_blocks", counted)
    random = np.random.default_rng(0)
    evidence = [random.random(axis.size) for axis in axes]
    selection = choose(goal(axes, cost, 0.5), evidence)
    assert 0.495 <= cost.macs(selection) / cost.macs() <= 0.5
    gone = [values[selection[axis]] for axis, values in zip(axes, evidence, strict=True)]
    assert sum(map(len, gone)) > 3 * len(steps)
    assert np.concatenate(gone).max() < 0.6  # 29 % of the groups have to go, and no axis gives what carries much


def test_constraints_come_from_the_sections():
    axes, _ = chain(4, 10, 20, 4)
    sections = [PruneSection(kind="neurons", min_groups=3, least=0.5), PruneSection(kind="neurons")]
    made = constraints_of(list(zip(axes, sections, strict=True)), 0.2, 8)
    assert (made.floors, made.limits, made.round_to) == ((3, 4), (Limit((0,), 5),), 8)
    assert list(made.steps()) == [8, 4, 2, 1]
    selection = Selection.none(axes)
    assert (made.count(selection, 0, 8), made.count(selection, 1, 8)) == (2, 4)
    assert made.allow(selection, {0: 5}) and not made.allow(selection, {0: 6})


def test_a_block_is_one_axis_down_to_the_grain():
    axes, cost = chain(4, 10, 4)
    evidence = [np.arange(10.0)]
    (block,) = blocks_of(goal(axes, cost, 0.5), evidence, Selection.none(axes), 8)
    assert (block.groups[0].tolist(), block.saving) == ([0, 1], 16.0)
    assert block.score == pytest.approx((0 + 1) / (16 / 80))


def test_the_curve_falls_from_begin_to_end():
    curve = Curve(1.0, 0.2, 10)
    assert [curve.at(step) for step in (0, 5, 10, 99)] == pytest.approx([1.0, 0.3, 0.2, 0.2])
    assert Curve(0.3, 0.5, 4).at(0) == 0.5 and Curve(1.0, 0.5, 0).at(0) == 0.5
