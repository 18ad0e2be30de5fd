"""Several processes that run one command: those that torchrun started, or that `launch` does, by torch's own agent."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from sslprune.cli.guard import LAUNCHED, again, fail

if TYPE_CHECKING:
    from sslprune.recipe import Recipe
    from sslprune.values.team import Team

PATIENCE = timedelta(minutes=30)  # with a process that says nothing: the first may be measuring, or calibrating
MEETING = timedelta(minutes=5)  # that processes wait for each other at the beginning
QUIET = 113  # the exit status of a process that ends because another one does, and leaves the telling to that
GRACE = 2.0  # seconds that a process waits to see whether another one has told already


def world_here() -> int:
    """How many processes were started with this one, itself included, as torchrun says in the environment."""
    words = os.environ.get("WORLD_SIZE", "1")
    return int(words) if words.isdecimal() and "RANK" in os.environ else 1


def restarted() -> bool:
    """Whether torchrun has started this command again, after a process of it had ended."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextmanager
def joined(processes: int | None = None) -> Iterator[Team]:
    """The team that this process was started in, ready; alone where it was started by itself.

    ``processes``: how many a person asked for. An error inside is told by one process, with its rank; all of them end.
    """
    world = world_here()
    if processes is not None and world > 1 and processes != world:
        from sslprune.errors import RecipeError

        raise RecipeError(f"--processes {processes}: torchrun has started {world} already; leave the option out")
    if world == 1:
        from sslprune.values.team import Alone

        yield Alone()
        return
    if LAUNCHED in os.environ:
        threading.Thread(target=_outlive_nobody, args=(os.getppid(),), daemon=True).start()
    store = _begin()
    from sslprune.values.team import Processes

    team = Processes()
    try:
        team.agree("version", _versions())
        yield team
    except typer.Exit:
        raise
    except BaseException as error:
        if not _tells(store, team.rank, error):
            with suppress(KeyboardInterrupt):
                time.sleep(GRACE)  # whoever tells ends first, and who started us sees the status of that
            raise typer.Exit(QUIET) from error
        if _is_lost(error):
            from sslprune.errors import RunError

            raise RunError(f"another process of this run has ended; go on with: {again()}") from error
        raise
    finally:
        _end()


def _outlive_nobody(parent: int) -> None:
    """End with the process that started this one, if that is killed: nobody else would be told of it."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _begin() -> Any:
    """Make torch's default group, and return the store that its processes met at."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # not yet imported: warnings are to programmers
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from sslprune.errors import RunError

    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        store, rank, world = next(iter(rendezvous("env://", timeout=MEETING)))
        # the agent keeps its store when it starts processes again: what is in it is of those that are gone
        store = PrefixStore(f"sslprune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{world}", store)
        store.set_timeout(MEETING)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=world, timeout=PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        host, port = (os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        said = (
            "the port is in use; choose another" if "EADDRINUSE" in str(error) else " ".join(str(error).split())[:200]
        )
        raise RunError(f"processes cannot meet at MASTER_ADDR {host}, MASTER_PORT {port}: {said}") from error
    return store


def _end() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        with suppress(Exception):  # of a group that has lost a process already
            dist.destroy_process_group()


def _versions() -> str:
    import torch

    return f"sslprune {vars(sys.modules['sslprune'])['__version__']}, torch {torch.__version__}"


def _is_lost(error: BaseException) -> bool:
    """Whether ``error`` says that another process is gone."""
    import torch.distributed as dist

    said = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in said or "nccl" in said or "connection" in said)
    )


def _tells(store: Any, rank: int, error: BaseException) -> bool:
    """Whether this process is the one that tells a person of ``error``: one does, the first one if it has it too."""
    stopped = isinstance(error, KeyboardInterrupt)
    lost = _is_lost(error)
    if (stopped or lost) and LAUNCHED in os.environ:
        return False
    try:
        waits = rank > 0 or stopped or lost
        until = time.monotonic() + (GRACE if waits else 0)
        while waits and time.monotonic() < until:
            if store.check(["told"]):
                return False
            time.sleep(0.05)
        return bool(store.add("told", 1) == 1)
    except Exception:  # of a store that is gone with the process that kept it
        return not (stopped or lost) or rank == 0


def agreed(recipe: Recipe, team: Team) -> Recipe:
    """``recipe``, which all processes have read alike; raises TrainingError where they have not."""
    from sslprune.values.team import digest

    team.agree("recipe", digest(recipe.to_toml()))
    return recipe


def launched(read: Callable[[], Recipe], processes: int | None) -> bool:
    """Whether this command has run in ``processes`` processes, started here; what ``read`` gives is checked first."""
    if processes is None or processes == 1 or world_here() > 1:
        return False
    from sslprune.train.parts import check_divides

    recipe = read()
    if not hasattr(recipe.data, "factory"):  # which may return loaders, with batches of their own
        check_divides(recipe, recipe.data.batch_size, processes)
    _launch(processes)
    return True


def _launch(processes: int) -> None:
    """Run this very command in ``processes`` processes on this machine; ends with their exit status."""
    import logging

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # of the agent, to programmers
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ[LAUNCHED] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "sslprune", *sys.argv[1:])
    except ChildFailedError as error:
        _tell({rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException as error:
        fail(f"interrupted; go on with: {again()}", 128 + error.sigval)


def _tell(statuses: Mapping[int, int]) -> NoReturn:
    """End as the processes did that failed first: as the one that has told why, else with a line on who was ended."""
    told = [status for status in statuses.values() if 0 < status < QUIET]
    signals = {rank: -status if status < 0 else status - 128 for rank, status in statuses.items() if status != QUIET}
    if told or not signals:
        raise typer.Exit(told[0] if told else 1)
    rank = min(signals, key=lambda rank: (signals[rank] == signal.SIGTERM, rank))  # which the agent sends to the others
    name = signal.Signals(signals[rank]).name
    fail(f"error: rank {rank} was ended by {name}, and the others with it; go on with: {again()}")
