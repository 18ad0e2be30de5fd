"""A person's own data: a factory that returns loaders, pictures in memory, or a whole Data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sslprune.data.batches import Batch, Data, task_for
from sslprune.data.images import Images
from sslprune.data.kept import KeptClasses
from sslprune.data.numbered import NumberedSamples
from sslprune.data.pictures import picture_data
from sslprune.data.samples import Encoder
from sslprune.errors import DataError
from sslprune.models.build import call_factory, find_callable
from sslprune.recipe import OwnDataSection, Recipe
from sslprune.values.inputs import Inputs, each, tensors_in
from sslprune.values.own_code import own_code
from sslprune.values.tasks import Task
from sslprune.values.voice import SILENT, Voice

WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)
OF_PIXELS = ("mean", "std", "augment", "eval_batch_size", "hold_out")
OF_LOADERS = ("max_length", "label", "steps_per_epoch", "workers")
LABELS = ("labels", "label", "targets", "target", "label_ids")
LOADER = "data.factory: its loader failed"
ENCODER = "data.factory: its encoder failed"
END = object()  # of a pass: a batch of None is a mistake


class LoaderBatches:
    """A person's own loader, as batches of (inputs, targets).

    ``steps``: batches that are called an epoch, in place of all that a pass holds. A loader without a length is a
    stream then: it goes on from epoch to epoch, and begins again at its end. A resumed run reads what it had read.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device,
        train_seed: int | None,
        read: BatchReader | None = None,
        steps: int | None = None,
    ):
        if not isinstance(loader, Iterable):
            raise DataError(f"data.factory: {type(loader).__name__} is no loader; expected batches to iterate over")
        if isinstance(loader, Iterator):
            raise DataError(
                f"data.factory: a {type(loader).__name__} can be read once; return what can be iterated over anew, as "
                "a DataLoader is"
            )
        if steps is None and train_seed is not None and not _has_length(loader):
            raise DataError(
                f"data.factory: {type(loader).__name__} has no length; say how many batches are an epoch: "
                "data.steps_per_epoch = 500"
            )
        self.loader, self.device, self.seed, self.steps = loader, device, train_seed, steps
        self.read = read or BatchReader()
        self._counted: int | None = None
        self._going: tuple[int, Iterator[Batch]] | None = None  # the epoch that comes next, of a stream

    def __len__(self) -> int:
        if self.steps is not None:
            return self.steps
        if not _has_length(self.loader):
            if self._counted is None:
                self._counted = sum(1 for _ in self._pass(0))
            return self._counted
        with own_code(LOADER):
            return len(cast(Sized, self.loader))

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass, with torch's generator seeded by (seed, epoch), which is what a shuffling loader draws from."""
        if self.steps is None:
            return self._pass(epoch)
        return self._stretch(epoch, self.steps)

    def _stretch(self, epoch: int, steps: int) -> Iterator[Batch]:
        """The batches of one epoch of ``steps``, out of passes that go on from epoch to epoch."""
        going, batches = self._going or (None, iter(()))
        if going != epoch or not epoch:
            batches = self._endless()
            for _ in islice(batches, epoch * steps):
                pass
        self._going = (epoch + 1, batches)
        yield from islice(batches, steps)

    def _endless(self) -> Iterator[Batch]:
        for number in count():
            empty = True
            for batch in self._pass(number):
                empty = False
                yield batch
            if empty:
                raise DataError("data.factory: the training loader gives no batch")

    def _pass(self, epoch: int) -> Iterator[Batch]:
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.manual_seed(self.seed * 1_000_003 + epoch)
            with own_code(LOADER):
                if hasattr(self.loader, "set_epoch"):
                    self.loader.set_epoch(epoch)
                batches = iter(self.loader)
            drawn = torch.get_rng_state()
        given = 0
        while True:
            # the loader's draws do not disturb the model's own (dropout), nor the other way round
            outer = torch.get_rng_state()
            torch.set_rng_state(drawn)
            try:
                with own_code(LOADER):
                    item = next(batches, END)
            finally:
                drawn = torch.get_rng_state()
                torch.set_rng_state(outer)
            if item is END:
                self._check_end(given)
                return
            given += 1
            yield self.read(item, self.device)

    def _check_end(self, given: int) -> None:
        """Raise DataError where a pass over numbered samples ends early: Python takes a StopIteration for the end."""
        loader = self.loader
        if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset) and given < len(loader):
            raise DataError(
                f"data.factory: the loader ends after {given} of {len(loader)} batches; a StopIteration in the "
                "dataset's __getitem__ reads as the end: raise another error there, or give it the length that it has"
            )


def _has_length(loader: Any) -> bool:
    """Whether ``len`` of it is known: a DataLoader of a stream has the method, and not the length."""
    if not isinstance(loader, Sized):
        return False
    try:
        len(loader)
    except (TypeError, NotImplementedError):
        return False
    return True


class OwnBatches:
    """The train, test or valid of a person's own ``Data``: what its passes raise is told by the line that raised it."""

    def __init__(self, source: Any, name: str, device: torch.device, read: BatchReader) -> None:
        missing = next((call for call in ("__len__", "__iter__", "epoch") if not hasattr(source, call)), None)
        if missing is not None:
            raise DataError(
                f"data.factory: {name} of its Data is a {type(source).__name__}, which has no {missing}; expected a "
                "Source, with epoch(number), or return (train, test) loaders"
            )
        self.read = read
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
            yield self.read(item, self.device)


