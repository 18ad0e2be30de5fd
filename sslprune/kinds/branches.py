"""Branches: the one structure that is not an axis.

In ``x + f(x)`` the branch ``f`` can go when what produces its output is zero: the sum then drops it. Of branches side
by side that are concatenated, one can go when every feature that it adds is zero, with all that reads them: the
concatenation then drops it. Either way one operand has to stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from sslprune.analysis.analysis import Analysis
from sslprune.analysis.atoms import ALWAYS
from sslprune.analysis.inference import Inference
from sslprune.analysis.zeros import AllOf, AnyOf, Joined, Keeps, Zero
from sslprune.capture.program import operator_name
from sslprune.kinds.kind import Kind
from sslprune.values.axes import Axis, Cut, Member


class BranchKind(Kind):
    """An axis of size 1 for each branch that every graph has."""

    def find(self, analysis: Analysis, labelled: Sequence[Axis]) -> list[Axis]:
        g = analysis.inference
        first, *others = ({b.key: b for b in find_branches(g, graph)} for graph in g.program.graphs)
        axes = []
        for key, branch in first.items():
            atoms = np.array(branch.atoms, np.int64)
            if not all(key in found for found in others) or any(atom in analysis.inexact for atom in branch.atoms):
                continue
            if atoms.size:
                members = _members_of(g, atoms)
            else:
                sizes = [(name, g.program.tensors[name].shape[0]) for name in branch.producers]
                members = [Member(name, 0, np.arange(size)[None, :], role=g.role(name, 0)) for name, size in sizes]
            cuts = tuple(found[key].cut for found in (first, *others))
            axes.append(Axis(branch.name, self.name, 1, True, tuple(members), atoms=atoms[None, :], cuts=cuts))
        return axes


@dataclass(frozen=True)
class Branch:
    """One operand of a sum or a concatenation (``total``), and ``body``, what only it needs.

    ``producers`` are the weights whose zero makes an operand of a sum zero. An operand of a concatenation has
    ``atoms``, the features that only it adds; removing them all removes it.
    """

    name: str
    total: fx.Node
    operand: fx.Node
    producers: tuple[str, ...]
    body: frozenset[fx.Node]
    atoms: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """What tells branches apart, in any graph of the program."""
        return (*self.producers, *map(str, self.atoms), self.name)

    @property
    def cut(self) -> Cut:
        """How its graph drops it."""
        return Cut(self.total.name, self.operand.name, len(operands_of(self.total)))


def operands_of(total: fx.Node) -> list[fx.Node]:
    """The operands that a sum or a concatenation can drop, all but one."""
    first: Any = total.args[0]
    return list(first) if isinstance(first, (list, tuple)) else [a for a in total.args[:2] if isinstance(a, fx.Node)]


def too_many(cuts: Iterable[Cut], cut: Cut) -> bool:
    """Whether ``cut`` after ``cuts`` would leave its sum or concatenation without an operand."""
    return len({other.operand for other in cuts if other.total == cut.total} | {cut.operand}) >= cut.of


def find_branches(g: Inference, graph: fx.Graph) -> list[Branch]:
    """Every operand of a sum or a concatenation that can be dropped."""
    found = []
    for node in graph.nodes:
        if node.op == "call_function" and operator_name(node) == "cat" and len(operands_of(node)) > 1:
            paths = [_path(g, node, operand) for operand in operands_of(node)]
            found += [path for path in paths if path is not None]
        if node.op != "call_function" or operator_name(node) not in ("add", "sub"):
            continue
        first, second = node.args[:2]
        if not (g.is_tensor(first) and g.is_tensor(second)) or first is second:
            continue
        plain = operator_name(node) == "add" and node.kwargs.get("alpha", 1) == 1
        for operand, other in ((second, first), *(((first, second),) if plain else ())):
            branch = _branch(g, node, operand, other)
            if branch is not None:
                found.append(branch)
    return found


def _branch(g: Inference, total: fx.Node, operand: fx.Node, other: fx.Node) -> Branch | None:
    if (
        set(operand.users) != {total}
        or g.shape(other) != g.shape(total)
        or other.meta["val"].dtype != total.meta["val"].dtype
    ):
        return None
    body = exclusive(operand)
    names = _producers(g, operand, body)
    if not names or not any(g.facts[node].contractions for node in body):
        return None
    for node in total.graph.nodes:  # zeroing a weight that something else reads as well would change that too
        if node.op == "get_attr" and str(node.target) in names and node not in body:
            return None
    inside = [str(n.target) for n in body if n.op == "get_attr"]
    name = _shared_path([path.split(".")[:-1] for path in inside])
    order = [n for n in g.program.tensors if n in names]
    return Branch(".".join(name) or order[0], total, operand, tuple(order), frozenset(body))


def _path(g: Inference, total: fx.Node, operand: fx.Node) -> Branch | None:
    """One of the branches that ``total`` concatenates, where nothing else would be left empty without its features."""
    if set(operand.users) != {total} or operands_of(total).count(operand) != 1:
        return None
    d = int(total.args[1]) if len(total.args) > 1 else 0  # type: ignore[arg-type]
    rows = g.atoms.rows(g.dims(operand)[d])
    if not rows.shape[1] or (rows == ALWAYS).all(axis=1).any():
        return None
    body = exclusive(operand)
    if not any(g.facts[node].contractions for node in body):
        return None
    atoms = np.unique(rows[rows != ALWAYS])
    for node in total.graph.nodes:
        if node not in body and node.op != "output":
            for dim in (dim for dims in g.facts[node].outputs for dim in dims if dim.rows.shape[1]):
                here = g.atoms.rows(dim)
                if here.shape[1] and np.isin(here, atoms).any(axis=1).all():
                    return None
    paths = [str(n.target).split(".")[:-1] for n in body if n.op == "get_attr"]
    return Branch(".".join(_shared_path(paths)), total, operand, (), frozenset(body), tuple(atoms.tolist()))


def _members_of(g: Inference, atoms: np.ndarray) -> list[Member]:
    """Everything that goes with any of ``atoms``."""
    members = []
    for name, dims in g.state.items():
        for d, dim in enumerate(dims if name not in g.program.constants else []):
            rows = g.atoms.rows(dim)
            position = np.flatnonzero(np.isin(rows, atoms).any(axis=1)) if rows.shape[1] else np.empty(0, np.int64)
            if position.size:
                zeroed = g.program.is_trained(name) and (name, d) not in g.unzeroed
                members.append(Member(name, d, position[None, :], zeroed, role=g.role(name, d)))
    return members


def _shared_path(paths: list[list[str]]) -> list[str]:
    """The longest path of modules that all ``paths`` begin with."""
    shortest = min(paths, key=len)
    length = next((i for i, part in enumerate(shortest) if any(path[i] != part for path in paths)), len(shortest))
    return shortest[:length]


def exclusive(node: fx.Node) -> set[fx.Node]:
    """``node`` and everything that only it needs: what has all its readers in here, updates of buffers aside."""
    body, stack = {node}, [node]
    readers: Counter[fx.Node] = Counter()  # of each input met: how many of its readers are in the body
    while stack:
        for source in stack.pop().all_input_nodes:
            readers[source] += 1
            if source.op != "placeholder" and readers[source] == sum(not _is_update(user) for user in source.users):
                body.add(source)
                stack.append(source)
    return body


def _is_update(node: fx.Node) -> bool:
    """A buffer's update in a training graph, which needs nothing of its own kept alive."""
    return node.op == "call_function" and hasattr(node.target, "_schema") and node.target._schema.is_mutable


