"""What a teacher's memory saves of a healing step: the small model's own step beside the pass of the teacher.

    python scripts/bench_recall.py RUN --steps 6     # trained and repacked, of a recipe with [distill]

Processor seconds on one thread, in turns: a step of RUN/repacked/model.pt2 (forward, backward, optimizer), the pass of
the dense model that teaches, and the same answers from memory. The repacked model has no dropout, whose random numbers
make a step of training longer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sslprune.data import build_data
from sslprune.models.build import load_trained
from sslprune.recipe import load_recipe
from sslprune.run.directory import RunDirectory
from sslprune.train.optimizer import build_optimizer
from sslprune.train.recall import Recall
from sslprune.values.inputs import call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=6, help="batches, of as many lengths as they have")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe, directory = load_recipe(options.run / "recipe.toml"), RunDirectory(options.run)
    data = build_data(recipe)
    teacher = load_trained(recipe.model, directory.training.dense).eval()
    student = torch.export.load(options.run / "repacked" / "model.pt2").module()
    optimizer = build_optimizer(student, recipe.train)
    batches = list(islice(data.train.epoch(0), options.steps))
    memory = Recall(2 * len(batches))

    def precise() -> Any:
        return torch.autocast("cpu", torch.bfloat16) if recipe.train.amp == "bf16" else nullcontext()

    def step() -> None:
        for inputs, targets in batches:
            with precise():
                loss = data.task.loss(call(student, inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def ask() -> None:
        for inputs, _ in batches:
            with precise(), torch.no_grad():
                call(teacher, inputs)

    def recall() -> None:
        for inputs, _ in batches:
            with precise():
                memory(teacher, inputs)

    parts: dict[str, Callable[[], None]] = {"step": step, "teacher": ask, "memory": recall}
    for part in parts.values():  # warm, and the memory is filled
        part()
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(options.rounds):
        for name, part in parts.items():
            began = time.process_time()
            part()
            seconds[name].append((time.process_time() - began) / len(batches))
    own, asked, known = (median(seconds[name]) for name in parts)
    print(f"step {own:.3f} s, teacher {asked:.3f} s, memory {known:.4f} s")
    print(f"a step with memory takes {(own + known) / (own + asked):.2f} of one without")


if __name__ == "__main__":
    main()
