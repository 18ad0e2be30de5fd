"""The sections of a recipe as arguments in Python, for who trains or calibrates in code of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sslprune.recipe.reading import parse_calibrating, parse_sparsifying
from sslprune.recipe.recipe import Calibrating, Sparsifying

Prune = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]  # a kind, the fields of a [[prune]], or several


def settings_of(
    prune: Prune,
    macs: float | None = None,
    parameters: float | None = None,
    strength: float | None = None,
    round_to: int | Literal["auto"] = "auto",
    evidence: str = "first-order",
    **lasso: Any,
) -> Sparsifying:
    """The same fields as a recipe's [[prune]], [budget], [choose] and [lasso]; raises RecipeError, in one line."""
    budget = {"macs": macs, "parameters": parameters, "round_to": round_to}
    given = {"prune": _tables(prune), "budget": budget, "choose": {"evidence": evidence}}
    return parse_sparsifying({**given, "lasso": {"strength": strength, **lasso}})


def calibration_of(
    prune: Prune,
    macs: float | None = None,
    parameters: float | None = None,
    round_to: int | Literal["auto"] = "auto",
    seed: int = 0,
    **calibrate: Any,
) -> Calibrating:
    """The same fields as a recipe's [[prune]], [budget] and [calibrate]; raises RecipeError, in one line."""
    budget = {"macs": macs, "parameters": parameters, "round_to": round_to}
    return parse_calibrating({"prune": _tables(prune), "budget": budget, "calibrate": calibrate, "seed": seed})


def _tables(prune: Prune) -> list[Any]:
    """``prune`` as a recipe's list of tables."""
    several = list(prune) if isinstance(prune, list | tuple) else [prune]
    tables = [{"kind": entry} if isinstance(entry, str) else entry for entry in several]
    return [dict(entry) if isinstance(entry, Mapping) else entry for entry in tables]  # of the others a person hears
