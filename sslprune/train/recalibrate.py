"""Batch norms' running statistics, taken anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from typing import Any, Protocol

import torch
from torch import nn

from sslprune.values.carry import carrying
from sslprune.values.inputs import Inputs, call


class Passes(Protocol):
    """Batches of (inputs, targets), in passes."""

    def epoch(self, epoch: int, /) -> Iterator[tuple[Inputs, Any]]: ...


def recalibrate(model: nn.Module, batches: Passes, steps: int, advance: Callable[[], Any] = lambda: None) -> None:
    """Set the running mean and variance of every batch norm to the mean over ``steps`` batches, in place.

    The weights stay as they are, and so does whatever else differs between training and evaluation, such as dropout:
    only batch norms look at the batch. Passes over ``batches`` begin at 0. A model without batch norm is left alone.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    was_training = model.training
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    run = carrying(model)
    passes = chain.from_iterable(batches.epoch(number) for number in count())
    with torch.no_grad():
        for inputs, _ in islice(passes, steps):
            call(run, inputs)
            advance()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)
