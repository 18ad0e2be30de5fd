"""`Analysis`: what is inferred of one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from sslprune.analysis.exactness import inexact_atoms
from sslprune.analysis.inference import Inference
from sslprune.analysis.rules import RULES
from sslprune.analysis.rules.unknown import unknown
from sslprune.capture.program import Program
from sslprune.values.axes import Axis


class Analysis:
    """What is inferred of one program, each part once, when it is first asked for.

    ``labels`` are the kinds that rules may name, by rank; ``find`` makes the axes of all the rest.
    `sslprune.kinds.find.analysis_of` keeps one for each program.
    """

    def __init__(self, program: Program, labels: Sequence[str], find: Callable[[Analysis], list[Axis]]) -> None:
        self.program, self._labels, self._find = program, labels, find

    @cached_property
    def inference(self) -> Inference:
        """What the rules state of every node, and how the atoms are joined by it."""
        return Inference(self.program, RULES, unknown, self._labels)

    @cached_property
    def inexact(self) -> dict[int, int]:
        """The atoms whose removal would change what is left, each with its reason's index in the atoms'."""
        return inexact_atoms(self.inference)

    @cached_property
    def axes(self) -> list[Axis]:
        """Every axis, of every kind."""
        return self._find(self)
