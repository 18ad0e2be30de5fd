"""Repair: weights fitted anew by least squares, layer by layer, to what the dense model makes of the same samples.

Layers are fitted in the graph's order. The inputs are the pruned model's, so that each layer makes up for what those
before it could not. Where a layer's output is added to others, its target is the dense model's sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor, fx

from sslprune.analysis.contraction import Contraction
from sslprune.analysis.inference import arguments
from sslprune.calibration.chain import Chain, chain_of, computed_from, in_order
from sslprune.calibration.lockstep import Lockstep, Values
from sslprune.calibration.moments import Moments, best_of, changes
from sslprune.calibration.rows import Rows, agrees, rows_of
from sslprune.capture.program import Program, operator_name
from sslprune.errors import CalibrationError
from sslprune.kinds.find import analysis_of
from sslprune.values.selection import Selection

MOST_ROWS = 32768  # of each layer, that are looked at ...
ROWS_PER_COLUMN = 16  # ... or so many for each of its columns, where that is more
MASK = "attention_mask"  # the input that says which tokens are padding, as tokenizers call it: (batch, length), 0 or 1
FEW_ROWS = 2.0  # rows for each column, below which it is said


@dataclass(frozen=True)
class Fitted:
    """What became of one layer: its error on held-out rows, a share of the dense output's squares, before and after."""

    weight: str
    before: float
    after: float
    few: bool = False  # fewer rows than two for each column


@dataclass(frozen=True)
class _Fit:
    rows: Rows
    chain: Chain | None
    shift: tuple[str, float] | None  # the tensor that takes an intercept, and by which sign


