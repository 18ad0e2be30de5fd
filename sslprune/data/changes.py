"""What is done to a picture before a model sees it: cut to a size, turned and coloured at random, and normalised.

Sizes and random changes are those of ``torchvision.transforms.v2``; without them torchvision is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslprune.errors import DataError
from sslprune.recipe import PicturesSection

USUAL_CROP = 0.875  # of the shorter side: 224 of 256, as ImageNet is evaluated


@dataclass(frozen=True)
class Change:
    """One picture (PIL) with its mask, if any, as numbers: (channels, height, width), and (height, width)."""

    channels: int
    mean: Sequence[float]
    std: Sequence[float]
    steps: Callable[..., Any] | None

    def __call__(self, picture: Any, mask: Tensor | None, name: str) -> tuple[Tensor, Tensor | None]:
        array = np.array(picture.convert("L" if self.channels == 1 else "RGB"))
        pixels = torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)
        if mask is not None and mask.shape != pixels.shape[1:]:
            sizes = " and ".join(f"{size[1]} x {size[0]}" for size in (pixels.shape[1:], mask.shape))
            raise DataError(f"{name}: the picture and its mask are {sizes} pixels; expected one size")
        if self.steps is not None:
            pixels, mask = self._changed(pixels, mask)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std, mask

    def _changed(self, pixels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        from torchvision import tv_tensors

        assert self.steps is not None
        if mask is None:
            return self.steps(tv_tensors.Image(pixels)).as_subclass(Tensor), None
        made, drawn = self.steps(tv_tensors.Image(pixels), tv_tensors.Mask(mask[None]))
        return made.as_subclass(Tensor), drawn.as_subclass(Tensor)[0]


def evaluating(section: PicturesSection) -> Change:
    """Pictures as they are judged: the shorter side resized, the middle cut out; or both sides resized."""
    return _change(section, _sized(section))


def training(section: PicturesSection) -> Change:
    """Pictures as they are trained on: cut, turned and coloured as ``data.augment`` says."""
    v2 = _v2("data.augment") if section.augment else None
    steps = []
    kinds = {kind: float(value) if value else None for kind, _, value in (s.partition(":") for s in section.augment)}
    if "random-resized-crop" in kinds:
        size = _height_and_width(section)
        if size is None:
            raise DataError("data.augment: random-resized-crop cuts to data.size, which is missing; give it")
        assert v2 is not None
        steps.append(v2.RandomResizedCrop(size, scale=(kinds["random-resized-crop"] or 0.08, 1.0), antialias=True))
    else:
        steps += _sized(section)
    if v2 is not None and "pad-crop" in kinds:
        steps.append(_PadCrop(int(kinds["pad-crop"] or 0)))
    if v2 is not None and "flip" in kinds:
        steps.append(v2.RandomHorizontalFlip())
    if v2 is not None and "rand-augment" in kinds:
        steps.append(v2.RandAugment(magnitude=int(kinds["rand-augment"] or 9)))
    return _change(section, steps)


def mixing(section: PicturesSection, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mixup (Zhang et al. 2018) of a batch, whose labels become shares of the classes; None where it is not asked."""
    strength = next((step.partition(":")[2] for step in section.augment if step.startswith("mixup")), None)
    if strength is None:
        return None
    return _v2("data.augment").MixUp(alpha=float(strength or 0.2), num_classes=classes)


class _PadCrop(torch.nn.Module):
    """A border of black pixels around a picture, of which as much is cut off again, at a random place."""

    def __init__(self, border: int) -> None:
        super().__init__()
        self.border = border

    def forward(self, picture: Any, *mask: Any) -> Any:
        v2 = _v2("data.augment")
        height, width = picture.shape[-2:]
        return v2.RandomCrop((height, width), padding=self.border)(picture, *mask)


def _change(section: PicturesSection, steps: list[Any]) -> Change:
    for key, values in (("mean", section.mean), ("std", section.std)):
        if len(values) not in (1, section.channels):
            raise DataError(f"data.{key}: {len(values)} values for pictures of {section.channels} channels")
    made = _v2("data.size").Compose(steps) if steps else None
    return Change(section.channels, section.mean, section.std, made)


def _sized(section: PicturesSection) -> list[Any]:
    size = _height_and_width(section)
    if size is None:
        return []
    v2 = _v2("data.size")
    if isinstance(section.size, list):
        return [v2.Resize(size, antialias=True)]
    shorter = section.resize or math.ceil(size[0] / USUAL_CROP)
    if shorter < size[0]:
        raise DataError(f"data.resize: {shorter} is below data.size, {size[0]}; expected as much at least")
    return [v2.Resize(shorter, antialias=True), v2.CenterCrop(size)]


def _height_and_width(section: PicturesSection) -> tuple[int, int] | None:
    if section.size is None:
        return None
    return (section.size, section.size) if isinstance(section.size, int) else (section.size[0], section.size[1])


def _v2(field: str) -> Any:
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise DataError(f"{field}: needs torchvision; pip install 'sslprune[vision]'") from error
    return v2
