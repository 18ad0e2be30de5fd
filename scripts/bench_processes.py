"""What a step costs in several processes: sslprune's, dense and sparse, beside plain DistributedDataParallel, in turns.

    python scripts/bench_processes.py [--processes 2] [--compress ternary] [--depth 20] [--batch 128]

ResNet of a depth on random pictures of 3x32x32, one thread a process, gloo on this machine. The three take turns of a
few steps within the same processes, so that what else the machine does hits them alike; the medians of their ratios
count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from sslprune.data import Images
from sslprune.data.pictures import picture_data
from sslprune.recipe import parse_recipe
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.loop import Trainer
from sslprune.values.tasks import Task
from sslprune.values.team import Alone, Processes
from sslprune.values.voice import SILENT
from sslprune.zoo import resnet_cifar

TURN, TURNS = 2, 20  # steps


def recipe(options: argparse.Namespace) -> Any:
    return parse_recipe(
        {
            "run": {"device": "cpu", "threads": 1},
            "model": {"factory": "sslprune.zoo:resnet_cifar", "arguments": {"depth": options.depth}},
            "data": {"factory": "sslprune.data:digits", "batch_size": options.batch},
            "prune": [{"kind": "filters"}, {"kind": "layers"}],
            "budget": {"macs": 0.5, "round_to": 1},
            "schedule": {"dense": "10ep", "sparse": "10ep", "heal": "1ep"},
            "train": {"compress": options.compress},
        }
    )


def measured(rank: int, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    team: Any = Alone()
    if options.processes > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port))
        dist.init_process_group("gloo", rank=rank, world_size=options.processes)
        team = Processes()
    torch.manual_seed(0)
    read, size = recipe(options), 50 * options.batch
    images = Images(torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (size,)), 10, "noise")
    data = picture_data(read, read.data, lambda: images, lambda: images, Task(), torch.device("cpu"))
    trainer = Trainer(read, TrainingFiles(Path(folder)), data, resnet_cifar(options.depth), SILENT, team=team)
    plain: Any = resnet_cifar(options.depth).train()
    plain = plain.to(memory_format=torch.channels_last)
    wrapped = DistributedDataParallel(plain) if team.world > 1 else plain
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, fused=True)
    students, batches = trainer._students(), list(data.train.epoch(0))[:8]
    trainer.trained.train()
    sparsity = trainer.sparsity
    assert sparsity is not None

    def plainly(batch: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        x, y = (value[team.rank :: team.world] for value in (batch[0][0], batch[1]))
        F.cross_entropy(wrapped(x.contiguous(memory_format=torch.channels_last)), y).backward()
        optimizer.step()

    def dense(batch: Any) -> None:
        trainer.step(trainer.trained, students, None, trainer.optimizer, batch, 0.05, None, False)

    def sparse(batch: Any) -> None:
        trainer.step(trainer.trained, students, None, trainer.optimizer, batch, 0.05, sparsity, True)

    times: dict[str, list[float]] = {"plain": [], "dense": [], "sparse": []}
    for turn in range(TURNS + 1):
        for name, step in (("plain", plainly), ("dense", dense), ("sparse", sparse)):
            started = time.perf_counter()
            for i in range(TURN):
                step(batches[(turn * TURN + i) % len(batches)])
            if turn:  # the first warms up
                times[name].append((time.perf_counter() - started) / TURN)
    if rank == 0:
        ms = {name: 1e3 * statistics.median(taken) for name, taken in times.items()}
        over = {
            name: statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=True))
            for name in ("dense", "sparse")
        }
        kind = f"{options.processes} processes, compress {options.compress}"
        print(f"{kind}: plain {ms['plain']:.1f} ms, dense {over['dense']:.3f}x, sparse {over['sparse']:.3f}x")
    if team.world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--compress", default="off")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--port", type=int, default=29517)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spawn(measured, (given, folder), nprocs=given.processes)
