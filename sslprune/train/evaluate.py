"""What a model scores on test data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslprune.errors import DataError

# name -> (outputs, targets) -> its sum over a batch, and the number that this is the sum of
METRICS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, int]]] = {
    "accuracy": lambda outputs, targets: (100.0 * (outputs.argmax(1) == targets).sum(), len(targets)),  # percent
    "loss": lambda outputs, targets: (F.cross_entropy(outputs, targets, reduction="sum"), len(targets)),
}


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[tuple[Tensor, ...], Tensor]], metrics: Sequence[str] = ("accuracy",)
) -> dict[str, float]:
    """Each metric of ``model`` over all ``batches``: "accuracy" in percent, "loss" the mean cross-entropy.

    The model's mode (train or eval) is put back afterwards. Raises DataError for targets that the outputs do not have.
    """
    was_training = model.training
    model.eval()
    sums = dict.fromkeys(metrics, 0.0)
    counts = dict.fromkeys(metrics, 0)
    try:
        for args, targets in batches:
            outputs = model(*args)
            check_targets(outputs, targets)
            for name in metrics:
                total, count = METRICS[name](outputs, targets)
                sums[name] += float(total)
                counts[name] += count
    finally:
        model.train(was_training)
    if not all(counts.values()):
        raise DataError("the test data are empty; expected at least one batch")
    return {name: sums[name] / counts[name] for name in metrics}


def check_targets(outputs: Tensor, targets: Tensor) -> None:
    """Raise DataError unless ``outputs`` (batch, classes) can be compared with ``targets`` (batch,) int64."""
    if outputs.dim() != 2 or targets.shape != outputs.shape[:1]:
        raise DataError(
            f"the model gives {tuple(outputs.shape)} for targets {tuple(targets.shape)}; expected "
            "(batch, classes) and (batch,)"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= outputs.shape[1]:
        wrong = low if low < 0 else high
        raise DataError(f"label {wrong} is out of range: the model has {outputs.shape[1]} classes; see model.arguments")
