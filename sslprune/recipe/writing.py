"""Plain values as TOML text."""

from __future__ import annotations

import json
from typing import Any


def write_toml(values: dict[str, Any]) -> str:
    """Tables of plain values (no None) as TOML: what stands alone first, then a section for each table."""
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not is_section(value)]
    for key, section in values.items():
        if is_section(section):
            for table in section if isinstance(section, list) else [section]:
                lines += ["", f"[[{key}]]" if isinstance(section, list) else f"[{key}]"]
                lines += [f"{name} = {_toml(value)}" for name, value in table.items()]
    return "\n".join(lines) + "\n"


def is_section(value: Any) -> bool:
    """Whether a value stands under a header of its own: a table, or an array of tables."""
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # the strings, numbers and booleans of JSON are TOML's
