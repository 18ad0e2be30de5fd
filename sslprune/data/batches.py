"""What a run learns from: batches in passes that the seed and the epoch alone decide."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sslprune.data.kept import KeptClasses, KeptTokens
from sslprune.data.samples import Encoder
from sslprune.errors import DataError
from sslprune.models.build import find_callable
from sslprune.recipe import DataSection
from sslprune.values.carry import carries, carrying, example_for
from sslprune.values.inputs import Inputs, arguments, call, counts_rows, each, length_of, num_rows, tensors_in
from sslprune.values.own_code import own_code, told
from sslprune.values.task_table import Named, task_of
from sslprune.values.tasks import Task

CLASSIFICATION = Task()
Batch = tuple[Inputs, Any]  # the model's arguments (a tuple, or a dict by name), the targets: a tensor for most tasks


class Source(Protocol):
    """Batches, in passes: each decided by the run's seed and its number."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def epoch(self, epoch: int) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Data:
    """What a run learns from and is judged by. ``test`` is used for reporting only, never for a choice.

    ``sequence``: dimension 1 of the inputs is a length that may differ from batch to batch, at most this many steps;
    None: it is not. ``train.epoch(number)`` and ``test`` yield batches, and both know how many (``len``).
    """

    train: Source
    test: Source
    task: Task = CLASSIFICATION
    sequence: int | None = None
    valid: Source | None = None  # what epochs are judged by, in place of the test data
    num_ids: int | None = None  # of the tokens: 0 to one less
    encoder: Encoder = field(default_factory=Encoder)  # of one more sample
    kept: KeptClasses | None = None  # the classes that are left, where the recipe keeps some alone
    tokens: KeptTokens | None = None  # and the tokens

    def check(self, model: nn.Module) -> None:
        """Raise DataError unless ``model`` (on the CPU) knows every token of the data."""
        check_overlap(self.test, model)
        if self.num_ids is None:
            return
        args, kwargs = arguments(each(self.example, Tensor.cpu))
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                known = self.task.logits(carrying(model)(*args, **kwargs)).shape[-1]
        except IndexError:
            known = 0
        except (RuntimeError, TypeError, ValueError) as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in tensors_in(self.example))
            raise DataError(f"the model cannot take the data, inputs of shape {shapes}: {told(error)}") from error
        finally:
            model.train(was_training)
        if known < self.num_ids:
            raise DataError(
                f"the data have {self.num_ids:,} words, and the model {f'{known:,}' if known else 'fewer'}; "
                f"set model.arguments.vocabulary = {self.num_ids}, or data.vocabulary to the model's own words"
            )

    def taught_by(self, dense: nn.Module) -> Data:
        """The data with what ``dense`` says as targets, where the task has no labels; as they are otherwise.

        ``dense`` is copied, and asked in evaluation, on the device of the batches.
        """
        if not self.task.taught:
            return self
        teacher = copy.deepcopy(dense).eval().requires_grad_(False)
        train, test = Taught(self.train, teacher), Taught(self.test, teacher)
        return replace(self, train=train, test=test, valid=self.valid and Taught(self.valid, teacher))

    def encode(self, sample: str) -> Inputs:
        """What the model is called with for one sample, batch 1; raises DataError for one that does not suit it."""
        return self.encoder.encode(sample)

    def save(self, folder: Path) -> None:
        """Write what is needed to read one more sample, as a tokenizer is, into ``folder``; nothing for pictures."""
        self.encoder.save(folder)

    def example_for(self, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
        """The example as what ``model`` is called with, its state included where it carries one."""
        return example_for(model, self.example, self.sequence)

    @cached_property
    def example(self) -> Inputs:
        """The model's arguments for two samples of the test data: what the model is traced with.

        The whole first batch where inputs count each other's rows, as the bonds of atoms do.
        """
        inputs = getattr(self.test, "example", None) or _two_rows(self.test)
        rows = num_rows(inputs)
        if self.sequence is not None and length_of(inputs) < 2:
            raise DataError("the test data begin with sequences of one step; expected at least two")
        if counts_rows(inputs):
            return each(inputs, Tensor.clone)
        return each(inputs, lambda value: value[:2].clone() if value.dim() and len(value) == rows else value.clone())


def _two_rows(source: Source) -> Inputs:
    """The first batch of at least two samples; the first two batches together where they hold one each."""
    lone: Inputs | None = None
    for inputs, _ in source:
        if num_rows(inputs) > 1:
            return inputs
        if lone is not None:
            return _together(lone, inputs)
        lone = inputs
    raise DataError(
        "the test data hold one sample; expected at least two" if lone is not None else "the test data are empty"
    )


def _together(one: Inputs, other: Inputs) -> Inputs:
    """Two batches of one sample as one of two."""
    pairs = list(zip(tensors_in(one), tensors_in(other), strict=False))
    if any(a.shape != b.shape for a, b in pairs):
        shapes = " and ".join(str(tuple(batch[0].shape)) for batch in (tensors_in(one), tensors_in(other)))
        raise DataError(
            f"the test data come one sample a batch, of shapes that differ ({shapes}); give two samples of one shape "
            "a batch"
        )
    joined = iter(torch.cat(pair) if pair[0].dim() else pair[0] for pair in pairs)
    return each(one, lambda value: next(joined))


def check_overlap(test: Any, model: nn.Module) -> None:
    """Raise DataError for windows of text that overlap, where ``model`` carries what it has read on."""
    if carries(model) and getattr(test, "overlap", False):
        raise DataError("data.stride: the model carries its state on, and would read words twice; leave it out")


def task_for(section: DataSection) -> Task:
    """What the data are for: the task that ``section`` names, with its metrics."""
    metrics = [m if isinstance(m, str) else Named(m.metric, m.arguments, m.lower_is_better) for m in section.metrics]
    task = find_callable(section.task, "data.task") if ":" in section.task else section.task
    if callable(task):
        with own_code(f"data.task: {section.task} failed"):
            task = task()
    return task_of(task, metrics, partial(find_callable, field="data.metrics"), section.output, section.void)


class Taught:
    """Batches of another source, whose targets are what ``teacher`` says of their inputs; its mode is left alone."""

    def __init__(self, source: Source, teacher: nn.Module) -> None:
        self.source, self.teacher = source, teacher

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        return self._taught(iter(self.source))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass of the source."""
        return self._taught(self.source.epoch(epoch))

    @property
    def example(self) -> Inputs | None:
        return getattr(self.source, "example", None)

    def _taught(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        teacher = carrying(self.teacher)  # over one pass
        for inputs, _ in batches:
            self.teacher.to(next((leaf.device for leaf in tensors_in(inputs)), None))
            with torch.no_grad():
                said = call(teacher, inputs)
            yield inputs, said


def hold_out(size: int, count: int, source: str) -> tuple[Tensor, Tensor]:
    """Which of ``size`` samples are trained on, and which ``count`` are held out: the same for every seed of a run."""
    if count >= size:
        raise DataError(f"data.hold_out: {count:,} of the {size:,} samples of {source}; leave some to train on")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return order[count:].sort().values, order[:count].sort().values
