"""Beta-Rank: a filter counts by its weights, and by what it makes of the spread of what it reads.

Homayounfar et al. 2023, "Beta-Rank: a robust convolutional filter pruning method for imbalanced medical image
analysis": of each place, the standard deviation over the samples of what the filter makes there, divided by that of the
window that it reads; summed over the places, times the mean of its absolute weights. No labels are asked, so that
classes with few samples do not count less than their share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sslprune.calibration.evidence import shares
from sslprune.calibration.lockstep import State, Values, evaluate, value_of, wide
from sslprune.calibration.rows import Product, agrees, rows_of
from sslprune.capture.program import Program
from sslprune.kinds.find import analysis_of
from sslprune.values.axes import Axis, Member

Makers = Mapping[str, Sequence[Product]]  # by the weight of a convolution or a linear layer: where it is multiplied by


@torch.no_grad()
def makers_of(program: Program) -> Makers:
    """The products of ``program`` that have filters: rows of a matrix that each make one output, of what has a batch.

    Whether a node makes what its rows say is seen on the program's example.
    """
    facts, every = analysis_of(program).inference.facts, defaultdict[str, list[Product]](list)
    for node in program.evaluation.nodes:
        for rows in rows_of(node, facts[node].contractions, program.tensors):
            if isinstance(rows, Product):
                every[rows.weights[0]].append(rows)
    found = defaultdict[str, list[Product]](list)
    for name, product, values in _run(program, program.tensors, tree_leaves((program.args, program.kwargs)), every):
        whole = product.window is None or values[product.node].dim() == 2 + len(product.kernel)
        if whole and agrees(product, values[product.node], values, program.tensors):
            found[name].append(product)
    return found


def made_by(makers: Makers, axis: Axis) -> list[Member]:
    """The filters that make the groups of ``axis``; none where its groups are nothing that a filter makes."""
    return [
        member
        for member in axis.members
        if member.role == "makes" and not (axis.cuts or member.flat)
        if any((member.dim,) == product.contraction.makes for product in makers.get(member.name, ()))
    ]


@torch.no_grad()
def beta_ranks(
    program: Program, axes: Sequence[Axis], state: State, batches: Sequence[Sequence[Any]], makers: Makers
) -> list[np.ndarray]:
    """Of each axis the ranks of its groups, squared as all evidence is, as shares of its mean: float64, shape (size,).

    A group of several filters, or one that several layers make, has the sum of theirs; those of a layer are shares of
    its mean first. ``batches`` are the leaves of the graph's inputs, the samples in their first dimension.
    """
    wanted = {member.name for axis in axes for member in made_by(makers, axis)}
    totals: dict[str, np.ndarray] = {}
    for leaves in batches:
        for name, product, values in _run(program, state, leaves, {n: makers[n] for n in wanted}):
            ranks = _ranks(product, values, state).double().cpu().numpy()
            totals[name] = totals.get(name, 0.0) + ranks
    layers = {name: shares(ranks) for name, ranks in totals.items()}
    found = []
    for axis in axes:
        members = [(layers[member.name], member.positions) for member in made_by(makers, axis)]
        found.append(shares(np.sum([ranks[positions].sum(axis=1) for ranks, positions in members], axis=0) ** 2))
    return found


def _run(
    program: Program, state: State, leaves: Sequence[Any], makers: Makers
) -> Iterator[tuple[str, Product, Values]]:
    """Each of the products when its node has run, with what there is then; what nobody reads any more is given up."""
    at = {product.node: (name, product) for name, products in makers.items() for product in products}
    graph = program.evaluation
    values: Values = dict(zip((n for n in graph.nodes if n.op == "placeholder"), leaves, strict=True))
    left = {node: len(node.users) for node in graph.nodes}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        values[node] = evaluate(node, values, state)
        if node in at:
            yield *at[node], values
        for source in node.all_input_nodes:
            left[source] -= 1
            if not left[source]:
                values.pop(source, None)


def _ranks(product: Product, values: Values, state: State) -> Tensor:
    """Of each filter of one product, by the samples in the first dimension: float, shape (filters,)."""
    source = product.contraction.input
    assert source is not None
    read = wide(value_of(source, values, state))
    moments = [part.mean(0, keepdim=True) for part in (read, read.square())]
    # a window's mean is that of its places' means, so no window of a whole batch is ever laid out
    mean, square = (product.rows({source: moment}, {}, None).mean(2) for moment in moments)  # (groups, places)
    spread = (square - mean.square()).clamp_min(0).sqrt()[..., None]
    made = wide(values[product.node]).std(0, keepdim=True, correction=0)
    change = torch.where(spread > 0, product.by_row(made, None) / spread, 0).sum(1)  # (groups, made)
    weights = product.matrix([wide(state[name]) for name in product.weights])
    return (change * weights.abs().mean(2)).flatten()
