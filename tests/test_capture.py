"""A model is captured once: what training traced serves the stages after it, and other instances of the class."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import sslprune
from sslprune.capture.export import exported_for
from sslprune.removal.remove import remove
from sslprune.run.directory import RunDirectory
from sslprune.values.compare import difference
from sslprune.values.selection import Selection
from tests.test_cli import RECIPE, invoke


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
    monkeypatch.setattr("sslprune.bench.timing.ENOUGH", 0.01)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The class of each module that torch.export is asked for."""
    asked: list[str] = []
    real = torch.export.export

    def counted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        asked.append(type(module).__name__)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)
    yield asked


def test_a_run_captures_the_model_once_and_the_smaller_one_once(exports: list[str], tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE + "[[control]]\nname = 'twin'\nfactory = 'sslprune.zoo:digits_cnn'\n")
    run, alone = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "alone")
    assert invoke("run", tmp_path / "tiny.toml", "--run", run, "--set", "control=[]").exit_code == 0
    assert exports == ["DigitsCNN", "DigitsCNN", "Packed"]  # evaluation, training; model.pt2
    exports.clear()
    shutil.copytree(run.path, alone.path)
    assert invoke("repack", alone).exit_code == 0
    assert exports == ["DigitsCNN", "DigitsCNN", "Packed"]
    exports.clear()
    assert invoke("export", alone).exit_code == 0
    assert exports == ["DigitsCNN"]  # model.onnx is made of model.pt2
    for file in ("weights", "plan", "result"):  # stages in a process of their own come to the same
        assert getattr(run, file).read_bytes() == getattr(alone, file).read_bytes()
    for file in ("onnx", "dense_onnx"):
        one, other = (onnx.load(getattr(directory, file)).graph for directory in (run, alone))
        assert [(node.op_type, list(node.output)) for node in one.node] == [
            (node.op_type, list(node.output)) for node in other.node
        ]
        assert [value.name for value in (*one.input, *one.output)] == [v.name for v in (*other.input, *other.output)]
        weights = [sorted((w.name, w.raw_data) for w in graph.initializer) for graph in (one, other)]
        assert weights[0] == weights[1]
    costs = json.loads(run.result.read_text())
    small = sslprune.load(run.path)
    again = sslprune.trace(small, (torch.randn(2, 1, 8, 8),))
    assert costs["repacked"]["macs"] == sslprune.Cost(again, []).macs() < costs["dense"]["macs"]


class Net(nn.Module):
    """A tensor that is no buffer, one that is made in forward on the input's device, and a batch norm."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.scale = torch.full((1, 8, 1, 1), scale)
        self.register_buffer("shift", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.norm(self.one(x)) * self.scale).relu().mean((2, 3))
        return self.two(y) + self.shift + torch.arange(4, device=x.device)


def make(seed: int, scale: float = 2.0) -> nn.Module:
    torch.manual_seed(seed)
    return Net(scale).eval()


def test_a_program_serves_every_instance_with_its_constants(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 5, 5)
    program = sslprune.trace(make(0), (x,))
    assert program.serves(make(1)) and not program.serves(make(1, scale=3.0))
    assert not program.serves(nn.Linear(3, 3))
    wide = make(1)
    wide.two = nn.Linear(8, 5)
    assert not program.serves(wide)
    model = make(1)
    (axis,) = (axis for axis in sslprune.find_axes(program) if axis.kind == "filters")
    sslprune.zero_groups(model, axis, range(4))
    small = sslprune.repack(model, program, [axis])  # verified
    assert small.get_parameter("one.weight").shape == (4, 3, 3, 3)
    known = exported_for(program, model)
    assert known is not None
    assert sslprune.export_onnx(model, (x,), tmp_path / "m.onnx", exported=known) < 1e-5  # the model's own numbers
    assert exported_for(program, make(1, scale=3.0)) is None


def test_a_model_that_trains_channels_last_is_traced_row_by_row(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 5, 5)
    rows, channels = make(0), make(0)
    channels.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    strides = [parameter.stride() for parameter in channels.parameters()]
    known = exported_for(sslprune.trace(channels, (x,)), rows)
    assert [parameter.stride() for parameter in channels.parameters()] == strides
    sslprune.export_onnx(rows, (x,), tmp_path / "fresh.onnx")
    sslprune.export_onnx(rows, (x,), tmp_path / "known.onnx", exported=known)
    fresh, again = ([node.op_type for node in onnx.load(tmp_path / f"{n}.onnx").graph.node] for n in ("fresh", "known"))
    assert fresh == again


def test_a_program_moves_with_what_its_graphs_make() -> None:
    program = sslprune.trace(make(0), (torch.randn(2, 3, 5, 5),))
    assert program.on("cpu") is program
    moved = program.on("meta")
    devices = {node.kwargs["device"] for graph in moved.graphs for node in graph.nodes if "device" in node.kwargs}
    assert devices == {torch.device("meta")}
    assert {constant.device.type for constant in moved.constants.values()} == {"meta"}
    assert moved.exported is None and moved.args[0].device.type == "meta"
    model = make(1).to("meta")
    small = remove(model, moved, Selection.none([]), verify=False)
    assert small(torch.randn(7, 3, 5, 5, device="meta")).shape == (7, 4)
    back, model = replace(moved, constants=program.constants, args=program.args).on("cpu"), make(1)
    small = sslprune.repack(model, back, sslprune.find_axes(back))
    x = torch.randn(3, 3, 5, 5)
    assert difference(copy.deepcopy(model)(x), small(x))[1] < 1e-5
