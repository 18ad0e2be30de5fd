"""What a run asks of a traced model beyond a trace: batches of any size, and a file that can be proven equal."""

from __future__ import annotations

from torch import nn

from sslprune.capture.draws import what_is_random
from sslprune.capture.program import Program
from sslprune.errors import TraceError


def check_for_run(program: Program, model: nn.Module) -> None:
    """Raise TraceError where a run of ``model``, traced as ``program``, would fail at its end."""
    name = type(model).__name__
    if not program.dynamic_batch:
        raise TraceError(
            f"{name} takes a batch of {program.batch} alone, and a run has batches of several sizes: its own code "
            "turns the batch size into a number; use x.shape[0] or -1 in its place"
        )
    if program.random:
        raise TraceError(f"{name} {what_is_random(program.random)}")
