"""`trace`: a model as graphs of ATen operators, one for training and one for evaluation, on shared parameters."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sslprune.axes import tensors_of
from sslprune.errors import TraceError

VIEWS = {
    "alias", "as_strided", "chunk", "detach", "diagonal", "expand", "expand_as", "flatten", "narrow", "permute",
    "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten",
    "unfold", "unsqueeze", "view", "view_as",
}  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A traced model. Made by `trace`; read by `find_axes` and `repack`.

    ``evaluation`` and ``training`` are flat graphs whose ``get_attr`` nodes name parameters and buffers of the model
    (``training`` is None where the model does not export in training mode). ``tensors`` holds the shapes' tensors by
    graph name, ``constants`` those that are not the model's own. ``batch`` is the example's batch size.
    """

    evaluation: fx.Graph
    training: fx.Graph | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]
    aliases: dict[str, tuple[str, ...]]  # graph name -> every name of that tensor in the model
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    batch: int
    dynamic_batch: bool
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        return (self.evaluation,) if self.training is None else (self.evaluation, self.training)

    def is_trained(self, name: str) -> bool:
        """Whether a tensor of the graphs is a parameter that training changes."""
        tensor = self.tensors[name]
        return isinstance(tensor, nn.Parameter) and tensor.requires_grad

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(graph.nodes)} nodes" for graph in self.graphs)
        return f"Program({len(self.tensors)} tensors, {sizes}, batch {'dynamic' if self.dynamic_batch else self.batch})"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's warnings and log lines: they are about its insides, not about the person's model."""
    loggers = [
        logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.fx", "torch._dynamo", "torch.onnx")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        # where an export fails, torch prints the unfinished graph to standard error
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def batch_size(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Dimension 0 of the first tensor input; 1 where there is none."""
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return leaf.shape[0]
    return 1


