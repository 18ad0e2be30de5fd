"""Write what is told of a recipe's fields: docs/recipe.md for people, the package's JSON Schema for editors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from sslprune.files import write_json, write_text
from sslprune.recipe import DataSection, Recipe
from sslprune.recipe.fields import Section, sections_in
from sslprune.recipe.schema import SCHEMA_FILE, recipe_schema

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
TOP = """\
# The recipe

<!-- Written by scripts/recipe_reference.py from sslprune/recipe: change the schema, then run it. -->

A recipe is a TOML file. A key that it does not know is an error that names the nearest one.
`--set key.path=value` sets any field from the command line; `--set prune.0.strength=2` is one of the first `[[prune]]`.
A relative path is looked for in the current directory, then in the recipe's folder.
Editors that know JSON Schema complete its keys: `sslprune init` names the package's in a first line, `#:schema`.
A length of training is written with its unit: `"5ep"` are epochs, `"200it"` are optimizer steps.
`[data]` is needed, and is read as one of four kinds of data; a field that only another kind reads is an error.
A field without a default here may be left out, unless it is *needed*.

## Above all sections
"""


SHOWN: set[type[Section]] = set()  # sections that stand in several others are told once


def reference() -> str:
    """The page, as text."""
    SHOWN.clear()
    loose = {name: field for name, field in Recipe.model_fields.items() if not any(sections_in(field.annotation))}
    parts = [TOP, _table(Recipe, loose)]
    for name, field in Recipe.model_fields.items():
        found = list(sections_in(field.annotation))
        for section in found:
            needed = field.is_required() and len(found) == 1
            parts += _section(name, section, many="list[" in str(field.annotation), needed=needed)
    return "\n".join(parts) + "\n"


def _section(name: str, section: type[Section], *, many: bool, needed: bool) -> Iterator[str]:
    """A section's heading, text and table, then those of the sections inside it."""
    inner = {key: next(sections_in(field.annotation), None) for key, field in section.model_fields.items()}
    kind = f", {section.KIND}" if issubclass(section, DataSection) else ""
    yield f"\n## `{f'[[{name}]]' if many else f'[{name}]'}`{kind}\n"
    yield _line(section.__doc__) + (" Needed." if needed else "") + "\n"
    yield _table(section, section.model_fields)
    for key, nested in inner.items():
        if nested is not None and nested not in SHOWN:
            SHOWN.add(nested)
            yield from _section(f"{name}.{key}", nested, many=False, needed=False)


def _table(section: type[Section], fields: dict[str, FieldInfo]) -> str:
    types = section.model_json_schema()["properties"]
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        cells = [f"`{name}`", _type(types[name]), _default(field), _line(field.description)]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("<", "&lt;")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*needed*"
    value = field.get_default()
    return "" if value is None else f"`{json.dumps(value, default=str, ensure_ascii=False)}`"


def _type(schema: dict[str, Any]) -> str:
    """A type of the JSON schema in words."""
    if "words" in schema:
        return schema["words"]
    if "anyOf" in schema:
        return ", or ".join(_type(one) for one in schema["anyOf"] if one != {"type": "null"})
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return "section"
    kind = schema.get("type")
    if kind == "array":
        return "list of " + re.sub(r"^(text|number|whole number)", r"\1s", _type(schema["items"]))
    if kind in ("integer", "number"):
        return " ".join(["whole number" if kind == "integer" else "number", *_bounds(schema)])
    return {"string": "text", "boolean": "`true` or `false`", "object": "table"}[schema["type"]]


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    if "minimum" in schema and "maximum" in schema:
        yield f"from {schema['minimum']:,} to {schema['maximum']:,}"
        return
    words = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "up to"}
    found = [f"{word} {schema[key]:,}" for key, word in words.items() if key in schema]
    if found:
        yield " and ".join(found)


if __name__ == "__main__":
    print(write_text(PAGE, reference()))
    print(write_json(SCHEMA_FILE, recipe_schema()))
