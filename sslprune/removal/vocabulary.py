"""A model for some of the tokens: the rows of its embedding that no text asks for, and what is tied to them.

Rows are looked up by number, so that none may go by itself. With a tokenizer that numbers the kept tokens anew, in
their old order, the others are never asked for, and go with nothing zeroed first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sslprune.analysis.pointers import MOVING
from sslprune.capture.mode import evaluating
from sslprune.capture.program import Program, operator_name, quiet
from sslprune.errors import RepackError
from sslprune.kinds.find import analysis_of
from sslprune.removal.keeping import plan_keeping
from sslprune.removal.plan import Plan, apply_plan
from sslprune.removal.remove import TOLERANCE
from sslprune.values.compare import difference

IDS = "input_ids"


def tables_of(program: Program) -> dict[str, int]:
    """The embeddings that the model looks its tokens up in, by name, with their numbers of rows."""
    found: dict[str, int] = {}
    for node in program.evaluation.nodes:
        if node.op != "call_function" or operator_name(node) != "embedding":
            continue
        weight, indices = node.args[:2]
        while isinstance(indices, fx.Node) and operator_name(indices) in MOVING:
            indices = indices.args[0]
        of_tokens = isinstance(indices, fx.Node) and indices.op == "placeholder" and str(indices.target) == IDS
        if of_tokens and isinstance(weight, fx.Node) and weight.op == "get_attr":
            found[str(weight.target)] = len(program.tensors[str(weight.target)])
    return found


def keep_tokens(model: nn.Module, program: Program, kept: Sequence[int]) -> tuple[nn.Module, Plan]:
    """``model`` for the tokens ``kept`` (ascending), numbered from 0 in this order, and the plan that made it so.

    The model is a copy, of the same class. ``program``'s example is of the new numbers. Raises RepackError where the
    rows of the other tokens cannot go, or the model's own code knows a token by its old number.
    """
    tables = tables_of(program)
    if not tables:
        raise RepackError(f"the model looks {IDS} up in no embedding of its own")
    few = next((name for name, rows in tables.items() if rows <= max(kept)), None)
    if few is not None:
        raise RepackError(f"{few} has {tables[few]:,} rows; token {max(kept)} is none of them")
    opened = replace(program, looked_up=frozenset(tables))
    state = analysis_of(opened).inference.state
    masks = {rows: np.isin(np.arange(rows), kept) for rows in tables.values()}
    if len(masks) > 1:
        raise RepackError(f"the embeddings {', '.join(tables)} have different numbers of rows")
    (mask,) = masks.values()
    plan = plan_keeping(opened, [state[name][0] for name in tables], mask, f"the rows of {', '.join(tables)}")
    small = apply_plan(copy.deepcopy(model), plan)
    old = torch.tensor(np.asarray(kept, np.int64))
    kwargs = {name: old[value] if name == IDS else value for name, value in program.kwargs.items()}
    with torch.no_grad(), quiet(), evaluating(model), evaluating(small):
        before, after = model(*program.args, **kwargs), small(*program.args, **program.kwargs)
    apart = difference(*(pytree.tree_map_only(Tensor, Tensor.float, made) for made in (before, after)))[1]
    if not apart <= TOLERANCE:
        raise RepackError(
            f"with its tokens numbered anew the model gives something else, by {apart:.1e} (relative): its own code "
            "knows a token by its number"
        )
    return small, plan