def _doubled(value: Any, batch: int) -> Any:
    """Example inputs of batch 1 made batch 2: an exported graph takes a size of 1 for a constant."""

    def double(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == batch == 1:
            return torch.cat([leaf, leaf])
        return leaf

    return pytree.tree_map(double, value)


def export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_batch: bool = True
) -> torch.export.ExportedProgram:
    """``torch.export`` with dimension 0 of every tensor input that has the batch's size left open."""
    batch = batch_size(args, kwargs)

    def spec(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            open_ = dynamic_batch and leaf.dim() and leaf.shape[0] == batch
            return {0: torch.export.Dim.AUTO} if open_ else {}
        return None

    shapes: Any = pytree.tree_map(spec, args), pytree.tree_map(spec, kwargs)
    names = list(inspect.signature(model.forward).parameters.values())
    by_name: dict[str, Any] = {}
    positional = [p.name for p in names if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for name, value in zip(positional, shapes[0], strict=False):
        by_name[name] = value
    if len(shapes[0]) > len(positional):
        variable = next(p.name for p in names if p.kind is p.VAR_POSITIONAL)
        by_name[variable] = tuple(shapes[0][len(positional) :])
    for name, value in shapes[1].items():
        if any(p.name == name for p in names):
            by_name[name] = value
        else:
            by_name.setdefault(next(p.name for p in names if p.kind is p.VAR_KEYWORD), {})[name] = value
    with quiet(), torch.no_grad():
        return torch.export.export(model, args, kwargs, dynamic_shapes=by_name, strict=False)


def _graph(exported: torch.export.ExportedProgram) -> tuple[fx.Graph, nn.Module]:
    """The exported program's graph without guards or in-place operators, its state as ``get_attr`` nodes."""
    with quiet():
        module = exported.module(check_guards=False)
        if not _functionalize(module.graph):
            module = exported.run_decompositions({}).module(check_guards=False)
            if not _functionalize(module.graph):
                raise TraceError("the model changes a view of a tensor in place in a way that cannot be undone")
    module.graph.eliminate_dead_code(is_impure_node=_writes_state)
    return module.graph, module


def operator_name(node: fx.Node) -> str:
    """``add`` for ``aten.add.Tensor``; with the namespace where it is not ATen's; the target's own name otherwise."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target._schema.name).removeprefix("aten::")
    return str(getattr(node.target, "__name__", node.target))


def module_of(node: fx.Node) -> str:
    """The path of the module whose forward made the node; "" for the model itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _root(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and operator_name(node) in VIEWS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
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
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if not node.target._schema.is_mutable or not isinstance(node.args[0], fx.Node):
            continue
        changed, root = node.args[0], _root(node.args[0])
        if root.op == "get_attr":
            if changed is not root and operator_name(node) != "copy_":
                return False
            continue  # a buffer's update
        family = [
            other for other in order if other is not changed and other.op == "call_function" and _root(other) is root
        ]
        if changed is not root:
            family.append(root)
        late = [
            user for other in family for user in other.users if order.get(user, -1) > order[node] and other is not node
        ]
        name, overload = operator_name(node)[:-1], node.target._overloadname
        packet = getattr(torch.ops.aten, name, None)
        if late or not operator_name(node).endswith("_") or packet is None or not hasattr(packet, overload):
            return False
        node.target = getattr(packet, overload)
        for user in list(changed.users):
            if order.get(user, -1) > order[node]:
                user.replace_input_with(changed, node)
    graph.lint()
    return True


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
) -> Program:
    """Capture ``model`` as a `Program`: a training and an evaluation graph, with dimension 0 (the batch) left open.

    ``args`` and ``kwargs`` are example inputs, any batch size. The model is left in the mode that it was in.
    Raises TraceError, quoting ``torch.export``'s reason, where the model cannot be exported.
    """
    if not isinstance(args, tuple):
        raise TraceError(f"args must be a tuple of example inputs, got {type(args).__name__}; write (x,) for one input")
    kwargs = dict(kwargs or {})
    batch = batch_size(args, kwargs)
    args, kwargs = _doubled(args, batch), _doubled(kwargs, batch)
    modes = {module: module.training for module in model.modules()}
    notes: list[str] = []
    try:
        model.eval()
        exported, dynamic = _try_export(model, args, kwargs)
        if not dynamic:
            notes.append("the batch size is fixed: the model does not export with an open one")
        evaluation, module = _graph(exported)
        training = None
        try:
            model.train()
            training, training_module = _graph(export(model, args, kwargs, dynamic))
        except Exception as error:
            notes.append(f"no training graph: {_first_line(error)}")
    finally:
        for part, mode in modes.items():
            part.training = mode
    own = tensors_of(model)
    tensors: dict[str, torch.Tensor] = {}
    constants: dict[str, torch.Tensor] = {}
    for graph, holder in ((evaluation, module), *(((training, training_module),) if training is not None else ())):
        for node in graph.nodes:
            if node.op == "get_attr":
                tensor = operator.attrgetter(str(node.target))(holder)
                if not isinstance(tensor, torch.Tensor):
                    raise TraceError(
                        f"{node.target}: a sub-graph (control flow) cannot be pruned; trace a model without it"
                    )
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
        batch=batch_size(args, kwargs), dynamic_batch=dynamic, notes=tuple(notes),
    )  # fmt: skip


def _try_export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.export.ExportedProgram, bool]:
    try:
        exported = export(model, args, kwargs)
        inputs = {spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
        sizes = [node.meta["val"].shape for node in exported.graph.nodes if node.name in inputs and "val" in node.meta
                 and isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].dim()]  # fmt: skip
        return exported, any(isinstance(shape[0], torch.SymInt) for shape in sizes)
    except Exception:
        try:
            return export(model, args, kwargs, dynamic_batch=False), False
        except Exception as error:
            raise TraceError(f"{type(model).__name__} cannot be exported: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = next((line for line in lines if line.startswith("File ") and "/torch/" not in line), "")
    return " ".join(part for part in (type(error).__name__ + ":", lines[0] if lines else "", where) if part)


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy that can be rewritten, and where each node went."""
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = new.graph_copy(graph, mapping)
    old_output = next(node for node in reversed(graph.nodes) if node.op == "output")
    mapping[old_output] = new.output(result)
    mapping[old_output].meta = copy.copy(old_output.meta)
    return new, mapping
