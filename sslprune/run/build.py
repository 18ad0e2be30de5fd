"""The models of the last stage: ONNX files of dense and repacked, of quantized variants and of controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from sslprune.bench.contenders import module_loader, program_loader
from sslprune.capture.export import Exported, exported_for
from sslprune.capture.program import Program
from sslprune.capture.trace import trace
from sslprune.cost.counts import Cost
from sslprune.data import Data
from sslprune.errors import ExportError, SslpruneError
from sslprune.export.file import feeds_of
from sslprune.export.onnx import export_onnx
from sslprune.export.program import load
from sslprune.export.quantize import notes, quantize
from sslprune.export.session import open_session
from sslprune.models.build import build_model, count_parameters
from sslprune.models.pt2 import read_program
from sslprune.recipe import ControlSection, ModelSection, Recipe
from sslprune.report import RepackResult, Size
from sslprune.run.directory import RunDirectory
from sslprune.run.huggingface import FORMATS, write_directory
from sslprune.show.terminal import Show
from sslprune.train.prepare import fitted
from sslprune.values.carry import with_state
from sslprune.values.inputs import arguments, counts_rows, each, num_rows


@dataclass(frozen=True)
class Built:
    """One model of the comparison: its ONNX file, and what is known of it before it is measured."""

    name: str
    path: Path
    kind: str  # "dense", "repacked", "quantized" or "control"
    parameters: int | None = None
    macs: int | None = None
    module: Callable[[str], nn.Module] | None = None  # for torch, on a device


def build(
    recipe: Recipe,
    directory: RunDirectory,
    result: RepackResult,
    dense: nn.Module,
    data: Data,
    show: Show,
    program: Program | None = None,
) -> list[Built]:
    """The ONNX files: dense, repacked, each quantized variant of the repacked one, and the controls, in this order.

    Nothing is exported twice: the dense model was where there is its ``program``, and the repacked one is its .pt2.
    Before them the directories of weights, where the recipe asks for one.
    """
    section, size = recipe.export, result.repacked
    for format in FORMATS:
        if getattr(section, format):  # what a class cannot hold is said before anything takes minutes
            write_directory(directory, recipe, data, show, format)
    named: dict[str, Any] = {
        "opset": section.opset,
        "dynamic_axes": section.dynamic_axes,
        "sequence": data.sequence,
        "input_names": section.input_names or None,
        "output_names": section.output_names or None,
    }
    small = repacked_loader(directory)
    with show.progress("exporting ONNX", 2 + len(section.quantize) + len(recipe.control)) as bar:
        bar.advance(0, file=directory.dense_onnx.name)
        known = exported_for(program, dense) if program is not None else None
        _export(dense, data, directory.dense_onnx, {**named, "exported": known})
        bar.advance(1, file=directory.onnx.name)
        session = open_session(directory.dense_onnx)
        named["input_names"] = [node.name for node in session.get_inputs()]
        named["output_names"] = [node.name for node in session.get_outputs()]
        module = small("cpu")
        args, kwargs = data.example_for(module)
        known = Exported.of(read_program(directory.program)[0], args, kwargs)
        export_onnx(module, args, directory.onnx, kwargs, **named, exported=known)
        bar.advance()
        built = [
            _built("dense", directory.dense_onnx, result.dense, module_loader(dense)),
            _built("repacked", directory.onnx, size, small),
        ]
        for kind in section.quantize:
            path = directory.export_dir / f"{kind}.onnx"
            bar.advance(0, file=path.name)
            quantize(directory.onnx, path, kind, _calibration(directory.onnx, module, data, section.calibration))
            built.append(Built(kind, path, "quantized", size.parameters, size.macs))
            bar.advance()
        for control in recipe.control:
            bar.advance(0, file=control.onnx or f"control-{control.name}.onnx")
            built.append(_control(control, directory, data, named))
            bar.advance()
    for kind in section.quantize:
        for note in notes(kind, directory.onnx):
            show.say(note, "yellow")
    return built


def _export(module: nn.Module, data: Data, path: Path, named: dict[str, Any]) -> None:
    args, kwargs = data.example_for(module)
    export_onnx(module, args, path, kwargs, **named)


def _built(kind: str, path: Path, size: Size, module: Callable[[str], nn.Module]) -> Built:
    return Built(kind, path, kind, size.parameters, size.macs, module)


def _control(control: ControlSection, directory: RunDirectory, data: Data, named: dict[str, Any]) -> Built:
    try:
        if control.onnx is not None:
            open_session(control.onnx, 1)
            return Built(control.name, Path(control.onnx), "control")
        model = fitted(build_model(as_model(control))[0], data)
        path = directory.export_dir / f"control-{control.name}.onnx"
        program = trace(model, *data.example_for(model), sequence=data.sequence)
        _export(model, data, path, {**named, "exported": exported_for(program, model)})
        macs = round(Cost(program, []).macs())
    except SslpruneError as error:
        raise ExportError(f"control {control.name}: {error}") from error
    return Built(control.name, path, "control", count_parameters(model), macs, module_loader(model))


def repacked_loader(directory: RunDirectory) -> Callable[[str], nn.Module]:
    """Loads the run's repacked program for a device, with its initial state where it carries one."""

    def at(device: str) -> nn.Module:
        module = load(directory.program)
        if device == "cpu":
            return module
        moved = program_loader(directory.program)(device)
        vars(moved).update({key: value for key, value in vars(module).items() if key == "initial_state"})
        return moved

    return at


def _calibration(path: Path, module: nn.Module, data: Data, samples: int) -> Iterator[dict[str, np.ndarray]]:
    """Training data until ``samples`` samples have been seen: never the test data. State begins with zeros."""
    session, seen = open_session(path, 1), 0
    for inputs, _ in data.train.epoch(0):
        args, kwargs = arguments(each(inputs, Tensor.cpu))
        rows = feeds_of(session, with_state(module, args), kwargs)
        if counts_rows(inputs):
            yield rows
        else:
            yield {name: value[: samples - seen] if value.ndim else value for name, value in rows.items()}
        seen += num_rows((args, kwargs))
        if seen >= samples:
            return


def as_model(control: ControlSection) -> ModelSection:
    assert control.factory is not None
    return ModelSection(
        factory=control.factory, arguments=control.arguments, checkpoint=control.checkpoint, key=control.key
    )
