"""Some of the classes, and of the tokens: which of them are needed, and data of those classes alone.

They are numbered anew, from 0, in the order that all of them have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslprune.data.images import Images
from sslprune.data.samples import read_lines
from sslprune.errors import DataError, few
from sslprune.models.vocabulary import FIELD as TOKENS
from sslprune.models.vocabulary import kept_tokens, numbers_of
from sslprune.values.inputs import Inputs

FIELD = "data.keep_classes"


@dataclass(frozen=True)
class KeptClasses:
    """The classes that are needed: their ``numbers`` among all, ascending, and their ``names``."""

    numbers: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, wanted: Sequence[str | int], classes: Sequence[str], count: int, source: str) -> KeptClasses:
        """Those that a recipe names, of ``classes`` by their names, or by number below ``count``.

        Raises DataError for one that does not exist, and where nothing would go.
        """
        numbers = sorted(_number(name, classes, count, source) for name in wanted)
        twice = next((n for n in numbers if numbers.count(n) > 1), None)
        if twice is not None:
            raise DataError(f"{FIELD}: class {twice} of {source} is named twice; give it once")
        if len(numbers) == count:
            raise DataError(f"{FIELD}: {source} has these {count} classes and no others; leave it out")
        return cls(tuple(numbers), tuple(classes[n] if classes else str(n) for n in numbers))

    @property
    def renumbered(self) -> dict[int, int]:
        """The new number of each, by its old one."""
        return {number: i for i, number in enumerate(self.numbers)}

    def images(self, images: Images) -> Images:
        """The pictures of these classes; raises DataError for one that has none."""
        new = torch.full((images.num_classes,), -1)
        new[list(self.numbers)] = torch.arange(len(self.numbers))
        labels = new[images.labels]
        kept = (labels >= 0).nonzero()[:, 0]
        self.check(labels[kept].tolist(), images.source)
        return Images(images.pixels[kept], labels[kept], len(self.numbers), images.source, self.names)

    def check(self, found: Iterable[int], source: str) -> None:
        """Raise DataError unless every class is ``found`` in ``source``, by its new number."""
        seen = set(found)
        missing = next((name for i, name in enumerate(self.names) if i not in seen), None)
        if missing is not None:
            raise DataError(f"{FIELD}: {source} has no sample of class {missing}")


def _number(wanted: str | int, classes: Sequence[str], count: int, source: str) -> int:
    if isinstance(wanted, str) and wanted in classes:
        return classes.index(wanted)
    if isinstance(wanted, int) or wanted.isdecimal():
        if 0 <= int(wanted) < count:
            return int(wanted)
        raise DataError(f"{FIELD}: {source} has no class {wanted}; they are numbered from 0 to {count - 1}")
    known = few(list(classes)) if classes else f"{count} classes without names: give numbers from 0"
    raise DataError(f'{FIELD}: "{wanted}" is no class of {source}; it has {known}')


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """The tokens that are left of a vocabulary, by their ``numbers`` among all, ascending: their new ones count from 0.

    ``test``: the test texts as the whole tokenizer splits them, in the old numbers. ``said``: whether the model's
    outputs are of the tokens as well.
    """

    numbers: tuple[int, ...]
    test: Any
    said: bool = False


def tokens_left(keep: bool | str, used: np.ndarray, tokenizer: Any) -> np.ndarray:
    """The numbers of the tokens that stay, ascending: of those ``used``, or of the file that ``keep`` names.

    Raises DataError for a file that is not there, and for a token that ``tokenizer`` lacks.
    """
    wanted = np.unique(used).tolist()
    if isinstance(keep, str):
        try:
            lines = [line for line in read_lines(keep) if line.strip()]
        except DataError as error:
            raise DataError(f"{TOKENS}: {str(error).partition(';')[0]}; expected a token a line") from error
        wanted = numbers_of(tokenizer, lines, keep)
    return kept_tokens(tokenizer, wanted)


class AllNumbers:
    """Batches of another source, whose targets are the numbers that the classes have among all."""

    def __init__(self, source: Any, kept: KeptClasses | None) -> None:
        self.source, self.numbers = source, torch.tensor(kept.numbers) if kept is not None else None

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        for inputs, targets in self.source:
            yield inputs, targets if self.numbers is None else self.numbers.to(targets.device)[targets]
