"""The sections of a recipe as arguments in Python, for who trains or calibrates in code of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sslprune.recipe.reading import parse_sparsifying
from sslprune.recipe.recipe import Sparsifying

Prune = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]  # a kind, the fields of a [[prune]], or several


def settings_of(
    prune: Prune,
    macs: float | None = None,
    parameters: float | None = None,
    strength: float | None = None,
    round_to: int | Literal["auto"] = "auto",
    **lasso: Any,
) -> Sparsifying:
    """The same fields as a recipe's [[prune]], [budget] and [lasso]; raises RecipeError, in one line."""
    several = [prune] if isinstance(prune, str | Mapping) else list(prune)
    return parse_sparsifying(
        {
            "prune": [{"kind": entry} if isinstance(entry, str) else dict(entry) for entry in several],
            "budget": {"macs": macs, "parameters": parameters, "round_to": round_to},
            "lasso": {"strength": strength, **lasso},
        }
    )
