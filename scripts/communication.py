"""What sending gradients costs: measured over a link slowed down on this machine, and predicted for many workers.

    python scripts/communication.py measure [--processes 2 4] [--rates 1000 100] [--numbers 1000000]
    python scripts/communication.py predict [--gigabits 10] [--microseconds 50] [--compute 0.25] [--svg FILE]

``measure`` needs root on Linux: it makes a network namespace of its own (unshare), whose loopback passes so many
megabits a second (tc, token bucket). float32 goes by gloo's ring, ternary as `train.compress = "ternary"` sends it;
both take turns. All processes share the one link, so a byte between any two of them counts: what was predicted is the
time without a limit, and all bytes over the rate besides.

``predict`` has a link for each worker, of so many gigabits a second each way, so many microseconds an exchange. A ring
of W workers has 2 (W - 1) exchanges of 1 / W of the bytes (Patarasuk and Yuan 2009). Gradients go while the backward
pass goes on, two thirds of the compute; what is left over adds to the step. Encoding is not in it: ``measure`` has it
for this processor. Shrunk: to half of the parameters, and the compute as before.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from sslprune.report.charts import Series, chart
from sslprune.train.ternary import BITS, GATHERED, Ternary

MODELS = {"ResNet-50": (25_557_032, 2_049_000), "BERT-base": (109_482_240, 1_538)}  # parameters, and the last layer's
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TURNS = 5
STYLE = (
    "text{font:9px sans-serif;fill:#667}.grid{stroke:#8884}.label{font-size:10px}polyline{fill:none;stroke-width:2}"
    "polyline.s0{stroke:#3b6edc}polyline.s1{stroke:#d9622b}polyline.s2{stroke:#2a9d6f}polyline.s3{stroke:#8b5cc7}"
)


def exchanges(world: int, numbers: float, ternary: bool) -> tuple[int, float]:
    """How often a worker sends to another, and the bytes that it sends in all."""
    if world == 1:
        return 0, 0.0
    if not ternary:
        return 2 * (world - 1), 2 * (world - 1) / world * 4 * numbers
    if world <= GATHERED:
        return 3 * (world - 1), (world - 1) * BITS * numbers / 8
    bits = math.ceil(math.log2(2 * world + 1))
    return 4 * (world - 1), (world - 1) / world * (BITS + bits) * numbers / 8


def step(options: argparse.Namespace, model: str, world: int, ternary: bool, shrunk: bool) -> float:
    """Seconds of a training step."""
    numbers, last = (count / 2 if shrunk else count for count in MODELS[model])
    sends = [exchanges(world, numbers - last, True), exchanges(world, last, False)] if ternary else []
    sends = sends or [exchanges(world, numbers, False)]
    seconds = sum(n * 1e-6 * options.microseconds + sent * 8 / (1e9 * options.gigabits) for n, sent in sends)
    return options.compute + max(0.0, seconds - options.compute * 2 / 3)


def predict(options: argparse.Namespace) -> None:
    ways = {"float32": (False, False), "ternary": (True, False), "shrunk": (False, True), "both": (True, True)}
    print("| seconds a step | workers | " + " | ".join(ways) + " |")
    print("|---|---|" + "---|" * len(ways))
    pictures = []
    for model in MODELS:
        for world in (1, 8, 64, 512):
            found = [step(options, model, world, *way) for way in ways.values()]
            print(f"| {model} | {world} | " + " | ".join(f"{seconds:.3f}" for seconds in found) + " |")
        lines = [
            Series(name, [(world, step(options, model, world, *way)) for world in WORKERS], color)
            for color, (name, way) in enumerate(ways.items())
        ]
        pictures.append(chart(lines, "workers", f"{model}: seconds a step", log_x=True, x_ticks=[1, 8, 64, 512]))
    if options.svg:
        options.svg.write_text(_beside(pictures, list(ways)), encoding="utf-8")


def _beside(pictures: list[str], names: list[str]) -> str:
    """Charts in one SVG file, one beside the other, with what the lines are."""
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 250"><style>{STYLE}</style>']
    for index, (picture, model) in enumerate(zip(pictures, MODELS, strict=True)):
        parts.append(picture.replace("<svg ", f'<svg x="{index * 370}" y="16" width="360" height="220" ', 1))
        parts.append(f'<text x="{index * 370 + 46}" y="12">{model}: seconds a step, by workers</text>')
    for index, name in enumerate(names):
        x = 250 + 70 * index
        parts.append(
            f'<polyline class="s{index}" points="{x},244 {x + 14},244"/><text x="{x + 18}" y="247">{name}</text>'
        )
    return "".join([*parts, "</svg>\n"])


def measure(options: argparse.Namespace) -> None:
    if not options.inside:  # again, in a network of its own
        raise SystemExit(subprocess.call(["unshare", "-n", sys.executable, *sys.argv, "--inside"]))
    subprocess.check_call(["ip", "link", "set", "lo", "up"])
    print("| processes | megabits a second | float32: measured, predicted | ternary: measured, predicted | ratio |")
    print("|---|---|---|---|---|")
    for world in options.processes:
        free: list[float] = []
        for rate in (0, *options.rates):
            taken = _timed(options, world, rate)
            free = free or taken
            sent = [world * exchanges(world, options.numbers, ternary)[1] for ternary in (False, True)]
            told = [a + (8e-6 * b / rate if rate else 0) for a, b in zip(free, sent, strict=True)]
            cells = [f"{a:.3f} s" + (f", {b:.3f} s" if rate else "") for a, b in zip(taken, told, strict=True)]
            print(
                f"| {world} | {rate or 'no limit'} | {cells[0]} | {cells[1]} | {taken[0] / taken[1]:.2f} |", flush=True
            )


def _timed(options: argparse.Namespace, world: int, rate: int) -> list[float]:
    """Median seconds to average gradients in float32 and ternary, by ``world`` processes over a link of ``rate``."""
    subprocess.call(["tc", "qdisc", "del", "dev", "lo", "root"], stderr=subprocess.DEVNULL)
    if rate:
        bucket = ["rate", f"{rate}mbit", "burst", "128kb", "latency", "400ms"]
        subprocess.check_call(["tc", "qdisc", "add", "dev", "lo", "root", "tbf", *bucket])
    with tempfile.TemporaryDirectory() as folder:
        spawn(_turns, (world, options.numbers, folder), nprocs=world)
        return torch.load(Path(folder) / "times.pt", weights_only=True)


def _turns(rank: int, world: int, numbers: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store: Any = dist.FileStore(f"{folder}/store", world)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    parameter, gradient = nn.Parameter(torch.zeros(numbers)), torch.randn(numbers)
    ternary = Ternary(world, [], seed=rank)
    times: list[list[float]] = [[], []]
    for turn in range(TURNS + 1):
        for taken, send in (
            (times[0], lambda: dist.all_reduce(gradient.clone())),
            (times[1], lambda: ternary.average([gradient.clone()], [parameter])),
        ):
            dist.barrier()
            started = time.perf_counter()
            send()
            dist.barrier()
            if turn:  # the first warms up
                taken.append(time.perf_counter() - started)
    if rank == 0:
        torch.save([statistics.median(taken) for taken in times], f"{folder}/times.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "predict"])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rates", type=int, nargs="+", default=[1000, 100], help="megabits a second")
    parser.add_argument("--numbers", type=int, default=1_000_000, help="of gradients")
    parser.add_argument("--gigabits", type=float, default=10.0)
    parser.add_argument("--microseconds", type=float, default=50.0)
    parser.add_argument("--compute", type=float, default=0.25, help="seconds of a step in one worker")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    (measure if given.what == "measure" else predict)(given)
