"""Files are written whole or not at all: to a temporary name beside the target, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sslprune.errors import SslpruneError


def write_atomic(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Call ``write(temporary)``, then rename ``temporary`` to ``path``; on any failure nothing is left behind.

    Raises SslpruneError when the operating system refuses (a full disk, a read-only folder).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # the suffix stays: some writers look at it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise SslpruneError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another --run"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_beside(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Like ``write_atomic`` for a file that may have companions (``model.onnx`` and ``model.onnx.data``).

    ``write(folder / path.name)`` writes into a folder of its own; what lies there moves to ``path``'s, ``path`` last.
    """
    path = Path(path)
    folder = path.with_name(f".{path.stem}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / path.name)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            os.replace(file, path.parent / file.name)
    except OSError as error:
        raise SslpruneError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another --run"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8, atomically."""
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, atomically."""
    return write_text(path, json.dumps(value, indent=2) + "\n")
