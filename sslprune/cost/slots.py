"""Which indices of many dimensions are kept, asked of all at once: a choice asks it at each of its steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Slots:
    """Of each dimension the slots of its indices, (n, k): an index is kept while all of its slots are.

    They lie one behind another, so that numpy is called a few times for a model and not for each of its dimensions.
    """

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        rows = [part if part.shape[1] else np.zeros((len(part), 1), np.int64) for part in rows]  # slot 0 is always kept
        self._flat = np.concatenate([np.zeros(0, np.int64), *(part.reshape(-1) for part in rows)])
        widths = np.concatenate([np.zeros(0, np.int64), *(np.full(*part.shape) for part in rows)])  # of each index
        self._first = np.cumsum(widths) - widths
        self._index = np.repeat(np.arange(len(widths)), widths)  # of each slot
        self._dim = np.repeat(np.arange(len(rows)), [part.size for part in rows])
        self._ends = np.cumsum([0, *map(len, rows)])

    def kept(self, flags: np.ndarray) -> np.ndarray:
        """Of all indices, dimension by dimension, which are kept where ``flags`` says it of the slots; bool."""
        return np.logical_and.reduceat(flags[self._flat], self._first) if len(self._first) else np.zeros(0, bool)

    def counts(self, kept: np.ndarray) -> np.ndarray:
        """How many of each dimension's are; float64."""
        return np.diff(np.concatenate([np.zeros(1), np.cumsum(kept)])[self._ends])

    def spread(self, values: np.ndarray, kept: np.ndarray, size: int) -> np.ndarray:
        """Of each of ``size`` slots the sum of ``values``, one a dimension, over the kept indices that have it."""
        return np.bincount(self._flat, values[self._dim] * kept[self._index], size)
