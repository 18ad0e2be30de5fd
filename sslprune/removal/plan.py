"""The plan: what a repack took away, so that any instance of the model's own class can be made as small.

``plan.json`` (schema 1) holds, by tensor name, its old and new shape and the kept indices of each dimension that
shrank; the weights that are zero because their branch was dropped; and the operators whose arguments had to change,
which a module's own Python code may or may not be able to say. A size that the model reads from its input stands there
as that input and its dimension: ``view(b, 256)`` becomes ``[{"input": "x", "dim": 0}, 128]``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file
from torch import fx, nn
from typing_extensions import TypeAliasType

from sslprune.analysis.rewriter import Change
from sslprune.capture.program import Program, module_of, operator_name
from sslprune.errors import RepackError, RunError
from sslprune.files import write_text
from sslprune.kinds.find import analysis_of
from sslprune.removal.factors import Form, factor_, fold_
from sslprune.removal.fold import folding
from sslprune.removal.gates import gate_
from sslprune.removal.remove import changed_operators, dropped_branches, kept_atoms, removable
from sslprune.values.axes import Axis, tensors_of
from sslprune.values.selection import Selection

SCHEMA: Literal[1] = 1
PREPARED = "prepared.json"  # in a training's folder: the plan of what was done to the model before it
OWN: dict[type[nn.Module], tuple[str, ...]] = {  # the arguments that a module reads from its attributes of that name
    nn.modules.conv._ConvNd: ("groups", "stride", "padding", "dilation"),
    nn.GroupNorm: ("num_groups",),
    nn.LayerNorm: ("normalized_shape",),
    nn.RMSNorm: ("normalized_shape", "eps"),
}
RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AxisPlan(Frozen):
    """One axis: how many groups it had, and which stayed."""

    name: str
    kind: str
    before: int
    kept: tuple[int, ...]


class TensorPlan(Frozen):
    """One tensor: old and new shape, and the kept indices of the dimensions that shrank.

    Where a convolution lost columns, those of dimension 1 are indices of the old weight flattened from there on.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    kept: dict[int, tuple[int, ...]]


class InputSize(Frozen):
    """The size of one dimension of an input of the model, known only when it is called."""

    input: str  # as the model's forward calls it
    dim: int


class Computed(Frozen):
    """What an operator makes of other values while the model runs: ``{"operator": "mul", "of": [..., 4]}``.

    ``module`` is where it stands, "" for the model itself. A tensor is said by the operator that makes it, without what
    that one reads; a tensor of the model stands under its own name.
    """

    operator: str
    module: str = ""
    of: tuple[Value, ...]


Value = TypeAliasType("Value", "bool | int | float | str | InputSize | Computed | tuple[Value, ...] | None")


class OperatorPlan(Frozen):
    """An operator whose arguments changed: where it stands, what it is, which argument, and its new value."""

    module: str
    operator: str
    argument: str
    value: Value


class Plan(Frozen):
    """What a repack took away."""

    schema_: Literal[1] = SCHEMA
    axes: tuple[AxisPlan, ...]
    tensors: dict[str, TensorPlan]
    zeroed: tuple[str, ...]
    operators: tuple[OperatorPlan, ...]
    labels: int | None = None  # how many classes are left, where it is for some of them
    gates: tuple[str, ...] = ()  # the weights of routers that got gates, before all else
    factors: dict[str, Form] = {}  # the weights that became two factors, before all else but gates
    folded: tuple[str, ...] = ()  # those of them that are one again, after all else
    first: Plan | None = None  # what was done to the whole model before anything was learned


def make_plan(model: nn.Module, program: Program, axes: Sequence[Axis], *, allow_inexact: bool = False) -> Plan:
    """The plan of repacking ``model``, as `repack` with the same arguments does: the groups that are zero go.

    ``apply_plan`` makes another instance of the model's class as small; ``plan.model_dump_json()`` is ``plan.json``.
    """
    selection = removable(program, Selection.zeros(model, axes), allow_inexact=allow_inexact)
    return plan_of(program, selection)


def plan_of(program: Program, selection: Selection) -> Plan:
    """The plan of taking the groups of ``selection`` away."""
    kept = kept_atoms(program, selection)
    g = analysis_of(program).inference
    tensors = {}
    for name, names in program.aliases.items():
        before = tuple(program.tensors[name].shape)
        masks = [kept.mask(dim) for dim in g.state[name]]
        shrunk = {d: tuple(np.flatnonzero(m).tolist()) for d, m in enumerate(masks) if not m.all()}
        after = tuple(int(m.sum()) for m in masks)
        if name in g.columns and kept.changed(g.columns[name].own):
            order = g.columns[name].order(kept.mask(g.columns[name].dim))
            shrunk = {d: index for d, index in shrunk.items() if d == 0} | {1: tuple(order.tolist())}
            after = (after[0], len(order), *(1 for _ in before[2:]))
        if shrunk:
            plan = TensorPlan(before=before, after=after, kept=shrunk)
            tensors.update(dict.fromkeys(names, plan))
    return Plan(
        axes=tuple(
            AxisPlan(name=a.name, kind=a.kind, before=a.size, kept=tuple(np.flatnonzero(~gone).tolist()))
            for a, gone in zip(selection.axes, selection, strict=True)
            if gone.any()
        ),
        tensors=tensors,
        zeroed=tuple(
            dict.fromkeys(m.name for axis in dropped_branches(selection) if not axis.atoms.size for m in axis.members)
        ),
        operators=tuple(_operator(change) for change in changed_operators(program, selection)),
        folded=tuple(pair.name for pair in folding(program, kept)),
    )


