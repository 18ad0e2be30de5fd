"""`Team`: which of several processes this is, and what they do together."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from sslprune.errors import TrainingError

T = TypeVar("T")


class Team(Protocol):
    """Processes that train one model together; the one of rank 0 chooses, writes and speaks for all."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int:
        """How many processes there are."""
        ...

    @property
    def first(self) -> bool:
        """Whether this is the process of rank 0."""
        ...

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, the same on each."""
        ...

    def broadcast(self, value: T) -> T:
        """What the first process has, on all: tensors and plain values, also in lists and dicts."""
        ...

    def gather(self, value: T) -> list[T]:
        """What each process has, by rank, on all: likewise."""
        ...

    def share_(self, tensors: Iterable[Tensor]) -> None:
        """Give ``tensors`` the numbers that they have on the first process, in place."""
        ...

    def agree(self, what: str, value: str) -> None:
        """Raise TrainingError, which names ``what`` and the rank, where ``value`` is not the same on all."""
        ...

    def leave(self) -> None:
        """Nothing is done together from here on: wait for all, and let go."""
        ...


class Alone:
    """A team of one process: everything is as it has it."""

    rank, world, first = 0, 1, True

    def mean(self, value: Tensor) -> Tensor:
        return value

    def broadcast(self, value: T) -> T:
        return value

    def gather(self, value: T) -> list[T]:
        return [value]

    def share_(self, tensors: Iterable[Tensor]) -> None:
        pass

    def agree(self, what: str, value: str) -> None:
        pass

    def leave(self) -> None:
        pass


class Processes:
    """The processes of torch's default group, which is there already."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.first = self.rank == 0
        # a group of NCCL alone carries nothing that lies on the CPU
        self._nccl = "gloo" not in dist.get_backend_config() and torch.cuda.is_available()

    def mean(self, value: Tensor) -> Tensor:
        total = self._carried(value.detach()).clone()
        dist.all_reduce(total)
        return (total / self.world).to(value.device)

    def broadcast(self, value: T) -> T:
        packed = _packed(value) if self.first else torch.empty(0, dtype=torch.uint8)
        size = self._carried(torch.tensor([len(packed)]))
        dist.broadcast(size, 0)
        data = self._carried(packed if self.first else torch.empty(int(size), dtype=torch.uint8))
        dist.broadcast(data, 0)
        return value if self.first else cast(T, _unpacked(data))

    def gather(self, value: T) -> list[T]:
        packed = _packed(value)
        size = self._carried(torch.tensor([len(packed)]))
        sizes = [torch.empty_like(size) for _ in range(self.world)]
        dist.all_gather(sizes, size)
        longest = max(map(int, sizes))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(packed)] = packed
        sent = self._carried(padded)
        found = [torch.empty_like(sent) for _ in range(self.world)]
        dist.all_gather(found, sent)
        return [_unpacked(data[: int(length)]) for data, length in zip(found, sizes, strict=True)]

    @torch.no_grad()
    def share_(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            sent = self._carried(tensor.detach().contiguous())
            dist.broadcast(sent, 0)
            if sent.data_ptr() != tensor.data_ptr():
                tensor.copy_(sent)

    def agree(self, what: str, value: str) -> None:
        found = self.gather(value)
        other = next((rank for rank, there in enumerate(found) if there != found[0]), None)
        if other is not None:
            raise TrainingError(f"rank {other} has another {what} than rank 0: {found[other]}, and {found[0]} there")

    def leave(self) -> None:
        self.gather(None)
        dist.destroy_process_group()

    def _carried(self, value: Tensor) -> Tensor:
        return value.cuda() if self._nccl else value


def digest(text: str) -> str:
    """A short name of ``text``, to compare it by."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def team_here() -> Team:
    """The processes of torch's default group, where there are several; else this one alone."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return Processes() if several else Alone()


def _packed(value: object) -> Tensor:
    """Tensors and plain values as bytes (n,), uint8."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)


def _unpacked(data: Tensor) -> Any:
    return torch.load(io.BytesIO(data.cpu().numpy().tobytes()), weights_only=True)
