"""A model for some of its classes: the one axis that reaches the output and may go, since a person says which part of
it is needed.

Nothing is zeroed first. A logit that nothing else reads goes with the weights that make it, and the others stay as they
are: that is exact wherever the model does not normalise over its classes, and it is proven by the outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sslprune.capture.mode import evaluating
from sslprune.capture.program import Program, quiet
from sslprune.errors import RepackError, first_line
from sslprune.kinds.find import analysis_of
from sslprune.removal.keeping import plan_keeping
from sslprune.removal.plan import Plan, apply_plan
from sslprune.removal.remove import TOLERANCE
from sslprune.values.compare import difference

Logits = Callable[[Any], Tensor]  # of a model's outputs, those that say of the classes: (batch, classes, ...)
CLASSES = 1  # the dimension


def keep_classes(model: nn.Module, program: Program, logits: Logits, kept: Sequence[int]) -> tuple[nn.Module, Plan]:
    """``model`` with the logits of the classes ``kept`` alone, in ascending order, and the plan that made it so.

    ``logits`` finds them among the model's outputs. The model is a copy, of the same class. Raises RepackError where
    the logits of other classes cannot go by themselves, or the model's own code says how many there are.
    """
    plan = _plan(program, logits, kept)
    own_code = "the model's own code says how many classes it has"
    try:
        small = apply_plan(copy.deepcopy(model), plan)
    except RepackError as error:
        raise RepackError(f"{own_code}: {str(error).partition('; use ')[0]}") from error
    found = []
    with torch.no_grad(), quiet():
        for one in (model, small):
            with evaluating(one):
                try:
                    found.append(logits(one(*program.args, **program.kwargs)))
                except RuntimeError as error:
                    raise RepackError(f"{own_code}: {first_line(error)}") from error
    apart = difference(found[0].index_select(CLASSES, torch.tensor(sorted(kept))), found[1])[1]
    if not apart <= TOLERANCE:
        raise RepackError(f"without the other classes the logits of these change, by {apart:.1e} (relative)")
    return small, plan


def _plan(program: Program, logits: Logits, kept: Sequence[int]) -> Plan:
    opened = replace(program, opened=tuple({_leaf(program, i, logits): CLASSES} for i in range(len(program.graphs))))
    g = analysis_of(opened).inference
    leaf = opened.outputs(opened.evaluation)[next(iter(opened.opened[0]))]
    dim = g.dims(leaf)[CLASSES]
    if max(kept) >= dim.size:
        raise RepackError(f"the model has {dim.size} classes, numbered from 0; {max(kept)} is none of them")
    plan = plan_keeping(opened, [dim], np.isin(np.arange(dim.size), kept), "the classes of its output")
    return plan.model_copy(update={"labels": len(kept)})


def _leaf(program: Program, index: int, logits: Logits) -> int:
    """Where among the leaves of a graph's outputs the logits stand."""
    leaves = program.outputs(program.graphs[index])
    values = [leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
    found = logits(pytree.tree_unflatten(values, program.out_specs[index]))
    at = next((i for i, value in enumerate(values) if value is found), None)
    if at is None:
        raise RepackError("the task computes its logits of the model's outputs; name one of them by data.output")
    return at
