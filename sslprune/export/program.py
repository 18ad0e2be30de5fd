"""A module as ``.pt2``, loadable by ``torch.export.load`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sslprune.capture.batch import check_rows, fixed_rows
from sslprune.capture.export import Exported, export_open
from sslprune.capture.mode import evaluating, row_major
from sslprune.capture.program import quiet
from sslprune.errors import ExportError, RunError, first_line
from sslprune.export.portable import is_portable, make_portable_
from sslprune.files import write_beside
from sslprune.models.pt2 import read_program
from sslprune.values.carry import carries
from sslprune.values.compare import difference
from sslprune.values.draws import alike
from sslprune.values.inputs import of_other_lengths

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
    with quiet(), evaluating(module), row_major(module), torch.no_grad():
        exported = export_program(module, args, kwargs, sequence=sequence)
        example, program = (exported.args, exported.kwargs), exported.program
        program.example_inputs = None  # they would be pickled

        def write(temporary: Path) -> None:
            extra = {STATE: "last"} if carries(module) else None
            torch.export.save(program, temporary, extra_files=extra)
            again = read_program(temporary)[0].module()
            for args, kwargs in [example, *of_other_lengths(example, sequence, exported.closed)]:
                with alike():
                    expected = module(*args, **kwargs)
                with alike():
                    _, relative = difference(expected, again(*args, **kwargs))
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
    exported: Exported | None = None,
) -> Exported:
    """``torch.export`` with dimension 0 (and the length of sequences) of the inputs dynamic, where the model allows.

    Of ATen's operators alone, and with ``onnx`` of such as ONNX has. ``exported``: of ``module``, any operators.
    """
    try:
        found = exported or export_open(module, args, dict(kwargs or {}), sequence)
        if is_portable(found.program.graph, onnx):
            return found
        plain = found.program.module()
        make_portable_(plain, onnx)
        return export_open(plain, found.args, found.kwargs, sequence)
    except Exception as error:
        raise ExportError(f"torch.export cannot capture {type(module).__name__}: {first_line(error)}") from error


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
    _check_batch_of(module, program)
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


def _check_batch_of(module: nn.Module, exported: ExportedProgram) -> None:
    """Another batch than a fixed one is refused in words about the batch; torch's own are about guards."""
    graph = module.graph
    assert isinstance(graph, fx.Graph)
    fixed, names = fixed_rows(graph), exported.call_spec.in_spec.child(1).context

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ordered = {name: kwargs[name] for name in names if name in kwargs}
        check_rows(pytree.tree_leaves((args, ordered)), fixed)

    if fixed:
        module.register_forward_pre_hook(check, with_kwargs=True, prepend=True)  # before torch's own
