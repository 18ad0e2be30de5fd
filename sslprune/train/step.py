"""One optimizer step: forward, loss with what a teacher says, backward, and whatever steers in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sslprune.recipe import Recipe
from sslprune.train.compiled import Compiler, told
from sslprune.train.hidden import Hidden
from sslprune.train.parts import Part
from sslprune.train.recall import Recall
from sslprune.train.replicas import Replicas
from sslprune.train.sparsity import Sparsity
from sslprune.train.teacher import mixed_loss
from sslprune.values.inputs import Inputs, call, each
from sslprune.values.outputs import loss_in
from sslprune.values.own_code import own_code
from sslprune.values.tasks import MODEL, Task


class Step:
    """Calls ``students`` (and ``tutors``, where one teaches) on a batch, and trains ``model`` by it.

    For each pass over a batch there is a list of either, with one for every part that a step takes its batch in, as
    each carries a state of its own, if any.

    ``laid_out`` lays an input out as the model's filters are; ``replicas`` says how processes share the batch.
    ``recall`` asks a tutor; ``compiler`` makes what is called as a student.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        device: torch.device,
        laid_out: Callable[[Tensor], Tensor],
        replicas: Replicas,
        recall: Recall,
    ) -> None:
        self.recipe, self.task, self.device, self.laid_out, self.replicas = recipe, task, device, laid_out, replicas
        self.recall, self.compiler = recall, Compiler(recipe.train.compile)
        section = recipe.distill
        self.hidden = Hidden(section) if section is not None and section.hidden else None
        self.checked = False  # the first batch's outputs and targets fit together

    def __call__(
        self,
        model: nn.Module,
        students: Sequence[Sequence[Callable[..., Any]]],
        tutors: Sequence[Sequence[Callable[..., Any]]] | None,
        optimizer: Optimizer,
        batch: tuple[Inputs, Any],
        lr: float,
        sparsity: Sparsity | None,
        observes: bool,
    ) -> Tensor:
        """The loss of this process's part of ``batch``, a number without gradients.

        ``sparsity`` steers, if it acts; whether it ``observes``: while groups still go.
        """
        section = self.recipe.train
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        parts = self.replicas.parts(batch)

        def backward(i: int) -> Tensor:
            return self._backward(model, students[i], tutors[i] if tutors is not None else None, parts)

        inputs = parts[0].inputs  # evidence that looks at batches sees as much as one backward pass does
        loss = sparsity.passes(backward, inputs) if sparsity is not None else backward(0)
        if section.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), section.clip_norm)
        if sparsity is not None and observes:
            sparsity.observe(loss, inputs)
        optimizer.step()
        if sparsity is not None:
            sparsity.step(lr)
        return loss.detach() / section.loss_factor

    def _backward(
        self,
        model: nn.Module,
        students: Sequence[Callable[..., Any]],
        tutors: Sequence[Callable[..., Any]] | None,
        parts: Sequence[Part],
    ) -> Tensor:
        """Gradients of all ``parts``, and their loss together, times the recipe's factor."""
        losses = []
        for i, part in enumerate(parts):
            tutor = tutors[i] if tutors is not None else None
            with self.replicas.held(part is parts[-1]):
                with self._precision(), self.replicas.statistics():
                    loss = self._taught(model, students[i], tutor, each(part.inputs, self.laid_out), part.targets)
                loss = part.weighted(loss * self.recipe.train.loss_factor)
                with told() if self.compiler.wanted else nullcontext():
                    loss.backward()
            losses.append(loss.detach())
        return sum(losses[1:], losses[0])

    def _taught(
        self,
        model: nn.Module,
        student: Callable[..., Any],
        tutor: Callable[..., Any] | None,
        inputs: Inputs,
        targets: Any,
    ) -> Tensor:
        """`_loss`, with what modules of ``model``, which ``student`` calls, and of the teacher make inside."""
        if self.hidden is None or tutor is None:
            return self._loss(student, tutor, inputs, targets)
        with self.hidden.heard(model) as mine, self.hidden.heard(tutor) as theirs:
            loss = self._loss(student, tutor, inputs, targets)
        return self.hidden.mixed(loss, mine, theirs, inputs)

    def _loss(
        self, student: Callable[..., Any], tutor: Callable[..., Any] | None, inputs: Inputs, targets: Any
    ) -> Tensor:
        own = self.recipe.train.loss == MODEL
        if own:
            with own_code('train.loss = "model": the model, given its targets, failed'):
                outputs = call(student, with_targets(inputs, targets))
        else:
            outputs = call(student, inputs)
        if not self.checked and not own and self.task.is_usual:
            # once over the data is enough, and on a GPU each look waits for the device
            self.task.check(outputs, targets)
        if own:
            loss = loss_in(outputs)
        elif self.task.own_loss is not None:
            with own_code(f"train.loss: {self.recipe.train.loss} failed"):
                loss = self.task.loss(outputs, targets)
        else:
            loss = self.task.loss(outputs, targets, self.recipe.train.label_smoothing)
        if tutor is None or self.recipe.distill is None:
            return loss
        return mixed_loss(loss, outputs, self.recall(tutor, inputs), targets, self.task, self.recipe.distill)

    def _precision(self) -> AbstractContextManager[Any]:
        amp = self.recipe.train.amp
        if (amp == "bf16" or (amp == "auto" and self.device.type == "cuda")) and multiplies_bfloat16(self.device):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` has products in bfloat16.

    Without them oneDNN converts to float32 and back, several times as slow as float32, and refuses recurrent layers.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def with_targets(inputs: Inputs, targets: Any) -> Any:
    """What a model that returns its own loss is called with: the targets by name, ``labels`` unless they have names.

    A model of positional inputs gets them as its last argument.
    """
    if not isinstance(inputs, Mapping):
        return (*inputs, targets)
    return {**inputs, **targets} if isinstance(targets, Mapping) else {**inputs, "labels": targets}
