"""How many threads of the CPU torch computes with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sslprune.errors import RecipeError

MOST_PER_CORE, MOST_ANYWHERE = 16, 64


@contextmanager
def threads(count: int) -> Iterator[None]:
    """``count`` threads inside the block, 0 for as many as before; raises RecipeError for far more than there are."""
    cores = os.cpu_count() or 1
    if count > max(MOST_PER_CORE * cores, MOST_ANYWHERE):  # the system may end a process that asks for so many
        raise RecipeError(f"run.threads: {count} on a machine of {cores} cores; give {cores}, or 0 for torch's choice")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
