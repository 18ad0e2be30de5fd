"""A model for some of its classes: the one axis that reaches the output and may go, since a person says which part of
it is needed.

Nothing is zeroed first. A logit that nothing else reads goes with the weights that make it, and the others stay as they
are: that is exact wherever the model does not normalise over its classes, and it is proven by the outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from sslprune.capture.mode import evaluating
from sslprune.capture.program import Program, quiet
from sslprune.errors import RepackError, first_line
from sslprune.removal.keeping import Logits, opened_at, opened_dim, plan_keeping
from sslprune.removal.plan import Plan, apply_plan
from sslprune.removal.remove import TOLERANCE
from sslprune.values.compare import difference

CLASSES = 1  # the dimension of logits (batch, classes, ...)


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
    opened = opened_at(program, logits, CLASSES)
    dim = opened_dim(opened)
    if max(kept) >= dim.size:
        raise RepackError(f"the model has {dim.size} classes, numbered from 0; {max(kept)} is none of them")
    plan = plan_keeping(opened, [dim], np.isin(np.arange(dim.size), kept), "the classes of its output")
    return plan.model_copy(update={"labels": len(kept)})
