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
from sslprune.files import write_atomic
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

    The file is loaded again and compared with ``module``, at other lengths too where ``sequence`` leaves them open,
    before it is kept; raises ExportError if it differs.
    """
    path = Path(path)
    with quiet(), evaluating(module), row_major(module), torch.no_grad():
        exported = export_program(module, args, kwargs, sequence=sequence)
        example = exported.args, exported.kwargs

        def write(temporary: Path) -> None:
            extra = {STATE: "last"} if carries(module) else None
            torch.export.save(exported.program, temporary, extra_files=extra)
            again = torch.export.load(temporary).module()
            for args, kwargs in [example, *of_other_lengths(example, sequence)]:
                with alike():
                    expected = module(*args, **kwargs)
                with alike():
                    _, relative = difference(expected, again(*args, **kwargs))
                if not relative <= PROGRAM_TOLERANCE:
                    raise ExportError(
                        f"{path.name}: loaded again, its output differs by {relative:.1e} (relative) from the model's"
                    )

        return write_atomic(path, write)


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
    Raises RunError where there is none.
    """
    path = Path(run)
    path = path / "repacked" / "model.pt2" if path.is_dir() else path
    if not path.is_file():
        raise RunError(f"{path}: no repacked model there; run `sslprune repack` first")
    try:
        exported, carries_state = read_program(path)
        module = exported.module()
        _check_batch_of(module, exported)
        if carries_state:
            assert exported.example_inputs is not None
            state = exported.example_inputs[0][-1]
            zeros = lambda rows: pytree.tree_map(lambda leaf: leaf.new_zeros(rows, *leaf.shape[1:]), state)  # noqa: E731
            vars(module)["initial_state"] = zeros
        return module
    except Exception as error:
        raise RunError(f"{path}: not a readable .pt2 file ({str(error).splitlines()[0]}); repack again") from error


def _check_batch_of(module: nn.Module, exported: ExportedProgram) -> None:
    """Another batch than a fixed one is refused in words about the batch; torch's own are about guards."""
    graph = module.graph
    assert isinstance(graph, fx.Graph)
    fixed, names = fixed_rows(graph), exported.call_spec.in_spec.child(1).context

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ordered = {name: kwargs[name] for name in names if name in kwargs}
        check_rows(pytree.tree_leaves((args, ordered)), fixed)

    if fixed:
        module.register_forward_pre_hook(check, with_kwargs=True)


def read_program(path: Path) -> tuple[ExportedProgram, bool]:
    """What a ``.pt2`` holds, and whether its last input and its last output are carried state."""
    files = {STATE: ""}
    return torch.export.load(path, extra_files=files), bool(files[STATE])
