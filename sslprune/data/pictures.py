"""Pictures: augmented and normalised batches of them, in an order that the seed and the epoch alone decide."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslprune.data.batches import Batch, Data, hold_out, task_for
from sslprune.data.changes import Change, evaluating, mixing, training
from sslprune.data.images import Images, classes_in, count_images, open_picture, read_images
from sslprune.data.kept import KeptClasses
from sslprune.data.labelled import LABELS
from sslprune.data.numbered import NumberedSamples
from sslprune.data.rows import HubRows, Rows, open_file, open_rows
from sslprune.data.samples import Encoder
from sslprune.data.stream import Part, PictureStream
from sslprune.data.targets import Classes, targets_of
from sslprune.errors import DataError, RunError
from sslprune.files import write_text
from sslprune.recipe import PicturesSection, PixelsSection, Recipe
from sslprune.recipe.sources import PLAIN_STEPS
from sslprune.values.inputs import Inputs
from sslprune.values.metrics import CLASSES
from sslprune.values.tasks import Task
from sslprune.values.voice import Voice


class Batches:
    """Batches of images, as ``((pixels,), labels)`` on a device; each pass is decided by (seed, epoch).

    ``source`` gives the images on first use: reading and decoding wait until somebody asks.
    """

    def __init__(
        self, source: Callable[[], Images], section: PixelsSection, device: torch.device, train_seed: int | None
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

    @property
    def example(self) -> tuple[Tensor, ...]:
        """The first two pictures, whatever the batch size."""
        if len(self.images) < 2:
            raise DataError(f"{self.images.source}: one picture; expected at least two")
        return (self._normalised(self.images.pixels[:2].to(self.device)),)

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


@dataclass(frozen=True)
class PictureEncoder(Encoder):
    """A picture's file as (1, channels, height, width), normalised; resized where ``size`` says how large it has to be.

    ``size``: channels, height and width; one that is no number may be any. ``change``: how pictures that are read
    one by one are cut and normalised, in place of it.
    """

    section: PixelsSection
    size: Callable[[], tuple[int | str | None, ...]]
    classes: tuple[str, ...] = ()
    change: Change | None = None

    def encode(self, sample: str) -> Inputs:
        if self.change is not None:
            return (self.change(open_file(sample), None, sample)[0][None],)
        channels, height, width = self.size()
        wanted = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        pixels = open_picture(sample, grey=channels == 1, size=wanted).astype(np.float32).transpose(2, 0, 1) / 255
        mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (self.section.mean, self.section.std))
        return (torch.from_numpy(np.ascontiguousarray(((pixels - mean) / std)[None], np.float32)),)

    def save(self, folder: Path) -> None:
        """Write ``labels.json`` with the names of the classes, empty where they have none, into ``folder``."""
        self._write(folder)

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / LABELS, json.dumps(list(self.classes), ensure_ascii=False) + "\n")


def read(recipe: Recipe, task: Task, device: torch.device, show: Voice) -> Data:
    """The pictures of a recipe, decoded on first use; a wrong file is an error now, not when training begins."""
    section = recipe.data
    assert isinstance(section, PicturesSection)
    if one_by_one(section, task):
        return _streamed(recipe, section, task, device, show)
    train = _reader(section.train, show)
    test = _reader(section.test, show) if section.test else None
    valid = _reader(section.valid, show) if section.valid else None
    kept = None
    if section.keep_classes:
        kept = KeptClasses.of(section.keep_classes, *classes_in(section.train), section.train)
    return picture_data(recipe, section, train, test, task, device, valid, kept)


def one_by_one(section: PicturesSection, task: Task) -> bool:
    """Whether pictures are read when they are needed, and not all at once: but for a Parquet file of one size."""
    plain = all(getattr(section, name) in (None, []) for name in ("dataset", "image", "label", "labels", "size"))
    files = all(Path(path).suffix == ".parquet" for path in (section.train, section.test, section.valid) if path)
    known = all(re.fullmatch(PLAIN_STEPS, step) for step in section.augment)
    return not (plain and files and known and type(task).METRICS is CLASSES and not task.resized)


def _streamed(recipe: Recipe, section: PicturesSection, task: Task, device: torch.device, show: Voice) -> Data:
    """Pictures of any size and place, read when they are needed."""
    with show.progress(f"finding the pictures of {Path(section.train).name}"):
        whole, test, valid = (_rows(section, task, path) for path in (section.train, section.test, section.valid))
    assert whole is not None
    some, classes = None, tuple(section.labels)
    if section.keep_classes:
        every = targets_of(task, whole, section.labels, section.columns, range(len(whole)))
        assert isinstance(every, Classes)
        classes = every.classes
        some = KeptClasses.of(section.keep_classes, classes, len(classes), whole.source)
        whole, test, valid = (rows and every.some_rows(rows, some) for rows in (whole, test, valid))
        assert whole is not None
    kept: Sequence[int] = range(len(whole))
    held: Sequence[int] = ()
    if section.split is not None:
        kept, held = apart([str(whole.label(row)) for row in kept], section.split, whole.source)
        test = whole
    if section.hold_out:
        numbers = hold_out(len(kept), section.hold_out, whole.source)
        kept, judged = ([kept[i] for i in part] for part in numbers)
    targets = targets_of(task, whole, classes, section.columns, kept)
    if some is not None:
        assert isinstance(targets, Classes)
        targets = targets.of_some(some)
    judging, learning = evaluating(section), training(section)
    mix = mixing(section, len(targets.classes))
    if mix is not None and not isinstance(targets, Classes):
        raise DataError(f'data.augment: mixup mixes classes, and data.task = "{task.name}" has none; leave it out')

    def judged_by(rows: Rows, numbers: Sequence[int]) -> PictureStream:
        return PictureStream(Part(rows, numbers, targets), judging, section, device, None)

    assert test is not None
    tested = judged_by(test, held or range(len(test)))
    checked = judged_by(whole, judged) if section.hold_out else judged_by(valid, range(len(valid))) if valid else None
    learned = PictureStream(Part(whole, kept, targets), learning, section, device, recipe.run.seed, mix)
    encoder = PictureEncoder(section, lambda: tuple(tested.example[0].shape[1:]), targets.classes, judging)
    return Data(learned, tested, task, valid=checked, encoder=encoder, kept=some)


def _rows(section: PicturesSection, task: Task, name: str | None) -> Rows | None:
    """The pictures of a file or folder, or of a split of ``data.dataset``."""
    if name is None:
        return None
    if section.dataset is not None:
        found: Rows = HubRows(section.dataset, section.subset, name, section.image, section.columns)
    else:
        found = open_rows(name, section.image, section.columns, not task.taught)
    if not len(found):
        raise DataError(f"{found.source}: empty; expected at least one image")
    return found


def apart(classes: Sequence[object], share: float, source: str) -> tuple[list[int], list[int]]:
    """The numbers of what is trained on, and of the ``share`` of each class that is not: the same for every seed."""
    generator = torch.Generator().manual_seed(0)
    by_class: dict[object, list[int]] = {}
    for number, name in enumerate(classes):
        by_class.setdefault(name, []).append(number)
    many = len(by_class) > len(classes) / 2  # numbers, or paths of masks: no classes to keep apart
    groups = [list(range(len(classes)))] if many else list(by_class.values())
    held: set[int] = set()
    for numbers in groups:
        count = min(len(numbers) - 1, max(1, round(share * len(numbers))))
        held |= {numbers[i] for i in torch.randperm(len(numbers), generator=generator)[:count].tolist()}
    if not held:
        raise DataError(f"data.split: {source} has one picture of each class; expected several")
    return [number for number in range(len(classes)) if number not in held], sorted(held)


def reopen(recipe: Recipe, folder: Path, shape: tuple[int | str | None, ...]) -> Encoder:
    """What reads one more picture for a model that takes ``shape``: the recipe says the rest."""
    section = recipe.data
    assert isinstance(section, PicturesSection)
    if len(shape) != 4:
        raise RunError(f"{folder.parent}: the model takes {shape}; a picture is (batch, channels, height, width)")
    change = evaluating(section) if one_by_one(section, task_for(section)) else None
    return PictureEncoder(section, lambda: shape[1:], _names(folder), change)


def _names(folder: Path) -> tuple[str, ...]:
    """The names of the classes that ``save`` wrote; none where it wrote none."""
    try:
        return tuple(json.loads((folder / LABELS).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{folder / LABELS}: damaged; repack this run again") from error


def picture_data(
    recipe: Recipe,
    section: PixelsSection,
    train: Callable[[], Images],
    test: Callable[[], Images] | None,
    task: Task,
    device: torch.device,
    valid: Callable[[], Images] | None = None,
    kept: KeptClasses | None = None,
) -> Data:
    """Pictures as data, those of the classes ``kept`` where not all are.

    What ``data.split`` and ``data.hold_out`` ask for is taken from the training pictures.
    """
    if kept is not None:
        train, test, valid = _of_some(train, kept), test and _of_some(test, kept), valid and _of_some(valid, kept)
    if test is None:
        assert isinstance(section, PicturesSection) and section.split is not None
        train, test = _parts(train, partial(_apart, share=section.split))
    if section.hold_out:
        train, valid = _parts(train, lambda images: hold_out(len(images), section.hold_out, images.source))
    judged = Batches(test, section, device, None)
    return Data(
        Batches(train, section, device, recipe.run.seed),
        judged,
        task,
        valid=Batches(valid, section, device, None) if valid is not None else None,
        encoder=_ReadAtOnce(section, lambda: tuple(judged.images.pixels.shape[1:]), source=judged),
        kept=kept,
    )


def _of_some(read: Callable[[], Images], kept: KeptClasses) -> Callable[[], Images]:
    return lambda: kept.images(read())


def _apart(images: Images, share: float) -> tuple[Tensor, Tensor]:
    kept, held = apart(images.labels.tolist(), share, images.source)
    return torch.tensor(kept), torch.tensor(held)


def _parts(
    whole: Callable[[], Images], split: Callable[[Images], tuple[Tensor, Tensor]]
) -> tuple[Callable[[], Images], Callable[[], Images]]:
    """Two parts of some pictures, which are read once."""

    @cache
    def parts() -> tuple[Images, Images]:
        images = whole()
        kept, held = split(images)
        return images.rows(kept), images.rows(held)

    return lambda: parts()[0], lambda: parts()[1]


@dataclass(frozen=True)
class _ReadAtOnce(PictureEncoder):
    """Of pictures that are decoded on first use: the names of their classes are known then."""

    source: Batches | None = None

    def encode(self, sample: str) -> Inputs:
        """A picture's file, or the number of a test picture, from 0, where there is no such file."""
        if self.source is not None and sample.isdecimal() and not Path(sample).exists():
            return NumberedSamples(self.source).encode(sample)
        return super().encode(sample)

    def save(self, folder: Path) -> None:
        assert self.source is not None
        replace(self, classes=self.source.images.names, source=None)._write(folder)


def _reader(path: str, show: Voice) -> Callable[[], Images]:
    count = count_images(path)
    if not count:
        raise DataError(f"{path}: empty; expected at least one image")

    def read() -> Images:
        with show.progress(f"reading {Path(path).name}", count) as bar:
            return read_images(path, bar.advance)

    return read
