"""Calibration: what goes is chosen, and made up for, from samples alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import sslprune
from sslprune.calibration.calibrate import Calibrated, Calibration, state_of
from sslprune.calibration.lockstep import Values, evaluate
from sslprune.calibration.repair import Repair, gone_entries
from sslprune.calibration.rows import Rows, agrees, rows_of
from sslprune.calibration.samples import collect
from sslprune.capture.program import Program
from sslprune.choose.blocks import Goal
from sslprune.choose.constraints import Constraints
from sslprune.cli.app import app
from sslprune.cost.counts import Cost
from sslprune.errors import BudgetError, CalibrationError, DataError
from sslprune.kinds.find import analysis_of
from sslprune.recipe import CalibrateSection
from sslprune.report import Inspection, Report
from sslprune.run.directory import RunDirectory
from sslprune.values.axes import tensors_of
from sslprune.values.selection import Selection
from tests.architectures import ARCHITECTURES, conv_bn
from tests.sized import SIZED
from tests.test_laws import relative


def perceptron(hidden: int = 12, bias: bool = True) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, hidden, bias), nn.ReLU(), nn.Linear(hidden, 5, bias)).eval()


def repaired(
    model: nn.Module, args: tuple[Tensor, ...], batches: Sequence[tuple[Tensor, ...]], selection: dict[str, list[int]]
) -> tuple[Any, Repair]:
    """``model`` without the groups ``selection`` names of each axis, made up for; its zeros still there."""
    program = sslprune.trace(model, args)
    axes = sslprune.find_axes(program)
    gone = [np.isin(np.arange(axis.size), selection.get(axis.name, [])) for axis in axes]
    dense = state_of(program, model)
    entries = gone_entries(dense, Selection.of(axes, gone))
    pruned = {name: t.masked_fill(entries[name], 0) if name in entries else t for name, t in dense.items()}
    repair = Repair(program, dense, pruned, entries, held=1)
    repair.run(batches)
    small = copy.deepcopy(model)
    own = tensors_of(small)
    with torch.no_grad():
        for name in program.aliases:
            own[name].copy_(pruned[name])
    return small, repair


def test_a_duplicated_unit_goes_at_no_loss() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = model[0].weight[7], model[0].bias[7]
    samples = torch.randn(256, 6)
    small, repair = repaired(model, (samples[:2],), [(b,) for b in samples.split(64)], {"0": [3]})
    (layer,) = repair.layers
    assert layer.weight == "2.weight" and layer.before > 1e-3 and layer.after < 1e-6
    assert (small[0].weight[3] == 0).all() and (small[2].weight[:, 3] == 0).all()
    fresh = torch.randn(50, 6)
    torch.testing.assert_close(small(fresh), model(fresh), rtol=1e-3, atol=1e-3)


def test_a_constant_unit_goes_into_the_bias() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].weight[4] = 0
        model[0].bias[4] = 2.0
    samples = torch.randn(256, 6)
    small, _ = repaired(model, (samples[:2],), [(b,) for b in samples.split(64)], {"0": [4]})
    fresh = torch.randn(50, 6)
    torch.testing.assert_close(small(fresh), model(fresh), rtol=1e-3, atol=1e-3)


def test_the_refit_is_the_closed_form() -> None:
    model = perceptron()
    samples = torch.randn(512, 6)
    small, repair = repaired(model, (samples[:2],), [(b,) for b in samples.split(64)], {"0": [0, 5, 6]})
    kept = [i for i in range(12) if i not in (0, 5, 6)]
    fitted = samples[:448]  # the last batch is held out
    rows = torch.cat([F.relu(model[0](fitted))[:, kept], torch.ones(448, 1)], 1).double()
    best = torch.linalg.lstsq(rows, model(fitted).double()).solution
    found = torch.cat([small[2].weight[:, kept], small[2].bias[:, None]], 1).T.double()
    error = lambda w: float((rows @ w - model(fitted)).square().mean().detach())  # noqa: E731
    assert error(found) == pytest.approx(error(best), rel=1e-3)
    assert error(found) < 0.5 * float((small_cut(model, [0, 5, 6])(fitted) - model(fitted)).square().mean().detach())
    assert repair.layers[0].after < repair.layers[0].before


def small_cut(model: Any, units: list[int]) -> Any:
    cut = copy.deepcopy(model)
    with torch.no_grad():
        cut[2].weight[:, units] = 0
    return cut


def test_nothing_changes_where_nothing_goes() -> None:
    model = perceptron()
    samples = torch.randn(256, 6)
    same, repair = repaired(model, (samples[:2],), [(b,) for b in samples.split(64)], {})
    assert not repair.layers
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


class Residual(nn.Module):
    """The second block can make up for what the first one cannot: its target is the dense model's sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = conv_bn(3, 8)
        self.up, self.down = (nn.ModuleList(conv_bn(8, 8) for _ in range(2)) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for up, down in zip(self.up, self.down, strict=True):
            x = F.relu(down(F.relu(up(x))) + x)
        return self.head(x.mean((2, 3)))


def test_a_later_branch_makes_up_for_an_earlier_one() -> None:
    model = Residual().eval()
    for module in model.modules():  # statistics as after training
        if isinstance(module, nn.BatchNorm2d):
            cast(Tensor, module.running_mean).normal_(0, 0.1)
    samples = torch.randn(96, 3, 8, 8)
    batches = [(b,) for b in samples.split(16)]
    names = {axis.name: axis for axis in sslprune.find_axes(sslprune.trace(model, (samples[:2],)))}
    chosen = next(name for name in names if name.startswith("up.0"))
    small, repair = repaired(model, (samples[:2],), batches, {chosen: [0, 1, 2, 3]})
    fitted = [layer.weight for layer in repair.layers]
    assert [name[:6] for name in fitted] == ["down.0", "up.1.0", "down.1", "head.w"]
    assert all(layer.after <= layer.before for layer in repair.layers)
    cut = copy.deepcopy(model)
    sslprune.zero_groups(cut, names[chosen], [0, 1, 2, 3])
    fresh = torch.randn(32, 3, 8, 8)
    error = lambda other: float((other(fresh) - model(fresh)).square().mean())  # noqa: E731
    assert error(small) < 0.3 * error(cut)


ROWS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 4), (3, 2, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=2), (2, 4, 9, 8)),
    "same": (nn.Conv2d(4, 6, (4, 3), padding="same", bias=False), (2, 4, 6, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
    "conv3d": (nn.Conv3d(2, 4, 2, stride=2), (2, 2, 4, 4, 4)),
    "lstm": (nn.LSTM(5, 4, batch_first=True), (2, 6, 5)),
    "lstm, steps first": (nn.LSTM(5, 4, bias=False), (6, 2, 5)),
    "rnn": (nn.RNN(5, 4, batch_first=True), (2, 6, 5)),
    "gru": (nn.GRU(5, 4), (6, 2, 5)),
    "lstm, two layers of two directions": (nn.LSTM(5, 4, 2, bidirectional=True), (6, 2, 5)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5)),
    "transposed2d": (nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 4), dilation=(2, 1), groups=2), (2, 4, 5, 6)),
    "transposed3d": (nn.ConvTranspose3d(2, 4, 2, stride=2), (2, 2, 3, 3, 3)),
}


