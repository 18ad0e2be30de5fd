"""The JSON Schema of a recipe, by which editors complete its keys and mark what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sslprune.recipe.recipe import Recipe

SCHEMA_FILE = Path(__file__).parent / "recipe.schema.json"  # written by scripts/recipe_reference.py
DIRECTIVE = "#:schema "  # of a TOML file's first line, as editors read it


def recipe_schema() -> dict[str, Any]:
    """The schema. A recipe has [schedule] or [calibrate], and its [data] are of one kind."""
    schema = Recipe.model_json_schema()
    schema["required"].remove("schedule")
    schema["anyOf"] = [{"required": ["schedule"]}, {"required": ["calibrate"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_plain(schema)}


def _plain(value: Any) -> Any:
    """Without what is for our own page, and with defaults as a file has them."""
    if isinstance(value, dict):
        if value.keys() == {"count", "unit"}:
            return f"{value['count']}{value['unit']}"
        ours = ("words", "default")
        return {k: _plain(v) for k, v in value.items() if k not in ours or (k == "default" and v is not None)}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
