"""The proximal step does what its formula says, whatever the layout of the groups."""

import numpy as np
import pytest
import torch
from torch import nn

from sslprune.train.lasso import GroupLasso
from sslprune.values.axes import Axis, Member, zero_mask


def member(name: str, dim: int, positions, zeroed: bool = True) -> Member:
    positions = np.asarray(positions)
    return Member(name, dim, positions if positions.ndim == 2 else positions[:, None], zeroed)


def axis(name: str, size: int, *members: Member, kind: str = "filters") -> Axis:
    return Axis(name, kind, size, True, members)


def chain() -> tuple[nn.Sequential, list[Axis]]:
    """Convolution, norm, convolution, linear over 2 x 2 pixels: two axes that overlap in the second convolution."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 3, 3, bias=False),
        nn.Flatten(),
        nn.Linear(12, 2),
    )
    four, three = np.arange(4), np.arange(3)
    return model, [
        axis(
            "0",
            4,
            member("0.weight", 0, four),
            member("1.weight", 0, four),
            member("1.bias", 0, four),
            member("1.running_mean", 0, four, zeroed=False),
            member("2.weight", 1, four),
        ),
        axis("2", 3, member("2.weight", 0, three), member("4.weight", 1, three[:, None] * 4 + np.arange(4))),
    ]


def expected_norms(model: nn.Sequential) -> list[np.ndarray]:
    p = dict(model.named_parameters())
    zero = p["0.weight"].square().sum((1, 2, 3)) + p["1.weight"] ** 2 + p["1.bias"] ** 2
    zero = zero + p["2.weight"].square().sum((0, 2, 3))
    two = p["2.weight"].square().sum((1, 2, 3)) + p["4.weight"].view(2, 3, 4).square().sum((0, 2))
    return [zero.detach().sqrt().numpy(), two.detach().sqrt().numpy()]


def test_norms_sizes_and_penalty():
    model, axes = chain()
    lasso = GroupLasso(model, axes, strength=0.5)
    expected = expected_norms(model)
    for got, want in zip(lasso.norms(), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_array_equal(lasso.sizes, [9 + 2 + 27] * 4 + [36 + 8] * 3)
    penalty = 0.5 * (np.sqrt(38) * expected[0].sum() + np.sqrt(44) * expected[1].sum())
    assert float(lasso.penalty()) == pytest.approx(penalty, rel=1e-5)


def test_all_groups_may_be_gone():
    """As when every block of a network is taken out while it trains: what is left has no group."""
    model, axes = chain()
    lasso = GroupLasso(model, axes, strength=0.5)
    lasso.follow(nn.Linear(2, 2))
    lasso.step(0.1)
    assert float(lasso.penalty()) == 0 and not np.concatenate(lasso.norms()).any()


def test_step_follows_the_formula():
    model, axes = chain()
    weights = [np.array([0.0, 1.0, 2.0, 1e4]), np.array([1.0, 0.0, 3.0])]
    lasso = GroupLasso(model, axes, strength=0.1, weights=weights)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    zero, two = (
        torch.from_numpy(np.maximum(0, 1 - 0.2 * 0.1 * weight / norm)).float()
        for weight, norm in zip(weights, expected_norms(model), strict=True)
    )
    lasso.step(0.2)
    after = model.state_dict()
    torch.testing.assert_close(after["0.weight"], before["0.weight"] * zero[:, None, None, None])
    torch.testing.assert_close(after["1.bias"], before["1.bias"] * zero)
    torch.testing.assert_close(after["2.weight"], before["2.weight"] * two[:, None, None, None] * zero[:, None, None])
    torch.testing.assert_close(after["4.weight"], before["4.weight"] * two.repeat_interleave(4))
    assert torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert torch.equal(after["4.bias"], before["4.bias"])
    np.testing.assert_array_equal(zero_mask(model, axes[0]), [False, False, False, True])


def test_zeros_are_held_against_momentum():
    model, axes = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    lasso = GroupLasso(model, axes, strength=1e9, weights=[np.array([0, 1, 0, 0]), np.zeros(3)])
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 6, 6)).square().sum().backward()
        optimizer.step()
        lasso.step(0.1)
        lasso.set_strength([np.zeros(4), np.zeros(3)])
        np.testing.assert_array_equal(zero_mask(model, axes[0]), [False, True, False, False])
    assert float(lasso.penalty()) == 0


def test_decay_takes_exactly_its_steps():
    model, axes = chain()
    lasso = GroupLasso(model, axes, strength=0)
    before = lasso.norms()[0]
    lasso.decay(np.array([2, 5]), 4)  # group 2 of the first axis, group 1 of the second
    seen = []
    for _ in range(4):
        lasso.step(0.1)
        seen.append(float(dict(model.named_parameters())["1.weight"].detach()[2]))
    np.testing.assert_allclose(seen, [0.75, 0.5, 0.25, 0.0], rtol=1e-6)
    assert zero_mask(model, axes[0]).tolist() == [False, False, True, False]
    assert zero_mask(model, axes[1]).tolist() == [False, True, False]
    assert lasso.norms()[0][0] < before[0]  # its column of the second convolution lost a filter


def test_branches_and_shared_names():
    """A branch is one group over whole tensors, beside an axis of the same tensor; two names of a tensor count once."""
    model = nn.Module()
    model.a, model.b = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
    model.b.weight = model.a.weight
    nn.init.ones_(model.a.weight)
    three = np.arange(3)
    axes = [
        axis("rows", 3, member("a.weight", 0, three), member("b.weight", 0, three)),
        axis("branch", 1, member("a.weight", 0, [[0, 1, 2]]), kind="layers"),
    ]
    lasso = GroupLasso(model, axes, strength=0)
    np.testing.assert_allclose(lasso.norms()[0], [2**0.5] * 3)
    np.testing.assert_allclose(lasso.norms()[1], [6**0.5])
    lasso.decay(np.array([0]), 1)
    lasso.decay(np.array([3]), 2)
    lasso.step(1.0)
    np.testing.assert_allclose(model.a.weight.detach()[:, 0], [0, 0.5, 0.5])


def test_parts_of_a_dimension():
    """Two axes that share one dimension, as a concatenation makes them."""
    model = nn.Linear(5, 1, bias=False)
    nn.init.ones_(model.weight)
    axes = [
        axis("left", 2, member("weight", 1, [0, 1])),
        axis("right", 2, member("weight", 1, [[2, 3], [4, 4]])),
    ]
    lasso = GroupLasso(model, axes[:1], strength=0)
    lasso.decay(np.array([1]), 1)
    lasso.step(1.0)
    assert model.weight.detach().tolist() == [[1, 0, 1, 1, 1]]


def test_sensitivities_are_the_effect_of_a_gate():
    model, axes = chain()
    lasso = GroupLasso(model, axes)
    x = torch.randn(4, 1, 6, 6)
    model(x).square().mean().backward()
    got = lasso.split(lasso.sensitivities().double().numpy())
    products = {name: p.detach() * p.grad for name, p in model.named_parameters() if p.grad is not None}
    both = products["2.weight"].sum((1, 2, 3)) + products["4.weight"].view(2, 3, 4).sum((0, 2))
    np.testing.assert_allclose(got[1], both.square().numpy(), rtol=1e-4)


def test_state_goes_on():
    model, axes = chain()
    lasso = GroupLasso(model, axes, strength=0.3)
    lasso.decay(np.array([1]), 5)
    lasso.step(0.1)
    copy = GroupLasso(model, axes, strength=9.0)
    copy.load_state_dict(lasso.state_dict())
    for name, value in lasso.state_dict().items():
        assert torch.equal(copy.state_dict()[name], value)
    with pytest.raises(ValueError, match="7 groups; the axes have 4"):
        GroupLasso(model, axes[:1]).load_state_dict(lasso.state_dict())


def test_mistakes():
    model, axes = chain()
    frozen = Axis("x", "filters", 1, False, (), "input", frozen=True)
    with pytest.raises(ValueError, match="frozen"):
        GroupLasso(model, [frozen])
    assert GroupLasso(model, [frozen, *axes]).axes == tuple(axes)
    with pytest.raises(ValueError, match="at least one axis"):
        GroupLasso(model, [])
    with pytest.raises(ValueError, match="strength"):
        GroupLasso(model, axes, strength=-1.0)
