"""A model for some of the tokens: the rows of its embedding that no text asks for, and what is tied to them.

Rows are looked up by number, so that none may go by itself. With a tokenizer that numbers the kept tokens anew, in
their old order, the others are never asked for, and go with nothing zeroed first.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sslprune.analysis.pointers import MOVING
from sslprune.capture.mode import evaluating
from sslprune.capture.program import Program, operator_name, quiet
from sslprune.errors import RepackError
from sslprune.kinds.find import analysis_of
from sslprune.removal.keeping import Logits, opened_at, opened_dim, plan_keeping
from sslprune.removal.plan import Plan, apply_plan
from sslprune.removal.remove import TOLERANCE
from sslprune.values.compare import difference

IDS = "input_ids"


def tables_of(program: Program) -> dict[str, int]:
    """The embeddings that the model looks its tokens up in, by name, with their numbers of rows."""
    found: dict[str, int] = {}
    asked = _tokens_input(program)
    for node in program.evaluation.nodes:
        if node.op != "call_function" or operator_name(node) != "embedding":
            continue
        weight, indices = node.args[:2]
        while isinstance(indices, fx.Node) and operator_name(indices) in MOVING:
            indices = indices.args[0]
        of_tokens = isinstance(indices, fx.Node) and indices.op == "placeholder" and indices.target == asked
        if of_tokens and isinstance(weight, fx.Node) and weight.op == "get_attr":
            found[str(weight.target)] = len(program.tensors[str(weight.target)])
    return found


def _tokens_input(program: Program) -> str:
    """The input that is tokens: the one that transformers call so, or the first."""
    names = [str(node.target) for node in program.evaluation.nodes if node.op == "placeholder"]
    return IDS if IDS in names else names[0]


def keep_tokens(
    model: nn.Module, program: Program, kept: Sequence[int], logits: Logits | None = None
) -> tuple[nn.Module, Plan]:
    """``model`` for the tokens ``kept`` (ascending), numbered from 0 in this order, and the plan that made it so.

    The model is a copy, of the same class. ``program``'s example is of the new numbers. ``logits`` finds, among the
    outputs of a model that says tokens, what it says of them: (..., tokens). Those of the others go then, and what is
    left of them is as it was, so that the probabilities share 1 among fewer. Raises RepackError where the rows of the
    other tokens cannot go, or the model's own code knows a token by its old number.
    """
    tables = tables_of(program)
    if not tables:
        raise RepackError(f"the model looks {_tokens_input(program)} up in no embedding of its own")
    few = next((name for name, rows in tables.items() if rows <= max(kept)), None)
    if few is not None:
        raise RepackError(f"{few} has {tables[few]:,} rows; token {max(kept)} is none of them")
    sizes = set(tables.values())
    if len(sizes) > 1:
        raise RepackError(f"the embeddings {', '.join(tables)} have different numbers of rows")
    opened = replace(program, looked_up=frozenset(tables))
    opened = opened_at(opened, logits, -1) if logits is not None else opened
    state = analysis_of(opened).inference.state
    dims, what = [state[name][0] for name in tables], f"the rows of {', '.join(tables)}"
    if logits is not None:
        dims.append(opened_dim(opened))
        sizes.add(dims[-1].size)
    if len(sizes) > 1:
        raise RepackError(f"{what} are {max(tables.values()):,}, and the model says {dims[-1].size:,} tokens")
    plan = plan_keeping(opened, dims, np.isin(np.arange(dims[0].size), kept), what)
    small = apply_plan(copy.deepcopy(model), plan)
    old = torch.tensor(np.asarray(kept, np.int64))
    before, after = (
        _said(one, program, logits, numbers) for one, numbers in ((model, old), (small, torch.arange(len(old))))
    )
    before = before.index_select(-1, old) if logits is not None else before
    apart = difference(before, after)[1]
    if not apart <= TOLERANCE:
        raise RepackError(
            f"with its tokens numbered anew the model gives something else, by {apart:.1e} (relative): its own code "
            "knows a token by its number"
        )
    return small, plan


def _said(model: nn.Module, program: Program, logits: Logits | None, numbers: Tensor) -> Any:
    """What ``model`` gives of the program's example, whose tokens are looked up in ``numbers`` first."""
    bound = inspect.signature(model.forward).bind(*program.args, **program.kwargs)
    name = _tokens_input(program)
    bound.arguments[name] = numbers[bound.arguments[name]]
    with torch.no_grad(), quiet(), evaluating(model):
        outputs = model(*bound.args, **bound.kwargs)
    return pytree.tree_map_only(Tensor, Tensor.float, outputs if logits is None else logits(outputs))
