"""What a module is while it is asked something: its mode, what it holds; and how that comes back."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

CONTAINERS = (dict, OrderedDict, list, set)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every submodule's own mode comes back after it."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    try:
        module.eval()
    except NotImplementedError:  # a loaded .pt2 has one mode only, and refuses to be asked
        modes = {}
    try:
        yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training


def set_mode(model: nn.Module, training: bool) -> bool:
    """Training or evaluation mode; False where the model has but one, as one that was loaded from a .pt2 does."""
    try:
        model.train(training)
    except NotImplementedError:
        return False
    return True


@contextmanager
def row_major(module: nn.Module) -> Iterator[None]:
    """Parameters that lie row by row inside the block, and as they did before after it.

    Training lays images and their filters channels last; a graph captured so says where each number lies, and ONNX
    then computes those places at each call: a flatten becomes a gather.
    """
    ready = [parameter for parameter in module.parameters() if not nn.parameter.is_lazy(parameter)]
    moved = [
        (parameter, parameter.data)
        for parameter in ready  # by its strides: a dimension of 1 is contiguous wherever it lies
        if parameter.stride() != torch.empty(parameter.shape, device="meta").stride()
    ]
    for parameter, data in moved:
        parameter.data = data.clone(memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        for parameter, data in moved:
            parameter.data = data


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Every module leaves the block as it came: its mode, and what its attributes, lists and dicts hold.

    A model's forward may keep what it computed, and must not be left with what an export computes with.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad) for p in model.parameters() if not nn.parameter.is_lazy(p)]
    held: list[tuple[Any, Any]] = []
    for module, _ in modes:
        if not isinstance(module, torch.jit.ScriptModule):
            held.append((vars(module), dict(vars(module))))
            held += [(value, copy.copy(value)) for value in vars(module).values() if type(value) in CONTAINERS]
    try:
        yield
    finally:
        set_mode(model, modes[0][1])
        for value, old in held:
            if len(value) != len(old) or any(a is not b for a, b in zip(_contents(value), _contents(old), strict=True)):
                value.clear()
                value.extend(old) if isinstance(value, list) else value.update(old)
        for module, mode in modes:
            module.training = mode
        for parameter, trained in parameters:
            parameter.requires_grad_(trained)


@contextmanager
def tried(model: nn.Module) -> Iterator[None]:
    """A forward of the model inside the block leaves its buffers and torch's generators as they were."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for buffer, old in saved:
                if not torch.equal(buffer, old):
                    buffer.copy_(old)


def _contents(value: Any) -> list[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
