"""A factored weight that costs as much as its product, or more, is one matrix again: in graphs, and in a selection."""

from __future__ import annotations

from collections.abc import Iterable
from operator import add, mul
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from sslprune.analysis.factors import DOWN, UP, Pair, pairs_of
from sslprune.analysis.inference import arguments
from sslprune.analysis.rewriter import Kept
from sslprune.capture.program import Program
from sslprune.kinds.find import analysis_of
from sslprune.removal.factors import product
from sslprune.values.selection import Selection


def folding(program: Program, kept: Kept) -> list[Pair]:
    """The factored weights of ``program`` that two factors save nothing of, with what is ``kept``."""
    pairs = pairs_of(analysis_of(program).inference.facts, program.evaluation)
    return [pair for pair in pairs if pair.folds(kept.size)]


def given_back(program: Program, selection: Selection, kept: Kept) -> Selection:
    """``selection`` with the whole rank of what will be one matrix again, as ``kept`` says."""
    g = analysis_of(program).inference
    atoms = g.atoms.of([pair.rank for pair in folding(program, kept)])
    if not atoms.size:
        return selection
    whole = [bool(axis.atoms.size) and np.isin(axis.atoms, atoms).all() for axis in selection.axes]
    return Selection.of(
        selection.axes, [mask & (not is_whole) for mask, is_whole in zip(selection, whole, strict=True)]
    )


@torch.no_grad()
def folded_(graphs: Iterable[fx.Graph], tensors: dict[str, torch.Tensor], names: Iterable[str]) -> None:
    """Make one operator of the two, and one tensor of the two factors, of each weight that is named; in place."""
    names = list(names)
    for graph in graphs:
        for name in names:
            for weight in [n for n in graph.nodes if n.op == "get_attr" and n.target == name + UP]:
                for up in list(weight.users):
                    _join(graph, name, up)
        graph.lint()
    for name in names:
        down, up = (tensors.pop(name + suffix) for suffix in (DOWN, UP))
        whole = product(down, up)
        trained = isinstance(down, nn.Parameter)
        tensors[name] = nn.Parameter(whole, requires_grad=down.requires_grad) if trained else whole


def _join(graph: fx.Graph, name: str, up: Any) -> None:
    second = arguments(up)
    down: Any = second.input
    first = arguments(down)
    with graph.inserting_before(up):
        whole: Any = graph.get_attr(name)
        args: tuple[Any, ...] = (first.input, whole, second.bias)
        if hasattr(first, "stride"):
            joins = {"stride": mul, "padding": add, "dilation": max}
            args += tuple(_joined(join, getattr(first, a), getattr(second, a)) for a, join in joins.items())
        node = graph.call_function(up.target, args)
    node.meta = dict(up.meta)
    up.replace_all_uses_with(node)
    for old in (up, up.args[1], down, down.args[1]):
        if not old.users:
            graph.erase_node(old)


def _joined(join: Any, one: Any, other: Any) -> Any:
    """One setting of a convolution from those of the two that it was; what is said by a word they have alike."""
    if isinstance(one, str):
        return one
    sides = max(len(one), len(other))
    wide = [list(value) * (sides if len(value) == 1 else 1) for value in (one, other)]
    return [join(*pair) for pair in zip(*wide, strict=True)]
