"""`Kind`: what one kind of axes does in its own way. A kind is one file in this room, and one row in its table."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from sslprune.analysis.analysis import Analysis
from sslprune.analysis.columns import Columns
from sslprune.analysis.inference import Inference
from sslprune.recipe import PruneSection
from sslprune.values.axes import Axis


@dataclass(frozen=True)
class Kind:
    """The kind of that ``name``, as recipes and rules call it. As it stands here it is one of a module's features.

    What is zeroed with a group and what repack takes away are data of the axis, and the same for every kind: members,
    atoms, and the operands that a whole axis cuts.
    """

    name: str
    is_feature: bool = True  # a module makes them: an axis that is the module's only one has its name and no more
    is_inside: bool = False  # a layer has them for itself: they are many, and no other layer's width
    is_usual: bool = False  # a first recipe prunes them
    is_whole: bool = False  # an axis can go to its last group, since something else stands beside it
    prepares: bool = False  # a model may need something done to it first: see `gates`
    factors: bool = False  # its axes are of matrices that a model is rewritten for first
    pays_late: bool = False  # its groups save nothing until many of an axis are gone, and then much at once
    is_tiled: bool = False  # its groups are of a shape that a section names, and stay in dense weights as zeros

    @property
    def is_width(self) -> bool:
        """Whether fewer groups make layers narrower."""
        return not (self.is_inside or self.is_whole)

    @property
    def missing(self) -> str:
        """What else there is to say where a model has none of it."""
        return ""

    def find(self, analysis: Analysis, labelled: Sequence[Axis]) -> list[Axis]:
        """The axes of this kind; ``labelled`` are all those whose kind the rules say, in the graph's order."""
        return [axis for axis in labelled if axis.kind == self.name]

    def asked(self, analysis: Analysis, section: PruneSection, taken: Collection[str]) -> list[Axis]:
        """The axes that there are because ``section`` asks for them; none of a name that is ``taken``."""
        return []

    def closed(self, gone: np.ndarray, left: np.ndarray | None) -> np.ndarray:
        """Which groups of an axis can go when those in ``gone`` are zero: bool, shape (size,).

        ``left``: which of them the other axes leave, where `sizes` gives something that these have a part in.
        """
        return gone

    def next(self, alive: np.ndarray) -> np.ndarray:
        """Which of the groups in ``alive`` can go next, each by itself: bool, shape (size,)."""
        return alive

    def floor(self, axis: Axis, share: float = 0.0, least: int = 1) -> int:
        """How many groups of ``axis`` stay, where ``least`` of an axis do and that ``share`` of it."""
        return 0 if self.is_whole else min(axis.size, max(least, axis.least, math.ceil(share * axis.size)))

    def gates(self, g: Inference, axis: Axis) -> tuple[str, ...]:
        """The weights of routers that need a gate behind them for ``axis`` to be exact, by their names."""
        return ()

    def sizes(self, g: Inference, axis: Axis) -> Columns | None:
        """What is counted of a weight in place of its own dimensions, where the groups lie across several of them."""
        return None
