"""train.compile: the same training in fewer kernels, anew after a shrink; and its failures."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.exc import CppCompileError

from sslprune.errors import TrainingError
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.compiled import Compiler
from sslprune.train.training import train
from sslprune.values.carry import carrying
from tests.test_processes import recipe

TRAINED = {"lr": 0.002, "momentum": 0.5}


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Without inductor, which takes a while; the number of parameters of each graph that is compiled."""
    found: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        found.append(sum(value.numel() for value in inputs if isinstance(value, nn.Parameter)))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return found


def test_it_trains_the_same_and_is_compiled_anew_after_a_shrink(tmp_path: Path, compilations: list[int]) -> None:
    for wanted in (False, True):
        train(recipe(train={**TRAINED, "compile": wanted}), TrainingFiles(tmp_path / str(wanted)))
        assert bool(compilations) == wanted
    alone, compiled = (load_file(tmp_path / str(wanted) / "masked.safetensors") for wanted in (False, True))
    for name, value in alone.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5)
    left = (tmp_path / "False" / "selection.json").read_text()
    assert (tmp_path / "True" / "selection.json").read_text() == left
    assert len(compilations) > 1 and compilations == sorted(compilations, reverse=True)
    assert len(set(compilations)) == len(compilations)  # once for each size, not for each epoch


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_the_real_compiler(tmp_path: Path) -> None:
    short = {"schedule": {"dense": "0it", "sparse": "0it", "heal": "6it", "shrink": "never"}}
    for name, wanted in (("real", True), ("eager", False)):
        train(recipe(**short, train={**TRAINED, "compile": wanted}), TrainingFiles(tmp_path / name))
    real, eager = (load_file(tmp_path / name / "masked.safetensors") for name in ("real", "eager"))
    for name, value in eager.items():
        torch.testing.assert_close(real[name], value, rtol=1e-3, atol=1e-5)


def test_a_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    with pytest.raises(TrainingError, match=r"^train.compile: torch.compile failed: .+; set train.compile = false$"):
        train(recipe(train={**TRAINED, "compile": True}), TrainingFiles(tmp_path))


def test_a_failure_of_the_backward_pass_alone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        raise CppCompileError(["g++"], "no space left")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=fails)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(TrainingError, match=r"^train.compile: torch.compile failed: .+; set train.compile = false$"):
        train(recipe(train={**TRAINED, "compile": True}), TrainingFiles(tmp_path))


def test_what_is_called_may_have_a_length_of_zero() -> None:
    model, empty = nn.Linear(2, 2), nn.Sequential()
    assert carrying(model, empty) is empty and carrying(model) is model and Compiler(False)(model) is model


def test_recurrent_layers_are_refused() -> None:
    with pytest.raises(
        TrainingError, match=r"^train.compile: layer 0 \(LSTM\) is recurrent.+; set train.compile = false$"
    ):
        Compiler(True)(nn.Sequential(nn.LSTM(2, 3)))
