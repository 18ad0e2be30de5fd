"""Batches: augmented, normalised, and in an order that the seed and the epoch alone decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslprune.data.images import Images, count_images, read_images
from sslprune.data.tables import TEXT_FILES
from sslprune.errors import DataError
from sslprune.models.build import device_of, find_callable
from sslprune.recipe import DataSection, Recipe
from sslprune.values.carry import carrying, example_for
from sslprune.values.inputs import Inputs, arguments, each, length_of, num_rows
from sslprune.values.tasks import Task, task_of

CLASSIFICATION = Task()
Batch = tuple[Inputs, Tensor]  # the model's arguments (a tuple, or a dict by name), the targets


class Batches:
    """Batches of images, as ``((pixels,), labels)`` on a device; each pass is decided by (seed, epoch).

    ``source`` gives the images on first use: reading and decoding wait until somebody asks.
    """

    def __init__(
        self, source: Callable[[], Images], section: DataSection, device: torch.device, train_seed: int | None
    ):
        self.source, self.device, self.seed = source, device, train_seed
        self.batch_size = section.eval_batch_size if train_seed is None else section.batch_size
        self.mean, self.std = section.mean, section.std
        self.flip = "flip" in section.augment and train_seed is not None
        crops = [int(step.partition(":")[2]) for step in section.augment if step.startswith("pad-crop")]
        self.border = crops[0] if crops and train_seed is not None else 0

    @cached_property
    def images(self) -> Images:
        return self.source()

    @cached_property
    def _pixels(self) -> Tensor:  # padded once, not in every batch
        return F.pad(self.images.pixels.to(self.device), (self.border,) * 4)

    @cached_property
    def _labels(self) -> Tensor:
        return self.images.labels.to(self.device)

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        """Factor and offset that take a pixel in 0..255 to its normalised value, shape (1, channels, 1, 1)."""
        channels = self.images.pixels.shape[1]
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise DataError(f"data.{key}: {len(values)} values for {self.images.source} of {channels} channels")
        mean, std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return 1 / (255 * std), -mean / std

    def __len__(self) -> int:
        size = len(self.images)
        return max(1, size // self.batch_size) if self.seed is not None else -(-size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass; training data are shuffled, and a last batch that is not full is left out."""
        if self.seed is None:
            for rows in torch.arange(len(self.images), device=self.device).split(self.batch_size):
                yield (self._normalised(self._pixels[rows]),), self._labels[rows]
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=generator)
        for rows in order.split(self.batch_size)[: len(self)]:
            yield (self._augmented(rows, generator),), self._labels[rows.to(self.device)]

    def _augmented(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Random crops and mirror images of the padded pictures ``rows``, all in one gather."""
        if not self.border and not self.flip:
            return self._normalised(self._pixels[rows.to(self.device)])
        channels, height, width = self.images.pixels.shape[1:]
        shifts = torch.randint(0, 2 * self.border + 1, (2, len(rows), 1), generator=generator)
        mirrored = torch.randint(0, 2 if self.flip else 1, (len(rows), 1), generator=generator).bool()
        down, right = torch.arange(height), torch.arange(width)
        ys = shifts[0] + down  # (batch, height)
        xs = shifts[1] + torch.where(mirrored, right.flip(0), right)  # (batch, width)
        index = (
            rows[:, None, None, None],
            torch.arange(channels)[None, :, None, None],
            ys[:, None, :, None],
            xs[:, None, None, :],
        )
        return self._normalised(self._pixels[tuple(part.to(self.device) for part in index)])

    def _normalised(self, pixels: Tensor) -> Tensor:
        factor, offset = self._affine
        return torch.addcmul(offset, pixels.float(), factor)


class LoaderBatches:
    """A person's own loader, seen as batches of (inputs, targets): inputs a tensor, a tuple or a dict of tensors."""

    def __init__(self, loader: Iterable[Any], device: torch.device, train_seed: int | None):
        if not isinstance(loader, Sized):
            raise DataError(f"data.factory: {type(loader).__name__} has no length; return loaders with __len__")
        self.loader, self.device, self.seed = loader, device, train_seed

    def __len__(self) -> int:
        return len(cast(Sized, self.loader))

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass, with torch's generator seeded by (seed, epoch), which is what a shuffling loader draws from."""
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.manual_seed(self.seed * 1_000_003 + epoch)
            batches = iter(self.loader)
            drawn = torch.get_rng_state()
        while True:
            # the loader's draws do not disturb the model's own (dropout), nor the other way round
            outer = torch.get_rng_state()
            torch.set_rng_state(drawn)
            item = next(batches, None)
            drawn = torch.get_rng_state()
            torch.set_rng_state(outer)
            if item is None:
                return
            yield self._moved(item)

    def _moved(self, item: Any) -> Batch:
        if not isinstance(item, Sequence) or len(item) != 2 or not isinstance(item[1], Tensor):
            raise DataError(f"data.factory: a batch is a {type(item).__name__}; expected (inputs, targets)")
        given = item[0]
        inputs: Inputs = dict(given) if isinstance(given, Mapping) else (given,)
        if isinstance(given, tuple | list):
            inputs = tuple(given)
        return each(inputs, lambda value: value.to(self.device)), item[1].to(self.device)


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

    def check(self, model: nn.Module) -> None:
        """Raise DataError unless ``model`` (on the CPU) knows every token of the data."""
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
        finally:
            model.train(was_training)
        if known < self.num_ids:
            raise DataError(
                f"the data have {self.num_ids:,} words, and the model {f'{known:,}' if known else 'fewer'}; "
                f"set model.arguments.vocabulary = {self.num_ids}, or data.vocabulary to the model's own words"
            )

    def example_for(self, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
        """The example as what ``model`` is called with, its state included where it carries one."""
        return example_for(model, self.example, self.sequence)

    def save(self, folder: Path) -> None:
        """Write what is needed to read one more sample, as a tokenizer is, into ``folder``; nothing for these data."""

    @cached_property
    def example(self) -> Inputs:
        """The model's arguments for two samples of the test data: what the model is traced with."""
        inputs = getattr(self.test, "example", None) or next(iter(self.test))[0]
        rows = num_rows(inputs)
        if rows < 2:
            raise DataError("the test data hold one sample; expected at least two")
        if self.sequence is not None and length_of(inputs) < 2:
            raise DataError("the test data begin with sequences of one step; expected at least two")
        return each(inputs, lambda value: value[:2].clone() if value.dim() and len(value) == rows else value.clone())


def build_data(recipe: Recipe, show: Any = None) -> Data:
    """The recipe's data. A factory returns a pair (train, test) of ``Images`` or of loaders, or a ``Data``.

    ``show`` is told of the reading of large files. Raises DataError for what is missing, empty or of another shape.
    """
    data = _build(recipe, show)
    longest = max(recipe.bench.lengths, default=0)
    if longest and data.sequence is None:
        raise DataError("bench.lengths: the data are no sequences of any length; leave it out, or see data.max_length")
    if data.sequence is not None and longest > data.sequence:
        raise DataError(f"bench.lengths: {longest} steps, the data have at most {data.sequence}; see data.max_length")
    return data


def _build(recipe: Recipe, show: Any) -> Data:
    section, device = recipe.data, device_of(recipe.run)
    task = task_of(section.task, section.metrics, lambda name: find_callable(name, "data.metrics"), section.output)
    if section.factory is None and section.task == "language-modelling":
        from sslprune.data.text import text_data  # which knows what a batch is from here

        return text_data(section, task, device)
    if section.factory is None and _holds_sentences(recipe):
        from sslprune.data.sentences import sentence_data

        return sentence_data(recipe, task, device, show)
    if section.factory is None:
        assert section.train is not None and section.test is not None
        train, test = _reader(section.train, show), _reader(section.test, show)
        valid = _reader(section.valid, show) if section.valid is not None else None
        return _image_data(recipe, train, test, valid, task)
    made = find_callable(section.factory, "data.factory")(**section.arguments)
    if isinstance(made, Data):
        return made if section.output is None else replace(made, task=replace(made.task, output=section.output))
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise DataError(f"data.factory: {section.factory} returned {type(made).__name__}; expected (train, test)")
    first, second = made
    if isinstance(first, Images) and isinstance(second, Images):
        return _image_data(recipe, lambda: first, lambda: second, None, task)
    if section.hold_out:
        raise DataError(
            f"data.hold_out: {section.factory} returns loaders; hold samples out in it, in a Data with valid"
        )
    return Data(
        LoaderBatches(first, device, recipe.run.seed), LoaderBatches(second, device, None), task, section.max_length
    )


def _image_data(
    recipe: Recipe,
    train: Callable[[], Images],
    test: Callable[[], Images],
    valid: Callable[[], Images] | None,
    task: Task,
) -> Data:
    section, device = recipe.data, device_of(recipe.run)
    if section.hold_out:
        read, count = train, section.hold_out

        @cache
        def parts() -> tuple[Images, Images]:
            whole = read()
            kept, held = hold_out(len(whole), count, whole.source)
            return whole.rows(kept), whole.rows(held)

        train, valid = lambda: parts()[0], lambda: parts()[1]
    return Data(
        Batches(train, section, device, recipe.run.seed),
        Batches(test, section, device, None),
        task,
        valid=Batches(valid, section, device, None) if valid is not None else None,
    )


def hold_out(size: int, count: int, source: str) -> tuple[Tensor, Tensor]:
    """Which of ``size`` samples are trained on, and which ``count`` are held out: the same for every seed of a run."""
    if count >= size:
        raise DataError(f"data.hold_out: {count:,} of the {size:,} samples of {source}; leave some to train on")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return order[count:].sort().values, order[:count].sort().values


def _holds_sentences(recipe: Recipe) -> bool:
    """Whether the files of a recipe hold labelled text rather than pictures."""
    section = recipe.data
    asked = section.dataset or section.tokenizer or section.text or recipe.model.factory.startswith("hf:")
    return bool(asked) or Path(section.train or "").suffix in TEXT_FILES


def _reader(path: str, show: Any) -> Callable[[], Images]:
    count = count_images(path)  # a wrong file is an error now, not when training begins
    if not count:
        raise DataError(f"{path}: empty; expected at least one image")

    def read() -> Images:
        if show is None:
            return read_images(path)
        with show.progress(f"reading {Path(path).name}", count) as bar:
            return read_images(path, bar.advance)

    return read