def rows_in(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[list[Rows], Values, dict[str, Tensor]]:
    """The rows of the one layer of ``module``, what is made before it, and the tensors."""
    program = sslprune.trace(module.eval(), args)
    facts = analysis_of(program).inference.facts
    node = next(n for n in program.evaluation.nodes if n.op == "call_function" and facts[n].contractions)
    state = state_of(program, module)
    inputs = [n for n in program.evaluation.nodes if n.op == "placeholder"]
    values: Values = dict(zip(inputs, program.args, strict=True))
    for other in program.evaluation.nodes:
        if other is node:
            break
        if other.op == "call_function":
            values[other] = evaluate(other, values, state)
    return rows_of(node, facts[node].contractions, state), values, state


@pytest.mark.parametrize("name", ROWS)
def test_rows_times_weights_are_what_a_node_makes(name: str) -> None:
    module, shape = ROWS[name]
    found, values, state = rows_in(module, (torch.randn(shape),))
    assert {weight for rows in found for weight in rows.weights} == {n for n in state if "weight" in n}
    for rows in found:
        assert agrees(rows, rows.made(values, state), values, state)
        tensors = [state[weight] for weight in rows.weights]
        zeros = rows.split(torch.zeros_like(rows.matrix(tensors)), tensors)
        assert any((zero == 0).any() for zero in zeros)
        parts = rows.split(rows.matrix(tensors), zeros)
        assert all(torch.equal(a, b) for a, b in zip(parts, tensors, strict=True))
        wrong = {**state, rows.weights[0]: state[rows.weights[0]] + 1}
        mixed = rows.matrix([wrong[weight] for weight in rows.weights])
        assert not torch.equal(mixed, rows.matrix(tensors))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_a_recurrent_layers_sums_give_its_output(kind: Any, batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = kind(5, 4, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(3, 6, 5)
    found, values, state = rows_in(layer, (x,))
    out = layer(x)[0].detach()
    each = len(found) // 4
    for direction in (0, 1):  # of the last layer
        of = [rows for rows in found if rows.at == 2 + direction]  # type: ignore[attr-defined]
        assert len(of) == each
        sums = []
        for rows in of:
            bias, both = (state[f"bias_{w}_l1{'_reverse' * direction}"] for w in ("ih", "hh"))
            added = bias + both if rows.takes == (0, 1) else (bias, both)[rows.takes[0]]  # type: ignore[attr-defined]
            sums.append(rows.made(values, state) + added[rows.part])
        expected = out[..., 4 * direction : 4 * direction + 4]
        expected = expected.flip(1 if batch_first else 0) if direction else expected
        if kind is nn.RNN:
            made = torch.tanh(sums[0])
        else:  # Cho et al. 2014: r and z, then what r mixes
            r, z = torch.sigmoid(sums[0]).chunk(2, -1)
            steps = 1 if batch_first else 0
            first = torch.zeros_like(expected.narrow(steps, 0, 1))
            before = torch.cat([first, expected.narrow(steps, 0, expected.shape[steps] - 1)], steps)
            made = (1 - z) * torch.tanh(sums[1] + r * sums[2]) + z * before
        torch.testing.assert_close(made, expected)


def calibration(model: nn.Module, args: tuple[Tensor, ...], **fields: object) -> tuple[Program, Calibration, Goal]:
    program = sslprune.trace(model, args)
    axes = tuple(axis for axis in sslprune.find_axes(program) if axis.exact and not axis.frozen)
    goal = Goal(Cost(program, axes), Constraints(axes, tuple(min(2, a.size) for a in axes)), "macs", 0.7)
    torch.manual_seed(1)
    again = [tuple(_like(arg) for arg in args) for _ in range(8)]
    samples = collect(program, again, 64)
    section = CalibrateSection.model_validate({"candidates": 1, **fields})
    return program, Calibration(program, state_of(program, model), samples, section), goal


def _like(arg: Tensor) -> Tensor:
    return torch.randn_like(arg) if arg.is_floating_point() else arg[torch.randperm(len(arg))]


MODELS: dict[str, Any] = {
    **SIZED,
    **{name: ARCHITECTURES[name] for name in ("lenet", "resnet", "transformer") if name in ARCHITECTURES},
}


@pytest.mark.parametrize("name", MODELS)
def test_repair_makes_no_model_worse(name: str) -> None:
    model, args = MODELS[name]()
    program, found, goal = calibration(model.eval(), args)
    try:
        result = found.calibrated(goal)
    except BudgetError:
        pytest.skip("nothing of it costs enough")
    assert result.repaired <= result.cut
    assert goal.of(result.selection) <= goal.limit
    small = copy.deepcopy(model)
    result.load_into(small, program)
    for axis, mask in zip(result.selection.axes, result.selection, strict=True):
        assert sslprune.values.axes.zero_mask(small, axis)[mask].all()


def test_the_same_seed_gives_the_same_weights() -> None:
    model, args = SIZED["fixed_view"]()
    results: list[Calibrated] = []
    for _ in range(2):
        _, found, goal = calibration(model.eval(), args)
        results.append(found.calibrated(goal))
    one, other = results
    assert one.selection == other.selection and one.repaired == other.repaired
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_the_public_function_leaves_its_model_alone() -> None:
    model = perceptron(32).train()
    before = copy.deepcopy(model.state_dict())
    samples = [torch.randn(64, 6) for _ in range(4)]
    small = sslprune.calibrate(model, (samples[0][:2],), samples, prune="neurons", macs=0.5, round_to=1)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert sum(p.numel() for p in small.parameters()) < 0.55 * sum(p.numel() for p in model.parameters())
    fresh = torch.randn(64, 6)
    assert relative(model.eval(), small, (fresh,)) < 1.0


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([torch.randn(8, 7)] * 4, r"float32 \(8, 7\); the model was traced with float32 \(2, 6\)"),
        ([(torch.randn(8, 6), torch.zeros(8, dtype=torch.long))] * 4, "without labels"),
        ([], "samples: 0 came"),
        ([torch.full((8, 6), float("nan"))] * 4, "an input is not finite"),
    ],
)
def test_samples_that_do_not_fit_are_refused(samples: list[object], said: str) -> None:
    with pytest.raises((CalibrationError, DataError), match=said):
        sslprune.calibrate(perceptron(), (torch.randn(2, 6),), samples, prune="neurons", macs=0.5)


def test_a_budget_out_of_reach_is_refused() -> None:
    samples = [torch.randn(32, 6)] * 4
    with pytest.raises(BudgetError, match="cannot be reached"):
        sslprune.calibrate(perceptron(), (torch.randn(2, 6),), samples, prune="neurons", macs=0.01)


def test_values_that_are_not_finite_name_the_layer() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    with pytest.raises(CalibrationError, match=r"0\.weight: what it makes of the samples is not finite"):
        sslprune.calibrate(
            model, (torch.randn(2, 6),), [torch.randn(32, 6)] * 4, prune="neurons", macs=0.5, evidence="magnitude"
        )


RECIPE = """
[model]
factory   = "sslprune.zoo:digits_cnn"
arguments = { width = 16 }

[data]
factory    = "sslprune.data:digits"
mean       = [0.305]
std        = [0.376]
batch_size = 128

[[prune]]
kind = "filters"

[budget]
macs     = 0.6
round_to = 1

[calibrate]
samples    = 256
candidates = 1
"""


def run(folder: Path, *more: str) -> tuple[RunDirectory, Any]:
    path = folder / "small.toml"
    path.write_text(RECIPE, encoding="utf-8")
    result = CliRunner().invoke(app, ["calibrate", str(path), "--run", str(folder / "run"), *more])
    return RunDirectory(folder / "run"), result


def test_the_command_lands_on_the_budget_and_goes_on(tmp_path: Path) -> None:
    directory, result = run(tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "divergence from the dense outputs" in result.stderr
    history = json.loads(directory.history.read_text())
    assert [epoch["phase"] for epoch in history] == ["calibrate"] and 0.59 < history[0]["cost"] <= 0.6
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "small.toml"), "--sensitivity", "64", "--json"])
    directory.sensitivity.write_text(result.stdout, encoding="utf-8")
    for command in ("repack", "export"):
        result = CliRunner().invoke(app, [command, str(directory)])
        assert result.exit_code == 0, result.stderr
    report = Report.load(directory.report)
    assert report.sensitivity is not None and len(report.sensitivity.axes) == 4
    assert "What the outputs feel" in directory.page.read_text(encoding="utf-8")
    assert report.repacked.macs < 0.6 * report.dense.macs and report.equivalence.max_relative < 1e-5
    before = directory.masked.read_bytes()
    directory, result = run(tmp_path, "--resume")
    assert result.exit_code == 0 and directory.masked.read_bytes() == before
    directory, result = run(tmp_path)
    assert result.exit_code == 1 and "go on with --resume" in result.stderr


