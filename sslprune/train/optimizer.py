"""The optimizer of a recipe, and its learning rate as a plain function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from sslprune.recipe import TrainSection

ONE_CYCLE_RISE = 0.3  # share of training over which one-cycle rises, from a 25th of its peak (Smith and Topin 2018)


def build_optimizer(model: nn.Module, section: TrainSection) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that train."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # one kernel for all is four times faster on a CPU; torch has none for SGD on sharded parameters
    fused = not any(isinstance(parameter, DTensor) for parameter in parameters)
    if section.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=section.lr, weight_decay=section.weight_decay, fused=fused)
    return torch.optim.SGD(
        parameters,
        lr=section.lr,
        momentum=section.momentum,
        weight_decay=section.weight_decay,
        nesterov=section.nesterov,
        fused=fused,
    )


def learning_rate(section: TrainSection, step: int, num_steps: int, epoch_steps: int) -> float:
    """The learning rate of ``step`` (from 0) in a schedule of ``num_steps``; always above 0."""
    warmup = min(section.warmup.steps(epoch_steps), num_steps - 1)
    if step < warmup:
        return section.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, num_steps - warmup)  # 0 to just under 1
    if section.lr_schedule == "cosine":
        return section.lr * _fall(done)
    if section.lr_schedule == "linear":
        return section.lr * (1 - done)
    if section.lr_schedule == "one-cycle":
        if done < ONE_CYCLE_RISE:
            return section.lr * (1 - (1 - 1 / 25) * _fall(done / ONE_CYCLE_RISE))
        return section.lr * _fall((done - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))
    if section.lr_schedule == "step":
        return section.lr * section.gamma ** sum(done >= milestone for milestone in section.milestones)
    return section.lr


def _fall(done: float) -> float:
    """Half a cosine, from 1 at 0 to 0 at 1."""
    return (1 + math.cos(math.pi * done)) / 2
