"""How the time to trace, find the axes and repack grows with depth: encoders of BERT's shape.

python scripts/scaling.py --depths 12 24 48 96
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn

import sslprune
from sslprune.values.axes import zero_groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 24, 48, 96])
    parser.add_argument("--width", type=int, default=96, help="BERT's is 768; the graph is the same")
    options = parser.parse_args()
    args = (torch.randn(2, 16, options.width),)
    print("layers   nodes   trace  axes  repack  seconds")
    for depth in options.depths:
        layer = nn.TransformerEncoderLayer(options.width, 12, 4 * options.width, activation="gelu", batch_first=True)
        model = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).eval()
        times = [time.perf_counter()]
        program = sslprune.trace(model, args)
        times.append(time.perf_counter())
        axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
        times.append(time.perf_counter())
        for axis in axes:
            if axis.kind != "layers":
                zero_groups(model, axis, np.arange(axis.size // 2))
        sslprune.repack(model, program, axes)
        times.append(time.perf_counter())
        traced, found, repacked = np.diff(times)
        row = f"{depth:6} {len(program.evaluation.nodes):7} {traced:7.1f} {found:5.1f} {repacked:7.1f}"
        print(row, f"{times[-1] - times[0]:8.1f}", flush=True)


if __name__ == "__main__":
    main()
