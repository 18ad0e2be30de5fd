"""Timing: the right settings, the right arithmetic, and errors in one line."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sslprune.bench import compare_modules, compare_onnx, interleave, median_interval, num_cores, summarize
from sslprune.errors import ExportError
from sslprune.export import export_onnx, open_session
from sslprune.report import Absent, Latency

SETTING = {"device": "cpu", "runtime": "onnxruntime", "batch_size": 1, "threads": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslprune.bench.WARM_UP", 0.005)
    monkeypatch.setattr("sslprune.bench.ENOUGH", 0.01)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two models of the same input, and one of another."""
    folder = tmp_path_factory.mktemp("onnx")
    paths = []
    for name, width, size in (("wide", 512, 64), ("narrow", 8, 64), ("other", 8, 32)):
        model = nn.Sequential(
            nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        )
        export_onnx(model, (torch.randn(2, size),), folder / f"{name}.onnx")
        paths.append(folder / f"{name}.onnx")
    return paths[0], paths[1], paths[2]


def test_every_setting_is_measured(files: tuple[Path, Path, Path]) -> None:
    found = compare_onnx(files[0], files[1], batch_sizes=[1, 16], threads=[1, 0, 1], repetitions=30)
    settings = [(1, threads) for threads in dict.fromkeys([1, num_cores()])]
    settings = [(batch, threads) for _, threads in settings for batch in (1, 16)]
    for measured in (found.dense, found.repacked, found.speedup):
        assert [(m.batch_size, m.threads) for m in measured if not isinstance(m, Absent)] == settings
    for latency in (*found.dense, *found.repacked):
        assert isinstance(latency, Latency)
        assert latency.repetitions >= 30 and 0 < latency.median_ms <= latency.p95_ms


def test_the_ratio_is_the_median_of_pairs() -> None:
    times = np.array([[2.0, 1.0], [4.0, 1.0], [9.0, 3.0]]) / 1000
    found = summarize(times, SETTING)
    assert found.dense[0].median_ms == pytest.approx(4.0)  # type: ignore[union-attr]
    assert found.repacked[0].median_ms == pytest.approx(1.0)  # type: ignore[union-attr]
    assert found.speedup[0].ratio == pytest.approx(3.0)  # type: ignore[union-attr]
    assert found.speedup[0].low <= 3.0 <= found.speedup[0].high  # type: ignore[union-attr]


def test_calls_take_turns() -> None:
    calls: list[str] = []

    def slow() -> None:
        time.sleep(1e-3)
        calls.append("b")

    times = interleave(lambda: calls.append("a"), slow, 30)
    timed = calls[-2 * len(times) :]
    assert len(times) >= 30 and times.shape[1] == 2
    assert "".join(timed[:8]) == "abbaabba"
    assert (times[:, 1] >= 1e-3).all() and np.median(times[:, 0]) < 1e-3


def test_interval_holds_the_median_and_repeats() -> None:
    values = np.random.default_rng(1).normal(2.0, 0.1, 200)
    low, high = median_interval(values)
    assert low < np.median(values) < high and high - low < 0.1
    assert (low, high) == median_interval(values)


def test_absent_cuda_is_said_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = compare_modules(nn.Linear(3, 3), nn.Linear(3, 3), (torch.randn(2, 3),))
    assert found.dense == found.repacked == found.speedup == (Absent(device="cuda"),)


def test_modules_are_timed_with_torch() -> None:
    found = compare_modules(nn.Linear(3, 3), nn.Linear(3, 3), (torch.randn(2, 3),), device="cpu", batch_sizes=[5])
    assert (found.dense[0].runtime, found.dense[0].batch_size) == ("torch", 5)  # type: ignore[union-attr]


def test_wrong_files_in_one_line(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"input 'input': .*wide.onnx takes .*64.*other.onnx takes .*32"):
        compare_onnx(files[0], files[2])
    with pytest.raises(ExportError, match="no such file"):
        compare_onnx(files[0], tmp_path / "gone.onnx")


def test_symbolic_dimensions_want_a_size(tmp_path: Path) -> None:
    length = torch.export.Dim("length")
    program = torch.export.export(
        nn.ReLU(), (torch.randn(2, 5),), dynamic_shapes=({0: torch.export.Dim("n"), 1: length},)
    )
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    exported.save(tmp_path / "m.onnx")
    name = str(open_session(tmp_path / "m.onnx").get_inputs()[0].shape[1])
    with pytest.raises(ExportError, match=rf"--dim {name}=128"):
        compare_onnx(tmp_path / "m.onnx", tmp_path / "m.onnx", threads=[1])
    compare_onnx(tmp_path / "m.onnx", tmp_path / "m.onnx", threads=[1], dims={name: 4})
