"""Calibrate every architecture of the coverage list to 0.7 of its MACs: it must never be worse after repair.

    python scripts/coverage_calibration.py                # the whole list; --only NAME (repeatable) for some of it
    python scripts/coverage_calibration.py --json FILE    # again: goes on with what FILE has no result of
    python scripts/coverage_calibration.py --json FILE --table   # as Markdown

Weights and samples are random (16 samples, of which 4 are held out), so that the divergences say that repair works on
the graph, and nothing about accuracy. Pictures have 64 pixels where the model takes them. Each runs in a process of its
own under a time limit. Columns: seconds of the processor from choosing to repaired; the mean squared error of the
outputs on the held-out samples, in units of their variance, as cut and repaired; how many layers were fitted, and how
many weights were not.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import sslprune  # noqa: E402
from scripts.architectures import BUILDERS, FAMILY  # noqa: E402
from sslprune.calibration.calibrate import Calibration, state_of  # noqa: E402
from sslprune.calibration.samples import collect  # noqa: E402
from sslprune.choose.blocks import Goal  # noqa: E402
from sslprune.choose.constraints import Constraints, floor_of  # noqa: E402
from sslprune.cost.counts import Cost  # noqa: E402
from sslprune.recipe import CalibrateSection  # noqa: E402
from sslprune.values.inputs import random_like  # noqa: E402
from tests.laws import lively_, settle_  # noqa: E402

SHARE, BATCHES, ROWS, GRAIN, SIZE = 0.7, 8, 2, 16, 64


@torch.no_grad()
def smaller(model: nn.Module, args: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
    """Pictures of ``SIZE`` pixels, or larger ones where the model takes none of that size."""
    (first, *_) = args
    for size in (SIZE, 2 * SIZE) if first.dim() == 4 and first.shape[2] > SIZE else ():
        try:
            model.eval()(first[..., :size, :size]), model.train()(first[..., :size, :size])
        except Exception:  # whatever its own code has against it
            continue
        return model, (first[..., :size, :size].contiguous(),)
    return model, args


def check(name: str, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model, args = smaller(*BUILDERS[name]())
    lively_(model, seed).eval()
    settle_(model, args, seed)
    program = sslprune.trace(model, args)
    axes = tuple(axis for axis in sslprune.find_axes(program) if axis.exact)
    floors = tuple(floor_of(axis, 0.1, 1) for axis in axes)
    samples = collect(program, [random_like(args, ROWS, seed=seed + 10 * i) for i in range(BATCHES)], BATCHES * ROWS)
    section = CalibrateSection(candidates=1)
    began = time.process_time()
    found = Calibration(program, state_of(program, model), samples, section, None, seed).calibrated(
        Goal(Cost(program, axes), Constraints(axes, floors, (), GRAIN), "macs", SHARE)
    )
    seconds = time.process_time() - began
    fitted, skipped = len(found.layers), len(found.skipped)
    return {"seconds": seconds, "cut": found.cut, "repaired": found.repaired, "fitted": fitted,
            "skipped": skipped, "why": sorted(set(found.skipped.values()))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="an architecture or a family; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there; those it has stand")
    parser.add_argument("--table", action="store_true", help="print what --json has, and run nothing")
    parser.add_argument("--again", action="store_true", help="run those anew that failed")
    parser.add_argument("--limit", type=int, default=300, help="the processor's seconds for each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        resource.setrlimit(resource.RLIMIT_CPU, (options.limit, options.limit))
        print(json.dumps(check(options.worker, options.seed)))
        return
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    if options.table:
        print("\n".join(table(results)))
        return
    names = [name for name in BUILDERS if not options.only or {name, FAMILY[name]} & set(options.only)]
    for name in names:
        if name in results and not (options.again and "failure" in results[name]):
            continue
        words = [sys.executable, __file__, "--worker", name, "--seed", str(options.seed)]
        words += ["--limit", str(options.limit)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=8 * options.limit)
            last = (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
            over = done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
            failure = f"not done in {options.limit} s" if over else last if done.returncode else ""
            result = json.loads(done.stdout.splitlines()[-1]) if not failure else {"failure": failure}
        except subprocess.TimeoutExpired:
            result = {"failure": f"not done in {8 * options.limit} s of the clock"}
        results[name] = result
        print(row(name, result), flush=True)
        if options.json:
            beside = options.json.with_name(options.json.name + ".new")
            beside.write_text(json.dumps(results, indent=2) + "\n")
            beside.replace(options.json)
    failed = [name for name in names if verdict(results[name]) != "pass"]
    print(f"{len(names) - len(failed)} of {len(names)} pass")
    sys.exit(bool(failed))


def verdict(result: dict[str, Any]) -> str:
    return "FAIL" if "failure" in result else "pass" if result["repaired"] <= result["cut"] else "WORSE"


def row(name: str, result: dict[str, Any]) -> str:
    if "failure" in result:
        return f"{name:28} FAIL {result['failure']}"
    return (
        f"{name:28} {verdict(result)} {result['seconds']:7.1f} {result['cut']:9.4g} {result['repaired']:9.4g} "
        f"{result['fitted']:4} {result['skipped']:4} {'; '.join(result['why'])}"
    )


def table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "| architecture | seconds | divergence, as cut | repaired | layers fitted | not fitted |"
    yield "|---|---|---|---|---|---|"
    for name in BUILDERS:
        if name in results and "failure" not in results[name]:
            r = results[name]
            found = f"{r['seconds']:.0f} | {r['cut']:.3g} | {r['repaired']:.3g} | {r['fitted']} | {r['skipped']}"
            yield f"| {name} | {found} |"
        elif name in results:
            yield f"| {name} | - | - | - | {results[name]['failure']} | |"


if __name__ == "__main__":
    main()
