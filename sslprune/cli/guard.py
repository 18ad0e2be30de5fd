"""Errors of the commands in one line, and the exit status that goes with each."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import typer

LAUNCHED = "SSLPRUNE_LAUNCHED"  # set in processes that `--processes` started

MEMORY = ("can't allocate memory", "CUDA out of memory")  # as torch has them, in a RuntimeError


class Stopped(KeyboardInterrupt):
    """The system asked the process to end: it ends as by Ctrl-C, with a status of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def guarded(command: Callable[..., None], *, together: bool = False) -> Callable[..., None]:
    """``command`` with its errors told in one line on stderr (``debug=True``: with the traceback).

    Of several processes that torchrun started, the first alone runs it, unless they run it ``together``.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        if not together and rank_here():
            return
        from sslprune.errors import SslpruneError, printable

        debug = kwargs.get("debug", False)
        if not debug and not sys.warnoptions:
            warnings.simplefilter("ignore")  # of torch and the exporters, to programmers
        try:
            with _stoppable():
                command(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt as error:
            fail(_interrupted(), 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT))
        except SystemExit as error:  # of a person's model: nothing of ours ends the program so
            if debug:
                raise
            from sslprune.values.own_code import told

            fail(f"error: code of yours ended the program: {printable(told(error))}")
        except BrokenPipeError:  # `sslprune inspect ... | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except SslpruneError as error:
            if debug:
                raise
            fail(_line(printable(str(error)), error))
        except OSError as error:
            if debug:
                raise
            fail(_line(f"{error.filename or 'the system'}: {error.strerror or error}", error))
        except BaseException as error:  # a person's code may raise anything
            if debug:
                raise
            if isinstance(error, MemoryError) or any(words in str(error) for words in MEMORY):
                fail(_line("out of memory; try a smaller data.batch_size and data.eval_batch_size", error))
            from sslprune.values.own_code import told, where

            if where(error):
                fail(_line(f"code of yours failed: {printable(told(error))}", error))
            said = " ".join(str(error).split())
            fail(_line(f"unexpected {type(error).__name__}: {said[:300]}; --debug shows where", error))

    return wrapper


def guarded_together(command: Callable[..., None]) -> Callable[..., None]:
    """The same for a command that several processes run together."""
    return guarded(command, together=True)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, unless they are ignored, as under nohup."""
    kept = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                kept[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _stop(number: int, _: object) -> None:
    raise Stopped(number)


def fail(line: str, status: int = 1) -> NoReturn:
    """End with ``status`` and one line on stderr."""
    if rank_here() is not None:
        line = line.replace("error: ", f"error: rank {rank_here()}: ", 1)
    with suppress(OSError):  # of a terminal that was closed
        print(line, file=sys.stderr, flush=True)
    raise typer.Exit(status)


def _line(said: str, error: BaseException) -> str:
    """What is said of ``error`` and, behind it, the note that the pipeline left on how to go on."""
    return "; ".join(["error: " + said, *(" ".join(note.split()) for note in getattr(error, "__notes__", ())[-1:])])


def _interrupted() -> str:
    words = sys.argv[1:]
    if not words or words[0] not in ("run", "train", "calibrate", "control") or "--dry-run" in words:
        return "interrupted"
    return f"interrupted; go on with: {again()}"


def again() -> str:
    """The command that goes on with this one."""
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--force")]
    by_hand = rank_here() is not None and LAUNCHED not in os.environ
    return f"{'torchrun ... -m ' if by_hand else ''}sslprune {shlex.join(words)} --resume"


def rank_here() -> int | None:
    """This process's number among those that torchrun, or ``--processes``, started; None where it is alone."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "1")
    return int(rank) if rank.isdecimal() and world.isdecimal() and int(world) > 1 else None
