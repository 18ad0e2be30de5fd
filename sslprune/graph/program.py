"""`trace`: a model as graphs of ATen operators, one for training and one for evaluation, on shared parameters."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import linecache
import logging
import operator
import re
import sysconfig
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sslprune.axes import tensors_of
from sslprune.errors import TraceError

PASSES = {"dropout", "feature_dropout", "alpha_dropout", "type_as"}  # may return the input itself, and do not say so
NOT_THEIRS = tuple(  # source files that a person looks for no mistake in
    str(Path(place).resolve()) + "/" for place in (Path(torch.__file__).parent, Path(__file__).parent)
)
PRODUCTS = {"linear", "matmul", "mm", "bmm", "addmm", "einsum", *(f"conv{n}d" for n in (1, 2, 3))}
REASON, LINE = 300, 100  # characters of torch's reason and of a line of source that are quoted


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
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # where an export fails, torch prints the unfinished graph to standard error
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


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

    with _keywords_named(model, kwargs), quiet(), torch.no_grad():
        given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        shapes = pytree.tree_map(spec, dict(given))
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def _keywords_named(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
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
    with quiet():
        module = exported.module(check_guards=False)
        if _sub_graphs(module) or not _functionalize(module.graph):
            module = exported.run_decompositions({}).module(check_guards=False)
            if not _functionalize(module.graph):
                raise TraceError("the model changes a view of a tensor in place in a way that cannot be undone")
    for node in _sub_graphs(module):
        raise TraceError(
            f"{_place(next(iter(node.users), node))} decides by the data what is computed: such a model has no one "
            "graph; trace a model without it"
        )
    module.graph.eliminate_dead_code(is_impure_node=_writes_state)
    for node in module.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor) and any(
                isinstance(n, torch.SymInt) and n.node.hint is None for n in value.shape
            ):
                raise TraceError(f"{_place(node)}: its size depends on the data; such a model has no fixed axes")
    return module.graph, module


def _sub_graphs(module: nn.Module) -> list[fx.Node]:
    """The graphs within the graph: control flow, and regions of another autocast or gradient mode."""
    graph: fx.Graph = module.graph  # type: ignore[assignment]
    return [
        n
        for n in graph.nodes
        if n.op == "get_attr" and hasattr(module, n.target) and isinstance(getattr(module, n.target), nn.Module)
    ]


def _place(node: fx.Node) -> str:
    """A node's operator, module and line of the person's source, for people."""
    path = module_of(node)
    lines = re.findall(r'File "(.+?)", line (\d+), in .*\n\s*(.*)', node.meta.get("stack_trace") or "")
    theirs = [f" ({_source(file, line, code)})" for file, line, code in lines if _is_theirs(file)]
    return f"{operator_name(node)}{f' in {path}' if path else ''}{theirs[-1] if theirs else ''}"


def _source(file: str, line: int | str, code: str) -> str:
    code = code.strip()
    return f"{file}:{line}" + (f": {code if len(code) <= LINE else code[: LINE - 3] + '...'}" if code else "")


def operator_name(node: fx.Node) -> str:
    """``add`` for ``aten.add.Tensor``; with the namespace where it is not ATen's; the target's own name otherwise."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target._schema.name).removeprefix("aten::")
    return str(getattr(node.target, "__name__", node.target))


def module_of(node: fx.Node) -> str:
    """The path of the module whose forward made the node; "" for the model itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


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
) -> Program:
    """Capture ``model`` as a `Program`: a training and an evaluation graph, with dimension 0 (the batch) left open.

    ``args`` and ``kwargs`` are example inputs, any batch size. The model is left in the mode that it was in.
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
        exported, args, kwargs, dynamic = _try_export(model, args, kwargs)
        _check_types(exported.graph, model, *given)
        if not dynamic:
            notes.append("the batch size is fixed: the model does not export with an open one")
        evaluation, module = _graph(exported)
        training = None
        try:
            if not _set_mode(model, True):
                raise TraceError("the model has no training mode")
            training, training_module = _graph(export(model, args, kwargs, dynamic))
        except Exception as error:
            notes.append(f"no training graph: {_reason(error)}{_where(error, model)}")
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
        batch=batch_size(args, kwargs), dynamic_batch=dynamic, notes=tuple(notes),
    )  # fmt: skip


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
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.export.ExportedProgram, tuple[Any, ...], dict[str, Any], bool]:
    """The exported model, the example inputs that it was exported with, and whether the batch is open.

    An example of batch 1 is tried as one of batch 2; what does not export so has its batch size fixed.
    """
    batch = batch_size(args, kwargs)
    wide_args, wide_kwargs = _doubled(args, batch), _doubled(kwargs, batch)
    try:
        exported = export(model, wide_args, wide_kwargs)
        inputs = {spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
        sizes = [node.meta["val"].shape for node in exported.graph.nodes if node.name in inputs and "val" in node.meta
                 and isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].dim()]  # fmt: skip
        return exported, wide_args, wide_kwargs, any(_is_open(shape[0]) for shape in sizes)
    except Exception:
        try:
            return export(model, args, kwargs, dynamic_batch=False), args, kwargs, False
        except Exception as error:
            raise TraceError(f"{type(model).__name__} {_why_not(model, args, kwargs, error)}") from error


