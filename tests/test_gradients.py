"""What its owner lets no gradient reach is left as it is, said, and stays so in the repacked model."""

from __future__ import annotations

import copy
import json
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sslprune
from sslprune.capture.program import operator_name
from sslprune.values.axes import tensors_of
from sslprune.values.compare import difference
from tests.laws import kept_indices, kept_slice, lively_
from tests.test_cli import RECIPE, invoke


class Frozen(nn.Module):
    """A body without gradients, in the way that ``how`` says, and a head that trains."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.one, self.norm, self.two = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 10)
        self.head, self.out = nn.Linear(10, 14), nn.Linear(14, 3)

    def body(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.norm(self.one(x))))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                h = self.body(x)
        elif self.how == "decorated":
            h = torch.no_grad()(self.body)(x)
        elif self.how == "set":
            torch.set_grad_enabled(False)
            h = self.body(x)
            torch.set_grad_enabled(True)
        else:
            h = self.body(x).detach()
        return self.out(F.relu(self.head(h)))


class Within(nn.Module):
    """Gradients on, within a region where they are off: its weight trains, and what comes before it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.out = (
            nn.Linear(6, 12),
            nn.Linear(12, 12),
            nn.Linear(12, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = F.relu(self.one(x))
            with torch.enable_grad():
                h = h + F.relu(self.two(h))
        return self.out(F.relu(self.three(h)))


class Both(nn.Module):
    """A layer that is read with gradients and without: it trains, by one of its two ways alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.gate, self.out = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.one(x))
        with torch.no_grad():
            scale = self.gate(h).sigmoid() + h
        return self.out(h * scale)


MODELS = {how: lambda how=how: Frozen(how) for how in ("no_grad", "decorated", "set", "detach")} | {
    "within": Within, "both": Both,
}  # fmt: skip
STAYS = {"within": {"one"}, "both": {"gate"}}


@pytest.mark.parametrize("name", MODELS)
def test_what_no_gradient_reaches_stays_and_is_said(name: str) -> None:
    torch.manual_seed(0)
    model, x = lively_(MODELS[name]()).eval(), torch.randn(8, 6)
    stays = STAYS.get(name, {"one", "norm", "two"})
    own = [n for n, _ in model.named_parameters() if n.partition(".")[0] in stays]
    program = sslprune.trace(model, (x,))
    assert program.training is not None
    assert program.untrained == set(own) and not any(map(program.is_trained, own))
    (note,) = program.notes
    assert note.startswith("no gradient reaches ") and own[0] in note and note.endswith("does not train is not zeroed")
    axes = sslprune.find_axes(program)
    assert not any(member.zeroed for axis in axes for member in axis.members if member.name in own)
    before = {n: model.get_parameter(n).detach().clone() for n in own}
    exact = [axis for axis in axes if axis.exact and axis.kind != "layers"]
    assert exact
    for axis in exact:
        sslprune.zero_groups(model, axis, range(axis.size // 2))
    assert all(torch.equal(before[n], model.get_parameter(n)) for n in own)
    small = sslprune.repack(model, program, exact)
    assert difference(model(x), small.eval()(x))[1] < 1e-5
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    results = []
    for trained in (copy.deepcopy(model).train(), small.train()):
        trained(x).square().sum().backward()
        results.append({n: p.grad for n, p in trained.named_parameters()})
    whole, left = results
    assert {n for n, grad in whole.items() if grad is None} == set(own)
    scale = max(float(grad.abs().max()) for grad in whole.values() if grad is not None)
    for n, grad in left.items():
        assert (grad is None) == (n in own), n
        full = whole[n]
        if grad is not None and full is not None:
            kept = kept_slice(full, kept_indices(model, exact, n))
            torch.testing.assert_close(grad, kept, rtol=1e-3, atol=1e-5 * scale)


def test_a_step_leaves_the_repacked_body_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = lively_(Frozen("no_grad")), torch.randn(8, 6)
    small = sslprune.repack(model.eval(), sslprune.trace(model, (x,)), []).train()
    before = {n: t.clone() for n, t in tensors_of(small).items()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1, weight_decay=0.1)
    small(x).square().sum().backward()
    optimizer.step()
    changed = {n for n, t in tensors_of(small).items() if not torch.equal(t, before[n])}
    parameters = {n for n, _ in small.named_parameters()}
    assert changed & parameters == {"head.weight", "head.bias", "out.weight", "out.bias"}
    assert changed - parameters >= {"norm.running_mean", "norm.running_var"}


def test_a_model_that_trains_whole_is_traced_without_another_thought() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4)
    program = sslprune.trace(model, (x,))
    assert program.untrained == frozenset() and program.notes == ()
    assert not any(operator_name(node) == "detach" for graph in program.graphs for node in graph.nodes)


class Tied(nn.Module):
    """One weight by two names, read with gradients and without."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.one(x)
        return self.out(F.relu(self.two(h)))


def test_a_weight_of_two_names_trains_if_one_of_them_does() -> None:
    program = sslprune.trace(Tied(), (torch.randn(2, 6),))
    assert program.untrained == {"one.bias"}


class Recomputes(nn.Module):
    """A body that runs without gradients first, and again when they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda y: F.relu(self.two(y)), F.relu(self.one(x)), use_reentrant=True)
        return self.out(h)


def test_what_is_recomputed_trains() -> None:
    torch.manual_seed(0)
    model, x = lively_(Recomputes()).eval(), torch.randn(4, 6)
    program = sslprune.trace(model, (x,))
    assert program.untrained == frozenset() and program.notes == () and program.training is not None
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    assert {axis.name for axis in axes} == {"one", "two"}
    assert all(p.grad is None for p in model.parameters())
    small = sslprune.repack(model, program, axes).train()
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_inspect_says_how_many_do_not_train_and_that_they_count(tmp_path: Path) -> None:
    (tmp_path / "frozen.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "frozen.toml").write_text(RECIPE.replace("sslprune.zoo:digits_cnn", f"{tmp_path}/frozen.py:Frozen"))
    text = " ".join(invoke("inspect", tmp_path / "frozen.toml").stdout.split())
    assert "982 parameters (432 of them do not train, and count in a budget)" in text
    assert "no gradient reaches filters.weight, filters.bias: what does not train" in text
    found = json.loads(invoke("inspect", tmp_path / "frozen.toml", "--json").stdout)
    assert (found["parameters"], found["untrained"]) == (982, 432)


CODE = """
    import torch
    from torch import nn
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters, self.fixed = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 1)
            for p in self.fixed.parameters():
                p.requires_grad_(False)
            self.one, self.out = nn.Linear(16, 20), nn.Linear(20, 10)
        def forward(self, x):
            with torch.no_grad():
                h = self.fixed(self.filters(x)).relu()
            return self.out(self.one(h.mean((2, 3))).relu())
    """
