"""Distillation of what modules make inside (CoFi: Xia et al. 2022, §3.2): a student's outputs beside a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslprune.errors import RecipeError, TrainingError
from sslprune.recipe import DistillSection
from sslprune.removal.packed import Packed
from sslprune.values.carry import Carrying
from sslprune.values.inputs import Inputs, tensors_in


class Hidden:
    """Listens to the modules of a student and of its teacher that a section names.

    A module that is gone from the student is left out, and so is one whose output had another size than the teacher's
    from the beginning. Of an output that lost widths what is left is compared, with the same indices of the teacher's.
    """

    def __init__(self, section: DistillSection) -> None:
        self.section = section
        self.names: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()  # of who was heard, the modules
        self.left: dict[str, dict[int, tuple[int, Tensor]]] = {}  # of outputs: by dimension, its size and what is left
        self.found = False  # a module of both

    @contextmanager
    def heard(self, model: Callable[..., Any]) -> Iterator[dict[str, Tensor]]:
        """Filled with what the modules of ``model`` make while this is entered, by name."""
        module = model.model if isinstance(model, Carrying) else model
        assert isinstance(module, nn.Module)
        if module not in self.names:
            self.names[module] = named(dict(module.named_modules()), self.section.modules)
            if isinstance(module, Packed):  # a shrunk student, whose graph calls no modules by itself
                self.left = {
                    name: {d: (len(mask), torch.from_numpy(np.flatnonzero(mask))) for d, mask in masks.items()}
                    for name, masks in module.announce(self.names[module]).items()
                }
        names = self.names[module]
        made: dict[str, Tensor] = {}
        hooks = [module.get_submodule(name).register_forward_hook(_note(made, name)) for name in names]
        try:
            yield made
        finally:
            for hook in hooks:
                hook.remove()

    def mixed(self, loss: Tensor, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """``loss`` and the distance, as the section weighs them; raises TrainingError where nothing can be compared."""
        theirs = {name: _left(theirs[name], self.left.get(name, {})) for name in mine if name in theirs}
        both = [name for name in theirs if mine[name].shape == theirs[name].shape]
        if not both and not self.found:
            raise TrainingError(
                f"distill.modules: none of the modules that {', '.join(self.section.modules)} names makes what the "
                "teacher's of that name makes, in its size; name others, or leave hidden out"
            )
        self.found = True
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        share = self.section.hidden
        return (1 - share) * loss + share * sum(_distance(mine[name], theirs[name], mask) for name in both)


def named(modules: Iterable[str], globs: Sequence[str]) -> list[str]:
    """Those of the names of ``modules`` that the globs mean."""
    return [name for name in modules if any(fnmatchcase(name, glob) for glob in globs)]


def check_named(model: nn.Module, globs: Sequence[str]) -> None:
    """Raise RecipeError for a glob that means no module."""
    modules = [name for name, _ in model.named_modules()]
    for glob in globs:
        if not named(modules, [glob]):
            some = [name for name in modules if name]
            raise RecipeError(
                f'distill.modules: no module is called "{glob}"; there are {", ".join(some[:5])}'
                f"{', ...' if len(some) > 5 else ''}"
            )


def _note(made: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        tensors = tensors_in(output)
        if tensors:
            made[name] = tensors[0]

    return hook


def _left(made: Tensor, left: Mapping[int, tuple[int, Tensor]]) -> Tensor:
    """What a teacher made, without the indices that the student's output has lost."""
    for d, (size, indices) in left.items():
        if made.dim() > d and made.shape[d] == size:
            made = made.index_select(d, indices.to(made.device))
    return made


def _distance(mine: Tensor, theirs: Tensor, mask: Tensor | None) -> Tensor:
    """The mean squared error, without the places that an attention mask (batch, tokens) leaves out."""
    if mask is not None and mine.shape[:2] == mask.shape:
        mine, theirs = mine[mask.bool()], theirs[mask.bool()]
    return F.mse_loss(mine.float(), theirs.float())
