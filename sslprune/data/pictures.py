"""Pictures: augmented and normalised batches of them, in an order that the seed and the epoch alone decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslprune.data.batches import Batch, Data, hold_out
from sslprune.data.images import Images, count_images, open_picture, read_images
from sslprune.data.samples import Encoder
from sslprune.errors import DataError, RunError
from sslprune.recipe import PicturesSection, PixelsSection, Recipe
from sslprune.values.inputs import Inputs
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

    ``size``: channels, height and width; one that is no number may be any.
    """

    section: PixelsSection
    size: Callable[[], tuple[int | str | None, ...]]

    def encode(self, sample: str) -> Inputs:
        channels, height, width = self.size()
        wanted = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        pixels = open_picture(sample, grey=channels == 1, size=wanted).astype(np.float32).transpose(2, 0, 1) / 255
        mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (self.section.mean, self.section.std))
        return (torch.from_numpy(np.ascontiguousarray(((pixels - mean) / std)[None], np.float32)),)


def read(recipe: Recipe, task: Task, device: torch.device, show: Voice) -> Data:
    """The pictures of a recipe, decoded on first use; a wrong file is an error now, not when training begins."""
    section = recipe.data
    assert isinstance(section, PicturesSection)
    train, test = _reader(section.train, show), _reader(section.test, show)
    return picture_data(
        recipe, section, train, test, task, device, _reader(section.valid, show) if section.valid else None
    )


def reopen(recipe: Recipe, folder: Path, shape: tuple[int | str | None, ...]) -> Encoder:
    """What reads one more picture for a model that takes ``shape``: the recipe says the rest."""
    section = recipe.data
    assert isinstance(section, PicturesSection)
    if len(shape) != 4:
        raise RunError(f"{folder.parent}: the model takes {shape}; a picture is (batch, channels, height, width)")
    return PictureEncoder(section, lambda: shape[1:])


def picture_data(
    recipe: Recipe,
    section: PixelsSection,
    train: Callable[[], Images],
    test: Callable[[], Images],
    task: Task,
    device: torch.device,
    valid: Callable[[], Images] | None = None,
) -> Data:
    """Pictures as data; what ``data.hold_out`` asks for is taken from the training pictures."""
    if section.hold_out:
        whole = train

        @cache
        def parts() -> tuple[Images, Images]:
            images = whole()
            kept, held = hold_out(len(images), section.hold_out, images.source)
            return images.rows(kept), images.rows(held)

        train, valid = lambda: parts()[0], lambda: parts()[1]
    judged = Batches(test, section, device, None)
    return Data(
        Batches(train, section, device, recipe.run.seed),
        judged,
        task,
        valid=Batches(valid, section, device, None) if valid is not None else None,
        encoder=PictureEncoder(section, lambda: tuple(judged.images.pixels.shape[1:])),
    )


def _reader(path: str, show: Voice) -> Callable[[], Images]:
    count = count_images(path)
    if not count:
        raise DataError(f"{path}: empty; expected at least one image")

    def read() -> Images:
        with show.progress(f"reading {Path(path).name}", count) as bar:
            return read_images(path, bar.advance)

    return read
