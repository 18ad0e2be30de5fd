"""A call of torch.export: which dimensions stay open, and what the arguments are called."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sslprune.capture.lengths import any_length
from sslprune.capture.program import quiet
from sslprune.values.inputs import open_dimensions


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_batch: bool = True,
    sequence: int | None = None,
) -> torch.export.ExportedProgram:
    """``torch.export`` with the batch, and the length of sequences where there are any, left open."""
    dimensions = open_dimensions((args, kwargs), sequence)

    def spec(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return dict.fromkeys(dimensions(leaf), torch.export.Dim.AUTO) if dynamic_batch else {}
        return None

    with keywords_named(model, kwargs), quiet(), any_length(), torch.no_grad():
        given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        shapes = pytree.tree_map(spec, dict(given))
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def keywords_named(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block what ``**kwargs`` would take has names: with ``**kwargs``, torch.export loses count of sizes."""
    signature = inspect.signature(model.forward)
    parameters = list(signature.parameters.values())
    extra = [name for name in kwargs if name not in signature.parameters]
    if not extra or all(p.kind is not p.VAR_KEYWORD for p in parameters):
        yield
        return
    forward, own = model.forward, "forward" in vars(model)

    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    kept = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    kept += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in extra]
    vars(named)["__signature__"] = signature.replace(parameters=kept)
    vars(model)["forward"] = named
    try:
        yield
    finally:
        if own:
            vars(model)["forward"] = forward
        else:
            del vars(model)["forward"]
