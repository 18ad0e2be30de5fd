"""Batch norms that see the batch of all processes, whatever calls them: a module, or an operator of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class synchronised(TorchFunctionMode):  # N801: used as a context
    """Inside, a batch norm in training takes mean and variance over the rows of all ``world`` processes, of which each
    has as many; the running statistics follow them."""

    def __init__(self, world: int) -> None:
        super().__init__()
        self.world = world

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._of_module(func, *args, **kwargs)
        if func is torch.ops.aten.batch_norm.default:
            x, weight, bias, mean, var, training, momentum, eps, *_ = args
            if training:
                return self._normalised(x, mean, var, weight, bias, momentum, eps)
        return func(*args, **kwargs)

    def _of_module(
        self,
        func: Callable[..., Any],
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training:
            return self._normalised(x, mean, var, weight, bias, momentum, eps)
        result: Tensor = func(x, mean, var, weight, bias, training, momentum, eps)
        return result

    def _normalised(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        others = [dim for dim in range(x.dim()) if dim != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        wide = x.float()
        mean = _AllMean.apply(wide.mean(others), self.world)
        centred = wide - mean.view(shape)
        var = _AllMean.apply(centred.square().mean(others), self.world)
        if running_mean is not None and running_var is not None:
            count = self.world * x.numel() // x.shape[1]
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((var * (count / max(1, count - 1))).to(running_var), momentum)
        scale = (var + eps).rsqrt()
        if weight is not None:
            scale = scale * weight
        out = centred * scale.view(shape)
        return (out if bias is None else out + bias.view(shape)).to(x.dtype)


class _AllMean(torch.autograd.Function):
    """The mean over all processes; so is its gradient, as each of them takes part in the others' losses."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, world: int) -> Tensor:
        ctx.world = world
        return _mean(value, world)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _mean(grads[0], ctx.world), None


def _mean(value: Tensor, world: int) -> Tensor:
    total = value.contiguous().clone()
    dist.all_reduce(total)
    return total / world
