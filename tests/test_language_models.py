"""Language models through the commands: carried state, any batch and length afterwards, and the controls."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import sslprune
from sslprune.cli import app
from sslprune.recipe import load_recipe
from sslprune.report import Report
from sslprune.run.directory import RunDirectory
from sslprune.values.carry import carrying

RECIPE = """
[model]
factory = "sslprune.zoo:lstm_lm"
arguments = { vocabulary = 13, hidden = 10, dropout = 0.2 }
[data]
task = "language-modelling"
train = "train.txt"
valid = "test.txt"
test = "test.txt"
batch_size = 4
steps = 5
[[prune]]
kind = "hidden"
[[prune]]
kind = "width"
[budget]
parameters = 0.6
round_to = 1
[schedule]
dense = "1ep"
sparse = "30it"
heal = "7it"
[lasso]
decay = 8
[train]
lr = 0.5
momentum = 0.0
loss_factor = 5.0
clip_norm = 5.0
[bench]
threads = [1]
"""


def words(lines: int, seed: int) -> str:
    """Sentences in which each word says which three may follow it."""
    generator = torch.Generator().manual_seed(seed)
    text = []
    for _ in range(lines):
        word, sentence = 0, []
        for _ in range(int(torch.randint(2, 9, (1,), generator=generator))):
            word = (3 * word + int(torch.randint(3, (1,), generator=generator))) % 12
            sentence.append(f"w{word}")
        text.append(" ".join(sentence) + "\n")
    return "".join(text)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("text")
    (folder / "tiny.toml").write_text(RECIPE)
    (folder / "train.txt").write_text(words(80, 0))
    (folder / "test.txt").write_text(words(12, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
        patch.setattr("sslprune.bench.timing.ENOUGH", 0.01)
        result = invoke("run", folder / "tiny.toml", "--run", folder / "run", "--json")
    assert result.exit_code == 0, result.output
    return RunDirectory(folder / "run")


def test_the_road(run: RunDirectory) -> None:
    report = Report.load(run.report)
    assert 0.58 < report.budget.reached <= 0.6
    assert report.equivalence.max_relative < 1e-4
    assert report.repacked.metrics["perplexity"] == pytest.approx(report.equivalence.metrics["perplexity"], rel=1e-5)
    history = json.loads(run.history.read_text())
    assert all("valid" in record and "test" not in record for record in history)
    # the same text: what the last epoch says of it is what the report says
    assert history[-1]["valid"]["perplexity"] == pytest.approx(report.repacked.metrics["perplexity"], rel=1e-5)
    assert {axis.name: axis.kind for axis in report.axes} == {
        "embedding": "width",
        "layers.0": "hidden",
        "layers.1": "hidden",
    }


def test_predict_goes_on(run: RunDirectory) -> None:
    result = invoke("predict", run.path, "w0 w1 w5", "--json")
    assert result.exit_code == 0, result.output
    [answer] = json.loads(result.stdout)
    words = json.loads((run.repacked_dir / "tokenizer" / "vocabulary.json").read_text())
    small = sslprune.load(run.path)
    ids = torch.tensor([[words.index(word) for word in ("<eos>", "w0", "w1", "w5")]])
    with torch.no_grad():
        shares = small(ids, small.initial_state(1))[0][0, -1].softmax(0)  # type: ignore[operator]
    told = answer["repacked"]["next_words"]
    assert list(told) == [words[i] for i in shares.topk(5).indices]
    assert list(told.values()) == pytest.approx(shares.topk(5).values.tolist(), abs=1e-5)
    shown = invoke("predict", run.path, "w0 w1").stdout
    assert "dense" in shown and "repacked" in shown and " ms" in shown
    unknown = invoke("predict", run.path, "w0 nonsense")
    assert unknown.exit_code == 1 and '"nonsense" is not among' in unknown.output.replace("\n", " ")


def test_the_onnx_file_has_one_operator_a_layer_and_names_its_state(run: RunDirectory) -> None:
    graph = onnx.load(run.onnx).graph
    widths = {axis.name: axis.after for axis in Report.load(run.report).axes}
    layers = [node for node in graph.node if node.op_type == "LSTM"]
    sizes = [attribute.i for node in layers for attribute in node.attribute if attribute.name == "hidden_size"]
    assert sizes == [widths["layers.0"], widths["layers.1"]]
    assert not [node for node in graph.node if node.op_type in ("Loop", "Scan", "If")]
    inputs = [node.name for node in graph.input]
    assert inputs == ["tokens", "state_0", "state_1", "state_2", "state_3"]
    assert [node.name for node in graph.output] == ["output", *(f"next_{name}" for name in inputs[1:])]


FRESH = """
import sys, torch
folder, = sys.argv[1:]
module = torch.export.load(folder + "/repacked/model.pt2").module()
for case in torch.load(folder + "/cases.pt", weights_only=True):
    tokens, state, expected = case["tokens"], case["state"], case["expected"]
    pairs = [(state[0], state[1]), (state[2], state[3])]
    torch.testing.assert_close(module(tokens, tuple(pairs))[0], expected, atol=1e-5, rtol=1e-5)
