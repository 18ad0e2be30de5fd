"""Arguments for an operator, made from its schema: tensors of one shape, numbers and dimensions by their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.arguments import CALLS, MORE, complex_, share, whole
from tests.smallest import SHAPE, Call, Change, Mode, Operand

# What an operator's operands are, where it is not defined for any number; zero stays zero but for integers.
DEFINED: dict[str, Change] = {
    "sqrt": torch.abs, "log1p": torch.abs,
    **dict.fromkeys(("asin", "acos", "tan"), torch.tanh), **dict.fromkeys(("logit", "bernoulli"), share),
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor", "__and__", "__or__"), whole),
    "_conj": complex_,
}  # fmt: skip
BY_NAME: dict[str, Any] = {  # an argument of this name, where it has no default
    "dim": 1, "dim0": 1, "dim1": 2, "axis0": 1, "axis1": 2, "source": 1, "destination": 2, "p": 0.5, "k": 2,
    "start": 1, "length": 2, "chunks": 2, "sections": 2, "split_size": 2, "index": 1, "dtype": torch.float64,
    "train": Mode(), "training": Mode(), "lambd": 0.3, "min": -0.5, "max": 0.5, "threshold": -0.5, "value": 0.0,
    "other": 0.5, "exponent": 2, "weight": 0.3, "decimals": 1, "fill_value": 0.0, "s": 2.0, "end": 4, "n": 4, "m": 3,
    "steps": 4, "row": 3, "col": 3, "stable": True, "half_to_float": False, "align_corners": False, "repeats": 2,
    "upscale_factor": 2, "downscale_factor": 2, "rounding_mode": "floor", "unbiased": True, "generator": None,
}  # fmt: skip


TENSORS = {"Tensor", "List[Tensor]"}


def calls_of(name: str) -> list[Call]:
    """Every way to call the operator of a row: what is written here, else what its schema asks for.

    Raises LookupError, in words that say what to add, for one whose arguments cannot be made.
    """
    if name in CALLS:
        return CALLS[name]
    packet = packet_of(name)
    made, missing = [], ""
    for overload in packet.overloads():
        schema = getattr(packet, overload)._schema
        if _is_plain(schema):
            try:
                made.append(_call(name, overload, schema))
            except LookupError as error:
                missing = f"{schema}: {error}"
    made += MORE.get(name, [])
    if missing or not made:
        raise LookupError(
            f"no arguments for {missing or name}; add a row to CALLS in tests/arguments.py: "
            f'"{name}": [Call("<overload>", (Operand(...), ...))]'
        )
    return made


def packet_of(name: str) -> Any:
    """What a row's operator is called by."""
    space, _, own = name.rpartition("::")
    if space == "transformers":
        pytest.importorskip("transformers.integrations.moe")
    return getattr(getattr(torch.ops, space or "aten"), own)


def _is_plain(schema: Any) -> bool:
    """Whether an overload takes and gives tensors, by places and not by names, and writes into none."""
    given, returned = ({str(value.type) for value in values} for values in (schema.arguments, schema.returns))
    named = any("Dimname" in kind for kind in given) or "names" in schema.overload_name
    drawn = "Generator" in str(given) and "generator" in schema.overload_name  # no graph holds a generator
    return bool(given & TENSORS and returned & TENSORS) and not (named or drawn or schema.is_mutable)


def _call(name: str, overload: str, schema: Any) -> Call:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    skipped = False
    for argument in schema.arguments:
        if argument.has_default_value() and argument.name not in ("dim", "unbiased"):
            skipped = True
            continue
        value = _value(name, argument)
        if argument.kwarg_only or skipped:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return Call(overload, tuple(args), kwargs)


def _value(name: str, argument: Any) -> Any:
    kind = str(argument.type)
    if kind == "Tensor":
        return Operand(SHAPE, DEFINED.get(name))
    if kind == "List[Tensor]":
        return [Operand(), Operand()]
    value = BY_NAME.get(argument.name, 0.5 if kind in ("number", "float") else None)
    if kind == "number" and DEFINED.get(name) is whole:
        value = 1
    if value is None:
        raise LookupError(f"argument {argument.name} of type {kind}")
    return [value] if kind.startswith("List[int]") or "List[int]" in kind else value
