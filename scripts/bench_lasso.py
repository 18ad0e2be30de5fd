"""What the lasso adds to a training step of a CIFAR ResNet: both parts of each step timed, one after the other.

    python scripts/bench_lasso.py --depth 56 --batch-size 128 --steps 20

Two parts: the proximal step, and the sensitivities by which the budget's controller chooses (in sparse training alone).
The median of each one's share of the step that it belongs to, and the range of the middle half: a slow moment of the
machine falls on both. Processor time on the CPU, so that other programs do not count.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

import sslprune
from sslprune.zoo import resnet_cifar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="measured, after three to warm up")
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
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)
    lasso = sslprune.GroupLasso(model, axes, strength=1e-4)

    def training() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    parts = {"step": training, "sensitivities": lasso.sensitivities, "lasso": lambda: lasso.step(lr=0.05)}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(-3, options.steps):
        for name, part in parts.items():
            started = clock(options.device)
            part()
            if turn >= 0:
                seconds[name].append(clock(options.device) - started)
    result = {
        "depth": options.depth, "batch_size": options.batch_size, "device": options.device,
        "threads": torch.get_num_threads(), "steps": options.steps, "axes": len(axes),
        "find_axes_seconds": round(found, 2), "step_ms": round(1000 * median(seconds["step"]), 1),
    }  # fmt: skip
    for name in ("lasso", "sensitivities"):
        shares = 100 * np.array(seconds[name]) / np.array(seconds["step"])
        low, high = np.percentile(shares, [25, 75]).round(2).tolist()
        result |= {f"{name}_ms": round(1000 * median(seconds[name]), 2), f"{name}_percent": round(median(shares), 2)}
        result[f"{name}_percent_middle_half"] = [low, high]
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name.replace('_', ' '):34} {value}" for name, value in result.items()))


def clock(device: str) -> float:
    """Seconds of processor time, of all threads over their number; of the wall once a GPU is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


if __name__ == "__main__":
    main()
