"""One more sample, as a person gives it: what the model is called with for it, and what its outputs say in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sslprune.data.foreign import read_text, require_file
from sslprune.data.images import PICTURE_FILES, draw_mask
from sslprune.errors import DataError
from sslprune.values.inputs import Inputs
from sslprune.values.tasks import Task


class Encoder:
    """How one sample becomes a model's inputs, of batch 1, and the logits for it become words.

    This one is of data that nothing is known of. ``classes``: their names, by number.
    """

    continues: bool = False  # the answer is what comes next, in place of a class
    classes: tuple[str, ...] = ()

    def task(self, named: Task) -> Task:
        """What the samples are for: the task that the recipe names, or one that the data bring."""
        return named

    def samples(self, given: str) -> list[str]:
        """The samples that one argument of a command holds."""
        return [given]

    def encode(self, sample: str) -> Inputs:
        """What the model is called with; raises DataError for a sample that cannot be read or does not suit it."""
        raise DataError(
            f"{sample}: data.factory returns a Data without an encoder, and it reads no single sample; give it one"
        )

    def told(self, sample: str, logits: np.ndarray) -> dict[str, float]:
        """What ``logits`` (1, [steps,] classes) say, with its probability; the likeliest first."""
        found, shares = likeliest(logits)
        return {" ".join(self.named(i) for i in found): float(shares.min())}

    # what goes on from a text, where ``continues``

    steps: int | None = None  # the one length that the model reads; None: any
    end: int | None = None  # the token after which nothing follows
    longest_text: int | None = None  # tokens that the model reads at once; None: any number
    longest: int | None = None  # tokens that it has places for, read one after the other
    num_tokens: int | None = None  # that have a text

    def begun(self, sample: str) -> list[int]:
        """The ids of a text that goes on, with what comes before it."""
        raise NotImplementedError

    def inputs(self, ids: list[int]) -> Inputs:
        """What the model is called with for a text of these ids, padded to ``steps``."""
        return (F.pad(torch.tensor(ids), (0, max(0, (self.steps or 0) - len(ids))))[None],)

    def text(self, ids: list[int]) -> str:
        """The ids as text."""
        raise NotImplementedError

    def named(self, number: int) -> str:
        return self.classes[number] if number < len(self.classes) else str(number)

    def draw(self, mask: np.ndarray, folder: Path, name: str) -> str:
        """Write a mask (height, width) of classes as a PNG of a palette into ``folder``; returns its path."""
        return draw_mask(mask, folder / f"{name}.png")

    def save(self, folder: Path) -> None:
        """Write what is needed to read one more sample, as a tokenizer is, into ``folder``."""


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax over the last dimension, in float64."""
    shares = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def likeliest(logits: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The class of each row of ``logits`` (..., classes), and its probability."""
    shares = probabilities(logits).reshape(-1, logits.shape[-1])
    return shares.argmax(1).tolist(), shares.max(1)


def lines_in(given: str) -> list[str]:
    """A text, or the lines of a text file (.txt), none of them empty; raises DataError for a file of another kind."""
    path = Path(given)
    if path.suffix.lower() in PICTURE_FILES and len(given.split()) == 1:
        raise DataError(f"{given}: a picture, and the model reads text")
    if path.suffix != ".txt" or len(given.split()) > 1:
        return [given]
    return [line for line in read_lines(path) if line.strip()]


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file; raises DataError for one that is missing, empty, or not text."""
    require_file(path, mend="expected text, one sentence a line", folder="expected one file of text")
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path}: empty; expected text, one sentence a line")
    return text.splitlines()
