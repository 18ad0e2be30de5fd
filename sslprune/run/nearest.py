"""The shipped recipe whose model is most like the one that was looked at: what a starter begins with.

A model's traits are the operators of its graph, the kinds of its axes, what it reads and what it gives: facts that do
not depend on its size. Two models are as like as the traits that they share, each weighed by how rare it is among the
shipped ones; that it multiplies and adds says little of a model, and that it picks the largest of a few, much. Only
such are compared as read the same, pictures, words, or a spectrogram and words, and what they give counts threefold:
a class for each picture and a class for each place of it are learned in other ways.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor
from torch.utils import _pytree as pytree

from sslprune.capture.program import Program, operator_name
from sslprune.values.axes import Axis
from sslprune.values.inputs import tensors_in

SHIPPED_FILE = Path(__file__).parent / "shipped.json"  # written by scripts/shipped_looks.py from recipes/
LEAST = 0.25  # of the weight of all their traits: what is less alike is begun from nothing
SECTIONS = ("budget", "schedule", "distill", "train", "lasso", "gates")  # that a starter takes over


@dataclass(frozen=True)
class Shipped:
    """A recipe that ships: the traits of its model, the kinds that it prunes, and its sections as they are written."""

    name: str
    traits: frozenset[str]
    kinds: tuple[str, ...]
    sections: Mapping[str, str]


def traits(program: Program, axes: Sequence[Axis]) -> frozenset[str]:
    """What a traced model is made of, in words."""
    found = {f"axes of {axis.kind}" for axis in axes if axis.prunable}
    for node in program.evaluation.nodes:
        if node.op == "call_function":
            groups = [arg for arg in node.args[-1:] if operator_name(node).startswith("conv") and isinstance(arg, int)]
            found.add(f"{operator_name(node)}{' of groups' if any(count > 1 for count in groups) else ''}")
        elif node.op == "output":
            found |= {f"gives {_form(leaf)}" for leaf in _values(node.args)}
    return frozenset(found | {f"reads {_form(leaf)}" for leaf in tensors_in((program.args, program.kwargs))})


def _values(nodes: object) -> list[Tensor]:
    leaves = [getattr(leaf, "meta", {}).get("val") for leaf in pytree.tree_leaves(nodes)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _form(leaf: Tensor) -> str:
    return f"{'numbers' if leaf.is_floating_point() else 'whole numbers'} of {leaf.dim()} dimensions"


@cache
def shipped() -> tuple[Shipped, ...]:
    """The recipes that a starter may begin from."""
    found = json.loads(SHIPPED_FILE.read_text(encoding="utf-8"))
    return tuple(
        Shipped(name, frozenset(one["traits"]), tuple(one["kinds"]), one["sections"]) for name, one in found.items()
    )


def nearest(found: Collection[str], recipes: Sequence[Shipped] | None = None) -> Shipped | None:
    """The recipe whose model has most in common with one of the traits ``found``; None where none is near."""
    recipes = shipped() if recipes is None else recipes
    read = _read(found)
    known = Counter(trait for one in recipes for trait in one.traits)

    def weight(some: Collection[str]) -> float:
        rare = {trait: math.log((1 + len(recipes)) / (1 + known[trait])) + 0.05 for trait in some}
        return sum(value * (3 if trait.startswith("gives ") else 1) for trait, value in rare.items())

    def alike(one: Shipped) -> float:
        return weight(one.traits & set(found)) / weight(one.traits | set(found))

    best = max((one for one in recipes if _read(one.traits) == read), key=alike, default=None)
    return best if best is not None and alike(best) >= LEAST else None


def _read(found: Collection[str]) -> set[str]:
    return {trait for trait in found if trait.startswith("reads ")}


def sections_of(text: str) -> dict[str, str]:
    """The sections of a recipe that a starter takes over, as they are written, without what follows the last line."""
    parts = re.split(r"^(?=\[)", text, flags=re.MULTILINE)
    found = {part[1 : part.index("]")]: part.rstrip() + "\n" for part in parts if part.startswith("[")}
    return {name: found[name] for name in SECTIONS if name in found}
