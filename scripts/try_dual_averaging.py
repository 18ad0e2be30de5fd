"""A penalty at a given λ: the proximal step after SGD, beside regularized dual averaging (RMDA), LeNet on MNIST.

    python scripts/try_dual_averaging.py --train train.parquet --test test.parquet --seeds 0

RMDA (Huang and Lee, ICLR 2022, algorithm 1) steps from where it began along the sum of all gradients, weighted by √t,
and applies the proximal operator to that: the noise of one batch decides less about which groups are zero. Its rate
(0.1), its momentum (0.01, times √step in the last stage) and its restart where the rate falls are those of the authors'
code. It applies the operator of ``GroupLasso``, with no group held at zero.

Both from the same dense model, over the same batches: a sparse phase of two stages, the second at a tenth of the rate,
then zeros are held and the rest heals by SGD. λ differs in scale between the two (momentum multiplies SGD's steps, not
those of the proximal operator), so read each method's rows as a curve: error against the MACs that are left. Judged on
``--valid`` held-out training images; the test data are not looked at.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from sslprune import Axis, Cost, GroupLasso, find_axes, trace
from sslprune.data import Data, build_data
from sslprune.models.build import build_model
from sslprune.recipe import load_recipe
from sslprune.train.evaluate import evaluate
from sslprune.values.selection import Selection

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "lenet-mnist.toml"


class Method(Protocol):
    def stage(self, lr: float, last: bool) -> None: ...
    def step(self) -> None: ...


class Proximal:
    """SGD with momentum, and the proximal step after it; a group that is zero stays so, as in ``sslprune train``."""

    def __init__(self, model: nn.Module, lasso: GroupLasso) -> None:
        self.lasso = lasso
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)

    def stage(self, lr: float, last: bool) -> None:
        self.lr = self.optimizer.param_groups[0]["lr"] = lr

    def step(self) -> None:
        self.optimizer.step()
        self.lasso.step(self.lr)


class DualAveraging:
    """RMDA: W̃ = prox(W₀ - Σ s_i g_i / √t) with s_i = η √i, at λ Σ s_i / √t; W goes a share of the way to W̃."""

    def __init__(self, model: nn.Module, lasso: GroupLasso, momentum: float = 0.01) -> None:
        self.parameters, self.lasso, self.momentum = list(model.parameters()), lasso, momentum

    def stage(self, lr: float, last: bool) -> None:
        self.lr, self.last = lr, last
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        self.sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.total, self.taken = 0.0, 0

    @torch.no_grad()
    def step(self) -> None:
        self.taken += 1
        root = self.taken**0.5
        self.total += self.lr * root
        before = [parameter.clone() for parameter in self.parameters]
        for parameter, start, total in zip(self.parameters, self.start, self.sums, strict=True):
            assert parameter.grad is not None
            total.add_(parameter.grad, alpha=self.lr * root)
            parameter.copy_(start - total / root)
        self.lasso.alive.fill_(1)  # what was zero may come back
        self.lasso.step(self.total / root)
        share = min(1.0, self.momentum * root) if self.last else self.momentum
        self.proximal = [parameter.clone() for parameter in self.parameters]
        for parameter, old in zip(self.parameters, before, strict=True):
            parameter.lerp_(old, 1 - share)

    @torch.no_grad()
    def finish(self) -> None:
        """W on W̃, where the zeros are exact."""
        for parameter, proximal in zip(self.parameters, self.proximal, strict=True):
            parameter.copy_(proximal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--valid", type=int, default=5000, help="training images held out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--dense", type=int, default=2, help="epochs")
    parser.add_argument("--stage", type=int, default=2, help="epochs of each of the two stages of the sparse phase")
    parser.add_argument("--heal", type=int, default=2, help="epochs")
    parser.add_argument("--proximal", nargs="*", type=float, default=[1e-3, 2e-3], metavar="λ")
    parser.add_argument("--rmda", nargs="*", type=float, default=[5e-4, 1e-3], metavar="λ")
    parser.add_argument("--rmda-lr", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    arms = [("proximal", λ) for λ in options.proximal] + [("rmda", λ) for λ in options.rmda]
    results: dict[tuple[str, float], list[tuple[float, ...]]] = {arm: [] for arm in arms}
    for seed in options.seeds:
        data, model, axes, cost = prepare(options, seed)
        for epoch in range(options.dense):
            train(model, data, Proximal(model, GroupLasso(model, axes, 0.0)), 0.05, epoch=epoch)
        print(f"seed {seed}: dense, error {error(model, data):.2f} %", flush=True)
        for name, λ in arms:
            found = run(copy.deepcopy(model), data, axes, cost, options, name, λ)
            results[name, λ].append(found)
            print(f"seed {seed}: {name} λ {λ:g}, " + line(found), flush=True)
    for (name, λ), rows in results.items():
        means = line([mean(column) for column in zip(*rows, strict=True)])
        spread = f" (MACs ± {stdev(r[0] for r in rows):.4f}, end ± {stdev(r[2] for r in rows):.2f})" if rows[1:] else ""
        print(f"mean: {name} λ {λ:g}, {means}{spread}")


def prepare(options: argparse.Namespace, seed: int) -> tuple[Data, nn.Module, list[Axis], Cost]:
    overrides = [f"data.train={options.train}", f"data.test={options.test}", f"data.hold_out={options.valid}"]
    recipe = load_recipe(RECIPE, [*overrides, f"run.seed={seed}"])
    torch.manual_seed(seed)
    data = build_data(recipe)
    model, _ = build_model(recipe.model)
    program = trace(model, (torch.zeros(2, 1, 28, 28),))
    axes = [axis for axis in find_axes(program) if axis.exact and axis.kind in ("filters", "neurons")]
    return data, model, axes, Cost(program, axes)


def run(
    model: nn.Module, data: Data, axes: list[Axis], cost: Cost, options: argparse.Namespace, name: str, λ: float
) -> tuple[float, float, float, float]:
    """Share of the MACs that is left, error after the sparse phase and at the end, and how many groups are zero."""
    lasso = GroupLasso(model, axes, λ)
    method = Proximal(model, lasso) if name == "proximal" else DualAveraging(model, lasso)
    lr = 0.05 if name == "proximal" else options.rmda_lr
    for epoch in range(2 * options.stage):
        last = epoch >= options.stage
        train(model, data, method, lr / 10 if last else lr, last, begins=epoch % options.stage == 0, epoch=100 + epoch)
    if isinstance(method, DualAveraging):
        method.finish()
    kept = [norms > 0 for norms in lasso.norms()]
    left, cut = cost.macs(Selection.of(lasso.axes, [~k for k in kept])) / cost.macs(), error(model, data)
    lasso.set_strength([0 * norms for norms in lasso.norms()])
    lasso.alive[:-1] = torch.cat([torch.from_numpy(k) for k in kept]).float()
    healing = Proximal(model, lasso)
    for epoch in range(options.heal):
        train(model, data, healing, 0.01 / 10**epoch, epoch=200 + epoch)  # at 0.05, what RMDA leaves diverges
    zero = sum(int((~k).sum()) for k in kept)
    return left, cut, error(model, data), float(zero)


def train(
    model: nn.Module, data: Data, method: Method, lr: float, last: bool = False, begins: bool = True, epoch: int = 0
) -> None:
    if begins:
        method.stage(lr, last)
    model.train()
    for inputs, targets in data.train.epoch(epoch):
        assert isinstance(inputs, tuple)
        model.zero_grad()
        F.cross_entropy(model(*inputs), targets).backward()
        method.step()


def error(model: nn.Module, data: Data) -> float:
    return 100 - evaluate(model, data.valid or data.test, data.task)["accuracy"]


def line(found: Any) -> str:
    return f"{found[0]:.4f} of the MACs, {found[3]:.0f} groups zero, error {found[1]:.2f} % then {found[2]:.2f} %"


if __name__ == "__main__":
    main()
