"""Calibrate every architecture of the coverage list to 0.7 of its MACs: it must never be worse after repair.

    python scripts/coverage_calibration.py                # the whole list; --only NAME (repeatable) for some of it

Weights and samples are random (16 samples, of which 4 are held out), so that the divergences say that repair works on
the graph, and nothing about accuracy. Each runs in a process of its own under a time limit. Columns: seconds of the
processor from choosing to repaired; the mean squared error of the outputs on the held-out samples, in units of their
variance, as cut and repaired; how many layers were fitted, and how many were not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

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

SHARE, BATCHES, ROWS, GRAIN = 0.7, 8, 2, 16


def check(name: str, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model, args = BUILDERS[name]()
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
    return {"name": name, "seconds": seconds, "cut": found.cut, "repaired": found.repaired, "fitted": fitted,
            "skipped": skipped, "why": sorted(set(found.skipped.values()))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="an architecture or a family; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each architecture (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(check(options.worker, options.seed)))
        return
    results = []
    for name in [name for name in BUILDERS if not options.only or {name, FAMILY[name]} & set(options.only)]:
        words = [sys.executable, __file__, "--worker", name, "--seed", str(options.seed)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=options.limit)
            failure = (done.stderr.strip().splitlines() or [""])[-1][:200] if done.returncode else ""
            result = json.loads(done.stdout.splitlines()[-1]) if not failure else {"name": name, "failure": failure}
        except subprocess.TimeoutExpired:
            result = {"name": name, "failure": f"not done in {options.limit} s"}
        results.append(result)
        if "failure" in result:
            print(f"{name:28} FAIL {result['failure']}", flush=True)
        else:
            verdict = "pass" if result["repaired"] <= result["cut"] else "WORSE"
            print(f"{name:28} {verdict} {result['seconds']:7.1f} {result['cut']:9.4g} {result['repaired']:9.4g} "
                  f"{result['fitted']:4} {result['skipped']:4} {'; '.join(result['why'])}", flush=True)  # fmt: skip
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n")
    passed = sum("failure" not in result and result["repaired"] <= result["cut"] for result in results)
    print(f"{passed} of {len(results)} pass")
    sys.exit(passed < len(results))


if __name__ == "__main__":
    main()
