"""Timing: the right settings, the right arithmetic, and errors in one line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from sslprune.bench import Contender, Platform, bench_files, compare, interleave, median_interval, num_cores, summarize
from sslprune.bench.contenders import module_loader
from sslprune.bench.timing import in_blocks
from sslprune.errors import ExportError, SslpruneError
from sslprune.export.onnx import export_onnx
from sslprune.export.program import save_program
from sslprune.export.session import open_session
from sslprune.report import Absent, Latency, Speedup

SETTING = {"device": "cpu", "runtime": "onnxruntime", "batch_size": 1, "threads": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslprune.bench.timing.WARM_UP", 0.002)
    monkeypatch.setattr("sslprune.bench.timing.ENOUGH", 0.01)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of the same input as ONNX, one of them as .pt2 too, and one of another input."""
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for name, width, size in (("wide", 512, 64), ("narrow", 8, 64), ("other", 8, 32)):
        model = nn.Sequential(
            nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        )
        export_onnx(model, (torch.randn(2, size),), folder / f"{name}.onnx")
        paths[name] = folder / f"{name}.onnx"
        if name != "wide":
            paths[f"{name}.pt2"] = save_program(model, (torch.randn(2, size),), folder / f"{name}.pt2")
    return paths


def test_every_setting_is_measured(files: dict[str, Path]) -> None:
    models = [Contender(name, onnx=files[name]) for name in ("wide", "narrow")]
    models.append(Contender("again", onnx=files["narrow"]))
    found = compare(models, batch_sizes=[1, 16], threads=[1, 0, 1], repetitions=30, also_against="narrow")
    settings = [(batch, threads) for threads in dict.fromkeys([1, num_cores()]) for batch in (1, 16)]
    for model in found.models:
        for measured in (model.latency, model.speedup, model.against["narrow"]):
            assert [(m.batch_size, m.threads) for m in measured if not isinstance(m, Absent)] == settings
        for latency in model.latency:
            assert isinstance(latency, Latency)
            assert latency.repetitions >= 30 and 0 < latency.median_ms <= latency.p95_ms
            assert latency.samples_per_second == pytest.approx(latency.batch_size / latency.median_ms * 1e3)
    same = [s for s in found["wide"].speedup if isinstance(s, Speedup)]
    assert all(s.ratio == s.low == s.high == 1.0 for s in same)


def test_the_ratio_is_the_median_of_pairs() -> None:
    times = [np.array([[2.0, 1.0], [4.0, 1.0]]) / 1000, np.array([[9.0, 3.0]]) / 1000]
    latencies, speedups = summarize(times, [SETTING, SETTING])
    assert [latency.median_ms for latency in latencies] == pytest.approx([4.0, 1.0])
    assert speedups[1].ratio == pytest.approx(3.0)
    assert speedups[1].low <= 3.0 <= speedups[1].high


def test_calls_take_turns_and_the_first_of_a_turn_is_not_timed() -> None:
    calls: list[str] = []

    def slow() -> None:
        time.sleep(31e-3)
        calls.append("b")

    def first() -> None:
        calls.append("a")

    times = interleave([first, slow], 30)
    assert times.shape[0] >= 30 and times.shape[1] == 2
    assert "".join(calls[-3 * len(times) :][:12]) == "aabbaaaabbaa"  # a is short, and runs twice
    assert (times[:, 1] >= 31e-3).all() and np.median(times[:, 0]) < 1e-3


def test_models_are_opened_anew_for_each_block() -> None:
    opened = 0

    def open_all() -> list[Callable[[], None]]:
        nonlocal opened
        opened += 1
        return [lambda: None, lambda: None]

    blocks = in_blocks(open_all, 30)
    assert opened == len(blocks) == 10 and sum(len(block) for block in blocks) >= 30


def test_interval_holds_the_median_and_repeats() -> None:
    values = np.random.default_rng(1).normal(2.0, 0.1, 200)
    low, high = median_interval([values])
    assert low < np.median(values) < high and high - low < 0.1
    assert (low, high) == median_interval([values])


def test_the_interval_covers_what_differs_between_blocks() -> None:
    """Calls of one block agree to 0.1 %, blocks differ by 5 %: the truth is in 95 of 100 intervals, or nearly."""
    random = np.random.default_rng(2)
    held = narrow = 0
    for _ in range(60):
        blocks = [random.normal(2.0 * (1 + 0.05 * random.standard_normal()), 0.002, 30) for _ in range(10)]
        low, high = median_interval(blocks, draws=200)
        held += low <= 2.0 <= high
        low, high = median_interval([np.concatenate(blocks)], draws=200)
        narrow += low <= 2.0 <= high
    assert held >= 51 > narrow


