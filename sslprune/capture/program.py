"""A traced model: graphs of ATen operators, one for training and one for evaluation, on shared parameters."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sslprune.capture.batch import closed_inputs
from sslprune.values.axes import tensors_of


@dataclass(frozen=True, eq=False)
class Program:
    """A traced model. Made by `trace`; read by `find_axes` and `repack`.

    ``evaluation`` and ``training`` are flat graphs whose ``get_attr`` nodes name parameters and buffers of the model
    (``training`` is None where the model does not export in training mode). ``tensors`` holds the shapes' tensors by
    graph name, ``constants`` those that are not the model's own. ``batch`` is the example's batch size. ``carried``
    is the state that the model carries from call to call, as pairs (input, output) of places among the inputs' and
    outputs' leaves: it starts at zero, and each output is that input of the next call. ``opened``: of each graph the
    places among the outputs' leaves of which one dimension may go, with that dimension; ``looked_up``: the weights
    whose rows may go, since what looks them up is numbered anew. ``exported`` is what torch.export made of the model in
    evaluation mode.

    A program serves every instance of the model's class, as far as `serves` says so: who reads numbers takes them from
    the instance.
    """

    evaluation: fx.Graph
    training: fx.Graph | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]
    aliases: dict[str, tuple[str, ...]]  # graph name -> every name of that tensor in the model
    in_spec: pytree.TreeSpec
    out_specs: tuple[pytree.TreeSpec, ...]  # how the outputs of each of the graphs are nested
    batch: int
    dynamic_batch: bool
    sequence: int | None = None  # the longest sequence (dimension 1 of the inputs); None: lengths are not open
    notes: tuple[str, ...] = ()
    carried: tuple[tuple[int, int], ...] = ()
    random: tuple[str, ...] = ()  # the operators that draw random numbers in evaluation
    untrained: frozenset[str] = frozenset()  # the parameters that no gradient reaches, by graph name
    opened: tuple[Mapping[int, int], ...] = ()
    looked_up: frozenset[str] = frozenset()
    exported: torch.export.ExportedProgram | None = field(default=None, repr=False, compare=False)

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        return (self.evaluation,) if self.training is None else (self.evaluation, self.training)

    @property
    def closed(self) -> frozenset[int]:
        """The tensors among the inputs, by their numbers, whose dimension 0 has one size."""
        return closed_inputs([node.meta.get("val") for node in self.evaluation.nodes if node.op == "placeholder"])

    def carried_inputs(self, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
        """The inputs of one of the graphs that take the carried state, each with what it will be in the next call."""
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        outputs = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
        evaluated = self.out_specs[0].num_leaves  # training may return more before the state, which comes last
        return {inputs[i]: outputs[o - evaluated] for i, o in self.carried}

    def outputs(self, graph: fx.Graph) -> list[Any]:
        """The leaves of what one of the graphs returns: nodes, and values that are no tensors."""
        output: Any = next(node for node in reversed(graph.nodes) if node.op == "output")
        return list(output.args[0])

    def open_dims(self, graph: fx.Graph) -> dict[fx.Node, int]:
        """The results of one of the graphs of which one dimension may go, with that dimension."""
        if not self.opened:
            return {}
        leaves = self.outputs(graph)
        return {leaves[at]: dim for at, dim in self.opened[self.graphs.index(graph)].items()}

    def is_trained(self, name: str) -> bool:
        """Whether a tensor of the graphs is a parameter that training changes."""
        tensor = self.tensors[name]
        return isinstance(tensor, nn.Parameter) and tensor.requires_grad and name not in self.untrained

    def serves(self, model: nn.Module) -> bool:
        """Whether ``model`` is another instance of the one that was traced: the same shapes, the same constants."""
        own = tensors_of(model)
        names = {alias for aliases in self.aliases.values() for alias in aliases}
        if names - own.keys() or any(own[name].shape != self.tensors[name].shape for name in self.aliases):
            return False
        held = {name: _attribute(model, name) for name in self.constants}
        return all(
            not isinstance(value, torch.Tensor) or torch.equal(value.cpu(), self.constants[name].cpu())
            for name, value in held.items()
        )

    def on(self, device: torch.device | str) -> Program:
        """The program with its constants, and what its graphs make, on another device; itself where it is there."""
        there = torch.device(device)
        leaves = [leaf for graph in self.graphs for n in graph.nodes for leaf in pytree.tree_leaves((n.args, n.kwargs))]
        leaves += pytree.tree_leaves((self.args, self.kwargs, self.constants))
        devices = [leaf.device if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        if all(leaf.type == there.type for leaf in devices if isinstance(leaf, torch.device)):
            return self
        graphs = [on_device(graph, there) for graph in self.graphs]
        move = lambda leaf: leaf.to(there) if isinstance(leaf, torch.Tensor) else leaf  # noqa: E731
        args, kwargs, constants = pytree.tree_map(move, (self.args, self.kwargs, self.constants))
        return replace(
            self,
            evaluation=graphs[0],
            training=graphs[1] if len(graphs) > 1 else None,
            args=args,
            kwargs=kwargs,
            tensors={**self.tensors, **constants},
            constants=constants,
            exported=None,
        )

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(graph.nodes)} nodes" for graph in self.graphs)
        return f"Program({len(self.tensors)} tensors, {sizes}, batch {'dynamic' if self.dynamic_batch else self.batch})"


def _attribute(model: nn.Module, name: str) -> Any:
    """What stands at the dotted ``name`` in ``model``; None where nothing does."""
    try:
        return operator.attrgetter(name)(model)
    except AttributeError:
        return None


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


def operator_name(node: fx.Node) -> str:
    """``add`` for ``aten.add.Tensor``; with the namespace where it is not ATen's; the target's own name otherwise."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target._schema.name).removeprefix("aten::")
    name = str(getattr(node.target, "__name__", node.target))
    if name.startswith("auto_functionalized") and isinstance(node.args[0], torch._ops.OpOverload):
        return str(node.args[0]._schema.name)  # one that writes into its arguments
    return name


def modules_of(node: fx.Node) -> list[str]:
    """The paths of all modules inside whose forward the node was made, the innermost last; "" is the model itself."""
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def module_of(node: fx.Node) -> str:
    """The path of the module whose forward made the node; "" for the model itself."""
    return (modules_of(node) or [""])[-1]


def on_device(graph: fx.Graph, device: torch.device) -> fx.Graph:
    """A graph that makes its own tensors on ``device``; itself where it makes none elsewhere."""

    def moved(leaf: Any) -> Any:
        return device if isinstance(leaf, torch.device) else leaf

    leaves = [leaf for node in graph.nodes for leaf in pytree.tree_leaves((node.args, node.kwargs))]
    if all(leaf == device for leaf in leaves if isinstance(leaf, torch.device)):
        return graph
    new, _ = copy_graph(graph)
    for node in new.nodes:
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), moved)
    return new


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy that can be rewritten, and where each node went."""
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = new.graph_copy(graph, mapping)
    old_output = next(node for node in reversed(graph.nodes) if node.op == "output")
    mapping[old_output] = new.output(result)
    mapping[old_output].meta = copy.copy(old_output.meta)
    return new, mapping
