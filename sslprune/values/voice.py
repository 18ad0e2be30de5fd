"""Who speaks to a person while work goes on: what stages say, without knowing of terminals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")


class Bar(Protocol):
    """One piece of work under way."""

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count ``n`` more steps as done; ``fields`` stand beside them (``loss=0.31``)."""

    def over(self, steps: Iterable[Item]) -> Iterator[Item]:
        """``steps``, each counted once it is done."""


class Voice(Protocol):
    """The one way to speak to a person."""

    def say(self, line: str = "", style: str = "") -> None:
        """One line of news; ``style`` is a colour, "yellow" for a warning."""

    def stage(self, name: str, detail: str) -> None:
        """The heading of a stage."""

    def progress(self, description: str, total: int | None = None) -> AbstractContextManager[Bar]:
        """Work of ``total`` steps (None: not known), for as long as the block lasts."""


class SilentBar:
    """A bar that nobody sees."""

    def advance(self, n: int = 1, **fields: Any) -> None:
        pass

    def over(self, steps: Iterable[Item]) -> Iterator[Item]:
        yield from steps


class Silent:
    """A voice that says nothing, for who calls a stage from Python."""

    def say(self, line: str = "", style: str = "") -> None:
        pass

    def stage(self, name: str, detail: str) -> None:
        pass

    def progress(self, description: str, total: int | None = None) -> AbstractContextManager[Bar]:
        return nullcontext(SILENT_BAR)


SILENT, SILENT_BAR = Silent(), SilentBar()
