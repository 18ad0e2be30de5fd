"""Plain values as TOML text, from which ``tomllib`` reads the same values."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Any

import tomli_w


def write_toml(values: dict[str, Any]) -> str:
    """Tables of plain values as TOML text. Raises ValueError for what ``unwritable`` finds."""
    wrong = next(unwritable(values), None)
    if wrong is not None:
        raise ValueError(": ".join(wrong))
    return tomli_w.dumps(values)


def unwritable(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """What in ``value`` TOML cannot hold: where, and why not."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                yield field, f"a key is of type {type(key).__name__}; expected text"
            else:
                yield from unwritable(inner, f"{field}.{key}" if field else key)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from unwritable(inner, f"{field}.{index}")
    elif isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            yield field, "holds bytes that are no text"
    elif isinstance(value, datetime | time):
        if isinstance(value, time) and value.tzinfo is not None:
            yield field, "a time with a zone; TOML has one of a date alone"
    elif not isinstance(value, bool | int | float | date):
        yield field, f"of type {type(value).__name__}, which TOML does not have"
