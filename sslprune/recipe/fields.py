"""What the fields of a recipe hold: fractions, counts, lengths of training, the points of a sweep, files."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from sslprune.recipe.writing import unwritable
from sslprune.values.bounds import (
    MOST,
    MOST_EPOCHS,
    MOST_LENGTH,
    MOST_PIXELS,
    MOST_REPETITIONS,
    MOST_SAMPLES,
    MOST_SEED,
    MOST_STEPS,
    MOST_THREADS,
)

Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
Threads = Annotated[int, Field(ge=0, le=MOST_THREADS)]
Workers = Annotated[int, Field(ge=0, le=MOST_THREADS)]
Repetitions = Annotated[int, Field(ge=30, le=MOST_REPETITIONS)]
BatchSize = Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
Steps = Annotated[int, Field(ge=1, le=MOST_LENGTH)]  # of sequences
Length = Annotated[int, Field(ge=2, le=MOST_LENGTH)]  # likewise, where two are needed to see that they may differ
Measure = Literal["macs", "parameters", "latency"]  # what a budget may be in
MEASURES: tuple[Measure, ...] = ("macs", "parameters", "latency")


def _folder(value: str) -> str:
    """A name that is one folder below ``runs/``, and no way to another place."""
    if not value or value != value.strip() or value.startswith(".") or re.search(r"[/\\\\]", value):
        raise ValueError('expected a name like "digits": not empty, no slashes, no dot or space in front')
    if not value.isprintable() or len(value.encode("utf-8", "replace")) > 200:
        raise ValueError("expected a name of at most 200 bytes, all of them visible")
    return value


Folder = Annotated[str, AfterValidator(_folder)]


@dataclass(frozen=True)
class Span:
    """A length of training: ``count`` epochs ("ep") or optimizer steps ("it")."""

    count: int
    unit: str

    @classmethod
    def parse(cls, value: object) -> Span:
        if isinstance(value, Span):
            return value
        match = re.fullmatch(r"([0-9]+)\s*(ep|it)", value) if isinstance(value, str) else None
        if match is None:
            raise ValueError('write epochs as "5ep" or steps as "200it"')
        digits, most = match[1].lstrip("0") or "0", {"ep": MOST_EPOCHS, "it": MOST_STEPS}
        if len(digits) > 9 or int(digits) > most[match[2]]:
            raise ValueError(f'at most "{MOST_EPOCHS}ep" or "{MOST_STEPS}it"')
        return cls(int(digits), match[2])

    def steps(self, epoch_steps: int) -> int:
        """The number of optimizer steps when one epoch takes ``epoch_steps`` of them."""
        return self.count * (epoch_steps if self.unit == "ep" else 1)

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


def _words(words: str, **schema: Any) -> WithJsonSchema:
    """What a field of a syntax of its own is called where it is told, beside its JSON Schema for editors."""
    return WithJsonSchema({"words": words, **schema})


def _either(*schemas: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": list(schemas)}


SPAN = {"type": "string", "pattern": "^[0-9]+ *(ep|it)$"}
WHOLE, NUMBER = {"type": "integer", "minimum": 1}, {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
Duration = Annotated[
    Span, BeforeValidator(Span.parse), PlainSerializer(str), _words('length: "5ep" or "200it"', **SPAN)
]


def _falling(value: object) -> tuple[float, ...]:
    """One fraction, or the points of a sweep: as a tuple either way."""
    values = value if isinstance(value, list | tuple) else [value]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1]
    if not values or len(numbers) < len(values):
        raise ValueError("expected a fraction above 0 and below 1, or a list of them for a sweep")
    if any(later >= sooner for sooner, later in pairwise(numbers)):
        raise ValueError("the points of a sweep have to fall, as in [0.5, 0.3, 0.2]")
    return tuple(map(float, numbers))


def _plain(points: tuple[float, ...]) -> float | list[float]:
    return points[0] if len(points) == 1 else list(points)


Falling = Annotated[
    tuple[float, ...],
    BeforeValidator(_falling),
    PlainSerializer(_plain),
    _words(
        "number above 0 and below 1, or a falling list of them",
        **_either(NUMBER, {"type": "array", "items": NUMBER, "minItems": 1}),
    ),
]


def _interval(value: object) -> Span | None:
    if value is None or value == "never":  # a word for it, as what a file says cannot be taken out by --set
        return None
    span = Span.parse(value)
    if not span.count:
        raise ValueError('write "1ep" or more, or "never"')
    return span


Interval = Annotated[
    Span | None,
    BeforeValidator(_interval),
    PlainSerializer(str, when_used="unless-none"),
    _words('length, or "never"', **_either(SPAN, {"const": "never"})),
]


def _grain(value: object) -> object:
    if value != "auto" and (type(value) is not int or not 1 <= value <= MOST_SAMPLES):
        raise ValueError(f'expected "auto", or a whole number from 1 to {MOST_SAMPLES}')
    return value


Grain = Annotated[
    Literal["auto"] | int,
    BeforeValidator(_grain),
    _words(f'`"auto"`, or whole number from 1 to {MOST_SAMPLES:,}', **_either({"const": "auto"}, WHOLE)),
]


def _size(value: object) -> object:
    sides = value if isinstance(value, list) else [value]
    right = len(sides) == (2 if isinstance(value, list) else 1)
    if not right or any(type(side) is not int or not 1 <= side <= MOST_PIXELS for side in sides):
        raise ValueError(f"expected a number of pixels up to {MOST_PIXELS:,}, as 224, or [height, width]")
    return value


Size = Annotated[
    int | list[int],
    BeforeValidator(_size),
    _words(
        "whole number, or [height, width]",
        **_either(WHOLE, {"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 2}),
    ),
]


def _damping(value: object) -> object:
    if value != "auto" and (type(value) not in (int, float) or not 0 <= value < math.inf):  # type: ignore[operator]
        raise ValueError('expected "auto", or a number from 0')
    return value


Damping = Annotated[
    Literal["auto"] | float,
    BeforeValidator(_damping),
    _words('number from 0, or `"auto"`', **_either({"type": "number", "minimum": 0}, {"const": "auto"})),
]


def _plain_table(table: dict[str, Any]) -> dict[str, Any]:
    for field, why in unwritable(table):
        raise ValueError(f"{field}: {why}")
    return table


FILE = "file"  # marks a field that holds a path ...
FACTORY = "factory"  # ... or a factory, which may stand in a file
Arguments = Annotated[dict[str, Any], AfterValidator(_plain_table), "arguments"]  # of the factory beside them


class Section(BaseModel):
    """A table of a recipe: frozen, and without unknown keys. The text below a field says what it means."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def located(self, folder: Path) -> Self:
        """The section with its paths made absolute where a file is found, in the current directory or in ``folder``."""
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Section):
                found[name] = value.located(folder)
            elif isinstance(value, list):
                inside = FACTORY in field.metadata  # a list of what may stand in a file
                found[name] = [
                    inner.located(folder)
                    if isinstance(inner, Section)
                    else _located_factory(inner, folder)
                    if inside
                    else inner
                    for inner in value
                ]
            elif FILE in field.metadata and not isinstance(value, bool):
                found[name] = _located(value, folder)
            elif FACTORY in field.metadata:
                found[name] = _located_factory(value, folder)
            elif "arguments" in field.metadata:
                found[name] = _located_path(getattr(self, "factory", None), value, folder)
        return self.model_copy(update={name: value for name, value in found.items() if value != getattr(self, name)})

    def absent(self) -> list[str]:
        """The files that its fields name, factories' among them, and that are not there."""
        found = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, str) and (FILE in field.metadata or FACTORY in field.metadata):
                source = value.rpartition(":")[0] if FACTORY in field.metadata else value
                named = FILE in field.metadata or source.endswith(".py")
                found += [source] if named and not Path(source).exists() else []
        return found


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a field of that annotation may hold, one or many of each."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif get_origin(annotation) in (list, Union, types.UnionType):
        for inner in get_args(annotation):
            yield from sections_in(inner)


def _located_path(factory: str | None, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The arguments of a factory; the directory of a Hugging Face model is found as other paths are."""
    path = arguments.get("path") if (factory or "").startswith("hf:") else None
    return arguments | {"path": _located(path, folder)} if isinstance(path, str) else arguments


def _located(path: str | None, folder: Path) -> str | None:
    if path is not None and not Path(path).is_absolute():
        for base in (Path(), folder):
            if (base / path).exists():
                return str((base / path).resolve())
    return path


def _located_factory(factory: str | None, folder: Path) -> str | None:
    """A factory in a file, "nets.py:build" or "net.pt2", follows the recipe; a module's, "nets:build", does not."""
    if factory is None:
        return None
    if factory.endswith(".pt2"):
        return _located(factory, folder)
    source, colon, name = factory.rpartition(":")
    return f"{_located(source, folder)}:{name}" if colon and source.endswith(".py") else factory
