"""Every path of a run directory, and who may use it.

RUN/recipe.toml                                              the recipe with its overrides, paths made absolute
RUN/train/     checkpoint.pt  dense.safetensors  masked.safetensors  selection.json  history.json
               initial.safetensors, the weights that it began with, where the model has no checkpoint
               nested.safetensors  cuts.json, of nested points: see ``train.cuts``
RUN/repacked/  model.pt2  weights.safetensors  plan.json  result.json
               tokenizer/, where the data are text: the tokenizer's own files, and labels.json, the classes' names
RUN/export/    model.onnx  dense.onnx, and one file for each quantized variant and control
RUN/report.json  report.html  junit.xml  summary.md
RUN/sensitivity.json, if a person puts it there: what `inspect --sensitivity N --json` prints, for the report
RUN/controls/NAME/  as RUN/train/, weights.safetensors at the end; result.json
RUN/points/0.5/  an earlier point of a sweep, nested or not: a run directory of its own; the last point is RUN itself
files.json, in train, repacked and export: what was written there, see ``run.record``
RUN/.lock  .writer.json  .new-STAGE/  .done-STAGE/  while a command writes: see ``run.writer`` and ``run.swap``
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sslprune.errors import RunError
from sslprune.files import write_text
from sslprune.recipe import Recipe, load_recipe
from sslprune.run.record import FILE, damaged, read_record, write_record
from sslprune.run.swap import NEW, beside, tidy
from sslprune.run.writer import one_writer
from sslprune.train.checkpoint import TrainingFiles

Stage = Literal["train", "repack", "export"]
STAGES: tuple[Stage, ...] = ("train", "repack", "export")
ControlName = Literal["dense", "scratch", "ticket"]
FRACTION = re.compile(r"\d(\.\d+)?(e-\d+)?")
CONTROLS: tuple[ControlName, ...] = ("dense", "scratch", "ticket")


class ControlFiles(TrainingFiles):
    """Where one control of a run is trained, and its figures."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "weights.safetensors")

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def started(self) -> bool:
        """Whether there is any training that could be lost."""
        return any(file.is_file() for file in (self.checkpoint, self.masked, self.result))

    def clear(self) -> None:
        for file in (self.result, *self.all):
            file.unlink(missing_ok=True)


