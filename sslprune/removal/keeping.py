"""What a person says is needed of an axis that nothing else lets go: the plan of taking the rest away, unzeroed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sslprune.analysis.atoms import Dim
from sslprune.capture.program import Program
from sslprune.errors import RepackError
from sslprune.kinds.find import analysis_of, find_axes
from sslprune.removal.plan import Plan, plan_of
from sslprune.removal.remove import kept_atoms
from sslprune.values.selection import Selection

Logits = Callable[[Any], Tensor]  # of a model's outputs, those that a task is about


def opened_at(program: Program, logits: Logits, dim: int) -> Program:
    """``program`` with dimension ``dim`` of its ``logits`` open: it may go, though it reaches the output.

    Raises RepackError where the logits are none of the model's outputs.
    """
    return replace(program, opened=tuple(_leaf(program, i, logits, dim) for i in range(len(program.graphs))))


def opened_dim(opened: Program) -> Dim:
    """The dimension that `opened_at` opened."""
    ((leaf, dim),) = opened.opened[0].items()
    return analysis_of(opened).inference.dims(opened.outputs(opened.evaluation)[leaf])[dim]


def _leaf(program: Program, index: int, logits: Logits, dim: int) -> dict[int, int]:
    """Where among the leaves of a graph's outputs the logits stand, with their dimension."""
    leaves = program.outputs(program.graphs[index])
    values = [leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
    found = logits(pytree.tree_unflatten(values, program.out_specs[index]))
    at = next((i for i, value in enumerate(values) if value is found), None)
    if at is None:
        raise RepackError("the task computes its logits of the model's outputs; name one of them by data.output")
    return {at: dim % found.dim()}


def plan_keeping(opened: Program, dims: Sequence[Dim], kept: np.ndarray, what: str) -> Plan:
    """The plan of keeping the indices of ``dims`` in ``kept`` (bool) of a program that was opened there.

    Raises RepackError, which calls them ``what``, where the others cannot go by themselves.
    """
    g = analysis_of(opened).inference
    rows = [g.atoms.expanded(dim) for dim in dims]
    fixed = [dim.why or "they are computed" for dim, row in zip(dims, rows, strict=True) if not row.shape[1]]
    atoms = np.concatenate([row.reshape(-1) for row in rows])
    axes = [axis for axis in find_axes(opened) if np.isin(axis.atoms, atoms).any() and not axis.cuts]
    stuck = next((axis.reason for axis in axes if not axis.exact), None)
    if fixed or stuck or not axes:
        raise RepackError(f"{what} cannot go by themselves: {[*fixed, stuck or 'nothing is theirs'][0]}")
    gone = np.concatenate([row[~kept].reshape(-1) for row in rows])
    selection = Selection.of(axes, [np.isin(axis.atoms, gone).any(axis=1) for axis in axes])
    left = kept_atoms(opened, selection)
    if not all(np.array_equal(left.mask(dim), kept) for dim in dims):
        raise RepackError(f"{what} cannot go by themselves: some of them go together")
    return plan_of(opened, selection)
