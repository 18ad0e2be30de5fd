"""Checkpoints as they are found in the wild: read by what is in them, unwrapped, and loaded whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslprune.errors import CheckpointError, few
from sslprune.models.weight_files import read_weights

NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")  # where training scripts put the weights
PREFIXES = ("module.", "_orig_mod.", "model.")  # what DataParallel, torch.compile and Lightning put before a name
DEEPEST = 4  # tables within tables


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a file that torch.save or safetensors wrote, whatever it is called; its code is never run.

    Raises CheckpointError for a file that is missing, damaged, of an unknown format, or needs code to be read.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; set model.checkpoint")
    contents = read_weights(path)
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path}: holds a {type(contents).__name__}; expected a mapping of names to tensors")
    return dict(contents)


def unwrap(
    contents: dict[str, Any], source: str, expected: set[str], key: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights out of what training scripts wrap them in, steered by the ``expected`` names; notes say what was done.

    ``key`` names the table where there are several.
    """
    notes, file = [], Path(source).name
    table = _named(contents, source, key) if key is not None else _found(contents, source, expected)
    for name, size in table[1]:
        notes.append(f"{file}: took '{name}' of {size} entries")
    entries = {str(name): value for name, value in table[0].items()}
    weights = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    others = [name for name in entries if name not in weights]
    if not weights:
        raise CheckpointError(f"{source}: holds no tensors, only {few(others) or 'nothing'}; expected a state_dict")
    if others:
        notes.append(f"{file}: left out {len(others)} entries that are not tensors: {few(others)}")
    folded = [n.removesuffix("_orig") for n in weights if n.endswith("_orig") and f"{n[:-5]}_mask" in weights]
    if folded and not any(f"{name}_mask" in expected for name in folded):
        for name in folded:
            weights[name] = _masked(weights.pop(f"{name}_orig"), weights.pop(f"{name}_mask"), source, name)
        notes.append(f"{file}: multiplied {len(folded)} weights with the masks of torch.nn.utils.prune")
    while (found := _prefix(weights, expected)) is not None:
        count = sum(name.startswith(found) for name in weights)
        weights = {name.removeprefix(found): value for name, value in weights.items()}
        notes.append(f"{file}: removed prefix '{found}' from {count} keys")
    return weights, notes


def _named(contents: Mapping[str, Any], source: str, key: str) -> tuple[Mapping[str, Any], list[tuple[str, int]]]:
    """The table ``key`` of a checkpoint; a dot leads into a table within a table."""
    table: Any = contents
    for part in [key] if key in contents else key.split("."):
        inner = table.get(part)
        if not isinstance(inner, Mapping):
            raise CheckpointError(
                f"{source}: has no table {part!r}; it holds {few(_tables(table) or list(map(str, table)))};"
                " set model.key to one of them, or leave it out"
            )
        table = inner
    return table, [(key, len(contents))]


def _found(
    contents: Mapping[str, Any], source: str, expected: set[str]
) -> tuple[Mapping[str, Any], list[tuple[str, int]]]:
    """The table that holds the weights, and the way to it: each key with the number of entries beside it."""
    way: list[tuple[str, int]] = []
    while len(way) < DEEPEST:
        tables = _tables(contents)
        usual = next((key for key in NESTED if key in tables and key not in expected), None)
        if usual is None and (not tables or any(isinstance(value, Tensor) for value in contents.values())):
            break
        if usual is None and len(tables) > 1:
            raise CheckpointError(f"{source}: holds several tables, {few(tables)}; set model.key to one of them")
        key = usual or tables[0]
        way.append((key, len(contents)))
        contents = contents[key]
    return contents, way


def _tables(contents: Mapping[str, Any]) -> list[str]:
    """The entries that are tables of tensors, or hold such."""

    def holds(value: Any, depth: int) -> bool:
        if isinstance(value, Tensor):
            return True
        return depth > 0 and isinstance(value, Mapping) and any(holds(inner, depth - 1) for inner in value.values())

    return [
        key
        for key, value in contents.items()
        if isinstance(key, str) and isinstance(value, Mapping) and key not in OPTIMIZERS and holds(value, DEEPEST)
    ]


OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "scheduler", "lr_scheduler", "scaler")


def _masked(weight: Tensor, mask: Tensor, source: str, name: str) -> Tensor:
    if weight.shape != mask.shape:
        raise CheckpointError(f"{source}: {name}_mask is {tuple(mask.shape)}, {name}_orig {tuple(weight.shape)}")
    return weight * mask.to(weight.dtype)


def _prefix(weights: Mapping[str, Tensor], expected: set[str]) -> str | None:
    """A prefix that training scripts add and this model's names do not have, or fewer of them fit with."""
    for prefix in PREFIXES:
        stripped = [name.removeprefix(prefix) for name in weights]
        if stripped == list(weights) or len(set(stripped)) < len(stripped):
            continue
        foreign = not any(name.startswith(prefix) for name in expected)
        if foreign or len(expected & set(stripped)) > len(expected & set(weights)):
            return prefix
    return None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load ``weights`` into ``model``, in place; every name, shape and number has to be right, or nothing is loaded.

    Raises CheckpointError that lists what is missing, unexpected, of another shape or kind of number, or not finite.
    """
    expected = model.state_dict()
    # checkpoints older than PyTorch 0.4.1 do not count the batches that a norm has seen
    missing = [n for n in expected if n not in weights and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in weights if n not in expected]
    if missing or unexpected:
        lists = [f"{what} {few(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
        raise CheckpointError(f"{source}: not a checkpoint of this model: {'; '.join(lists)}; see model.arguments")
    shapes = [
        f"{name} is {tuple(value.shape)}, the model's {tuple(expected[name].shape)}"
        for name, value in weights.items()
        if value.shape != expected[name].shape
    ]
    if shapes:
        raise CheckpointError(f"{source}: other shapes: {few(shapes)}; see model.arguments")
    kinds = [
        f"{name} holds {_kind(value)}, the model's {_kind(expected[name])}"
        for name, value in weights.items()
        if _kind(value) != _kind(expected[name])
    ]
    if kinds:
        raise CheckpointError(f"{source}: other numbers: {few(kinds)}; save the weights as the model holds them")
    broken = [
        n for n, value in weights.items() if value.is_floating_point() and not bool(value.float().isfinite().all())
    ]
    if broken:
        raise CheckpointError(f"{source}: values that are not finite in {few(broken)}; use an earlier checkpoint")
    expected.update(weights)  # which keeps the versions of the model's modules: a module may ask for its own
    model.load_state_dict(expected)


def _kind(value: Tensor) -> str:
    """What numbers a tensor holds, of those that cannot stand for each other."""
    if value.is_meta:
        return "no numbers (on the meta device)"
    if value.layout != torch.strided or value.is_quantized:
        return f"{str(value.layout).removeprefix('torch.')} {str(value.dtype).removeprefix('torch.')}"
    if value.is_complex():
        return "complex numbers"
    return "floating-point numbers" if value.is_floating_point() else "integers"
