"""What a model scores on test data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sslprune.values.carry import carrying
from sslprune.values.inputs import Inputs, call
from sslprune.values.tasks import Task


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[tuple[Inputs, Any]], task: Task | None = None) -> dict[str, float]:
    """Each metric of ``task`` (classification where it is None) over all ``batches``.

    A model that carries state does so from batch to batch. The model's mode (train or eval) is put back afterwards.
    Raises DataError for targets that the outputs do not have.
    """
    task = task or Task()
    was_training = model.training
    model.eval()
    scores = task.scores()
    try:
        step = carrying(model)
        for inputs, targets in batches:
            scores.add(call(step, inputs), targets)
    finally:
        model.train(was_training)
    return scores.figures()


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 inside the block: a proof at 1e-4 is not for numbers of ten bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
