"""What a model is judged by: figures over many batches, each of which knows whether more of it is better.

Classes are given as logits (n, classes) and targets (n,). Labels that may hold together are logits and targets of
(n, labels), the targets 1, 0, or -100 where nobody knows. Numbers are predictions and targets of (n, numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sslprune.errors import RecipeError
from sslprune.values.own_code import own_code

IGNORED = -100  # the target that counts for nothing
PERCENT = frozenset({"accuracy", "f1", "f1-micro", "exact", "map", "miou"})  # metrics in percent: they differ by points


class Meter(Protocol):
    """One figure while it is measured."""

    def update(self, given: Any, targets: Any) -> None: ...
    def compute(self) -> float: ...


class Measure(Protocol):
    """A figure over many batches.

    ``raw``: it is given the model's outputs and the targets as they are. ``probabilities``: in place of logits.
    """

    @property
    def lower_is_better(self) -> bool: ...
    @property
    def raw(self) -> bool: ...
    @property
    def probabilities(self) -> bool: ...
    def begin(self) -> Meter: ...


@dataclass(frozen=True)
class Metric:
    """A figure over many batches: ``sums`` of each batch are joined, and ``finish`` makes the figure of them.

    ``sums(given, targets)`` gives a tensor of one shape for all batches, which are added up; where it is ``whole`` they
    are put one after the other. ``raw``: it is given outputs and targets as they are.
    """

    sums: Callable[[Any, Any], Tensor]
    finish: Callable[[Tensor], float] = lambda sums: float(sums[0] / sums[1])  # the mean, of (sum, number)
    lower_is_better: bool = False
    raw: bool = False
    whole: bool = False  # no sum over batches says it: what each gives is kept until the end
    probabilities: ClassVar[bool] = False

    def __call__(self, given: Any, targets: Any) -> float:
        """The figure of one batch alone."""
        return self.finish(self.sums(given, targets).double())

    def begin(self) -> Meter:
        return Sums(self)

    def joined(self, parts: Sequence[Sequence[Tensor]]) -> Meter:
        """A meter of what several have seen, who took the batches in turns: their ``parts``."""
        made = Sums(self)
        order = [part for row in zip_longest(*parts) for part in row if part is not None]
        made.parts = order if self.whole else [torch.stack(order).sum(0)]
        return made


class Sums:
    """The sums of a `Metric` so far."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.parts = metric, list[Tensor]()

    def update(self, given: Any, targets: Any) -> None:
        part = self.metric.sums(given, targets).double()
        if self.parts and not self.metric.whole:
            self.parts = [self.parts[0] + part]
        else:
            self.parts.append(part)

    def compute(self) -> float:
        return self.metric.finish(torch.cat(self.parts) if self.metric.whole else self.parts[0])


@dataclass(frozen=True)
class Foreign:
    """A metric object with ``update``, ``compute`` and ``reset``, as those of torchmetrics are; it is not changed."""

    metric: Any
    what: str  # an error of it begins with
    lower_is_better: bool
    raw: ClassVar[bool] = False
    probabilities: ClassVar[bool] = True

    def begin(self) -> Meter:
        made = self.metric.clone() if hasattr(self.metric, "clone") else self.metric
        made.reset()
        return _ForeignMeter(made, self.what)


class _ForeignMeter:
    def __init__(self, metric: Any, what: str) -> None:
        self.metric, self.what = metric, what

    def update(self, given: Any, targets: Any) -> None:
        with own_code(self.what):
            if isinstance(given, Tensor) and hasattr(self.metric, "to"):
                self.metric = self.metric.to(given.device)
            self.metric.update(given, targets)

    def compute(self) -> float:
        with own_code(self.what):
            found = self.metric.compute()
        if isinstance(found, int | float) or (isinstance(found, Tensor) and found.numel() == 1):
            return float(found)
        came = f"{tuple(found.shape)} numbers" if isinstance(found, Tensor) else type(found).__name__
        raise RecipeError(f"{self.what}: it computes {came}; expected one number, as an average is")


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


def _miou(counts: Tensor) -> float:
    """Intersection over union in percent, the mean over the classes that occur (Everingham et al. 2010, VOC)."""
    hits, union = counts.diagonal(), counts.sum(1) + counts.sum(0) - counts.diagonal()
    return float(100.0 * (hits[union > 0] / union[union > 0]).mean()) if (union > 0).any() else math.nan


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    """(labels, 4): right, wrongly said, missed, and rightly not said, of a label that holds at a logit above 0."""
    known, holds, said = targets != IGNORED, targets == 1, logits > 0
    cases = (said & holds, said & ~holds, ~said & holds, ~said & ~holds)
    return torch.stack([(case & known).sum(0) for case in cases], dim=1)


