"""Tiles of a weight: rows x columns of the matrix that it is over its first two dimensions, with all kernel positions.

Block sparsity (Gray et al. 2017). A tile at zero makes no dense weight smaller, so none is ever taken away by itself,
and a model with such zeros is the same model: every weight that something multiplies by has them, whatever else is
around it. A strip of tiles that is gone everywhere leaves features that nothing makes or nobody reads, and these go by
axes of their own: see `sslprune.removal.unread`.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from sslprune.analysis.analysis import Analysis
from sslprune.kinds.kind import Kind
from sslprune.recipe import PruneSection
from sslprune.values.axes import Axis, Member

SHAPE = (8, 8)  # where a section names none


class TileKind(Kind):
    """The tiles of each weight, of the shape that a section asks for."""

    def find(self, analysis: Analysis, labelled: object) -> list[Axis]:
        return []  # they are as many as weights have numbers: made where they are asked for

    def asked(self, analysis: Analysis, section: PruneSection, taken: Collection[str]) -> list[Axis]:
        g = analysis.inference
        made: dict[str, Axis] = {}
        for facts in g.facts.values():
            for contraction in facts.contractions:
                name = str(contraction.weight.target)
                weight = g.program.tensors.get(name)
                if contraction.weight.op == "get_attr" and weight is not None and weight.dim() > 1:
                    made.setdefault(name, self._axis(name, weight, section, trained=g.program.is_trained(name)))
        free = {name: axis for name, axis in made.items() if axis.name not in taken}
        return [axis for axis in free.values() if section.names(axis.name)] or list(free.values())

    def _axis(self, name: str, weight: torch.Tensor, section: PruneSection, *, trained: bool) -> Axis:
        rows, columns = section.shape or SHAPE
        out, read, *kernel = weight.shape
        module, _, last = name.rpartition(".")
        called = f"{module if last == 'weight' else name}/{self.name}"
        reason = "" if trained else "the weight is not trained"
        if out % rows or read % columns:
            reason = f"tiles of {rows} x {columns} do not tile its weight of {out} x {read}"
        if reason:
            empty = Member(name, 0, np.empty((0, 0), np.int64), zeroed=False, flat=True)
            return Axis(called, self.name, 0, True, (empty,), reason, frozen=True)
        each = int(np.prod(kernel, dtype=np.int64))
        numbers = np.arange(weight.numel()).reshape(out // rows, rows, read // columns, columns, each)
        positions = np.ascontiguousarray(numbers.transpose(0, 2, 1, 3, 4)).reshape(-1, rows * columns * each)
        member = Member(name, 0, positions, flat=True)
        return Axis(called, self.name, len(positions), True, (member,), atoms=np.empty((len(positions), 0), np.int64))