@dataclass(frozen=True)
class BatchReader:
    """What a batch of a person's own holds. ``label``: the key of the targets in a dict; ``taught``: none are needed.

    A tuple is (inputs..., targets), of any length; a dict is the inputs by name, with the targets under one more. The
    targets are tensors in whatever structure. Where the dense model's outputs are the targets, those of a batch are not
    read, and it may lack them.
    """

    label: str | None = None
    taught: bool = False

    def __call__(self, item: Any, device: torch.device) -> Batch:
        """The batch on ``device``; raises DataError for what is none."""
        given, targets = self._parted(item)
        if isinstance(given, PackedSequence):
            raise DataError("data.factory: inputs are a PackedSequence; expected tensors: see pad_packed_sequence")
        inputs: Inputs = dict(given) if isinstance(given, Mapping) else (given,)
        if isinstance(given, tuple | list):
            inputs = tuple(given)
        for part in inputs.values() if isinstance(inputs, dict) else inputs:
            if not isinstance(part, Tensor):
                raise DataError(f"data.factory: inputs of type {type(part).__name__}; expected tensors")
        if self.taught:
            targets = None
        elif not tensors_in(targets):
            raise DataError(f"data.factory: targets of type {type(targets).__name__}; expected tensors")
        moved = pytree.tree_map_only(Tensor, lambda leaf: _wide(leaf).to(device), targets)
        return each(inputs, lambda value: value.to(device)), moved

    def _parted(self, item: Any) -> tuple[Any, Any]:
        """The inputs and the targets of a batch."""
        if self.taught and isinstance(item, Tensor):
            return item, None
        if isinstance(item, Mapping):
            known = [self.label] if self.label is not None else LABELS
            key = next((name for name in known if name in item), None)
            if key is None and not self.taught:
                raise DataError(
                    f"data.factory: a batch is a dict of {', '.join(map(str, item))}; expected its targets under "
                    f'"{known[0]}", or say their key: data.label'
                )
            return {name: value for name, value in item.items() if name != key}, item[key] if key else None
        if not isinstance(item, tuple | list):
            raise DataError(f"data.factory: a batch is a {type(item).__name__}; expected (inputs, targets)")
        if len(item) < 2 and not (self.taught and item):
            raise DataError(
                f"data.factory: a batch has {len(item)} parts; expected (inputs, targets), with several inputs before "
                "the targets, or as a dict"
            )
        if len(item) == 1:
            return item[0], None
        return item[0] if len(item) == 2 else tuple(item[:-1]), item[-1]


def _wide(targets: Tensor) -> Tensor:
    return targets.long() if targets.dtype in WHOLE else targets


class OwnEncoder(Encoder):
    """What a person's own ``Data`` reads samples with, though it be by a method of its own."""

    def __init__(self, data: Data) -> None:
        self.data, self.continues, self.classes = data, data.encoder.continues, data.encoder.classes

    def task(self, named: Task) -> Task:
        return self.data.task

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
    if section.keep_classes and not (isinstance(made, tuple | list) and all(isinstance(p, Images) for p in made)):
        raise DataError(
            f"data.keep_classes: {section.factory} returns {type(made).__name__} whose classes are its own affair; "
            "return (train, test) of sslprune.data.Images, or leave it out"
        )
    if isinstance(made, Data):
        _refuse(section, (*OF_PIXELS, *OF_LOADERS, "task", "metrics", "void"), "a Data, which has its own")
        return _guarded(made, section, device)
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise DataError(f"data.factory: {section.factory} returned {type(made).__name__}; expected (train, test)")
    first, second = made
    if isinstance(first, Images) and isinstance(second, Images):
        _refuse(section, OF_LOADERS, "Images, which have one size")
        kept = None
        if section.keep_classes:
            kept = KeptClasses.of(section.keep_classes, first.names, first.num_classes, first.source)
        return picture_data(recipe, section, lambda: first, lambda: second, task, device, kept=kept)
    if section.hold_out:
        raise DataError(
            f"data.hold_out: {section.factory} returns loaders; hold samples out in it, in a Data with valid"
        )
    sets = [isinstance(part, Dataset) for part in (first, second)]
    refused = ("mean", "std", "augment", *(() if any(sets) else ("eval_batch_size", "workers")))
    _refuse(section, refused, "datasets, which have their own" if any(sets) else "loaders, which have their own")
    reader = BatchReader(section.label, task.taught)
    train = LoaderBatches(_loader(first, section, True), device, recipe.run.seed, reader, section.steps_per_epoch)
    test = LoaderBatches(_loader(second, section, False), device, None, reader)
    return Data(train, test, task, section.max_length, encoder=NumberedSamples(test))


def _loader(part: Any, section: OwnDataSection, training: bool) -> Any:
    """A loader of a dataset, in the order that a seed decides; anything else is a loader by itself."""
    if not isinstance(part, Dataset):
        return part
    stream = isinstance(part, IterableDataset)
    if not stream and not len(cast(Sized, part)):
        raise DataError(f"data.factory: {section.factory} returns a dataset that is empty; expected samples")
    return DataLoader(
        part,
        batch_size=section.batch_size if training else section.eval_batch_size,
        shuffle=training and not stream,
        drop_last=training and not stream and len(cast(Sized, part)) >= section.batch_size,
        num_workers=section.workers,
    )


def _guarded(made: Data, section: OwnDataSection, device: torch.device) -> Data:
    """A person's own Data, whose passes are theirs; the recipe may name the output that it is about."""
    task = made.task if section.output is None else replace(made.task, output=section.output)
    reader = BatchReader(taught=task.taught)
    train, test = (OwnBatches(getattr(made, name), name, device, reader) for name in ("train", "test"))
    valid = OwnBatches(made.valid, "valid", device, reader) if made.valid is not None else None
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
