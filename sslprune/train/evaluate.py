"""What a model scores on test data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sslprune.errors import DataError
from sslprune.values.carry import carrying
from sslprune.values.inputs import Inputs, call
from sslprune.values.tasks import Task


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[tuple[Inputs, Tensor]], task: Task | None = None) -> dict[str, float]:
    """Each metric of ``task`` (classification where it is None) over all ``batches``.

    A model that carries state does so from batch to batch. The model's mode (train or eval) is put back afterwards.
    Raises DataError for targets that the outputs do not have.
    """
    task = task or Task()
    was_training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    try:
        step = carrying(model)
        for inputs, targets in batches:
            outputs = call(step, inputs)
            task.check(outputs, targets)
            for name, part in task.measures(outputs, targets).items():
                sums[name] = sums[name] + part if name in sums else part
    finally:
        model.train(was_training)
    if not sums:
        raise DataError("the test data are empty; expected at least one batch")
    return {name: task.metrics[name].finish(total) for name, total in sums.items()}


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 inside the block: a proof at 1e-4 is not for numbers of ten bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
