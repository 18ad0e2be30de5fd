"""Exported files compute what the module computes, at any batch size, or they are not written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from sslprune.capture.mode import evaluating
from sslprune.errors import ExportError
from sslprune.export.onnx import export_onnx
from sslprune.export.program import save_program
from sslprune.export.session import open_session
from sslprune.values.compare import difference
from sslprune.values.inputs import random_like
from sslprune.zoo import digits_cnn


class TwoInputs(nn.Module):
    """A batch norm (two modes), a keyword, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        features = self.norm(self.conv(image)).relu().mean((2, 3))  # (batch, 4)
        logits = self.head(features)
        return {"logits": logits if mask is None else logits * mask[:, None], "features": features}


@pytest.fixture
def model() -> TwoInputs:
    torch.manual_seed(0)
    return TwoInputs()


def inputs(batch: int) -> tuple[tuple[Tensor], dict[str, Tensor]]:
    return (torch.randn(batch, 1, 6, 6),), {"mask": torch.rand(batch)}


@pytest.mark.parametrize("batch", [1, 2])
def test_onnx_has_names_and_an_open_batch(model: TwoInputs, tmp_path: Path, batch: int) -> None:
    args, kwargs = inputs(batch)
    assert export_onnx(model, args, tmp_path / "m.onnx", kwargs) < 1e-5
    session = open_session(tmp_path / "m.onnx")
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("image", ["batch", 1, 6, 6]), ("mask", ["batch"])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 3]), ("features", ["batch", 4])]
    args, kwargs = inputs(7)
    found = session.run(["logits"], {"image": args[0].numpy(), "mask": kwargs["mask"].numpy()})[0]
    expected = model.eval()(*args, **kwargs)["logits"].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_onnx_takes_names_and_an_opset(model: TwoInputs, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    export_onnx(model, inputs(2)[0], file, opset=18, input_names=["pixels"], output_names=["scores", "hidden"])
    written = onnx.load(file)
    assert [i.name for i in written.graph.input] == ["pixels"]
    assert [o.name for o in written.graph.output] == ["scores", "hidden"]
    assert written.opset_import[0].version == 18


def test_modes_come_back(model: TwoInputs, tmp_path: Path) -> None:
    model.train()
    model.norm.eval()
    export_onnx(model, inputs(2)[0], tmp_path / "m.onnx")
    assert model.training and model.conv.training and not model.norm.training


def test_channels_last_adds_no_operators(tmp_path: Path) -> None:
    model = digits_cnn()
    strides = []
    for name, layout in (("rows", torch.contiguous_format), ("channels", torch.channels_last)):
        model.to(memory_format=layout)  # type: ignore[call-overload]
        export_onnx(model, (torch.rand(2, 1, 8, 8),), tmp_path / f"{name}.onnx")
        strides.append([parameter.stride() for parameter in model.parameters()])
    rows, channels = (
        [node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node] for name in ("rows", "channels")
    )
    assert rows == channels
    assert strides[0] != strides[1]  # the model is left as it lay


def test_program_loads_again_and_exports_on(model: TwoInputs, tmp_path: Path) -> None:
    args, kwargs = inputs(2)
    save_program(model, args, tmp_path / "m.pt2", kwargs)
    again = torch.export.load(tmp_path / "m.pt2").module()
    more, named = inputs(5)
    assert difference(model.eval()(*more, **named), again(*more, **named)) == (0.0, 0.0)
    assert export_onnx(again, args, tmp_path / "again.onnx", kwargs) < 1e-5


def test_a_model_that_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    for write, name in ((export_onnx, "m.onnx"), (save_program, "m.pt2")):
        with pytest.raises(ExportError, match=r"torch\.export cannot capture Decides"):
            write(Decides(), (torch.randn(2, 3),), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_not_kept(model: TwoInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("onnx", "program"):
        monkeypatch.setattr(f"sslprune.export.{room}.difference", lambda *_: (1.0, 0.5))
    with pytest.raises(ExportError, match=r"m.onnx: ONNX Runtime differs from torch by 5.0e-01"):
        export_onnx(model, inputs(2)[0], tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"m.pt2: loaded again"):
        save_program(model, inputs(2)[0], tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_onnx(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no such file"):
        open_session(tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ExportError, match="cannot open it") as caught:
        open_session(tmp_path / "text.onnx")
    assert "\n" not in str(caught.value)


def test_difference() -> None:
    a = torch.tensor([1.0, -4.0])
    assert difference(a, a.clone()) == (0.0, 0.0)
    assert difference({"y": a}, {"y": a + 1}) == (1.0, 0.25)
    assert difference((a, torch.zeros(2)), (a, torch.full((2,), 1e-9)))[1] == float("inf")
    for wrong in (torch.tensor([1.0, float("nan")]), torch.zeros(3), (a, a)):
        assert not difference(a, wrong)[1] <= 1e9
    nans = torch.tensor([float("nan"), 2.0])
    assert difference(nans, nans.clone()) == (0.0, 0.0)


def test_random_like_keeps_whole_rows_of_integers() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    drawn, pixels, scale = random_like((ids, torch.randn(2, 3), 0.5), 9)
    assert drawn.shape == pixels.shape == (9, 3) and scale == 0.5
    assert all(row in ids.tolist() for row in drawn.tolist())


def test_evaluating_a_loaded_program(model: TwoInputs, tmp_path: Path) -> None:
    save_program(model, inputs(2)[0], tmp_path / "m.pt2")
    with evaluating(torch.export.load(tmp_path / "m.pt2").module()):
        pass
