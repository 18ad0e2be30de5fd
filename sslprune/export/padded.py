"""Layers of different sizes made as wide as the widest one of their stack, with zeros, for classes of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from sslprune.export.renumber import Held, renamed, stack_of

Key = tuple[str, str, tuple[int, ...]]  # a stack, what a tensor is called inside its layer, and its size as it was


def alike(model: nn.Module, held: Held) -> dict[Key, list[str]]:
    """The tensors of ``held`` that were of one size in each layer of a stack, the first layer's first."""
    found: dict[Key, list[str]] = {}
    own = model.state_dict()
    for name, old in held.before.items():
        key = _key(model, old, own[old])
        if key is not None:
            found.setdefault(key, []).append(name)
    return found


def padded(model: nn.Module, held: Held) -> tuple[Held, int]:
    """``held`` with each of those as large as the largest of them, and how many zeros that took.

    Zeros go behind what is there; a part of a layer that went is all zeros. Where a class wants them elsewhere, as
    between heads that lie side by side, it computes something else, which whoever compares it finds out.
    """
    tensors, before = dict(held.tensors), dict(held.before)
    sizes = {
        key: [max(sizes) for sizes in zip(*(tensors[name].shape for name in names), strict=True)]
        for key, names in alike(model, held).items()
    }
    for old, whole in model.state_dict().items():
        name, stays = renamed(old, held.kept)
        key = _key(model, old, whole)
        if key in sizes and (before[name] == old if name in before else stays):
            tensors[name], before[name] = _grown(whole, tensors.get(name), sizes[key]), old
    more = sum(t.numel() for t in tensors.values()) - sum(t.numel() for t in held.tensors.values())
    return replace(held, tensors=tensors, before=before), more


def _key(model: nn.Module, old: str, tensor: Tensor) -> Key | None:
    """What a tensor shares with those that it is alike; None for one that lies in no stack."""
    stack = stack_of(model, old)
    return (stack, old.removeprefix(f"{stack}.").partition(".")[2], tuple(tensor.shape)) if stack else None


def _grown(like: Tensor, given: Tensor | None, shape: Sequence[int]) -> Tensor:
    """``given``, or nothing, in the first corner of zeros of this shape; of the kind of ``like``."""
    if given is not None and list(given.shape) == list(shape):
        return given
    whole = like.new_zeros(*shape)
    if given is not None:
        whole[tuple(slice(size) for size in given.shape)] = given
    return whole
