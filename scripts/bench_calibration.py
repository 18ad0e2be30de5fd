"""Time and memory of calibration on large inputs: a torchvision model's shape, its weights and samples random.

    python scripts/bench_calibration.py --model resnet50 --size 224 --samples 256 --macs 0.7

Prints seconds (of the clock, and of the processor) and the peak of the process's memory: above what it was before
calibration began, when the model, its program and the samples were there, and in units of the weights' own bytes.
Random weights say nothing about accuracy. Temporary files go where the variable TMPDIR says.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import sslprune  # noqa: E402
from scripts.architectures import torchvision_model  # noqa: E402
from sslprune.calibration.calibrate import Calibration, state_of  # noqa: E402
from sslprune.calibration.samples import collect  # noqa: E402
from sslprune.choose.blocks import goal_of  # noqa: E402
from sslprune.choose.sections import select_with_sections  # noqa: E402
from sslprune.cost.counts import Cost  # noqa: E402
from sslprune.recipe.settings import calibration_of  # noqa: E402
from tests.laws import lively_, settle_  # noqa: E402


def peak() -> float:
    """MB: of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="of torchvision.models")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--prune", default="filters")
    parser.add_argument("--macs", type=float, default=0.7)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--memory", type=int, default=1024, help="as calibrate.memory")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, args = torchvision_model(options.model, options.size)
    settle_(lively_(model).eval(), args)
    program = sslprune.trace(model, args)
    found = calibration_of(
        options.prune, options.macs, None, "auto", 0, candidates=options.candidates, memory=options.memory
    )
    chosen = select_with_sections(sslprune.find_axes(program), found.prune)
    axes = [axis for axis, _ in chosen]
    goal = goal_of(chosen, Cost(program, axes), found.budget, found.lasso.floor)
    generator = torch.Generator().manual_seed(0)
    batches = (torch.randn(8, 3, options.size, options.size, generator=generator) for _ in range(options.samples // 8))
    samples = collect(program, batches, options.samples, options.memory * 1e6)
    weights = sum(tensor.nbytes for tensor in state_of(program, model).values()) / 1e6
    before, began, used = peak(), time.perf_counter(), time.process_time()
    calibration = Calibration(program, state_of(program, model), samples, found.calibrate)
    calibration.evidence(goal.constraints.axes)
    gathered, between = time.perf_counter() - began, peak()
    result = calibration.calibrated(goal)
    said = {
        "weights, MB": weights,
        "before, MB": before,
        "evidence, seconds": gathered,
        "peak of evidence, MB above": between - before,
        "seconds": time.perf_counter() - began,
        "seconds of the processor": time.process_time() - used,
        "peak, MB above": peak() - before,
        "peak, times the weights": (peak() - before) / weights,
        "divergence, as cut": result.cut,
        "divergence, repaired": result.repaired,
        "layers fitted": len(result.layers),
    }
    print(json.dumps(said, indent=2))


if __name__ == "__main__":
    main()
