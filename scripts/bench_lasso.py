"""What `GroupLasso.step` adds to a training step of a CIFAR ResNet, in pairs: each step is run once without, once with.

    python scripts/bench_lasso.py --depth 56 --batch-size 128 --steps 20

Prints the median step, the median of the paired differences as a share of it, and the range of the middle half.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import sslprune
from sslprune.zoo import resnet_cifar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="pairs measured, after three to warm up")
    parser.add_argument("--kinds", nargs="+", default=["filters", "layers"], help="of axes that the lasso acts on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch likes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    model = resnet_cifar(depth=options.depth)
    images, labels = torch.randn(options.batch_size, 3, 32, 32), torch.randint(10, (options.batch_size,))
    started = time.perf_counter()
    axes = sslprune.find_axes(sslprune.trace(model, (images[:2],)))
    axes = [axis for axis in axes if axis.exact and axis.kind in options.kinds]
    found = time.perf_counter() - started
    model, images, labels = model.to(options.device).train(), images.to(options.device), labels.to(options.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    lasso = sslprune.GroupLasso(model, axes, strength=1e-4)

    # In turn, so that a slow moment of the machine falls on both; which goes first alternates.
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for step in range(-3, options.steps):
        for with_lasso in (False, True) if step % 2 else (True, False):
            elapsed = training_step(model, optimizer, images, labels, lasso if with_lasso else None)
            if step >= 0:
                seconds[with_lasso].append(elapsed)
    without = median(seconds[False])
    added = [100 * (b - a) / without for a, b in zip(seconds[False], seconds[True], strict=True)]
    alone = [lasso_step(lasso, options.device) for _ in range(options.steps)]
    low, high = (round(float(bound), 2) for bound in np.percentile(added, [25, 75]))
    result = {
        "depth": options.depth, "batch_size": options.batch_size, "device": options.device,
        "threads": torch.get_num_threads(), "pairs": options.steps, "axes": len(axes),
        "find_axes_seconds": round(found, 2), "step_ms": round(1000 * without, 1),
        "lasso_ms": round(1000 * median(alone), 2), "lasso_percent": round(100 * median(alone) / without, 2),
        "added_percent": round(median(added), 2), "added_percent_middle_half": [low, high],
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name.replace('_', ' '):26} {value}" for name, value in result.items()))


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    lasso: sslprune.GroupLasso | None,
) -> float:
    """Seconds that one step takes."""
    started = time.perf_counter()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    if lasso is not None:
        lasso.step(lr=0.05)
    synchronize(images.device)
    return time.perf_counter() - started


def lasso_step(lasso: sslprune.GroupLasso, device: str) -> float:
    """Seconds that the lasso's step takes by itself."""
    started = time.perf_counter()
    lasso.step(lr=0.05)
    synchronize(torch.device(device))
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
