"""What the fields of a recipe hold: fractions, counts, lengths of training, the points of a sweep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
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
        match = re.fullmatch(r"(\d+)\s*(ep|it)", value) if isinstance(value, str) else None
        if match is None:
            raise ValueError('write epochs as "5ep" or steps as "200it"')
        return cls(int(match[1]), match[2])

    def steps(self, epoch_steps: int) -> int:
        """The number of optimizer steps when one epoch takes ``epoch_steps`` of them."""
        return self.count * (epoch_steps if self.unit == "ep" else 1)

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


Duration = Annotated[Span, BeforeValidator(Span.parse), PlainSerializer(str)]


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


Falling = Annotated[tuple[float, ...], BeforeValidator(_falling), PlainSerializer(_plain)]


def _interval(value: object) -> Span | None:
    if value is None or value == "never":  # a word for it, as what a file says cannot be taken out by --set
        return None
    span = Span.parse(value)
    if not span.count:
        raise ValueError('write "1ep" or more, or "never"')
    return span


Interval = Annotated[Span | None, BeforeValidator(_interval), PlainSerializer(str, when_used="unless-none")]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )
