"""Landing with coarse groups: as near below the goal as their sizes allow, by choosing at once and step by step."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sslprune
from sslprune.choose.blocks import Goal
from sslprune.choose.constraints import constraints_of
from sslprune.choose.landing import choose
from sslprune.choose.sections import select_with_sections
from sslprune.cost.counts import Cost
from sslprune.recipe import LassoSection, PruneSection
from sslprune.train.budget import BudgetController
from sslprune.train.lasso import GroupLasso
from sslprune.values.selection import Selection


class Edges(nn.Module):
    """Edges in a row; on each ``widths`` of candidates side by side in one sum, and the input itself."""

    def __init__(self, num_edges: int = 2, widths: tuple[int, ...] = (25, 9, 2)) -> None:
        super().__init__()
        make = lambda width: nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))  # noqa: E731
        self.edges = nn.ModuleList(nn.ModuleList(map(make, widths)) for _ in range(num_edges))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for candidates in self.edges:
            total = x
            for candidate in candidates.children():
                total = total + candidate(x)
            x = total
        return self.head(x)


def cnn(*widths: int) -> nn.Module:
    layers = [part for a, b in pairwise((3, *widths)) for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], 4))


def goal_of(model: nn.Module, x: Tensor, kinds: list[str], fraction: float, floor: float = 0.1) -> Goal:
    sections = [PruneSection(kind=kind, exclude=["head"]) for kind in kinds]
    program = sslprune.trace(model, (x,))
    chosen = select_with_sections(sslprune.find_axes(program), sections)
    return Goal(Cost(program, [a for a, _ in chosen]), constraints_of(chosen, floor, 1), "macs", fraction)


def chosen_at_once(goal: Goal, model: nn.Module, seed: int) -> Selection:
    random = np.random.default_rng(seed)
    return choose(goal, [random.random(axis.size) for axis in goal.constraints.axes])


def chosen_in_training(goal: Goal, model: nn.Module, seed: int, num_steps: int = 90) -> Selection:
    """By a controller, which never takes back what it took: evidence that varies from step to step."""
    lasso, random = GroupLasso(model, goal.constraints.axes), np.random.default_rng(seed)
    mean = random.random(lasso.num_groups)
    seen = lambda *_: torch.from_numpy(mean * random.uniform(0.7, 1.4, lasso.num_groups)).float()  # noqa: E731
    made = BudgetController(lasso, goal, LassoSection(decay=20), num_steps, criterion=seen)
    last = Selection.none(lasso.axes)
    for _ in range(num_steps):
        made.observe(1.0)
        made.step(0.01)
        assert last <= made.selection
        last = made.selection
    zeros = Selection.zeros(model, lasso.axes)
    assert last <= zeros and goal.of(zeros) == goal.of(last)
    return last


def best_of(fraction: float) -> float:
    """The most of two edges' work that is within ``fraction`` of it, by trying all sets of their candidates."""
    sets = product((0, 1), repeat=6)
    sums = np.array(
        [32 + 16 * sum(work * kept for work, kept in zip(2 * (25, 9, 2), one, strict=True)) for one in sets]
    )
    shares = sums / sums.max()
    return float(shares[shares <= fraction].max())


WAYS = pytest.mark.parametrize("way", [chosen_at_once, chosen_in_training])


@WAYS
@pytest.mark.parametrize("fraction", [0.8, 0.6, 0.45, 0.25])
def test_candidates_of_a_sum_land_as_near_as_they_can(fraction: float, way: Any) -> None:
    for seed in range(2):
        model = Edges()
        goal = goal_of(model, torch.randn(2, 8), ["layers"], fraction)
        reached = goal.of(way(goal, model, seed))
        assert min(best_of(fraction), 0.99 * fraction) <= reached / goal.dense <= fraction


@WAYS
@pytest.mark.parametrize("fraction", [0.7, 0.5, 0.3])
def test_columns_beside_filters_do_not_fall_below_it(fraction: float, way: Any) -> None:
    """Columns save nothing until nine of ten are gone, and then most of a convolution at once."""
    for seed in range(2):
        model = cnn(8, 16)
        goal = goal_of(model, torch.randn(2, 3, 8, 8), ["filters", "columns"], fraction)
        assert 0.98 * goal.limit <= goal.of(way(goal, model, seed)) <= goal.limit


def test_columns_that_pay_go_and_others_do_not() -> None:
    model, x = cnn(16, 16, 16), torch.randn(2, 3, 8, 8)
    paying = goal_of(model, x, ["columns"], 0.6, floor=0.0)
    selection = chosen_at_once(paying, model, 0)
    assert (
        selection.left(0) == 27 and selection.left(1) + selection.left(2) == 144 + 14
    )  # the first one that pays is enough
    assert paying.of(selection) == paying.dense - 130 * 16 * 64
    never = goal_of(model, x, ["filters", "columns"], 0.8)  # a tenth of 27 and of 144 columns, rounded up, is too many
    selection = chosen_at_once(never, model, 0)
    assert not any(selection[axis].any() for axis in never.constraints.axes if axis.kind == "columns")


def test_what_comes_back_of_a_kernel_leaves_it_in_one_piece() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, (7, 5), bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    goal = goal_of(model, torch.randn(2, 1, 7, 5), ["kernel"], 0.5)
    for seed in range(3):
        selection = chosen_at_once(goal, model, seed)
        for axis in goal.constraints.axes:
            assert np.flatnonzero(np.diff(np.pad(~selection[axis], 1).astype(int))).size == 2


@pytest.mark.parametrize("fraction", [0.6, 0.3])
def test_a_path_of_a_trained_model_lands_near_and_is_proven(fraction: float) -> None:
    torch.manual_seed(0)
    model, x = Edges(), torch.randn(64, 8)
    y = x @ torch.randn(8, 4)
    sparsity = sslprune.Sparsity(model, (x,), prune="layers", macs=fraction, steps=80, decay=20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(80):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        sparsity.observe(loss)
        optimizer.step()
        sparsity.step(0.01)
    assert min(best_of(fraction), 0.99 * fraction) <= sparsity.fraction <= fraction
    small = sparsity.repack()
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    costs = [Cost(sslprune.trace(net, (x,)), []).macs() for net in (small, Edges())]
    assert costs[0] / costs[1] == pytest.approx(sparsity.fraction)


def test_calibration_lands_near_with_candidates() -> None:
    torch.manual_seed(0)
    model, x = Edges(), torch.randn(64, 8)
    small = sslprune.calibrate(model, (x[:2],), [x], prune="layers", macs=0.3, candidates=2)
    costs = [Cost(sslprune.trace(net, (x,)), []).macs() for net in (small, model)]
    assert min(best_of(0.3), 0.99 * 0.3) <= costs[0] / costs[1] <= 0.3
