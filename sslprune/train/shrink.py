"""Shrinking while training: groups that are held at zero leave the model that trains, which then runs faster.

PruneTrain (Lym et al. 2019, §4.2): the model is rebuilt from time to time without what has become zero, and the
optimizer's state is sliced along. Each removal starts from the whole model, so it is a function of that and of the
groups that are gone alone: a resumed run repeats it, and the trained numbers can always be put back in their places.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from sslprune.capture.program import Program
from sslprune.errors import RepackError, TrainingError
from sslprune.removal.packed import Packed
from sslprune.removal.remove import computed_weight, origins, removable, remove
from sslprune.train.lasso import GroupLasso
from sslprune.values.axes import Axis, tensors_of, zero_groups
from sslprune.values.selection import Selection

Follower = Optimizer | AveragedModel


def shrink(
    model: nn.Module,
    program: Program,
    axes: Sequence[Axis],
    *followers: Follower,
    lasso: GroupLasso | None = None,
) -> nn.Module:
    """``model`` without the groups of ``axes`` that are zero, ready to go on training; once: see `Shrinker` for more.

    ``followers`` are the optimizers of the model and its averaged copies: they are changed in place, to what is left.
    """
    shrinker = Shrinker(model, program, axes, lasso)
    shrinker.shrink(*followers)
    return shrinker.model


class Shrinker:
    """Takes zero groups out of ``model`` while it trains, again and again.

    ``self.model`` is what trains: the ``model`` given, and after a removal a smaller one, with the same names of
    parameters and buffers. ``program`` and ``axes`` are those of ``model``. With a ``lasso``, groups go that it holds
    at zero, and it acts on what is left; without one, whatever is exactly zero. Inexact axes stay as they are, and
    those of weights that are computed from parameters, as `notes` say. Raises RepackError for a model that has no graph
    to train, or whose batch size is fixed.
    """

    def __init__(
        self, model: nn.Module, program: Program, axes: Sequence[Axis], lasso: GroupLasso | None = None
    ) -> None:
        if program.training is None or not program.dynamic_batch:
            raise RepackError(f"the model cannot shrink while it trains: {'; '.join(program.notes)}")
        self.whole, self.model = model, model
        self.program, self.axes, self.lasso = program, list(axes), lasso
        self.removed = Selection.none(self.axes)  # what is gone
        self._origins: dict[str, Tensor] = {}
        computed = [computed_weight(program, axis) for axis in self.axes]
        self._fixed = [not axis.exact or name is not None for axis, name in zip(self.axes, computed, strict=True)]
        self.notes = [
            f"{axis.name} [{axis.kind}] stays at its size while the model trains: {name} is not a weight itself, the "
            "model computes one of it"
            for axis, name in zip(self.axes, computed, strict=True)
            if name is not None
        ]  # which axes cannot go before the end, and why

    def shrink(self, *followers: Follower) -> bool:
        """Take out what has become zero; whether there was anything.

        Optimizers get the smaller parameters and their slices of the state; an averaged model gets a smaller module.
        Call it between a step and the next batch. Raises TrainingError, before anything is changed, for an optimizer
        whose state cannot be sliced.
        """
        self.restore()
        wanted = Selection.zeros(self.whole, self.axes)
        wanted = Selection.of(self.axes, [zero & held for zero, held in zip(wanted, self._held(), strict=True)])
        removed = removable(self.program, wanted, before=self.removed)
        if removed == self.removed:
            return False
        self.remove(removed, *followers)
        return True

    @torch.no_grad()
    def remove(self, removed: Selection, *followers: Follower) -> None:
        """Take the groups of ``removed`` out, as ``shrink`` does."""
        old = tensors_of(self.model)
        for follower in followers:
            if isinstance(follower, Optimizer):
                _check_state(follower, old)
            else:
                _check_average(follower, old)
        small = remove(self.whole, self.program, removed, verify=False, fold=False)
        whole, new = tensors_of(self.whole), tensors_of(small)
        for name, parameter in small.named_parameters():
            assert name in whole, f"{name} is computed"
            parameter.data = _laid_out_as(whole[name], parameter.data)
        small.to(next(self.whole.parameters()).device).train(self.model.training)
        now = origins(self.program, removed)
        move = _Move({name: tensor.shape for name, tensor in whole.items()}, self._origins, now)
        for follower in followers:
            if isinstance(follower, Optimizer):
                _repoint(follower, old, new, move)
            else:
                follower.module = _averaged(follower.module, small, move)
        if self.lasso is not None:
            self.lasso.follow(small, now)
        for axis in self.axes:  # what only a dropped branch held would keep its groups from ever being zero
            lost = tuple(member for member in axis.members if member.name not in new)
            zero_groups(self.whole, replace(axis, members=lost), range(axis.size))
        self.model.zero_grad()  # nobody reads these gradients any more
        self.model, self.removed, self._origins = small, removed, now

    @torch.no_grad()
    def restore(self) -> nn.Module:
        """The whole model with the trained numbers in their places and the groups that are gone at zero."""
        if self.model is not self.whole:
            whole = tensors_of(self.whole)
            for name, tensor in tensors_of(self.model).items():
                if name in whole:
                    flat = whole[name].reshape(-1)  # a copy where the layout is another
                    flat[self._origins[name].view(-1) if name in self._origins else ...] = tensor.reshape(-1)
                    whole[name].copy_(flat.view(whole[name].shape))
        return self.whole

    def _held(self) -> list[np.ndarray]:
        """Which groups may go if they are zero: all, or those that the lasso holds there; not those that are fixed."""
        held = [np.full(axis.size, not fixed) for axis, fixed in zip(self.axes, self._fixed, strict=True)]
        if self.lasso is not None:
            alive = self.lasso.split(self.lasso.alive[:-1].cpu().numpy())
            at_zero = {id(axis): values == 0 for axis, values in zip(self.lasso.axes, alive, strict=True)}
            held = [mask & at_zero.get(id(axis), False) for axis, mask in zip(self.axes, held, strict=True)]
        return held


class _Move:
    """From one selection of the whole tensors' numbers to another: what is new there starts at zero."""

    def __init__(
        self, shapes: Mapping[str, torch.Size], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> None:
        self.shapes, self.before, self.after = shapes, before, after

    def __call__(self, name: str, value: Tensor, like: Tensor) -> Tensor:
        """``value``, of the shape of the tensor ``name`` before, as one of that after, which is ``like``."""
        flat = value.reshape(-1)
        if name in self.before:
            flat = value.new_zeros(self.shapes[name].numel())
            flat[self.before[name].view(-1)] = value.reshape(-1)
        if name in self.after:
            flat = flat[self.after[name].view(-1)]
        return torch.empty_like(like, dtype=value.dtype).copy_(flat.view(like.shape))  # fused kernels: equal strides


def _check_state(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Raise TrainingError for state of a parameter in ``tensors`` that is neither single numbers nor of its shape."""
    names = {id(tensor): name for name, tensor in tensors.items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items() if id(parameter) in names else ():
            if value is None or isinstance(value, int | float | str):
                continue
            if isinstance(value, Tensor) and value.shape in (torch.Size(()), parameter.shape):
                continue
            what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise TrainingError(
                f"{type(optimizer).__name__}: the state '{key}' of {names[id(parameter)]} is {what}, expected one "
                f"number or the parameter's shape {tuple(parameter.shape)}: it cannot be sliced; take another "
                "optimizer, or do not shrink while training"
            )


def _check_average(average: AveragedModel, tensors: Mapping[str, Tensor]) -> None:
    """Raise TrainingError for the average of another model than that of ``tensors``."""
    averages = tensors_of(average.module)
    for name in {**tensors, **averages}:
        if name not in averages or name not in tensors or averages[name].shape != tensors[name].shape:
            raise TrainingError(
                f"{type(average).__name__}: {name} is not of the same shape in the averaged model and in the one that "
                "trains; expected an average of that, begun before anything was taken out or shrunk along with it"
            )


def _repoint(optimizer: Optimizer, old: Mapping[str, Tensor], new: Mapping[str, Tensor], move: _Move) -> None:
    """Let ``optimizer`` train the ``new`` parameters, with its state of the ``old`` ones sliced; in place."""
    names = {id(tensor): name for name, tensor in old.items()}
    for group in optimizer.param_groups:
        left: list[Tensor] = []
        for parameter in group["params"]:
            name = names.get(id(parameter))
            state = optimizer.state.pop(parameter, {}) if name is not None else {}
            if name is None:
                left.append(parameter)  # of another model
            elif name in new:
                left.append(new[name])
                if state:
                    optimizer.state[new[name]] = {
                        key: move(name, value, new[name])
                        if isinstance(value, Tensor) and value.shape == parameter.shape
                        else value
                        for key, value in state.items()
                    }
        group["params"][:] = left  # the list itself: some optimizers keep it by another name


def _averaged(old: nn.Module, small: Packed, move: _Move) -> Packed:
    """The averages in ``old`` as a model like ``small``."""
    new, values = copy.deepcopy(small).requires_grad_(False), tensors_of(old)
    for name, tensor in tensors_of(new).items():
        if name in values:
            tensor.copy_(move(name, values[name], tensor))
    return new.train(old.training)


def _laid_out_as(whole: Tensor, small: Tensor) -> Tensor:
    """``small`` in the memory format of the tensor that it is a part of."""
    for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if whole.dim() == dims and whole.is_contiguous(memory_format=layout) and not whole.is_contiguous():
            return small.contiguous(memory_format=layout)
    return small
