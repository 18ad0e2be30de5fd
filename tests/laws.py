"""What the laws are stated with: lively weights, random removals, kept slices, a deliberate error, a fresh process.

Used by the law tests on small architectures and by ``scripts/coverage.py`` on published ones.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslprune.capture.program import Program
from sslprune.cost.counts import Cost
from sslprune.export.program import save_program
from sslprune.values.axes import Axis, Member, tensors_of, zero_groups, zero_mask
from sslprune.values.compare import difference
from sslprune.values.inputs import random_like, tensors_in
from sslprune.values.selection import Selection


@torch.no_grad()
def lively_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value that matters, in place.

    Fresh weights hide errors: norms are nearly the identity, layer scales are 1e-6, attention is nearly uniform.
    """
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            normal = torch.randn(parameter.shape, generator=random)
            if "bias" in name:
                parameter.copy_(0.3 * normal)
            elif parameter.dim() == 0 or max(parameter.shape) == parameter.numel():  # one value a channel: a scale
                parameter.copy_(torch.rand(parameter.shape, generator=random) + 0.5)
            elif isinstance(module, nn.Embedding) or parameter.shape[0] == 1:  # tokens, positions
                parameter.copy_(0.5 * normal)
            else:  # He et al. 2015: keeps the signal's size through a rectifier
                parameter.copy_((2 * parameter.shape[0] / parameter.numel()) ** 0.5 * normal)
    return model


@torch.no_grad()
def settle_(model: nn.Module, args: tuple[Any, ...], seed: int = 0) -> nn.Module:
    """Give every batch norm running statistics that fit ``args`` but for some noise, in place; eval mode after it.

    With others the signal of a deep network dies on its way, biases are all that is left, and errors go unseen.
    """
    random = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_var is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        model.train()(*args)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None and var is not None
        var.copy_((var + 0.1 * var.mean() + 1e-3) * (torch.rand(var.shape, generator=random) + 0.6))
        mean.add_(0.3 * torch.randn(mean.shape, generator=random) * var.sqrt())
    return model.eval()


def zero_random_(model: nn.Module, program: Program, axes: Sequence[Axis], random: np.random.Generator) -> None:
    """Zero a random half of the groups of every axis, in place; at least one stays.

    Of the layers about a half, but never all operands of one sum: nothing behind it could tell right from wrong.
    """
    gone = Selection.none(axes)
    for i, axis in enumerate(axes):
        if axis.kind != "layers":
            gone = gone.plus({i: random.permutation(axis.size)[: axis.size // 2]})
    cost = Cost(program, axes)
    for i in random.permutation(len(axes)):
        if axes[i].kind == "layers" and random.integers(2) and cost.savings(gone, "parameters")[i].any():
            gone = gone.plus({int(i): np.array([0])})
    for axis in axes:
        zero_groups(model, axis, np.flatnonzero(gone[axis]))


def kept_indices(model: nn.Module, axes: Sequence[Axis], name: str) -> list[np.ndarray]:
    """The indices that no zero group of ``axes`` covers, per dimension of the masked model's tensor ``name``."""
    shape = tensors_of(model)[name].shape
    kept = [np.ones(size, bool) for size in shape]
    for axis in axes:
        members = [member for member in axis.members if member.name == name and not member.flat]
        if members:
            zero = zero_mask(model, axis)
            for member in members:
                kept[member.dim][member.positions[zero].reshape(-1)] = False
    return [np.flatnonzero(mask) for mask in kept]


def kept_slice(tensor: Tensor, indices: Sequence[np.ndarray]) -> Tensor:
    for dim, index in enumerate(indices):
        tensor = tensor.index_select(dim, torch.from_numpy(index))
    return tensor


@torch.no_grad()
def has_effect(model: nn.Module, name: str, args: tuple[Any, ...]) -> bool:
    """Whether the output depends on the tensor ``name`` at all: what only a removed layer reads does not show."""
    tensor = tensors_of(model)[name]
    right, expected = tensor.detach().clone(), model(*args)
    tensor.mul_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)))
    changed = difference(expected, model(*args))[1]
    tensor.copy_(right)
    return not changed <= 1e-3


def wrong_slices(
    model: nn.Module, small: nn.Module, axes: Sequence[Axis], args: tuple[Any, ...], limit: int = sys.maxsize
) -> Iterator[tuple[Axis, Member]]:
    """The negative control: while each pair is held, ``small`` has that one member's kept indices shifted by one.

    One pair for each axis that lost a group, up to ``limit``: the largest of its trained members that has two or more
    dimensions and an effect on the output.
    """
    originals, repacked = tensors_of(model), tensors_of(small)
    for axis in axes:
        zero = zero_mask(model, axis)
        if axis.kind == "layers" or not limit or not zero.any() or zero.all():
            continue
        candidates = [
            m for m in axis.members if m.zeroed and not m.flat and m.name in repacked and originals[m.name].dim() > 1
        ]
        for member in sorted(candidates, key=lambda m: -originals[m.name].numel()):
            target = repacked[member.name]
            indices = kept_indices(model, axes, member.name)
            indices[member.dim] = (indices[member.dim] + 1) % originals[member.name].shape[member.dim]
            if [len(index) for index in indices] == list(target.shape) and has_effect(model, member.name, args):
                right = target.detach().clone()
                target.detach().copy_(kept_slice(originals[member.name].detach(), indices))
                yield axis, member
                target.detach().copy_(right)
                limit -= 1
                break


RELOAD = """
import pathlib, sys
sys.modules["sslprune"] = sys.modules["tests"] = None
import torch
from torch.utils import _pytree as pytree
for path in sorted(pathlib.Path(".").glob("*.pt2")):
    args, expected = torch.load(path.with_suffix(".pt"), weights_only=True)
    found = pytree.tree_leaves(torch.export.load(path).module()(*args))
    assert [a.shape for a in expected] == [b.shape for b in found], path
    print(path.stem, max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True)))
"""


@torch.no_grad()
def save_for_reload(name: str, model: nn.Module, small: nn.Module, args: tuple[Any, ...], folder: Path) -> None:
    """Write ``small`` as ``name.pt2`` into ``folder``, and beside it what ``model`` gives at another batch size."""
    save_program(small, args, folder / f"{name}.pt2")
    save_expected(name, model, args, folder)


@torch.no_grad()
def save_expected(name: str, model: nn.Module, args: tuple[Any, ...], folder: Path) -> None:
    """Write what ``model`` gives at another batch size into ``folder``, beside ``name.pt2``."""
    args = random_like(args, 3)
    torch.save((args, tensors_in(model(*args))), folder / f"{name}.pt")


def reload_without_sslprune(folder: Path) -> dict[str, float]:
    """The relative difference of each ``.pt2`` in ``folder``, loaded in a fresh process that cannot import sslprune."""
    done = subprocess.run([sys.executable, "-c", RELOAD], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(done.stderr)
    return {name: float(worst) for name, worst in (line.split() for line in done.stdout.splitlines())}