class RunDirectory:
    """The folder of one run. Nothing is created before something is written.

    ``writing``: the stage whose own files lie in the new place that it writes to; see ``stage``.
    """

    def __init__(self, path: str | Path, writing: Stage | None = None) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.toml"
        repacked, exported = (
            self.path / f"{NEW}{stage}" if stage == writing else self.path for stage in ("repack", "export")
        )

        self.training = TrainingFiles(self.path / "train")
        self.checkpoint, self.initial, self.dense = self.training.checkpoint, self.training.initial, self.training.dense
        self.masked, self.selection = self.training.masked, self.training.selection
        self.history = self.training.history

        self.repacked_dir = repacked / "repacked"
        self.program = self.repacked_dir / "model.pt2"
        self.weights = self.repacked_dir / "weights.safetensors"
        self.plan = self.repacked_dir / "plan.json"
        self.result = self.repacked_dir / "result.json"
        self.tokenizer = self.repacked_dir / "tokenizer"
        self.predictions = self.path / "predictions"
        self.sensitivity = self.path / "sensitivity.json"

        self.points_dir = self.path / "points"

        self.export_dir = exported / "export"
        self.onnx = self.export_dir / "model.onnx"
        self.dense_onnx = self.export_dir / "dense.onnx"
        self.decoder, self.dense_decoder = self.export_dir / "decoder.onnx", self.export_dir / "dense-decoder.onnx"
        self.huggingface, self.deci = self.export_dir / "huggingface", self.export_dir / "deci"
        self.report = exported / "report.json"
        self.page = exported / "report.html"
        self.junit = exported / "junit.xml"
        self.summary = exported / "summary.md"

    def control(self, name: ControlName) -> ControlFiles:
        return ControlFiles(self.path / "controls" / name)

    @property
    def control_results(self) -> list[Path]:
        """The figures of the controls that are finished."""
        results = [self.control(name).result for name in CONTROLS]
        return [result for result in results if result.is_file()]

    @property
    def points(self) -> list[RunDirectory]:
        """The earlier points of a sweep that have begun, the largest budget first."""
        files = [file for file in self.points_dir.glob("*/recipe.toml") if FRACTION.fullmatch(file.parent.name)]
        begun = [RunDirectory(file.parent) for file in files]
        return sorted(begun, key=lambda point: float(point.path.name), reverse=True)

    @property
    def sweep(self) -> RunDirectory:
        """The run that this is a point of, itself where it is none."""
        above = RunDirectory(self.path.parent.parent)
        return above if self.path.parent.name == "points" and above.recipe_file.is_file() else self

    def each_point(self, recipe: Recipe) -> list[tuple[Recipe, RunDirectory]]:
        """The points of ``recipe``, in order, each with its recipe and its folder; the last is this one.

        What came before a point lies beside it.
        """
        *earlier, last = recipe.points()
        folders = [RunDirectory(self.sweep.points_dir / str(point.budget.fraction)) for point in earlier]
        return [*zip(earlier, folders, strict=True), (last, self)]

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def files(self, stage: Stage) -> tuple[Path, ...]:
        """What ``stage`` leaves behind when it is finished; the last of them is written last."""
        return {
            "train": (self.dense, self.history, self.masked),
            "repack": (self.program, self.weights, self.plan, self.result),
            "export": (self.onnx, self.dense_onnx, self.report),
        }[stage]

    def finished(self, stage: Stage) -> bool:
        return all(file.is_file() for file in self.files(stage))

    def require(self, stage: Stage) -> None:
        """Raise RunError, with the command that mends it, unless ``stage`` is finished."""
        missing = next((file for file in self.files(stage) if not file.is_file()), None)
        if missing is None:
            return
        if not self.recipe_file.is_file():
            raise RunError(
                f"{self.path}: not a run directory (no recipe.toml); `sslprune run RECIPE --run {self.path}` makes one"
            )
        command = (
            f"sslprune train {self.sweep.recipe_file} --run {self.sweep} --resume"
            if stage == "train"
            else f"sslprune {stage} {self.path}"
        )
        raise RunError(f"{self.path}: {missing.relative_to(self.path)} is missing; first `{command}`")

    def recipe(self) -> Recipe:
        """The recipe that this run was claimed for."""
        if not self.recipe_file.is_file():
            raise RunError(
                f"{self.path}: not a run directory (no recipe.toml); `sslprune run RECIPE --run {self.path}` makes one"
            )
        return load_recipe(self.recipe_file)

    def claim(self, recipe: Recipe, *, force: bool = False) -> None:
        """Make the folder this recipe's own; raises RunError as ``check`` does."""
        self.check(recipe, force=force)
        write_text(self.recipe_file, recipe.to_toml())

    def check(self, recipe: Recipe, *, force: bool = False) -> None:
        """Raise RunError if the folder is another recipe's (unless ``force``), or not a run's at all.

        Recipes that differ only in what training does not read (``[bench]``, ``[gates]``, ``[export]``) share a run.
        """
        if self.recipe_file.is_file():
            if self.started and not force:
                self._check_same(recipe)
        elif self.path.exists() and (not self.path.is_dir() or not all(map(_ours, self.path.iterdir()))):
            raise RunError(f"{self.path}: exists and is not a run directory; name another folder with --run")

    def _check_same(self, recipe: Recipe) -> None:
        keys = self.recipe().differences(recipe)
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise RunError(
                f"{self.path}: holds a run of another recipe ({', '.join(keys[:3])}{more} differ);"
                " name another folder with --run, or train over it with --force"
            )

    def check_new(self) -> None:
        """Raise RunError where there is training that could be lost."""
        if self.started:
            state = "a finished run" if self.finished("train") else "a run that is not finished"
            raise RunError(f"{self.path}: holds {state}; go on with --resume, or train over it with --force")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The only writer of this run inside the block: of the whole sweep, where it is a point of one.

        What a process that was killed left half-done is finished or removed first. Raises RunError that says who else
        writes, or which folder leads out of the run.
        """
        root = self.sweep
        if root.path.exists() and not root.path.is_dir():
            raise RunError(f"{root}: exists and is not a run directory; name another folder with --run")
        with one_writer(root.path) as begun:
            if begun:
                root._check_links()
                for run in (root, *root.points):
                    tidy(run.path, FOLDERS)
            yield

    def _check_links(self) -> None:
        for name in FOLDERS:
            for path in (self.path / name, *(self.path / name).rglob("*")):
                if path.is_symlink():
                    raise RunError(f"{path}: a link, which may lead into another run; a run's folders are its own")

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[RunDirectory]:
        """This run as ``stage`` is to see it: what it reads lies where it lay, what it writes in a new place.

        The new result takes the place of the old one when the block ends, and what the stages after it made of another
        old result goes; if the block fails, everything is as it was.
        """
        with self.writing():
            target = RunDirectory(self.path, writing=stage)
            was = read_record(self._record(stage))

            def complete() -> list[Path]:
                target.record(stage)
                new = {self.path / path.relative_to(self._new(stage)) for path in self._new(stage).rglob("*")}
                unrecorded = [*self.files(stage), *(self.export_dir.glob("*.onnx*") if stage == "export" else ())]
                return [path for path in [self.path / name for name in was] or unrecorded if path not in new]

            with beside(self.path, stage, self.files(stage)[-1], complete):
                yield target
            now = read_record(self._record(stage))
            told = self.files(stage)[-1].relative_to(self.path).as_posix()  # figures, which are measured anew
            if stage == "repack" and {**was, told: None} != {**now, told: None}:
                self.clear("export")
                self._clear_controls()

    def _new(self, stage: Stage) -> Path:
        return self.path / f"{NEW}{stage}"

    def _record(self, stage: Stage) -> Path:
        folder = {"train": self.training.folder, "repack": self.repacked_dir, "export": self.export_dir}[stage]
        return folder / FILE

    def record(self, stage: Stage) -> None:
        """Write down what ``stage`` has written, for ``damaged``; what lies beside its folder is told anew later."""
        file = self._record(stage)
        root = self._new(stage) if file.is_relative_to(self._new(stage)) else self.path
        written = [path for path in file.parent.rglob("*") if path.is_file() and path not in (file, self.checkpoint)]
        written = [path for path in written if not self.training.is_told(path)]
        write_record(file, root, written)

    def damaged(self, stage: Stage) -> list[Path]:
        """What is missing of a finished ``stage``, and what is not as it was written."""
        missing = [file for file in self.files(stage) if not file.is_file()]
        return list(dict.fromkeys([*missing, *damaged(read_record(self._record(stage)), self.path)]))

    @contextmanager
    def changed(self, recipe: Recipe) -> Iterator[None]:
        """The run with another recipe, which is kept if the block succeeds; raises RunError as ``claim`` does."""
        with self.writing():
            before = self.recipe_file.read_text(encoding="utf-8")
            self.claim(recipe)
            try:
                yield
            except BaseException:
                write_text(self.recipe_file, before)
                raise

    @property
    def started(self) -> bool:
        """Whether there is any training that could be lost."""
        here = any(file.is_file() for file in (self.checkpoint, *self.files("train")))
        return here or any(point.started for point in self.points)

    def release(self) -> None:
        """Undo a claim that came to nothing: a run that never started leaves no folder behind."""
        if not self.started:
            for point in self.points:
                point.release()
            for file in (self.initial, self.training.prepared, self.training.whole, self.recipe_file):
                file.unlink(missing_ok=True)
            self.training.untell()
            for folder in (self.training.folder, self.points_dir, self.path):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def clear(self, stage: Stage) -> None:
        """Remove what ``stage`` and the stages after it left, so that nothing stale is ever taken for theirs."""
        for later in STAGES[STAGES.index(stage) :]:
            for file in (*reversed(self.files(later)), self._record(later)):
                file.unlink(missing_ok=True)
        for file in (self.page, self.junit, self.summary, *self.export_dir.glob("*.onnx*")):
            file.unlink(missing_ok=True)
        for folder in (self.huggingface, self.deci):
            shutil.rmtree(folder, ignore_errors=True)
        if stage == "train":
            for point in self.points:
                point.clear("train")
            for file in self.training.all:
                file.unlink(missing_ok=True)
            self.training.untell()
        if stage != "export":
            shutil.rmtree(self.tokenizer, ignore_errors=True)
            self._clear_controls()

    def _clear_controls(self) -> None:
        """Remove the controls of a model that is another one now."""
        for name in CONTROLS:
            self.control(name).clear()


FOLDERS = ("train", "repacked", "export", "controls", "points")
ROOT_FILES = ("report.json", "report.html", "junit.xml", "summary.md")
TRAIN_FILES = {
    "checkpoint.pt",
    "initial.safetensors",
    "dense.safetensors",
    "masked.safetensors",
    "selection.json",
    "history.json",
    "prepared.json",
    "nested.safetensors",
    "cuts.json",
    "whole.json",
    FILE,
}


def _ours(path: Path) -> bool:
    """Whether a run writes ``path``, as far as its name tells: train/ is also what folders of data are called."""
    if path.name == "train" and path.is_dir():
        return {inner.name for inner in path.iterdir()} <= TRAIN_FILES
    return path.name in (*FOLDERS, *ROOT_FILES) or path.name.startswith(".")