def _check_types(graph: fx.Graph, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a product of tensors of two types that the model itself refuses: torch.export lets it pass."""
    for node in graph.nodes:
        if node.op == "call_function" and operator_name(node) in PRODUCTS:
            types = {n.meta["val"].dtype for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)}
            failure = _own_failure(model, args, kwargs) if len(types) > 1 else None
            if failure is not None:
                text = _own_failure_text(args, kwargs, failure, model)
                raise TraceError(f"{type(model).__name__} {text}") from failure


def _is_open(size: int | torch.SymInt) -> bool:
    """Whether a size of an exported graph may change; one that the model turned out to need is a SymInt still."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _why_not(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> str:
    """What keeps ``model`` from being exported: its state, the example inputs, or what ``torch.export`` says."""
    parts = list(model.named_modules())
    for path, part in parts:
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if nn.parameter.is_lazy(tensor):
                name = f"{path}.{name}" if path else name
                return f"cannot be exported: {name} is not initialised yet; run the model once on an example before"
    failure = _own_failure(model, args, kwargs)
    if failure is not None:
        return _own_failure_text(args, kwargs, failure, model)
    for path, part in parts:
        state = "scripted" if isinstance(part, torch.jit.ScriptModule) else "quantized" if _is_quantized(part) else ""
        if state:
            name = f"{path} is" if path else "it is"
            return f"cannot be exported: {name} {state} ({type(part).__name__}); trace the model before that is done"
    return f"cannot be exported: {_reason(error)}{_where(error, model)}"


def _own_failure(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
    """What the model's forward raises on the inputs, run as it is; buffers and random numbers are left as they were."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with quiet(), torch.no_grad(), torch.random.fork_rng():
            model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    except Exception as error:
        return error
    finally:
        with torch.no_grad():
            for buffer, old in saved:
                if not torch.equal(buffer, old):
                    buffer.copy_(old)
    return None


def _own_failure_text(args: tuple[Any, ...], kwargs: dict[str, Any], failure: Exception, model: nn.Module) -> str:
    given = ", ".join([*map(_shown, args), *(f"{name}={_shown(value)}" for name, value in kwargs.items())])
    return f"fails by itself on the example inputs ({given}): {_reason(failure)}{_where(failure, model)}"


def _is_quantized(part: nn.Module) -> bool:
    own = (*part._parameters.values(), *part._buffers.values(), *vars(part).values())
    return any(isinstance(v, torch.ScriptObject) or (isinstance(v, torch.Tensor) and v.is_quantized) for v in own)


def _shown(value: Any) -> str:
    """An input as people name it: ``float32 (2, 3)`` for a tensor."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_shown(entry)}' for key, entry in value.items())}}}"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


def _reason(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = " ".join(line.strip() for line in str(error).split("\n\n")[0].splitlines())
    if isinstance(error, TraceError):
        return text
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        text = f"what it computes depends on the data: {text}"
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= REASON else text[: REASON - 3] + "..."


def _where(error: BaseException, model: nn.Module) -> str:
    """The module and the line of the person's own source in which an exception was raised."""
    paths = {id(module): path for path, module in model.named_modules()}
    path, source = "", ""
    trail = error.__traceback__
    while trail is not None:
        frame: FrameType = trail.tb_frame
        path = paths.get(id(frame.f_locals.get("self")), path)
        file = frame.f_code.co_filename
        if _is_theirs(file):
            source = _source(file, trail.tb_lineno, linecache.getline(file, trail.tb_lineno, frame.f_globals))
        trail = trail.tb_next
    found = [f"in {path}" if path else "", f"({source})" if source else ""]
    return "".join(f" {part}" for part in found if part)


def _is_theirs(file: str) -> bool:
    """Whether a source file is neither torch's, Python's nor this package's: there a person can mend something."""
    if not Path(file).is_file():
        return False
    file = str(Path(file).resolve())
    library = str(Path(sysconfig.get_paths()["stdlib"]).resolve()) + "/"
    return not file.startswith(NOT_THEIRS) and (not file.startswith(library) or "site-packages" in file)


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy that can be rewritten, and where each node went."""
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = new.graph_copy(graph, mapping)
    old_output = next(node for node in reversed(graph.nodes) if node.op == "output")
    mapping[old_output] = new.output(result)
    mapping[old_output].meta = copy.copy(old_output.meta)
    return new, mapping
