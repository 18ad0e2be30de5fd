"""What the rules state about one node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import fx

from sslprune.analysis.atoms import Dim
from sslprune.analysis.contraction import Contraction
from sslprune.analysis.pointers import Pointer
from sslprune.analysis.rewriter import Rewriter
from sslprune.analysis.zeros import Zero


@dataclass
class Facts:
    """What the rules state about one node."""

    outputs: list[list[Dim]] = field(default_factory=list)  # of each tensor that the node makes
    zeros: list[Zero | None] = field(default_factory=list)  # how exact zeros reach each of them; None: never
    contractions: list[Contraction] = field(default_factory=list)  # what it multiplies by, and sums over
    sums: list[tuple[Dim, Zero | None]] = field(default_factory=list)  # all that it sums over, and what vanishes there
    normalised: list[tuple[Dim, Zero | None]] = field(default_factory=list)  # what goes changes the rest, but ...
    beaten: Zero | None = None  # where an entry of the result is less than every other, for all that compares them
    points: dict[int, Pointer] = field(default_factory=dict)  # of an output: the entries that its numbers name
    rewrites: list[Callable[[Rewriter], None]] = field(default_factory=list)
    infinite: list[Zero] = field(default_factory=list)  # where what vanishes gives infinity, or no number at all
    parts: dict[int, tuple[int, tuple[Part, ...]]] = field(default_factory=dict)  # of an output: along which dimension


@dataclass(frozen=True)
class Part:
    """One entry along a dimension that a node stacked: read alone, it has a width of its own."""

    dims: tuple[Dim, ...]
    zero: Zero | None
    take: Callable[[Rewriter], fx.Node | None]  # what makes it alone in the new graph; None: the stack still does
