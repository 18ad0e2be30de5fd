"""Stacks: modules of one make, numbered, such as the layers of a transformer; each of them is a block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from sslprune.values.axes import Axis


def blocks_of_stacks(axes: Sequence[Axis]) -> list[list[int]]:
    """``axes`` by the block that they lie in, as indices; what lies in no stack is by itself.

    A stack is told by its names alone: of the numbered modules side by side some have tensors of one name, as
    ``layers.0.mlp.fc2.weight`` and ``layers.1.mlp.fc2.weight``. The numbered parts of one layer have none.
    """
    blocks: dict[str, list[int]] = {}
    shared = {prefix: _is_stack(axes, prefix) for axis in axes for prefix, _ in _numbered(axis)}
    for i, axis in enumerate(axes):
        inside = next((f"{prefix}.{number}" for prefix, number in _numbered(axis) if shared[prefix]), axis.name)
        blocks.setdefault(inside, []).append(i)
    return list(blocks.values())


def _numbered(axis: Axis) -> Iterator[tuple[str, str]]:
    """The numbers in an axis's path, each with what stands before it; the innermost first."""
    parts = axis.name.partition("/")[0].split(".")
    for at in reversed(range(len(parts))):
        if parts[at].isdecimal():
            yield ".".join(parts[:at]), parts[at]


def _is_stack(axes: Sequence[Axis], prefix: str) -> bool:
    """Whether the modules numbered below ``prefix`` are of one make, as far as the axes' tensors tell."""
    names: dict[str, set[str]] = {}
    for axis in axes:
        number = next((number for before, number in _numbered(axis) if before == prefix), None)
        if number is not None:
            inside = f"{prefix}.{number}."
            own = {m.name.removeprefix(inside) for m in axis.members if m.name.startswith(inside)}
            names.setdefault(number, set()).update(own)
    counts = Counter(name for own in names.values() for name in own)
    return len(names) == 1 or any(count > 1 for count in counts.values())