def _producers(g: Inference, node: fx.Node, body: set[fx.Node]) -> set[str] | None:
    """The trainable weights whose zero makes all of ``node`` zero; None where none do."""
    if node.op == "get_attr":
        name = str(node.target)
        usable = g.program.is_trained(name) and g.program.tensors[name].dim() and (name, 0) not in g.unzeroed
        return {name} if usable else None
    if node not in body or node.op != "call_function" or not g.facts[node].zeros:
        return None
    names = _of(g, g.facts[node].zeros[0], body)
    if names and "norm" in str(node.target):
        # before a normalisation a convolution's own scale says nothing: both shrink together, as one group
        source = node.args[0]
        if isinstance(source, fx.Node) and source in body and bool(g.facts[source].contractions):
            names |= _producers(g, source, body) or set()
    return names


def _of(g: Inference, zero: Zero | None, body: set[fx.Node]) -> set[str] | None:
    match zero:
        case Keeps(node, None, _):
            return _producers(g, node, body)
        case Keeps(node, _, _):
            return _producers(g, node, body)
        case AllOf(parts):
            every = [_of(g, part, body) for part in parts]
            return None if any(names is None for names in every) else set().union(*every)  # type: ignore[arg-type]
        case AnyOf(parts):
            some = [names for names in (_of(g, part, body) for part in parts) if names]
            return min(some, key=lambda names: (-_weights(g, names), len(names))) if some else None
        case Joined(parts, _):
            every = [_producers(g, node, body) for node, _ in parts]
            return None if not every or any(names is None for names in every) else set().union(*every)  # type: ignore[arg-type]
    return None


def _weights(g: Inference, names: set[str]) -> int:
    return int(any(g.program.tensors[name].dim() > 1 for name in names))


def is_zero(g: Inference, node: fx.Node, zeroed: Collection[str], known: dict[fx.Node, bool] | None = None) -> bool:
    """Whether ``node`` is zero all over once the weights ``zeroed`` are; a carried state is so, where it stays so."""
    known = {} if known is None else known
    if node not in known:
        if node.op == "get_attr":
            known[node] = str(node.target) in zeroed
        elif node.op == "placeholder":
            known[node] = node in g.program.carried_inputs(node.graph)
        else:
            zeros = g.facts[node].zeros
            known[node] = bool(zeros) and _is_zero(g, zeros[0], zeroed, known)
    return known[node]


def _is_zero(g: Inference, zero: Zero | None, zeroed: Collection[str], known: dict[fx.Node, bool]) -> bool:
    match zero:
        case Keeps(node, _, _):
            return is_zero(g, node, zeroed, known)
        case AllOf(parts):
            return all(_is_zero(g, part, zeroed, known) for part in parts)
        case AnyOf(parts):
            return any(_is_zero(g, part, zeroed, known) for part in parts)
        case Joined(parts, _):
            return all(is_zero(g, node, zeroed, known) for node, _ in parts)
    return False
