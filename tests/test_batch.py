"""A model with its batch size written into it keeps that size, or is refused in words about the batch."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslprune
from sslprune.errors import ExportError, RepackError, TraceError
from sslprune.export.program import save_program
from sslprune.export.session import open_session
from sslprune.removal.packed import Packed
from sslprune.values.compare import difference
from tests.test_cli import RECIPE, mistake


class Views(nn.Module):
    """A size in a view."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 12, 3), nn.Linear(12 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x)).view(4, -1))


class State(nn.Module):
    """A first state of four rows, which is no input."""

    def __init__(self, lstm: bool) -> None:
        super().__init__()
        self.rnn: nn.LSTM | nn.GRU = nn.LSTM(5, 12, batch_first=True) if lstm else nn.GRU(5, 12, batch_first=True)
        self.two, self.state = nn.Linear(12, 3), torch.zeros(1, 4, 12)

    def forward(self, x: Tensor) -> Tensor:
        state = (self.state, self.state) if isinstance(self.rnn, nn.LSTM) else self.state
        return self.two(self.rnn(x, state)[0][:, -1])


class Window(nn.Module):
    """A window that follows the batch: the graph would run at other sizes, and give other numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(4, 12, 3, padding=1), nn.Conv1d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.one(x))
        return self.two(h + F.avg_pool1d(h.transpose(0, 2), h.shape[0]).transpose(0, 2))


FIXED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "view": (Views, (4, 3, 8, 8)),
    "gru": (lambda: State(False), (4, 6, 5)),
    "lstm": (lambda: State(True), (4, 6, 5)),
    "window": (Window, (4, 4, 8)),
}


def repacked(name: str) -> tuple[nn.Module, Packed, Tensor]:
    make, shape = FIXED[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    program = sslprune.trace(model, (x,))
    assert not program.dynamic_batch and "the batch size is fixed" in program.notes[0]
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind != "layers"]
    for axis in axes:
        sslprune.zero_groups(model, axis, range(axis.size // 2))
    small = sslprune.repack(model, program, axes)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    return model, small, x


@pytest.mark.parametrize("name", FIXED)
def test_another_batch_is_refused_and_no_file_takes_it(name: str, tmp_path: Path) -> None:
    model, small, x = repacked(name)
    expected = model(x)
    assert difference(expected, small(x))[1] < 1e-5
    more = torch.cat([x, x[:2]])
    with pytest.raises(RepackError, match=r"^the batch size is fixed at 4 .*; got 6: give it 4, or mend the code"):
        small(more)
    for file, module in ((tmp_path / "small", small), (tmp_path / "dense", model)):
        sslprune.export_onnx(module, (x,), file.with_suffix(".onnx"))
        session = open_session(file.with_suffix(".onnx"))
        (given,) = session.get_inputs()
        assert given.shape == list(x.shape)  # no dimension has a name
        found = torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])
        assert difference(expected, found)[1] < 1e-4
        save_program(module, (x,), file.with_suffix(".pt2"))
        again = sslprune.load(file.with_suffix(".pt2"))
        assert difference(expected, again(x))[1] < 1e-5
        with pytest.raises(RepackError, match=r"^the batch size is fixed at 4 .*; got 6"):
            again(more)


class Wraps(nn.Module):
    """An operator that torch.export takes for one of any batch, and that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and len(x) != 3:
            raise ValueError("three rows, please")
        return self.one(x)


def test_a_model_that_takes_no_other_batch_is_named_in_words_about_the_batch(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"^m.onnx: the model itself takes no batch of 1, where the example has 3: three"
    ):
        sslprune.export_onnx(Wraps(), (torch.randn(3, 4),), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_other_first_dimensions_are_no_batch() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, pair: Tensor) -> Tensor:
            first, second = pair  # two of them, by the code
            return self.two(self.one(x).relu()) * first + second

    model = Stacked()
    small = sslprune.repack(model, sslprune.trace(model, (torch.randn(3, 4), torch.randn(2, 2))), [])
    assert small(torch.randn(7, 4), torch.randn(2, 2)).shape == (7, 2)
    with pytest.raises(RepackError, match=r"^dimension 0 of input 1, no batch to this model, is fixed at 2 .*; got 3"):
        small(torch.randn(7, 4), torch.randn(3, 2))


def test_a_run_wants_an_open_batch_before_it_trains(tmp_path: Path) -> None:
    code = """
        import torch, torch.nn as nn, torch.nn.functional as F
        class Pairs(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Conv2d(1, 16, 3), nn.Linear(16, 10)
            def forward(self, x):
                h = F.relu(self.one(x)).mean((2, 3))
                return self.two(h + F.avg_pool1d(h.t(), len(x)).t())
        """
    (tmp_path / "pairs.py").write_text(textwrap.dedent(code))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.replace("sslprune.zoo:digits_cnn", f"{tmp_path}/pairs.py:Pairs"))
    said = mistake("run", recipe, "--run", tmp_path / "run")
    assert "Pairs takes a batch of 2 alone, and a run has batches of several sizes" in said
    assert not (tmp_path / "run").exists()
    assert isinstance(TraceError(said), sslprune.SslpruneError)