def _operator(change: Change) -> OperatorPlan:
    return OperatorPlan(
        module=change.module, operator=change.operator, argument=change.argument, value=_value(change.value)
    )


def _value(value: Any) -> Value:
    """An argument in the plan's own words: what the graph computes is said by its operators, back to the inputs."""
    if isinstance(value, list | tuple):
        return tuple(_value(part) for part in value)
    if not isinstance(value, fx.Node):
        return value if value is None or isinstance(value, bool | int | float) else str(value)
    if value.op != "call_function":
        return str(value.target)
    if operator_name(value) == "sym_size" and value.args[0].op == "placeholder":  # type: ignore[union-attr]
        return InputSize(input=str(value.args[0].target), dim=value.args[1])  # type: ignore[union-attr, arg-type]
    a_number = not isinstance(value.meta.get("val"), torch.Tensor | tuple | list)
    of = tuple(_value(part) for part in value.args) if a_number else ()
    return Computed(operator=operator_name(value), module=module_of(value), of=of)


def prepared_as(model: nn.Module, file: str | Path) -> nn.Module:
    """``model`` as that of a training was prepared, of whose folder ``file`` is one: as the plan there says, if any."""
    plan = Path(file).with_name(PREPARED)
    return apply_plan(model, read_plan(plan)) if plan.is_file() else model


def write_plan(path: str | Path, plan: Plan) -> None:
    """Write ``plan`` to ``path``, whole or not at all."""
    write_text(path, plan.model_dump_json() + "\n")


def read_plan(path: str | Path) -> Plan:
    """Read ``plan.json``. Raises RunError where it is missing or of another schema."""
    again = "repack again"
    if Path(path).name == PREPARED:
        again = "`sslprune train` with --resume makes it again"
    try:
        return Plan.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise RunError(f"{path}: no plan there ({error.strerror}); run `sslprune repack` first") from error
    except (ValidationError, json.JSONDecodeError) as error:
        raise RunError(f"{path}: not a plan of schema {SCHEMA} ({str(error).splitlines()[0]}); {again}") from error


def apply_plan(model: nn.Module, plan: Plan | str | Path, weights: str | Path | None = None) -> nn.Module:
    """Shrink a fresh instance of the user's own class, in place, to the repacked shapes, and load the weights.

    ``plan`` is a run directory, a ``plan.json``, or a Plan; ``weights`` is ``weights.safetensors`` beside it unless
    given. A dropped branch stays in place with its last weights at zero. Raises RepackError naming the module whose own
    code cannot say what the plan needs (a kernel cropped on one side, a view with fixed sizes, layers of an ``nn.LSTM``
    with different widths): `load` runs those.
    """
    if not isinstance(plan, Plan):
        path = Path(plan)
        path = path / "repacked" / "plan.json" if path.is_dir() else path
        weights = weights or path.with_name("weights.safetensors")
        plan = read_plan(path)
    fixed = [c for c in plan.operators if not _is_own(model, c) and not _has_one_width(model, c.module)]
    if fixed:
        raise RepackError(
            f"{fixed[0].module or 'the model'}: its own code fixes the arguments of `{fixed[0].operator}`, which the "
            f"plan changes ({len(fixed)} such places); use sslprune.load, which needs no class"
        )
    if plan.first is not None:
        apply_plan(model, plan.first)
    gate_(model, plan.gates)
    factor_(model, plan.factors)
    state = tensors_of(model)
    for name, change in plan.tensors.items():
        if 0 in change.after:
            raise RepackError(
                f"{name.rpartition('.')[0] or 'the model'}: nothing is left of {name}, whose path of a concatenation "
                "went, and its own code still computes it; use sslprune.load, which needs no class"
            )
        if name not in state or tuple(state[name].shape) not in (change.before, change.after):
            found = f"shape {tuple(state[name].shape)}" if name in state else "no such tensor"
            raise RepackError(
                f"{name}: the plan is for shape {change.before}, the model has {found}; build the same model"
            )
    small: dict[int, torch.Tensor] = {}
    for name, change in plan.tensors.items():
        _renumber(model, name, change)
        _replace(model, name, _shrunk(state[name], change, small))
    for module in {name.rpartition(".")[0] for name in plan.tensors}:
        _tell(model.get_submodule(module))
    holders: tuple[Any, ...] = (model, getattr(model, "config", None))
    for holder in holders:
        if plan.labels is not None and hasattr(holder, "num_labels"):
            holder.num_labels = plan.labels
    fold_(model, plan.folded)
    for operator in plan.operators:
        if _is_own(model, operator):
            setattr(model.get_submodule(operator.module), operator.argument, operator.value)
    if weights is not None:
        stored, state = load_file(weights), tensors_of(model)
        for name in stored.keys() - state.keys():
            raise RepackError(f"{weights}: tensor {name} is not in the model; build the same model")
        with torch.no_grad():
            for name, tensor in stored.items():
                if state[name].shape != tensor.shape:
                    raise RepackError(
                        f"{name}: {tuple(tensor.shape)} in {weights}, {tuple(state[name].shape)} in the model"
                    )
                state[name].copy_(tensor)
    with torch.no_grad():
        for name in plan.zeroed:
            tensors_of(model)[name].zero_()
    return model


