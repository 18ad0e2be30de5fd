"""A module to files that need neither its class nor sslprune: ``.pt2`` and ONNX, each verified before it is kept."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sslprune.capture.lengths import any_length
from sslprune.capture.mode import evaluating
from sslprune.capture.program import quiet
from sslprune.errors import ExportError, first_line
from sslprune.export.file import feeds_of, rename_dimensions
from sslprune.export.program import dynamic_shapes_of, export_program, paired, row_major
from sslprune.export.session import open_session
from sslprune.files import write_beside
from sslprune.values.carry import carries
from sslprune.values.compare import difference
from sslprune.values.inputs import of_other_lengths, random_like, tensors_in

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
) -> float:
    """Write ``module`` in eval mode as ONNX with a dynamic batch size, and prove that the file computes the same.

    ``args`` and ``kwargs`` are an example input whose tensors have the batch as dimension 0 and, where ``sequence`` is
    given, a length of at most that many steps as dimension 1, which is dynamic too ("batch", "sequence"). Checked by
    ``onnx.checker``, and by ONNX Runtime against torch on the example and on random inputs of other sizes.
    ``dynamic_axes`` gives open dimensions other names (``{"batch": "N"}``). Weights above 2 GB go to ``<path>.data``.
    Returns the largest relative difference seen. Raises ExportError, and writes nothing, when it cannot be exported
    or differs by more than 1e-3.
    """
    path = Path(path)
    args, kwargs = paired(args, dict(kwargs or {}))
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values() if isinstance(t, Tensor))
    with quiet(), evaluating(module), row_major(module), torch.no_grad():
        program = export_program(module, args, kwargs, sequence=sequence, onnx=True)
        names = list(output_names or _output_names(module(*args, **kwargs)))
        _check_names(path, module, args, kwargs, input_names, output_names)
        if carries(module) and output_names is None:  # what comes out as next_state_0 goes in as state_0
            input_names, names = _names_with_state(module, args, kwargs, names)
        try:
            with any_length():
                exported = torch.onnx.export(
                    program,
                    dynamo=True,
                    verbose=False,
                    opset_version=opset,
                    input_names=input_names,
                    output_names=names,
                    dynamic_shapes=dynamic_shapes_of(module, args, kwargs, sequence, named=True),
                )
        except Exception as error:
            raise ExportError(f"{path.name}: ONNX export failed: {first_line(_told(error))}") from error
        assert exported is not None
        largest = 0.0

        def write(temporary: Path) -> None:
            nonlocal largest
            exported.save(temporary, external_data=size > PROTOBUF_LIMIT)
            if dynamic_axes:
                rename_dimensions(temporary, dynamic_axes)
            largest = _verify_onnx(module, args, kwargs, temporary, path, sequence)

        write_beside(path, write)
    return largest


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


def _output_names(output: Any) -> list[str]:
    """``logits`` for the key of a dict, ``output`` for a lone tensor, ``output_0`` and so on for a sequence."""
    named = [(keys, leaf) for keys, leaf in pytree.tree_flatten_with_path(output)[0] if isinstance(leaf, Tensor)]
    if len(named) == 1 and not named[0][0]:
        return ["output"]
    words = [
        "_".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in keys)
        for keys, _ in named
    ]
    return [word if word.isidentifier() else f"output_{word}" for word in words]


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


def _verify_onnx(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], file: Path, path: Path, sequence: int | None
) -> float:
    """Check ``file`` (it will be called ``path``) against ``module``; returns the largest relative difference."""
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except Exception as error:
        raise ExportError(f"{path.name}: onnx.checker rejects it: {first_line(error)}") from error
    session = open_session(file)
    sizes = [random_like((args, kwargs), n, seed=n) for n in (1, 5)] if _dynamic(session) else []
    worst = 0.0
    for inputs in [(args, kwargs), *sizes, *of_other_lengths((args, kwargs), sequence)]:
        expected = tensors_in(module(*inputs[0], **inputs[1]))
        feeds = feeds_of(session, *inputs)
        try:
            outputs = session.run(None, feeds)
        except Exception as error:
            raise ExportError(f"{path.name}: ONNX Runtime cannot run it: {first_line(error)}") from error
        _, relative = difference(expected, [torch.from_numpy(np.asarray(o)) for o in outputs])
        if not relative <= ONNX_TOLERANCE:
            raise ExportError(
                f"{path.name}: ONNX Runtime differs from torch by {relative:.1e} (relative), {ONNX_TOLERANCE} allowed"
            )
        worst = max(worst, relative)
    return worst


def _dynamic(session: onnxruntime.InferenceSession) -> bool:
    return all(isinstance(i.shape[0], str) for i in session.get_inputs() if i.shape)
