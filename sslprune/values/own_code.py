"""Code that a person brought (a factory, a loader, a metric): whatever it raises is told by the line that raised it."""

from __future__ import annotations

import functools
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslprune.errors import RecipeError, SslpruneError, first_line

OURS = Path(__file__).parents[1]
LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
WORKER = "DataLoader worker process"  # its errors are texts that hold a traceback
DEAD = "DataLoader worker (pid"  # one that was killed, or ended by itself
FRAME = re.compile(r'File "(.+)", line (\d+), in (\S+)')


@contextmanager
def own_code(what: str) -> Iterator[None]:
    """Any error of the block as one RecipeError: ``what``, the error, and the person's file and line.

    SystemExit is one of them: a module that ends the program has not done what it was asked for. Our own errors, an
    interrupt and a full memory stay what they are.
    """
    try:
        yield
    except (SslpruneError, KeyboardInterrupt, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise RecipeError(f"{what}: {told(error)}") from error


def told(error: BaseException) -> str:
    """An error by its kind, what it says, and where a person's code raised it, in one line."""
    quoted = str(error) if WORKER in str(error) else ""
    if quoted:  # the error of a process of a DataLoader, with its traceback in place of a text
        return f"{quoted.strip().splitlines()[-1]}{where(error)}"
    said = first_line(error)
    if DEAD in said:
        return f"{said}; give its loader fewer num_workers, or free memory"
    kind = type(error).__name__
    return f"{kind if said == kind else f'{kind}: {said}'}{where(error)}"


def where(error: BaseException) -> str:
    """The last line of a person's own code on the way to ``error``; nothing where there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _own(frame.filename):
            return f" ({frame.filename}, line {frame.lineno}, in {frame.name})"
    for file, line, name in reversed(FRAME.findall(str(error)) if WORKER in str(error) else []):
        if _own(file):
            return f" ({file}, line {line}, in {name})"
    return ""


def _own(file: str) -> bool:
    path = Path(file)
    return not (file.startswith("<") or path.is_relative_to(OURS) or any(map(path.is_relative_to, LIBRARIES)))


def guarded(call: Callable[..., Any], what: str) -> Callable[..., Any]:
    """``call`` in a block of ``own_code``."""

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with own_code(what):
            return call(*args, **kwargs)

    return wrapper
