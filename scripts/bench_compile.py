"""What train.compile saves: a training step of a recipe's model as it is, and compiled.

    python scripts/bench_compile.py recipes/resnet56-cifar10.toml --set data.train=... --set train.amp=bf16

Processor seconds on one thread, the two in turns on the same batches: forward, loss, backward and the optimizer's step.
The wait is wall-clock: the first compiled step, less an ordinary one. What was compiled before comes from torch's cache
on disk, so an empty TORCHINDUCTOR_CACHE_DIR gives the whole of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import islice
from statistics import median
from typing import Any

import torch

from sslprune.data import build_data
from sslprune.models.build import build_model
from sslprune.recipe import load_recipe
from sslprune.train.compiled import Compiler
from sslprune.train.layout import lay_out_
from sslprune.train.optimizer import build_optimizer
from sslprune.values.carry import carrying
from sslprune.values.inputs import call, each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=4, help="batches of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(options.recipe, options.set)
    data = build_data(recipe)
    model = build_model(recipe.model)[0].train()
    laid_out = lay_out_([model], data.example)
    batches = [(each(inputs, laid_out), targets) for inputs, targets in islice(data.train.epoch(0), options.steps)]
    optimizer = build_optimizer(model, recipe.train)

    def step(run: Callable[..., Any], inputs: Any, targets: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.amp == "bf16"):
            loss = data.task.loss(call(run, inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    ways = {"as it is": carrying(model), "compiled": carrying(model, Compiler(True)(model))}
    first: dict[str, float] = {}
    for name, run in ways.items():
        for _ in range(2):  # an ordinary first step waits too
            began = time.perf_counter()
            step(run, *batches[0])
            first.setdefault(name, time.perf_counter() - began)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, run in ways.items():
            began = time.process_time()
            for batch in batches:
                step(run, *batch)
            seconds[name].append((time.process_time() - began) / len(batches))
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print("  ".join(f"{name} {median(taken):.3f} s" for name, taken in seconds.items()))
    print(f"a compiled step takes {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"the first compiled step waits {first['compiled'] - first['as it is']:.0f} s")


if __name__ == "__main__":
    main()