assert "sslprune" not in sys.modules
"""
FRESH_ONNX = """
import sys, numpy, onnxruntime
folder, = sys.argv[1:]
session = onnxruntime.InferenceSession(folder + "/export/model.onnx")
for i in range(3):
    case = numpy.load(f"{folder}/case{i}.npz")
    found = session.run(["output"], {name: case[name] for name in case.files if name != "expected"})[0]
    numpy.testing.assert_allclose(found, case["expected"], atol=1e-4)
assert "torch" not in sys.modules and "sslprune" not in sys.modules
"""


def test_any_batch_and_length_in_a_fresh_process(run: RunDirectory) -> None:
    import numpy as np

    small = sslprune.load(run.path)
    step = carrying(small)
    cases = []
    for i, (rows, length) in enumerate([(1, 1), (3, 17), (4, 2)]):
        tokens = torch.randint(13, (rows, length), generator=torch.Generator().manual_seed(i))
        with torch.no_grad():
            step(tokens)
            state = [leaf for pair in step.state for leaf in pair]  # type: ignore[attr-defined]
            expected = step(tokens)
        assert expected.shape == (rows, length, 13) and len(state[0]) == rows
        cases.append({"tokens": tokens, "state": state, "expected": expected})
        named = {f"state_{k}": leaf.numpy() for k, leaf in enumerate(state)}
        np.savez(run.path / f"case{i}.npz", tokens=tokens.numpy(), expected=expected.numpy(), **named)
    torch.save(cases, run.path / "cases.pt")
    for code in (FRESH, FRESH_ONNX):
        subprocess.run([sys.executable, "-c", code, str(run.path)], check=True, cwd=run.path)


def test_masked_and_repacked_carry_alike(run: RunDirectory) -> None:
    from sslprune.models.build import load_trained

    masked, small = load_trained(run.recipe().model, run.masked), sslprune.load(run.path)
    one, other = carrying(masked), carrying(small)
    with torch.no_grad():
        for length in (5, 11, 1, 8):
            tokens = torch.randint(13, (2, length), generator=torch.Generator().manual_seed(length))
            torch.testing.assert_close(one(tokens), other(tokens), atol=1e-5, rtol=1e-5)


def test_a_resumed_run_is_the_same(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslprune.train.loop import Trainer

    folder, epoch = run.path.parent, Trainer.epoch

    def stops(self: Trainer, which: Any) -> Any:
        if which.number == 2:
            raise KeyboardInterrupt
        return epoch(self, which)

    command = ("train", folder / "tiny.toml", "--run", tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "epoch", stops)
        assert invoke(*command).exit_code == 130
    assert invoke(*command, "--resume").exit_code == 0
    again = RunDirectory(tmp_path / "again")
    for one, other in ((run.masked, again.masked), (run.initial, again.initial)):
        a, b = load_file(one), load_file(other)
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_mistakes(run: RunDirectory, tmp_path: Path) -> None:
    folder = run.path.parent
    recipe = folder / "tiny.toml"
    result = invoke("run", recipe, "--run", tmp_path / "a", "--set", "model.arguments.vocabulary=9")
    assert result.exit_code == 1
    assert "; set model.arguments.vocabulary = 13" in result.stderr.splitlines()[-1]
    result = invoke("inspect", recipe, "--set", "model.arguments.vocabulary=9")
    assert result.exit_code == 1 and "13 words" in result.stderr
    result = invoke("run", recipe, "--run", tmp_path / "a", "--set", "data.batch_size=4000")
    assert result.exit_code == 1 and "parallel streams" in result.stderr
    assert not (tmp_path / "a").exists()


def test_an_unrolled_network_has_one_length(run: RunDirectory, tmp_path: Path) -> None:
    recipe = run.path.parent / "tiny.toml"
    changes = [
        "model.factory=sslprune.zoo:rhn_lm", "model.arguments.depth=2", "budget.parameters=0.8", "prune.0.kind=hidden",
    ]  # fmt: skip
    sets = [part for change in changes for part in ("--set", change)]
    result = invoke("inspect", recipe, *sets)
    assert result.exit_code == 1 and "data.fixed_length = true" in result.stderr, result.output
    result = invoke("inspect", recipe, *sets, "--set", "data.fixed_length=true", "--json")
    assert result.exit_code == 0, result.output
    kinds = {axis["kind"] for axis in json.loads(result.stdout)["axes"] if axis["exact"]}
    assert kinds, result.stdout


@pytest.mark.parametrize("name", ["dense", "scratch", "ticket"])
def test_controls_stand_in_the_report(run: RunDirectory, name: str) -> None:
    result = invoke("control", run.path, "--from", name, "--json")
    assert result.exit_code == 0, result.output
    found, report = json.loads(result.stdout), Report.load(run.report)
    size = report.dense if name == "dense" else report.repacked
    assert (found["parameters"], found["macs"]) == (size.parameters, size.macs)
    assert found["metrics"]["perplexity"] > 1
    assert [control.name for control in report.controls if control.name == name] == [name]
    files = run.control(name)  # type: ignore[arg-type]
    history = json.loads(files.history.read_text())
    steps = 30 + 7
    assert sum(record["phase"] == "heal" for record in history) == -(-steps // (len(history) and epoch_steps(run)))
    assert ("dense" in {record["phase"] for record in history}) == (name != "dense")
    weights = load_file(files.masked)
    assert sum(value.numel() for value in weights.values()) == found["parameters"]


def epoch_steps(run: RunDirectory) -> int:
    from sslprune.data import build_data

    return len(build_data(run.recipe()).train)


def test_a_ticket_begins_with_the_runs_own_weights(run: RunDirectory, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    for name, same in (("ticket", True), ("scratch", False)):
        few = ("--set", "schedule.dense=0ep", "--set", "schedule.sparse=0it", "--set", "schedule.heal=1it")
        result = invoke("control", copy, "--from", name, *few, "--set", "train.lr=1e-20", "--force")
        assert result.exit_code == 0, result.output
        began = load_file(RunDirectory(copy).control(name).masked)  # type: ignore[arg-type]
        tensors = json.loads(run.plan.read_text())["tensors"]
        name = next(name for name, change in tensors.items() if len(change["after"]) == 2)
        first = load_file(run.initial)[name]
        for dim, kept in tensors[name]["kept"].items():
            first = first.index_select(int(dim), torch.tensor(kept))
        assert torch.allclose(began[name], first, atol=1e-6) == same
    RunDirectory(copy).initial.unlink()
    result = invoke("control", copy, "--from", "ticket", "--force")
    assert result.exit_code == 1 and "did not keep the weights" in result.stderr
    assert invoke("control", copy, "--from", "nothing").exit_code == 2
    RunDirectory(copy).clear("repack")
    assert not RunDirectory(copy).control_results, "controls of another repack are gone"


def test_the_shipped_recipe_is_valid_in_all_sizes() -> None:
    path = Path(__file__).parent.parent / "recipes" / "lstm-ptb.toml"
    for size in ("small", "medium", "large"):
        recipe = load_recipe(path, [f"model.arguments.size={size}"])
        assert recipe.model.arguments["size"] == size
