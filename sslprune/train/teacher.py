"""Distillation: how a teacher's answers enter the loss, and the teacher where it is not the run's own dense model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslprune.data import Data
from sslprune.errors import RecipeError, RunError, SslpruneError
from sslprune.models.build import build_model, load_checkpoint, load_trained, load_weights
from sslprune.recipe import DistillSection, ModelSection, TeacherSection, load_recipe
from sslprune.removal.factors import fold_
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.prepare import fitted
from sslprune.values.carry import carrying
from sslprune.values.inputs import arguments, each
from sslprune.values.tasks import Task

FIELD = "distill.teacher"


def build_teacher(section: TeacherSection, student: nn.Module, data: Data) -> nn.Module:
    """The model that ``section`` names, to be asked only: a run's dense model, or one that a factory builds.

    Raises RecipeError, in one line that begins with the field, for one that cannot be built, that does not take the
    student's inputs, or whose outputs have another shape, as those of other classes have.
    """
    with torch.random.fork_rng(devices=[]):  # the student's own draws are not disturbed
        try:
            teacher = _of_run(section.run) if section.run is not None else build_model(as_model(section))[0]
        except SslpruneError as error:
            raise RecipeError(f"{FIELD}: {error}") from error
    ours = _shape(student, data)
    try:
        teacher = fitted(teacher, data).eval().requires_grad_(False)
        theirs = _shape(teacher, data)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        said = " ".join(str(error).split())
        raise RecipeError(f"{FIELD}: cannot take the model's inputs: {said[:200]}") from error
    if theirs != ours:
        shown = [", ".join(map(str, shapes)) for shapes in (theirs, ours)]
        raise RecipeError(
            f"{FIELD}: gives outputs of shape {shown[0]} where the model gives {shown[1]}; it has to know the same "
            "classes"
        )
    return teacher


def _of_run(path: str) -> nn.Module:
    recipe, files = Path(path) / "recipe.toml", TrainingFiles(Path(path) / "train")
    if not recipe.is_file():
        raise RunError(f"{path}: not a run directory (no recipe.toml); `sslprune run RECIPE --run {path}` makes one")
    if not files.masked.is_file():
        raise RunError(f"{path}: {files.masked} is missing; first `sslprune train {recipe} --run {path} --resume`")
    return fold_(load_trained(load_recipe(recipe).model, files.dense))


def as_model(section: TeacherSection) -> ModelSection:
    assert section.factory is not None
    return ModelSection(
        factory=section.factory, arguments=section.arguments, checkpoint=section.checkpoint, key=section.key
    )


@torch.no_grad()
def _shape(model: nn.Module, data: Data) -> list[tuple[int, ...]]:
    """The shapes of what ``model`` says of the data's example."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    args, kwargs = arguments(each(data.example, lambda value: value.to(device)))
    was_training = model.training
    model.eval()
    try:
        return [tuple(said.shape) for said in data.task.said(carrying(model)(*args, **kwargs))]
    finally:
        model.train(was_training)


def dense_of(model: nn.Module, previous: TrainingFiles | None) -> nn.Module:
    """What the run's dense model is, before anything is trained; of a sweep that of its first point."""
    if previous is None:
        return model
    dense = copy.deepcopy(model)
    load_weights(dense, load_checkpoint(previous.dense), previous.dense)
    return dense


def mixed_loss(loss: Tensor, outputs: Any, taught: Any, targets: Any, task: Task, section: DistillSection) -> Tensor:
    """``loss`` and the distance to what the teacher said of the same batch, weighted as ``section`` says."""
    distance = task.distillation(outputs, taught, targets, section.temperature)
    return (1 - section.weight) * loss + section.weight * distance