class Repair:
    """Fits what reads what is gone, and what comes after it, of the model whose tensors are ``pruned``.

    ``dense`` and ``pruned`` are by the names of the program's graphs, the same object where nothing differs; ``pruned``
    is changed. ``gone``: which entries of a tensor stay zero. ``held``: how many of the batches, the last ones, decide
    how much a layer may change. ``damping`` of the ridge, times the mean square of the rows; None: the held-out rows
    choose. ``memory``: bytes of what layers make of the samples; more of it is in temporary files.
    """

    def __init__(
        self,
        program: Program,
        dense: Mapping[str, Tensor],
        pruned: dict[str, Tensor],
        gone: Mapping[str, Tensor],
        *,
        held: int,
        damping: float | None = None,
        seed: int = 0,
        memory: float = inf,
    ) -> None:
        self.program, self.dense, self.pruned, self.gone = program, dense, pruned, gone
        self.held, self.damping, self.seed, self.memory = held, damping, seed, memory
        self.layers: list[Fitted] = []
        self.skipped: dict[str, str] = {}  # weights that read what is gone and were not fitted, each with the reason
        graph = program.evaluation
        behind, facts = computed_from(graph), analysis_of(program).inference.facts
        self._fits: dict[fx.Node, list[_Fit]] = {}
        for node in graph.nodes:
            contractions = facts[node].contractions
            every = rows_of(node, contractions, dense)
            if not every:
                self.skipped.update(_not_rows(contractions, behind))
            fits = [_Fit(rows, chain_of(node, behind), self._shift(rows)) for rows in every if self._may_change(rows)]
            if fits:
                self._fits[node] = fits
        chains = [fits[0].chain for fits in self._fits.values()]
        self.order, able = in_order(graph, [chain for chain in chains if chain is not None])
        for fits in self._fits.values():
            fits[:] = [fit if fit.chain in able else replace(fit, chain=None) for fit in fits]

    def run(self, batches: Sequence[Sequence[Any]]) -> list[tuple[list[Any], list[Any]]]:
        """Fit all layers; the outputs' leaves of each batch that was held out, (dense, repaired).

        What comes after the last layer is computed of those batches alone: the logits of a text are large.
        """
        inputs = [node.name for node in self.program.evaluation.nodes if node.op == "placeholder"]
        at = inputs.index(MASK) if MASK in inputs else None
        self._masks = [_as_mask(leaves[at]) if at is not None else None for leaves in batches]
        self._step = Lockstep(self.order, self.dense, self.pruned, self._fits, self.memory)
        last = next((node for node in reversed(self.order) if node in self._fits), None)

        def visit(node: fx.Node) -> None:
            for fit in self._fits[node]:
                self._visit(node, fit)
            if node is last:
                self._step.keep_last(self.held)

        return self._step.run(batches, visit)[-self.held :]

    def _may_change(self, rows: Rows) -> bool:
        """Whether the weights are parameters that train, read here alone."""
        for name in rows.weights:
            users = sum(len(n.users) for n in self.program.evaluation.nodes if n.op == "get_attr" and n.target == name)
            if not self.program.is_trained(name):
                self.skipped[name] = "it does not train"
            elif users > 1 or len(self.program.aliases[name]) > 1:
                self.skipped[name] = "others share it"
            else:
                continue
            return False
        return True

    def _shift(self, rows: Rows) -> tuple[str, float] | None:
        """What can be added to all that rows make: a bias, or else the mean that the next batch norm takes off."""
        node = rows.node
        given: Any = arguments(node)
        bias = rows.bias
        if bias is None and operator_name(node) in ("addmm", "baddbmm"):
            bias = given.self
        if isinstance(bias, fx.Node):
            name = str(bias.target)
            alone = bias.op == "get_attr" and self.program.is_trained(name) and len(self.program.aliases[name]) == 1
            return (name, 1.0) if alone and self.dense[name].dim() == 1 else None
        user = next(iter(node.users), None)
        mean = getattr(arguments(user), "running_mean", None) if user is not None and _has_schema(user) else None
        if len(node.users) == 1 and isinstance(mean, fx.Node) and mean.op == "get_attr":
            return str(mean.target), -1.0
        return None

    def _visit(self, node: fx.Node, fit: _Fit) -> None:
        rows, step = fit.rows, self._step
        if step.is_shared(node):
            return  # nothing is missing yet
        name = rows.weights[0]
        dense, pruned = self._at(0, node)
        now = rows.made(pruned, self.pruned)
        if not all(bool(made.isfinite().all()) for made in (now, rows.made(dense, self.dense))):
            raise CalibrationError(
                f"{name}: what it makes of the samples is not finite; look at it and the weights before it"
            )
        if not agrees(rows, now, pruned, self.pruned):
            self.skipped[name] = "it is not its rows times its weight"
            return
        gone = rows.matrix([self.gone.get(n, _nothing(self.dense[n])) for n in rows.weights])
        stays = ~gone.all(2)  # (groups, made)
        columns = ~(gone | ~stays[:, :, None]).all(1).all(0)
        if not stays.any() or not columns.any():
            return
        index = columns.nonzero()[:, 0]
        fitted = self._step.count - self.held
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.order.index(node))
        made, _ = self._gather(node, fit, range(fitted), index, generator)
        if not made.squares[stays].any():
            return  # it makes what is gone, and reads nothing that is
        few = made.count < FEW_ROWS * len(index)
        found = list(changes(made, fit.shift is not None, self.damping))
        del made  # before its like is gathered
        held, power = self._gather(node, fit, range(fitted, self._step.count), index, generator)
        change, errors = best_of(found, held)
        self.layers.append(
            Fitted(name, float(held.squares[stays].sum()) / power, float(errors[stays].sum()) / power, few)
        )
        whole = change.new_zeros(len(change), len(columns) + 1, change.shape[2])
        whole[:, index], whole[:, -1] = change[:, :-1], change[:, -1]
        self._apply(rows, fit.shift, torch.where(stays[:, None], whole, 0.0), gone)

    def _gather(
        self, node: fx.Node, fit: _Fit, batches: Iterable[int], columns: Tensor, generator: torch.Generator
    ) -> tuple[Moments, float]:
        """Moments of those ``columns`` of the rows of some batches, and Σ (dense output)² over them.

        Raises CalibrationError for sums that are not finite.
        """
        rows, chain, found, power = fit.rows, fit.chain, Moments(), 0.0
        reach: dict[torch.Size, Tensor] = {}
        for i in batches:
            dense, pruned = self._at(i, node, chain)
            wanted, now = rows.made(dense, self.dense), rows.made(pruned, self.pruned)
            if chain is None:
                error = wanted - now
            else:
                if now.shape not in reach:
                    reach = {now.shape: chain.reach(now, pruned, self.pruned)}
                total = chain.total(wanted, dense, self.dense)
                error = chain.missing(now, total, reach[now.shape], pruned, self.pruned)
            picked = self._picked(rows, now, self._masks[i], generator)
            found.add(rows.rows(pruned, self.pruned, picked).index_select(2, columns), rows.by_row(error, picked))
            power += float(rows.by_row(wanted, picked).double().square().sum())
        if not found.is_finite:
            raise CalibrationError(
                f"{rows.weights[0]}: the squares of what it reads of the samples overflow; scale the inputs"
            )
        return found, max(power, 1e-30)

    def _at(self, batch: int, node: fx.Node, chain: Chain | None = None) -> tuple[Values, Values]:
        """What ``node`` and its ``chain`` read of a batch, (dense, pruned), and what the dense model makes of it."""
        dense, pruned = self._step.at(batch, (*node.all_input_nodes, *(chain.others() if chain is not None else ())))
        dense[node] = self._step.ahead(batch, node, dense)
        return dense, pruned

    def _picked(self, rows: Rows, made: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """Which rows of a batch are looked at; None: all."""
        columns = rows.matrix([self.dense[n] for n in rows.weights]).shape[2]
        most = -(-max(MOST_ROWS, ROWS_PER_COLUMN * columns) // len(self._masks))
        real = rows.real(made, mask) if mask is not None else None
        count = rows.count(made) if real is None else len(real)
        if count > most:
            drawn = torch.randint(count, (most,), generator=generator).to(made.device)
            return drawn if real is None else real[drawn]
        return real

    def _apply(self, rows: Rows, shift: tuple[str, float] | None, change: Tensor, gone: Tensor) -> None:
        old = [self.pruned[name] for name in rows.weights]
        matrix = rows.matrix(old) + change[:, :-1].transpose(1, 2).to(old[0].dtype)
        parts = rows.split(matrix.masked_fill(gone, 0), old)
        self.pruned.update(zip(rows.weights, parts, strict=True))
        if shift is not None:
            name, sign = shift
            shifted = self.pruned[name].clone()
            shifted[rows.part] += sign * change[:, -1].reshape(-1).to(old[0].dtype)
            self.pruned[name] = shifted


def _as_mask(given: Any) -> Tensor | None:
    """An input as True where a token is real; None where none is padding, or where it says something else."""
    if not isinstance(given, Tensor) or given.dim() != 2 or given.is_floating_point() or not given.numel():
        return None
    real = given != 0
    return real if bool((given == real).all()) and real.any() and not real.all() else None


def _not_rows(contractions: Sequence[Contraction], behind: Mapping[fx.Node, set[fx.Node]]) -> dict[str, str]:
    """The parameters of a node that is no product of rows with one, each with the reason; activations have none."""
    found = {}
    for contraction in contractions:
        weight = contraction.weight
        sources = {weight, *behind[weight]}
        for source in sources if not any(s.op == "placeholder" for s in sources) else ():
            if source.op == "get_attr":
                found[str(source.target)] = "no one product" if source is weight else "others are computed from it"
    return found


def _has_schema(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload)


def _nothing(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)


def gone_entries(tensors: Mapping[str, Tensor], selection: Selection) -> dict[str, Tensor]:
    """Which numbers of each tensor are zero once the groups of ``selection`` are; bool, in the tensor's shape."""
    found: dict[str, Tensor] = {}
    for axis, mask in zip(selection.axes, selection, strict=True):
        for member in axis.members if mask.any() else ():
            if member.zeroed:
                tensor = tensors[member.name]
                entries = member.entries(tensor, mask).to(tensor.device)
                found[member.name] = found.get(member.name, _nothing(tensor)) | entries
    return found
