"""What every operator without a rule of its own does."""

from __future__ import annotations

from types import SimpleNamespace

from torch import fx

from sslprune.analysis.inference import Inference


def unknown(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """An operator without a rule freezes everything that it touches: a saving may be missed, never a value changed."""
    g.opaque(node, "no rule for this operator")
