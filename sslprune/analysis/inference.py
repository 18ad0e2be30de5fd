"""Runs the operator rules over a program's graphs and collects what they state.

A rule states, for one node: the dimensions of what it makes; which dimensions must stay equal; how exact zeros pass
through; what it multiplies by and sums over, or normalises over; and how its own arguments change when something is
removed. Everything else (axes, exactness, costs, repack) is read off these statements.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from sslprune.analysis.atoms import Atoms, Dim, fixed
from sslprune.analysis.columns import Columns
from sslprune.analysis.contraction import Contraction
from sslprune.analysis.factors import is_factor, makes_rank
from sslprune.analysis.facts import Facts, Part
from sslprune.analysis.folding import folded
from sslprune.analysis.pointers import MOVING, Pointer, freeze_unread, pass_on
from sslprune.analysis.rewriter import Rewriter
from sslprune.analysis.zeros import AllOf, AnyOf, Keeps, Zero
from sslprune.capture.draws import draws
from sslprune.capture.program import Program, operator_name
from sslprune.capture.refusals import place
from sslprune.errors import TraceError
from sslprune.values.axes import Role

Rule = Callable[["Inference", fx.Node, SimpleNamespace], None]


class Inference:
    """The axes of every dimension of every tensor of a program, by ``rules``; ``unknown`` is for what they lack.

    ``labels``: the kinds that rules may name; of several for one dimension the last of these wins.
    """

    def __init__(self, program: Program, rules: Mapping[str, Rule], unknown: Rule, labels: Sequence[str]) -> None:
        self.program = program
        self._rules, self._unknown, self.labels = rules, unknown, tuple(labels)
        self.atoms = Atoms()
        self.facts: dict[fx.Node, Facts] = {}
        self.producers: dict[tuple[str, int], None] = {}  # (weight, its output dimension), in graph order
        self.readers: set[tuple[str, int]] = set()  # (weight, a dimension that it is summed over along)
        self.state: dict[str, list[Dim]] = {}  # of each parameter, buffer and constant, by graph name
        for name, tensor in program.tensors.items():
            self.state[name] = [self.atoms.fresh(n) if n > 1 else fixed(n, "a size of 1") for n in tensor.shape]
        self.unzeroed: set[tuple[str, int]] = set()  # (tensor, dimension) whose zero would be divided by
        self.least: list[tuple[Dim, int]] = []  # dimensions of which so many entries are chosen
        self._read: set[fx.Node] = set()  # of the inputs of the node that is visited: whose numbers are read as names
        self._taken: set[fx.Node] = set()  # of the inputs of the node that is visited: single entries alone are read
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
                    if one.size == other.size:
                        self.unify(one, other, new)
                    else:  # steps, which a cache has more of after each call
                        self.freeze([one, other], node, "a length")
                self.freeze(self.dims(new)[:1], node, "the batch")
            plain = [leaf for leaf in node.all_input_nodes if leaf not in state or self._also_given(node, leaf)]
            opened = self.program.open_dims(node.graph)
            freeze_unread(self, node, set())
            for leaf in plain:
                self._bind(leaf)
                for dims in self.facts[leaf].outputs:
                    given = [dim for d, dim in enumerate(dims) if d != opened.get(leaf)]
                    self.atoms.freeze(given, "it reaches the model's output")
        elif node.op == "call_function":
            if node.target is operator.getitem:
                source, index = node.args
                outputs = self.facts[source].outputs  # type: ignore[index]
                if index < len(outputs):  # type: ignore[operator]
                    self.out(node, outputs[index], Keeps(source, output=index))  # type: ignore[index, arg-type]
                    mine, theirs = self.facts[node], self.facts[source]  # type: ignore[index]
                    mine.parts.update({0: theirs.parts[index]} if index in theirs.parts else {})  # type: ignore[index]
                    mine.points.update({0: theirs.points[index]} if index in theirs.points else {})  # type: ignore[index]
            elif isinstance(node.target, torch._ops.OpOverload):
                rule = self._rules.get(operator_name(node), self._unknown)
                computed = [name for name in computed_numbers(node) if name not in getattr(rule, "may_be_computed", ())]
                if computed and rule is not self._unknown:
                    self.opaque(node, f"its {computed[0]} is computed while the model runs")
                else:
                    rule(self, node, arguments(node))
                pass_on(self, node)
                freeze_unread(self, node, self._read if operator_name(node) not in MOVING else {node.args[0]})  # type: ignore[arg-type]
                self._read.clear()
                for source in node.all_input_nodes:  # whatever a rule reads of it, all but single entries ties it
                    if source not in self._taken:
                        self._bind(source)
                self._taken.clear()
                if node.graph is self.program.evaluation and draws(node):  # another width would draw other numbers
                    for touched in (node, *node.all_input_nodes):
                        for dims in self.facts[touched].outputs:
                            self.freeze(dims, node, "it draws random numbers in evaluation")
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
        self._bind(node)
        return list(self.facts[node].outputs[0])

    def parts(self, node: fx.Node, dim: int) -> tuple[Part, ...]:
        """What lies along dimension ``dim`` of ``node``, an entry each, where nothing has bound it together yet."""
        at, parts = self.facts[node].parts.get(0, (None, ()))
        self._taken |= {node} if at == dim else set()
        return parts if at == dim else ()

    def _bind(self, node: fx.Node) -> None:
        """What reads ``node`` reads it as one tensor: its parts keep one width."""
        for _, parts in self.facts[node].parts.values():
            for part in parts[1:]:
                for one, other in zip(parts[0].dims, part.dims, strict=True):
                    self.unify(one, other, node)
        self.facts[node].parts.clear()

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

    def same(self, node: fx.Node, source: fx.Node) -> None:
        """``node`` makes what ``source`` does, its loose parts included."""
        self.out(node, self.facts[source].outputs[0], Keeps(source))
        self.facts[node].parts.update(self.facts[source].parts)
        self._taken.add(source)

    def out_parts(self, node: fx.Node, dim: int, parts: Sequence[Part]) -> None:
        """``node`` makes one more tensor, of ``parts`` along ``dim``, tied together only if it is read whole."""
        at = len(self.facts[node].outputs)
        dims, zeros = parts[0].dims, [part.zero for part in parts]
        length = self.fixed(len(parts), node, "stacked")
        zero = None if None in zeros else AllOf(tuple(zero for zero in zeros if zero is not None))
        self.out(node, [*dims[:dim], length, *dims[dim:]], zero)
        self.facts[node].parts[at] = dim, tuple(parts)

    def unify(self, one: Dim, other: Dim, node: fx.Node) -> None:
        """The two dimensions stay equal."""
        self.atoms.unify(one, other, f"{describe(node)}: it meets what has to stay")

    def freeze(self, dims: Sequence[Dim], node: fx.Node, because: str) -> None:
        """Nothing of ``dims`` ever goes; ``because`` says what ``node`` does with them."""
        self.atoms.freeze(dims, f"{describe(node)}: {because}")

    def fixed(self, size: int, node: fx.Node, because: str) -> Dim:
        """A dimension that ``node`` makes, of which nothing ever goes."""
        return fixed(size, f"{describe(node)}: {because}")

    def opaque(self, node: fx.Node, because: str) -> None:
        """Freeze all that ``node`` touches: a saving may be missed, never a value changed."""
        for source in node.all_input_nodes:
            self._bind(source)
            for dims in self.facts[source].outputs:
                self.freeze(dims, node, because)
        values = node.meta.get("val")
        for i, value in enumerate(values if isinstance(values, (tuple, list)) else [values]):
            if hasattr(value, "shape"):
                self.out(node, [self.fixed(n, node, because) for n in self.shape(node, i)])
            else:
                self.out(node, [])  # it may be counted among the results

    def label(self, dim: Dim, kind: str) -> None:
        self.atoms.label(dim, self.labels.index(kind))

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
        if weight.op == "get_attr" and is_factor(str(weight.target)):
            self.freeze(self.dims(weight)[2:], node, "a factor keeps its kernel")
            for dim in contraction.made if makes_rank(str(weight.target)) else ():
                self.label(dim, "rank")
        elif window is not None and window.has_columns:
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

    def normalises(self, node: fx.Node, *dims: Dim, but: Zero | None = None) -> None:
        """What is left along ``dims`` changes when part of them goes, ``but`` where that holds."""
        if node not in self._whole:
            self.facts[node].normalised.extend((dim, but) for dim in dims)

    def pointer(self, node: fx.Node) -> Pointer | None:
        """What the numbers that ``node`` makes name, where they are names."""
        return self.facts[node].points.get(0)

    def reads(self, node: fx.Node) -> None:
        """The rule that is asked knows that the numbers of ``node`` are names."""
        self._read.add(node)

    def at_least(self, dim: Dim, count: int) -> None:
        """So many of ``dim`` have to stay."""
        self.least.append((dim, count))

    def infinite(self, node: fx.Node, zero: Zero) -> None:
        """What ``node`` gives is infinite, or no number, where ``zero`` holds: that cannot be zeroed first."""
        if node not in self._whole:
            self.facts[node].infinite.append(zero)

    def on_repack(self, node: fx.Node, rewrite: Callable[[Rewriter], None]) -> None:
        """How the node's own arguments change when something has been removed."""
        self.facts[node].rewrites.append(rewrite)


def may_be_computed(*names: str) -> Callable[[Rule], Rule]:
    """Marks a rule that copes where these arguments, which are numbers to others, are values of the graph."""

    def mark(rule: Rule) -> Rule:
        rule.may_be_computed = names  # type: ignore[attr-defined]
        return rule

    return mark


NUMBERS = re.compile(r"\b(int|float|number|bool)\b")


def computed_numbers(node: fx.Node) -> list[str]:
    """The node's arguments that its operator takes numbers for, and that the graph computes: a size, an item."""
    found = []
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(v, fx.Node) for v in values) and NUMBERS.search(str(argument.type)):
            found.append(argument.name)
    return found


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
    """The operator, the module that it stands in and the line of the person's own code, for people."""
    if "place" not in node.meta:
        node.meta["place"] = place(node, short=True)
    return node.meta["place"]


def _example(size: Any, node: fx.Node) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    if hint is None:
        raise TraceError(f"{describe(node)}: its size depends on the data; such a model has no fixed axes")
    return int(hint)
