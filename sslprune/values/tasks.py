"""What a model is trained for and judged by: its loss, its metrics, and what its outputs and targets must look like.

Every task here picks one class out of many, per sample or per place of a sample; what differs is where the logits lie:

classification       logits (batch, classes) or (batch, classes, *places), targets (batch,) or (batch, *places)
tagging              logits (batch, steps, classes), targets (batch, steps)
language-modelling   logits (batch, steps, vocabulary), targets (batch, steps): the token that belongs at each step

Targets of -100 are left out of loss and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslprune.errors import DataError, RecipeError, first_line
from sslprune.values.outputs import Output, logits_of

IGNORED = -100  # the target that counts for nothing
VOID = 255  # what stands for it in pictures of classes (PASCAL VOC, Cityscapes)


@dataclass(frozen=True)
class Metric:
    """A figure over many batches: ``sums`` of each batch are added up, and ``finish`` makes the figure of them.

    ``sums(logits, targets)``, with logits (n, classes) and targets (n,), gives a tensor of one shape for all batches.
    """

    sums: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], float] = lambda sums: float(sums[0] / sums[1])  # the mean, of (sum, number)
    lower_is_better: bool = False

    def __call__(self, logits: Tensor, targets: Tensor) -> float:
        """The figure of one batch alone."""
        return self.finish(self.sums(logits, targets).double())


def _correct(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([100.0 * (logits.argmax(1) == targets).sum(), targets.new_tensor(len(targets))])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(logits, targets, reduction="sum"), targets.new_tensor(len(targets))])


def _confusion(logits: Tensor, targets: Tensor) -> Tensor:
    """Counts (true class, predicted class)."""
    classes = logits.shape[1]
    return torch.bincount(targets * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


def _f1(counts: Tensor) -> float:
    """F1 in percent: of class 1 where there are two classes, else the mean over the classes that occur."""
    hits, true, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    scores = 200.0 * hits / (true + said).clamp(min=1)
    return float(scores[1]) if len(counts) == 2 else float(scores[(true + said) > 0].mean())


def _matthews(counts: Tensor) -> float:
    """Matthews' correlation x 100, for any number of classes (Gorodkin 2004, eq. 8); 0 where one class is all."""
    total, hits, true, said = counts.sum(), counts.trace(), counts.sum(1), counts.sum(0)
    spread = ((total**2 - (said**2).sum()) * (total**2 - (true**2).sum())).sqrt()
    return float(100.0 * (hits * total - (true * said).sum()) / spread) if spread > 0 else 0.0


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_correct),  # percent
    "f1": Metric(_confusion, _f1),  # percent
    "matthews": Metric(_confusion, _matthews),  # x 100
    "loss": Metric(_cross_entropy, lower_is_better=True),  # nats per target
    "perplexity": Metric(_cross_entropy, lambda s: float((s[0] / s[1]).exp()), lower_is_better=True),
}
LOWER_IS_BETTER = frozenset(name for name, metric in METRICS.items() if metric.lower_is_better)


