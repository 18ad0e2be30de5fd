"""`find_axes`: what may be removed from a traced model, read off the inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np

from sslprune.analysis.analysis import Analysis
from sslprune.analysis.atoms import ALWAYS, Dim
from sslprune.analysis.inference import KINDS, Inference
from sslprune.capture.program import Program
from sslprune.kinds.branches import find_branches
from sslprune.values.axes import Axis, Cut, Member

SIDES = ("kernel", "inputs", "columns")  # kinds that are not a module's features


_ANALYSES: WeakKeyDictionary[Program, Analysis] = WeakKeyDictionary()


def analysis_of(program: Program) -> Analysis:
    """The analysis of ``program``: one, as long as the program lives."""
    if program not in _ANALYSES:
        # of its twin: an analysis that held the program itself would keep it alive, and with it this entry
        _ANALYSES[program] = Analysis(replace(program), _find)
    return _ANALYSES[program]


def find_axes(program: Program) -> list[Axis]:
    """Every axis of ``program``, the frozen and inexact ones with their reason, then branches and columns."""
    return list(analysis_of(program).axes)


def _find(analysis: Analysis) -> list[Axis]:
    g = analysis.inference
    return _distinct([*_axes(analysis), *_layers(analysis), *_columns(g)])


def _axes(analysis: Analysis) -> list[Axis]:
    g, inexact = analysis.inference, analysis.inexact
    names = [name for name in g.state if name not in g.program.constants]
    places = [(name, d) for name in names for d in range(len(g.state[name]))]
    atom, place, position = _occurrences(g, places)
    if not atom.size:
        return []
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
            members.append(Member(name, d, position[rows].reshape(len(chosen), -1), zeroed, role=g.role(name, d)))
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
        draft = Axis(name, kind, len(chosen), exact, tuple(members), text, bool(why), chosen[:, None])
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


def too_many(cuts: Iterable[Cut], cut: Cut) -> bool:
    """Whether ``cut`` after ``cuts`` would leave its sum or concatenation without an operand."""
    return len({other.operand for other in cuts if other.total == cut.total} | {cut.operand}) >= cut.of


def _layers(analysis: Analysis) -> list[Axis]:
    """An axis of size 1 for each branch that every graph has, in their order."""
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
        axes.append(Axis(branch.name, "layers", 1, True, tuple(members), atoms=atoms[None, :], cuts=cuts))
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
            atoms = columns.own.rows
            member = Member(name, 1, np.arange(len(atoms))[:, None], flat=True, role="reads")
            axes.append(Axis(name.rpartition(".")[0] or name, "columns", len(atoms), True, (member,), atoms=atoms))
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
                members.append(Member(name, d, position[None, :], zeroed, role=g.role(name, d)))
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
