"""One model on several processes: gradients averaged by torch's own wrapper, numbers that stay the same on all.

`DistributedDataParallel` is told of parameters when it is made, so it is made anew at each epoch and each removal. That
also gives every process the first one's weights, and makes an epoch the same whether it is resumed or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sslprune.errors import RecipeError, TrainingError
from sslprune.models.build import load_weights
from sslprune.recipe import Recipe
from sslprune.train.lasso import STATE
from sslprune.train.parts import Part, parts_of
from sslprune.train.sparsity import Sparsity
from sslprune.train.synchronised import synchronised
from sslprune.train.ternary import Ternary
from sslprune.train.ternary import hook as ternary_hook
from sslprune.values.bounds import MOST_SEED
from sslprune.values.inputs import Inputs
from sslprune.values.tasks import MODEL, Task
from sslprune.values.team import Team

LARGEST = 1 << 20  # megabytes of a bucket of gradients: all of them
RANK, BEGIN = 2, 2  # of PowerSGD's factors; the step from which it acts
APART = 1e-4  # the share by which weights may differ between processes before something is wrong


class Replicas:
    """How the processes of ``team`` train one model by ``recipe``; alone, everything is as without it."""

    def __init__(self, recipe: Recipe, team: Team, task: Task, device: torch.device) -> None:
        self.recipe, self.team = recipe, team
        if recipe.train.compress == "bf16" and team.world > 1 and device.type != "cuda":
            raise RecipeError('train.compress: "bf16" needs CUDA, whose NCCL adds it up; on the CPU take "fp16"')
        self.counted = None if recipe.train.loss == MODEL else task.counted
        self.wrapper: DistributedDataParallel | None = None  # of the model that trains, where there are several
        self._steps = 0  # that the wrapper has seen
        self.ternary: Ternary | None = None  # likewise, where gradients are
        self.low_rank: PowerSGDState | None = None  # likewise
        self._group: dist.ProcessGroup | None = None  # PowerSGD's own: it sends again when an answer comes
        self.last: frozenset[str] = frozenset()  # the names of the last layer's parameters, once they are asked for

    @property
    def judges(self) -> Team:
        """Who takes the batches of an evaluation in turns."""
        return self.team

    def lay_out_(self, model: nn.Module, sparsity: Sparsity | None) -> None:
        """Before the optimizer is made: each process keeps the whole ``model``."""

    def whole(self, model: nn.Module) -> nn.Module:
        """``model`` with all of its numbers in this process."""
        return model

    def load_(self, model: nn.Module, weights: Mapping[str, Any], source: str | Path) -> None:
        """Give ``model`` the ``weights`` of the file ``source``."""
        load_weights(model, weights, source)

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """The state of the ``optimizer`` of ``model``, for a checkpoint."""
        return optimizer.state_dict()

    def load_optimizer(self, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Go on where ``optimizer_state`` was taken."""
        optimizer.load_state_dict(state)

    def wrap(self, model: nn.Module) -> nn.Module:
        """What is called in place of ``model`` to train it: the first process's weights are everybody's from here."""
        if self.team.world == 1:
            return model
        self.wrapper, self._steps = None, 0  # its hooks on the parameters go before others come
        bucket = LARGEST if self.recipe.train.compress == "powersgd" else None  # one, so that its answers keep an order
        self.wrapper = DistributedDataParallel(
            model, broadcast_buffers=False, find_unused_parameters=True, bucket_cap_mb=bucket
        )
        self._compress(model, self.wrapper)
        return self.wrapper

    def _compress(self, model: nn.Module, wrapper: DistributedDataParallel) -> None:
        """Let ``wrapper`` send gradients as the recipe says; what that draws or remembers begins anew with it."""
        kind, self.ternary, self.low_rank = self.recipe.train.compress, None, None
        if kind == "ternary":
            self.last = self.last or _last_layer(model)
            whole = [id(parameter) for name, parameter in model.named_parameters() if name in self.last]
            self.ternary = Ternary(self.team.world, whole, int(torch.randint(2**31, ())))
            wrapper.register_comm_hook(self.ternary, lambda state, bucket: ternary_hook(state, bucket))
        elif kind == "powersgd":
            self._group = self._group or dist.new_group()
            self.low_rank = PowerSGDState(self._group, RANK, BEGIN, random_seed=self.recipe.run.seed)
            wrapper.register_comm_hook(self.low_rank, powerSGD_hook)
        elif kind != "off":
            wrapper.register_comm_hook(None, {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}[kind])

    def parts(self, batch: tuple[Inputs, Any]) -> list[Part]:
        """This process's parts of ``batch``, in the order of its backward passes."""
        self._steps += 1
        return parts_of(batch, self.team, self.recipe.train.accumulate, self.counted)

    def sent(self, model: nn.Module) -> dict[str, int]:
        """For the history: the bytes of gradients that this process encodes for a step; nothing where it is alone."""
        if self.team.world == 1:
            return {}
        if self.ternary is not None:
            return {"bytes": self.ternary.sent // max(1, self._steps)}
        numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if self.low_rank is not None:
            whole = min(BEGIN, self._steps) * numbers
            return {"bytes": 4 * (whole + self.low_rank.total_numel_after_compression) // max(1, self._steps)}
        return {"bytes": (2 if self.recipe.train.compress in ("fp16", "bf16") else 4) * numbers}

    def held(self, last: bool) -> AbstractContextManager[Any]:
        """Around a forward and a backward pass: gradients are kept here until the ``last`` of a step."""
        return nullcontext() if last or self.wrapper is None else self.wrapper.no_sync()

    def statistics(self) -> AbstractContextManager[Any]:
        """Around a forward pass: batch norms see the whole batch, where the recipe says so."""
        shared = self.recipe.train.sync_batch_norm and self.team.world > 1
        return synchronised(self.team.world) if shared else nullcontext()

    def draw_apart(self) -> None:
        """Let this process draw other numbers, for dropout, than the first, which draws as one alone does."""
        if self.team.rank:
            torch.manual_seed((self.recipe.run.seed + self.team.rank * 1_000_003) % (MOST_SEED + 1))

    def draws(self, device: torch.device) -> dict[str, Any]:
        """The state of every process's generators, for a checkpoint."""
        here = {"random": torch.get_rng_state(), "cuda_random": None}
        if device.type == "cuda":
            here["cuda_random"] = torch.cuda.get_rng_state(device)
        first, *others = self.team.gather(here)
        return {**first, "others": others} if others else first

    def draw_on(self, state: Mapping[str, Any], device: torch.device) -> bool:
        """Go on with the draws of ``state``, a checkpoint; whether it is of as many processes as there are now."""
        each = [state, *state.get("others", [])]
        if self.team.rank < len(each):
            mine = each[self.team.rank]
            torch.set_rng_state(mine["random"])
            if mine["cuda_random"] is not None and device.type == "cuda":
                torch.cuda.set_rng_state(mine["cuda_random"], device)
        return len(each) == self.team.world

    @torch.no_grad()
    def average_(self, model: nn.Module, others: Iterable[Tensor] = ()) -> None:
        """Make the running statistics of ``model``, and ``others``, the mean over all processes; counts are the first
        one's."""
        if self.team.world > 1:
            for buffer in (*model.buffers(), *others):
                if buffer.is_floating_point():
                    buffer.copy_(self.team.mean(buffer))
                else:
                    self.team.share_([buffer])

    @torch.no_grad()
    def settle(self, model: nn.Module, optimizer: Optimizer, sparsity: Sparsity | None) -> None:
        """Make what trains the same on all processes: running statistics their mean, the rest as the first has it.

        It is so already, up to the last digits of sums that a GPU adds in any order. Raises TrainingError for more.
        """
        if self.team.world == 1:
            return
        self.average_(model, sparsity.statistics if sparsity is not None else ())
        weights = [parameter.data for parameter in model.parameters()]
        sizes = self.team.gather(float(sum(weight.double().abs().sum() for weight in weights)))
        other = next((rank for rank, size in enumerate(sizes) if abs(size - sizes[0]) > APART * sizes[0]), None)
        if other is not None:
            raise TrainingError(
                f"the weights of rank {other} have moved away from those of rank 0 (sums of {sizes[other]:.6g} and "
                f"{sizes[0]:.6g}); code of the model that changes weights by itself has to do so alike on all"
            )
        self.team.share_(weights)
        states = [
            optimizer.state[p] for group in optimizer.param_groups for p in group["params"] if p in optimizer.state
        ]
        self.team.share_(value for state in states for value in state.values() if isinstance(value, Tensor))
        self.settle_lasso(sparsity)

    def settle_lasso(self, sparsity: Sparsity | None) -> None:
        """Give the lasso's state the numbers that it has on the first process."""
        if sparsity is not None:
            self.team.share_(getattr(lasso, name) for lasso in sparsity.lassos for name in STATE)


def _last_layer(model: nn.Module) -> frozenset[str]:
    """The last matrix among the parameters, as a model's code lists them, and what comes after it: its bias."""
    names = [name for name, _ in model.named_parameters()]
    matrices = [i for i, parameter in enumerate(model.parameters()) if parameter.dim() > 1]
    return frozenset(names[matrices[-1] if matrices else 0 :])
