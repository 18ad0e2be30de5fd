"""When zero tiles of a weight pay: a linear layer in torch's block-sparse rows (BSR) beside the dense one, one thread.

A row for each layer and batch, a column for each tile and share of tiles that is left: how many times as fast as dense.
The dense layer with the same zeros, in torch and in ONNX Runtime, takes the time of any dense layer.
Whether `torch.export.save` can write such a layer stands at the end.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS = ((256, 256), (1536, 384), (3072, 768))  # out x in
BATCHES = (1, 16, 128)
TILES = (8, 32)
LEFT = (0.5, 0.25, 0.1, 0.05)
ROUNDS = 9


def fastest(calls: Sequence[Callable[[], Tensor]]) -> list[float]:
    """Seconds of each of ``calls``, the least of several rounds, in turns."""
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for i, call in enumerate(calls):
            call()
            began = time.perf_counter()
            for _ in range(5):
                call()
            best[i] = min(best[i], (time.perf_counter() - began) / 5)
    return best


def tiled(weight: Tensor, tile: int, left: float) -> Tensor:
    """``weight`` with so many of its tiles, drawn at random; the others are zero."""
    rows, columns = (size // tile for size in weight.shape)
    kept = torch.zeros(rows * columns)
    kept[torch.randperm(rows * columns)[: max(1, round(left * rows * columns))]] = 1
    return weight * kept.view(rows, columns).repeat_interleave(tile, 0).repeat_interleave(tile, 1)


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", tiled(torch.randn(64, 64), 8, 0.1).to_sparse_bsr((8, 8)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.get_buffer("weight"))


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [(tile, left) for tile in TILES for left in LEFT]
    print("layer, batch  dense   " + "  ".join(f"{tile}x{tile} {100 * left:.0f} %" for tile, left in cases))
    for out, read in LAYERS:
        for batch in BATCHES:
            x, weight = torch.randn(batch, read), torch.randn(out, read)
            sparse = [tiled(weight, tile, left).to_sparse_bsr((tile, tile)) for tile, left in cases]
            calls = [lambda x=x, w=w: F.linear(x, w) for w in (weight, *sparse)]
            dense, *times = fastest(calls)
            cells = "  ".join(f"{dense / taken:8.2f}" for taken in times)
            print(f"{out}x{read}, {batch:3d}  {1e6 * dense:6.0f} us  {cells}")
    try:
        program = torch.export.export(Sparse(), (torch.randn(2, 64),))
        with tempfile.TemporaryDirectory() as folder:
            torch.export.save(program, Path(folder) / "sparse.pt2")
        print("torch.export.save writes it")
    except RuntimeError as error:
        print(f"torch.export.save, torch {torch.__version__}: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
