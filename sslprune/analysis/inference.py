"""Runs the operator rules over a program's graphs and collects what they state.

A rule states, for one node: the dimensions of what it makes; which dimensions must stay equal; how exact zeros pass
through; what it multiplies by and sums over, or normalises over; and how its own arguments change when something is
removed. Everything else (axes, exactness, costs, repack) is read off these statements.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from sslprune.analysis.atoms import Atoms, Dim, fixed
from sslprune.analysis.columns import Columns
from sslprune.analysis.contraction import Contraction
from sslprune.analysis.folding import folded
from sslprune.analysis.rewriter import Rewriter
from sslprune.analysis.zeros import AnyOf, Keeps, Zero
from sslprune.capture.program import Program, module_of, operator_name
from sslprune.errors import TraceError
from sslprune.values.axes import Role

KINDS = (
    "inputs",
    "kernel",
    "neurons",
    "filters",
    "width",
    "hidden",
    "value_dim",
    "head_dim",
    "heads",
    "experts",
)  # by rank
RANK = {kind: rank for rank, kind in enumerate(KINDS)}


@dataclass
class Facts:
    """What the rules state about one node."""

    outputs: list[list[Dim]] = field(default_factory=list)  # of each tensor that the node makes
    zeros: list[Zero | None] = field(default_factory=list)  # how exact zeros reach each of them; None: never
    contractions: list[Contraction] = field(default_factory=list)  # what it multiplies by, and sums over
    sums: list[tuple[Dim, Zero | None]] = field(default_factory=list)  # all that it sums over, and what vanishes there
    normalised: list[Dim] = field(default_factory=list)  # dimensions whose removal changes what is left
    rewrites: list[Callable[[Rewriter], None]] = field(default_factory=list)


Rule = Callable[["Inference", fx.Node, SimpleNamespace], None]


class Inference:
    """The axes of every dimension of every tensor of a program, by ``rules``; ``unknown`` is for what they lack."""

    def __init__(self, program: Program, rules: Mapping[str, Rule], unknown: Rule) -> None:
        self.program = program
        self._rules, self._unknown = rules, unknown
        self.atoms = Atoms()
        self.facts: dict[fx.Node, Facts] = {}
        self.producers: dict[tuple[str, int], None] = {}  # (weight, its output dimension), in graph order
        self.readers: set[tuple[str, int]] = set()  # (weight, a dimension that it is summed over along)
        self.state: dict[str, list[Dim]] = {}  # of each parameter, buffer and constant, by graph name
        for name, tensor in program.tensors.items():
            self.state[name] = [self.atoms.fresh(n) if n > 1 else fixed(n, "a size of 1") for n in tensor.shape]
        self.unzeroed: set[tuple[str, int]] = set()  # (tensor, dimension) whose zero would be divided by
        self.columns: dict[str, Columns] = {}  # of the weights of plain convolutions
        self.folded: dict[fx.Node, set[fx.Node]] = {}  # computed weights, with the computation behind each
        for graph in program.graphs:
            self.folded.update(folded(graph, program.is_trained))
            self._whole = set().union(*self.folded.values())  # evaluated on whole tensors: what it mixes stays exact
            self._carried = program.carried_inputs(graph)
            for node in graph.nodes:
                self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        self.facts[node] = Facts()
        if node.op == "placeholder":
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                dims = [fixed(n, f"it reaches the model's input {node.name}") for n in self.shape(node)]
                if node in self._carried:  # whatever goes from the new state goes from the old one: all but the batch
                    dims = dims[:1] + [self.atoms.fresh(n) if n > 1 else fixed(n) for n in self.shape(node)[1:]]
                self.out(node, dims)
        elif node.op == "get_attr":
            self.out(node, self.state[str(node.target)])
        elif node.op == "output":
            state = set(self._carried.values())
            for old, new in self._carried.items():
                for one, other in zip(self.dims(old)[1:], self.dims(new)[1:], strict=True):
                    self.unify(one, other, new)
                self.freeze(self.dims(new)[:1], node, "the batch")
            plain = [leaf for leaf in node.all_input_nodes if leaf not in state or self._also_given(node, leaf)]
            for leaf in plain:
                for dims in self.facts[leaf].outputs:
                    self.atoms.freeze(dims, "it reaches the model's output")
        elif node.op == "call_function":
            if node.target is operator.getitem:
                source, index = node.args
                outputs = self.facts[source].outputs  # type: ignore[index]
                if index < len(outputs):  # type: ignore[operator]
                    self.out(node, outputs[index], Keeps(source, output=index))  # type: ignore[index, arg-type]
            elif isinstance(node.target, torch._ops.OpOverload):
                self._rules.get(operator_name(node), self._unknown)(self, node, arguments(node))
            elif any(self.is_tensor(n) for n in node.all_input_nodes):
                self._unknown(self, node, SimpleNamespace())

    def _also_given(self, output: fx.Node, leaf: fx.Node) -> bool:
        """Whether a tensor of the new state is an output of its own besides."""
        leaves: Any = output.args[0]
        return sum(other is leaf for other in leaves) > sum(new is leaf for new in self._carried.values())

    # -- reading ------------------------------------------------------------------------------------------------------

    def is_tensor(self, node: Any) -> bool:
        """Whether ``node`` is a node that makes one tensor."""
        return isinstance(node, fx.Node) and len(self.facts[node].outputs) == 1

    def dims(self, node: fx.Node) -> list[Dim]:
        """The dimensions of the tensor that ``node`` makes."""
        return list(self.facts[node].outputs[0])

    def shape(self, node: fx.Node, output: int = 0) -> tuple[int, ...]:
        """The example sizes of a tensor that ``node`` makes."""
        if node.op == "get_attr":
            return tuple(self.program.tensors[str(node.target)].shape)
        value = node.meta["val"]
        if isinstance(value, (tuple, list)):
            value = value[output]
        return tuple(_example(n, node) for n in value.shape)

    def sizes(self, node: fx.Node, output: int = 0) -> list[int | torch.SymInt]:
        value = node.meta["val"]
        return list((value[output] if isinstance(value, (tuple, list)) else value).shape)

    def num_outputs(self, node: fx.Node) -> int:
        """How many tensors the operator returns."""
        value = node.meta["val"]
        return len(value) if isinstance(value, (tuple, list)) else 1

    def dtype(self, node: fx.Node) -> torch.dtype:
        return self.program.tensors[str(node.target)].dtype if node.op == "get_attr" else node.meta["val"].dtype

    # -- stating ------------------------------------------------------------------------------------------------------

    def out(self, node: fx.Node, dims: Sequence[Dim], zero: Zero | None = None) -> None:
        """``node`` makes one more tensor, of ``dims``; ``zero`` says when an index of it is exactly zero."""
        for dim in dims:
            if dim.size == 1 and dim.rows.shape[1]:  # it may be broadcast, squeezed or flattened away
                self.freeze([dim], node, "a size of 1 has to stay")
        self.facts[node].outputs.append(list(dims))
        self.facts[node].zeros.append(zero)

    def unify(self, one: Dim, other: Dim, node: fx.Node) -> None:
        """The two dimensions stay equal."""
        self.atoms.unify(one, other, describe(node))

    def freeze(self, dims: Sequence[Dim], node: fx.Node, because: str = "") -> None:
        self.atoms.freeze(dims, describe(node) + (f" ({because})" if because else ""))

    def label(self, dim: Dim, kind: str) -> None:
        self.atoms.label(dim, RANK[kind])

    def role(self, name: str, dim: int) -> Role:
        """What dimension ``dim`` of a tensor of the model is to the layers that have it."""
        return "makes" if (name, dim) in self.producers else "reads" if (name, dim) in self.readers else "follows"

    def produces(self, weight: fx.Node, dim: int) -> None:
        """Dimension ``dim`` of a weight makes new features: it gives an axis its name."""
        if weight.op == "get_attr":
            self.producers[str(weight.target), dim] = None

    def contracts(self, contraction: Contraction) -> None:
        """Its node multiplies and sums: what that makes is new features, and what is summed has to have vanished."""
        node, weight, window = contraction.node, contraction.weight, contraction.window
        self.facts[node].contractions.append(contraction)
        for dim, along in contraction.summed.items():
            self.sums(node, dim, AnyOf(tuple(Keeps(operand) for operand in along)))
        for d in contraction.makes:
            self.produces(weight, d)
        self.readers.update((str(weight.target), d) for d in contraction.reads if weight.op == "get_attr")
        if (
            window is not None
            and window.conv_groups == 1
            and not (window.transposed or isinstance(window.padding, str))
        ):
            self._add_columns(weight)

    def _add_columns(self, weight: fx.Node) -> None:
        """Single columns of a weight (out, C, *kernel) can go, unless it is computed, or does not train."""
        name, dims = str(weight.target), self.dims(weight)
        if weight.op != "get_attr" or not self.program.is_trained(name) or prod(dim.size for dim in dims[2:]) == 1:
            return
        if name not in self.columns:
            self.columns[name] = Columns(self.atoms.fresh(prod(dim.size for dim in dims[1:])), tuple(dims[1:]))

    def never_zero(self, weight: fx.Node, dim: int) -> None:
        """Something divides by the size of ``weight`` along ``dim``: it is sliced at repack, but not zeroed."""
        if weight.op == "get_attr":
            self.unzeroed.add((str(weight.target), dim))

    def sums(self, node: fx.Node, dim: Dim, zero: Zero | None) -> None:
        """``node`` sums over ``dim``, exactly where ``zero`` holds."""
        if node in self._whole:
            return
        self.facts[node].sums.append((dim, zero))

    def normalises(self, node: fx.Node, *dims: Dim) -> None:
        """What is left along ``dims`` changes when part of them goes."""
        if node in self._whole:
            return
        self.facts[node].normalised.extend(dims)

    def on_repack(self, node: fx.Node, rewrite: Callable[[Rewriter], None]) -> None:
        """How the node's own arguments change when something has been removed."""
        self.facts[node].rewrites.append(rewrite)


def arguments(node: fx.Node) -> SimpleNamespace:
    """The node's arguments by their names in the operator's schema, defaults filled in."""
    named: dict[str, Any] = {}
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if i < len(node.args):
            named[argument.name] = node.args[i]
        elif argument.name in node.kwargs:
            named[argument.name] = node.kwargs[argument.name]
        else:
            named[argument.name] = argument.default_value if argument.has_default_value() else None
    return SimpleNamespace(**named)


def describe(node: fx.Node) -> str:
    """The operator and the module that it stands in, for people."""
    path = module_of(node)
    return f"{operator_name(node)} in {path}" if path else operator_name(node)


def _example(size: Any, node: fx.Node) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    if hint is None:
        raise TraceError(f"{describe(node)}: its size depends on the data; such a model has no fixed axes")
    return int(hint)
