"""Values of many batches: in memory up to a bound, and in temporary files beyond it."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sslprune.errors import CalibrationError

SMALL = 1 << 14  # bytes of a tensor that is never worth a file


@dataclass(frozen=True)
class _Slot:
    """A tensor's place in a file.

    Of Python's own objects alone: what C++ allocates and keeps, between the large tensors that come and go, would leave
    holes that no other tensor fits into, and memory would grow with the batches.
    """

    file: IO[bytes]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, eq=False)
class Kept:
    """A value on the shelf; two of them are the same value only if they are the same object."""

    tree: Any  # the value, with a slot where a tensor is in a file
    size: int = 0  # bytes in memory


class Shelf:
    """Keeps values until they are dropped; their tensors take at most ``memory`` bytes of it.

    Files are the system's own temporary ones without a name: they are gone when the process is. The variable TMPDIR
    says where.
    """

    def __init__(self, memory: float) -> None:
        self.left = memory
        self._files: dict[Any, IO[bytes]] = {}

    def put(self, value: Any, name: Any) -> Kept:
        """Keep ``value``; all values of a ``name`` share a file, which `close` removes."""
        leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        size = sum(leaf.nbytes for leaf in leaves)
        if size <= self.left:
            self.left -= size
            return Kept(value, size)
        written = {id(leaf): self._write(leaf, name) for leaf in leaves if _can_be_written(leaf)}
        return Kept(pytree.tree_map_only(Tensor, lambda leaf: written.get(id(leaf), leaf), value))

    def get(self, kept: Kept) -> Any:
        """The value, read anew where it is in a file."""
        return pytree.tree_map_only(_Slot, _read, kept.tree)

    def drop(self, kept: Kept) -> None:
        """Give back the memory of a value that nobody asks for any more."""
        self.left += kept.size

    def close(self, name: Any = None) -> None:
        """Remove the file of ``name``, or all."""
        for known in [name] if name is not None else list(self._files):
            file = self._files.pop(known, None)
            if file is not None:
                file.close()

    def _write(self, tensor: Tensor, name: Any) -> _Slot:
        strides = torch.empty_like(tensor, device="meta").stride()  # dense, in the order of the tensor's own strides
        ordered = tensor.detach().cpu().permute(sorted(range(tensor.dim()), key=lambda d: -strides[d])).contiguous()
        try:
            if name not in self._files:
                self._files[name] = tempfile.TemporaryFile(prefix="sslprune-", buffering=0)  # noqa: SIM115 - until closed
            file = self._files[name]
            offset = file.seek(0, 2)
            left = _bytes(ordered.reshape(-1))
            while len(left):
                left = left[file.write(left) :]
        except OSError as error:
            folder = tempfile.gettempdir()
            raise CalibrationError(
                f"{folder} cannot hold what the layers make of the samples: {error.strerror}; take fewer "
                "samples, raise calibrate.memory, or let TMPDIR name another folder"
            ) from error
        return _Slot(file, offset, tuple(tensor.shape), strides, tensor.dtype, tensor.device)


def _bytes(flat: Tensor) -> memoryview:
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _can_be_written(tensor: Tensor) -> bool:
    return tensor.nbytes > SMALL and tensor.layout is torch.strided and not (tensor.is_conj() or tensor.is_neg())


def _read(slot: _Slot) -> Tensor:
    flat = torch.empty(math.prod(slot.shape), dtype=slot.dtype)
    left = _bytes(flat)
    slot.file.seek(slot.offset)
    while len(left):
        count = slot.file.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise CalibrationError(f"a temporary file in {tempfile.gettempdir()} ended early")
        left = left[count:]
    return flat.as_strided(slot.shape, slot.strides).to(slot.device)
