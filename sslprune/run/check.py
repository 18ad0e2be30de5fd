"""What can be known to fail at the end is said at the beginning, before any training."""

from __future__ import annotations

from typing import Any

import onnxruntime
import torch
from torch import nn

from sslprune.bench.compare import Platform
from sslprune.capture.mode import set_mode, unchanged
from sslprune.data import Data
from sslprune.errors import DataError, RecipeError, SslpruneError
from sslprune.export.huggingface import check_class
from sslprune.export.session import knows_opset, open_session
from sslprune.models.build import build_model
from sslprune.models.decoder import cache_sizes
from sslprune.recipe import ControlSection, Recipe
from sslprune.run.build import as_model
from sslprune.train.chance import at_chance
from sslprune.train.compiled import check_compiles
from sslprune.train.hidden import check_named
from sslprune.values.carry import carries
from sslprune.values.inputs import tensors_in
from sslprune.values.outputs import listed, output_names
from sslprune.values.tasks import MODEL, Task
from sslprune.values.voice import Voice

ANY_DROP = 100.0  # points
DEVICES, RUNTIMES = ("cpu", "cuda"), ("onnxruntime", "tensorrt", "torch", "torch.compile")


def check(recipe: Recipe) -> None:
    """Controls that cannot be built or opened, gates on what is not on this machine, an opset that it does not know."""
    for control in recipe.control:
        try:
            if control.onnx is not None:
                open_session(control.onnx, 1)
            else:
                build_model(as_model(control))
        except SslpruneError as error:
            raise RecipeError(f"control {control.name}: {error}") from error
    for gate in recipe.gate:
        for field, known in (("device", DEVICES), ("runtime", RUNTIMES)):
            if getattr(gate, field) not in known:
                raise RecipeError(f'gate.{field}: "{getattr(gate, field)}" is not known; known are {", ".join(known)}')
        absent = Platform(gate.device, gate.runtime).absent if gate.min_speedup is not None else None
        reason = (
            "it is for CUDA alone" if (gate.device, gate.runtime) == ("cpu", "tensorrt") else absent and absent.reason
        )
        if gate.min_speedup is not None and reason:
            raise RecipeError(
                f"gate: min_speedup of {gate.variant} in {gate.runtime} on {gate.device} cannot be measured here: "
                f"{reason}; run where it can, or leave the gate out"
            )
    opset = recipe.export.opset
    if opset is not None and not knows_opset(opset):
        raise RecipeError(f"export.opset: ONNX Runtime {onnxruntime.__version__} knows no opset {opset}; leave it out")


def check_model(recipe: Recipe, data: Data, model: nn.Module) -> None:
    """Outputs among which the task does not say which one it is about, names of inputs and outputs that do not fit,
    layers that an export or ``train.compile`` refuses, and names of modules that there are not.

    ``model`` is asked once in each mode, on the CPU, and left as it was.
    """
    for format in ("huggingface", "deci"):
        if getattr(recipe.export, format):
            check_class(model, f"export.{format}")
    if recipe.export.decoder:
        cache_sizes(model)
    if recipe.train.compile:
        check_compiles(model)
    if recipe.distill is not None:
        check_named(model, recipe.distill.modules)
    args, kwargs = data.example_for(model)
    for control in recipe.control:
        _check_classes(control, data)
    outputs = [_asked(model, training, args, kwargs) for training in (False, True)]
    if outputs[0] is None:
        return  # it fails by itself: tracing says how
    evaluated, trained = (given[0] if carries(model) and given is not None else given for given in outputs)
    if data.task.is_usual or not all(metric.raw for metric in data.task.metrics.values()):
        _check_said(data.task, evaluated, trained)
    for field, given, names in (
        ("input_names", recipe.export.input_names, [f"input {i}" for i in range(len(tensors_in((args, kwargs))))]),
        ("output_names", recipe.export.output_names, output_names(outputs[0])),
    ):
        if given and (len(given) != len(names) or len(set(given)) != len(given)):
            raise RecipeError(
                f"export.{field}: {', '.join(given)}; the model has {len(names)} ({', '.join(names)}), and each needs "
                "a name of its own"
            )


def _check_classes(control: ControlSection, data: Data) -> None:
    """Raise RecipeError for an ONNX file of other classes than those that are kept; a factory's model is cut."""
    if data.kept is None or control.onnx is None:
        return
    shapes = [node.shape for node in open_session(control.onnx, 1).get_outputs()]
    if not any(len(shape) > 1 and shape[1] == len(data.kept.numbers) for shape in shapes):
        raise RecipeError(
            f"control {control.name}: gives {', '.join(map(str, shapes))}; data.keep_classes leaves "
            f"{len(data.kept.numbers)} classes: give a file of those, or a factory, whose model is cut to them"
        )


def _check_said(task: Task, evaluated: Any, trained: Any) -> None:
    """Raise DataError where ``task`` does not say which of the outputs it is about, in either mode."""
    task.said(evaluated)
    if trained is None:
        return
    try:
        task.said(trained)
    except DataError as error:
        raise DataError(f"in evaluation it gives {listed(evaluated)}; in training {error}") from error


def compares_metrics(recipe: Recipe) -> bool:
    """Whether a gate of the recipe compares metrics with the dense model's: a drop of 100 points is any drop."""
    limits = [section.max_metric_drop for section in (recipe.gates, *recipe.gate)]
    return any(limit is not None and limit < ANY_DROP for limit in limits)


def check_chance(recipe: Recipe, data: Data, model: nn.Module, show: Voice, *, force: bool) -> None:
    """A model that knows nothing of the data, and that no dense epoch trains: what it loses says nothing.

    An error where a gate compares with it, unless ``force``; a word of warning otherwise.
    """
    judged = not recipe.schedule.dense.count and recipe.train.loss != MODEL
    if not judged or not at_chance(model, data.train, data.task):
        return
    said = "the dense model does no better on its own targets than on those of other samples: it is not trained"
    if compares_metrics(recipe) and not force:
        raise RecipeError(
            f"{said}, and gates.max_metric_drop would compare with it; set model.checkpoint, train it first with "
            'schedule.dense = "10ep", or give --force to go on all the same'
        )
    show.say(f"{said}; metrics are no measure of what is lost", "yellow")


@torch.no_grad()
def _asked(model: nn.Module, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``model`` returns in one of its modes; None where it does not."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with unchanged(model), torch.random.fork_rng(devices=[]):
            set_mode(model, training)
            return model(*args, **kwargs)
    except Exception:
        return None
    finally:
        for buffer, old in saved:
            buffer.copy_(old)
