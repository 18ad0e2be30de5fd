"""Reading with other people's parsers: whatever they raise is one line that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslprune.errors import DataError, first_line


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """A block that reads ``path`` as ``what``; any error in it is a DataError that says what the file is not.

    A damaged file can make a parser raise anything: OSError, struct.error, SyntaxError, IndexError, ...
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise DataError(f"{path}: not a readable {what} ({reason[0].lower()}{reason[1:]})") from error
    except Exception as error:
        raise DataError(f"{path}: not a readable {what} ({first_line(error)})") from error


def require_file(path: str | Path, *, mend: str, folder: str) -> None:
    """Raise DataError unless ``path`` is a file: ``mend`` follows for none, ``folder`` for a folder."""
    if Path(path).is_dir():
        raise DataError(f"{path}: a folder; {folder}")
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; {mend}")


def read_text(path: str | Path) -> str:
    """A UTF-8 file's text, without a byte order mark; raises DataError for one that is no text."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_parquet(path: str | Path, **options: Any) -> Any:
    """The pyarrow table of a Parquet file; raises DataError for one that is damaged, or has a column twice."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install 'sslprune[images]'") from error
    with reading(path, "Parquet file"):
        require_distinct(path, pyarrow.parquet.read_schema(path).names)
        return pyarrow.parquet.read_table(path, **options)


def require_distinct(path: str | Path, columns: list[str]) -> None:
    """Raise DataError for a column that stands twice."""
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise DataError(f'{path}: column "{twice}" stands there twice; expected each name once')
