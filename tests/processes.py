"""Real processes for tests: each call of a function in as many of them as asked, joined by gloo on this machine.

They are forked from a server that has imported everything once, which takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sslprune.values.team import Processes

PATIENCE = 100.0  # seconds


def together(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(team, *args)`` returns in each of ``world`` processes: plain values and tensors, by rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.processes", "sslprune.train.training", "sslprune.cli.commands"])
    with tempfile.TemporaryDirectory() as folder:
        children = [
            context.Process(target=_child, args=(rank, world, folder, function, args), daemon=True)
            for rank in range(world)
        ]
        for child in children:
            child.start()
        until = time.monotonic() + PATIENCE
        while any(child.is_alive() for child in children) and time.monotonic() < until:
            if any(child.exitcode for child in children):
                until = min(until, time.monotonic() + 5)  # the others end by themselves
            time.sleep(0.02)
        for child in children:
            child.kill()
            child.join()
        failed = sorted(Path(folder).glob("error*"), key=lambda file: file.stat().st_mtime_ns)
        assert not failed, "\n".join(file.read_text() for file in failed)
        assert [child.exitcode for child in children] == [0] * world
        return [torch.load(Path(folder) / f"result{rank}", weights_only=True) for rank in range(world)]


def _child(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(f"{folder}/store", world)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=PATIENCE))
        result = function(Processes(), *args)
        torch.save(result, f"{folder}/result{rank}")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"error{rank}").write_text(traceback.format_exc())
        os._exit(1)
