"""How a model's numbers lie in memory while it trains: channels last where its code lets them, row by row elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sslprune.capture.mode import evaluating
from sslprune.values.carry import with_state
from sslprune.values.inputs import Inputs, arguments, each


def channels_last(value: Tensor) -> Tensor:
    """The layout that oneDNN and cuDNN compute 2d convolutions in: a fifth faster on a CPU than the default."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def lay_out_(models: Sequence[nn.Module], example: Inputs) -> Callable[[Tensor], Tensor]:
    """Lay the filters of ``models`` channels last, in place, if all of them run so; what lays their inputs out alike.

    Code such as ``x.view(x.size(0), 256)`` behind a convolution runs on rows alone: such a model stays as it is.
    """
    filters = [parameter for model in models for parameter in model.parameters() if parameter.dim() == 4]
    before = [parameter.data for parameter in filters]
    for parameter in filters:
        parameter.data = channels_last(parameter.data)
    if filters and all(_runs(model, each(example, channels_last)) for model in models):
        return channels_last
    for parameter, data in zip(filters, before, strict=True):
        parameter.data = data
    return lambda value: value


@torch.no_grad()
def _runs(model: nn.Module, inputs: Inputs) -> bool:
    """Whether ``model`` takes ``inputs``, as it evaluates and as it trains; its buffers stay as they are."""
    args, kwargs = arguments(inputs)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with evaluating(model), torch.random.fork_rng(devices=[]):
        try:
            for training in (False, True):
                model.train(training)
                model(*with_state(model, args), **kwargs)
        except Exception:  # whatever it is: as it lies by itself, the model says it again
            return False
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)
    return True
