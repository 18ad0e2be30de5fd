"""`Selection`: which groups go. What training and calibration choose, and what repack takes away."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from sslprune.errors import SslpruneError
from sslprune.values.axes import Axis, tensors_of, zero_mask

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Selection:
    """Which groups of which axes go: ``selection[axis]`` is bool, shape (size,), True for what goes.

    Selections over the same axes are ordered: ``a <= b`` where everything that goes in ``a`` goes in ``b``, so that
    the model of ``b`` is nested in that of ``a``. ``a | b`` is the least that is above both. The masks are read-only.
    """

    axes: tuple[Axis, ...]
    masks: tuple[np.ndarray, ...]  # of each axis: bool, shape (size,)

    def __post_init__(self) -> None:
        for axis, mask in zip(self.axes, self.masks, strict=True):
            assert mask.dtype == bool and mask.shape == (axis.size,), (axis.name, mask.dtype, mask.shape)
            mask.setflags(write=False)

    @classmethod
    def of(cls, axes: Sequence[Axis], masks: Sequence[Any]) -> Selection:
        """``masks`` says of each of ``axes`` which groups go: (size,), whatever numpy makes bool of; copied."""
        return cls(tuple(axes), tuple(np.array(mask, bool) for mask in masks))

    @classmethod
    def none(cls, axes: Sequence[Axis]) -> Selection:
        """Nothing goes."""
        return cls.of(axes, [np.zeros(axis.size, bool) for axis in axes])

    @classmethod
    def zeros(cls, model: nn.Module, axes: Sequence[Axis]) -> Selection:
        """What is exactly zero in ``model``: a selection found again by its traces, where nobody handed it on."""
        tensors = tensors_of(model)
        return cls.of(axes, [zero_mask(model, axis, tensors) for axis in axes])

    @cached_property
    def _index(self) -> dict[str, int]:
        return {axis.name: i for i, axis in enumerate(self.axes)}

    def __getitem__(self, axis: Axis | str | int) -> np.ndarray:
        """Which groups of ``axis`` (the axis, its name or its index) go: bool, shape (size,)."""
        i = axis if isinstance(axis, int) else self._index[axis if isinstance(axis, str) else axis.name]
        return self.masks[i]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.masks)

    def __len__(self) -> int:
        """The number of axes."""
        return len(self.axes)

    def __bool__(self) -> bool:
        """Whether anything goes."""
        return any(mask.any() for mask in self.masks)

    def plus(self, groups: Mapping[int, np.ndarray]) -> Selection:
        """More goes: of the axis at each index its ``groups``, as indices or a mask."""
        masks = list(self.masks)
        for i, chosen in groups.items():
            masks[i] = masks[i].copy()
            masks[i][chosen] = True
        return Selection(self.axes, tuple(masks))

    def over(self, axes: Sequence[Axis]) -> Selection:
        """The same of other ``axes``, known by name; of those that this one does not know nothing goes."""
        return Selection.of(axes, [self[a] if a.name in self._index else np.zeros(a.size, bool) for a in axes])

    def left(self, axis: Axis | str | int) -> int:
        """How many groups of ``axis`` stay."""
        mask = self[axis]
        return int(mask.size - mask.sum())

    def _check(self, other: Selection) -> None:
        if [(a.name, a.size) for a in self.axes] != [(a.name, a.size) for a in other.axes]:
            raise ValueError("selections over different axes cannot be compared")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        self._check(other)
        return all(np.array_equal(a, b) for a, b in zip(self.masks, other.masks, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __le__(self, other: Selection) -> bool:
        self._check(other)
        return all(bool((~a | b).all()) for a, b in zip(self.masks, other.masks, strict=True))

    def __or__(self, other: Selection) -> Selection:
        self._check(other)
        return Selection(self.axes, tuple(a | b for a, b in zip(self.masks, other.masks, strict=True)))

    def __sub__(self, other: Selection) -> Selection:
        """What goes here and stays there."""
        self._check(other)
        return Selection(self.axes, tuple(a & ~b for a, b in zip(self.masks, other.masks, strict=True)))

    def __str__(self) -> str:
        gone = [(axis, int(mask.sum())) for axis, mask in zip(self.axes, self.masks, strict=True) if mask.any()]
        return ", ".join(f"{axis.name} [{axis.kind}] {n} of {axis.size}" for axis, n in gone) or "nothing goes"

    __repr__ = __str__

    def to_json(self) -> str:
        """``selection.json``: by axis its kind, its size and the indices that go."""
        axes = {
            axis.name: {"kind": axis.kind, "size": axis.size, "gone": np.flatnonzero(mask).tolist()}
            for axis, mask in zip(self.axes, self.masks, strict=True)
        }
        return json.dumps({"schema": SCHEMA, "axes": axes}) + "\n"

    @classmethod
    def from_json(cls, text: str, axes: Sequence[Axis], source: str = "selection.json") -> Selection:
        """What ``to_json`` wrote of these ``axes``; raises SslpruneError, naming the axis, where it is of others."""
        try:
            written = json.loads(text)["axes"]
            masks = {name: (entry["size"], np.array(entry["gone"], np.int64)) for name, entry in written.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SslpruneError(
                f"{source}: not a selection of groups ({error}); choose again: `sslprune run`"
            ) from error
        ours = {axis.name: axis.size for axis in axes}
        for name in {**ours, **masks}:
            theirs = masks[name][0] if name in masks else "none"
            fits = name in masks and theirs == ours.get(name) and np.isin(masks[name][1], np.arange(theirs)).all()
            if not fits:
                raise SslpruneError(
                    f"{source}: axis {name} has {theirs} groups there and {ours.get(name, 'none')} in the model; "
                    "it is of another model or recipe"
                )
        found = [np.zeros(axis.size, bool) for axis in axes]
        for axis, mask in zip(axes, found, strict=True):
            mask[masks[axis.name][1]] = True
        return cls.of(axes, found)
