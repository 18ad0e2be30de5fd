"""Variants with fewer bits, and what an ONNX file says of itself: on small models, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from sslprune.errors import ExportError
from sslprune.export.file import OnnxModule, feeds_of, read_graph, write_metadata
from sslprune.export.onnx import export_onnx
from sslprune.export.quantize import notes, quantize
from sslprune.export.session import open_session


class Net(nn.Module):
    """A convolution with a batch norm, a recurrent layer and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.rnn, self.head = nn.LSTM(64, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.conv(x)).relu().flatten(2)  # (batch, 8, 64)
        return self.head(self.rnn(features)[0][:, -1])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("quantize") / "model.onnx"
    export_onnx(Net(), (torch.randn(2, 1, 8, 8),), path)
    return path


def calibration(count: int = 4) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal((40, 1, 8, 8), np.float32)} for _ in range(count)]


def types(path: Path) -> set[int]:
    return {weight.data_type for weight in onnx.load(str(path)).graph.initializer if weight.dims}


@pytest.mark.parametrize(
    ("kind", "stored", "most"),
    [
        ("int8-static", onnx.TensorProto.INT8, 0.1),
        ("int8-dynamic", onnx.TensorProto.INT8, 0.1),
        ("fp16", onnx.TensorProto.FLOAT16, 0.01),
        ("bf16", onnx.TensorProto.BFLOAT16, 0.05),
    ],
)
def test_each_kind_stores_fewer_bits_and_computes_nearly_the_same(
    source: Path, tmp_path: Path, kind: str, stored: int, most: float
) -> None:
    path = tmp_path / f"{kind}.onnx"
    quantize(source, path, kind, calibration())
    assert stored in types(path) and stored not in types(source)
    sessions = [open_session(file, 1) for file in (source, path)]
    shapes = [[(i.name, i.type, i.shape) for i in s.get_inputs()] for s in sessions]
    assert shapes[0] == shapes[1]
    for batch in (1, 7):
        x = calibration(1)[0]["x"][:batch]
        expected, found = (session.run(None, {"x": x})[0] for session in sessions)
        assert 0 < np.abs(found - expected).max() <= most * np.abs(expected).max()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_calibration_data_decide_the_ranges(source: Path, tmp_path: Path) -> None:
    """Fed with values a hundred times too small, everything saturates: int8-static has looked at what it was given."""
    tiny = [{"x": value["x"] / 100} for value in calibration()]
    quantize(source, tmp_path / "good.onnx", "int8-static", calibration())
    quantize(source, tmp_path / "bad.onnx", "int8-static", tiny)
    x = calibration(1)[0]
    expected, good, bad = (
        open_session(f, 1).run(None, x)[0] for f in (source, tmp_path / "good.onnx", tmp_path / "bad.onnx")
    )
    assert np.abs(bad - expected).max() > 3 * np.abs(good - expected).max()


def test_what_cannot_be_quantized_is_one_line(tmp_path: Path) -> None:
    export_onnx(nn.ReLU(), (torch.randn(2, 3),), tmp_path / "relu.onnx")
    for kind in ("int8-static", "int8-dynamic", "bf16"):
        with pytest.raises(ExportError, match=rf"export.quantize: .*{kind}") as caught:
            quantize(tmp_path / "relu.onnx", tmp_path / "q.onnx", kind, [{"x": np.zeros((2, 3), np.float32)}])
        assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["relu.onnx"]


def test_a_variant_that_crashes_the_runtime_is_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash, fail = "import os; os.abort()", "import sys; sys.exit('no kernel for LSTM')"
    for program, said in (
        (crash, "crashes on the result; leave bf16 out"),
        (fail, "cannot open it: no kernel for LSTM"),
    ):
        monkeypatch.setattr("sslprune.export.quantize.OPEN", program)
        with pytest.raises(ExportError, match=f"export.quantize: bf16 of model.onnx: .*{said}"):
            quantize(source, tmp_path / "bf16.onnx", "bf16", [])
    assert not list(tmp_path.iterdir())


def test_a_processor_without_vnni_is_warned_of(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for has, said in ((True, False), (False, True), (None, False)):
        monkeypatch.setattr("sslprune.export.quantize.has_vnni", lambda has=has: has)
        assert bool(notes("int8-static", source)) is said
    assert "half the file" in notes("bf16", source)[0] or "smaller file" in notes("bf16", source)[0]


def test_names_dimensions_and_metadata_are_a_persons_own(tmp_path: Path) -> None:
    path, example = tmp_path / "m.onnx", (torch.randn(2, 1, 8, 8),)
    export_onnx(Net(), example, path, input_names=["pixels"], output_names=["scores"], dynamic_axes={"batch": "N"})
    write_metadata(path, {"sslprune.recipe": "digits"})
    write_metadata(path, {"sslprune.metrics": "{}"})
    session = open_session(path)
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("pixels", ["N", 1, 8, 8])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("scores", ["N", 5])]
    assert session.get_modelmeta().custom_metadata_map == {"sslprune.recipe": "digits", "sslprune.metrics": "{}"}
    for wrong, said in (
        ({"dynamic_axes": {"length": "T"}}, r"no open dimension 'length'; it has batch"),
        ({"input_names": ["a", "b"]}, r"input_names are a, b; the model has 1"),
        ({"output_names": ["a", "b"]}, r"output_names are a, b; the model has 1"),
    ):
        with pytest.raises(ExportError, match=said):
            export_onnx(Net(), example, path, **wrong)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_large_weights_lie_in_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit lowered from 2 GB, every step keeps the companion: export, metadata, each variant."""
    monkeypatch.setattr("sslprune.export.onnx.PROTOBUF_LIMIT", 1000)
    monkeypatch.setattr("sslprune.export.quantize.PROTOBUF_LIMIT", 1000)
    torch.manual_seed(0)
    path, model = tmp_path / "m.onnx", Net().eval()
    export_onnx(model, (torch.randn(2, 1, 8, 8),), path, dynamic_axes={"batch": "N"})
    write_metadata(path, {"a": "b"})
    data = tmp_path / "m.onnx.data"
    assert data.stat().st_size > path.stat().st_size / 10
    assert any(weight.external_data for weight in read_graph(path).graph.initializer)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(open_session(path).run(None, {"x": x.numpy()})[0], expected, atol=1e-5)
    for kind in ("int8-static", "bf16"):
        quantize(path, tmp_path / f"{kind}.onnx", kind, calibration(1))
        found = open_session(tmp_path / f"{kind}.onnx").run(None, {"x": x.numpy()})[0]
        assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_a_session_is_called_like_the_module(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, first: Tensor, second: Tensor, *, scale: Tensor) -> dict[str, Any]:
            return {"sum": (first + second) * scale, "parts": (first * 1, second * 2)}

    a, b, scale = torch.randn(2, 3), torch.randn(2, 3), torch.rand(2, 1)
    export_onnx(Two(), (a, b), tmp_path / "m.onnx", {"scale": scale})
    expected = Two()(a, b, scale=scale)
    module = OnnxModule(open_session(tmp_path / "m.onnx"), expected)
    found = module(a, b, scale=scale)
    assert torch.allclose(found["sum"], expected["sum"]) and torch.allclose(found["parts"][1], expected["parts"][1])
    session = open_session(tmp_path / "m.onnx")
    fed = feeds_of(session, (a,), {"scale": scale, "second": b})
    for name, value in (("first", a), ("second", b), ("scale", scale)):
        assert np.array_equal(fed[name], value)
    with pytest.raises(ExportError, match="1 inputs for an ONNX file that takes first, second, scale"):
        feeds_of(session, (a,), {})
