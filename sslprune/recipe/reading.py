"""Reading a recipe from TOML, with overrides, and saying in one line what is wrong with it."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sslprune.errors import RecipeError, first_line
from sslprune.recipe.fields import Section, sections_in
from sslprune.recipe.method import TeacherSection
from sslprune.recipe.model import ModelSection
from sslprune.recipe.output import ControlSection
from sslprune.recipe.recipe import Calibrating, Recipe, Sparsifying
from sslprune.recipe.writing import unwritable

Checked = TypeVar("Checked", bound=Section)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at ``path``, then set each ``"key.path=value"`` of ``overrides``.

    A value is TOML, or a bare string where it is not. Relative paths are looked for in the current directory, then in
    the recipe's folder, and become absolute where a file is found. Raises RecipeError, one line, for all that is wrong.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `sslprune init` writes one") from None
    except (OSError, ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise RecipeError(f"{path}: not a readable TOML file: {first_line(error)}") from error
    values = overridden(values, overrides)
    values.setdefault("name", path.stem)
    return parse_recipe(values, path.name, path.parent)


def parse_recipe(values: dict[str, Any], source: str = "recipe", folder: Path | None = None) -> Recipe:
    """Check plain ``values`` against the schema; ``source`` begins the message of a RecipeError."""
    recipe = _checked(Recipe, values, source)
    built: dict[str, ModelSection | ControlSection | TeacherSection | None] = {
        "model": recipe.model,
        **{f"control.{i}": control for i, control in enumerate(recipe.control)},
        "distill.teacher": recipe.distill.teacher if recipe.distill is not None else None,
    }
    for table, section in built.items():
        if section is not None and section.key is not None and section.checkpoint is None:
            raise RecipeError(
                f"{source}: {table}.key: names a table of the checkpoint; set {table}.checkpoint, or leave it out"
            )
    return recipe.located(folder or Path())


def parse_sparsifying(values: dict[str, Any], source: str = "sparsity") -> Sparsifying:
    """Check the sections of a recipe that say what goes and how; ``source`` begins the message of a RecipeError."""
    return _checked(Sparsifying, values, source)


def parse_calibrating(values: dict[str, Any], source: str = "calibrate") -> Calibrating:
    """Check what calibration in Python is given; ``source`` begins the message of a RecipeError."""
    return _checked(Calibrating, values, source)


def _checked(section: type[Checked], values: dict[str, Any], source: str) -> Checked:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first, *others = error.errors()
        more = f" (and {len(others)} more)" if others else ""
        raise RecipeError(f"{source}: {_explain(first)}{more}") from error
    except RecursionError as error:
        raise RecipeError(f"{source}: tables or lists nested too deeply") from error


def overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``values`` with each "key.path=value" of ``overrides`` set, in place; raises RecipeError where one cannot be."""
    for override in overrides:
        _set(values, override)
    return values


def _set(values: dict[str, Any], override: str) -> None:
    """Set one "key.path=value" in nested tables; an integer in the path is an index of a list of tables."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f'--set {override}: expected key.path=value, e.g. --set schedule.sparse="5ep"')
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    if next(unwritable(value), None) is not None:
        raise RecipeError(f"--set {override!r}: holds bytes that are no text")
    table: Any = values
    for key in keys[:-1]:
        table = table.setdefault(key, {}) if isinstance(table, dict) else _element(table, key, override)
    if isinstance(table, dict):
        table[keys[-1]] = value
    elif isinstance(table, list) and keys[-1].isdecimal() and int(keys[-1]) < len(table):
        table[int(keys[-1])] = value
    else:
        raise RecipeError(f"--set {override}: {'.'.join(keys[:-1])} is not a section")


def _element(table: Any, key: str, override: str) -> Any:
    if not isinstance(table, list) or not key.isdecimal() or int(key) >= len(table):
        size = f"has {len(table)} sections, numbered from 0" if isinstance(table, list) else "is not a section"
        raise RecipeError(f"--set {override}: what comes before {key} {size}")
    return table[int(key)]


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors: the field, what came, and what was expected."""
    location = list(error["loc"])
    field = ".".join(str(part) for part in location) or "recipe"
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        return f"{field}: unknown key; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}")
    if error["type"] == "missing":
        return f"{field}: missing"
    if error["type"] == "not_read":
        return f"{field}: {error['msg']}"
    message = error["msg"].removeprefix("Value error, ")
    came = error["input"]
    shown = "" if isinstance(came, dict) else f"; got {json.dumps(came, default=str)}"
    return f"{field}: {message[0].lower()}{message[1:]}{shown}"


def _known_keys(location: Sequence[str | int]) -> list[str]:
    sections: list[type[Section]] = [Recipe]
    for part in location:
        if isinstance(part, str):
            fields = [section.model_fields[part] for section in sections if part in section.model_fields]
            sections = [inner for field in fields for inner in sections_in(field.annotation)] or sections
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))
