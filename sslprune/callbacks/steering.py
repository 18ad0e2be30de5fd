"""What the callbacks share: settings until the first batch, a ``Sparsity`` from then on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sslprune.errors import RecipeError, TrainingError
from sslprune.recipe.settings import Prune, settings_of
from sslprune.removal.packed import Packed
from sslprune.train.budget import NUM_WARM_UP
from sslprune.train.sparsity import Sparsity
from sslprune.values.inputs import num_rows

NUM_ROWS = 4


class Steering:
    """A ``Sparsity`` that is made from the first training batch and told of losses and optimizer steps.

    ``sparse`` is the share of all optimizer steps (0.5), or their number (300), in which groups go to zero; in the rest
    the zeros are held and what is left heals.
    """

    def __init__(self, prune: Prune, sparse: float, settings: Mapping[str, Any]) -> None:
        self.looks = settings_of(prune, **settings).choose.looks  # what is wrong with them is said now
        if not (isinstance(sparse, int) and sparse >= 1) and not 0 < sparse <= 1:
            raise RecipeError(f"sparse: give a share of the training's steps (0.5) or their number (300); got {sparse}")
        self.prune, self.sparse, self.settings = prune, sparse, dict(settings)
        self.sparsity: Sparsity | None = None
        self.example: tuple[tuple[Any, ...], dict[str, Any]] = (), {}  # what the model was traced with
        self.pending: dict[str, Any] | None = None  # the state of a run that is resumed
        self.loss = 0.0  # since the last optimizer step
        self.saw_loss = False
        self.inputs: Any = None  # of the latest batch, where evidence looks at batches

    def begin(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], total: int, sequence: int | None
    ) -> None:
        """Trace ``model`` on its first inputs; the random numbers of the training stay as they are.

        A resumed training takes the inputs of the first one: what a group costs may depend on their length.
        """
        steps = self.sparse if isinstance(self.sparse, int) else max(1, int(self.sparse * total))
        if steps > total:
            raise RecipeError(
                f"sparse: {steps} steps, but the training has {total}; give fewer, or a share such as 0.5"
            )
        device = next(model.parameters()).device
        self.example = placed(self.pending["example"] if self.pending else _first_rows((args, dict(kwargs))), device)
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            self.sparsity = Sparsity(
                model, *self.example, prune=self.prune, steps=steps, sequence=sequence, **self.settings
            )
        if self.pending is not None:
            self.sparsity.load_state_dict(self.pending["sparsity"])
            self.pending = None

    def saw(self, loss: float | Tensor, share: float = 1.0) -> None:
        """One batch's loss, and its share of the loss that the optimizer steps on."""
        if self.sparsity is None or self.sparsity.controller.taken < NUM_WARM_UP:  # each look waits for the device
            self.loss += share * float(loss.detach() if isinstance(loss, Tensor) else loss)
        self.saw_loss = True

    def sees(self, inputs: Any) -> None:
        """What the model is called with in training, or a part of it that goes by itself."""
        if self.looks:
            self.inputs = inputs

    def before_step(self) -> None:
        """Between the last ``backward`` and the optimizer's step."""
        if self.sparsity is not None:
            if not self.saw_loss:
                raise TrainingError(
                    "no loss was seen in the model's outputs: where it is computed elsewhere (compute_loss_func, label "
                    "smoothing), call the callback's saw(loss) there"
                )
            self.sparsity.observe(self.loss, self.inputs)

    def after_step(self, lr: float) -> None:
        """After the optimizer's step of length ``lr``."""
        if self.sparsity is not None:
            self.sparsity.step(lr)
            self.loss = 0.0

    def repack(self) -> Packed:
        return self.found("repack").repack()

    def found(self, what: str) -> Sparsity:
        if self.sparsity is None:
            raise TrainingError(f"{what}: this callback has seen no training yet; call trainer's fit or train first")
        return self.sparsity

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: tensors and plain values; empty before the first batch."""
        if self.sparsity is None:
            return self.pending or {}
        return {"sparsity": self.sparsity.state_dict(), "example": placed(self.example, torch.device("cpu"))}


def _first_rows(inputs: Any) -> Any:
    """The first few samples of a batch, which are enough to trace with, and to keep."""
    rows = num_rows(inputs)

    def cut(leaf: Any) -> Any:
        return leaf[:NUM_ROWS] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == rows else leaf

    return pytree.tree_map(cut, inputs)


def placed(inputs: Any, device: torch.device) -> Any:
    """Nested inputs on ``device``, without gradients; what is not a tensor is left as it is."""
    return pytree.tree_map(lambda leaf: leaf.detach().to(device) if isinstance(leaf, Tensor) else leaf, inputs)
