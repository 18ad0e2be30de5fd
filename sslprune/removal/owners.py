"""The module that holds a weight, by the weight's name in the whole model."""

from __future__ import annotations

from torch import nn

from sslprune.errors import RepackError


def owner_of(model: nn.Module, name: str, purpose: str) -> tuple[nn.Module, str, nn.Parameter]:
    """The module that has the weight ``name``, what it is called there, and itself.

    Raises RepackError, which says the ``purpose``, for a name that the model lacks.
    """
    path, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
        return owner, leaf, owner.get_parameter(leaf)
    except AttributeError as error:
        raise RepackError(f"{name}: no such weight to {purpose}; build the same model") from error
