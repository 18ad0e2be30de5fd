"""Columns: one input channel and kernel position across all filters of a convolution.

SSL's shape fibers (Wen et al. 2016, §3.1, eq. 3). Zero columns make no dense convolution smaller by themselves. Where
few enough are left, they are gathered, and a pointwise convolution reads them: see `sslprune.analysis.columns`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sslprune.analysis.analysis import Analysis
from sslprune.analysis.columns import Columns
from sslprune.analysis.inference import Inference
from sslprune.kinds.kind import Kind
from sslprune.values.axes import Axis, Member

# The largest share of a convolution's columns at which gathering them pays. Measured by scripts/bench_columns.py (ONNX
# Runtime, one thread, AVX-512): at this share 1.02 times as fast (LeNet's second, 20 to 50 channels, 5x5, on a map of
# 12x12), 1.3 (3x3 of a CIFAR ResNet), 2.9 to 5.1 (3x3 of a ResNet); with 2 % of the columns 2.6, 1.9 to 2.8, 7.8 to 21.
COLUMNS_PAY = 0.1


class ColumnKind(Kind):
    """The columns of each weight that one convolution has to itself."""

    def find(self, analysis: Analysis, labelled: Sequence[Axis]) -> list[Axis]:
        g = analysis.inference
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
                axes.append(Axis(name.rpartition(".")[0] or name, self.name, len(atoms), True, (member,), atoms=atoms))
        return axes

    def closed(self, gone: np.ndarray, left: np.ndarray | None) -> np.ndarray:
        assert left is not None
        return columns_gone(gone, left)

    def sizes(self, g: Inference, axis: Axis) -> Columns | None:
        return g.columns[axis.members[0].name]


def columns_gone(zero: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Which columns go when those in ``zero`` are zero and other axes leave those in ``left``: bool, shape (size,).

    None, where too many are left for it to pay; one always stays.
    """
    kept = left & ~zero
    if not kept.any():
        kept[np.flatnonzero(left)[:1]] = True
    return ~kept if kept.sum() <= COLUMNS_PAY * left.sum() else np.zeros_like(kept)
