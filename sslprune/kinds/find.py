"""`find_axes`: what may be removed from a traced model, read off the inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np

from sslprune.analysis.analysis import Analysis
from sslprune.analysis.atoms import ALWAYS, Dim
from sslprune.analysis.inference import Inference
from sslprune.capture.program import Program
from sslprune.kinds.table import KINDS, kind_of
from sslprune.recipe import PruneSection
from sslprune.values.axes import Axis, Member

_ANALYSES: WeakKeyDictionary[Program, Analysis] = WeakKeyDictionary()


def analysis_of(program: Program) -> Analysis:
    """The analysis of ``program``: one, as long as the program lives."""
    if program not in _ANALYSES:
        # of its twin: an analysis that held the program itself would keep it alive, and with it this entry
        _ANALYSES[program] = Analysis(replace(program), tuple(KINDS), _find)
    return _ANALYSES[program]


def find_axes(program: Program, sections: Sequence[PruneSection] = ()) -> list[Axis]:
    """Every axis of ``program``, the frozen and inexact ones with their reason, then branches and columns.

    ``sections``: those of a recipe; behind the others come the axes that are there because one of them asks for them.
    """
    analysis = analysis_of(program)
    found = list(analysis.axes)
    for section in sections:
        if section.kind in KINDS:
            found += KINDS[section.kind].asked(analysis, section, {axis.name for axis in found})
    return found


def _find(analysis: Analysis) -> list[Axis]:
    labelled = _labelled(analysis)
    found = [axis for kind in KINDS.values() for axis in kind.find(analysis, labelled)]
    order = {id(axis): i for i, axis in enumerate(labelled)}
    return _distinct(sorted(found, key=lambda axis: order.get(id(axis), len(order))))


def _labelled(analysis: Analysis) -> list[Axis]:
    """What the rules say of the tensors' dimensions, as axes: in the order of the layers that make them."""
    g, inexact = analysis.inference, analysis.inexact
    names = [name for name in g.state if name not in g.program.constants]
    slices = [(name, d) for name in names for d in range(len(g.state[name]))]
    atom, where, position = _occurrences(g, slices)
    if not atom.size:
        return []
    frozen = g.atoms.why(Dim(np.arange(len(g.atoms))[:, None]))
    labels = g.atoms.rank(np.arange(len(g.atoms)))

    # Atoms that occur equally often in the same slices, are used alike and are equally exact, are one axis.
    unique, inverse = np.unique(atom, return_inverse=True)
    token = np.random.default_rng(0).integers(1, 2**63, len(slices), dtype=np.uint64)
    signature = np.zeros(len(unique), np.uint64)
    np.add.at(signature, inverse, token[where])
    reason = np.array([inexact.get(int(a), 0) for a in unique])
    key = np.stack(
        [signature, labels[unique].astype(np.uint64), frozen[unique].astype(np.uint64), reason.astype(np.uint64)]
    )
    _, first, cluster = np.unique(key, axis=1, return_index=True, return_inverse=True)
    cluster = cluster.reshape(-1)

    order = np.lexsort((position, atom, where))
    atom, where, position, inverse = atom[order], where[order], position[order], inverse[order]
    by_cluster = cluster[inverse]
    needed = [(g.atoms.of([dim]), count) for dim, count in g.least]
    rank_of_producer = {producer: i for i, producer in enumerate(g.producers)}
    drafts: list[tuple[int, int, Axis]] = []
    for c in np.argsort(first):
        chosen = unique[cluster == c]
        here = by_cluster == c
        members = []
        for s in np.unique(where[here]):
            rows = here & (where == s)
            name, d = slices[s]
            zeroed = g.program.is_trained(name) and (name, d) not in g.unzeroed
            members.append(Member(name, d, position[rows].reshape(len(chosen), -1), zeroed, role=g.role(name, d)))
        why = frozen[chosen[0]]
        kind = g.labels[labels[chosen[0]]]
        producer = min((m for m in members if (m.name, m.dim) in rank_of_producer),
                       key=lambda m: rank_of_producer[m.name, m.dim], default=members[0])  # fmt: skip
        at = rank_of_producer.get((producer.name, producer.dim), len(rank_of_producer))
        text = g.atoms.reasons[why] if why else g.atoms.reasons[inexact.get(int(chosen[0]), 0)]
        if not why and not any(m.zeroed for m in members):
            why, text = 1, "none of its parameters is trained"
        name, exact = producer.name.rpartition(".")[0] or producer.name, not text
        least = max((count for atoms, count in needed if np.isin(chosen, atoms).any()), default=0)
        draft = Axis(name, kind, len(chosen), exact, tuple(members), text, bool(why), chosen[:, None], least=least)
        drafts.append((at, len(drafts), draft))
    return [axis for _, _, axis in sorted(drafts, key=lambda entry: entry[:2])]


def _occurrences(g: Inference, slices: list[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every (atom, slice, index) at which an atom stands, frozen ones included; a slice by its number in ``slices``."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for s, (name, d) in enumerate(slices):
        rows = g.atoms.expanded(g.state[name][d])
        index, column = np.nonzero(rows != ALWAYS)
        found.append((rows[index, column], np.full(index.size, s), index))
    if not found:
        return (np.empty(0, np.int64),) * 3
    atom, where, position = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return atom, where, position


def _distinct(axes: Sequence[Axis]) -> list[Axis]:
    """Axes of one name are told apart by kind, then by number; a module's features keep its name where they can."""
    features = Counter(axis.name for axis in axes if kind_of(axis).is_feature)
    seen: Counter[str] = Counter()
    named = []
    for axis in axes:
        name = axis.name
        if not kind_of(axis).is_feature or features[name] > 1:
            name = f"{name}/{axis.kind}"
            seen[name] += 1
            if seen[name] > 1:
                name = f"{name}.{seen[name]}"
        named.append(replace(axis, name=name))
    return named