BARE = """
import torch
from torch.utils.data import DataLoader


def data():
    inputs = torch.randn(192, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(list(inputs[:128]), batch_size=32), DataLoader(list(inputs[128:]), batch_size=32)


def model():
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 24), torch.nn.ReLU(), torch.nn.Linear(24, 24), torch.nn.ReLU(), torch.nn.Linear(24, 5)
    return torch.nn.Sequential(*layers)
"""
BARE_RECIPE = """
[model]
factory = "mine.py:model"

[data]
factory = "mine.py:data"
task    = "distill"

[[prune]]
kind = "neurons"

[budget]
macs     = 0.6
round_to = 1

[calibrate]
samples    = 128
candidates = 1
"""


def test_inputs_without_labels_will_do(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BARE, encoding="utf-8")
    (tmp_path / "bare.toml").write_text(BARE_RECIPE, encoding="utf-8")
    directory = RunDirectory(tmp_path / "run")
    result = CliRunner().invoke(app, ["calibrate", str(tmp_path / "bare.toml"), "--run", str(directory)])
    assert result.exit_code == 0, result.stderr
    (record,) = json.loads(directory.history.read_text())
    assert 0 < record["test"]["difference"] < 100 and 0 < record["loss"] < 1


def test_a_control_of_it_is_told_for_how_long(tmp_path: Path) -> None:
    directory, _ = run(tmp_path)
    assert CliRunner().invoke(app, ["repack", str(directory)]).exit_code == 0
    command = ["control", str(directory), "--from", "scratch"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "the run trained no step" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    result = CliRunner().invoke(app, [*command, "--set", "schedule.heal=2it"])
    assert result.exit_code == 0, result.stderr


def test_training_goes_on_from_it(tmp_path: Path) -> None:
    _, result = run(tmp_path)
    more = ["--set", 'schedule={sparse="4it",heal="1ep"}', "--set", "calibrate.fraction=0.8"]
    place = tmp_path / "more"
    result = CliRunner().invoke(app, ["train", str(tmp_path / "small.toml"), "--run", str(place), *more])
    assert result.exit_code == 0, result.stderr
    history = json.loads(RunDirectory(place).history.read_text())
    assert [epoch["phase"] for epoch in history] == ["calibrate", "sparse", "heal"]
    assert 0.79 < history[0]["cost"] <= 0.8 and 0.59 < history[-1]["cost"] <= 0.6


def test_a_sweep_goes_on_from_point_to_point(tmp_path: Path) -> None:
    directory, result = run(tmp_path, "--set", "budget.macs=[0.8, 0.6]")
    assert result.exit_code == 0, result.stderr
    selections = [json.loads(place.selection.read_text())["axes"] for place in (*directory.points, directory)]
    one, other = ([set(axis["gone"]) for axis in axes.values()] for axes in selections)
    assert all(a <= b for a, b in zip(one, other, strict=True)) and any(one) and one != other


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "calibrate.samples=1"], "calibrate.samples"),
        (["--set", "budget={}", "--set", "lasso.strength=1e-4"], "calibrate: it goes by a budget"),
        (["--set", 'calibrate.evidence="third-order"'], "calibrate.evidence"),
        (["--set", "calibrate.fraction=0.5"], "calibrate.fraction: no sparse phase goes on from it"),
    ],
)
def test_a_mistake_in_the_section_is_one_line(tmp_path: Path, more: list[str], said: str) -> None:
    directory, result = run(tmp_path, *more)
    assert result.exit_code == 1 and said in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not directory.path.exists()


