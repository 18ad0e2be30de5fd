"""What a person says is needed of an axis that nothing else lets go: the plan of taking the rest away, unzeroed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sslprune.analysis.atoms import Dim
from sslprune.capture.program import Program
from sslprune.errors import RepackError
from sslprune.kinds.find import analysis_of, find_axes
from sslprune.removal.plan import Plan, plan_of
from sslprune.removal.remove import kept_atoms
from sslprune.values.selection import Selection


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
