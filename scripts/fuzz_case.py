"""One input of ``scripts/fuzz.py``."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Case:
    """``refuse``: known to be wrong; ``touched``: files that the command may change or remove."""

    words: list[str]
    told: str
    refuse: bool = False
    touched: set[str] = field(default_factory=set)
    names: str = ""  # what a line about it has to name
