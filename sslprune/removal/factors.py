"""Factored modules: a linear layer or a convolution whose weight is a product of two, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslprune.analysis.factors import DOWN, UP
from sslprune.removal.owners import owner_of

Form = Literal["linear", "pointwise", "separable"]
LEAF = "weight"


class Factors(NamedTuple):
    """Two factors of one weight, in the shapes that its layer takes them in."""

    form: Form
    down: Tensor
    up: Tensor


def matrix(weight: Tensor, form: Form) -> Tensor:
    """The weight (out, in, *kernel) as the matrix that two factors make: (out, in), (out, in h w) or (out w, in h)."""
    if form == "separable":
        return weight.permute(0, 3, 1, 2).flatten(0, 1).flatten(1)
    return weight.flatten(1)


def split(down: Tensor, up: Tensor, shape: torch.Size, form: Form) -> tuple[Tensor, Tensor]:
    """Factors (rank, columns) and (rows, rank) of such a matrix, in the shapes that the layers take them in."""
    if form == "linear":
        return down, up
    rank = len(down)
    if form == "pointwise":
        return down.view(rank, *shape[1:]), up.view(-1, rank, *[1] * (len(shape) - 2))
    out, inner, height, width = shape
    return down.view(rank, inner, height, 1), up.view(out, width, rank, 1).permute(0, 2, 3, 1)


def product(down: Tensor, up: Tensor) -> Tensor:
    """The one weight that two factors are, summed over their rank in float64."""
    if down.dim() == 2:
        return (up.double() @ down.double()).to(down.dtype)
    return torch.einsum("or...,ri...->oi...", up.double(), down.double()).to(down.dtype).contiguous()


class Factored(nn.Module):
    """A layer of a person's own model with two factors in place of its weight, which is their product to who reads it.

    ``form``: "linear", (rank, in) and (out, rank); of a convolution "pointwise", (rank, in, *kernel) and a 1 x 1 one,
    or "separable", (rank, in, h, 1) and (out, rank, 1, w).
    """

    form: Form
    whole: type[nn.Module]  # the class that the module was of
    weight_down: Tensor
    weight_up: Tensor

    @property
    def weight(self) -> Tensor:
        return product(self.weight_down, self.weight_up)

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        if self.form == "linear":
            return F.linear(F.linear(x, self.weight_down), self.weight_up, own.bias)
        convolve: Any = getattr(F, f"conv{self.weight_down.dim() - 2}d")
        if self.form == "pointwise":
            inside = convolve(x, self.weight_down, None, own.stride, own.padding, own.dilation)
            return convolve(inside, self.weight_up, own.bias)
        stride, padding, dilation = (_by_side(value, rest) for value, rest in _windows(own))
        inside = F.conv2d(x, self.weight_down, None, stride[0], padding[0], dilation[0])
        return F.conv2d(inside, self.weight_up, own.bias, stride[1], padding[1], dilation[1])


def _windows(module: Any) -> tuple[tuple[Any, int], ...]:
    return (module.stride, 1), (module.padding, 0), (module.dilation, 1)


def _by_side(value: Any, rest: int) -> tuple[Any, Any]:
    """What of a pair is the first convolution's, which goes down, and the second's, which goes across."""
    return (value, value) if isinstance(value, str) else ((value[0], rest), (rest, value[1]))


@torch.no_grad()
def factor_(model: nn.Module, factors: Mapping[str, Form | Factors]) -> nn.Module:
    """Put two factors in the place of each weight that is named, in place; of a form alone, the weight and ones.

    The modules stay of their class. Raises RepackError for a name that the model lacks.
    """
    for name, given in factors.items():
        owner, leaf, weight = owner_of(model, name, "put two factors for")
        made = _plain(weight, given) if isinstance(given, str) else given
        before = type(owner)
        del owner._parameters[leaf]
        owner.__class__ = type(before.__name__, (Factored, before), {"form": made.form, "whole": before})
        for suffix, part in ((DOWN, made.down), (UP, made.up)):
            tensor = part.to(weight).contiguous()
            owner.register_parameter(leaf + suffix, nn.Parameter(tensor, requires_grad=weight.requires_grad))
    return model


def _plain(weight: Tensor, form: Form) -> Factors:
    """Factors at full rank that cost nothing to find: the weight, and the identity on its smaller side."""
    whole = matrix(weight, form)
    rows, columns = whole.shape
    same = torch.eye(min(rows, columns), dtype=weight.dtype, device=weight.device)
    return Factors(form, *split(*((whole, same) if rows <= columns else (same, whole)), weight.shape, form))


@torch.no_grad()
def fold_(model: nn.Module, names: Iterable[str] | None = None) -> nn.Module:
    """Multiply the two factors of each weight that is named, or of all, to the one that it was; in place."""
    every = [f"{path}.{LEAF}".lstrip(".") for path, module in model.named_modules() if isinstance(module, Factored)]
    for name in every if names is None else names:
        module = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, Factored):
            continue
        owner: Any = module
        weight, trained, whole = owner.weight, owner.weight_down.requires_grad, type(owner).whole
        for suffix in (DOWN, UP):
            del owner._parameters[LEAF + suffix]
        owner.__class__ = whole
        owner.register_parameter(LEAF, nn.Parameter(weight, requires_grad=trained))
    return model
