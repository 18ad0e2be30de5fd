"""Every path of a run directory, and who may use it.

RUN/recipe.toml                                              the recipe with its overrides, paths made absolute
RUN/train/     checkpoint.pt  dense.safetensors  masked.safetensors  selection.json  history.json
               initial.safetensors, the weights that it began with, where the model has no checkpoint
RUN/repacked/  model.pt2  weights.safetensors  plan.json  result.json
               tokenizer/, where the data are text: the tokenizer's own files, and labels.json, the classes' names
RUN/export/    model.onnx  dense.onnx, and one file for each quantized variant and control
RUN/report.json  report.html  junit.xml  summary.md
RUN/controls/NAME/  as RUN/train/, weights.safetensors at the end; result.json
RUN/points/0.5/  an earlier point of a sweep: a run directory of its own; the last point is RUN itself
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sslprune.errors import RunError
from sslprune.files import write_text
from sslprune.recipe import Recipe, load_recipe
from sslprune.train.checkpoint import TrainingFiles

Stage = Literal["train", "repack", "export"]
ControlName = Literal["dense", "scratch", "ticket"]
CONTROLS: tuple[ControlName, ...] = ("dense", "scratch", "ticket")


class ControlFiles(TrainingFiles):
    """Where one control of a run is trained, and its figures."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "weights.safetensors")

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    def clear(self) -> None:
        for file in (self.result, *self.all):
            file.unlink(missing_ok=True)


class RunDirectory:
    """The folder of one run. Nothing is created before something is written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.toml"

        self.training = TrainingFiles(self.path / "train")
        self.checkpoint, self.initial, self.dense = self.training.checkpoint, self.training.initial, self.training.dense
        self.masked, self.selection = self.training.masked, self.training.selection
        self.history = self.training.history

        self.repacked_dir = self.path / "repacked"
        self.program = self.repacked_dir / "model.pt2"
        self.weights = self.repacked_dir / "weights.safetensors"
        self.plan = self.repacked_dir / "plan.json"
        self.result = self.repacked_dir / "result.json"
        self.tokenizer = self.repacked_dir / "tokenizer"

        self.points_dir = self.path / "points"

        self.export_dir = self.path / "export"
        self.onnx = self.export_dir / "model.onnx"
        self.dense_onnx = self.export_dir / "dense.onnx"
        self.report = self.path / "report.json"
        self.page = self.path / "report.html"
        self.junit = self.path / "junit.xml"
        self.summary = self.path / "summary.md"

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
        begun = [RunDirectory(file.parent) for file in self.points_dir.glob("*/recipe.toml")]
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

    def claim(self, recipe: Recipe) -> None:
        """Make the folder this recipe's own; raises RunError if it is another recipe's, or not a run's at all.

        Recipes that differ only in what training does not read (``[bench]``, ``[gates]``, ``[export]``) share a run.
        """
        if self.recipe_file.is_file():
            other = self.recipe()
            keys = other.differences(recipe)
            if keys and self.started:
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                raise RunError(
                    f"{self.path}: holds a run of another recipe ({', '.join(keys[:3])}{more} differ);"
                    " name another folder with --run, or delete this one"
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunError(f"{self.path}: exists and is not a run directory; name another folder with --run")
        write_text(self.recipe_file, recipe.to_toml())

    @contextmanager
    def changed(self, recipe: Recipe) -> Iterator[None]:
        """The run with another recipe, which is kept if the block succeeds; raises RunError as ``claim`` does."""
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
            self.recipe_file.unlink(missing_ok=True)
            for folder in (self.training.folder, self.points_dir, self.path):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def clear(self, stage: Stage) -> None:
        """Remove what ``stage`` and the stages after it left, so that nothing stale is ever taken for theirs."""
        stages: tuple[Stage, ...] = ("train", "repack", "export")
        for later in stages[stages.index(stage) :]:
            for file in reversed(self.files(later)):
                file.unlink(missing_ok=True)
        for file in (self.page, self.junit, self.summary, *self.export_dir.glob("*.onnx*")):
            file.unlink(missing_ok=True)
        if stage == "train":
            for point in self.points:
                point.clear("train")
            self.checkpoint.unlink(missing_ok=True)
            self.initial.unlink(missing_ok=True)
            self.selection.unlink(missing_ok=True)
        for name in CONTROLS if stage != "export" else ():  # of a model that is about to be another one
            self.control(name).clear()