def test_absent_places_are_said_to_be_absent(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    models = [Contender(name, onnx=files[name]) for name in ("wide", "narrow")]
    found = compare(models, [Platform("cuda", "onnxruntime")])
    for model in found.models:
        assert model.latency == model.speedup == [Absent(device="cuda", runtime="onnxruntime", reason="no CUDA device")]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    absent = Platform("cuda", "tensorrt").absent
    assert absent is not None and absent.reason == "this onnxruntime has no TensorrtExecutionProvider"
    with pytest.raises(ExportError, match="onnxruntime on cuda: this onnxruntime has no CUDA"):
        bench_files([files["wide"], files["narrow"]], devices=["cuda"])


def test_modules_are_timed_with_torch() -> None:
    models = [Contender(name, module=module_loader(nn.Linear(3, 3))) for name in "ab"]
    with pytest.raises(ExportError, match="no inputs of their own"):
        compare(models, [Platform("cpu", "torch")])


def test_programs_and_onnx_files_side_by_side(files: dict[str, Path]) -> None:
    before = torch.get_num_threads()
    found = bench_files([files["wide"], files["narrow.pt2"]], devices=["cpu"], threads=[1], profile=True)
    first, second = (model.latency[0] for model in found.comparison.models)
    assert isinstance(first, Latency) and isinstance(second, Latency)
    assert (first.runtime, second.runtime) == ("onnxruntime", "torch")
    assert {size[0] for size in found.sizes.values()} == {files[n].stat().st_size for n in ("wide", "narrow.pt2")}
    for _, load in found.sizes.values():
        assert load is not None and load.load_ms > 0 and (load.peak_bytes is None or load.peak_bytes > 0)
    (profile,) = found.profiles  # of the ONNX file
    assert sum(o.calls for o in profile.operators) >= 3 and all(o.ms > 0 for o in profile.operators)
    assert any("Gemm" in o.operator or "MatMul" in o.operator for o in profile.operators)
    assert torch.get_num_threads() == before


def test_wrong_files_in_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    wide = files["wide"]
    other = onnx.load(str(files["narrow"]))
    other.graph.node[0].op_type, other.graph.node[0].name = "Vanished", "odd"
    onnx.save(other, str(tmp_path / "operator.onnx"))
    whole = files["narrow"].read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "half.pt2").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("no model")
    for path, said in (
        (files["other"], r"input input: .*wide.onnx takes float32 \[\?, 64\], .*other.onnx takes float32 \[\?, 32\]"),
        (files["other.pt2"], r"input 0: .*wide.onnx takes float32 \[\?, 64\], .*other.pt2 takes float32 \[\?, 32\]"),
        (tmp_path / "gone.onnx", "gone.onnx: no such file"),
        (tmp_path / "half.onnx", "half.onnx: ONNX Runtime .* cannot open it"),
        (tmp_path / "operator.onnx", "operator.onnx: ONNX Runtime .* cannot open it: .*Vanished"),
        (tmp_path / "half.pt2", "half.pt2: not a readable .pt2 file"),
        (tmp_path / "notes.txt", "notes.txt: not a model that bench knows"),
        (wide, "given twice"),
    ):
        with pytest.raises(SslpruneError, match=said) as caught:
            bench_files([wide, path], devices=["cpu"], threads=[1])
        assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match=r"tensorrt cannot run it; it is for torch and torch\.compile"):
        bench_files([files["narrow.pt2"], wide], runtimes=["tensorrt"])


def test_a_device_that_goes_away_is_one_line(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Contender, *_: object) -> Callable[[], None]:
        calls = iter(range(3))

        def call() -> None:
            if next(calls, None) is None:
                raise RuntimeError("CUDA error: device lost\nmore")

        return call

    monkeypatch.setattr(Contender, "open", broken)
    with pytest.raises(ExportError, match=r"^cpu: failed while a and b were timed: CUDA error: device lost$"):
        compare([Contender("a", onnx=files["wide"]), Contender("b", onnx=files["narrow"])])


def test_a_carried_state_may_be_narrower(tmp_path: Path) -> None:
    class Cell(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.step, self.head = nn.RNNCell(4, width), nn.Linear(width, 2)

        def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            state = self.step(x, state)
            return self.head(state), state

    models = []
    for width in (16, 6):
        file, example = tmp_path / f"{width}.onnx", (torch.randn(2, 4), torch.zeros(2, width))
        export_onnx(Cell(width), example, file, input_names=["x", "state"], output_names=["y", "next_state"])
        models.append(Contender(str(width), onnx=file))
    rows = {"x": np.ones((3, 4), np.float32), "state": np.ones((3, 16), np.float32)}
    found = compare(models, batch_sizes=[5], threads=[1], example=rows)
    assert [len(model.latency) for model in found.models] == [1, 1]


def test_symbolic_dimensions_want_a_size(tmp_path: Path) -> None:
    length = torch.export.Dim("length")
    program = torch.export.export(
        nn.ReLU(), (torch.randn(2, 5),), dynamic_shapes=({0: torch.export.Dim("n"), 1: length},)
    )
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    exported.save(tmp_path / "m.onnx")
    name = str(open_session(tmp_path / "m.onnx").get_inputs()[0].shape[1])
    models = [Contender(n, onnx=tmp_path / "m.onnx") for n in "ab"]
    with pytest.raises(ExportError, match=rf"--dim {name}=128"):
        compare(models, threads=[1])
    compare(models, threads=[1], dims={name: 4})
