"""`find_axes`: what may be removed from a traced model, read off the inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import fx

from sslprune.analysis.atoms import ALWAYS, Dim
from sslprune.analysis.inference import KINDS, Inference, describe, infer
from sslprune.analysis.zeros import Vanishing
from sslprune.capture.program import Program
from sslprune.kinds.branches import Branch, find_branches, operands_of
from sslprune.values.axes import Axis, Member

SIDES = ("kernel", "inputs", "columns")  # kinds that are not a module's features


def find_axes(program: Program) -> list[Axis]:
    """Every axis of ``program``, the frozen and inexact ones with their reason, then branches and columns."""
    if "axes" not in program._cache:
        g = infer(program)
        program._cache["axes"] = _distinct([*_axes(g), *_layers(g), *_columns(g)])
    return list(program._cache["axes"])


def _axes(g: Inference) -> list[Axis]:
    names = [name for name in g.state if name not in g.program.constants]
    places = [(name, d) for name in names for d in range(len(g.state[name]))]
    atom, place, position = _occurrences(g, places)
    if not atom.size:
        return []
    inexact = _inexact(g)
    frozen = g.atoms.why(Dim(np.arange(len(g.atoms))[:, None]))
    labels = g.atoms.rank(np.arange(len(g.atoms)))

    # Atoms that occur equally often in the same places, are used alike and are equally exact, are one axis.
    unique, inverse = np.unique(atom, return_inverse=True)
    token = np.random.default_rng(0).integers(1, 2**63, len(places), dtype=np.uint64)
    signature = np.zeros(len(unique), np.uint64)
    np.add.at(signature, inverse, token[place])
    reason = np.array([inexact.get(int(a), 0) for a in unique])
    key = np.stack(
        [signature, labels[unique].astype(np.uint64), frozen[unique].astype(np.uint64), reason.astype(np.uint64)]
    )
    _, first, cluster = np.unique(key, axis=1, return_index=True, return_inverse=True)
    cluster = cluster.reshape(-1)

    order = np.lexsort((position, atom, place))
    atom, place, position, inverse = atom[order], place[order], position[order], inverse[order]
    by_cluster = cluster[inverse]
    rank_of_producer = {place_: i for i, place_ in enumerate(g.producers)}
    drafts: list[tuple[int, int, Axis]] = []
    for c in np.argsort(first):
        chosen = unique[cluster == c]
        here = by_cluster == c
        members = []
        for p in np.unique(place[here]):
            rows = here & (place == p)
            name, d = places[p]
            zeroed = g.program.is_trained(name) and (name, d) not in g.unzeroed
            members.append(Member(name, d, position[rows].reshape(len(chosen), -1), zeroed))
        why = frozen[chosen[0]]
        kind = KINDS[labels[chosen[0]]]
        producer = min((m for m in members if (m.name, m.dim) in rank_of_producer),
                       key=lambda m: rank_of_producer[m.name, m.dim], default=members[0])  # fmt: skip
        at = rank_of_producer.get((producer.name, producer.dim), len(rank_of_producer))
        text = g.atoms.reasons[why] if why else g.atoms.reasons[inexact.get(int(chosen[0]), 0)]
        if not why and not any(m.zeroed for m in members):
            why, text = 1, "none of its parameters is trained"
        if why and kind == "kernel":
            continue
        name, exact = producer.name.rpartition(".")[0] or producer.name, not text
        draft = Axis(name, kind, len(chosen), exact, tuple(members), text, bool(why), chosen)
        drafts.append((at, len(drafts), draft))
    return [axis for _, _, axis in sorted(drafts, key=lambda entry: entry[:2])]


def _occurrences(g: Inference, places: list[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every (atom, place, index) at which an atom stands, frozen ones included; ``place`` indexes ``places``."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for p, (name, d) in enumerate(places):
        rows = g.atoms.expanded(g.state[name][d])
        index, column = np.nonzero(rows != ALWAYS)
        found.append((rows[index, column], np.full(index.size, p), index))
    if not found:
        return (np.empty(0, np.int64),) * 3
    atom, place, position = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return atom, place, position


def _inexact(g: Inference) -> dict[int, int]:
    """For each atom whose removal would change what is left: the index of its reason in ``g.atoms.reasons``."""
    if "inexact" in g.program._cache:
        return g.program._cache["inexact"]
    found: dict[int, int] = {}

    def mark(atoms: np.ndarray, why: str) -> None:
        if atoms.size:
            g.atoms.reasons.append(why)
            found.update({int(a): found.get(int(a), len(g.atoms.reasons) - 1) for a in atoms})

    cache: dict[tuple[int, ...], np.ndarray] = {}

    def atoms_of(dims: tuple[Dim, ...]) -> np.ndarray:
        key = tuple(map(id, dims))
        if key not in cache:
            cache[key] = g.atoms.of(dims)
        return cache[key]

    vanish: dict[tuple[fx.Node, int], np.ndarray] = {}
    vanishing = Vanishing(vanish, atoms_of)
    for graph in g.program.graphs:
        carried = g.program.carried_inputs(graph)
        for node in graph.nodes:
            facts = g.facts[node]
            if node in carried:  # by induction: it starts at zero, and the output below says whether it stays there
                vanish[node, 0] = atoms_of(tuple(facts.outputs[0]))
            elif node.op == "output":
                for old, new in carried.items():
                    why = f"the state {old.name} does not stay at zero"
                    mark(np.setdiff1d(vanish[old, 0], vanish.get((new, 0), np.empty(0, np.int64))), why)
            elif node.op == "get_attr":
                name = str(node.target)
                if g.program.is_trained(name):
                    dims = (dim for i, dim in enumerate(g.state[name]) if (name, i) not in g.unzeroed)
                    vanish[node, 0] = atoms_of(tuple(dims))
            else:
                for i, zero in enumerate(facts.zeros):
                    vanish[node, i] = np.intersect1d(vanishing.of(zero), atoms_of(tuple(facts.outputs[i])))
            for dim, zero in facts.sums:
                over = atoms_of((dim,))
                if over.size:
                    mark(np.setdiff1d(over, vanishing.of(zero)), f"{describe(node)}: sums what has not vanished")
            for zero in facts.infinite:
                mark(vanishing.of(zero), f"{describe(node)}: not finite at zero")
            for dim in facts.normalised:
                mark(atoms_of((dim,)), f"{describe(node)}: normalises over it")
    g.program._cache["inexact"] = found
    return found


def branches_of(g: Inference) -> list[list[Branch]]:
    """For each removable branch, its place in each graph."""
    if "branches" not in g.program._cache:
        inexact = _inexact(g)
        by_graph = [{b.key: b for b in find_branches(g, graph)} for graph in g.program.graphs]
        g.program._cache["branches"] = [
            [found[key] for found in by_graph]
            for key, branch in by_graph[0].items()
            if all(key in found for found in by_graph) and not any(atom in inexact for atom in branch.atoms)
        ]
    return g.program._cache["branches"]


def branches_by_axis(g: Inference, axes: Sequence[Axis]) -> dict[int, list[Branch]]:
    """For each axis of kind ``layers``, by its index, its branch in each graph."""
    by_members = {_identity(axis): places for axis, places in zip(_layers(g), branches_of(g), strict=True)}
    return {i: by_members[_identity(axis)] for i, axis in enumerate(axes) if axis.kind == "layers"}


def _identity(axis: Axis) -> tuple[tuple[tuple[str, int], ...], bytes]:
    return tuple((member.name, member.dim) for member in axis.members), axis.atoms.tobytes()


def too_many(dropped: Sequence[Branch], branch: Branch) -> bool:
    """Whether dropping ``branch`` after ``dropped`` would leave its sum or concatenation without an operand."""
    gone = {other.operand for other in dropped if other.total is branch.total}
    return len(gone | {branch.operand}) >= len(operands_of(branch.total))


def _layers(g: Inference) -> list[Axis]:
    """An axis of size 1 for each branch, in their order."""
    if "layers" in g.program._cache:
        return g.program._cache["layers"]
    axes = []
    for places in branches_of(g):
        branch = places[0]
        atoms = np.array(branch.atoms, np.int64)
        if atoms.size:
            members = _members_of(g, atoms)
        else:
            sizes = [(name, g.program.tensors[name].shape[0]) for name in branch.producers]
            members = [Member(name, 0, np.arange(size)[None, :]) for name, size in sizes]
        axes.append(Axis(branch.name, "layers", 1, True, tuple(members), atoms=atoms))
    g.program._cache["layers"] = axes
    return axes


def _columns(g: Inference) -> list[Axis]:
    """The columns of each weight that one convolution has to itself."""
    num_users = [Counter[str]() for _ in g.program.graphs]
    for counted, graph in zip(num_users, g.program.graphs, strict=True):
        for node in graph.nodes:
            if node.op == "get_attr":
                counted[str(node.target)] += len(node.users)
    axes = []
    for name, columns in g.columns.items():
        alone = all(counted[name] == 1 for counted in num_users) and len(g.program.aliases[name]) == 1
        if alone:
            atoms = columns.own.rows[:, 0]
            member = Member(name, 1, np.arange(atoms.size)[:, None], flat=True)
            axes.append(Axis(name.rpartition(".")[0] or name, "columns", atoms.size, True, (member,), atoms=atoms))
    return axes


def _members_of(g: Inference, atoms: np.ndarray) -> list[Member]:
    """Everything that goes with any of ``atoms``."""
    members = []
    for name, dims in g.state.items():
        for d, dim in enumerate(dims if name not in g.program.constants else []):
            rows = g.atoms.rows(dim)
            position = np.flatnonzero(np.isin(rows, atoms).any(axis=1)) if rows.shape[1] else np.empty(0, np.int64)
            if position.size:
                zeroed = g.program.is_trained(name) and (name, d) not in g.unzeroed
                members.append(Member(name, d, position[None, :], zeroed))
    return members


def _distinct(axes: list[Axis]) -> list[Axis]:
    """Axes of one name are told apart by kind, then by number; a module's features keep its name where they can."""
    features = Counter(axis.name for axis in axes if axis.kind not in SIDES)
    seen: Counter[str] = Counter()
    named = []
    for axis in axes:
        name = axis.name
        if axis.kind in SIDES or features[name] > 1:
            name = f"{name}/{axis.kind}"
            seen[name] += 1
            if seen[name] > 1:
                name = f"{name}.{seen[name]}"
        named.append(replace(axis, name=name))
    return named
