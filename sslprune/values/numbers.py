"""Tasks whose outputs are no one class: labels that may hold together, and numbers.

multi-label   logits (batch, labels), targets (batch, labels): 1, 0, or -100 where nobody knows
regression    numbers of any shape (batch, ...), targets of the same; (batch,) and (batch, 1) are the same
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslprune.errors import DataError
from sslprune.values.metrics import IGNORED, LABELS, NUMBERS, Measure
from sslprune.values.tasks import Answer, Task, floating, named, one_tensor


@dataclass(frozen=True)
class Labels(Task):
    """Labels that may hold together: binary cross-entropy of each, in nats; targets of -100 count for nothing."""

    LOSSES: ClassVar[tuple[str, ...]] = ("binary-cross-entropy",)
    METRICS: ClassVar[Mapping[str, Measure]] = LABELS

    name: str = "multi-label"
    metrics: Mapping[str, Measure] = field(default_factory=lambda: {"map": LABELS["map"], "f1": LABELS["f1"]})

    def usual_loss(self, outputs: Any, targets: Any, label_smoothing: float) -> Tensor:
        logits = self.logits(outputs)
        known = (targets != IGNORED).to(logits.dtype)
        holds = targets.to(logits.dtype) * known
        holds = holds * (1 - label_smoothing) + 0.5 * label_smoothing
        loss = F.binary_cross_entropy_with_logits(logits, holds, reduction="none") * known
        return loss.sum() / known.sum().clamp(min=1)

    def counted(self, targets: Any) -> Tensor:
        return super().counted(targets) if self.own_loss is not None else (targets != IGNORED).sum()

    def distillation(self, outputs: Any, taught: Any, targets: Any, temperature: float) -> Tensor:
        """t² KL of each label's softened probability, the mean over labels."""
        student, teacher = (self.logits(given) / temperature for given in (outputs, taught))
        loss = F.binary_cross_entropy_with_logits(student, teacher.sigmoid())
        return (loss - F.binary_cross_entropy_with_logits(teacher, teacher.sigmoid())) * temperature**2

    def measured(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Logits and targets, both (n, labels)."""
        logits = self.logits(outputs)
        return logits.movedim(1, -1).flatten(0, -2), targets.long().movedim(1, -1).flatten(0, -2)

    def probabilities(self, given: Tensor) -> Tensor:
        return given.sigmoid()

    def log_shares(self, outputs: Any) -> Tensor:
        """(n, 2): of each label, that it holds and that it does not."""
        logits = self.logits(outputs).float().flatten()
        return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=1)

    def check(self, outputs: Any, targets: Any) -> None:
        """Raise DataError unless ``targets`` say of each label whether it holds."""
        targets, logits = one_tensor(targets, self.name), floating(self.logits(outputs))
        if logits.dim() < 2 or targets.shape != logits.shape:
            raise DataError(
                f"the model gives {tuple(logits.shape)} for targets {tuple(targets.shape)}; expected (batch, labels) "
                f'of both, a 1 for each label that holds; see data.task, which is "{self.name}"'
            )
        known = targets[targets != IGNORED]
        if known.numel() and not bool(((known >= 0) & (known <= 1)).all()):
            wrong = known[~((known >= 0) & (known <= 1))][0]
            raise DataError(f"a target is {float(wrong):g}; expected 1 or 0 for each label, or {IGNORED} for unknown")

    def answer(self, outputs: Any, names: Sequence[str]) -> Answer | None:
        """The labels that hold, each with its probability; the likeliest first, and that one in any case."""
        shares = self.logits(outputs)[0].sigmoid().flatten()
        order = shares.argsort(descending=True).tolist()
        said = {named(names, i): float(shares[i]) for n, i in enumerate(order) if not n or shares[i] > 0.5}
        return Answer(said, shares=True)


APART: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda given, wanted: F.mse_loss(given, wanted),
    "l1": lambda given, wanted: F.l1_loss(given, wanted),
    "huber": lambda given, wanted: F.huber_loss(given, wanted),
}


@dataclass(frozen=True)
class Numbers(Task):
    """Numbers: the mean squared error, or another of ``LOSSES``."""

    LOSSES: ClassVar[tuple[str, ...]] = ("mse", "l1", "huber")
    METRICS: ClassVar[Mapping[str, Measure]] = NUMBERS
    of_classes: ClassVar[bool] = False

    name: str = "regression"
    metrics: Mapping[str, Measure] = field(default_factory=lambda: {m: NUMBERS[m] for m in ("mae", "rmse", "r2")})

    def usual_loss(self, outputs: Any, targets: Any, label_smoothing: float) -> Tensor:
        given, wanted = self._pair(outputs, targets)
        return APART[self.criterion or "mse"](given, wanted)

    def distillation(self, outputs: Any, taught: Any, targets: Any, temperature: float) -> Tensor:
        """The mean squared distance to the teacher's numbers, whatever the temperature."""
        return F.mse_loss(self.logits(outputs), self.logits(taught))

    def measured(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Predictions and targets, both (n, numbers); numbers of places are of one column."""
        given, wanted = self._pair(outputs, targets)
        shape = (len(given), -1) if given.dim() <= 2 else (-1, 1)
        return given.reshape(shape), wanted.reshape(shape)

    def probabilities(self, given: Tensor) -> Tensor:
        return given

    def check(self, outputs: Any, targets: Any) -> None:
        """Raise DataError unless there is a target for each number, and each is finite."""
        targets, given = one_tensor(targets, self.name), floating(self.logits(outputs))
        if targets.is_complex() or _without_one(targets) != _without_one(given):
            raise DataError(
                f"the model gives {tuple(given.shape)} for targets {tuple(targets.shape)}; expected a target for each "
                f'number; see data.task, which is "{self.name}"'
            )
        if targets.is_floating_point() and not bool(targets.isfinite().all()):
            raise DataError("a target is not finite; leave its sample out, or fill in what is missing")

    def answer(self, outputs: Any, names: Sequence[str]) -> Answer | None:
        """The numbers, by the names that the data have for them."""
        numbers = self.logits(outputs)[0].flatten().tolist()
        if len(numbers) == 1:
            return Answer({names[0] if names else "": numbers[0]})
        return Answer({named(names, i): number for i, number in enumerate(numbers)})

    def _pair(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        given = self.logits(outputs)
        return given, targets.to(given.dtype).reshape(given.shape)


def _without_one(tensor: Tensor) -> tuple[int, ...]:
    """The shape, without a last dimension of one number."""
    shape = tuple(tensor.shape)
    return shape[:-1] if len(shape) > 1 and shape[-1] == 1 else shape
