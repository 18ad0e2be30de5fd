"""`Team`: which of several processes this is, and what they do together."""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class Team(Protocol):
    """Processes that train one model together; the one of rank 0 chooses, writes and speaks for all."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int:
        """How many processes there are."""
        ...

    @property
    def first(self) -> bool:
        """Whether this is the process of rank 0."""
        ...

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, the same on each."""
        ...

    def broadcast(self, value: T) -> T:
        """What the first process has, on all."""
        ...


class Alone:
    """A team of one process: everything is as it has it."""

    rank, world, first = 0, 1, True

    def mean(self, value: Tensor) -> Tensor:
        return value

    def broadcast(self, value: T) -> T:
        return value