def test_inspect_shows_what_the_outputs_feel(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE, encoding="utf-8")
    result = CliRunner().invoke(app, ["inspect", str(path), "--sensitivity", "64", "--json"])
    assert result.exit_code == 0, result.stderr
    found = Inspection.model_validate_json(result.stdout).sensitivity
    assert found is not None and found.samples == 64 and found.measure == "macs"
    assert {axis.name for axis in found.axes} == {"stem", "block1.conv1", "down", "block2.conv1"}
    assert all(axis.gone == [axis.size // 4, axis.size // 2, 3 * axis.size // 4] for axis in found.axes)
    assert all(axis.divergence[0] < axis.divergence[-1] for axis in found.axes)
    assert [point.fraction for point in found.budgets][:3] == [0.9, 0.8, 0.7]
    assert all(point.repaired <= point.cut for point in found.budgets)
    assert all(point.cut > 0 and point.metrics.keys() == found.dense.keys() for point in found.budgets)
    shown = CliRunner().invoke(app, ["inspect", str(path), "--sensitivity", "64"])
    assert shown.exit_code == 0 and "what the outputs feel, on 64 samples" in shown.stdout
    result = CliRunner().invoke(app, ["inspect", str(path), "--sensitivity", "64", "--set", "budget={latency=0.5}"])
    assert result.exit_code == 1 and "--sensitivity: it goes by budget.macs or budget.parameters" in result.stderr
