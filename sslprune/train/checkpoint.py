"""What training writes: whole files, of tensors and plain values alone."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from sslprune.errors import first_line
from sslprune.files import write_atomic
from sslprune.removal.plan import PREPARED


@dataclass(frozen=True)
class TrainingFiles:
    """The files of one training, in ``folder``."""

    folder: Path
    end: str = "masked.safetensors"  # what the weights at the end are called

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def initial(self) -> Path:
        """The weights that a model without a checkpoint began with."""
        return self.folder / "initial.safetensors"

    @property
    def dense(self) -> Path:
        """The model before any sparsity."""
        return self.folder / "dense.safetensors"

    @property
    def masked(self) -> Path:
        """The model at the end, at its full size."""
        return self.folder / self.end

    @property
    def prepared(self) -> Path:
        """The plan of what was done to the model before anything was learned, where something was."""
        return self.folder / PREPARED

    @property
    def whole(self) -> Path:
        """The figures of the model as it was before that."""
        return self.folder / "whole.json"

    @property
    def selection(self) -> Path:
        """Which of its groups go."""
        return self.folder / "selection.json"

    @property
    def nested(self) -> Path:
        """Of nested points: the weights that all of them share, the largest one's, and the statistics of each."""
        return self.folder / "nested.safetensors"

    @property
    def cuts(self) -> Path:
        """The cut list: of each nested point what goes, largest first."""
        return self.folder / "cuts.json"

    @property
    def history(self) -> Path:
        """A record an epoch."""
        return self.folder / "history.json"

    @property
    def log(self) -> Path:
        """A line each so many steps, and one an epoch."""
        return self.folder / "log.jsonl"

    @property
    def loggers(self) -> Path:
        """By what name other people's loggers know this run."""
        return self.folder / "loggers.json"

    @property
    def tensorboard(self) -> Path:
        """A folder of event files."""
        return self.folder / "tensorboard"

    def is_told(self, file: Path) -> bool:
        """Whether a file only tells how training went: nothing reads it."""
        return file in (self.log, self.loggers) or self.tensorboard in file.parents

    def untell(self) -> None:
        """Remove what only tells how training went."""
        for file in (self.log, self.loggers):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)

    @property
    def all(self) -> tuple[Path, ...]:
        """In the order in which they may be removed: what says that training is finished goes first."""
        told = self.masked, self.selection, self.history, self.dense, self.initial, self.checkpoint
        return *told, self.nested, self.cuts, self.prepared, self.whole


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer of ``model`` by its name, on the CPU."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}


def write_weights(path: Path, weights: nn.Module | dict[str, Tensor]) -> None:
    """The weights of a model, as safetensors: from where they lie, but for those that share their memory."""
    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in (weights.state_dict() if isinstance(weights, nn.Module) else weights).items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage().data_ptr()
        held[name] = own.clone() if storage in seen else own
        seen.add(storage)

    def write(temporary: Path) -> None:
        try:
            save_file(held, temporary)
        except SafetensorError as error:  # of a full disk too
            raise OSError(first_line(error)) from error

    write_atomic(path, write)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """``torch.save``, but through memory: writing to a full disk is then an OSError like any other."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))
