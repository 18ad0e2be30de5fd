"""Rows of labelled text from delimited files (.tsv, .csv), JSON lines (.jsonl, .json) and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sslprune.errors import DataError
from sslprune.recipe.data import TEXT_FILES

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
    if not path.is_file():
        raise DataError(f"{path}: no such file; set data.train and data.test")
    if path.suffix not in (*TEXT_FILES, ".parquet"):
        raise DataError(f"{path}: not a known layout of labelled text; expected {', '.join(TEXT_FILES)} or .parquet")
    if path.suffix == ".parquet":
        return _parquet(path)
    return list(_delimited(path) if path.suffix in DELIMITERS else _json_lines(path))


def chosen(
    path: str | Path,
    rows: Sequence[tuple[int, dict[str, Any]]],
    text: str | None = None,
    label: str | None = None,
    pair: str | None = None,
) -> list[Row]:
    """The columns of text and label of the rows of ``path``; with ``pair``, the text is that and a second one's.

    Raises DataError as ``read_table`` does.
    """
    if not rows:
        raise DataError(f"{path}: empty; expected a row for each text")
    columns = list(rows[0][1])
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
        found.append((number, tuple(values[:-1]) if of_pair else values[0], values[-1]))
    return found


def _column(path: str | Path, columns: Sequence[str], given: str | None, usual: Sequence[str], field: str) -> str:
    if given is not None and given not in columns:
        raise DataError(f'{path}: no column "{given}" (data.{field}); it has {", ".join(columns)}')
    found = given or next((name for name in usual if name in columns), None)
    if found is None:
        raise DataError(f"{path}: columns are {', '.join(columns)}; say which holds the {field}: data.{field}")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error


def _delimited(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Quotes mean something in .csv alone: in .tsv, as GLUE has it, they are text."""
    tabs = path.suffix == ".tsv"
    lines = [line.rstrip("\r") + "\n" for line in _lines(path)]
    reader = csv.reader(lines, delimiter=DELIMITERS[path.suffix], quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    header = next(reader, None)
    for cells in reader:
        if not any(cells):
            continue
        if len(cells) != len(header or ()):
            raise DataError(f"{path}: line {reader.line_num} has {len(cells)} columns, the header {len(header or ())}")
        yield reader.line_num, dict(zip(header or (), cells, strict=True))


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: line {number} is not JSON ({error.msg}); expected one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} is a JSON {type(row).__name__}; expected one object a line")
        yield number, row


def _parquet(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install 'sslprune[images]'") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    return list(enumerate(table.to_pylist()))
