"""Reading a recipe from TOML, with overrides, and saying in one line what is wrong with it."""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from sslprune.errors import RecipeError
from sslprune.recipe.fields import Section
from sslprune.recipe.schema import Recipe, Sparsifying

Checked = TypeVar("Checked", bound=Section)
LOCATED = ("train", "valid", "test", "vocabulary", "tokenizer")  # the paths of [data]


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
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: not a readable TOML file: {error}") from error
    for override in overrides:
        _set(values, override)
    values.setdefault("name", path.stem)
    return parse_recipe(values, path.name, path.parent)


def parse_recipe(values: dict[str, Any], source: str = "recipe", folder: Path | None = None) -> Recipe:
    """Check plain ``values`` against the schema; ``source`` begins the message of a RecipeError."""
    recipe = _checked(Recipe, values, source)
    if recipe.model.key is not None and recipe.model.checkpoint is None:
        raise RecipeError(
            f"{source}: model.key: names a table of the checkpoint; set model.checkpoint, or leave it out"
        )
    folder = folder or Path()
    model = recipe.model.model_copy(
        update={
            "factory": _located_factory(recipe.model.factory, folder),
            "checkpoint": _located(recipe.model.checkpoint, folder),
            "arguments": _located_path(recipe.model.factory, recipe.model.arguments, folder),
        }
    )
    data = recipe.data.model_copy(
        update={
            "factory": _located_factory(recipe.data.factory, folder),
            **{key: _located(getattr(recipe.data, key), folder) for key in LOCATED},
        }
    )
    controls = [
        control.model_copy(
            update={
                "factory": _located_factory(control.factory, folder),
                "checkpoint": _located(control.checkpoint, folder),
                "onnx": _located(control.onnx, folder),
            }
        )
        for control in recipe.control
    ]
    distill = recipe.distill
    if distill is not None and distill.teacher is not None:
        teacher = distill.teacher.model_copy(
            update={
                "run": _located(distill.teacher.run, folder),
                "factory": _located_factory(distill.teacher.factory, folder),
                "checkpoint": _located(distill.teacher.checkpoint, folder),
                "arguments": _located_path(distill.teacher.factory or "", distill.teacher.arguments, folder),
            }
        )
        distill = distill.model_copy(update={"teacher": teacher})
    return recipe.model_copy(update={"model": model, "data": data, "distill": distill, "control": controls})


def parse_sparsifying(values: dict[str, Any], source: str = "sparsity") -> Sparsifying:
    """Check the sections of a recipe that say what goes and how; ``source`` begins the message of a RecipeError."""
    return _checked(Sparsifying, values, source)


def _checked(section: type[Checked], values: dict[str, Any], source: str) -> Checked:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first, *others = error.errors()
        more = f" (and {len(others)} more)" if others else ""
        raise RecipeError(f"{source}: {_explain(first)}{more}") from error


def _located(path: str | None, folder: Path) -> str | None:
    if path is not None and not Path(path).is_absolute():
        for place in (Path(), folder):
            if (place / path).exists():
                return str((place / path).resolve())
    return path


def _located_path(factory: str, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The directory of a Hugging Face model is found as other paths are."""
    path = arguments.get("path") if factory.startswith("hf:") else None
    return arguments | {"path": _located(path, folder)} if isinstance(path, str) else arguments


def _located_factory(factory: str | None, folder: Path) -> str | None:
    """A factory in a file, "nets.py:build" or "net.pt2", follows the recipe; a module's, "nets:build", does not."""
    if factory is None:
        return None
    if factory.endswith(".pt2"):
        return _located(factory, folder)
    place, colon, name = factory.rpartition(":")
    return f"{_located(place, folder)}:{name}" if colon and place.endswith(".py") else factory


def _set(values: dict[str, Any], override: str) -> None:
    """Set one "key.path=value" in nested tables; an integer in the path is an index of a list of tables."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f'--set {override}: expected key.path=value, e.g. --set schedule.sparse="5ep"')
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
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
    message = error["msg"].removeprefix("Value error, ")
    came = error["input"]
    shown = "" if isinstance(came, dict) else f"; got {json.dumps(came, default=str)}"
    return f"{field}: {message[0].lower()}{message[1:]}{shown}"


def _known_keys(location: Sequence[str | int]) -> list[str]:
    section: Any = Recipe
    for part in location:
        if isinstance(part, str):
            section = next(iter(_sections(section.model_fields[part].annotation)), section)
    return list(section.model_fields)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif get_origin(annotation) in (list, Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _sections(inner)
