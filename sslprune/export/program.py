"""A module as ``.pt2``, loadable by ``torch.export.load`` alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from sslprune.capture.lengths import any_length
from sslprune.capture.mode import evaluating
from sslprune.capture.program import quiet
from sslprune.capture.trace import keywords_named
from sslprune.errors import ExportError, RunError, first_line
from sslprune.export.portable import is_portable, make_portable_
from sslprune.files import write_beside
from sslprune.models.pt2 import read_program
from sslprune.values.carry import carries
from sslprune.values.compare import difference
from sslprune.values.inputs import of_other_lengths, open_dimensions, tensors_in

PROGRAM_TOLERANCE = 1e-5  # relative: the same operators on the same device
STATE = "state"  # the file within a .pt2 that says that the last input and the last output are carried state


def save_program(
    module: nn.Module,
    args: tuple[Any, ...],
    path: str | Path,
    kwargs: Mapping[str, Any] | None = None,
    *,
    sequence: int | None = None,
) -> Path:
    """Write ``module`` in eval mode as ``.pt2``, loadable by ``torch.export.load(path).module()`` and nothing else.

    It holds no pickle, and the same module gives the same bytes. It is loaded again and compared with ``module``, at
    other lengths too where ``sequence`` leaves them open, before it is kept; raises ExportError if it differs.
    """
    path = Path(path)
    args, kwargs = paired(args, dict(kwargs or {}))
    with quiet(), evaluating(module), row_major(module), torch.no_grad():
        program = export_program(module, args, kwargs, sequence=sequence)

        program.example_inputs = None  # they would be pickled

        def write(temporary: Path) -> None:
            torch.export.save(program, temporary, extra_files={STATE: "last"} if carries(module) else None)
            again = read_program(temporary)[0].module()
            for inputs in [(args, kwargs), *of_other_lengths((args, kwargs), sequence)]:
                _, relative = difference(module(*inputs[0], **inputs[1]), again(*inputs[0], **inputs[1]))
                if not relative <= PROGRAM_TOLERANCE:
                    raise ExportError(
                        f"{path.name}: loaded again, its output differs by {relative:.1e} (relative) from the model's"
                    )

        return write_beside(path, write)  # in a folder: torch writes the file's name into it


def export_program(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    sequence: int | None = None,
    onnx: bool = False,
) -> ExportedProgram:
    """``torch.export`` with dimension 0 (and the length of sequences) of the inputs dynamic, where the model allows.

    Of ATen's operators alone, and with ``onnx`` of such as ONNX has.
    """
    kwargs = dict(kwargs or {})
    try:
        shapes = dynamic_shapes_of(module, args, kwargs, sequence)
        with any_length(), keywords_named(module, kwargs):
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
            if is_portable(program.graph, onnx):
                return program
        plain = program.module()
        make_portable_(plain, onnx)
        with any_length(), keywords_named(plain, kwargs):  # its arguments have other names
            shapes = dynamic_shapes_of(plain, args, kwargs, sequence)
            return torch.export.export(plain, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:
        raise ExportError(f"torch.export cannot capture {type(module).__name__}: {first_line(error)}") from error


@contextmanager
def row_major(module: nn.Module) -> Iterator[None]:
    """Parameters that lie row by row inside the block, and as they did before after it.

    Training lays images and their filters channels last; a graph captured so says where each number lies, and ONNX
    then computes those places at each call: a flatten becomes a gather.
    """
    moved = [
        (parameter, parameter.data)
        for parameter in module.parameters()  # by its strides: a dimension of 1 is contiguous wherever it lies
        if parameter.stride() != torch.empty(parameter.shape, device="meta").stride()
    ]
    for parameter, data in moved:
        parameter.data = data.clone(memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        for parameter, data in moved:
            parameter.data = data


def dynamic_shapes_of(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sequence: int | None, named: bool = False
) -> Any:
    """``dynamic_shapes`` for torch.export, or, ``named``, for torch.onnx.export: the open dimensions of each input."""
    dimensions = open_dimensions((args, kwargs), sequence)

    def open_(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        return {d: name if named else Dim.AUTO for d, name in dimensions(leaf).items()}

    with keywords_named(module, kwargs):
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return pytree.tree_map(open_, dict(given))


def paired(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example with two rows where it has one: torch.export takes a dimension of 1 for a constant."""
    leaves = [leaf for leaf in tensors_in((args, kwargs)) if leaf.dim()]
    if not leaves or any(leaf.shape[0] != 1 for leaf in leaves):
        return args, kwargs
    return pytree.tree_map(
        lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() else leaf, (args, kwargs)
    )


def load(run: str | Path) -> nn.Module:
    """The repacked module of a run directory (or of a ``.pt2`` file), ready to call; it evaluates, it does not train.

    One that carries state has ``initial_state(batch_size)``, as the model had.
    Raises RunError where there is none, CheckpointError for a file that is damaged or could run code.
    """
    path = Path(run)
    path = path / "repacked" / "model.pt2" if path.is_dir() else path
    if not path.is_file():
        raise RunError(f"{path}: no repacked model there; run `sslprune repack` first")
    program, extra = read_program(path)
    module = program.module()
    if extra.get(STATE):
        state = _inputs_of(program)[0][-1]
        zeros = lambda rows: pytree.tree_map(lambda leaf: torch.zeros(rows, *leaf.shape[1:], dtype=leaf.dtype), state)  # noqa: E731
        vars(module)["initial_state"] = zeros
    return module


def _inputs_of(program: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of ``program`` without their numbers: tensors that have a shape and a type alone."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    leaves = [values.get(name) if isinstance(name, str) else name for name in program.graph_signature.user_inputs]
    return pytree.tree_unflatten(leaves, program.call_spec.in_spec)
