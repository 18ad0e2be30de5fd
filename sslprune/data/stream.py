"""Batches of pictures that are read, cut and turned when they are needed, by processes of their own.

What is drawn for a picture is decided by the seed, the epoch and its row: any number of processes gives the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sslprune.data.batches import Batch
from sslprune.data.changes import Change
from sslprune.data.rows import Rows
from sslprune.data.targets import Targets
from sslprune.errors import DataError, first_line
from sslprune.recipe import PicturesSection

MOST_WORKERS = 8
FEW = 500  # pictures, for which no process is worth its start
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Part:
    """Some of the rows of a source, by their numbers, with what makes targets of them."""

    rows: Rows
    numbers: Sequence[int]
    targets: Targets

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class Failed:
    """What a process says in place of a picture: an error crosses over as its text."""

    said: str


class Pictures(Dataset):
    """Pictures by (seed of what is drawn, number): (name, pixels, target), or Failed."""

    def __init__(self, part: Part, change: Change) -> None:
        self.part, self.change = part, change

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[str, Tensor, Any] | Failed:
        part, row = self.part, self.part.numbers[drawn[1]]
        try:
            picture, target = part.rows.picture(row), part.targets(part.rows, row)
            name = part.rows.name(row)
            mask = target if part.targets.spatial else None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(drawn[0])
                pixels, mask = self.change(picture, mask, name)
        except DataError as error:
            return Failed(str(error))
        return name, pixels, target if mask is None else mask


class PictureStream:
    """Batches of ``((pixels,), targets)`` on a device; each pass is decided by (seed, epoch).

    Training pictures are shuffled, and a last batch that is not full is left out.
    """

    def __init__(
        self,
        part: Part,
        change: Change,
        section: PicturesSection,
        device: torch.device,
        train_seed: int | None,
        mix: Mix | None = None,
    ) -> None:
        self.part, self.change, self.device, self.seed, self.mix = part, change, device, train_seed, mix
        self.batch_size = section.eval_batch_size if train_seed is None else section.batch_size
        self.workers = section.workers
        if self.workers is None:
            self.workers = 0 if len(part) < FEW else min(MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) - 1))

    def __len__(self) -> int:
        size = len(self.part)
        return max(1, size // self.batch_size) if self.seed is not None else -(-size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass."""
        order = torch.arange(len(self.part))
        first = (self.seed or 0) * 1_000_003 + epoch
        if self.seed is not None:
            order = torch.randperm(len(self.part), generator=torch.Generator().manual_seed(first))
        batches = [
            [(first * 1_000_003 + number, number) for number in numbers.tolist()]
            for numbers in order.split(self.batch_size)[: len(self)]
        ]
        for index, (pixels, targets) in enumerate(self._read(batches)):
            if self.mix is not None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(first * 1_000_003 + index)
                    pixels, targets = self.mix(pixels, targets)
            yield (pixels.to(self.device),), targets.to(self.device)

    @cached_property
    def example(self) -> tuple[Tensor, ...]:
        """The first two pictures, whatever the batch size."""
        if len(self.part) < 2:
            raise DataError(f"{self.part.rows.source}: one picture; expected at least two")
        pictures = Pictures(self.part, self.change)
        return (_together([pictures[0, 0], pictures[0, 1]])[0].to(self.device),)

    def _read(self, batches: list[list[tuple[int, int]]]) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            Pictures(self.part, self.change),
            batch_sampler=batches,
            num_workers=self.workers or 0,
            collate_fn=list,
            worker_init_fn=_one_thread,
        )
        with torch.random.fork_rng(devices=[]):  # the loader draws a seed for its processes
            read = iter(loader)
        while True:
            try:
                samples = next(read, None)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    f"data.workers: a process that reads pictures died ({first_line(error)}); lower data.workers, or "
                    "free memory"
                ) from error
            if samples is None:
                return
            yield _together(samples)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _together(samples: Sequence[tuple[str, Tensor, Any] | Failed]) -> tuple[Tensor, Tensor]:
    """A batch of samples; raises DataError for one that could not be read, or that is of another size."""
    found: list[tuple[str, Tensor, Any]] = []
    for sample in samples:
        if isinstance(sample, Failed):
            raise DataError(sample.said)
        found.append(sample)
    first, size = found[0][0], found[0][1].shape[1:]
    other = next((sample for sample in found if sample[1].shape[1:] != size), None)
    if other is not None:
        sizes = [f"{shape[1]} x {shape[0]}" for shape in (other[1].shape[1:], size)]
        raise DataError(f"{other[0]}: {sizes[0]} pixels, and {first} {sizes[1]}; set data.size")
    return torch.stack([sample[1] for sample in found]), torch.stack([sample[2] for sample in found])
