"""Which weights of a model can be rewritten as two factors, and why the others cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from sslprune.capture.program import Program, module_of, operator_name
from sslprune.errors import RecipeError, few
from sslprune.kinds.rank import NAME
from sslprune.kinds.table import KINDS
from sslprune.recipe import PruneSection
from sslprune.removal.factors import Factored, Form

_OPERATORS = ("linear", "conv1d", "conv2d")
_SAID: dict[Form, str] = {
    "linear": "as two matrices",
    "pointwise": "as a convolution of fewer filters and a 1 x 1 one",
    "separable": "as an h x 1 and a 1 x w convolution",
}
FORWARDS: dict[type[nn.Module], Any] = {kind: kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d)}


def forms(weight: Tensor) -> tuple[Form, ...]:
    """The ways to make two factors of a weight (out, in, *kernel)."""
    if weight.dim() == 2:
        return ("linear",)
    return ("pointwise", "separable") if weight.dim() == 4 and weight[0, 0].numel() > 1 else ("pointwise",)


def asked(sections: Sequence[PruneSection]) -> bool:
    """Whether any of them is of a kind that a model is factored for."""
    return any(section.kind in KINDS and KINDS[section.kind].factors for section in sections)


def chosen(model: nn.Module, program: Program, sections: Sequence[PruneSection]) -> tuple[list[str], list[str]]:
    """The weights that the sections of kind "rank" name and that can be factored, and what is to be said of the others.

    Raises RecipeError, naming the field, for a section that names none, and for a layer named outright that cannot be.
    """
    reasons = why_not(model, program)
    found: dict[str, None] = {}
    passed: dict[str, list[str]] = defaultdict(list)
    for number, section in enumerate(sections):
        if not asked([section]):
            continue
        named = [name for name in reasons if section.names(axis_of(name))]
        usable = [name for name in named if not reasons[name]]
        outright = [name for name in named if reasons[name] and {layer_of(name), axis_of(name)} & set(section.include)]
        if outright or not usable:
            field, wrong = f"prune.{number}.include", [*outright, *named][:1]
            if wrong:
                raise RecipeError(
                    f"{field}: {layer_of(wrong[0])} has no rank to learn: {reasons[wrong[0]]}; name others"
                )
            some = few([layer_of(name) for name in reasons if not reasons[name]], 6) or "none that can be factored"
            raise RecipeError(
                f"{field}: {section.include} without {section.exclude} matches no matrix; there are {some}"
            )
        found |= dict.fromkeys(usable)
        for name in named:
            if reasons[name] and layer_of(name) not in passed[reasons[name]]:
                passed[reasons[name]].append(layer_of(name))
    return list(found), [f"rank: passes over {few(layers, 3)}: {reason}" for reason, layers in passed.items() if layers]


def layer_of(name: str) -> str:
    """The layer that a weight of that ``name`` is of."""
    return name.rpartition(".")[0] or name


def axis_of(name: str) -> str:
    """What the axis is called that a weight gets."""
    return f"{layer_of(name)}/{NAME}"


def why_not(model: nn.Module, program: Program) -> dict[str, str]:
    """Of each trained or frozen weight with two dimensions or more why it cannot be two factors; "" where it can."""
    readers: dict[str, list[fx.Node]] = defaultdict(list)
    for graph in program.graphs:
        for node in graph.nodes:
            if node.op == "get_attr":
                readers[str(node.target)] += node.users
    weights = {n: t for n, t in program.tensors.items() if n in program.aliases and isinstance(t, nn.Parameter)}
    every = [(n, alias, t) for n, t in weights.items() if t.dim() > 1 for alias in program.aliases[n]]
    return {alias: _reason(model, program, alias, program.aliases[n], t, readers[n]) for n, alias, t in every}


def _reason(
    model: nn.Module,
    program: Program,
    name: str,
    aliases: Sequence[str],
    weight: Tensor,
    readers: Sequence[fx.Node],
) -> str:
    path, _, leaf = name.rpartition(".")
    try:
        owner: Any = model.get_submodule(path)
    except AttributeError:  # as the modules of an exported program are
        return "its module is none of the model's own"
    shared = [alias for alias in aliases if alias != name]
    forward = next((known for kind, known in FORWARDS.items() if isinstance(owner, kind)), None)
    if isinstance(owner, Factored):
        return "it is factored already"
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return "an embedding is looked up, not multiplied"
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return "a recurrent layer reads it inside one operator"
    if shared:
        return f"it is shared with {layer_of(shared[0])}"
    if not weight.requires_grad or not program.is_trained(name):
        return "it does not train"
    if getattr(owner, "groups", 1) > 1:
        depthwise = owner.groups == owner.in_channels
        return (
            "in a depthwise convolution each filter reads one channel"
            if depthwise
            else f"in a grouped convolution ({owner.groups} groups) a filter reads its own channels alone"
        )
    if forward is None or leaf != "weight" or type(owner).forward is not forward:
        return "only the weights of nn.Linear, nn.Conv1d and nn.Conv2d, by their own forward, are factored"
    if getattr(owner, "padding_mode", "zeros") != "zeros":
        return f'it pads with "{owner.padding_mode}"'
    if weight.dtype not in (torch.float32, torch.float64):
        return f"it is {str(weight.dtype)[6:]}, in which two factors give other numbers; load the model in float32"
    if min(weight.shape[0], weight[0].numel()) < 2:
        return "its rank is 1"
    if any(module_of(reader) != path or operator_name(reader) not in _OPERATORS for reader in readers) or not readers:
        return "it is read by code of another module, or not at all"
    if len(readers) > len(program.graphs):
        return "it is applied several times"
    return ""


def told(found: Mapping[str, Form]) -> list[str]:
    """What was made of which matrices, in words."""
    by_form = {form: [layer_of(name) for name, made in found.items() if made == form] for form in _SAID}
    return [f"rank: {few(layers, 6)}: {_SAID[form]}" for form, layers in by_form.items() if layers]