def _macro_f1(counts: Tensor) -> float:
    """F1 in percent, the mean over the labels that occur or are said."""
    right, wrong, missed = counts[:, 0], counts[:, 1], counts[:, 2]
    occurs = (right + wrong + missed) > 0
    scores = 200.0 * right / (2 * right + wrong + missed).clamp(min=1)
    return float(scores[occurs].mean()) if occurs.any() else math.nan


def _exact(logits: Tensor, targets: Tensor) -> Tensor:
    right = ((logits > 0) == (targets == 1)) | (targets == IGNORED)
    return torch.stack([100.0 * right.all(1).sum(), targets.new_tensor(len(targets))])


def _binary(logits: Tensor, targets: Tensor) -> Tensor:
    known = targets != IGNORED
    loss = F.binary_cross_entropy_with_logits(logits[known].float(), targets[known].float(), reduction="sum")
    return torch.stack([loss, known.sum()])


def _mean_precision(scored: Tensor) -> float:
    """Average precision in percent, the mean over the labels that occur; ``scored`` is (n, 2, labels).

    AP = Σ (R_k - R_(k-1)) P_k over the thresholds k, equal scores being one threshold, not interpolated.
    """
    found = []
    for scores, targets in scored.permute(2, 1, 0):
        scores, holds = scores[targets != IGNORED], targets[targets != IGNORED] == 1
        if not holds.any():
            continue
        scores, order = scores.sort(descending=True, stable=True)
        hits = holds[order].cumsum(0).double()
        last = torch.cat([scores[1:] != scores[:-1], scores.new_ones(1, dtype=torch.bool)])  # of each threshold
        precision = (hits / torch.arange(1, len(hits) + 1, device=hits.device))[last]
        recall = hits[last] / hits[-1]
        found.append(float((recall.diff(prepend=recall.new_zeros(1)) * precision).sum()))
    return 100.0 * sum(found) / len(found) if found else math.nan


def _apart(power: int) -> Callable[[Tensor, Tensor], Tensor]:
    def sums(given: Tensor, targets: Tensor) -> Tensor:
        apart = (given.double() - targets.double()).abs() ** power
        return torch.stack([apart.sum(), apart.new_tensor(apart.numel())])

    return sums


def _spread(given: Tensor, targets: Tensor) -> Tensor:
    """(numbers, 4): how many, Σ y, Σ y², Σ (y - ŷ)²."""
    y, off = targets.double(), targets.double() - given.double()
    return torch.stack([torch.full_like(y[0], len(y)), y.sum(0), (y**2).sum(0), (off**2).sum(0)], dim=1)


def _r2(sums: Tensor) -> float:
    """1 - Σ (y - ŷ)² / Σ (y - ȳ)², the mean over the numbers that a target has; of one that is constant, none."""
    count, total, squares, off = sums.unbind(1)
    spread = squares - total**2 / count
    varies = spread > 1e-12 * squares
    return float((1 - off[varies] / spread[varies]).mean()) if varies.any() else math.nan


CLASSES: Mapping[str, Metric] = {
    "accuracy": Metric(_correct),  # percent
    "f1": Metric(_confusion, _f1),  # percent
    "matthews": Metric(_confusion, _matthews),  # x 100
    "miou": Metric(_confusion, _miou),  # percent
    "loss": Metric(_cross_entropy, lower_is_better=True),  # nats per target
    "perplexity": Metric(_cross_entropy, lambda s: float((s[0] / s[1]).exp()), lower_is_better=True),
}
LABELS: Mapping[str, Metric] = {
    "map": Metric(lambda logits, targets: torch.stack([logits, targets.to(logits)], 1), _mean_precision, whole=True),
    "f1": Metric(_hits, _macro_f1),  # percent
    "f1-micro": Metric(_hits, lambda counts: _macro_f1(counts.sum(0, keepdim=True))),  # percent
    "accuracy": Metric(_hits, lambda c: float(100.0 * (c[:, 0] + c[:, 3]).sum() / c.sum())),  # percent of the labels
    "exact": Metric(_exact),  # percent of the samples, all labels right
    "loss": Metric(_binary, lower_is_better=True),  # nats per label
}
NUMBERS: Mapping[str, Metric] = {
    "mae": Metric(_apart(1), lower_is_better=True),  # in the targets' unit
    "rmse": Metric(_apart(2), lambda s: float((s[0] / s[1]).sqrt()), lower_is_better=True),  # likewise
    "r2": Metric(_spread, _r2),  # 1 at best
    "mse": Metric(_apart(2), lower_is_better=True),
}


def figure(value: float) -> str:
    """A metric for people: two decimals, or four digits of a number below 1."""
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4g}"


def signed(value: float) -> str:
    """How much a metric has changed, with its sign."""
    return f"{value:+.2f}" if abs(value) >= 0.1 or f"{value:.4f}" in ("0.0000", "-0.0000") else f"{value:+.4f}"
