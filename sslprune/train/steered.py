"""A recipe's model with what steers it: traced, its axes chosen, its cost known."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sslprune.bench.fit import latency_cost
from sslprune.capture.demands import check_for_run
from sslprune.capture.trace import trace
from sslprune.choose.sections import select_with_sections
from sslprune.cost.counts import Cost
from sslprune.data import Data
from sslprune.kinds.find import find_axes
from sslprune.recipe import Recipe
from sslprune.train.nested import Nested
from sslprune.train.sparsity import Sparsity, build_controller
from sslprune.values.selection import Selection
from sslprune.values.team import Team, digest
from sslprune.values.voice import Voice


def steered(
    recipe: Recipe, data: Data, model: nn.Module, steps: int, show: Voice, team: Team, *, begun: bool = False
) -> Sparsity:
    """What steers ``model`` through ``steps`` by ``recipe``, before anything is trained.

    ``begun``: what is zero in the model already is gone, and stays so. Raises TraceError, RecipeError and BudgetError.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with show.progress("finding the axes"):
        example = data.example_for(model)
        example = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), example)
        program = trace(model, *example, sequence=data.sequence)
        check_for_run(program, model)
        chosen = select_with_sections(find_axes(program, recipe.prune), recipe.prune)
    pruned = [axis for axis, _ in chosen]
    team.agree("list of axes", digest(str([(axis.name, axis.size) for axis in pruned])))
    timed = recipe.budget.measure == "latency" and team.first
    cost = _latency(recipe, data, model, show) if timed else Cost(program, pruned)
    if recipe.budget.nested:
        return Nested.of(model, program, chosen, cost, recipe, steps, team, data.task)
    begin = Selection.zeros(model, pruned) if begun else None
    controller = build_controller(model, program, chosen, cost, recipe, steps, begin, team)
    return Sparsity.over(model, program, controller, team, data.task)


def _latency(recipe: Recipe, data: Data, model: nn.Module, show: Voice) -> Cost:
    """The cost in microseconds of this machine's CPU, wherever the model trains."""
    with show.progress("measuring layers"):
        found = latency_cost(model, data.example, data.sequence, recipe)
    show.say(
        f"dense latency: {found.whole / 1e3:.3f} ms whole, {found.table / 1e3:.3f} ms as a sum over layers, fitted"
        f" to it ({found.num_measured or 'no'} new measurements)"
    )
    return found.cost
