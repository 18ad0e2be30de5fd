"""Tasks without labels: the targets are what the dense model says of the same inputs, in whatever structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslprune.errors import DataError
from sslprune.values.inputs import tensors_in
from sslprune.values.metrics import Measure, Metric
from sslprune.values.outputs import logits_of
from sslprune.values.tasks import Answer, Task

Pairs = list[tuple[Tensor, Tensor]]  # what a model gives, and what it is to be like


@dataclass(frozen=True)
class Imitation(Task):
    """To give what the dense model gives: every floating output, or the one that ``output`` names.

    ``mse``: the mean squared error, in units of the mean square of what the dense model gives. ``cosine``: 1 - cos of
    the vectors along the last dimension. ``kl``: KL(dense ‖ model) of the softmax over the last dimension, in nats.
    Of several outputs it is the mean.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ("mse", "cosine", "kl")
    of_classes: ClassVar[bool] = False
    taught: ClassVar[bool] = True

    name: str = "distill"
    metrics: Mapping[str, Measure] = field(default_factory=dict)

    def said(self, outputs: Any) -> list[Tensor]:
        if self.output is not None:
            return [logits_of(outputs, self.output)]
        found = [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]
        if not found:
            raise DataError(f"the model returns {type(outputs).__name__} without a floating-point tensor to imitate")
        return found

    def pairs(self, outputs: Any, targets: Any) -> Pairs:
        """Each output beside the dense model's."""
        given, wanted = self.said(outputs), self.said(targets)
        return list(zip(given, wanted, strict=True))

    def usual_loss(self, outputs: Any, targets: Any, label_smoothing: float) -> Tensor:
        measure = APART[self.criterion or "mse"]
        return torch.stack([measure(*pair) for pair in self.pairs(outputs, targets)]).mean()

    def distillation(self, outputs: Any, taught: Any, targets: Any, temperature: float) -> Tensor:
        """As the loss, to another teacher's outputs."""
        return self.usual_loss(outputs, taught, 0.0)

    def check(self, outputs: Any, targets: Any) -> None:
        """Raise DataError unless both models give outputs of the same shapes."""
        given, wanted = ([tuple(tensor.shape) for tensor in self.said(some)] for some in (outputs, targets))
        if given != wanted:
            raise DataError(f"the model gives {given}, the dense model {wanted}; expected outputs of the same shapes")

    def answer(self, outputs: Any, names: Sequence[str]) -> Answer | None:
        """The first numbers of the output, and how long it is as a vector."""
        vector = self.said(outputs)[0][0].flatten()
        shown = {str(i): float(value) for i, value in enumerate(vector[:SHOWN])}
        return Answer({**shown, f"norm of {len(vector)}": float(vector.norm())})


SHOWN = 4  # numbers of a vector


def _mse(given: Tensor, wanted: Tensor) -> Tensor:
    unit = wanted.float().square().mean().clamp(min=1e-12)
    return F.mse_loss(given.float(), wanted.float()) / unit


def _cosines(given: Tensor, wanted: Tensor) -> Tensor:
    if given.dim() < 2:
        given, wanted = given[None], wanted[None]
    return F.cosine_similarity(given.float(), wanted.float(), dim=-1)


def _kl(given: Tensor, wanted: Tensor) -> Tensor:
    log, like = F.log_softmax(given.float(), -1).flatten(0, -2), F.log_softmax(wanted.float(), -1).flatten(0, -2)
    return F.kl_div(log, like, log_target=True, reduction="batchmean")


APART: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _mse,
    "cosine": lambda given, wanted: (1 - _cosines(given, wanted)).mean(),
    "kl": _kl,
}


def measures(task: Imitation) -> dict[str, Metric]:
    """What imitation is judged by, of the outputs that ``task`` is about; of several outputs the mean.

    ``cosine``: of the angle to the dense model's vectors, x 100. ``difference``: ‖given - dense‖ / ‖dense‖ of a batch,
    in percent. ``kl``: in nats.
    """

    def mean(of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
        def sums(outputs: Any, targets: Any) -> Tensor:
            task.check(outputs, targets)
            found = task.pairs(outputs, targets)
            rows = len(found[0][0]) if found[0][0].dim() else 1
            value = torch.stack([of(*pair).double() for pair in found]).mean()
            return torch.stack([value * rows, value.new_tensor(rows)])

        return sums

    def difference(given: Tensor, wanted: Tensor) -> Tensor:
        return 100.0 * (given.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-12)

    return {
        "cosine": Metric(mean(lambda given, wanted: 100.0 * _cosines(given, wanted).mean()), raw=True),
        "difference": Metric(mean(difference), lower_is_better=True, raw=True),
        "mse": Metric(mean(_mse), lower_is_better=True, raw=True),
        "kl": Metric(mean(_kl), lower_is_better=True, raw=True),
    }
