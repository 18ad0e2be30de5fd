"""When gathering the columns of a convolution pays: dense against repacked in ONNX Runtime, over the share kept.

    python scripts/bench_columns.py --threads 1 --shares 0.02 0.1 0.15 0.2 0.3

Prints, for each convolution and share of its columns, the median of the paired ratios dense / repacked and its 95 %
interval; LeNet's second convolution is that of Wen et al. 2016, table 2, whose 500 columns become 7 to 14.
``COLUMNS_PAY`` in ``sslprune/kinds/columns.py`` is the largest share at which every row is about 1 or above.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import sslprune
from sslprune.bench import compare_onnx
from sslprune.removal.remove import remove
from sslprune.report import Absent
from sslprune.values.axes import zero_groups
from sslprune.values.selection import Selection

CONVOLUTIONS: dict[str, tuple[nn.Conv2d, int]] = {  # and the side of the map that each reads
    "LeNet conv2: 20 -> 50, 5x5, 12x12": (nn.Conv2d(20, 50, 5), 12),
    "CIFAR ResNet: 16 -> 16, 3x3, 32x32": (nn.Conv2d(16, 16, 3, padding=1), 32),
    "CIFAR ResNet: 64 -> 64, 3x3, 8x8": (nn.Conv2d(64, 64, 3, padding=1), 8),
    "ResNet: 64 -> 64, 3x3, 56x56": (nn.Conv2d(64, 64, 3, padding=1), 56),
    "ResNet: 128 -> 128, 3x3 / 2, 56x56": (nn.Conv2d(128, 128, 3, stride=2, padding=1), 56),
    "ResNet: 256 -> 256, 3x3, 14x14": (nn.Conv2d(256, 256, 3, padding=1), 14),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.1, 0.15, 0.2, 0.3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    for name, (conv, side) in CONVOLUTIONS.items():
        for share in options.shares:
            kept, of, ratio = measure(conv, side, share, options)
            row = {"convolution": name, "share": share, "kept": kept, "of": of} | ratio
            if options.json:
                print(json.dumps(row), flush=True)
            else:
                interval = f"({ratio['low']:.2f} to {ratio['high']:.2f})"
                print(f"{name:36} {kept:4} of {of:4} ({share:4.0%})  {ratio['ratio']:6.2f}x {interval}", flush=True)


def measure(conv: nn.Conv2d, side: int, share: float, options: argparse.Namespace) -> tuple[int, int, dict[str, float]]:
    """How many columns are kept, of how many, and the speed-up."""
    model = nn.Sequential(conv, nn.ReLU()).eval()
    args = (torch.randn(2, conv.in_channels, side, side),)
    program = sslprune.trace(model, args)
    axis = next(axis for axis in sslprune.find_axes(program) if axis.kind == "columns")
    num_kept = max(1, round(share * axis.size))
    gone = np.random.default_rng(0).permutation(axis.size)[num_kept:]
    mask = np.isin(np.arange(axis.size), gone)
    dense = conv.weight.detach().clone()
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "dense.onnx", Path(folder) / "repacked.onnx"
        sslprune.export_onnx(remove(model, program, Selection.none([])), args, paths[0])
        zero_groups(model, axis, gone)
        sslprune.export_onnx(remove(model, program, Selection.of([axis], [mask])), args, paths[1])
        found = compare_onnx(
            *paths, batch_sizes=[options.batch_size], threads=[options.threads], repetitions=options.repetitions
        )
    conv.weight.data.copy_(dense)
    speedup = found.speedup[0]
    assert not isinstance(speedup, Absent)
    return num_kept, axis.size, {"ratio": speedup.ratio, "low": speedup.low, "high": speedup.high}


if __name__ == "__main__":
    main()
