"""`trace`: capture a model with torch.export, without guards, in-place operators or surprises."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sslprune.capture.batch import fixed_inputs
from sslprune.capture.carried import carried_state
from sslprune.capture.draws import random_operators
from sslprune.capture.export import Exported, export_fixed, export_open, export_rows
from sslprune.capture.functional import functional
from sslprune.capture.gradients import reached, switches_gradients, who_stays, without_gradient
from sslprune.capture.mode import row_major, set_mode, unchanged
from sslprune.capture.program import Program, operator_name, quiet
from sslprune.capture.refusals import own_failure, own_failure_text, reason, where, why_not
from sslprune.errors import TraceError
from sslprune.values.axes import tensors_of
from sslprune.values.inputs import num_rows

PRODUCTS = {"linear", "matmul", "mm", "bmm", "addmm", "einsum", *(f"conv{n}d" for n in (1, 2, 3))}


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    sequence: int | None = None,
) -> Program:
    """Capture ``model`` as a `Program`: a training and an evaluation graph, with dimension 0 of its inputs left open.

    That is the batch, or rows of its own for an input that has another number of them; what its code fixes is noted.

    ``args`` and ``kwargs`` are example inputs, any batch size; the last of ``args`` is the state of a model that
    carries one (``values.carry``). Where ``sequence`` is given, dimension 1 of the inputs is a length, of at most
    that many steps, and is left open too. The model is left in the mode that it was in.
    Raises TraceError, quoting ``torch.export``'s reason, where the model cannot be exported.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("a scripted model (torch.jit) cannot be exported; trace the model before it is scripted")
    if not isinstance(args, tuple):
        raise TraceError(f"args must be a tuple of example inputs, got {type(args).__name__}; write (x,) for one input")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TraceError(f"kwargs must map names to example inputs, got {type(kwargs).__name__}")
    kwargs = dict(kwargs or {})
    _check_names(model)
    notes: list[str] = []
    with unchanged(model), row_major(model):
        set_mode(model, False)
        given = args, kwargs
        try:
            exported = export_open(model, args, kwargs, sequence)
        except TraceError:
            raise
        except Exception as error:
            raise TraceError(f"{type(model).__name__} {why_not(model, args, kwargs, error)}") from error
        args, kwargs = exported.args, exported.kwargs
        _check_types(exported.program.graph, model, *given)
        evaluation, module = functional(exported.program)
        if exported.dynamic_batch:
            notes += fixed_inputs(evaluation)
        else:
            notes.append("the batch size is fixed: the model does not export with an open one")
        random = random_operators(evaluation)
        if random:
            notes.append(f"random numbers are drawn in evaluation: {'; '.join(random)}")
        training = None
        out_specs: tuple[pytree.TreeSpec, ...] = (exported.program.call_spec.out_spec,)
        try:
            if not set_mode(model, True):
                raise TraceError("the model has no training mode")
            trained, (training, training_module), untrained = _trained(model, args, kwargs, exported, sequence)
            carried_state(model, args, kwargs, trained)
            out_specs = (*out_specs, trained.call_spec.out_spec)
        except Exception as error:
            training, untrained = None, frozenset()
            notes.append(f"no training graph: {reason(error)}{where(error, model)}")
    own = tensors_of(model)
    holders = [(evaluation, module), *([(training, training_module)] if training is not None else [])]
    tensors, constants, aliases = _state_of(holders, own)
    notes += who_stays([name for name in tensors if name in untrained])
    return Program(
        evaluation=evaluation, training=training, args=args, kwargs=kwargs, tensors=tensors, constants=constants,
        aliases=aliases, in_spec=exported.program.call_spec.in_spec, out_specs=out_specs,
        batch=num_rows((args, kwargs)), dynamic_batch=exported.dynamic_batch, sequence=sequence, notes=tuple(notes),
        carried=carried_state(model, args, kwargs, exported.program), random=random, untrained=untrained,
        exported=exported.program,
    )  # fmt: skip


