"""`trace`: capture a model with torch.export, without guards, in-place operators or surprises."""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sslprune.capture.lengths import any_length
from sslprune.capture.program import Program, operator_name, quiet
from sslprune.capture.refusals import own_failure, own_failure_text, place, reason, where, why_not
from sslprune.errors import TraceError
from sslprune.values.axes import tensors_of
from sslprune.values.carry import carries
from sslprune.values.inputs import length_of, num_rows, open_dimensions

PASSES = {"dropout", "feature_dropout", "alpha_dropout", "type_as"}  # may return the input itself, and do not say so


PRODUCTS = {"linear", "matmul", "mm", "bmm", "addmm", "einsum", *(f"conv{n}d" for n in (1, 2, 3))}


def _doubled(value: Any, batch: int) -> Any:
    """Example inputs of batch 1 made batch 2: an exported graph takes a size of 1 for a constant."""

    def double(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == batch == 1:
            return torch.cat([leaf, leaf])
        return leaf

    return pytree.tree_map(double, value)


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_batch: bool = True,
    sequence: int | None = None,
) -> torch.export.ExportedProgram:
    """``torch.export`` with the batch, and the length of sequences where there are any, left open."""
    dimensions = open_dimensions((args, kwargs), sequence)

    def spec(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return dict.fromkeys(dimensions(leaf), torch.export.Dim.AUTO) if dynamic_batch else {}
        return None

    with keywords_named(model, kwargs), quiet(), any_length(), torch.no_grad():
        given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        shapes = pytree.tree_map(spec, dict(given))
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


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


def _graph(exported: torch.export.ExportedProgram) -> tuple[fx.Graph, nn.Module]:
    """The exported program's graph without guards or in-place operators, its state as ``get_attr`` nodes."""
    with quiet(), any_length():
        module = exported.module(check_guards=False)
        if _sub_graphs(module) or not _functionalize(module.graph):
            module = exported.run_decompositions({}).module(check_guards=False)
            if not _functionalize(module.graph):
                raise TraceError("the model changes a view of a tensor in place in a way that cannot be undone")
            for node in module.graph.nodes:  # what was a flatten is a view by now, and fails in another memory format
                if node.target is torch.ops.aten.view.default:
                    node.target = torch.ops.aten.reshape.default
    for node in _sub_graphs(module):
        raise TraceError(
            f"{place(next(iter(node.users), node))} decides by the data what is computed: such a model has no one "
            "graph; trace a model without it"
        )
    module.graph.eliminate_dead_code(is_impure_node=_writes_state)
    for node in module.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor) and any(
                isinstance(n, torch.SymInt) and n.node.hint is None for n in value.shape
            ):
                raise TraceError(f"{place(node)}: its size depends on the data; such a model has no fixed axes")
    return module.graph, module


def _sub_graphs(module: nn.Module) -> list[fx.Node]:
    """The graphs within the graph: control flow, and regions of another autocast or gradient mode."""
    graph: fx.Graph = module.graph  # type: ignore[assignment]
    return [
        n
        for n in graph.nodes
        if n.op == "get_attr" and hasattr(module, n.target) and isinstance(getattr(module, n.target), nn.Module)
    ]


