"""One model shared out among several processes: weights, gradients and the optimizer's state by rows (FSDP2).

torch's `fully_shard` (Zhao et al. 2023; ZeRO stage 3: Rajbhandari et al. 2020) keeps of each parameter the rows of this
process, and gathers a block's weights for as long as it runs. The model is traced and its axes are found before that,
and a checkpoint holds whole tensors, so a run may go on with another number of processes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer

from sslprune.errors import RecipeError
from sslprune.models.build import load_weights
from sslprune.recipe import Recipe
from sslprune.train.replicas import Replicas
from sslprune.train.sparsity import Sparsity
from sslprune.values.tasks import Task
from sslprune.values.team import Alone, Team

GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)
WHOLE = StateDictOptions(full_state_dict=True)


class Shards(Replicas):
    """How the processes of ``team`` train one model by ``recipe``, each with its rows of every parameter.

    Raises RecipeError for a process that is alone.
    """

    def __init__(self, recipe: Recipe, team: Team, task: Task, device: torch.device) -> None:
        super().__init__(recipe, team, task, device)
        if team.world == 1:
            raise RecipeError("run.shard: one process has nothing to share out; add --processes, or leave it out")
        self.device = device
        self.skeleton: nn.Module | None = None  # the model as it was built, for whole numbers on the CPU
        self.sharded: FSDPModule | None = None

    @property
    def judges(self) -> Team:
        """Each process takes every batch: a block's weights are there only while all run it."""
        return Alone()

    def lay_out_(self, model: nn.Module, sparsity: Sparsity | None) -> None:
        self.skeleton = copy.deepcopy(model).cpu()
        mesh = init_device_mesh(self.device.type, (self.team.world,))
        for block in _blocks(model):
            fully_shard(block, mesh=mesh)
        self.sharded = fully_shard(model, mesh=mesh)
        for module in model.modules():
            if isinstance(module, nn.RNNBase):  # its own list of its weights is brought up to date by nobody else
                module.register_forward_pre_hook(_relist)
        if sparsity is not None:
            lasso = sparsity.controller.lasso
            lasso.team = self.team
            lasso.follow(model)

    def whole(self, model: nn.Module) -> nn.Module:
        """``model`` as it was built, with all of its numbers: every process calls it, the first one's has them."""
        assert self.skeleton is not None
        weights = get_model_state_dict(model, options=GATHERED)
        if self.team.first:
            self.skeleton.load_state_dict(weights)
        return self.skeleton

    def load_(self, model: nn.Module, weights: Mapping[str, Any], source: str | Path) -> None:
        assert self.skeleton is not None
        load_weights(self.skeleton, weights, source)
        set_model_state_dict(model, self.skeleton.state_dict(), options=WHOLE)

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        return get_optimizer_state_dict(model, optimizer, options=GATHERED)

    def load_optimizer(self, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
        set_optimizer_state_dict(model, optimizer, state, options=WHOLE)

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    @contextmanager
    def held(self, last: bool) -> Iterator[None]:
        assert self.sharded is not None
        self.sharded.set_requires_gradient_sync(last)
        yield

    @torch.no_grad()
    def settle(self, model: nn.Module, optimizer: Optimizer, sparsity: Sparsity | None) -> None:
        """Make the running statistics and the lasso's state the same on all; each parameter is nobody else's."""
        self.average_(model)
        self.settle_lasso(sparsity)


def _relist(module: nn.RNNBase, _: Any) -> None:
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def _blocks(model: nn.Module) -> list[nn.Module]:
    """What is gathered as one: the members of a model's outermost lists of layers.

    Those with parameters that go by several names are left to the whole model, which knows all who read them.
    """
    ids = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    twice = {number for number, times in Counter(ids).items() if times > 1}
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for holder in model.modules():
        if isinstance(holder, nn.ModuleList | nn.Sequential) and holder not in inside:
            found += [block for block in holder.children() if next(block.parameters(), None) is not None]
            inside.update(holder.modules())
    return [block for block in dict.fromkeys(found) if not any(id(p) in twice for p in block.parameters())]
