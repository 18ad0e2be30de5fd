"""A recurrent tagger, and a task for it that any plain text holds: where a sentence ends.

The words of a text with one sentence a line are one stream, and the tag of a word says whether it is the last of its
sentence. For tags of your own, return what `sentences` returns: words by number, and a tag for each.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def sentences(train: str, test: str, length: int = 64, vocabulary: int = 10_000) -> tuple[TensorDataset, TensorDataset]:
    """Windows of ``length`` words, (windows, length), and as many tags; the rarer words of ``train`` are number 0."""
    texts = [[line.split() for line in Path(file).read_text(encoding="utf-8").splitlines()] for file in (train, test)]
    counted = Counter(word for line in texts[0] for word in line)
    numbers = {word: 1 + i for i, (word, _) in enumerate(counted.most_common(vocabulary - 1))}
    return tuple(_windows([line for line in text if line], numbers, length) for text in texts)


def _windows(lines: list[list[str]], numbers: dict[str, int], length: int) -> TensorDataset:
    words = torch.tensor([numbers.get(word, 0) for line in lines for word in line])
    ends = torch.tensor([int(i == len(line) - 1) for line in lines for i in range(len(line))])
    whole = len(words) // length * length
    return TensorDataset(words[:whole].view(-1, length), ends[:whole].view(-1, length))


class Tagger(nn.Module):
    """Words by number (batch, steps), read from both sides, to logits for each (batch, steps, classes)."""

    def __init__(
        self, cell: str = "lstm", vocabulary: int = 10_000, width: int = 128, hidden: int = 200, layers: int = 2,
        classes: int = 2, dropout: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__()
        recurrent = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
        self.embed = nn.Embedding(vocabulary, width)
        self.drop = nn.Dropout(dropout)
        self.read = recurrent(width, hidden, layers, batch_first=True, bidirectional=True, dropout=dropout)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, words: Tensor) -> Tensor:
        steps, _ = self.read(self.drop(self.embed(words)))
        return self.head(self.drop(steps))
