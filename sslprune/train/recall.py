"""What a teacher said of each sample, kept, so that one that comes again as it was is not asked about again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sslprune.values.carry import Carrying
from sslprune.values.inputs import Inputs, call, each, num_rows, tensors_in

MOST_BYTES = 2**26  # of answers: they go into every checkpoint, so that a resume hears the same
LONGEST = 2**16  # bytes of a sample: larger ones are pictures, slow to tell apart and mostly augmented
RARE = 0.1  # of the samples come again, or fewer: they are augmented


class Recall:
    """Asks a teacher about samples that are new, and answers for the others from memory.

    A sample is known by its bytes, without the places that ``attention_mask`` leaves out. Memory ends where samples
    hardly come again, or where outputs have no row of one shape for each sample alone, as those of words have none.
    ``twice``: the number of batches in which each sample comes twice.
    """

    def __init__(self, twice: int) -> None:
        self.twice, self.batches, self.asked, self.new, self.over = twice, 0, 0, 0, False
        self.rows: dict[int, int] = {}  # of a sample's answer, by the sample's key
        self.answers: Tensor | None = None  # (rows and room for more, numbers of an answer)
        self.form: tuple[Any, list[torch.Size]] | None = None  # of an output: its tree, the shapes of a row

    @torch.no_grad()
    def __call__(self, teacher: Callable[..., Any], inputs: Inputs) -> Any:
        """``teacher(inputs)``, without gradients."""
        keys = [] if self.over or isinstance(teacher, Carrying) else keys_of(inputs)
        new = [i for i, key in enumerate(keys) if key not in self.rows]
        self.batches, self.asked, self.new = self.batches + 1, self.asked + len(keys), self.new + len(new)
        if not keys or (self.batches > self.twice and self.new > (1 - RARE) * self.asked):
            self._end()
        elif self.form is None:  # how answers look; of those that a checkpoint held too
            self._learn(keys, call(teacher, inputs))
        elif new:
            self._learn([keys[i] for i in new], call(teacher, each(inputs, lambda value: value[new])))
        return call(teacher, inputs) if self.over else self._recalled(keys)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        answers = self.answers[: len(self.rows)].clone() if self.answers is not None else None
        counts = [self.batches, self.asked, self.new]
        return {"keys": torch.tensor(list(self.rows)), "answers": answers, "counts": counts, "over": self.over}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on where ``state_dict`` was taken; with nothing kept where a checkpoint has none, as older ones.

        Memory that is over stays so, as that of one of several processes.
        """
        if state is None or self.over:
            return
        self.rows = {int(key): row for row, key in enumerate(state["keys"].tolist())}
        self.answers, self.over = state["answers"], state["over"]
        self.batches, self.asked, self.new = state["counts"]

    def _end(self) -> None:
        self.over, self.rows, self.answers = True, {}, None

    def _learn(self, keys: Sequence[int], output: Any) -> None:
        """Keep the answers to ``keys`` that are not kept yet."""
        leaves, tree = pytree.tree_flatten(output)
        if not all(isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == len(keys) for leaf in leaves):
            return self._end()
        form = tree, [leaf.shape[1:] for leaf in leaves]
        if self.form is None and any(len(keys) in leaf.shape[1:] for leaf in leaves):
            return self._end()  # each sample with each other, it may be, as similarities are
        self.form = self.form or form
        if not leaves or form != self.form or len({leaf.dtype for leaf in leaves}) > 1:
            return self._end()
        said = torch.cat([leaf.reshape(len(keys), -1) for leaf in leaves], 1)
        if (len(self.rows) + len(keys)) * said[0].nbytes > MOST_BYTES:
            return self._end()
        kept = self.answers.to(said) if self.answers is not None else said[:0]
        if len(kept) < len(self.rows) + len(keys):
            kept = torch.cat([kept, kept.new_zeros(len(kept) + len(keys), kept.shape[1])])  # twice the room
        for key, answer in zip(keys, said, strict=True):
            if key not in self.rows:
                self.rows[key] = len(self.rows)
                kept[self.rows[key]] = answer
        self.answers = kept

    def _recalled(self, keys: Sequence[int]) -> Any:
        """An output for the samples of ``keys``."""
        assert self.answers is not None and self.form is not None
        tree, shapes = self.form
        found = self.answers[[self.rows[key] for key in keys]]
        leaves = found.split([shape.numel() for shape in shapes], 1)
        return pytree.tree_unflatten([leaf.reshape(-1, *s) for leaf, s in zip(leaves, shapes, strict=True)], tree)


def keys_of(inputs: Inputs) -> list[int]:
    """A number for each sample, the same for the same bytes; none where samples cannot be told apart, or are long."""
    tensors, count = [tensor.detach().cpu() for tensor in tensors_in(inputs)], num_rows(inputs)
    if not all(tensor.dim() and len(tensor) == count for tensor in tensors):
        return []
    if sum(tensor[0].nbytes for tensor in tensors) > LONGEST:
        return []
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    read = mask.cpu().bool().numpy() if mask is not None and mask.dim() == 2 else None
    digests = [blake2b(digest_size=8) for _ in range(count)]
    for tensor in tensors:
        rows = tensor.reshape(count, -1, 1).view(torch.uint8).numpy()  # (samples, numbers, bytes)
        for i, digest in enumerate(digests):
            digest.update((rows[i] if read is None or tensor.shape != read.shape else rows[i][read[i]]).tobytes())
    return [int.from_bytes(digest.digest(), "little", signed=True) for digest in digests]
