"""Rank: one component of a weight that was rewritten as a product of two."""

from __future__ import annotations

from sslprune.kinds.kind import Kind

NAME = "rank"


class RankKind(Kind):
    """The components of each factored weight; a model without any is one that nobody has factored."""

    @property
    def missing(self) -> str:
        return "; it is of matrices that were factored first: sslprune.factor does that, and a recipe by itself"
