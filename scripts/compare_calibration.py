"""Smaller without training, beside Torch-Pruning 1.6.1: a CIFAR ResNet's checkpoint, the same samples for both.

    python scripts/compare_calibration.py --depth 20 --checkpoint resnet20-cifar10.th --train train.parquet \\
        --test test.parquet --macs 0.473 --seeds 0 1 2

peer  Torch-Pruning's magnitude pruner (GroupMagnitudeImportance(p=2), global ranking, as in its README) cuts the inner
      widths until the MACs are reached; then its batch norms are taken anew on the samples
ours  sslprune.calibrate on the same widths and samples

Samples are ``--samples`` training images, drawn by the seed, without labels and without augmentation. Each is judged on
all test images. Seconds are those of the processor, evaluation left out; run it with OMP_NUM_THREADS=1 for one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import sslprune  # noqa: E402
from scripts.compare_torch_pruning import INNER, macs_of, peer_pruner  # noqa: E402
from sslprune.cost.counts import Cost  # noqa: E402
from sslprune.data import Data, build_data  # noqa: E402
from sslprune.models.build import build_model  # noqa: E402
from sslprune.recipe import load_recipe  # noqa: E402
from sslprune.train.evaluate import evaluate  # noqa: E402
from sslprune.values.tasks import Task  # noqa: E402

BATCH = 64


@torch.no_grad()
def norms_anew_(model: nn.Module, batches: list[Tensor]) -> None:
    """Set the statistics of every batch norm to the mean over ``batches``, in place; evaluation mode after it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean
    model.train()
    for batch in batches:
        model(batch)
    model.eval()


def peer(dense: nn.Module, batches: list[Tensor], budget: float) -> tuple[nn.Module, nn.Module]:
    """The peer's model at ``budget`` of the MACs: as cut, and with its norms taken anew."""
    model = copy.deepcopy(dense)
    pruner = peer_pruner(model, 0.0, batches[0])
    whole = macs_of(model)
    while macs_of(model) > budget * whole and pruner.current_step < pruner.iterative_steps:
        pruner.step()
    model.eval()
    cut = copy.deepcopy(model)
    norms_anew_(model, batches)
    return cut, model


def drawn(data: Data, seed: int, count: int) -> list[Tensor]:
    """The first ``count`` training images in the order of epoch ``seed``."""
    pictures = (inputs[0] for inputs, _ in data.train.epoch(seed))  # type: ignore[index]
    return list(torch.cat(list(islice(pictures, -(-count // BATCH))))[:count].split(BATCH))


def score(model: nn.Module, data: Data) -> float:
    """Percent of the test images."""
    return evaluate(model, data.test, data.task)["accuracy"]


def counted(model: nn.Module, images: Tensor) -> float:
    """Multiply-adds of one picture, by the graph: a repacked model has no layers to hook."""
    program = sslprune.trace(model, (images[:2],))
    return Cost(program, []).macs()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--macs", type=float, default=0.473)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=["peer", "ours"], default=["peer", "ours"])
    options = parser.parse_args()
    recipe = load_recipe(
        ROOT / "recipes" / "resnet56-cifar10-calibrate.toml",
        [
            f"model.arguments.depth={options.depth}", f"model.checkpoint={options.checkpoint}",
            f"data.train={options.train}", f"data.test={options.test}", f"data.batch_size={BATCH}",
        ],
    )  # fmt: skip
    data = build_data(recipe)
    dense, _ = build_model(recipe.model)
    dense.eval()
    print(json.dumps({"dense": score(dense, data), "depth": options.depth}))
    scores: dict[str, list[float]] = {}
    for seed in options.seeds:
        batches = drawn(data, seed, options.samples)
        for arm in options.arms:
            began = time.process_time()
            if arm == "peer":
                cut, small = peer(dense, batches, options.macs)
                seconds = time.process_time() - began
                more = {"as cut": score(cut, data)}
            else:
                prune = {"kind": "filters", "include": INNER}
                example = (batches[0][:2],)
                small = sslprune.calibrate(
                    dense, example, batches, prune=prune, macs=options.macs, task=Task(), round_to=1, seed=seed
                )
                seconds, more = time.process_time() - began, {}
            left = counted(small, batches[0]) / counted(dense, batches[0])
            line = {"arm": arm, "seed": seed, **more, "accuracy": score(small, data), "macs": left, "seconds": seconds}
            scores.setdefault(arm, []).append(line["accuracy"])
            print(json.dumps(line), flush=True)
    print(json.dumps({arm: mean(found) for arm, found in scores.items()}))


if __name__ == "__main__":
    main()
