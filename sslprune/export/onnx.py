"""A module to files that need neither its class nor sslprune: ``.pt2`` and ONNX, each verified before it is kept."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sslprune.capture.draws import random_operators, what_is_random
from sslprune.capture.export import Exported, keywords_named
from sslprune.capture.lengths import any_length
from sslprune.capture.mode import evaluating, row_major
from sslprune.capture.program import quiet
from sslprune.errors import ExportError, first_line
from sslprune.export.file import feeds_of, rename_dimensions
from sslprune.export.matching import near_matches
from sslprune.export.program import export_program
from sslprune.export.session import open_session
from sslprune.export.weights import beside, embed
from sslprune.files import write_beside
from sslprune.values import outputs
from sslprune.values.carry import carries
from sslprune.values.compare import difference
from sslprune.values.inputs import num_rows, of_other_lengths, open_dimensions, random_like, tensors_in

ONNX_TOLERANCE = 1e-3  # relative: ONNX Runtime fuses and reorders sums
PROTOBUF_LIMIT = 2**31 - 2**24  # bytes of weights in one ONNX file, with room for the graph


def export_onnx(
    module: nn.Module,
    args: tuple[Any, ...],
    path: str | Path,
    kwargs: Mapping[str, Any] | None = None,
    *,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    sequence: int | None = None,
    dynamic_axes: Mapping[str, str] | None = None,
    exported: Exported | None = None,
) -> float:
    """Write ``module`` in eval mode as ONNX with a dynamic batch size, and prove that the file computes the same.

    ``args`` and ``kwargs`` are an example input whose tensors have the batch as dimension 0 and, where ``sequence`` is
    given, a length of at most that many steps as dimension 1, which is dynamic too ("batch", "sequence"). Checked by
    ``onnx.checker``, and by ONNX Runtime against torch on the example and on random inputs of other sizes.
    ``dynamic_axes`` gives open dimensions other names (``{"batch": "N"}``). Weights above 2 GB go to ``<path>.data``.
    ``exported`` is what torch.export has made of ``module`` before, where somebody has it.
    Returns the largest relative difference seen. Raises ExportError, and writes nothing, when it cannot be exported
    or differs by more than 1e-3.
    """
    path = Path(path)
    with quiet(), evaluating(module), row_major(module), torch.no_grad():
        made = export_program(module, args, kwargs, sequence=sequence, onnx=True, exported=exported)
        args, kwargs = made.args, made.kwargs
        random = random_operators(made.program.graph)
        if random:
            raise ExportError(f"{path.name}: the model {what_is_random(random)}")
        names = list(output_names or outputs.output_names(module(*args, **kwargs)))
        _check_names(path, module, args, kwargs, input_names, output_names)
        if carries(module) and output_names is None:  # what comes out as next_state_0 goes in as state_0
            input_names, names = _names_with_state(module, args, kwargs, names)
        sizes = _names_of_sizes(module, args, kwargs, sequence)
        converted = convert(path, made.program, opset, input_names, names, sizes)
        largest = 0.0

        def write(temporary: Path) -> None:
            nonlocal largest
            save_onnx(converted, temporary, path, dynamic_axes)
            largest = _verify_onnx(module, made, temporary, path, sequence)

        write_beside(path, write)
    return largest


def convert(
    path: Path,
    program: torch.export.ExportedProgram,
    opset: int | None,
    input_names: Sequence[str] | None,
    output_names: Sequence[str],
    sizes: Any,
) -> torch.onnx.ONNXProgram:
    """``program`` as ONNX, which will be ``path``; ``sizes``: the names of open dimensions. Raises ExportError."""
    try:
        with any_length(), near_matches():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=sizes,
            )
    except Exception as error:
        raise ExportError(f"{path.name}: ONNX export failed: {first_line(_told(error))}") from error
    assert converted is not None
    written = converted.model.opset_imports[""]
    if opset is not None and written != opset:
        raise ExportError(
            f"{path.name}: opset {opset} was asked for, and the exporter writes {written}; set export.opset = "
            f"{written}, or leave it out"
        )
    return converted


def save_onnx(
    converted: torch.onnx.ONNXProgram, file: Path, path: Path, dynamic_axes: Mapping[str, str] | None = None
) -> None:
    """Write ``converted`` as ``file``, to be called ``path``, its weights beside it where one file cannot hold them.

    ``dynamic_axes``: other names of open dimensions. Raises ExportError for a graph that onnx.checker rejects.
    """
    converted.save(file, external_data=True)
    if dynamic_axes:
        rename_dimensions(file, dynamic_axes)
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except Exception as error:
        raise ExportError(f"{path.name}: onnx.checker rejects it: {first_line(error)}") from error
    if beside(file).stat().st_size <= PROTOBUF_LIMIT:
        embed(file)


def _told(error: BaseException) -> BaseException:
    """The innermost error that says which operator ONNX lacks: what is raised says how to report a bug to torch."""
    while error.__cause__ is not None and "ONNX" in str(error):
        error = error.__cause__
    return error


def _names_with_state(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[str]
) -> tuple[list[str], list[str]]:
    """Names of the inputs and outputs of a model that carries state: "state_0" and "next_state_0", and so on."""
    state = [f"state_{i}" for i in range(len(tensors_in(args[-1])))]
    positional = list(inspect.signature(module.forward).parameters)[: len(args) - 1]
    plain = [*positional, *kwargs] if len(positional) == len(args) - 1 else [f"input_{i}" for i in range(len(args) - 1)]
    others = outputs[: len(outputs) - len(state)]
    return [*plain, *state], [*(["output"] if len(others) == 1 else others), *(f"next_{name}" for name in state)]


def _check_names(
    path: Path,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> None:
    """Names that a person chose are as many as there are tensors, and no two alike."""
    found = {"input_names": (input_names, len(tensors_in((args, kwargs))))}
    if output_names:
        found["output_names"] = (output_names, len(tensors_in(module(*args, **kwargs))))
    for key, (names, count) in found.items():
        if names and (len(names) != count or len(set(names)) != count):
            raise ExportError(
                f"{path.name}: {key} are {', '.join(names)}; the model has {count}, and each needs a name of its own"
            )


def _names_of_sizes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sequence: int | None) -> Any:
    """What the open dimensions of each input are called, as torch.onnx.export takes it."""
    dimensions = open_dimensions((args, kwargs), sequence)
    with keywords_named(module, kwargs):
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return pytree.tree_map(lambda leaf: dimensions(leaf) if isinstance(leaf, Tensor) else None, dict(given))


def _verify_onnx(module: nn.Module, made: Exported, file: Path, path: Path, sequence: int | None) -> float:
    """Run ``file`` (it will be called ``path``) beside ``module``; returns the largest relative difference.

    At other batch sizes too where the batch is open.
    """
    session, example = open_session(file), (made.args, made.kwargs)
    others = [random_like(example, n, n, made.closed) for n in (1, 5)] if made.dynamic_batch else []
    worst = 0.0
    for args, kwargs in [example, *others, *of_other_lengths(example, sequence, made.closed)]:
        batch = num_rows((args, kwargs))
        try:
            expected = tensors_in(module(*args, **kwargs))
        except Exception as error:
            raise ExportError(
                f"{path.name}: the model itself takes no batch of {batch}, where the example has "
                f"{num_rows(example)}: {first_line(error)}; mend what fixes its batch size"
            ) from error
        try:
            outputs = session.run(None, feeds_of(session, args, kwargs))
        except Exception as error:
            raise ExportError(
                f"{path.name}: ONNX Runtime cannot run it at a batch of {batch}: {first_line(error)}"
            ) from error
        _, relative = difference(expected, [torch.from_numpy(np.asarray(o)) for o in outputs])
        if not relative <= ONNX_TOLERANCE:
            raise ExportError(
                f"{path.name}: ONNX Runtime differs from torch by {relative:.1e} (relative), {ONNX_TOLERANCE} allowed"
            )
        worst = max(worst, relative)
    return worst
