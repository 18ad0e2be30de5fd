"""One reader for each kind of data, in one table: what the recipe's section is decides which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from sslprune.data import labelled, own, pictures, text
from sslprune.data.batches import Data, task_for
from sslprune.data.samples import Encoder
from sslprune.errors import DataError
from sslprune.models.build import device_of, find_callable
from sslprune.recipe import (
    DataSection,
    LabelledTextSection,
    OwnDataSection,
    PicturesSection,
    Recipe,
    RunningTextSection,
)
from sslprune.values.task_table import with_loss
from sslprune.values.tasks import Task
from sslprune.values.voice import SILENT, Voice

Shape = tuple[int | str | None, ...]  # of a model's first input; a size that is no number is open


@dataclass(frozen=True)
class Reader:
    """One kind of data: ``read`` gives the batches of a recipe, ``reopen`` what reads one more sample.

    ``reopen`` is for a finished run, whose training files may be gone: it is given the folder that ``Data.save`` wrote
    to, and the shape that the model takes.
    """

    read: Callable[[Recipe, Task, torch.device, Voice], Data]
    reopen: Callable[[Recipe, Path, Shape], Encoder]


READERS: dict[type[DataSection], Reader] = {
    PicturesSection: Reader(pictures.read, pictures.reopen),
    LabelledTextSection: Reader(labelled.read, labelled.reopen),
    RunningTextSection: Reader(text.read, text.reopen),
    OwnDataSection: Reader(own.read, own.reopen),
}


def build_data(recipe: Recipe, show: Voice = SILENT) -> Data:
    """The recipe's data. A factory returns a pair (train, test) of ``Images`` or of loaders, or a ``Data``.

    ``show`` is told of the reading of large files. Raises DataError for what is missing, empty or of another shape.
    """
    section = recipe.data
    data = READERS[type(section)].read(recipe, task_for(section), device_of(recipe.run), show)
    own = partial(find_callable, field="train.loss")
    data = replace(data, task=with_loss(data.task, recipe.train.loss, recipe.train.label_smoothing, own))
    longest = max(recipe.bench.lengths, default=0)
    if longest and data.sequence is None:
        raise DataError("bench.lengths: the data are no sequences of any length; leave it out, or see data.max_length")
    if data.sequence is not None and longest > data.sequence:
        raise DataError(f"bench.lengths: {longest} steps, the data have at most {data.sequence}; see data.max_length")
    return data


def reopen(recipe: Recipe, folder: Path, shape: Shape) -> Encoder:
    """What reads one more sample for a finished run of ``recipe``; ``folder`` is where its data were saved."""
    return READERS[type(recipe.data)].reopen(recipe, folder, shape)
