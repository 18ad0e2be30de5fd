"""Which removals would change what is left: what a sum still needs, and what a normalisation divides by."""

from __future__ import annotations

import numpy as np
from torch import fx

from sslprune.analysis.atoms import Dim
from sslprune.analysis.inference import Inference, describe
from sslprune.analysis.zeros import Vanishing


def inexact_atoms(g: Inference) -> dict[int, int]:
    """For each atom whose removal would change what is left: the index of its reason in ``g.atoms.reasons``."""
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
    beaten: dict[fx.Node, np.ndarray] = {}
    vanishing = Vanishing(vanish, atoms_of, beaten)
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
                if facts.beaten is not None:
                    beaten[node] = np.intersect1d(vanishing.of(facts.beaten), atoms_of(tuple(facts.outputs[0])))
                for i, zero in enumerate(facts.zeros):
                    vanish[node, i] = np.intersect1d(vanishing.of(zero), atoms_of(tuple(facts.outputs[i])))
            for dim, zero in facts.sums:
                over = atoms_of((dim,))
                if over.size:
                    mark(np.setdiff1d(over, vanishing.of(zero)), f"{describe(node)}: sums what has not vanished")
            for zero in facts.infinite:
                mark(vanishing.of(zero), f"{describe(node)}: not finite at zero")
            for dim, but in facts.normalised:
                mark(np.setdiff1d(atoms_of((dim,)), vanishing.of(but)), f"{describe(node)}: normalises over it")
    return found
