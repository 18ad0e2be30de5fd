"""How well the table of layers predicts latency: its ratio beside that of the whole model, for random widths.

    python scripts/bench_latency_table.py --depth 20 --depth 56 --count 8

For each CIFAR ResNet, dense and narrow models are exported and timed in turns on one thread; the table is fitted once,
as training fits it (to the dense model and one near ``--budget``), and then only asked. Widths are drawn on the
machine's grain and off it, whole residual branches go with them. The last lines are the mean and the largest error in
points of the dense latency, and what the table itself took.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from sslprune.bench.fit import latency_cost
from sslprune.bench.table import LayerTable
from sslprune.models.build import count_parameters
from sslprune.recipe import parse_recipe
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection
from sslprune.zoo import resnet_cifar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, action="append", help="of the ResNet; more than one may be given")
    parser.add_argument("--count", type=int, default=8, help="narrow models, on the grain and off it in turn")
    parser.add_argument("--budget", type=float, default=0.5, help="the fraction near which the table is fitted")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for depth in asked.depth or [20, 56]:
        check(depth, asked.count, asked.budget, np.random.default_rng(asked.seed))


def check(depth: int, count: int, budget: float, random: np.random.Generator) -> None:
    recipe = parse_recipe(
        {
            "model": {"factory": "sslprune.zoo:resnet_cifar"},
            "data": {"factory": "none:none"},
            "prune": [{"kind": "filters"}, {"kind": "layers"}],
            "budget": {"latency": budget},
            "schedule": {"sparse": "1ep", "heal": "1ep"},
        }
    )
    model = resnet_cifar(depth=depth).eval()
    started = time.perf_counter()
    table = LayerTable(num_bytes=4 * count_parameters(model))
    found = latency_cost(model, (torch.randn(2, 3, 32, 32),), None, recipe, table)
    cost = found.cost
    assert cost.whole is not None
    print(
        f"ResNet-{depth}: dense {found.whole:.0f} us whole, {found.table:.0f} us as a sum over layers;"
        f" {found.num_measured} measured in {time.perf_counter() - started:.1f} s; step {table.step}"
    )
    errors: dict[str, list[float]] = {"on the grain": [], "off it": []}
    for number in range(count):
        grain, where = (table.step, "on the grain") if number % 2 == 0 else (1, "off it")
        gone = Selection.of(cost.axes, [~draw(axis, grain, random) for axis in cost.axes])
        predicted = cost.latency(gone) / cost.latency()
        measured = cost.whole(gone)
        errors[where].append(predicted - measured)
        macs = cost.macs(gone) / cost.macs()
        print(f"  {where:12}  MACs {macs:.3f}  predicted {predicted:.3f}  measured {measured:.3f}", flush=True)
    for where, values in errors.items():
        if values:
            worst, mean = 100 * max(map(abs, values)), 100 * float(np.mean(np.abs(values)))
            print(f"  {where}: off by {mean:.1f} points on the mean, {worst:.1f} at most")
    print(f"  {table.num_measured} measurements in all, {time.perf_counter() - started:.1f} s with the whole models")


def draw(axis: Axis, grain: int, random: np.random.Generator) -> np.ndarray:
    """Which groups stay: a branch in four goes, and up to seven tenths of the widths."""
    if axis.kind == "layers":
        return np.array([random.random() > 0.25])
    size = max(1, round(axis.size * random.uniform(0.3, 1.0) / grain)) * grain
    return np.arange(axis.size) < size


if __name__ == "__main__":
    main()
