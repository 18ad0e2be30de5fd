"""What of the groups that are to go can go, over all axes together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from sslprune.kinds.branches import too_many
from sslprune.kinds.table import kind_of
from sslprune.values.axes import Axis

Left = Callable[[int], np.ndarray]  # of an axis, by its index: which of its groups the other axes leave


def closed(
    axes: Sequence[Axis],
    wanted: Iterable[np.ndarray],
    waiting: Collection[int],
    left_by: Callable[[Sequence[np.ndarray]], Left],
    before: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Of each axis which groups can go when those in ``wanted`` are zero: bool, shape (size,) each.

    Every sum keeps an operand. ``before`` is what has left a model already: beside that every axis but a branch keeps a
    group, as a model that runs has to. The ``waiting`` axes, those of kinds with `sizes`, come last: ``left_by(masks)``
    says of them what the masks of all others leave.
    """
    dropped = [axis.cuts[0] for axis, mask in zip(axes, before or (), strict=False) if axis.cuts and mask.all()]
    wanted, masks = list(wanted), []
    for i, (axis, gone) in enumerate(zip(axes, wanted, strict=True)):
        kind = kind_of(axis)
        mask = np.zeros(axis.size, bool) if i in waiting else kind.closed(gone, None)
        if np.count_nonzero(mask) == axis.size:  # faster than all(), and this is asked a million times
            if axis.cuts and not too_many(dropped, axis.cuts[0]):
                dropped.append(axis.cuts[0])
            elif axis.cuts:
                mask = np.zeros(axis.size, bool)
            elif before is not None and not kind.is_whole:
                mask = mask.copy()
                mask[np.argmin(before[i])] = False
        masks.append(_short(axis, mask, None if before is None else before[i]))
    if waiting:
        left = left_by(masks)
        for i in waiting:
            masks[i] = kind_of(axes[i]).closed(wanted[i], left(i))
    return masks


def _short(axis: Axis, gone: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """``gone`` without as many groups as an axis has to keep, of those that have not left a model ``before``."""
    missing = axis.least - (axis.size - np.count_nonzero(gone)) if axis.least else 0
    if missing <= 0:
        return gone
    kept = gone.copy()
    kept[np.flatnonzero(gone if before is None else gone & ~before)[:missing]] = False
    return kept
