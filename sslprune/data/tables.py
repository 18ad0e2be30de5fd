"""Rows of labelled text from delimited files (.tsv, .csv), JSON lines (.jsonl, .json) and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sslprune.data.foreign import read_parquet, read_text, reading, require_distinct, require_file
from sslprune.data.images import PICTURE_FILES
from sslprune.errors import DataError
from sslprune.recipe.data import TEXT_FILES

LONGEST_CELL = 2**31 - 1  # characters
DELIMITERS = {".tsv": "\t", ".csv": ","}
TEXT_COLUMNS = ("text", "sentence", "tokens", "words", "content", "review")
LABEL_COLUMNS = ("label", "labels", "tags", "ner_tags", "pos_tags", "class", "category")

Row = tuple[int, Any, Any]  # the line (from 1) or row (from 0), the text, the label


def read_table(path: str | Path, text: str | None = None, label: str | None = None) -> list[Row]:
    """The rows of a file, columns ``text`` and ``label`` (or the first of the usual names that it has).

    Raises DataError for a file that is missing, empty, of another layout, or that has an empty cell.
    """
    return chosen(path, rows_of(path), text, label)


def rows_of(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a file with all their columns, each with its number; raises DataError as ``read_table`` does."""
    path = Path(path)
    require_file(path, mend="set data.train and data.test", folder="expected a file; a saved dataset is data.dataset")
    if path.suffix not in (*TEXT_FILES, ".parquet"):
        raise DataError(f"{path}: not a known layout of labelled text; expected {', '.join(TEXT_FILES)} or .parquet")
    if path.suffix == ".parquet":
        table = read_parquet(path)
        with reading(path, "Parquet file"):
            return list(enumerate(table.to_pylist()))
    if path.suffix not in DELIMITERS:
        return list(_json_lines(path))
    with reading(path, f"{path.suffix} file"), _long_cells():
        return list(_delimited(path))


def chosen(
    path: str | Path,
    rows: Sequence[tuple[int, dict[str, Any]]],
    text: str | None = None,
    label: str | None = None,
    pair: str | None = None,
    *,
    lists: bool = False,
) -> list[Row]:
    """The columns of text and label of the rows of ``path``; with ``pair``, the text is that and a second one's.

    ``lists``: a text may be a list of words, and a label a list as long. Raises DataError as ``read_table`` does.
    """
    if not rows:
        raise DataError(f"{path}: empty; expected a row for each text")
    columns = list(rows[0][1])
    _no_pictures(path, rows, text)
    of_text, of_label = (
        _column(path, columns, given, usual, field)
        for given, usual, field in ((text, TEXT_COLUMNS, "text"), (label, LABEL_COLUMNS, "label"))
    )
    of_pair = [] if pair is None else [_column(path, columns, pair, (), "text_pair")]
    used = [of_text, *of_pair, of_label]
    found: list[Row] = []
    for number, row in rows:
        values = [row.get(column) for column in used]
        for column, value in zip(used, values, strict=True):
            if value is None or value == "":
                raise DataError(f"{path}: row {number} has no {column}; expected {' and '.join(used)} in each")
            kinds = (str, list) if lists else str if column != of_label else (str, int, float)
            if not isinstance(value, kinds):
                raise DataError(
                    f"{path}: row {number}: {column} is of type {type(value).__name__}; expected "
                    + ("text, or a list of words" if lists else "text" if column != of_label else "text or a number")
                    + ('; a list of words is for data.task = "tagging"' if isinstance(value, list) else "")
                )
        found.append((number, tuple(values[:-1]) if of_pair else values[0], values[-1]))
    return found


def _no_pictures(path: str | Path, rows: Sequence[tuple[int, dict[str, Any]]], text: str | None) -> None:
    """Raise DataError where the table lists pictures, and no column of text is named."""
    for column in rows[0][1] if text is None else ():
        names = [row.get(column) for _, row in rows[:10]]
        if all(isinstance(name, str) and Path(name).suffix.lower() in PICTURE_FILES for name in names):
            raise DataError(f'{path}: column {column} holds names of pictures; set data.image = "{column}"')


def _column(path: str | Path, columns: Sequence[str], given: str | None, usual: Sequence[str], field: str) -> str:
    if given is not None and given not in columns:
        raise DataError(f'{path}: no column "{given}" (data.{field}); it has {", ".join(columns)}')
    found = given or next((name for name in usual if name in columns), None)
    if found is None:
        raise DataError(f"{path}: columns are {', '.join(columns)}; say which holds the {field}: data.{field}")
    return found


def _lines(path: Path) -> list[str]:
    return read_text(path).split("\n")


def _delimited(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Quotes mean something in .csv alone: in .tsv, as GLUE has it, they are text."""
    tabs = path.suffix == ".tsv"
    lines = [line.rstrip("\r") + "\n" for line in _lines(path)]
    reader = csv.reader(lines, delimiter=DELIMITERS[path.suffix], quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    header = next(reader, [])
    require_distinct(path, header)
    for cells in reader:
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise DataError(f"{path}: line {reader.line_num} has {len(cells)} columns, the header {len(header)}")
        yield reader.line_num, dict(zip(header, cells, strict=True))


@contextmanager
def _long_cells() -> Iterator[None]:
    """A block in which a cell may be as long as a document; csv's own limit is 131,072 characters."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        with reading(f"{path}: line {number}", "JSON object"):
            row = json.loads(line, object_pairs_hook=partial(_once, f"{path}: line {number}"))
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} is a JSON {type(row).__name__}; expected one object a line")
        yield number, row


def _once(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no name may stand twice."""
    require_distinct(where, [name for name, _ in pairs])
    return dict(pairs)
