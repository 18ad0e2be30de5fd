"""What a model is trained for and judged by: its loss, its metrics, and what its outputs and targets must look like.

Every task here picks one class out of many, per sample or per place of a sample; what differs is where the logits lie:

classification       logits (batch, classes) or (batch, classes, *places), targets (batch,) or (batch, *places)
segmentation         logits (batch, classes, height, width), targets (batch, height, width)
tagging              logits (batch, steps, classes), targets (batch, steps)
language-modelling   logits (batch, steps, vocabulary), targets (batch, steps): the token that belongs at each step

Targets of -100 are left out of loss and metrics, and so are those of ``void``. Targets may also be shares of the
classes, of the logits' shape, as mixup makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslprune.errors import DataError
from sslprune.values.inputs import num_rows, tensors_in
from sslprune.values.metrics import CLASSES, IGNORED, LABELS, NUMBERS, Measure, Meter, Metric, Sums
from sslprune.values.outputs import Output, logits_of
from sslprune.values.team import Team

MODEL = "model"  # train.loss: what the model returns, given its targets
VOID = 255  # what stands for no class in pictures of classes (PASCAL VOC, Cityscapes)
LOWER_IS_BETTER = frozenset(
    name for table in (CLASSES, LABELS, NUMBERS) for name, metric in table.items() if metric.lower_is_better
)
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Answer:
    """What a model says of one sample, by name: numbers, or parts of 1. ``mask``: (height, width) of classes."""

    values: dict[str, float]
    mask: Tensor | None = None
    shares: bool = False


@dataclass(frozen=True)
class Task:
    """A loss with its metrics. ``classes_last``: logits are (..., classes), otherwise (batch, classes, ...).

    ``output``: which of a model's outputs holds the logits, by its name or its place. ``own_loss``: a person's, of
    outputs and targets, in place of the task's; ``criterion``: one of ``LOSSES``. ``resized``: logits of other places
    than the targets' are brought to them. A task of your own is a subclass that overrides what differs.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ("cross-entropy",)  # by name, as train.loss has them; the first is the usual
    METRICS: ClassVar[Mapping[str, Measure]] = CLASSES
    of_classes: ClassVar[bool] = True  # outputs are probabilities, in whatever form
    taught: ClassVar[bool] = False  # there are no labels: targets are what the dense model says

    name: str = "classification"
    metrics: Mapping[str, Measure] = field(default_factory=lambda: {"accuracy": CLASSES["accuracy"]})
    classes_last: bool = False
    output: Output = None
    own_loss: Loss | None = None
    criterion: str | None = None
    void: int = IGNORED
    resized: bool = False

    def logits(self, outputs: Any) -> Tensor:
        """The tensor of a model's ``outputs`` that this task is about."""
        return logits_of(outputs, self.output)

    def said(self, outputs: Any) -> list[Tensor]:
        """Every tensor of ``outputs`` that this task is about; raises DataError where that is not clear."""
        return [self.logits(outputs)]

    @property
    def lower_is_better(self) -> Collection[str]:
        """The metrics in which less is better."""
        return frozenset(name for name, metric in self.metrics.items() if metric.lower_is_better)

    @property
    def is_usual(self) -> bool:
        """Whether the loss is the task's own, so that targets have to suit it: not a person's function or subclass."""
        return self.own_loss is None and type(self).loss is Task.loss

    @property
    def gives_classes(self) -> bool:
        """Whether outputs are compared as probabilities; a subclass with its own loss says it by ``of_classes``."""
        return self.of_classes and (type(self).loss is Task.loss or "of_classes" in vars(type(self)))

    def loss(self, outputs: Any, targets: Any, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss of a batch, a number; of the task's own, cross-entropy per target, in nats."""
        if self.own_loss is not None:
            return self.own_loss(outputs, targets)
        return self.usual_loss(outputs, targets, label_smoothing)

    def usual_loss(self, outputs: Any, targets: Any, label_smoothing: float) -> Tensor:
        """The task's own loss."""
        logits, targets = self._fitted(self.logits(outputs), targets)
        if self.classes_last:
            shares = targets.is_floating_point()
            logits, targets = logits.flatten(0, -2), targets.flatten(0, -2) if shares else targets.flatten()
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing, ignore_index=IGNORED)

    def distillation(self, outputs: Any, taught: Any, targets: Any, temperature: float) -> Tensor:
        """t² KL(teacher ‖ student) of the softened classes, the mean over targets (Hinton et al. 2015, section 2).

        t² keeps the gradients in proportion to those of the loss.
        """
        student, teacher = (self._taught(given, targets) / temperature for given in (outputs, taught))
        soft = F.log_softmax(teacher, dim=1)
        return F.kl_div(F.log_softmax(student, dim=1), soft, log_target=True, reduction="batchmean") * temperature**2

    def measured(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """What metrics are given: logits (n, classes) and targets (n,) int64, one row for each target that counts."""
        logits, targets = self._fitted(self.logits(outputs), targets)
        at = logits.dim() - 1 if self.classes_last else 1
        if targets.is_floating_point():  # shares of the classes: the largest
            targets = targets.argmax(at)
        if logits.dim() > 2:
            logits, targets = logits.movedim(at, -1).flatten(0, -2), targets.flatten()
        counts = targets != IGNORED
        return (logits, targets) if bool(counts.all()) else (logits[counts], targets[counts])

    def counted(self, targets: Any) -> Tensor:
        """How many targets the mean loss of a batch is over: those that are not ignored."""
        if self.own_loss is not None or not isinstance(targets, Tensor) or targets.is_floating_point():
            return torch.tensor(_rows(targets))
        return ((targets != IGNORED) & (targets != self.void)).sum()

    def probabilities(self, given: Tensor) -> Tensor:
        """What ``measured`` gives as probabilities, for metrics of other libraries."""
        return given.softmax(1)

    def log_shares(self, outputs: Any) -> Tensor:
        """(n, classes): the logarithms of what the outputs give each class, for each sample or place."""
        logits = self.logits(outputs)
        at = -1 if self.classes_last or logits.dim() == 2 else 1
        return F.log_softmax(logits.movedim(at, -1).flatten(0, -2).float(), dim=-1)

    def check(self, outputs: Any, targets: Any) -> None:
        """Raise DataError, in one line, unless ``targets`` (int64) are classes of what ``outputs`` hold."""
        targets = one_tensor(targets, self.name)
        logits = floating(self.logits(outputs))
        if self.resized and logits.dim() == targets.dim() + 1 and len(logits) == len(targets):
            logits, _ = self._fitted(logits, targets)
        if logits.dim() < 2 or (self.classes_last and logits.dim() != 3):
            expected_shape = None
        else:
            expected_shape = logits.shape[:-1] if self.classes_last else (logits.shape[0], *logits.shape[2:])
        if targets.is_floating_point() and targets.shape == logits.shape:
            self._check_shares(targets)
            return
        if expected_shape is None or tuple(targets.shape) != tuple(expected_shape):
            expected = (
                "(batch, steps, classes) and (batch, steps)" if self.classes_last else "(batch, classes) and (batch,)"
            )
            if self.resized:
                expected = "(batch, classes, height, width) and (batch, height, width)"
            raise DataError(
                f"the model gives {tuple(logits.shape)} for targets {tuple(targets.shape)}; expected {expected}; "
                f'see data.task, which is "{self.name}"'
            )
        if targets.is_floating_point() or targets.is_complex():
            kind = str(targets.dtype).removeprefix("torch.")
            raise DataError(
                f"the targets are {kind}; expected int64, the number of a class each; for numbers there is "
                'data.task = "regression"'
            )
        counted = targets[(targets != IGNORED) & (targets != self.void)]
        if not counted.numel():
            return
        low, high = int(counted.min()), int(counted.max())
        classes = logits.shape[-1 if self.classes_last else 1]
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            void = f", or give {IGNORED} where {VOID} stands for no class" if wrong == VOID else ""
            if self.resized:
                void = f", or set data.void = {wrong} where that stands for no class"
            raise DataError(
                f"label {wrong} is out of range: the model has {classes} classes; see model.arguments{void}"
            )

    def answer(self, outputs: Any, names: Sequence[str]) -> Answer | None:
        """What the outputs for one sample (batch 1, floating tensors) say; None where it is a class."""
        if not self.resized:
            return None
        mask = self.logits(outputs)[0].argmax(0)
        counts = torch.bincount(mask.flatten())
        shares = {named(names, int(i)): float(counts[i]) / mask.numel() for i in counts.argsort(descending=True)}
        return Answer({name: share for name, share in shares.items() if share}, mask, shares=True)

    def scores(self) -> Scores:
        """What measures every metric over the batches of a pass."""
        return Scores(self)

    def _taught(self, outputs: Any, targets: Any) -> Tensor:
        """Logits (n, classes): of every sample, or of the places that count. A teacher needs no label of a sample."""
        logits = self.logits(outputs)
        return logits if logits.dim() == 2 else self.measured(outputs, one_tensor(targets, self.name))[0]

    def _fitted(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and targets of the same places: targets int64, -100 where none counts, or shares of the classes."""
        if targets.is_floating_point() and targets.shape == logits.shape:
            return logits, targets.to(logits.dtype)
        targets = targets.long()
        if self.void != IGNORED:
            targets = targets.masked_fill(targets == self.void, IGNORED)
        if self.resized and logits.shape[2:] != targets.shape[1:]:
            logits = F.interpolate(logits, targets.shape[1:], mode="bilinear", align_corners=False)
        return logits, targets

    def _check_shares(self, targets: Tensor) -> None:
        off = targets.float().sum(-1 if self.classes_last else 1) - 1
        if bool((targets < 0).any()) or bool((off.abs() > 1e-2).any()):
            raise DataError(
                f"the targets are shares of classes, {tuple(targets.shape)}, which do not sum to 1; several classes at "
                'once are data.task = "multi-label"'
            )


class Scores:
    """The metrics of a task while they are measured; ``add`` raises DataError for targets that the outputs lack."""

    def __init__(self, task: Task) -> None:
        self.task, self.meters = task, dict[str, Meter]()

    def add(self, outputs: Any, targets: Any) -> None:
        """One batch more."""
        metrics = self.task.metrics
        given: Any = None
        if not all(metric.raw for metric in metrics.values()):
            self.task.check(outputs, targets)
            given = self.task.measured(outputs, targets)
        self.meters = self.meters or {name: metric.begin() for name, metric in metrics.items()}
        for name, metric in metrics.items():
            said, true = (outputs, targets) if metric.raw else given
            self.meters[name].update(self.task.probabilities(said) if metric.probabilities else said, true)

    @property
    def shareable(self) -> bool:
        """Whether processes may each measure some of the batches."""
        return all(isinstance(metric, Metric) for metric in self.task.metrics.values())

    def share(self, team: Team) -> None:
        """Take in what the other processes of ``team`` measured, where each took the batches in turns."""
        here = {name: meter.parts for name, meter in self.meters.items() if isinstance(meter, Sums)}
        found = team.gather(here)
        for name, metric in self.task.metrics.items():
            if isinstance(metric, Metric) and any(found):
                self.meters[name] = metric.joined([there.get(name, []) for there in found])

    def figures(self) -> dict[str, float]:
        """Each metric over all the batches; raises DataError where there were none."""
        if not self.meters:
            raise DataError("the test data are empty; expected at least one batch")
        return {name: meter.compute() for name, meter in self.meters.items()}


def one_tensor(targets: Any, name: str) -> Tensor:
    """The targets of a task that has one tensor of them; raises DataError for others."""
    if isinstance(targets, Tensor):
        return targets
    raise DataError(
        f'the targets are a {type(targets).__name__}; data.task = "{name}" expects a tensor: give train.loss for '
        'others, and metrics = ["loss"]'
    )


def floating(given: Tensor) -> Tensor:
    """``given``; raises DataError for whole numbers."""
    if not given.is_floating_point():
        kind = str(given.dtype).removeprefix("torch.")
        raise DataError(f"the model gives {kind}; expected floating-point numbers, one for each class")
    return given


def named(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def loss_metric(loss: Loss) -> Metric:
    """A loss as a metric: the mean over samples, of outputs and targets as they are."""

    def sums(outputs: Any, targets: Any) -> Tensor:
        value = loss(outputs, targets).detach().double()
        rows = _rows(targets) or _rows(outputs) or 1
        return torch.stack([value * rows, value.new_tensor(rows)])

    return Metric(sums, lower_is_better=True, raw=True)


def _rows(value: Any) -> int:
    return num_rows(value) if any(leaf.dim() for leaf in tensors_in(value)) else 0
