"""What a model scores on test data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sslprune.values.carry import carries, carrying
from sslprune.values.inputs import Inputs, call
from sslprune.values.tasks import Task
from sslprune.values.team import Alone, Team


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Inputs, Any]], task: Task | None = None, team: Team | None = None
) -> dict[str, float]:
    """Each metric of ``task`` (classification where it is None) over all ``batches``.

    A model that carries state does so from batch to batch. The model's mode (train or eval) is put back afterwards.
    The processes of a ``team`` take the batches in turns, and all get the same; each takes all of them where state is
    carried, and for metrics that are no sums.
    Raises DataError for targets that the outputs do not have.
    """
    task, team = task or Task(), team or Alone()
    was_training = model.training
    model.eval()
    scores = task.scores()
    shared = team.world > 1 and scores.shareable and not carries(model)
    try:
        step = carrying(model)
        for i, (inputs, targets) in enumerate(batches):
            if not shared or i % team.world == team.rank:
                scores.add(call(step, inputs), targets)
    finally:
        model.train(was_training)
    if shared:
        scores.share(team)
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
