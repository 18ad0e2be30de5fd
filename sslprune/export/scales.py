"""Attention whose heads got narrower: a class scales by its own head's width, so its queries make up for it.

A repacked graph goes on to divide by the root of the width d that heads had; a class of width d' divides by the root of
d'. Queries, or keys, times the root of d' / d give the same products. Which of a layer's projections these are no name
has to say: of those that got narrower each is tried, and the comparison with the repacked model decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import sqrt
from typing import Any

from torch import Tensor, nn

from sslprune.export.renumber import Held


def rescaled_projections(model: nn.Module, held: Held, changes: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Tensors in place of some of ``held``: one projection of every layer, scaled as another width of heads asks."""
    whole, config = model.state_dict(), getattr(model, "config", None)
    groups: dict[str, dict[str, float]] = {}  # by projection: of each of its tensors how much of dimension 0 is left
    for name, tensor in held.tensors.items():
        before = whole[held.before[name]].shape
        if tensor.dim() == 2 and tensor.shape[0] < before[0] and tensor.shape[1] == before[1]:
            module = name.rpartition(".")[0]
            same = {key: tensor.shape[0] / before[0] for key in (name, f"{module}.bias") if key in held.tensors}
            groups.setdefault(re.sub(r"\.\d+\.", ".*.", module), {}).update(same)
    counts = {
        new / old
        for name, new in changes.items()
        if isinstance(new, int) and isinstance(old := getattr(config, name, None), int) and old
    }
    for tensors in groups.values():
        (left, *others) = set(tensors.values())
        for share in sorted({left, *(left / count for count in counts)} if not others else ()):
            if share < 1:
                yield {name: held.tensors[name] * sqrt(share) for name in tensors}
