"""Stacking tensors, and taking single ones out again."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import fx

from sslprune.analysis.facts import Part
from sslprune.analysis.inference import Inference, Rule, may_be_computed
from sslprune.analysis.zeros import Keeps


def stack(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """What takes single entries of the stack ties none to another; what reads it whole ties them all."""
    take = lambda tensor: lambda r: r.mapped(tensor)  # noqa: E731
    parts = [Part(tuple(g.dims(tensor)), Keeps(tensor), take(tensor)) for tensor in a.tensors]
    g.out_parts(node, a.dim % len(g.shape(node)), parts)


@may_be_computed("index")
def select(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """One index is taken and must stay; the others may go."""
    if isinstance(a.index, int) and _entries(g, node, a, [a.index]):
        return
    x = g.dims(a.self)
    dim = a.dim % len(x)
    old = x.pop(dim)
    if isinstance(a.index, fx.Node):
        g.freeze([old], node, "an index that depends on the input")
        g.out(node, x, Keeps(a.self, tuple(x)))
        return
    index = a.index % old.size
    g.freeze([old.take(np.array([index]))], node, f"index {index} is selected")
    g.out(node, x, Keeps(a.self, tuple(x)))
    g.on_repack(node, lambda r: r.set("index", int(r.mask(old)[:index].sum())) if r.changed(old) else None)


def unbind(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    if _entries(g, node, a, range(g.num_outputs(node))):
        return
    x = g.dims(a.self)
    old = x.pop(a.dim % len(x))
    g.freeze([old], node, "each index is used by itself")
    for _ in range(g.num_outputs(node)):
        g.out(node, x, Keeps(a.self, tuple(x)))


def _entries(g: Inference, node: fx.Node, a: SimpleNamespace, indices: Sequence[int]) -> bool:
    """Whether ``node`` takes single ``indices`` of what something stacked: then each keeps the width of what it was."""
    parts = g.parts(a.self, a.dim % len(g.shape(a.self)))
    if not parts:
        return False
    chosen = [parts[index] for index in indices]
    for part in chosen:
        g.out(node, part.dims, part.zero)

    def rewrite(r: Any) -> None:
        if len({tuple(map(r.size, part.dims)) for part in parts}) == 1:
            return  # they can be stacked still
        lone = isinstance(node.meta["val"], torch.Tensor)
        for reader in [r.node] if lone else list(r.node.users):
            alone = chosen[0 if lone else reader.args[1]].take(r)
            if alone is not None:
                r.replace(reader, alone)

    g.on_repack(node, rewrite)
    return True


RULES: dict[str, Rule] = {"stack": stack, "select": select, "unbind": unbind}
