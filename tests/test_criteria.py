"""What groups are ranked by in training: each criterion by its formula, and in every way a budget is trained to."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslprune
from sslprune.calibration.beta_rank import beta_ranks, made_by, makers_of
from sslprune.calibration.calibrate import state_of
from sslprune.calibration.divergence import Divergence, OfClasses, OfNumbers
from sslprune.calibration.evidence import felt
from sslprune.calibration.samples import collect
from sslprune.errors import CalibrationError, RecipeError, TrainingError
from sslprune.recipe import ChooseSection
from sslprune.train.criteria import CRITERIA, Sight, magnitude, second_order
from sslprune.train.lasso import GroupLasso
from sslprune.values.axes import Axis
from sslprune.values.tasks import Task
from sslprune.values.team import Alone
from sslprune.zoo import digits_cnn
from tests import test_processes as processes
from tests.laws import lively_
from tests.processes import together
from tests.test_cli import RECIPE, mistake
from tests.test_nested import POINTS
from tests.test_train import StopsAfter, recipe, same, trained

OTHERS = [name for name in CRITERIA if name != "first-order"]
FILTERS = {"prune": [{"kind": "filters", "exclude": ["stem*"]}]}


class Read(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


def found(model: nn.Module, x: Tensor, *kinds: str) -> tuple[sslprune.Program, list[Axis]]:
    program = sslprune.trace(model, (x[:2],))
    return program, [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind in kinds]


def test_the_names_of_a_recipe_are_those_of_the_table() -> None:
    assert ChooseSection.model_fields["evidence"].annotation.__args__ == tuple(CRITERIA)  # type: ignore[union-attr]


# --- formulas


def by_windows(out: Tensor, read: Tensor, weight: Tensor, stride: int, groups: int) -> np.ndarray:
    """Beta-Rank as its paper says it, place by place: std of what is made / std of the window, x mean |weight|."""
    size, each = weight.shape[2], weight.shape[0] // groups
    total = torch.zeros(len(weight))
    for o, i, j in itertools.product(range(len(weight)), range(out.shape[2]), range(out.shape[3])):
        first = o // each * weight.shape[1]
        window = read[:, first : first + weight.shape[1], stride * i :, stride * j :][:, :, :size, :size]
        total[o] += out[:, o, i, j].std(correction=0) / window.std(correction=0)
    return (total * weight.abs().flatten(1).mean(1)).numpy()


def shared(ranks: np.ndarray) -> np.ndarray:
    return ranks**2 / (ranks**2).mean()


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_beta_rank_is_that_of_the_paper(stride: int, groups: int) -> None:
    torch.manual_seed(0)
    conv, head = nn.Conv2d(4, 6, 3, stride, 1, groups=groups), nn.Linear(6, 5)
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head, nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(9, 4, 7, 7) * torch.rand(7, 7)
    program, axes = found(model, x, "filters", "neurons")
    with torch.no_grad():
        ranks = by_windows(conv(x), F.pad(x, (1, 1, 1, 1)), conv.weight, stride, groups)
        inner = model[:4](x)
        spread = head(inner).std(0, correction=0) / inner.std(correction=0)
    got = beta_ranks(program, axes, state_of(program, model), [(x,)], makers_of(program))
    by_name = dict(zip([axis.name for axis in axes], got, strict=True))
    neurons = (spread * head.weight.abs().mean(1)).detach().numpy()
    np.testing.assert_allclose(by_name["4"], shared(neurons), rtol=1e-4)
    if "0" in by_name and len(by_name["0"]) == 6:
        np.testing.assert_allclose(by_name["0"], shared(ranks), rtol=1e-4)
    else:
        assert groups == 2  # filters of a grouped convolution go in the numbers that its groups allow


def test_beta_rank_of_heads_and_of_what_several_layers_make() -> None:
    """A head is made by its queries, keys and values, each of them a share of its own layer's mean."""
    torch.manual_seed(0)
    layer = lively_(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True))
    x = torch.randn(6, 5, 8)
    program, axes = found(layer, x, "heads", "neurons")
    makers = makers_of(program)
    assert {axis.kind for axis in axes if made_by(makers, axis)} >= {"neurons"}
    for axis, ranks in zip(axes, beta_ranks(program, axes, state_of(program, layer), [(x,)], makers), strict=True):
        if made_by(makers, axis):
            assert ranks.shape == (axis.size,) and (ranks > 0).all()
            assert ranks.mean() == pytest.approx(1)


