"""A call of torch.export: which dimensions stay open, and what the arguments are called."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

from sslprune.capture.batch import closed_inputs, is_open
from sslprune.capture.lengths import any_length
from sslprune.capture.program import Program, quiet
from sslprune.errors import TraceError
from sslprune.values.axes import tensors_of
from sslprune.values.inputs import length_of, num_rows, open_dimensions, row_counts


@dataclass(frozen=True)
class Exported:
    """What torch.export made of a model, and the example that it was exported with."""

    program: torch.export.ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_batch: bool  # whether the batch is open

    @property
    def closed(self) -> frozenset[int]:
        """The tensors among the inputs, by their numbers, whose dimension 0 has one size."""
        return closed_inputs(input_values(self.program))

    @classmethod
    def of(cls, program: torch.export.ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exported:
        """``program`` with an example of its inputs."""
        values = input_values(program)
        return cls(program, args, kwargs, any(is_open(value.shape[0]) for value in values if value.dim()))


def export_open(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sequence: int | None) -> Exported:
    """``torch.export`` with as much left open as the model allows.

    An example of batch 1 is tried as one of batch 2; what does not export so has the rows fixed that are not the
    batch's, and then the batch size. A length that was to stay open and does not is a TraceError. Else raises what
    torch.export raises.
    """
    batch = num_rows((args, kwargs))
    wide_args, wide_kwargs = _doubled(args, batch), _doubled(kwargs, batch)
    try:
        program = export_rows(model, wide_args, wide_kwargs, sequence)
    except Exception:
        if sequence is not None:
            raise
        return Exported(export_fixed(model, args, kwargs), args, kwargs, False)
    sizes = [value.shape for value in input_values(program) if value.dim()]
    if sequence is not None and not any(is_open(shape[1]) for shape in sizes if len(shape) > 1):
        raise TraceError(
            f"{type(model).__name__} fixes the length of its input at {length_of((args, kwargs))}: its own code "
            "turns a size into a number; give it batches of one length: leave data.max_length out, or set "
            "data.fixed_length = true"
        )
    return Exported.of(program, wide_args, wide_kwargs)


def export_rows(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sequence: int | None, gradients: bool = False
) -> torch.export.ExportedProgram:
    """With the rows of every input open, or those of the batch alone where the model does not export so."""
    if len(row_counts((args, kwargs))) > 1:
        with contextlib.suppress(Exception):
            return export(model, args, kwargs, sequence=sequence, gradients=gradients)
    return export(model, args, kwargs, sequence=sequence, several=False, gradients=gradients)


def export_fixed(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sequence: int | None = None,
    gradients: bool = False,
) -> torch.export.ExportedProgram:
    """With nothing open but the length of sequences where there are any."""
    return export(model, args, kwargs, dynamic_batch=False, sequence=sequence, gradients=gradients)


def _settle_(program: torch.export.ExportedProgram) -> None:
    """Sizes of inputs that the model turned into numbers are numbers: ONNX takes any symbol for an open size."""
    numbers = lambda sizes: [size if is_open(size) else int(size) for size in sizes]  # noqa: E731
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        if isinstance(value, FakeTensor) and any(isinstance(n, torch.SymInt) and not is_open(n) for n in value.shape):
            with value.fake_mode:
                node.meta["val"] = torch.empty_strided(
                    numbers(value.shape), numbers(value.stride()), dtype=value.dtype, device=value.device
                )


def input_values(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    """What stands for each tensor among the inputs, its open sizes as symbols."""
    inputs = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    return [value for value in values if isinstance(value, torch.Tensor)]


def exported_for(program: Program, model: nn.Module) -> Exported | None:
    """What torch.export would make of ``model``, an instance that ``program`` serves; None where nobody knows."""
    if program.exported is None or not program.serves(model):
        return None
    again, own = copy.copy(program.exported), tensors_of(model)
    again._state_dict = {name: own[name] for name in program.exported.state_dict}
    again._constants = {name: own.get(name, value) for name, value in program.exported.constants.items()}
    return Exported(again, program.args, program.kwargs, program.dynamic_batch)


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_batch: bool = True,
    sequence: int | None = None,
    several: bool = True,
    gradients: bool = False,
) -> torch.export.ExportedProgram:
    """``torch.export`` with the batch, and the length of sequences where there are any, left open.

    ``several``: and the rows of inputs that have another number of them. ``gradients``: the graph says where they stop.
    """
    dimensions = open_dimensions((args, kwargs), sequence, several=several)

    def spec(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return dict.fromkeys(dimensions(leaf), torch.export.Dim.AUTO) if dynamic_batch else {}
        return None

    with keywords_named(model, kwargs), quiet(), any_length(), torch.set_grad_enabled(gradients):
        given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        shapes = pytree.tree_map(spec, dict(given))
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    _settle_(program)
    return program


@contextlib.contextmanager
def keywords_named(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block what ``**kwargs`` would take has names: with ``**kwargs``, torch.export loses count of sizes."""
    signature = inspect.signature(model.forward)
    parameters = list(signature.parameters.values())
    extra = [name for name in kwargs if name not in signature.parameters]
    if not extra or all(p.kind is not p.VAR_KEYWORD for p in parameters):
        yield
        return
    forward, own = model.forward, "forward" in vars(model)

    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    kept = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    kept += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in extra]
    vars(named)["__signature__"] = signature.replace(parameters=kept)
    vars(model)["forward"] = named
    try:
        yield
    finally:
        if own:
            vars(model)["forward"] = forward
        else:
            del vars(model)["forward"]


def _doubled(value: Any, batch: int) -> Any:
    """Example inputs of batch 1 made batch 2: an exported graph takes a size of 1 for a constant."""

    def double(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == batch == 1:
            return torch.cat([leaf, leaf])
        return leaf

    return pytree.tree_map(double, value)
