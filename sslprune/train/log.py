"""What training says while it goes on, for machines: a file of lines always, and the loggers that people keep.

A line of log.jsonl is one JSON object: "step" counts optimizer steps over all phases. A line without a test or
validation score stands within an epoch, one with it at its end.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sslprune.errors import first_line
from sslprune.recipe import LogSection, Recipe
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.schedule import Epoch
from sslprune.values.metrics import figure
from sslprune.values.voice import Voice

Values = Mapping[str, float]


class Logger(Protocol):
    """Where numbers go. What it raises is a warning, and ends it: no run is lost for a logger."""

    def add(self, values: Values, step: int) -> None: ...
    def attach(self, file: Path) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/train/tensorboard."""

    def __init__(self, section: LogSection, recipe: Recipe, files: TrainingFiles, known: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(files.tensorboard), purge_step=step or None)
        self.known = ""

    def add(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def attach(self, file: Path) -> None:
        pass  # it shows numbers alone

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """A run of the experiment ``log.project``, at MLFLOW_TRACKING_URI, or in the folder mlruns."""

    def __init__(self, section: LogSection, recipe: Recipe, files: TrainingFiles, known: str, step: int) -> None:
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").resolve().as_uri()
        if uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self.client: Any = MlflowClient(uri)
        experiment = self.client.get_experiment_by_name(section.project)
        number = experiment.experiment_id if experiment else self.client.create_experiment(section.project)
        if not known:
            known = self.client.create_run(number, run_name=recipe.name).info.run_id
            for key, value in _flat(recipe.values()).items():
                self.client.log_param(known, key, value)
        self.known = known

    def add(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.known, name, value, step=step)

    def attach(self, file: Path) -> None:
        self.client.log_artifact(self.known, str(file))

    def close(self) -> None:
        self.client.set_terminated(self.known)


class WeightsAndBiases:
    """A run of the project ``log.project``; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, section: LogSection, recipe: Recipe, files: TrainingFiles, known: str, step: int) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=section.project,
            name=recipe.name,
            id=known or None,
            resume="allow" if known else None,
            dir=str(files.folder),
            config=recipe.values(),
        )
        self.known = str(self.run.id)

    def add(self, values: Values, step: int) -> None:
        self.run.log(dict(values), step=step)

    def attach(self, file: Path) -> None:
        self.run.save(str(file), base_path=str(file.parent), policy="now")

    def close(self) -> None:
        self.run.finish()


# by the recipe's field: the class, and what to install
LOGGERS: dict[str, tuple[Any, str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WeightsAndBiases, "wandb"),
}


class Log:
    """log.jsonl in ``files``, and the loggers that the recipe names. ``epochs`` of the run are done already."""

    def __init__(self, recipe: Recipe, files: TrainingFiles, show: Voice, epochs: int = 0, step: int = 0) -> None:
        self.files, self.show, self.began = files, show, time.monotonic()
        files.folder.mkdir(parents=True, exist_ok=True)
        lines = files.log.read_text(encoding="utf-8").splitlines(keepends=True) if epochs and files.log.exists() else []
        kept = [line for line in lines if _epoch_of(line) <= epochs]  # what was told behind the checkpoint comes again
        files.log.write_text("".join(kept), encoding="utf-8")
        self.loggers = _open(recipe, files, show, step)

    def add(self, step: int, record: Mapping[str, Any]) -> None:
        """One line: numbers, and one table of scores under its name. Numbers that are none are left to log.jsonl."""
        with open(self.files.log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "elapsed": round(time.monotonic() - self.began, 3), **record}) + "\n")
        values = {name: value for name, value in _flat(record).items() if isinstance(value, int | float)}
        finite = {f"train/{name}": float(value) for name, value in values.items() if math.isfinite(value)}
        self._each(lambda logger: logger.add(finite, step))

    def close(self) -> None:
        """Nothing more is told."""
        self._each(lambda logger: logger.close())
        self.loggers = {}

    def _each(self, call: Any) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                call(logger)
            except Exception as error:  # of another library, of its network, of its disk
                self.show.say(f"log.{name}: {first_line(error)}; the run goes on without it", "yellow")
                del self.loggers[name]


def line_of(epoch: Epoch, record: Mapping[str, Any], judge: str, smaller: bool) -> str:
    """What a person is told at the end of an epoch; ``judge``: the data that it was judged by."""
    points = record.get("points", {})  # that are nested, so far
    scores = "; ".join(f"at {at} {_scores(point[judge])}" for at, point in points.items())
    scores = scores if len(points) > 1 else _scores(record[judge])
    plan = f" (plan {record['plan']:.3f})" if record["plan"] is not None else ""
    cost = f", cost {record['cost']:.3f}{plan}" if epoch.phase == "sparse" else ""
    size = f", {record['parameters']:,} parameters" if smaller else ""
    size += f", {record['bytes']:,} bytes of gradients a step" if "bytes" in record else ""
    return f"{epoch.label}: loss {record['loss']:.4f}, {judge} {scores}{cost}{size}, {record['seconds']:.1f} s"


def _scores(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {figure(value)}" for name, value in metrics.items())


def attach(recipe: Recipe, files: TrainingFiles, show: Voice, report: Path) -> None:
    """Give the report to the loggers that keep files, as a part of the run that they know."""
    for name, logger in _open(recipe, files, show, 1).items():
        try:
            logger.attach(report)
            logger.close()
        except Exception as error:
            show.say(f"log.{name}: {first_line(error)}; the report is not linked", "yellow")


def _open(recipe: Recipe, files: TrainingFiles, show: Voice, step: int) -> dict[str, Logger]:
    """The loggers of the recipe; runs that they know already go on."""
    known: dict[str, str] = json.loads(files.loggers.read_text(encoding="utf-8")) if files.loggers.exists() else {}
    opened: dict[str, Logger] = {}
    for name, (make, package) in LOGGERS.items():
        if not getattr(recipe.log, name):
            continue
        try:
            opened[name] = made = make(recipe.log, recipe, files, known.get(name, "") if step else "", step)
            known[name] = made.known
        except ModuleNotFoundError as error:
            show.say(f"log.{name}: {error.name} is not installed; pip install {package}; the run goes on", "yellow")
        except Exception as error:
            show.say(f"log.{name}: {first_line(error)}; the run goes on without it", "yellow")
    if opened:
        files.loggers.write_text(json.dumps(known), encoding="utf-8")
    return opened


def _epoch_of(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
