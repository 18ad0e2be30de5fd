"""Evidence without labels: how much the model's own outputs feel the loss of each group."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
    batches: Iterable[Sequence[Sequence[Any]]],
    divergences: Sequence[Divergence],
    seed: int = 0,
) -> list[list[np.ndarray]]:
    """By each of ``divergences``, of each axis the Fisher information of its groups' presence: float64, shape (size,).

    A group is multiplied by m = 1; it is E[(∂ -log p(y) / ∂m)²], y drawn from the model's own outputs. To second order
    the divergence grows by half of it when the group goes (LeCun et al. 1990, eq. 4, on groups; Kwon et al. 2022).
    Half-size batches would give the same in the mean: what is drawn for two samples is independent. Each of ``batches``
    is in parts, whose pulls are added up before they are squared.
    """
    there = {str(node.target) for node in program.evaluation.nodes if node.op == "get_attr" and node.users}
    pulled = [_pulled(axis, there) for axis in axes]
    needed = {member.name for members in pulled for member in members}
    tensors = {n: _leaf(t) if n in needed else t.detach() for n, t in state.items()}
    operands = {axis.cuts[0].operand for axis in axes if axis.cuts}
    generators = [torch.Generator().manual_seed(seed) for _ in divergences]
    totals = [[np.zeros(axis.size) for axis in axes] for _ in divergences]
    count = 0
    with torch.enable_grad(), _without_cudnn(program):
        for parts in batches:
            count += 1
            pulls = [[np.zeros(axis.size) for axis in axes] for _ in divergences]
            for leaves in parts:
                outputs, kept = _run(program, tensors, leaves, operands)
                wanted = {name: tensors[name] for name in needed} | kept
                for pull, divergence, generator in zip(pulls, divergences, generators, strict=True):
                    loss = divergence.drawn(outputs, generator)
                    again = divergence is not divergences[-1]
                    given = torch.autograd.grad(loss, list(wanted.values()), retain_graph=again, allow_unused=True)
                    gradients = dict(zip(wanted, given, strict=True))
                    for i, axis in enumerate(axes):
                        pull[i] += _pull(axis, pulled[i], wanted, gradients)
            for total, pull in zip(totals, pulls, strict=True):
                for sums, one in zip(total, pull, strict=True):
                    sums += one**2
    return [[sums / max(1, count) for sums in total] for total in totals]


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
                if not values[node].requires_grad:  # no weight before it is asked about
                    values[node] = _leaf(values[node])
                kept[node.name] = values[node]
        elif node.op == "output":
            return list(read(node.args[0], values, state)), kept
    raise AssertionError("a graph ends with its output")


def _pulled(axis: Axis, there: Collection[str]) -> list[Member]:
    """What m multiplies, of the tensors that are ``there``: all that reads a group, or makes it where nothing does."""
    members = [member for member in axis.members if member.zeroed and member.name in there]
    by_role = {role: [m for m in members if m.role == role] for role in ("reads", "makes", "follows")}
    return next((found for found in by_role.values() if found), []) if not axis.cuts else []


def _pull(
    axis: Axis, members: Sequence[Member], values: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]
) -> np.ndarray:
    """∂ loss / ∂m of each group: value x gradient over its ``members``, or of the branch that it is."""
    total = np.zeros(axis.size)
    for name in [axis.cuts[0].operand] if axis.cuts else dict.fromkeys(member.name for member in members):
        gradient = gradients.get(name)
        if gradient is None:
            continue
        pull = (values[name].detach() * gradient).double()
        total += float(pull.sum()) if axis.cuts else sum(along(m, pull) for m in members if m.name == name)
    return total


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
