"""Errors of the commands in one line, and the exit status that goes with each."""

from __future__ import annotations

import functools
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import typer


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with its errors told in one line on stderr (``debug=True``: with the traceback)."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        from sslprune.errors import SslpruneError

        debug = kwargs.get("debug", False)
        if not debug and not sys.warnoptions:
            warnings.simplefilter("ignore")  # of torch and the exporters, to programmers
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            fail(_interrupted(), 130)
        except BrokenPipeError:  # `sslprune inspect ... | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except SslpruneError as error:
            if debug:
                raise
            fail(_line(str(error), error))
        except OSError as error:
            if debug:
                raise
            fail(_line(f"{error.filename or 'the system'}: {error.strerror or error}", error))
        except MemoryError as error:
            if debug:
                raise
            fail(_line("out of memory; try a smaller data.batch_size and data.eval_batch_size", error))
        except Exception as error:
            if debug:
                raise
            said = " ".join(str(error).split())
            fail(_line(f"unexpected {type(error).__name__}: {said[:300]}; --debug shows where", error))

    return wrapper


def fail(line: str, status: int = 1) -> NoReturn:
    """End with ``status`` and one line on stderr."""
    print(line, file=sys.stderr, flush=True)
    raise typer.Exit(status)


def _line(said: str, error: BaseException) -> str:
    """What is said of ``error`` and, behind it, the note that the pipeline left on how to go on."""
    return "; ".join(["error: " + said, *(" ".join(note.split()) for note in getattr(error, "__notes__", ())[-1:])])


def _interrupted() -> str:
    words = sys.argv[1:]
    if not words or words[0] not in ("run", "train"):
        return "interrupted"
    return f"interrupted; go on with: sslprune {shlex.join([w for w in words if w != '--resume'])} --resume"