def _shrunk(tensor: torch.Tensor, change: TensorPlan, done: dict[int, torch.Tensor]) -> torch.Tensor:
    """The kept slice of ``tensor``; a shared tensor is cut once and stays shared."""
    if id(tensor) not in done:
        cut = tensor.detach()
        if tuple(cut.shape) == change.before:
            for d, kept in change.kept.items():
                cut = cut.index_select(d, torch.tensor(kept, device=cut.device))
        parameter = isinstance(tensor, nn.Parameter)
        done[id(tensor)] = nn.Parameter(cut, requires_grad=tensor.requires_grad) if parameter else cut
    return done[id(tensor)]


def _replace(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, RECURRENT) and not _has_one_width(model, path):
        raise RepackError(
            f"{path}: an nn.{type(module).__name__} holds one width for all its layers; use sslprune.load"
        )
    setattr(module, leaf, tensor)


def _renumber(model: nn.Module, name: str, change: TensorPlan) -> None:
    """Tokens that a model knows by their number, where rows of its embedding go: padding, and the special ones."""
    module = model.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, nn.Embedding) or 0 not in change.kept or len(module.weight) != change.before[0]:
        return
    new = {old: number for number, old in enumerate(change.kept[0])}
    module.padding_idx = new.get(module.padding_idx) if module.padding_idx is not None else None
    config: Any = getattr(model, "config", None)
    if getattr(config, "vocab_size", None) == change.before[0]:
        config.vocab_size = len(new)
        for holder in filter(None, (config, getattr(model, "generation_config", None))):
            for key, value in list(vars(holder).items()):
                if key.endswith("_token_id") and isinstance(value, int | list):
                    several = value if isinstance(value, list) else [value]  # tokens that end a text
                    found = [new.get(number, number) for number in several]
                    setattr(holder, key, found if several is value else found[0])


def _is_own(model: nn.Module, change: OperatorPlan) -> bool:
    """Whether the argument is an attribute of the module that calls the operator, which can be set."""
    try:
        module = model.get_submodule(change.module)
    except AttributeError:  # another model than the plan's, which its tensors will say
        return False
    padded = getattr(module, "padding_mode", "zeros") != "zeros"  # the module pads by itself, with numbers of its own
    return not padded and any(isinstance(module, kind) and change.argument in names for kind, names in OWN.items())


def _has_one_width(model: nn.Module, path: str) -> bool:
    """Whether the module is a recurrent one of a single layer, whose attributes can say any width."""
    try:
        module = model.get_submodule(path)
    except AttributeError:  # another model than the plan's, which its tensors will say
        return False
    return isinstance(module, RECURRENT) and module.num_layers == 1 and not module.proj_size


def _tell(module: nn.Module) -> None:
    """Bring a module's own record of its sizes in line with its tensors."""
    weight: Any = getattr(module, "weight", None)
    match module:
        case nn.Linear():
            module.out_features, module.in_features = weight.shape
        case nn.modules.batchnorm._NormBase():
            module.num_features = next(t.shape[0] for t in (weight, module.running_mean) if t is not None)
        case nn.RNNBase():
            own: Any = module
            own.hidden_size, own.input_size = own.weight_hh_l0.shape[1], own.weight_ih_l0.shape[1]
        case nn.LayerNorm() | nn.RMSNorm():
            module.normalized_shape = tuple(weight.shape)
        case nn.GroupNorm():
            module.num_channels = weight.shape[0]
        case nn.Embedding():
            module.num_embeddings, module.embedding_dim = weight.shape
        case nn.modules.conv._ConvTransposeNd():
            module.in_channels, module.out_channels = weight.shape[:2]
        case nn.modules.conv._ConvNd():
            module.out_channels, module.in_channels = weight.shape[:2]
