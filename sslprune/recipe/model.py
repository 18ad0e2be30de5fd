"""What is trained, and on which machine: ``[model]`` and ``[run]``."""

from __future__ import annotations

from typing import Annotated

from sslprune.recipe.fields import FACTORY, FILE, Arguments, Section, Seed, Threads


class RunSection(Section):
    """The machine, and the one source of chance."""

    seed: Seed = 0
    """What weights, batches and dropout are drawn from."""
    device: str = "auto"
    """Where training runs: "auto", "cpu", "cuda" or "cuda:1"."""
    threads: Threads = 0
    """CPU threads; 0: all."""
    shard: bool = False
    """Whether several processes share weights, gradients and the optimizer's state out among them (FSDP2), in place of
    a whole copy in each."""


class ModelSection(Section):
    """The model that is made smaller."""

    factory: Annotated[str, FACTORY]
    """What builds it: "module:callable", "file.py:callable", "torchvision:name", "timm:name", "hf:<kind>" or a .pt2."""
    arguments: Arguments = {}
    """Passed to the factory by name; for "hf:<kind>" the directory is `path`."""
    checkpoint: Annotated[str | None, FILE] = None
    """Its weights, a .safetensors, .pt, .pth or .th file; left out: those that the factory gives it."""
    key: str | None = None
    """The table in a checkpoint that holds several: "params_ema"; a nested one as "ema.model"."""
