"""Sparse training inside other people's loops: Hugging Face's Trainer and Lightning's.

Each library is imported with its callback, and not before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sslprune.errors import RecipeError

_HOMES = {"SparseCallback": ("huggingface", "hf"), "LightningSparsity": ("lightning", "lightning")}

__all__ = ["LightningSparsity", "SparseCallback"]

if TYPE_CHECKING:
    from sslprune.callbacks.huggingface import SparseCallback
    from sslprune.callbacks.lightning import LightningSparsity


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sslprune.callbacks' has no attribute {name!r}")
    module, extra = _HOMES[name]
    try:
        return getattr(importlib.import_module(f"sslprune.callbacks.{module}"), name)
    except ImportError as error:
        raise RecipeError(
            f"sslprune.callbacks.{name} needs {error.name}: pip install 'sslprune[{extra}]' ({error})"
        ) from error


def __dir__() -> list[str]:
    return __all__
