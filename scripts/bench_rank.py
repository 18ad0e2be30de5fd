"""When two factors are faster than one matrix: dense against factored in ONNX Runtime, over rank / min(rows, columns).

    python scripts/bench_rank.py --threads 1 --batch-size 1 --shares 0.1 0.2 0.3 0.4 0.5

Prints, for each layer, way of factoring it and share of its rank, what of its multiply-accumulates is left, the median
of the paired ratios dense / factored, and its 95 % interval. Pairs that cost as much as one matrix are left out: repack
makes one of them. Each layer stands in a short chain of its kind, so that what a call itself takes weighs little.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path

import torch
from torch import nn

import sslprune
from sslprune.bench import compare_onnx
from sslprune.calibration.factor import factored_
from sslprune.removal.factors import Form
from sslprune.removal.remove import remove
from sslprune.report import Absent
from sslprune.values.selection import Selection

CHAIN = 4  # layers, one behind the other
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], tuple[Form, ...]]] = {  # with its input, and how it is factored
    "384 -> 384, 64 tokens": (nn.Linear(384, 384), (64, 384), ("linear",)),
    "768 -> 768, 128 tokens": (nn.Linear(768, 768), (128, 768), ("linear",)),
    "1536 -> 1536, 1 row": (nn.Linear(1536, 1536), (1536,), ("linear",)),
    "3x3, 64 -> 64, 16x16": (nn.Conv2d(64, 64, 3, padding=1), (64, 16, 16), ("pointwise", "separable")),
    "3x3, 128 -> 128, 28x28": (nn.Conv2d(128, 128, 3, padding=1), (128, 28, 28), ("pointwise", "separable")),
    "3x3, 512 -> 512, 7x7": (nn.Conv2d(512, 512, 3, padding=1), (512, 7, 7), ("pointwise", "separable")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4, 0.45])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    for name, (layer, shape, forms) in LAYERS.items():
        dense = nn.Sequential(*(copy.deepcopy(layer) for _ in range(CHAIN))).eval()
        for form in forms:
            for share in options.shares:
                row = {"layer": name, "form": form, "share": share} | measure(dense, shape, form, share, options)
                if options.json:
                    print(json.dumps(row), flush=True)
                elif "ratio" in row:
                    print(
                        f"{name:24} {form:10} rank {row['rank']:4} of {row['of']:4}  {row['macs']:4.0%} of the MACs  "
                        f"{row['ratio']:5.2f}x ({row['low']:.2f} to {row['high']:.2f})",
                        flush=True,
                    )


def measure(
    dense: nn.Module, shape: tuple[int, ...], form: Form, share: float, options: argparse.Namespace
) -> dict[str, float]:
    """The rank that is left, of how much, what is left of the MACs, and the speed-up where two factors stay."""
    example = torch.randn(options.batch_size, *shape)
    model = copy.deepcopy(dense)
    program = sslprune.trace(model, (example,))
    factored_(model, program, [f"{i}.weight" for i in range(CHAIN)], None, form)
    program = sslprune.trace(model, (example,))
    axes = [axis for axis in sslprune.find_axes(program) if axis.kind == "rank"]
    rank = max(8, round(share * axes[0].size / 8) * 8)
    gone = Selection.of(axes, [[i >= rank for i in range(axis.size)] for axis in axes])
    cost = sslprune.Cost(program, axes)
    row: dict[str, float] = {"rank": rank, "of": axes[0].size, "macs": cost.macs(gone) / cost.macs()}
    if row["macs"] >= 1:
        return row
    one, small = (remove(model, program, which, verify=False).eval() for which in (Selection.none(axes), gone))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("dense.onnx", "factored.onnx")]
        for file, module in zip(files, (one, small), strict=True):
            sslprune.export_onnx(module, (example,), file)
        found = compare_onnx(
            *files, batch_sizes=(options.batch_size,), threads=(options.threads,), repetitions=options.repetitions
        )
    (speedup,) = found.speedup
    assert not isinstance(speedup, Absent)
    return row | {"ratio": speedup.ratio, "low": speedup.low, "high": speedup.high}


if __name__ == "__main__":
    main()
