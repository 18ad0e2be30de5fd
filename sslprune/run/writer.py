"""One writer at a time in a run directory: a lock while a command writes there, and a note of who holds it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from sslprune.errors import RunError
from sslprune.files import write_json

LOCK, HOLDER = ".lock", ".writer.json"
WAIT = 0.2  # seconds: who has just finished takes its lock away

_held: dict[Path, int] = {}  # by this process; how many times


@contextmanager
def one_writer(folder: Path) -> Iterator[bool]:
    """Nobody else writes to ``folder`` inside the block; yields whether this process has only now begun to.

    The folder is made for the lock, and goes again if it is left empty. Raises RunError that says who writes there.
    """
    folder = folder.resolve()
    if folder in _held:
        _held[folder] += 1
        try:
            yield False
        finally:
            _held[folder] -= 1
        return
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=WAIT)
    except Timeout:
        raise RunError(f"{folder}: {_who(folder)} writes to it; wait until that is done") from None
    except OSError as error:
        _remove_empty(made)
        raise RunError(f"{folder}: cannot be written to ({error.strerror or error}); name another --run") from error
    _held[folder] = 1
    try:
        write_json(folder / HOLDER, _me())
        yield True
    finally:
        del _held[folder]
        for name in (HOLDER, LOCK):  # while it is held: who waits for a file that is gone looks for it again
            with suppress(OSError):
                (folder / name).unlink()
        lock.release()
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _me() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _who(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return "process {pid} on {host} (since {since}: {command})".format(**holder)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
