"""What a stage wrote: the size and the hash of each file, so that a damaged result is not taken for a finished one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sslprune.files import write_json

FILE = "files.json"
Record = Mapping[str, Mapping[str, Any]]  # by path below the run: "bytes", "sha256"


def write_record(path: Path, root: Path, files: Iterable[Path]) -> None:
    """Write what ``files`` are, by their paths below ``root``."""
    write_json(path, {file.relative_to(root).as_posix(): _of(file) for file in sorted(files)})


def read_record(path: Path) -> Record:
    """What ``write_record`` wrote; nothing where it cannot be read, as in runs of earlier versions.

    Files outside the run are none of its own: what a record names may be removed.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        record = {name: {"bytes": int(of["bytes"]), "sha256": str(of["sha256"])} for name, of in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
    return {name: of for name, of in record.items() if is_inside(name)}


def is_inside(name: str) -> bool:
    """Whether a path below a folder stays in it."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def damaged(record: Record, root: Path) -> list[Path]:
    """The files of ``record`` that are missing, or not what was written."""
    return [root / name for name, was in record.items() if not _is(root / name, was)]


def _of(file: Path) -> dict[str, Any]:
    with open(file, "rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _is(file: Path, was: Mapping[str, Any]) -> bool:
    try:
        return file.stat().st_size == was["bytes"] and _of(file) == was
    except OSError:
        return False