def test_a_filter_that_makes_no_spread_or_reads_none_has_rank_zero() -> None:
    torch.manual_seed(0)
    first = nn.Linear(4, 6)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        first.weight[2] = 0  # its bias is left
    program, axes = found(model, torch.randn(8, 4), "neurons")
    for x, gone in ((torch.randn(8, 4), [2]), (torch.zeros(8, 4), range(6))):
        (ranks,) = beta_ranks(program, axes, state_of(program, model), [(x,)], makers_of(program))
        assert np.flatnonzero(ranks == 0).tolist() == list(gone) and np.isfinite(ranks).all()


def test_magnitudes_are_shares_of_an_axis() -> None:
    model = lively_(digits_cnn(8))
    _, axes = found(model, torch.randn(4, 1, 8, 8), "filters")
    lasso = GroupLasso(model, axes)
    for values, norms in zip(lasso.split(magnitude(lasso).double().numpy()), lasso.norms(), strict=True):
        np.testing.assert_allclose(values, norms**2 / (norms**2).mean(), rtol=1e-5)


@pytest.mark.parametrize("task", [None, Task()])
def test_second_order_is_calibrations(task: Task | None) -> None:
    """The Fisher information, of the classes and of the numbers; their geometric mean where there are classes."""
    model, x = lively_(digits_cnn(8)).eval(), torch.randn(40, 1, 8, 8)
    program, axes = found(model, x, "filters")
    state = state_of(program, model)
    pieces = list(collect(program, [(x,)], 40, holds=False).pieces(16))
    assert sum(len(part[0]) for parts in pieces for part in parts) == 40
    kinds: list[Divergence] = [OfNumbers()] if task is None else [OfClasses(task, program.out_specs[0]), OfNumbers()]
    each = [np.concatenate(by) for kind in kinds for by in felt(program, axes, state, pieces, [kind], 7)]
    lasso = GroupLasso(model, axes)
    gradients = [parameter.grad for parameter in model.parameters()]
    got = second_order(lasso, Sight(program, lambda: model, (x,), task), 7)
    np.testing.assert_allclose(got, np.exp(np.mean(np.log(each), axis=0)), rtol=1e-4)
    assert gradients == [parameter.grad for parameter in model.parameters()]


# --- in training


def test_the_least_magnitude_for_its_cost_goes() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(6, 16), nn.Linear(16, 4)
    model = nn.Sequential(first, nn.ReLU(), last)
    with torch.no_grad():
        first.weight[::2] *= 0.2
        last.weight[:, ::2] *= 0.2
    x = torch.randn(32, 6)
    sparsity = sslprune.Sparsity(
        model, (x,), prune="neurons", macs=0.5, steps=40, round_to=1, evidence="magnitude", ratio=0.0
    )
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        sparsity.observe(loss)
        optimizer.step()
        sparsity.step(1e-4)
    assert np.flatnonzero(sparsity.selection[0]).tolist() == list(range(0, 16, 2))


@pytest.mark.parametrize("evidence", OTHERS)
def test_shrinking_and_resuming_change_nothing(evidence: str) -> None:
    """What looks at batches sees the whole model, with the numbers that train in their places."""
    start = lively_(digits_cnn(8).double())
    x, targets = torch.randn(50, 16, 1, 8, 8).double(), torch.randint(10, (50, 16))

    class Loop:
        def __init__(self) -> None:
            self.whole = copy.deepcopy(start)
            self.optimizer = torch.optim.SGD(self.whole.parameters(), lr=0.05, momentum=0.9)
            self.sparsity = sslprune.Sparsity(
                self.whole, (x[0],), prune="filters", macs=0.5, steps=40, round_to=1, evidence=evidence, task=Task()
            )

        def run(self, first: int, last: int, every: int | None) -> None:
            for step in range(first, last):
                if every and step % every == 0:
                    self.sparsity.shrink(self.optimizer)
                self.optimizer.zero_grad()
                loss = F.cross_entropy(self.sparsity.trained(x[step]), targets[step])
                loss.backward()
                self.sparsity.observe(loss, x[step])
                self.optimizer.step()
                self.sparsity.step(0.05)

    plain, shrunk, resumed = Loop(), Loop(), Loop()
    plain.run(0, 50, None)
    shrunk.run(0, 33, 10)
    resumed.whole.load_state_dict(shrunk.sparsity.restore().state_dict())
    resumed.sparsity.load_state_dict(shrunk.sparsity.state_dict(), resumed.optimizer)
    resumed.optimizer.load_state_dict(copy.deepcopy(shrunk.optimizer.state_dict()))
    for loop in (shrunk, resumed):
        loop.run(33, 50, 10)
        assert loop.sparsity.selection == plain.sparsity.selection and 0.49 <= loop.sparsity.fraction <= 0.5
    torch.testing.assert_close(
        resumed.sparsity.restore().state_dict(), shrunk.sparsity.restore().state_dict(), rtol=0, atol=0
    )


