"""Layers that are gone whole, and the numbers that the rest of their stack gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sslprune.errors import ExportError, few


@dataclass(frozen=True)
class Held:
    """What a smaller instance of a class has to hold: ``tensors``, by the names that it gives them.

    ``before``: the name of each in the model as it was. ``kept``: of each stack that lost layers, by the name of its
    ``nn.ModuleList``, the old numbers of those that stay.
    """

    tensors: Mapping[str, Tensor]
    before: Mapping[str, str]
    kept: Mapping[str, list[int]]


def renumbered(model: nn.Module, small: Mapping[str, Tensor], *, parts: bool = False) -> Held:
    """The tensors ``small``, by their names in ``model``, with the layers that stay numbered from 0 on.

    ``model`` is as it was trained, at zero where something went. What no graph reads, and so a repacked model does not
    have, is as there. Raises ExportError for a layer of which a part went, unless there may be ``parts`` of layers.
    """
    own = model.state_dict()
    kept: dict[str, list[int]] = {}
    for stack in _stacks(model):
        inside_gone = any(
            stack.startswith(f"{outer}.") and int(stack.removeprefix(f"{outer}.").partition(".")[0]) not in left
            for outer, left in kept.items()
        )
        layers = _layers(own, stack)
        gone = [] if inside_gone else [number for number in layers if _is_gone(stack, number, layers, small)]
        if gone and len(gone) < len(layers):
            kept[stack] = [number for number in layers if number not in gone]
    found: dict[str, Tensor] = {}
    before: dict[str, str] = {}
    for name, tensor in own.items():
        new, stays = renamed(name, kept)
        if stays and name not in small and _went_alone(model, name, small):
            if not parts:
                raise _not_whole(model, name, small)
            continue
        if stays or name in small:
            found[new], before[new] = small.get(name, tensor), name
    return Held(found, before, kept)


def _stacks(model: nn.Module) -> list[str]:
    """The stacks of ``model``, the outer ones first."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]


def _layers(names: Mapping[str, Tensor], stack: str) -> dict[int, set[str]]:
    """Of each layer of ``stack`` what its tensors are called inside it."""
    found: dict[int, set[str]] = {}
    for name in names:
        if name.startswith(f"{stack}."):
            number, _, inside = name.removeprefix(f"{stack}.").partition(".")
            found.setdefault(int(number), set()).add(inside)
    return dict(sorted(found.items()))


def _is_gone(stack: str, number: int, layers: Mapping[int, set[str]], small: Mapping[str, Tensor]) -> bool:
    """Whether a layer went: nothing is left of it but what no other has, as the first one's table of positions."""
    others = {inside for other, names in layers.items() if other != number for inside in names}
    left = {inside for inside in layers[number] if f"{stack}.{number}.{inside}" in small}
    return left != layers[number] and not left & others


def renamed(name: str, kept: Mapping[str, list[int]]) -> tuple[str, bool]:
    """What a tensor is called among the layers that stay, and whether its own layer does.

    What others still read of a layer that went moves to the one that takes its number.
    """
    parts, stays = name.split("."), True
    for stack, left in kept.items():
        if name.startswith(f"{stack}."):
            at = stack.count(".") + 1
            number = int(name.split(".")[at])
            stays &= number in left
            parts[at] = str(min(sum(other < number for other in left), len(left) - 1))
    return ".".join(parts), stays


def _went_alone(model: nn.Module, name: str, small: Mapping[str, Tensor]) -> bool:
    """Whether a tensor went with a branch of its layer; what no layer has now was never read."""
    stack = stack_of(model, name)
    if not stack:
        return False
    inside = name.removeprefix(f"{stack}.").partition(".")[2]
    own = model.state_dict()
    siblings = [f"{stack}.{other}.{inside}" for other in _layers(own, stack)]
    zeroed = own[name].dim() > 1 and not own[name].any()  # a branch that went from every layer
    return bool(zeroed) or any(sibling in small for sibling in siblings)


def _not_whole(model: nn.Module, name: str, small: Mapping[str, Tensor]) -> ExportError:
    """What to say of a tensor that went with a branch of its layer."""
    stack = stack_of(model, name)
    number = name.removeprefix(f"{stack}.").partition(".")[0]
    left = [key for key in model.state_dict() if key.startswith(f"{stack}.{number}.") and key in small]
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in left))
    if all("norm" in type(model.get_submodule(path)).__name__.lower() for path in modules):
        why = f"its normalisations stand behind the sums, and stay ({few(modules, 2)}); leave its kind of layers out"
    else:
        why = f'the rest of it stays ({few(modules, 2)}); let whole layers go, by tie = "block" in their [[prune]]'
    return ExportError(
        f"{stack}.{number}: {name} went with its branch, and a {type(model).__name__} has all of a layer or none: "
        f"{why}, or fill up with zeros, by --pad"
    )


def stack_of(model: nn.Module, name: str) -> str:
    """The innermost stack that a tensor lies in; empty where it lies in none."""
    return max((s for s in _stacks(model) if name.startswith(f"{s}.")), key=len, default="")
