"""The table of kinds, by the names that recipes and the rules' labels give them."""

from __future__ import annotations

from typing import Protocol

from sslprune.kinds.branches import BranchKind
from sslprune.kinds.columns import ColumnKind
from sslprune.kinds.experts import ExpertKind
from sslprune.kinds.kernel import KernelKind
from sslprune.kinds.kind import Kind
from sslprune.kinds.rank import NAME as RANK
from sslprune.kinds.rank import RankKind
from sslprune.kinds.tiles import TileKind


class Named(Protocol):
    """An axis, or what a report tells of one."""

    @property
    def kind(self) -> str: ...


# Of several labels the lowest row here wins; what has none is of the first.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("inputs", is_feature=False),
        KernelKind("kernel", is_feature=False, is_inside=True),
        Kind("neurons", is_usual=True),
        Kind("filters", is_usual=True),
        RankKind(RANK, is_feature=False, factors=True),
        Kind("width"),
        Kind("hidden", is_usual=True),
        Kind("value_dim"),
        Kind("head_dim"),
        Kind("heads", is_usual=True),
        ExpertKind("experts", prepares=True),
        BranchKind("layers", is_usual=True, is_whole=True),
        ColumnKind("columns", is_feature=False, is_inside=True, pays_late=True),
        TileKind("blocks", is_feature=False, is_inside=True, is_tiled=True),
    )
}


def kind_of(axis: Named) -> Kind:
    """The kind of ``axis``; what a person made by hand and called by a name of their own is as a module's features."""
    return KINDS.get(axis.kind) or Kind(axis.kind)
