"""Seconds and memory that finding the axes of a model and repacking it take, in a fresh process each.

    python scripts/bench_axes.py                  # an own ResNet-50-shaped bottleneck network at 224 px
    python scripts/bench_axes.py --depth 200      # deeper: the growth

Memory is the rise of the process's peak resident size (``ru_maxrss``) over what it was with the model loaded and run
once, as a multiple of the model's weights.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
from torch import Tensor, nn

import sslprune
from sslprune.models.build import count_parameters


class Bottleneck(nn.Module):
    """A residual bottleneck (He et al. 2015, figure 5), projected where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
        )
        same = inputs == 4 * width and stride == 1
        projection = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut = nn.Identity() if same else nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(depth: int) -> nn.Module:
    """ResNet-50's stages (3, 4, 6, 3 blocks), the third stretched to ``depth`` layers."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6 + (depth - 50) // 3, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, 2 if stage and not block else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def peak() -> int:
    """Bytes of the process's peak resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=50)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, x = resnet(options.depth).eval(), torch.randn(2, 3, 224, 224)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tiny = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    small = sslprune.trace(tiny, (x,))  # loads what torch.export loads on first use
    sslprune.repack(tiny, small, sslprune.find_axes(small))
    with torch.no_grad():
        model(x)
    before, clock = peak(), [time.perf_counter()]
    program = sslprune.trace(model, (x,))
    clock.append(time.perf_counter())
    axes = sslprune.find_axes(program)
    clock.append(time.perf_counter())
    random = np.random.default_rng(0)
    for axis in axes:
        if axis.exact and axis.kind == "filters":
            sslprune.zero_groups(model, axis, random.permutation(axis.size)[: axis.size // 2])
    clock.append(time.perf_counter())
    packed = sslprune.repack(model, program, axes)
    clock.append(time.perf_counter())
    trace, find, _, repack = np.diff(clock)
    left = count_parameters(packed) / count_parameters(model)
    nodes = len(program.evaluation.nodes)
    print(f"depth {options.depth}: {nodes} nodes, {len(axes)} axes, {weights / 1e6:.0f} MB of weights")
    print(f"trace {trace:.2f} s, find_axes {find:.2f} s, repack (verified) {repack:.2f} s, {100 * left:.1f} % left")
    print(f"peak memory rose by {(peak() - before) / 1e6:.0f} MB, {(peak() - before) / weights:.2f} x the weights")


if __name__ == "__main__":
    main()
