"""Evidence without labels: how much the model's own outputs feel the loss of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslprune.calibration.divergence import Divergence
from sslprune.calibration.lockstep import Values, evaluate, read
from sslprune.capture.program import Program
from sslprune.values.axes import Axis, Member

TOGETHER = 16  # samples whose gradients are added up before they are squared: drawn targets make their mean zero


def felt(
    program: Program,
    axes: Sequence[Axis],
    state: Mapping[str, Tensor],
    batches: Sequence[Sequence[Sequence[Any]]],
    divergence: Divergence,
    seed: int = 0,
) -> list[np.ndarray]:
    """Of each axis the Fisher information of its groups' presence: float64, shape (size,).

    A group is multiplied by m = 1; it is E[(∂ -log p(y) / ∂m)²], y drawn from the model's own outputs. To second order
    the divergence grows by half of it when the group goes (LeCun et al. 1990, eq. 4, on groups; Kwon et al. 2022).
    Half-size batches would give the same in the mean: what is drawn for two samples is independent. Each of ``batches``
    is in parts, whose gradients are added up before they are squared.
    """
    needed = {member.name for axis in axes for member in axis.members if member.zeroed}
    tensors = {n: _leaf(t) if n in needed else t.detach() for n, t in state.items()}
    operands = {axis.cuts[0].operand for axis in axes if axis.cuts}
    generator = torch.Generator().manual_seed(seed)
    totals = [np.zeros(axis.size) for axis in axes]
    with torch.enable_grad(), _without_cudnn(program):
        for parts in batches:
            gradients: dict[str, Tensor] = {}
            branches: dict[str, float] = {}
            for leaves in parts:
                outputs, kept = _run(program, tensors, leaves, operands)
                loss = divergence.drawn(outputs, generator)
                wanted = {name: tensors[name] for name in needed} | kept
                given = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
                for (name, value), gradient in zip(wanted.items(), given, strict=True):
                    if gradient is None:
                        continue
                    if name in kept:
                        pull = float((value.detach() * gradient).double().sum())
                        branches[name] = branches.get(name, 0.0) + pull
                    else:
                        gradients[name] = gradients[name] + gradient if name in gradients else gradient
            for total, axis in zip(totals, axes, strict=True):
                total += _pull(axis, tensors, gradients, branches) ** 2
    return [total / max(1, len(batches)) for total in totals]


def mean_of(several: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The geometric mean of each group's, whatever the units of each kind."""
    return [
        np.exp(np.mean([np.log(np.maximum(values, 1e-300)) for values in alike], axis=0))
        for alike in zip(*several, strict=True)
    ]


def _leaf(tensor: Tensor) -> Tensor:
    return (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()


def _without_cudnn(program: Program) -> AbstractContextManager[Any]:
    """cuDNN's recurrent layers have gradients in training mode alone; torch's own have them in evaluation too."""
    recurrent = any(
        "hx" in {argument.name for argument in node.target._schema.arguments}
        for node in program.evaluation.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    )
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()


def _run(
    program: Program, state: Mapping[str, Tensor], leaves: Sequence[Any], operands: set[str]
) -> tuple[list[Any], dict[str, Tensor]]:
    """The outputs' leaves, and what the nodes of the names ``operands`` made."""
    graph = program.evaluation
    values: Values = dict(zip((n for n in graph.nodes if n.op == "placeholder"), leaves, strict=True))
    kept: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            values[node] = evaluate(node, values, state)
            if node.name in operands:
                kept[node.name] = values[node]
        elif node.op == "output":
            return list(read(node.args[0], values, state)), kept
    raise AssertionError("a graph ends with its output")


def _pull(
    axis: Axis, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor], branches: Mapping[str, float]
) -> np.ndarray:
    """∂ loss / ∂m of each group: weight x gradient over all that reads it, or makes it where nothing does."""
    if axis.cuts:
        return np.array([branches.get(axis.cuts[0].operand, 0.0)])
    members = [member for member in axis.members if member.zeroed and member.name in gradients]
    by_role = {role: [m for m in members if m.role == role] for role in ("reads", "makes", "follows")}
    chosen = next((found for found in by_role.values() if found), [])
    pulls = {m.name: (tensors[m.name].detach() * gradients[m.name]).double() for m in chosen}
    return sum((along(member, pulls[member.name]) for member in chosen), np.zeros(axis.size))


def along(member: Member, pull: Tensor) -> np.ndarray:
    """The sum of ``pull`` over each group of ``member``."""
    flat = pull.flatten(member.dim) if member.flat else pull
    others = [d for d in range(flat.dim()) if d != member.dim]
    line = (flat.sum(others) if others else flat).cpu().numpy()
    return line[member.positions].sum(axis=1)


def magnitudes(axes: Sequence[Axis], state: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Of each axis its groups' squared norms, as shares of the axis's mean: float64, shape (size,)."""
    found = []
    for axis in axes:
        squares = {m.name: state[m.name].detach().double().square() for m in axis.members if m.zeroed}
        total = sum((along(m, squares[m.name]) for m in axis.members if m.zeroed), np.zeros(axis.size))
        found.append(shares(total))
    return found


def shares(values: np.ndarray) -> np.ndarray:
    """``values`` of an axis's groups as shares of their mean: so axes compare that have no unit in common."""
    return values / max(float(values.mean()), 1e-30)
