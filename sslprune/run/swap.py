"""Results are written into a new place beside the old ones, and take their place in one swap when all is done.

RUN/.new-STAGE/   what is being written, with the paths that it will have below RUN
RUN/.done-STAGE/  the same, complete: whoever comes next finishes the swap if it was cut short
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sslprune.errors import SslpruneError
from sslprune.files import write_json
from sslprune.run.record import is_inside

NEW, DONE = ".new-", ".done-"
STALE = "stale.json"  # in a place that is complete: what the old result had and the new one has not
TEMPORARY = re.compile(r"\..+\.\d+(\.[^.]+)?")  # see sslprune.files
ROOT_TEMPORARY = re.compile(r"\.(recipe|report|junit|summary|\.writer)\.\d+\.\w+")


@contextmanager
def beside(root: Path, stage: str, last: Path, complete: Callable[[], Iterable[Path]]) -> Iterator[None]:
    """What the block writes below ``root/.new-stage`` moves to ``root`` when it ends; if it fails, nothing has changed.

    ``complete()`` is called before the swap, and says which files go; ``last`` is moved last. Errors name the files by
    the paths that they would have had.
    """
    new, done = root / f"{NEW}{stage}", root / f"{DONE}{stage}"
    shutil.rmtree(new, ignore_errors=True)
    try:
        yield
        write_json(new / STALE, [str(path.relative_to(root)) for path in complete()])
        os.rename(new, done)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, SslpruneError):
            error.args = (str(error).replace(f"{new}/", f"{root}/"),)
        raise
    finish(done, last)


def finish(done: Path, last: Path | None = None) -> None:
    """Move what is complete to where it belongs; it may have been begun before."""
    root, stale = done.parent, done / STALE
    files = [path for path in sorted(done.rglob("*")) if path.is_file() and path != stale]
    for path in sorted(files, key=lambda path: root / path.relative_to(done) == last):
        target = root / path.relative_to(done)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    if stale.is_file():
        for name in _names_in(stale):
            (root / name).unlink(missing_ok=True)
    shutil.rmtree(done)


def _names_in(stale: Path) -> list[str]:
    """The files that go, all of them below the run; none of a list that is damaged."""
    try:
        return [name for name in json.loads(stale.read_text(encoding="utf-8")) if is_inside(name)]
    except (ValueError, TypeError, RecursionError):
        return []


def tidy(root: Path, folders: Iterable[str]) -> None:
    """Finish the swaps that were cut short, and remove what killed processes left half-written.

    Looked at are ``root`` itself and its ``folders``, which hold nothing but what a run writes.
    """
    for done in root.glob(f"{DONE}*/"):
        finish(done)
    for new in root.glob(f"{NEW}*/"):
        shutil.rmtree(new, ignore_errors=True)
    left = [path for path in root.glob(".*") if ROOT_TEMPORARY.fullmatch(path.name)]
    for folder in folders:
        left += [path for path in (root / folder).rglob(".*") if TEMPORARY.fullmatch(path.name)]
    for path in left:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
