"""Batches of texts as token ids: padded to a few lengths, in an order of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslprune.data.batches import Batch
from sslprune.values.metrics import IGNORED

POOL = 50  # batches that are sorted by length together


@dataclass(frozen=True)
class Encoded:
    """Texts as token ids, one after the other: text i is ``ids[starts[i]:starts[i + 1]]``; ``labels`` alike."""

    ids: np.ndarray  # (tokens,) int32
    starts: np.ndarray  # (texts + 1,) int64
    labels: np.ndarray  # (texts,), or (tokens,) for tagging, int64
    types: np.ndarray | None = None  # (tokens,) int8: the segment of each token, of pairs of texts

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


class SentenceBatches:
    """Batches of ``({input_ids, attention_mask[, token_type_ids]}, labels)``, padded to multiples of ``pad_to``.

    Training mixes texts of about the same length, and leaves out what does not fill a batch; evaluation takes them
    sorted by length.
    """

    def __init__(
        self, data: Encoded, pad: int, pad_to: int, longest: int, batch_size: int, device: torch.device,
        train_seed: int | None,
    ) -> None:  # fmt: skip
        self.data, self.pad, self.pad_to, self.longest = data, pad, pad_to, longest
        self.batch_size, self.device, self.seed = batch_size, device, train_seed

    def __len__(self) -> int:
        size = len(self.data)
        return max(1, size // self.batch_size) if self.seed is not None else -(-size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass; what is in each batch, and their order, is decided by the seed and ``epoch``."""
        lengths = self.data.lengths
        if self.seed is None:
            order = np.argsort(lengths, kind="stable")
            for start in range(0, len(order), self.batch_size):
                yield self._batch(order[start : start + self.batch_size])
            return
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(lengths))
        batches = []
        for start in range(0, len(order), POOL * self.batch_size):
            pool = order[start : start + POOL * self.batch_size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        batches = [batch for batch in batches if len(batch) == self.batch_size] or batches
        for i in random.permutation(len(batches))[: len(self)]:
            yield self._batch(batches[i])

    @property
    def example(self) -> dict[str, Tensor]:
        """Two texts of the middle length."""
        middle = np.argsort(self.data.lengths, kind="stable")[(len(self.data) - 1) // 2 :][:2]
        inputs, _ = self._batch(np.resize(middle, 2))
        assert isinstance(inputs, dict)
        return inputs

    def _batch(self, rows: np.ndarray) -> Batch:
        data, lengths = self.data, self.data.lengths[rows]
        width = min(-(-int(lengths.max()) // self.pad_to) * self.pad_to, self.longest)
        mask = np.arange(width) < lengths[:, None]  # (rows, width)
        tokens = np.concatenate([np.arange(data.starts[r], data.starts[r + 1]) for r in rows])
        ids = np.full(mask.shape, self.pad, np.int64)
        ids[mask] = data.ids[tokens]
        labels: np.ndarray
        if len(data.labels) == len(data):
            labels = data.labels[rows]
        else:
            labels = np.full(mask.shape, IGNORED, np.int64)
            labels[mask] = data.labels[tokens]
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        if data.types is not None:
            types = np.zeros(mask.shape, np.int64)
            types[mask] = data.types[tokens]
            inputs["token_type_ids"] = torch.from_numpy(types)
        return {name: value.to(self.device) for name, value in inputs.items()}, torch.from_numpy(labels).to(self.device)