def _state_of(
    holders: Sequence[tuple[fx.Graph, nn.Module]], own: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, tuple[str, ...]]]:
    """The tensors of graphs by their names, those of them that are not the model's ``own``, and all names of each."""
    tensors: dict[str, torch.Tensor] = {}
    constants: dict[str, torch.Tensor] = {}
    for graph, holder in holders:
        for node in graph.nodes:
            if node.op == "get_attr":
                tensor = operator.attrgetter(str(node.target))(holder)
                if not isinstance(tensor, torch.Tensor):
                    raise TraceError(f"{node.target} is a {type(tensor).__name__}; only tensors can be pruned")
                if str(node.target) not in own:
                    if str(node.target) in constants and not torch.equal(constants[str(node.target)], tensor):
                        node.target = f"{node.target}_training"
                    constants[str(node.target)] = tensor
                tensors[str(node.target)] = own.get(str(node.target), tensor)
    aliases = {
        name: tuple(other for other, value in own.items() if value is tensor)
        for name, tensor in tensors.items()
        if name in own
    }
    return tensors, constants, aliases


def trace_evaluation(model: nn.Module, args: tuple[Any, ...], shapes: Any) -> Program:
    """``model``, which carries state, in evaluation alone: a `Program` without a training graph.

    ``shapes``: what is open of ``args``, as torch.export takes it (``dynamic_shapes``). Of the state, the last of
    ``args``, that may be sizes that grow from call to call. Raises TraceError.
    """
    with unchanged(model), row_major(model), quiet():
        set_mode(model, False)
        try:
            with torch.no_grad():
                exported = torch.export.export(model, args, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise TraceError(f"{type(model).__name__} {why_not(model, args, {}, error)}") from error
        graph, module = functional(exported)
    tensors, constants, aliases = _state_of([(graph, module)], tensors_of(model))
    state = len(pytree.tree_leaves(args[-1]))
    inputs, spec = len(pytree.tree_leaves(args)) - state, exported.call_spec.out_spec
    return Program(
        evaluation=graph, training=None, args=args, kwargs={}, tensors=tensors, constants=constants, aliases=aliases,
        in_spec=exported.call_spec.in_spec, out_specs=(spec,), batch=num_rows(args), dynamic_batch=True,
        carried=tuple((inputs + i, spec.num_leaves - state + i) for i in range(state)),
    )  # fmt: skip


def _trained(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], like: Exported, sequence: int | None
) -> tuple[torch.export.ExportedProgram, tuple[fx.Graph, nn.Module], frozenset[str]]:
    """The model in training mode, open as ``like`` is, its graph, and the parameters that no gradient reaches."""
    again = export_rows if like.dynamic_batch else export_fixed
    switches, own = switches_gradients(model, args, kwargs), tensors_of(model)
    program = again(model, args, kwargs, sequence, switches)
    made = functional(program)
    untrained = without_gradient(made[0], own)
    trained = reached(model, args, kwargs, untrained, own) if untrained else frozenset()
    if trained and switches:
        program = again(model, args, kwargs, sequence)
        made = functional(program)
    return program, made, untrained - trained


def _check_types(graph: fx.Graph, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a product of tensors of two types that the model itself refuses: torch.export lets it pass."""
    for node in graph.nodes:
        if node.op == "call_function" and operator_name(node) in PRODUCTS:
            types = {n.meta["val"].dtype for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)}
            failure = own_failure(model, args, kwargs) if len(types) > 1 else None
            if failure is not None:
                text = own_failure_text(args, kwargs, failure, model)
                raise TraceError(f"{type(model).__name__} {text}") from failure


def _check_names(model: nn.Module) -> None:
    """Raise TraceError for a child or a weight of the model itself that has the name of a graph's own attribute."""
    graph = fx.GraphModule({}, fx.Graph())
    for name in {name.partition(".")[0] for name in tensors_of(model)}:
        if hasattr(graph, name):
            raise TraceError(f"{name}: an exported graph has an attribute of that name itself; rename the model's")