@dataclass(frozen=True)
class Task:
    """A loss with its metrics. ``classes_last``: logits are (..., classes), otherwise (batch, classes, ...).

    ``output``: which of a model's outputs holds the logits, by its name or its place.
    """

    name: str = "classification"
    metrics: Mapping[str, Metric] = field(default_factory=lambda: {"accuracy": METRICS["accuracy"]})
    classes_last: bool = False
    output: Output = None

    def logits(self, outputs: Any) -> Tensor:
        """The tensor of a model's ``outputs`` that this task is about."""
        return logits_of(outputs, self.output)

    @property
    def lower_is_better(self) -> Collection[str]:
        """The metrics in which less is better."""
        return frozenset(name for name, metric in self.metrics.items() if metric.lower_is_better)

    def loss(self, outputs: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy per target, in nats."""
        logits = self.logits(outputs)
        if self.classes_last:
            logits, targets = logits.flatten(0, -2), targets.flatten()
        return F.cross_entropy(logits, targets.long(), label_smoothing=label_smoothing, ignore_index=IGNORED)

    def distillation(self, outputs: Any, taught: Any, targets: Tensor, temperature: float) -> Tensor:
        """t² KL(teacher ‖ student) of the softened classes, the mean over targets (Hinton et al. 2015, section 2).

        t² keeps the gradients in proportion to those of the loss.
        """
        student, teacher = (self.rows(self.logits(given), targets)[0] / temperature for given in (outputs, taught))
        soft = F.log_softmax(teacher, dim=1)
        return F.kl_div(F.log_softmax(student, dim=1), soft, log_target=True, reduction="batchmean") * temperature**2

    def rows(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) and targets (n,) int64, one row for each target that counts."""
        targets = targets.long()
        if logits.dim() > 2:
            classes = logits.dim() - 1 if self.classes_last else 1
            logits, targets = logits.movedim(classes, -1).flatten(0, -2), targets.flatten()
            counts = targets != IGNORED
            logits, targets = logits[counts], targets[counts]
        return logits, targets

    def check(self, outputs: Any, targets: Tensor) -> None:
        """Raise DataError, in one line, unless ``targets`` (int64) are classes of what ``outputs`` hold."""
        logits = self.logits(outputs)
        if not logits.is_floating_point():
            kind = str(logits.dtype).removeprefix("torch.")
            raise DataError(f"the model gives {kind}; expected floating-point numbers, one for each class")
        if logits.dim() < 2 or (self.classes_last and logits.dim() != 3):
            expected_shape = None
        else:
            expected_shape = logits.shape[:-1] if self.classes_last else (logits.shape[0], *logits.shape[2:])
        if expected_shape is None or tuple(targets.shape) != tuple(expected_shape):
            expected = (
                "(batch, steps, classes) and (batch, steps)" if self.classes_last else "(batch, classes) and (batch,)"
            )
            raise DataError(
                f"the model gives {tuple(logits.shape)} for targets {tuple(targets.shape)}; expected {expected}; "
                f'see data.task, which is "{self.name}"'
            )
        if targets.is_floating_point() or targets.is_complex():
            kind = str(targets.dtype).removeprefix("torch.")
            raise DataError(f"the targets are {kind}; expected int64, the number of a class each")
        counted = targets[targets != IGNORED]
        if not counted.numel():
            return
        low, high = int(counted.min()), int(counted.max())
        classes = logits.shape[-1 if self.classes_last else 1]
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            void = f", or give {IGNORED} where {VOID} stands for no class" if wrong == VOID else ""
            raise DataError(
                f"label {wrong} is out of range: the model has {classes} classes; see model.arguments{void}"
            )

    def measures(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """The sums of every metric over one batch, in float64."""
        logits, targets = self.rows(self.logits(outputs), targets)
        return {name: metric.sums(logits, targets).double() for name, metric in self.metrics.items()}


DEFAULTS = {"classification": ("accuracy",), "tagging": ("accuracy", "f1"), "language-modelling": ("perplexity",)}


def task_of(
    name: str, metrics: Sequence[str] = (), own: Callable[[str], Any] | None = None, output: Output = None
) -> Task:
    """The task of that name with the metrics of those names; ``own`` finds what "module:callable" names.

    A metric of one's own is a ``Metric``, or a function of logits (n, classes) and targets (n,) that returns
    (sum, number), of which more is better unless it has an attribute ``lower_is_better``.
    """
    if name not in DEFAULTS:
        raise RecipeError(f'data.task: "{name}" is not known; known are {", ".join(DEFAULTS)}')
    return Task(name, {_short(m): _metric(m, own) for m in metrics or DEFAULTS[name]}, name != "classification", output)


def _metric(name: str, own: Callable[[str], Any] | None) -> Metric:
    if name in METRICS:
        return METRICS[name]
    if ":" not in name or own is None:
        raise RecipeError(f'data.metrics: "{name}" is not known; known are {", ".join(METRICS)} and "module:callable"')
    found = own(name)
    if isinstance(found, Metric):
        return found

    def sums(logits: Tensor, targets: Tensor) -> Tensor:
        made = found(logits, targets)
        try:
            total, number = map(float, made)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(
                f"data.metrics: {name} returned {type(made).__name__}; expected (sum, number) ({first_line(error)})"
            ) from error
        return torch.tensor([total, number], dtype=torch.float64)

    return Metric(sums, lower_is_better=bool(getattr(found, "lower_is_better", False)))


def _short(name: str) -> str:
    return name.rpartition(":")[2]
