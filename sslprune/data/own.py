"""A person's own data: a factory that returns loaders, pictures in memory, or a whole Data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from sslprune.data.batches import Batch, Data, task_for
from sslprune.data.images import Images
from sslprune.data.pictures import picture_data
from sslprune.data.samples import Encoder
from sslprune.errors import DataError
from sslprune.models.build import call_factory, find_callable
from sslprune.recipe import OwnDataSection, Recipe
from sslprune.values.inputs import Inputs, each
from sslprune.values.own_code import own_code
from sslprune.values.tasks import Task
from sslprune.values.voice import SILENT, Voice

WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)
OF_PIXELS = ("mean", "std", "augment", "eval_batch_size", "hold_out")
LOADER = "data.factory: its loader failed"
ENCODER = "data.factory: its encoder failed"
END = object()  # of a pass: a batch of None is a mistake


class LoaderBatches:
    """A person's own loader, seen as batches of (inputs, targets): inputs a tensor, a tuple or a dict of tensors."""

    def __init__(self, loader: Iterable[Any], device: torch.device, train_seed: int | None):
        if not isinstance(loader, Sized):
            raise DataError(f"data.factory: {type(loader).__name__} has no length; return loaders with __len__")
        self.loader, self.device, self.seed = loader, device, train_seed

    def __len__(self) -> int:
        with own_code(LOADER):
            return len(cast(Sized, self.loader))

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass, with torch's generator seeded by (seed, epoch), which is what a shuffling loader draws from."""
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.manual_seed(self.seed * 1_000_003 + epoch)
            with own_code(LOADER):
                batches = iter(self.loader)
            drawn = torch.get_rng_state()
        while True:
            # the loader's draws do not disturb the model's own (dropout), nor the other way round
            outer = torch.get_rng_state()
            torch.set_rng_state(drawn)
            with own_code(LOADER):
                item = next(batches, END)
            drawn = torch.get_rng_state()
            torch.set_rng_state(outer)
            if item is END:
                return
            yield batch_of(item, self.device)


class OwnBatches:
    """The train, test or valid of a person's own ``Data``: what its passes raise is told by the line that raised it."""

    def __init__(self, source: Any, name: str, device: torch.device) -> None:
        missing = next((call for call in ("__len__", "__iter__", "epoch") if not hasattr(source, call)), None)
        if missing is not None:
            raise DataError(
                f"data.factory: {name} of its Data is a {type(source).__name__}, which has no {missing}; expected a "
                "Source, with epoch(number), or return (train, test) loaders"
            )
        self.source, self.device, self.what = source, device, f"data.factory: {name} of its Data failed"

    def __len__(self) -> int:
        with own_code(self.what):
            return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(lambda: self.source)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass, as the source itself decides it by its number."""
        return self._batches(lambda: self.source.epoch(epoch))

    @property
    def example(self) -> Inputs | None:
        """What the source gives as one; None where it gives none."""
        with own_code(self.what):
            return getattr(self.source, "example", None)

    def _batches(self, begin: Callable[[], Iterable[Any]]) -> Iterator[Batch]:
        with own_code(self.what):
            batches = iter(begin())
        while True:
            with own_code(self.what):
                item = next(batches, END)
            if item is END:
                return
            yield batch_of(item, self.device)


def batch_of(item: Any, device: torch.device) -> Batch:
    """A batch of a person's own, on ``device``; raises DataError for what is no (inputs, targets) of tensors."""
    if not isinstance(item, tuple | list):
        raise DataError(f"data.factory: a batch is a {type(item).__name__}; expected (inputs, targets)")
    if len(item) != 2:
        raise DataError(
            f"data.factory: a batch has {len(item)} parts; expected (inputs, targets), with several inputs as a "
            "tuple or a dict of their own: ((a, b), targets)"
        )
    given, targets = item
    if isinstance(given, PackedSequence):
        raise DataError("data.factory: inputs are a PackedSequence; expected tensors: see pad_packed_sequence")
    inputs: Inputs = dict(given) if isinstance(given, Mapping) else (given,)
    if isinstance(given, tuple | list):
        inputs = tuple(given)
    parts = list(inputs.values() if isinstance(inputs, dict) else inputs)
    for what, value in [*(("inputs", part) for part in parts), ("targets", targets)]:
        if not isinstance(value, Tensor):
            raise DataError(f"data.factory: {what} of type {type(value).__name__}; expected tensors")
    targets = targets.long() if targets.dtype in WHOLE else targets
    return each(inputs, lambda value: value.to(device)), targets.to(device)


class OwnEncoder(Encoder):
    """What a person's own ``Data`` reads samples with, though it be by a method of its own."""

    def __init__(self, data: Data) -> None:
        self.data, self.continues = data, data.encoder.continues

    def samples(self, given: str) -> list[str]:
        with own_code(ENCODER):
            return self.data.encoder.samples(given)

    def encode(self, sample: str) -> Inputs:
        with own_code(ENCODER):
            return self.data.encode(sample)

    def told(self, sample: str, logits: np.ndarray) -> dict[str, float]:
        with own_code(ENCODER):
            return self.data.encoder.told(sample, logits)


def read(recipe: Recipe, task: Task, device: torch.device, show: Voice) -> Data:
    """What the factory returns, as data. Raises DataError for anything else, and for fields that it does not read."""
    section = recipe.data
    assert isinstance(section, OwnDataSection)
    made = call_factory(find_callable(section.factory, "data.factory"), "data", section.factory, section.arguments)
    if isinstance(made, Data):
        _refuse(section, (*OF_PIXELS, "max_length", "task", "metrics"), "a Data, which has its own")
        return _guarded(made, section, device)
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise DataError(f"data.factory: {section.factory} returned {type(made).__name__}; expected (train, test)")
    first, second = made
    if isinstance(first, Images) and isinstance(second, Images):
        _refuse(section, ("max_length",), "Images, which have one size")
        return picture_data(recipe, section, lambda: first, lambda: second, task, device)
    if section.hold_out:
        raise DataError(
            f"data.hold_out: {section.factory} returns loaders; hold samples out in it, in a Data with valid"
        )
    _refuse(section, OF_PIXELS, "loaders, which have their own")
    return Data(
        LoaderBatches(first, device, recipe.run.seed), LoaderBatches(second, device, None), task, section.max_length
    )


def _guarded(made: Data, section: OwnDataSection, device: torch.device) -> Data:
    """A person's own Data, whose passes are theirs; the recipe may name the output that it is about."""
    task = made.task if section.output is None else replace(made.task, output=section.output)
    train, test = OwnBatches(made.train, "train", device), OwnBatches(made.test, "test", device)
    valid = OwnBatches(made.valid, "valid", device) if made.valid is not None else None
    return replace(made, task=task, train=train, test=test, valid=valid)


def reopen(recipe: Recipe, folder: Path, shape: tuple[int | str | None, ...]) -> Encoder:
    """What reads one more sample: the factory is asked again."""
    return OwnEncoder(read(recipe, task_for(recipe.data), torch.device("cpu"), SILENT))


def _refuse(section: OwnDataSection, names: Sequence[str], returned: str) -> None:
    """Raise DataError for a field among ``names`` that was given, where the factory ``returned`` what reads none."""
    fields = type(section).model_fields
    for name in names:
        if getattr(section, name) != fields[name].get_default():
            raise DataError(f"data.{name}: {section.factory} returns {returned}; leave it out")
