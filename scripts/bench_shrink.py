"""The time that shrinking while training saves, from steps timed in turns at the sizes that a run goes through.

    python scripts/bench_shrink.py recipes/resnet56-cifar10.toml --set data.train=... --sparse 5 --heal 10

A run with fewer steps an epoch, on the recipe's data and with the recipe's budget, shows which groups are held at zero
at each epoch's start (the steps that a group decays over are scaled alike). Then a training step of the whole model and
of each of its smaller ones are timed one after the other, many times over, so that a slow moment of the machine falls
on all. Processor time on the CPU: what other programs take is not counted; with one thread it is the wall-clock of an
idle machine. The run with shrinking pays for each removal. Evaluation is not counted, which shrinks too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from sslprune.capture.trace import trace
from sslprune.choose.sections import select_with_sections
from sslprune.cost.counts import Cost
from sslprune.data import build_data
from sslprune.kinds.find import find_axes
from sslprune.models.build import build_model, device_of
from sslprune.recipe import load_recipe
from sslprune.show.terminal import Show
from sslprune.train.budget import NUM_WARM_UP
from sslprune.train.optimizer import build_optimizer
from sslprune.train.sparsity import Sparsity, build_controller
from sslprune.values.carry import carrying, with_state
from sslprune.values.inputs import arguments, call, each
from sslprune.values.selection import Selection


class Training:
    """One model in training, with its optimizer, lasso and what shrinks it; made alike every time."""

    def __init__(self, options: argparse.Namespace, recipe: Any, data: Any, num_steps: int) -> None:
        torch.manual_seed(recipe.run.seed)
        self.recipe, self.data, self.device = recipe, data, device_of(recipe.run)
        model = build_model(recipe.model)[0].to(self.device).train()
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        args, kwargs = arguments(each(data.example, lambda value: value.to(self.device)))
        program = trace(model, with_state(model, args), kwargs, sequence=data.sequence)
        chosen = select_with_sections(find_axes(program), recipe.prune)
        axes = [axis for axis, _ in chosen]
        section = recipe.lasso.model_copy(update={"decay": max(1, round(recipe.lasso.decay * options.scale))})
        self.cost = Cost(program, axes)
        settings = recipe.model_copy(update={"lasso": section})
        self.sparsity = Sparsity.over(
            model, program, build_controller(model, program, chosen, self.cost, settings, num_steps)
        )
        self.controller: Any = self.sparsity.controller
        self.optimizer = build_optimizer(model, recipe.train)
        self.shrinker = self.sparsity.shrinkable()

    def step(self, run: Callable[..., Any], inputs: Any, targets: torch.Tensor, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.train.amp == "bf16"):
            loss = self.data.task.loss(call(run, inputs), targets, self.recipe.train.label_smoothing)
        loss.backward()
        self.controller.observe(loss)
        self.optimizer.step()
        self.controller.step(lr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a field")
    parser.add_argument("--sparse", type=int, default=5, help="epochs")
    parser.add_argument("--heal", type=int, default=10, help="epochs")
    parser.add_argument("--steps", type=int, default=30, help="an epoch, of the run that shows what is zero when")
    parser.add_argument("--rounds", type=int, default=15, help="of timed steps, after two to warm up")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.set)
    torch.set_num_threads(recipe.run.threads or torch.get_num_threads())
    data = build_data(recipe, Show())
    options.scale = options.steps / len(data.train)

    run = Training(options, recipe, data, options.sparse * options.steps)
    removed, batch = [], None
    for epoch in range(options.sparse):
        for inputs, targets in itertools.islice(data.train.epoch(epoch), options.steps):
            batch = each(inputs, channels_last), targets
            run.step(run.shrinker.model, batch[0], batch[1], recipe.train.lr / 5)
        run.shrinker.shrink(run.optimizer)
        removed.append(run.shrinker.removed)
    assert batch is not None

    # The states that differ: whole in the first epoch, then what each next one begins with; healing has the last.
    masks = [Selection.none(removed[0].axes), *removed]
    states, sizes, pauses = [], [], []
    for index, gone in enumerate(masks):
        state = Training(options, recipe, data, 10**9)  # never lands: a sparse step, with its sensitivities
        started = clock()
        if gone:
            state.shrinker.remove(gone, state.optimizer)
        pauses.append(clock() - started)
        if index == len(masks) - 1:
            state.controller.landed = True  # a healing step: nothing is chosen, and λ is 0
        else:
            state.controller.taken = NUM_WARM_UP
            state.controller.lasso.strength[:-1] = 1e-6
        states.append((state, carrying(state.shrinker.model)))
        sizes.append(state.cost.macs(gone) / state.cost.macs())
    seconds = time_in_turns(states, batch, options.rounds)
    whole = np.array(seconds[0])
    ratios = [float(median(np.array(taken) / whole)) for taken in seconds]
    spread = [np.percentile(np.array(taken) / whole, [25, 75]).round(3).tolist() for taken in seconds]

    epoch_seconds = float(median(whole)) * len(data.train)
    epochs = [*range(options.sparse), *[options.sparse] * options.heal]  # the state of each
    with_shrinking = sum(ratios[state] for state in epochs) + sum(pauses) / epoch_seconds
    result = {
        "device": str(run.device), "threads": torch.get_num_threads(), "rounds": options.rounds,
        "step_ms": round(1000 * float(median(whole)), 1),
        "macs_at_epochs": [round(size, 3) for size in sizes],
        "step_ratios": [round(ratio, 3) for ratio in ratios], "middle_halves": spread,
        "pause_seconds": [round(pause, 2) for pause in pauses],
        "epochs": len(epochs), "epochs_of_time": round(with_shrinking, 2),
        "saved_percent": round(100 * (1 - with_shrinking / len(epochs)), 1),
    }  # fmt: skip
    print(json.dumps(result) if options.json else "\n".join(f"{name:16} {value}" for name, value in result.items()))


def time_in_turns(states: list[tuple[Training, Callable[..., Any]]], batch: Any, rounds: int) -> list[list[float]]:
    """Seconds of a training step of each state, ``rounds`` times over; the order turns."""
    seconds: list[list[float]] = [[] for _ in states]
    for turn in range(-2, rounds):
        for offset in range(len(states)):
            at = (offset + turn) % len(states)
            state, run = states[at]
            started = clock()
            state.step(run, batch[0], batch[1], 1e-6)
            if state.device.type == "cuda":
                torch.cuda.synchronize(state.device)
            if turn >= 0:
                seconds[at].append(clock() - started)
    return seconds


def clock() -> float:
    """Processor time of all threads over their number; the wall-clock's where a GPU works."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time() / torch.get_num_threads()


def channels_last(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


if __name__ == "__main__":
    main()
