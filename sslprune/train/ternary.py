"""TernGrad (Wen et al. 2017): gradients of three levels, -1, 0 and 1 times a number a tensor, packed two bits each.

Gradients are clipped at 2.5 standard deviations (section 3.5). Each is drawn to 0 or ± the largest of its tensor, so
that it is right on average (eq. 1 to 4), and the largest is that of all processes (section 3.2). The last layer stays
float32 (section 4.1). What is added up are whole numbers, so every process gets the same bits.

Two or three processes gather each other's codes: each receives (W - 1) n / 4 bytes for n numbers, 32 / W times less
than a ring of float32 brings. From four on they share the work: each adds up one part of the numbers, and sends the
sums round in b = ⌈log₂(2 W + 1)⌉ bits, which is 64 / (2 + b) times less, and hardly more with W.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CLIP = 2.5  # standard deviations
GATHERED = 3  # processes, up to which everybody's codes go to everybody
BITS = 2  # of a code: 0, 1 and 2 stand for -1, 0 and 1


class Ternary:
    """A communication hook of `DistributedDataParallel`: register ``hook`` with it as its state.

    ``whole``: the parameters whose gradients stay as they are, by their ids. ``seed``: of this process's draws.
    """

    def __init__(self, world: int, whole: Collection[int], seed: int) -> None:
        self.world, self.whole, self.seed = world, frozenset(whole), seed
        self.sent = 0  # bytes of gradients that this process has encoded so far, the numbers of their tensors included
        self.received = 0  # bytes that came from the others
        self._generator: torch.Generator | None = None

    def average(self, gradients: list[Tensor], parameters: list[Tensor]) -> None:
        """Put the mean over all processes into ``gradients``, in place: drawn, or as it is for the last layer."""
        kept = [g for g, p in zip(gradients, parameters, strict=True) if id(p) in self.whole]
        drawn = [g for g, p in zip(gradients, parameters, strict=True) if id(p) not in self.whole]
        if kept:
            flat = torch.cat([g.reshape(-1) for g in kept])
            dist.all_reduce(flat)
            self.sent += flat.numel() * flat.element_size()
            self.received += 2 * (self.world - 1) * flat.numel() * flat.element_size() // self.world
            _spread(flat / self.world, kept)
        if drawn:
            clipped = [_clipped(g.float()) for g in drawn]
            scales = torch.stack([g.abs().max() for g in clipped])
            dist.all_reduce(scales, dist.ReduceOp.MAX)
            sizes = torch.tensor([g.numel() for g in drawn], device=scales.device)
            scale = scales.repeat_interleave(sizes)
            codes = self._drawn(torch.cat([g.reshape(-1) for g in clipped]), scale)
            self.sent += 4 * len(drawn)
            _spread(self._sum(codes) * (scale / self.world), drawn)

    def _drawn(self, flat: Tensor, scale: Tensor) -> Tensor:
        """Codes: sign(g) with the probability |g| / scale, else zero."""
        if self._generator is None:
            self._generator = torch.Generator(flat.device).manual_seed(self.seed)
        chance = torch.rand(flat.shape, generator=self._generator, device=flat.device)
        return (flat.sign() * (chance * scale < flat.abs()) + 1).to(torch.uint8)

    def _sum(self, codes: Tensor) -> Tensor:
        """The sum of what the ``codes`` of all processes stand for, float32."""
        count = codes.numel()
        if self.world <= GATHERED:
            sent = packed(codes, BITS)
            found = [torch.empty_like(sent) for _ in range(self.world)]
            dist.all_gather(found, sent)
            self.sent += sent.numel()
            self.received += (self.world - 1) * sent.numel()
            return sum(unpacked(one, BITS, count).float() for one in found) - self.world  # type: ignore[return-value]
        part = -(-count // (8 * self.world)) * 8  # numbers that each process adds up
        shards = torch.nn.functional.pad(codes, (0, part * self.world - count), value=1).view(self.world, part)
        sent = torch.cat([packed(shard, BITS) for shard in shards])
        came = torch.empty_like(sent)
        dist.all_to_all_single(came, sent)
        total = sum(unpacked(one, BITS, part).to(torch.int32) for one in came.view(self.world, -1))
        assert isinstance(total, Tensor)
        bits = math.ceil(math.log2(2 * self.world + 1))
        sums = packed(total, bits)
        found = [torch.empty_like(sums) for _ in range(self.world)]
        dist.all_gather(found, sums)
        self.sent += sent.numel() + sums.numel()
        self.received += (self.world - 1) * (sent.numel() // self.world + sums.numel())
        return torch.cat([unpacked(one, bits, part) for one in found])[:count].float() - self.world


def hook(state: Ternary, bucket: Any) -> torch.futures.Future[Tensor]:
    """The mean of a bucket's gradients over all processes."""
    buffer = bucket.buffer()
    state.average(bucket.gradients(), bucket.parameters())
    done: torch.futures.Future[Tensor] = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else [])
    done.set_result(buffer)
    return done


def packed(values: Tensor, bits: int) -> Tensor:
    """Whole numbers (n,) below 2^bits as bytes, eight numbers in ``bits`` of them: one bit of each after the other."""
    eights = torch.nn.functional.pad(values, (0, -values.numel() % 8)).view(-1, 8)
    planes = []
    for bit in range(bits):
        ones = (eights >> bit & 1).to(torch.uint8)
        plane = ones[:, 0].clone()
        for i in range(1, 8):
            plane |= ones[:, i] << i
        planes.append(plane)
    return torch.cat(planes)


def unpacked(data: Tensor, bits: int, count: int) -> Tensor:
    """The ``count`` numbers that ``packed`` made ``data`` of."""
    planes = data.view(bits, -1)
    wide = torch.uint8 if bits <= 8 else torch.int32
    eights = torch.zeros(planes.shape[1], 8, dtype=wide, device=data.device)
    for bit in range(bits):
        for i in range(8):
            eights[:, i] |= (planes[bit] >> i & 1).to(wide) << bit
    return eights.view(-1)[:count]


def _clipped(gradient: Tensor) -> Tensor:
    if gradient.numel() < 2:
        return gradient
    bound = CLIP * gradient.std(correction=0)
    return gradient.clamp(-bound, bound)


def _spread(flat: Tensor, into: list[Tensor]) -> None:
    """Write ``flat`` into the tensors, one after the other."""
    for part, tensor in zip(flat.split([tensor.numel() for tensor in into]), into, strict=True):
        tensor.copy_(part.view(tensor.shape))
