"""What is said of a picture as a target: a class, several labels, numbers, a mask, or nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslprune.data.kept import KeptClasses
from sslprune.data.labelled import classes_of
from sslprune.data.rows import Rows, SomeRows, TableRows, open_file, opened
from sslprune.errors import DataError, few
from sslprune.values.numbers import Labels, Numbers
from sslprune.values.tasks import Task

SEVERAL = re.compile(r"\s*[;|]\s*")  # between the labels of a picture that has several


class Targets:
    """Targets of rows that are all of one kind. ``classes``: the names of classes or labels, by number."""

    classes: tuple[str, ...]
    spatial = False  # a target is a mask, which is cut and turned as its picture is

    def __call__(self, rows: Rows, row: int) -> Tensor:
        """The target of a row; raises DataError, which names it, for what is none."""
        raise NotImplementedError


class Nothing(Targets):
    """Nothing is said of a picture."""

    classes = ()

    def __call__(self, rows: Rows, row: int) -> Tensor:
        return torch.zeros((), dtype=torch.int64)


@dataclass
class Classes(Targets):
    """One class a picture, by its number or name."""

    classes: tuple[str, ...]
    known: Mapping[str, int]
    named: str

    def __call__(self, rows: Rows, row: int) -> Tensor:
        found = self.known.get(str(rows.label(row)))
        if found is None:
            raise DataError(
                f'{rows.name(row)}: label "{rows.label(row)}" is not one of {few(list(self.classes))}: {self.named}'
            )
        return torch.tensor(found)

    def of_some(self, kept: KeptClasses) -> Classes:
        """The targets where only the classes ``kept`` are left."""
        new = kept.renumbered
        return Classes(kept.names, {said: new[n] for said, n in self.known.items() if n in new}, self.named)

    def some_rows(self, rows: Rows, kept: KeptClasses) -> SomeRows:
        """The rows of the classes ``kept``; raises DataError where one of them has none."""
        numbers = [int(self(rows, row)) for row in range(len(rows))]
        new = kept.renumbered
        chosen = [row for row, number in enumerate(numbers) if number in new]
        kept.check((new[numbers[row]] for row in chosen), rows.source)
        return SomeRows(rows, chosen)


@dataclass
class Several(Targets):
    """Labels that may hold together: a list, names with ";" between them, or a column of 1 and 0 for each."""

    classes: tuple[str, ...]
    columns: bool

    def __call__(self, rows: Rows, row: int) -> Tensor:
        said = rows.label(row)
        if self.columns:
            return torch.tensor([_number(value, rows, row) for value in said])
        held = torch.zeros(len(self.classes))
        for name in names_in(said):
            if name not in self.classes:
                raise DataError(f'{rows.name(row)}: label "{name}" is not one of {few(list(self.classes))}')
            held[self.classes.index(name)] = 1.0
        return held


@dataclass
class Figures(Targets):
    """Numbers: of one column, or of several."""

    classes: tuple[str, ...]

    def __call__(self, rows: Rows, row: int) -> Tensor:
        said = rows.label(row)
        values = said if isinstance(said, list) else [said]
        numbers = torch.tensor([_number(value, rows, row) for value in values])
        return numbers if isinstance(said, list) else numbers[0]


class Masks(Targets):
    """A picture of classes, of the size of its own: a path beside the table, or a picture of the dataset."""

    spatial = True

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes

    def __call__(self, rows: Rows, row: int) -> Tensor:
        said = rows.label(row)
        if isinstance(said, Mapping) and said.get("bytes") is not None:
            import io

            picture = opened(io.BytesIO(said["bytes"]), f"{rows.name(row)}, its mask")
        elif isinstance(said, str) and said:
            picture = open_file(rows.beside(said) if isinstance(rows, TableRows) else Path(said))
        elif hasattr(said, "convert"):
            picture = said
        else:
            raise DataError(f"{rows.name(row)}: its mask is of type {type(said).__name__}; expected a picture's path")
        if picture.mode not in ("L", "P", "I", "I;16", "1"):
            raise DataError(
                f"{rows.name(row)}: its mask is of mode {picture.mode}; expected one number a pixel (L or P): its class"
            )
        return torch.from_numpy(np.array(picture).astype(np.int64))


def names_in(said: Any) -> list[str]:
    """The labels of a picture, as a list or in a text."""
    if isinstance(said, str):
        return [name for name in SEVERAL.split(said.strip()) if name]
    return [str(name) for name in said] if isinstance(said, Sequence) else [] if said is None else [str(said)]


def targets_of(task: Task, rows: Rows, labels: Sequence[str], columns: Sequence[str], seen: Sequence[int]) -> Targets:
    """What makes targets of ``rows``, the training pictures, for ``task``.

    ``labels``: the names of the classes, as the recipe gives them; empty: those of the data, or of the rows ``seen``.
    ``columns``: of the labels, where the recipe names them.
    """
    if task.taught:
        return Nothing()
    if task.resized:
        return Masks(tuple(labels) or rows.classes)
    if isinstance(task, Numbers):
        return Figures(tuple(labels) or (tuple(columns) if len(columns) > 1 else ()))
    if isinstance(task, Labels):
        if len(columns) > 1:
            return Several(tuple(labels) or tuple(columns), True)
        named = tuple(labels) or tuple(sorted({name for row in seen for name in names_in(rows.label(row))}))
        if not named:
            raise DataError(f"{rows.source}: no picture has a label; see data.label")
        return Several(named, False)
    given = tuple(labels) or rows.classes
    if not given:
        said = [(row, None, rows.label(row)) for row in seen]
        missing = next((row for row, _, label in said if label is None or label == ""), None)
        if missing is not None:
            raise DataError(f"{rows.name(missing)}: no label; expected one for each picture: see data.label")
        given = classes_of(rows.source, said, False)
    known = {str(i): i for i in range(len(given))} | {name: i for i, name in enumerate(given)}
    return Classes(given, known, "data.labels" if labels else f"the classes of {rows.source}")


def _number(value: Any, rows: Rows, row: int) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"{rows.name(row)}: {value!r} is no number; see data.label") from None
