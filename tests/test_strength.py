"""A strength in place of a budget: λ as a paper gives it, exact zeros by either method, and what is left is counted."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sslprune.choose.blocks import Goal
from sslprune.choose.constraints import Constraints, floor_of
from sslprune.errors import RecipeError, TrainingError
from sslprune.recipe import LassoSection
from sslprune.train.budget import BudgetController
from sslprune.train.lasso import GroupLasso
from sslprune.train.sparsity import Sparsity
from sslprune.train.strength import StrengthController
from sslprune.values.axes import Axis, Member, zero_mask
from sslprune.values.selection import Selection
from sslprune.zoo.digits_cnn import DigitsCNN
from tests.test_budget import ChainCost, chain
from tests.test_lasso import chain as overlapping

WIDTHS, PIXELS = [3, 16, 24, 10], [64, 16, 1]


def controller(num_steps, strengths=None, floors=None, **section):
    model, axes = chain(WIDTHS)
    settings = LassoSection(**{"strength": 0.02, "floor": 0.0} | section)
    floors = [floor_of(axis, settings.floor, n) for axis, n in zip(axes, floors or [1] * len(axes), strict=True)]
    lasso = GroupLasso(model, axes, method=settings.method)
    cost: Any = ChainCost(WIDTHS, PIXELS)
    return model, axes, StrengthController(lasso, cost, settings, num_steps, floors, strengths)


def run(model, made, num_steps, first=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(first, first + num_steps):
        x = torch.randn(8, WIDTHS[0], generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        made.observe(loss)
        optimizer.step()
        made.step(0.05)


def test_the_subgradient_is_that_of_the_penalty():
    """Against autograd, with weights on two axes, a group at zero, and a gradient that is there already."""
    model, axes = overlapping()
    with torch.no_grad():
        for name in ("0.weight", "1.weight", "1.bias"):
            model.get_parameter(name)[1] = 0
        model.get_parameter("2.weight")[:, 1] = 0
    weights = [np.array([1.0, 1.0, 0.0, 3.0]), np.array([1.0, 0.5, 2.0])]
    lasso = GroupLasso(model, axes, 0.1, weights, method="subgradient")
    model(torch.randn(4, 1, 6, 6)).square().sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    lasso.add_gradient()
    p = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    zero = p["0.weight"].square().sum((1, 2, 3)) + p["1.weight"] ** 2 + p["1.bias"] ** 2
    zero = zero + p["2.weight"].square().sum((0, 2, 3))
    two = p["2.weight"].square().sum((1, 2, 3)) + p["4.weight"].view(2, 3, 4).square().sum((0, 2))
    alive = torch.tensor([0, 2, 3])
    (
        0.1 * zero[alive].sqrt() @ torch.tensor([1.0, 0.0, 3.0]) + 0.1 * two.sqrt() @ torch.tensor([1.0, 0.5, 2.0])
    ).backward()
    for name, parameter in model.named_parameters():
        grad = p[name].grad
        pull = torch.zeros_like(parameter) if grad is None else grad
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, before.get(name, 0) + pull)
    with pytest.raises(ValueError, match="for method"):
        GroupLasso(model, axes).add_gradient()
    with pytest.raises(ValueError, match='method is "proximal" or "subgradient"; got "rmda"'):
        GroupLasso(model, axes, method="rmda")  # type: ignore[arg-type]


def test_below_the_threshold_goes_and_stays_gone():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False))
    positions = np.arange(4)[:, None]
    axes = [Axis("0", "neurons", 4, True, (Member("0.weight", 0, positions), Member("1.weight", 1, positions)))]
    rms = torch.tensor([0.5, 0.02, 0.009, 0.011])
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(rms[:, None].expand(4, 3))
        model.get_parameter("1.weight").copy_(-rms[None])
    lasso = GroupLasso(model, axes, method="subgradient", strength=0.1)
    lasso.zero_below(0.01)
    assert zero_mask(model, axes[0]).tolist() == [False, False, True, False]
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1)
    lasso.step(0.1)
    assert zero_mask(model, axes[0]).tolist() == [False, False, True, False]
    lasso.zero_below(9.0)  # an axis keeps its floor, by default the largest group of all
    assert int(zero_mask(model, axes[0]).sum()) == 3 and not zero_mask(model, axes[0])[0]


def test_a_floor_holds_against_any_strength_and_a_branch_goes():
    model, axes = overlapping()
    model.append(nn.Linear(2, 2, bias=False))
    axes.append(Axis("branch", "layers", 1, True, (Member("5.weight", 0, np.array([[0, 1]])),)))
    largest = [int(norms.argmax()) for norms in GroupLasso(model, axes).norms()[:2]]
    lasso = GroupLasso(model, axes, strength=1e9, floors=[2, 1, 0])
    lasso.step(1.0)
    kept = [~zero_mask(model, axis) for axis in axes]
    assert [int(mask.sum()) for mask in kept] == [2, 1, 0]
    assert kept[0][largest[0]] and kept[1][largest[1]]


@pytest.mark.parametrize("method", ["proximal", "subgradient"])
def test_what_strength_zeroes_goes_is_held_and_counted(method):
    extra = {} if method == "proximal" else {"threshold": 5e-3}
    model, axes, made = controller(150, method=method, **extra)
    run(model, made, 150)
    gone = Selection.zeros(model, axes)
    assert 0 < sum(int(mask.sum()) for mask in gone) < sum(axis.size for axis in axes)
    cost = ChainCost(WIDTHS, PIXELS)
    assert made.fraction == pytest.approx(cost.macs(gone) / cost.macs())
    assert not made.lasso.strength.any() and made.planned is None
    run(model, made, 10, first=150)  # healing
    assert Selection.zeros(model, axes) == gone


def test_resumed_state_goes_on_alike():
    model, _, made = controller(60, method="subgradient", threshold=5e-3)
    run(model, made, 40)
    other_model, _, other = controller(60, method="subgradient", threshold=5e-3)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(made.state_dict())
    for one, same in ((model, made), (other_model, other)):
        run(one, same, 25, first=40)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other_model.parameters(), strict=True))
    assert made.fraction == other.fraction


def test_weights_and_relative_strengths():
    _, _, made = controller(10, strengths=[1.0, 4.0])
    sizes = [3 + 24, 16 + 10]
    np.testing.assert_allclose(
        made.lasso.strength[[0, 16]], [0.02 * sizes[0] ** 0.5, 0.08 * sizes[1] ** 0.5], rtol=1e-6
    )
    _, _, made = controller(10, weights="equal")
    np.testing.assert_allclose(made.lasso.strength[[0, 16]], [0.02, 0.02], rtol=1e-6)


def images():
    torch.manual_seed(0)
    return torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,))


def test_sections_with_other_patterns_and_strengths():
    """Two sections of one kind: each axis has the strength of the section that names it, for a budget as for a λ."""
    torch.manual_seed(0)
    model, (x, _) = DigitsCNN(16, 10), images()
    prune = [
        {"kind": "filters", "include": ["stem*"], "strength": 3.0},
        {"kind": "filters", "exclude": ["stem*"], "strength": 0.5, "min_groups": 5},
    ]
    given = Sparsity(model, (x,), prune=prune, strength=0.01, steps=5)
    names = [axis.name for axis in given.axes]
    assert any(name.startswith("stem") for name in names) and not all(name.startswith("stem") for name in names)
    relative = [3.0 if name.startswith("stem") else 0.5 for name in names]
    lasso = given.controller.lasso
    values = lasso.split(lasso.strength[:-1].numpy()), lasso.split(np.sqrt(lasso.sizes))
    for got, weight, strength in zip(*values, relative, strict=True):
        np.testing.assert_allclose(got, 0.01 * strength * weight, rtol=1e-5)
    assert lasso.floors == [2 if name.startswith("stem") else 5 for name in names]
    ratios = []
    for sections in (prune, [{"kind": "filters", "min_groups": 5}]):
        found = Sparsity(model, (x,), prune=sections, macs=0.5, round_to=1, steps=100)
        for _ in range(8):
            found.observe(2.0)
            found.controller.taken += 1
        parts = found.controller.lasso.split(found.controller.lasso.strength[:-1].numpy())
        ratios.append([float(part.mean()) for part in parts])
    scale = np.array(ratios[0]) / np.array(ratios[1]) / relative
    np.testing.assert_allclose(scale, scale[0], rtol=1e-4)


def test_sparsity_in_a_loop_of_ones_own():
    torch.manual_seed(0)
    model, (x, y) = DigitsCNN(16, 10), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsity = Sparsity(model, (x,), prune=["filters", "layers"], macs=0.5, steps=40, round_to=1)
    for _ in range(45):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        sparsity.observe(loss)
        optimizer.step()
        sparsity.step(0.05)
        if sparsity.controller.taken == 39:
            with pytest.raises(TrainingError, match="the sparse phase is at step 39 of 40"):
                sparsity.repack()
    assert 0.49 <= sparsity.fraction <= 0.5
    small = sparsity.repack().eval()
    torch.testing.assert_close(small(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing says how much may go: give budget.macs, .parameters or .latency"),
        ({"macs": 0.5, "strength": 1e-4}, "budget.macs and lasso.strength: the one finds λ, the other gives it"),
        ({"strength": 0.0}, "lasso.strength: input should be greater than 0; got 0.0"),
        ({"strength": -1e-4}, "lasso.strength: input should be greater than 0; got -0.0001"),
        ({"macs": 0.5, "method": "rmda"}, "lasso.method: input should be 'proximal' or 'subgradient'; got \"rmda\""),
        ({"macs": 0.5, "methd": "proximal"}, "lasso.methd: unknown key; did you mean method?"),
        ({"macs": 0.5, "threshold": 1e-3}, "lasso.threshold: only lasso.strength reads it, and there is none"),
        ({"strength": 1e-3, "threshold": 1e-3}, 'lasso.threshold: only method = "subgradient" has one'),
        ({"strength": 1e-3, "ratio": 0.1}, "lasso.ratio: only a budget reads it, and there is none"),
        ({"macs": 0.5, "prune": [{"kind": "filters", "strength": 0.0}]}, "prune.0.strength: input should be greater"),
        ({"macs": 0.5, "prune": []}, "prune: list should have at least 1 item"),
        ({"macs": 0.5, "prune": "heads"}, 'prune.0.kind: no axis is of kind "heads"; the model has'),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(RecipeError) as error:
        Sparsity(DigitsCNN(4, 10), (images()[0],), steps=10, **{"prune": "filters"} | settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_budget_by_the_subgradient():
    model, axes = chain(WIDTHS)
    lasso = GroupLasso(model, axes, method="subgradient")
    section = LassoSection(method="subgradient", decay=20)
    constraints = Constraints(tuple(axes), tuple(floor_of(axis, 0.1, 1) for axis in axes))
    chain_cost: Any = ChainCost(WIDTHS, PIXELS)
    goal = Goal(chain_cost, constraints, "macs", 0.5)
    made = BudgetController(lasso, goal, section, 80)
    run(model, made, 80)
    assert 0.49 <= made.fraction <= 0.5
    assert Selection.zeros(model, axes) == made.selection
