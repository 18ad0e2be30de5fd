"""A callback for Hugging Face's ``Trainer``."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils.generic import find_labels

from sslprune.callbacks.steering import Steering
from sslprune.errors import TrainingError
from sslprune.recipe.settings import Prune
from sslprune.removal.packed import Packed

NOT_INPUTS = ("num_items_in_batch", "return_dict", "use_cache", "output_attentions", "output_hidden_states")


class SparseCallback(TrainerCallback, ExportableState):
    """Sparse training, then healing, inside ``transformers.Trainer(..., callbacks=[SparseCallback(...)])``.

    ``prune`` and the other settings are those of ``sslprune.Sparsity``: ``SparseCallback(["heads", "neurons"],
    macs=0.6)``. ``sparse``: the share of all optimizer steps, or their number, in which groups go to zero. The model is
    traced on the first training batch, without its labels, unless ``example`` gives inputs by name. ``sequence``: the
    longest input of the repacked model; "auto": what the model's configuration says of tokens, None: that of the batch.
    After ``train()``, ``repack()`` gives the smaller model.

    Gradient accumulation, clipping and bf16 work as ever. The state lies in the checkpoints, so a resumed training ends
    as an uninterrupted one. Several processes train replicas, one device each; raises TrainingError for several devices
    in one process, and for FSDP and DeepSpeed, which take weights apart.
    """

    def __init__(
        self,
        prune: Prune,
        *,
        sparse: float = 0.5,
        example: Mapping[str, Tensor] | None = None,
        sequence: int | Literal["auto"] | None = "auto",
        **settings: Any,
    ) -> None:
        self.steering = Steering(prune, sparse, settings)
        self.example, self.sequence = example, sequence
        self.arguments = {"prune": prune, "sparse": sparse, "sequence": sequence, **settings}
        self.saved = ""  # the state in a checkpoint, as text
        self.hooks: list[Any] = []
        self.total = 0

    @property
    def fraction(self) -> float:
        """The cost of what is kept now, as a fraction of the dense model's."""
        return self.steering.found("fraction").fraction

    def repack(self) -> Packed:
        """The model without its zero groups, verified: see ``sslprune.Sparsity.repack``."""
        return self.steering.repack()

    def saw(self, loss: float | Tensor) -> None:
        """Tell the loss, where the model's own outputs do not hold it."""
        self.steering.saw(loss)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        if args.n_gpu > 1:
            raise TrainingError(
                f"SparseCallback: this process has {args.n_gpu} devices; start one process for each, with torchrun"
            )
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise TrainingError("SparseCallback: FSDP and DeepSpeed take weights apart; train replicas, without them")
        self.total, self.share = state.max_steps, 1 / args.gradient_accumulation_steps
        # the items that a loss is divided by are then those of all processes
        self.over = args.world_size if getattr(args, "average_tokens_across_devices", False) else 1
        if state.global_step:
            stored = (state.stateful_callbacks or {}).get(type(self).__name__, {})
            text = self.saved or (stored.get("attributes", {}).get("saved", "") if isinstance(stored, dict) else "")
            if not text:
                raise TrainingError(
                    f"the checkpoint of step {state.global_step} was saved without SparseCallback; start afresh, or "
                    "resume from one that was"
                )
            self.steering.pending = torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
        self.hooks = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
        ]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.steering.before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **others: Any) -> None:
        self.steering.after_step(optimizer.param_groups[0]["lr"])

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the arguments, and the state as text."""
        packed = io.BytesIO()
        torch.save(self.steering.state_dict(), packed)
        text = base64.b64encode(packed.getvalue()).decode() if self.steering.sparsity is not None else ""
        return {"args": self.arguments, "attributes": {"saved": text}}

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.steering.sparsity is None and model.training:
            given = kwargs if self.example is None else self.example
            left_out = {*find_labels(type(model)), *NOT_INPUTS}
            inputs = {name: value for name, value in given.items() if name not in left_out and value is not None}
            sequence = self.sequence
            if sequence == "auto":
                longest = getattr(model.config, "max_position_embeddings", None) if hasattr(model, "config") else None
                sequence = longest if "input_ids" in inputs else None
            with _bare(model):
                self.steering.begin(model, () if self.example else args, inputs, self.total, sequence)
        if model.training:
            self.steering.sees(args or {name: kwargs[name] for name in self.steering.example[1] if name in kwargs})

    def _after_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if model.training and isinstance(loss, Tensor):
            # of a loss that is a sum over all accumulated batches' items, divided by their number, this is a part
            self.steering.saw(loss, self.over if kwargs.get("num_items_in_batch") is not None else self.share)


@contextmanager
def _bare(model: nn.Module) -> Iterator[None]:
    """Inside the block ``model`` has no hooks, no mixed precision around it, and no cache, which is for generating."""
    own: dict[str, Any] = vars(model)
    config: Any = getattr(model, "config", None)
    hooks = [(held, dict(held)) for held in (model._forward_pre_hooks, model._forward_hooks)]
    forward, cached = own.get("forward"), getattr(config, "use_cache", False)
    for held, _ in hooks:
        held.clear()
    if "_original_forward" in own:  # where accelerate has wrapped it
        own["forward"] = own["_original_forward"]
    if cached:
        config.use_cache = False
    try:
        yield
    finally:
        for held, kept in hooks:
            held.update(kept)
        if "_original_forward" in own:
            own["forward"] = forward
        if cached:
            config.use_cache = cached