def _is_view(node: fx.Node) -> bool:
    """Whether the node's result may share memory with its first argument."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    first = node.target._schema.arguments[0]
    return (first.alias_info is not None and not first.alias_info.is_write) or operator_name(node) in PASSES


def _root(node: fx.Node) -> fx.Node:
    while _is_view(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _writes_state(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if not node.target._schema.is_mutable and operator_name(node) != "batch_norm":
        return False
    return (
        any(isinstance(a, fx.Node) and _root(a).op == "get_attr" for a in node.args[:5])
        and node.target._schema.is_mutable
    )


def _functionalize(graph: fx.Graph) -> bool:
    """Replace ``op_`` by ``op``; False where another view of the changed tensor is read afterwards."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    roots: dict[fx.Node, fx.Node] = {}  # of the nodes so far
    families: dict[fx.Node, list[fx.Node]] = {}  # of each root: what shares its memory so far
    for node in list(graph.nodes):
        if _is_view(node):
            roots[node] = roots[node.args[0]]
        else:
            roots[node] = node
        families.setdefault(roots[node], []).append(node)
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if not node.target._schema.is_mutable or not isinstance(node.args[0], fx.Node):
            continue
        changed = node.args[0]
        root = roots[changed]
        if root.op == "get_attr":
            if changed is not root and operator_name(node) != "copy_":
                return False
            if changed is root:  # a buffer's update stays, and what reads its result reads the buffer
                node.replace_all_uses_with(root)
            continue
        late = any(
            order.get(user, -1) > order[node]
            for other in families[root]
            if other is not changed
            for user in other.users
        )
        name, overload = operator_name(node)[:-1], node.target._overloadname
        packet = getattr(torch.ops.aten, name, None)
        if late or not operator_name(node).endswith("_") or packet is None or not hasattr(packet, overload):
            return False
        node.target = getattr(packet, overload)
        for user in list(changed.users):
            if order[user] > order[node]:
                user.replace_input_with(changed, node)
    graph.lint()
    return True


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    sequence: int | None = None,
) -> Program:
    """Capture ``model`` as a `Program`: a training and an evaluation graph, with dimension 0 (the batch) left open.

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
    notes: list[str] = []
    with _unchanged(model):
        _set_mode(model, False)
        given = args, kwargs
        exported, args, kwargs, dynamic = _try_export(model, args, kwargs, sequence)
        _check_types(exported.graph, model, *given)
        if not dynamic:
            notes.append("the batch size is fixed: the model does not export with an open one")
        evaluation, module = _graph(exported)
        training = None
        try:
            if not _set_mode(model, True):
                raise TraceError("the model has no training mode")
            training, training_module = _graph(export(model, args, kwargs, dynamic, sequence))
        except Exception as error:
            notes.append(f"no training graph: {reason(error)}{where(error, model)}")
    own = tensors_of(model)
    tensors: dict[str, torch.Tensor] = {}
    constants: dict[str, torch.Tensor] = {}
    for graph, holder in ((evaluation, module), *(((training, training_module),) if training is not None else ())):
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
    return Program(
        evaluation=evaluation, training=training, args=args, kwargs=kwargs, tensors=tensors, constants=constants,
        aliases=aliases, in_spec=exported.call_spec.in_spec, out_spec=exported.call_spec.out_spec,
        batch=num_rows((args, kwargs)), dynamic_batch=dynamic, sequence=sequence, notes=tuple(notes),
        carried=_carried(model, args, kwargs, exported),
    )  # fmt: skip


def _carried(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], exported: torch.export.ExportedProgram
) -> tuple[tuple[int, int], ...]:
    """Where the carried state stands among the leaves of the inputs and of the outputs; raises TraceError for none."""
    if not carries(model):
        return ()
    initial = pytree.tree_leaves(model.initial_state(num_rows((args, kwargs))))  # type: ignore[operator]
    given, spec = pytree.tree_leaves(args[-1]), exported.call_spec.out_spec
    parts = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    parts = list(parts.values()) if isinstance(parts, Mapping) else parts if isinstance(parts, tuple | list) else []
    returned = len(pytree.tree_leaves(parts[-1])) if len(parts) > 1 else 0
    inputs, outputs = len(pytree.tree_leaves(args)) - len(given), spec.num_leaves - returned
    values: list[Any] = [node.meta.get("val") for node in _outputs(exported.graph)[outputs:]] if returned else []
    shapes = [
        [tuple(leaf.shape[1:]) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        for leaves in (initial, given, values)
    ]
    if not initial or shapes[0] != shapes[1] or shapes[0] != shapes[2]:
        raise TraceError(
            f"{type(model).__name__} has an initial_state of shapes {shapes[0]}, without the batch; expected the same "
            f"as last argument, got {shapes[1]}, and as last of the outputs, got {shapes[2]}"
        )
    if any(leaf.count_nonzero() for leaf in initial):
        raise TraceError(
            f"{type(model).__name__}: the initial state is not zero; expected zeros, which stay where units go"
        )
    return tuple((inputs + i, outputs + i) for i in range(len(given)))


def _outputs(graph: fx.Graph) -> list[fx.Node]:
    leaves: Any = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    return list(leaves)


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Every module leaves the block as it came: its mode, and what its attributes, lists and dicts hold.

    A model's forward may keep what it computed, and must not be left with what an export computes with.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad) for p in model.parameters() if not nn.parameter.is_lazy(p)]
    held: list[tuple[Any, Any]] = []
    for module, _ in modes:
        if not isinstance(module, torch.jit.ScriptModule):
            held.append((vars(module), dict(vars(module))))
            held += [(value, copy.copy(value)) for value in vars(module).values() if type(value) in CONTAINERS]
    try:
        yield
    finally:
        _set_mode(model, modes[0][1])
        for value, old in held:
            if len(value) != len(old) or any(a is not b for a, b in zip(_contents(value), _contents(old), strict=True)):
                value.clear()
                value.extend(old) if isinstance(value, list) else value.update(old)
        for module, mode in modes:
            module.training = mode
        for parameter, trained in parameters:
            parameter.requires_grad_(trained)


CONTAINERS = (dict, OrderedDict, list, set)


def _contents(value: Any) -> list[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)


def _set_mode(model: nn.Module, training: bool) -> bool:
    """Training or evaluation mode; False where the model has but one, as one that was loaded from a .pt2 does."""
    try:
        model.train(training)
    except NotImplementedError:
        return False
    return True


def _try_export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sequence: int | None
) -> tuple[torch.export.ExportedProgram, tuple[Any, ...], dict[str, Any], bool]:
    """The exported model, the example inputs that it was exported with, and whether the batch is open.

    An example of batch 1 is tried as one of batch 2; what does not export so has its batch size fixed. A length that
    was to stay open and does not is a TraceError.
    """
    batch = num_rows((args, kwargs))
    wide_args, wide_kwargs = _doubled(args, batch), _doubled(kwargs, batch)
    try:
        exported = export(model, wide_args, wide_kwargs, sequence=sequence)
        inputs = {spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
        sizes = [node.meta["val"].shape for node in exported.graph.nodes if node.name in inputs and "val" in node.meta
                 and isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].dim()]  # fmt: skip
        if sequence is not None and not any(_is_open(shape[1]) for shape in sizes if len(shape) > 1):
            raise TraceError(
                f"{type(model).__name__} fixes the length of its input at {length_of((args, kwargs))}: its own code "
                "turns a size into a number; give it batches of one length: leave data.max_length out, or set "
                "data.fixed_length = true"
            )
        return exported, wide_args, wide_kwargs, any(_is_open(shape[0]) for shape in sizes)
    except TraceError:
        raise
    except Exception as error:
        if sequence is not None:
            raise TraceError(f"{type(model).__name__} {why_not(model, args, kwargs, error)}") from error
        try:
            return export(model, args, kwargs, dynamic_batch=False), args, kwargs, False
        except Exception as error:
            raise TraceError(f"{type(model).__name__} {why_not(model, args, kwargs, error)}") from error


def _check_types(graph: fx.Graph, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a product of tensors of two types that the model itself refuses: torch.export lets it pass."""
    for node in graph.nodes:
        if node.op == "call_function" and operator_name(node) in PRODUCTS:
            types = {n.meta["val"].dtype for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)}
            failure = own_failure(model, args, kwargs) if len(types) > 1 else None
            if failure is not None:
                text = own_failure_text(args, kwargs, failure, model)
                raise TraceError(f"{type(model).__name__} {text}") from failure


def _is_open(size: int | torch.SymInt) -> bool:
    """Whether a size of an exported graph may change; one that the model turned out to need is a SymInt still."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None
