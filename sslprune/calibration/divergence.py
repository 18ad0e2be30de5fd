"""How far two models' outputs are apart, and what a model's own outputs say of its weights; no labels are asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sslprune.calibration.lockstep import wide
from sslprune.capture.program import Program
from sslprune.errors import CalibrationError
from sslprune.values.tasks import Task


class Divergence(Protocol):
    """``leaves`` are the outputs' tensors, flat, in the order of the program's."""

    def drawn(self, leaves: Sequence[Any], generator: torch.Generator) -> Tensor:
        """-log p(y | outputs) for a y drawn from the outputs themselves, summed over the batch; its mean gradient is 0.

        The mean of its squared gradients is the Fisher information, the second derivative of the divergence where it
        is 0 (Martens 2020, section 9.2).
        """

    def between(self, dense: Sequence[Any], pruned: Sequence[Any]) -> float:
        """The mean divergence of two outputs of one batch."""


class OfClasses:
    """KL(dense ‖ pruned) of the classes, in nats for each sample or place; targets are drawn from the classes.

    ``carried``: whether the outputs end with the state that a model carries on.
    """

    def __init__(self, task: Task, spec: pytree.TreeSpec, carried: bool = False) -> None:
        self.task, self.spec, self.carried = task, spec, carried

    def _log(self, leaves: Sequence[Any]) -> Tensor:
        outputs = pytree.tree_unflatten(list(leaves), self.spec)
        return self.task.log_shares(outputs[0] if self.carried else outputs)

    def drawn(self, leaves: Sequence[Any], generator: torch.Generator) -> Tensor:
        log = self._log(leaves)
        if bool(log.isnan().any()):
            raise CalibrationError("the outputs of the samples are not finite; look at the weights and the inputs")
        targets = torch.multinomial(log.detach().exp().cpu(), 1, generator=generator).to(log.device)
        return -log.gather(1, targets).sum()

    def between(self, dense: Sequence[Any], pruned: Sequence[Any]) -> float:
        one, other = self._log(dense), self._log(pruned)
        # a class that is ruled out counts for nothing; rounding may take a sum that is nearly 0 below it
        apart = (one.exp() * (one - other)).where(one > -torch.inf, 0.0)
        return max(0.0, float(apart.sum() / len(one)))


class OfNumbers:
    """Mean squared error of all floating outputs, each in units of its variance; normal targets around them.

    ``state``: how many of the leaves, the last ones, are the state that a model carries on, and no outputs.
    """

    def __init__(self, state: int = 0) -> None:
        self.state = state

    def _floating(self, leaves: Sequence[Any]) -> list[Tensor]:
        outputs = leaves[: len(leaves) - self.state]
        found = [leaf for leaf in outputs if isinstance(leaf, Tensor)]
        found = [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in found]
        return [wide(leaf) for leaf in found if leaf.is_floating_point()]

    def drawn(self, leaves: Sequence[Any], generator: torch.Generator) -> Tensor:
        total = torch.zeros(())
        for leaf in self._floating(leaves):
            noise = torch.randn(leaf.shape, generator=generator).to(leaf.device)
            there = ~leaf.isinf()  # a mask's places have no gradient
            total = total.to(leaf.device) + (leaf * noise)[there].sum() / _square(leaf[there].detach()).sqrt()
        return total

    def between(self, dense: Sequence[Any], pruned: Sequence[Any]) -> float:
        total = 0.0
        for a, b in zip(self._floating(dense), self._floating(pruned), strict=True):
            there = ~(a.isinf() & (a == b))
            total += float((b - a)[there].double().square().mean() / _square(a[there])) if there.any() else 0.0
        return total


def divergences_of(program: Program, task: Task | None) -> list[Divergence]:
    """What ``task`` is about, where it is classes, and all outputs as numbers, which is there for any."""
    state = len(program.carried)
    numbers: Divergence = OfNumbers(state)
    classes = task is not None and task.gives_classes
    return [OfClasses(task, program.out_specs[0], state > 0), numbers] if task and classes else [numbers]


def _square(numbers: Tensor) -> Tensor:
    """The unit of a squared error: the variance, or where there is none the mean square; never 0."""
    if not numbers.numel():
        return numbers.new_ones(())
    numbers = numbers.double()
    spread, whole = numbers.var(correction=0), numbers.square().mean()
    return torch.where(spread > 1e-10 * whole, spread, whole).clamp(min=1e-24)
