"""Which of a model's outputs is trained and judged, and what is checked before anything trains."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sslprune
from sslprune.errors import DataError, ExportError
from sslprune.export.session import knows_opset
from sslprune.values.outputs import logits_of, output_names
from sslprune.values.task_table import task_of
from tests.test_cli import RECIPE, invoke, mistake

ONE, OTHER, IDS = torch.ones(2, 3), torch.zeros(2, 4), torch.tensor([1, 2])
Pair = namedtuple("Pair", ["scores", "boxes"])


@dataclass
class Named:
    logits: Tensor
    loss: Tensor


@dataclass
class Own:
    scores: Tensor


@pytest.mark.parametrize(
    ("outputs", "output"),
    [
        (ONE, None),
        (ONE, 1),  # in training one of two, in evaluation the only one
        (ONE, "aux"),
        ((ONE, IDS), None),  # one floating tensor
        ([None, {"x": ONE}], None),
        ({"loss": OTHER.mean(), "logits": ONE}, None),
        (Named(ONE, OTHER.mean()), None),
        ((OTHER, ONE), 1),
        ((OTHER, ONE), "output_1"),
        (Pair(OTHER, ONE), "boxes"),
        ({"logits": OTHER, "aux": ONE}, "aux"),
    ],
)
def test_the_output_that_is_meant(outputs: Any, output: str | int | None) -> None:
    assert logits_of(outputs, output) is ONE
    assert task_of("classification", output=output).logits(outputs) is ONE


@pytest.mark.parametrize(
    ("outputs", "output", "said"),
    [
        ((ONE, OTHER), None, r"several outputs: output_0 \(2, 3\), output_1 \(2, 4\); .* data.output = \"output_0\""),
        (Pair(ONE, OTHER), None, r"several outputs: scores \(2, 3\), boxes \(2, 4\); .* data.output = \"scores\""),
        ({"out": ONE, "aux": OTHER}, None, r"out \(2, 3\), aux \(2, 4\)"),
        ((IDS, IDS), None, "several outputs"),
        ((ONE, OTHER), 2, r"data.output: 2 is none of the model's outputs, which are output_0 \(2, 3\), output_1"),
        ((ONE, OTHER), -1, "data.output: -1 is none"),
        (Pair(ONE, OTHER), "boxs", "data.output: 'boxs' is none of the model's outputs, which are scores"),
        (Own(ONE), None, "the model returns Own; expected a tensor, .* torch.export.register_dataclass"),
        (None, None, "the model returns NoneType"),
    ],
)
def test_outputs_among_which_nobody_chose(outputs: Any, output: str | int | None, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        logits_of(outputs, output)
    assert "\n" not in str(caught.value)


def test_names_of_outputs() -> None:
    assert output_names(ONE) == ["output"]
    assert output_names({"logits": ONE, "more": (ONE, None, ONE)}) == ["logits", "more_0", "more_2"]
    assert output_names(Pair(ONE, OTHER)) == ["scores", "boxes"]


MODELS = """
    import torch.nn as nn, torch.nn.functional as F
    class Auxiliary(nn.Module):
        def __init__(self, always=False):
            super().__init__()
            self.always = always
            self.one, self.two = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3)
            self.aux, self.head = nn.Linear(16, 4), nn.Linear(32, 10)
        def forward(self, x):
            h = F.relu(self.one(x))
            boxes, logits = self.aux(h.mean((2, 3))), self.head(F.relu(self.two(h)).mean((2, 3)))
            return (boxes, logits) if self.always or self.training else logits
    """


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
    monkeypatch.setattr("sslprune.bench.timing.ENOUGH", 0.01)
    (tmp_path / "models.py").write_text(textwrap.dedent(MODELS))
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.replace("sslprune.zoo:digits_cnn", "models.py:Auxiliary"))
    return path


def test_a_run_asks_which_output_and_trains_that(recipe: Path, tmp_path: Path) -> None:
    said = mistake("run", recipe, "--run", "run")
    assert (
        "in evaluation it gives output (2, 10); in training the model gives several outputs: output_0 (2, 4)," in said
    )
    assert "data.output" in said and not (tmp_path / "run").exists()
    result = invoke("run", recipe, "--run", "run", "--set", "data.output=1")
    assert result.exit_code == 0, result.output
    before, after = (load_file(tmp_path / "run" / "train" / f"{name}.safetensors") for name in ("dense", "masked"))
    assert torch.equal(before["aux.bias"], after["aux.bias"])  # nothing learned from what was not chosen
    assert not torch.equal(before["head.bias"], after["head.bias"])
    small = sslprune.load(tmp_path / "run")
    assert torch.is_tensor(small(torch.randn(3, 1, 8, 8)))


def test_several_outputs_in_both_modes(recipe: Path, tmp_path: Path) -> None:
    always = ["--set", "model.arguments.always=true"]
    said = mistake("train", recipe, "--run", "run", *always)
    assert "the model gives several outputs: output_0 (2, 4), output_1 (2, 10)" in said and "in evaluation" not in said
    assert "data.output: 'logits' is none" in mistake(
        "run", recipe, "--run", "run", *always, "--set", "data.output=logits"
    )
    result = invoke("run", recipe, "--run", "run", *always, "--set", "data.output=output_1")
    assert result.exit_code == 0, result.output
    from PIL import Image

    Image.new("L", (8, 8), 128).save(tmp_path / "grey.png")
    answer = json.loads(invoke("predict", "run", tmp_path / "grey.png", "--json").stdout)[0]
    assert 0 <= int(answer["dense"]["label"]) < 10 and answer["dense"]["probability"] < 1


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ('export.input_names=["a", "b"]', "export.input_names: a, b; the model has 1 (input 0), and each needs a name"),
        ('export.output_names=["a", "b"]', "export.output_names: a, b; the model has 1 (output)"),
        ("export.opset=99", "export.opset: ONNX Runtime "),
        ('gate=[{min_speedup=1, device="gpu"}]', 'gate.device: "gpu" is not known; known are cpu, cuda'),
        ('gate=[{min_speedup=1, runtime="openvino"}]', 'gate.runtime: "openvino" is not known; known are onnxruntime,'),
        (
            'gate=[{min_speedup=1, runtime="tensorrt"}]',
            "in tensorrt on cpu cannot be measured here: it is for CUDA alone",
        ),
        ('gate=[{min_speedup=1, device="cuda"}]', "in onnxruntime on cuda cannot be measured here: no CUDA device"),
    ],
)
def test_what_would_fail_at_the_end_is_said_at_the_beginning(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, said: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        sys.modules["sslprune.bench.compare"], "_has_provider", lambda name: name == "CPUExecutionProvider"
    )
    assert said in mistake("run", recipe, "--run", "run", "--set", "data.output=1", "--set", field)
    assert not (tmp_path / "run").exists()


def test_an_opset_is_what_was_written(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    assert knows_opset(18) and not knows_opset(99)
    with pytest.raises(ExportError, match=r"^m.onnx: opset 99 was asked for, and the exporter writes 18; set export"):
        sslprune.export_onnx(model, (torch.randn(2, 3),), tmp_path / "m.onnx", opset=99)
    assert not list(tmp_path.iterdir())
