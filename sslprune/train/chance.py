"""Whether a model knows anything of its data: if not, a loss of accuracy says nothing of what was removed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslprune.capture.mode import evaluating
from sslprune.data.batches import Source
from sslprune.values.carry import carrying
from sslprune.values.inputs import call, each, num_rows
from sslprune.values.tasks import Task

SAMPLES = 512
OTHERS = (1, 3, 7)  # how far on in the batch the samples are whose targets are tried
LEAST = 0.01  # random weights give a thousandth or so, and what was trained for an epoch a tenth and more


@torch.no_grad()
def known_share(model: nn.Module, source: Source, task: Task, samples: int = SAMPLES) -> float | None:
    """How much of its loss on the targets of other samples a model saves on its own; 0: it knows nothing of them.

    A permutation test: what does not depend on the input, a constant or the outputs of random weights, does as well on
    anybody's targets. Read from the first ``samples`` of ``source``. None where there are no targets to be
    exchanged, and for a loss of a person's own. Raises DataError for targets that do not suit the outputs.
    """
    if task.taught or not task.is_usual:
        return None
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    right = wrong = 0.0
    seen = 0
    with evaluating(model), torch.random.fork_rng(devices=[]):
        step = carrying(model)
        for inputs, targets in source.epoch(0):
            rows = num_rows(inputs)
            if not isinstance(targets, Tensor) or not targets.dim() or len(targets) != rows:
                return None
            try:
                outputs, targets = call(step, each(inputs, lambda value: value.to(device))), targets.to(device)
            except (RuntimeError, TypeError, ValueError, IndexError):
                return None  # it fails by itself: tracing says how
            if not seen:
                task.check(outputs, targets)
            if rows > 1:
                right += float(task.loss(outputs, targets))
                moved = [float(task.loss(outputs, targets.roll(by, 0))) for by in OTHERS if by % rows]
                wrong += sum(moved) / len(moved)
            seen += rows
            if seen >= samples:
                break
    return 1 - right / wrong if wrong > 0 else None


def at_chance(model: nn.Module, source: Source, task: Task) -> bool:
    """Whether ``model`` does no better on the targets of ``source`` than on those of other samples."""
    share = known_share(model, source, task)
    return share is not None and not share >= LEAST
