"""A run directory whose weights were zeroed by hand in place of training: what `sslprune repack` and `export` read.

``model`` and ``loaders`` are the factories that its recipe names: an architecture of the list, and random samples that
lie in the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from scripts.architectures import BUILDERS
from sslprune.cli import app
from sslprune.files import write_json
from sslprune.recipe import parse_recipe
from sslprune.run.directory import RunDirectory
from sslprune.train.checkpoint import write_weights
from sslprune.values.axes import Axis
from sslprune.values.inputs import random_like
from sslprune.values.outputs import logits_of

NUM_SAMPLES, BATCH = 4, 2
Samples = list[tuple[tuple[Tensor, ...], Tensor]]  # batches of (inputs, targets)


def model(name: str, seed: int = 0) -> nn.Module:
    """The model of the list, with the same buffers each time."""
    torch.manual_seed(seed)
    return BUILDERS[name]()[0]


def loaders(path: str) -> tuple[Samples, Samples]:
    """The batches to train on and to test on, as ``write_run`` left them."""
    train, test = torch.load(path, weights_only=True)
    return train, test


def write_run(
    path: Path,
    section: Mapping[str, Any],  # [model]: a factory, and its arguments
    dense: Mapping[str, Tensor],
    masked: nn.Module,
    axes: Sequence[Axis],
    args: tuple[Any, ...],
    data: Mapping[str, Any] | None = None,
) -> RunDirectory:
    """The run directory at ``path`` as training leaves it, with every kind of ``axes`` in its recipe.

    ``data`` are more fields of [data].
    """
    run = RunDirectory(path)
    train, test = samples(masked, args, 1), samples(masked, args, 2)
    steps = train[0][1].dim() == 2 and logits_of(_called(masked, args), 0).dim() == 3
    recipe = parse_recipe(
        {
            "name": path.name,
            "run": {"device": "cpu"},
            "model": dict(section),
            "data": {
                "factory": "scripts.coverage_run:loaders",
                "arguments": {"path": str(run.path.resolve() / "samples.pt")},
                "batch_size": 1,  # of the timings; the loaders have their own
                "task": "tagging" if steps else "classification",
                "metrics": ["accuracy"],
                "output": 0,  # of several
                **(data or {}),
            },
            "prune": [{"kind": kind} for kind in dict.fromkeys(axis.kind for axis in axes)],
            "budget": {"parameters": 0.5},
            "schedule": {"sparse": "1ep", "heal": "0ep"},
            "bench": {"threads": [1], "batch_sizes": [1]},
        }
    )
    run.claim(recipe)
    torch.save((train, test), run.path / "samples.pt")
    write_weights(run.dense, dict(dense))
    write_json(run.history, [])
    write_weights(run.masked, masked)
    return run


def samples(model: nn.Module, args: tuple[Any, ...], seed: int) -> Samples:
    """Random samples like ``args``, with targets that fit what ``model`` says of them.

    Outputs of three dimensions are taken for (batch, steps, classes), others for (batch, classes, ...).
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for inputs in (random_like(args, BATCH, seed=seed + 10 * i) for i in range(NUM_SAMPLES // BATCH)):
        shape = list(logits_of(_called(model, inputs), 0).shape)
        classes = shape.pop(2 if len(shape) == 3 else 1)
        batches.append((inputs, torch.randint(classes, shape, generator=generator)))
    return batches


@torch.no_grad()
def _called(model: nn.Module, args: tuple[Any, ...]) -> Any:
    return model(*args)


def command(*words: object) -> float:
    """The command ``sslprune WORDS``, as a person types it; the seconds of processors that it took.

    Raises RuntimeError with the last line that it said where it fails.
    """
    before = _processor_seconds()
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exit_code:
        said = (result.stderr.strip().splitlines() or [repr(result.exception)])[-1]
        raise RuntimeError(f"`sslprune {words[0]}` ends with {result.exit_code}: {said}")
    return _processor_seconds() - before


def _processor_seconds() -> float:
    """Of this process and of those that it waited for: a busy neighbour adds little to them."""
    return sum(os.times()[:4])
