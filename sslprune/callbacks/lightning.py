"""A callback for Lightning's ``Trainer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from sslprune.callbacks.steering import Steering
from sslprune.errors import RecipeError, TrainingError
from sslprune.recipe.settings import Prune
from sslprune.removal.packed import Packed


class LightningSparsity(Callback):
    """Sparse training, then healing, inside ``lightning.Trainer(..., callbacks=[LightningSparsity(...)])``.

    ``prune`` and the other settings are those of ``sslprune.Sparsity``: ``LightningSparsity("filters", macs=0.5)``.
    ``network``: the attribute of the LightningModule that holds the network; "": the module itself. ``example``: its
    inputs, a tuple or a dict by name; by default the first of each training batch, (inputs, targets). ``sparse``: the
    share of all optimizer steps, or their number, in which groups go to zero. After ``fit``, ``repack()`` gives the
    smaller model.

    Gradient accumulation, clipping and mixed precision work as ever. The state lies in the checkpoints, so a resumed
    training ends as an uninterrupted one. One optimizer, and replicas on several processes (strategy "ddp"); raises
    TrainingError for more optimizers, and for strategies that take weights apart.
    """

    def __init__(
        self,
        prune: Prune,
        *,
        sparse: float = 0.5,
        network: str = "",
        example: tuple[Any, ...] | Mapping[str, Any] | None = None,
        sequence: int | None = None,
        **settings: Any,
    ) -> None:
        self.steering = Steering(prune, sparse, settings)
        if self.steering.looks and example is not None:
            raise RecipeError("evidence: it looks at the inputs of batches, and with example none are read from them")
        self.network, self.example, self.sequence = network, example, sequence
        self.lr = 0.0
        self.handle: Any = None

    @property
    def fraction(self) -> float:
        """The cost of what is kept now, as a fraction of the dense model's."""
        return self.steering.found("fraction").fraction

    def repack(self) -> Packed:
        """The network without its zero groups, verified: see ``sslprune.Sparsity.repack``."""
        return self.steering.repack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
            name = type(trainer.strategy).__name__
            raise TrainingError(f'LightningSparsity: {name} does not train replicas; set strategy="ddp", or devices=1')
        if len(trainer.optimizers) != 1:
            raise TrainingError(
                f"LightningSparsity steers one optimizer; configure_optimizers has {len(trainer.optimizers)}"
            )
        if trainer.global_step and self.steering.pending is None and self.steering.sparsity is None:
            raise TrainingError(
                f"the checkpoint of step {trainer.global_step} was saved without LightningSparsity; start afresh, or "
                "resume from one that was"
            )
        self.handle = trainer.optimizers[0].register_step_post_hook(lambda *_: self.steering.after_step(self.lr))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        begins = self.steering.sparsity is None
        if begins or self.steering.looks:
            args, kwargs = self._inputs(batch)
            self.steering.sees(kwargs or args)
        if begins:
            total = trainer.estimated_stepping_batches
            self.steering.begin(self._network(pl_module), args, kwargs, int(total), self.sequence)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.steering.saw(loss, 1.0 if scaler is None else 1 / scaler.get_scale())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.lr = optimizer.param_groups[0]["lr"]
        self.steering.before_step()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.handle is not None:
            self.handle.remove()

    def state_dict(self) -> dict[str, Any]:
        return self.steering.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steering.pending = state_dict or None

    def _network(self, pl_module: Any) -> nn.Module:
        found = getattr(pl_module, self.network, None) if self.network else pl_module
        if not isinstance(found, nn.Module):
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise RecipeError(f'network: {type(pl_module).__name__} has no module "{self.network}"; it has {names}')
        return found

    def _inputs(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = self.example
        if given is None and isinstance(batch, tuple | list) and isinstance(batch[0], Tensor | tuple | dict):
            given = batch[0] if isinstance(batch[0], tuple | dict) else (batch[0],)
        if given is None:
            raise RecipeError(
                f"example: a batch is a {type(batch).__name__}, not (inputs, targets); give the network's inputs, "
                "a tuple or a dict by name"
            )
        return ((), dict(given)) if isinstance(given, Mapping) else (tuple(given), {})
