"""What training tells while it goes on: lines of JSON always, and the loggers that people keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sslprune.recipe import Recipe, parse_recipe
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.log import LOGGERS, Log, attach
from sslprune.train.training import train
from sslprune.values.voice import SILENT, Silent

EPOCHS = 3


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "", style: str = "") -> None:
        self.lines.append(line)


def recipe(**log: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "tiny",
            "model": {"factory": "sslprune.zoo:digits_cnn", "arguments": {"width": 4}},
            "data": {"factory": "sslprune.data:digits", "batch_size": 128},
            "prune": [{"kind": "filters"}],
            "budget": {"macs": 0.6},
            "schedule": {"dense": "1ep", "sparse": "1ep", "heal": "1ep"},
            "lasso": {"decay": 1},
            "log": log,
        }
    )


def lines_of(files: TrainingFiles) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingFiles:
    """A training that told TensorBoard too, where it is installed."""
    files = TrainingFiles(tmp_path_factory.mktemp("told"))
    train(recipe(tensorboard=True), files)
    return files


def test_every_training_leaves_lines(trained: TrainingFiles) -> None:
    lines = lines_of(trained)
    ends = [line for line in lines if "test" in line]
    assert [line["phase"] for line in ends] == ["dense", "sparse", "heal"]
    assert [line["epoch"] for line in ends] == [1, 2, 3]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and ends[-1]["step"] == EPOCHS * ends[0]["step"]
    history = json.loads(trained.history.read_text())
    assert [line["loss"] for line in ends] == [epoch["loss"] for epoch in history]
    assert [line["test"] for line in ends] == [epoch["test"] for epoch in history]
    sparse = [line for line in lines if line["phase"] == "sparse"]
    assert all(0 < line["cost"] <= 1 and line["strength"] >= 0 and line["lr"] > 0 for line in sparse)
    assert sparse[-1]["cost"] <= 0.6


def test_tensorboard_reads_the_same_numbers(trained: TrainingFiles) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained.tensorboard))
    events.Reload()
    ends = [line for line in lines_of(trained) if "test" in line]
    told = events.Scalars("train/test.accuracy")
    assert [scalar.step for scalar in told] == [line["step"] for line in ends]
    assert [scalar.value for scalar in told] == pytest.approx([line["test"]["accuracy"] for line in ends], rel=1e-5)


def test_mlflow_has_the_numbers_and_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    files, asked, heard = TrainingFiles(tmp_path / "train"), recipe(mlflow=True, project="mine"), Heard()
    log = Log(asked, files, heard)
    log.add(7, {"epoch": 1, "loss": 0.5, "test": {"accuracy": 90.0}})
    log.close()
    Log(asked, files, heard, epochs=1, step=7).add(9, {"epoch": 2, "loss": 0.25})
    page = tmp_path / "report.html"
    page.write_text("<p>")
    attach(asked, files, heard, page)
    assert heard.lines == []
    client = MlflowClient((tmp_path / "store").as_uri())
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])  # one, that was gone on with
    assert [m.value for m in client.get_metric_history(run.info.run_id, "train/loss")] == [0.5, 0.25]
    assert run.data.params["budget.macs"] == "0.6"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]


def test_a_resumed_run_tells_nothing_twice(tmp_path: Path) -> None:
    files = TrainingFiles(tmp_path)
    log = Log(recipe(), files, SILENT)
    for step, epoch in ((3, 1), (6, 1), (9, 2)):
        log.add(step, {"epoch": epoch, "loss": 1.0})
    files.log.write_text(files.log.read_text() + '{"step": 12, "ep')  # killed in the middle of a line
    Log(recipe(), files, SILENT, epochs=1, step=6).add(9, {"epoch": 2, "loss": 1.0})
    assert [line["step"] for line in lines_of(files)] == [3, 6, 9]


def test_no_run_is_lost_for_a_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        known = ""

        def __init__(self, *_: object) -> None: ...

        def add(self, values: object, step: int) -> None:
            raise ConnectionError("no route to host")

        def close(self) -> None:
            raise AssertionError("it was given up")

    def absent(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")

    monkeypatch.setitem(LOGGERS, "mlflow", (Broken, "mlflow"))
    monkeypatch.setitem(LOGGERS, "wandb", (absent, "wandb"))
    heard = Heard()
    log = Log(recipe(mlflow=True, wandb=True), TrainingFiles(tmp_path), heard)
    for step in (1, 2):
        log.add(step, {"epoch": 1, "loss": 0.1})
    log.close()
    assert heard.lines == [
        "log.wandb: wandb is not installed; pip install wandb; the run goes on",
        "log.mlflow: no route to host; the run goes on without it",
    ]
    assert len(lines_of(TrainingFiles(tmp_path))) == 2
