"""What a rule may do to its own node when something has been removed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from sslprune.analysis.atoms import ALWAYS, Atoms, Dim
from sslprune.capture.program import module_of, operator_name


class Kept:
    """Which atoms stay, and with that which indices of each dimension."""

    def __init__(self, atoms: Atoms, removed: np.ndarray) -> None:
        self._atoms = atoms
        self._keep = np.ones(len(atoms), bool)
        self._keep[removed] = False
        self._keep[ALWAYS] = True
        self._masks: dict[int, tuple[Dim, np.ndarray]] = {}

    def mask(self, dim: Dim) -> np.ndarray:
        """Which indices of ``dim`` stay: bool, shape (size,)."""
        if id(dim) not in self._masks:
            self._masks[id(dim)] = dim, self._keep[self._atoms.rows(dim)].all(axis=1)
        return self._masks[id(dim)][1]

    def size(self, dim: Dim) -> int:
        return int(self.mask(dim).sum())

    def changed(self, dim: Dim) -> bool:
        return not bool(self.mask(dim).all())


@dataclass(frozen=True)
class Change:
    """An argument of an operator that a repack changed."""

    module: str  # the module that the operator stands in, "" for the model itself
    operator: str
    argument: str
    value: Any


class Rewriter:
    """One node of the new graph, and how to change it. ``changes`` collects what was done."""

    def __init__(
        self,
        kept: Kept,
        node: fx.Node,
        mapping: dict[fx.Node, fx.Node],
        constants: dict[str, torch.Tensor],
        changes: list[Change],
    ) -> None:
        self._kept, self.node, self._mapping, self._constants = kept, node, mapping, constants
        self._changes = changes
        self.mask, self.size, self.changed = kept.mask, kept.size, kept.changed

    def _note(self, argument: str, value: Any) -> None:
        self._changes.append(Change(module_of(self.node), operator_name(self.node), argument, value))

    def set(self, name: str, value: Any) -> None:
        """Give the argument ``name`` (as in the operator's schema) a new value."""
        schema = self.node.target._schema.arguments  # type: ignore[union-attr]
        at = next(i for i, argument in enumerate(schema) if argument.name == name)
        value = fx.map_arg(value, lambda n: self._mapping.get(n, n))  # rules know the old graph's nodes
        positional = at < len(self.node.args) and not schema[at].kwarg_only
        old: Any = self.node.args[at] if positional else self.node.kwargs.get(name, schema[at].default_value)
        if old == value or (isinstance(value, list) and list(old or ()) == value):
            return
        self._note(name, value)
        if positional:
            self.node.update_arg(at, value)
        else:
            self.node.update_kwarg(name, value)

    def resize(self, name: str, dims: Sequence[Dim], sizes: Sequence[int | torch.SymInt]) -> None:
        """Recompute a list of sizes: plain numbers follow their dimensions; open ones stay as they are."""
        if not any(self.changed(dim) for dim in dims):
            return
        schema = self.node.target._schema.arguments  # type: ignore[union-attr]
        at = next(i for i, argument in enumerate(schema) if argument.name == name)
        old = self.node.args[at] if at < len(self.node.args) else self.node.kwargs[name]
        new: list[Any] = []
        open_ = [isinstance(size, torch.SymInt) and self.changed(dim) for dim, size in zip(dims, sizes, strict=True)]
        inferred = sum(changed or value == -1 for changed, value in zip(open_, old, strict=True))  # type: ignore[arg-type]
        for value, dim, changed in zip(old, dims, open_, strict=True):  # type: ignore[arg-type]
            if changed and (inferred == 1 or value == -1):
                value = -1
            elif changed:  # such as batch x heads: it shrinks as the heads do
                value = self.insert(operator.floordiv, self.insert(operator.mul, value, self.size(dim)), dim.size)
            elif isinstance(value, int) and value >= 0 and dim.rows.shape[1]:
                value = self.size(dim)
            new.append(value)
        self.set(name, new)

    def retarget(self, target: Any, args: tuple[Any, ...]) -> None:
        """Make it another operator; nodes in ``args`` are those of the old graph."""
        self._note("", None)
        self.node.target = target
        self.node.args = fx.map_arg(args, lambda n: self._mapping[n])
        self.node.kwargs = {}

    def mapped(self, node: fx.Node) -> fx.Node:
        """The new graph's node for one of the old graph."""
        return self._mapping[node]

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        """Let ``by`` stand wherever ``node`` of the new graph stood."""
        self._note("", None)
        node.replace_all_uses_with(by)
        for old, new in self._mapping.items():
            if new is node:
                self._mapping[old] = by

    def renumber(self, dim: Dim, positions: np.ndarray) -> np.ndarray:
        """Old positions along ``dim`` as positions among what is left; what is gone is left out."""
        mask = self.mask(dim)
        return (np.cumsum(mask) - 1)[positions[mask[positions]]]

    def constant(self, name: str, values: np.ndarray) -> fx.Node:
        """A constant that the node can read."""
        self._constants[name] = torch.from_numpy(np.ascontiguousarray(values))
        with self.node.graph.inserting_before(self.node):
            return self.node.graph.get_attr(name)

    def insert(self, target: Any, *args: Any) -> fx.Node:
        """A new operator before the node; nodes in ``args`` are those of the new graph."""
        with self.node.graph.inserting_before(self.node):
            return self.node.graph.call_function(target, args)

    def read(self, made: fx.Node) -> None:
        """Let the node read ``made`` of the new graph as its first argument."""
        self._note("", None)
        self.node.update_arg(0, made)

    def gather(self, source: fx.Node, dim: int, positions: np.ndarray) -> None:
        """Make it a gather of ``source`` at constant ``positions`` along ``dim``."""
        self._note("", None)
        index = self.constant(f"_index_{self.node.name}", positions)
        self.node.target = torch.ops.aten.index_select.default
        self.node.args, self.node.kwargs = (self._mapping[source], dim, index), {}

    def _stand_in(self, made: fx.Node) -> None:
        """Let ``made``, which reads the node, stand for it everywhere else."""
        made.meta = {**self.node.meta}  # whose module made it, and what of it is left
        self.node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
        for old, new in self._mapping.items():
            if new is self.node:
                self._mapping[old] = made

    def pad_to_old_width(self, dim: Dim, inputs: Sequence[fx.Node]) -> None:
        """Let the node work on zeros where its last dimension ``dim`` lost something, and cut them off its result."""
        self._note("", None)
        aten, graph, left = torch.ops.aten, self.node.graph, self.size(dim)
        with graph.inserting_before(self.node):
            for source in inputs:
                padding = (self._mapping[source], [0, dim.size - left])
                self.node.replace_input_with(
                    self._mapping[source], graph.call_function(aten.constant_pad_nd.default, padding)
                )
        with graph.inserting_after(self.node):
            cut = graph.call_function(aten.slice.Tensor, (self.node, -1, 0, left))
        self._stand_in(cut)

    def pad_input(self, source: fx.Node, amounts: list[int]) -> None:
        """Let the node read ``source`` with zeros around it; negative amounts crop."""
        self.read(self.insert(torch.ops.aten.pad.default, self._mapping[source], amounts))

    def scale(self, factor: float) -> None:
        """Multiply the node's result by a number."""
        self._note("", None)
        with self.node.graph.inserting_after(self.node):
            scaled = self.node.graph.call_function(torch.ops.aten.mul.Tensor, (self.node, factor))
        self._stand_in(scaled)