@pytest.mark.parametrize("evidence", ["second-order", "beta-rank"])
def test_a_run_that_is_broken_off_ends_the_same(tmp_path: Path, evidence: str) -> None:
    changes = {**FILTERS, "choose": {"evidence": evidence}}
    whole = trained(tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", StopsAfter(2), **changes)
    assert same(whole.masked, trained(tmp_path / "broken", **changes).masked)
    first = trained(tmp_path / "first", **FILTERS)
    assert not same(whole.masked, first.masked)


@pytest.mark.parametrize("evidence", OTHERS)
def test_nested_points_go_by_it_too(tmp_path: Path, evidence: str) -> None:
    files = trained(tmp_path / evidence, **POINTS, **FILTERS, choose={"evidence": evidence})
    costs = [point["cost"] for point in json.loads(files.history.read_text())[-1]["points"].values()]
    assert all(0.95 * fraction <= cost <= fraction for cost, fraction in zip(costs, (0.7, 0.5, 0.35), strict=True)), (
        costs
    )


@pytest.mark.parametrize("evidence", OTHERS)
def test_processes_choose_by_what_all_of_them_see(tmp_path: Path, evidence: str) -> None:
    """Weights are the same on all; of batches each sees its part, and what is chosen is one and the same."""
    values = processes.recipe(prune=[{"kind": "filters"}], choose={"evidence": evidence})
    together(2, processes.trained, values, tmp_path / "more")
    weights, chosen, history = processes.of(tmp_path / "more")
    assert 0.49 <= history[-1]["cost"] <= 0.5 and all(bool(value.isfinite().all()) for value in weights.values())
    if evidence == "magnitude":
        processes.trained(Alone(), values, tmp_path / "1")
        assert processes.of(tmp_path / "1")[1] == chosen


def test_it_goes_on_from_where_calibration_has_ended(tmp_path: Path) -> None:
    trained(
        tmp_path,
        **FILTERS,
        calibrate={"samples": 128, "fraction": 0.8, "candidates": 1},
        choose={"evidence": "second-order"},
        schedule={"dense": "0it", "sparse": "30it", "heal": "5it"},
    )
    history = json.loads((tmp_path / "history.json").read_text())
    assert list(dict.fromkeys(record["phase"] for record in history)) == ["calibrate", "sparse", "heal"]
    assert 0.79 <= history[0]["cost"] <= 0.8 and 0.49 <= history[-1]["cost"] <= 0.5


# --- what is refused


def test_what_nothing_reads_is_refused() -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(RecipeError, match=match):
            recipe(choose={"evidence": "second-order"}, **changes)

    refused("choose.evidence: only a budget reads it", budget={"macs": None}, lasso={"strength": 1e-4})
    refused("choose.evidence: no sparse phase reads it", schedule={"dense": "1it", "sparse": "0it", "heal": "0it"})
    refused("choose.evidence: calibration chooses all that goes", calibrate={})
    refused('run.shard: choose.evidence = "second-order" needs the whole model', run={"shard": True})
    with pytest.raises(RecipeError, match=r"choose.evidence: .*'first-order', 'magnitude'.*; got \"x\"$"):
        recipe(choose={"evidence": "x"})
    assert recipe(choose={"evidence": "magnitude"}).untrained().choose == ChooseSection()
    assert recipe(choose={"evidence": "magnitude"}, run={"shard": True}).run.shard


def test_what_no_filter_makes_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE + '[[prune]]\nkind = "layers"\n[choose]\nevidence = "beta-rank"\n')
    said = mistake("train", tmp_path / "tiny.toml", "--run", tmp_path / "run")
    assert said.startswith('error: choose.evidence: "beta-rank" ranks the filters') and "[layers]" in said
    assert not (tmp_path / "run" / "train").exists()
    with pytest.raises(RecipeError, match=r"none makes .*hidden"):
        sslprune.Sparsity(Read(), (torch.randn(2, 5, 4),), prune="hidden", macs=0.5, steps=9, evidence="beta-rank")


def test_a_loop_that_does_not_tell_batches_is_told() -> None:
    model, x = lively_(digits_cnn(8)), torch.randn(4, 1, 8, 8)
    sparsity = sslprune.Sparsity(model, (x,), prune="filters", macs=0.5, steps=20, evidence="beta-rank")
    loss = model(x).square().mean()
    loss.backward()
    with pytest.raises(TrainingError, match=r"tell them as well: observe\(loss, inputs\)"):
        sparsity.observe(loss)
    with pytest.raises(CalibrationError, match="the model was traced with"):
        sparsity.observe(loss, torch.zeros(4, 3))
    with pytest.raises(RecipeError, match=r"choose\.evidence"):
        sslprune.Sparsity(model, (x,), prune="filters", macs=0.5, steps=20, evidence="gradient")
