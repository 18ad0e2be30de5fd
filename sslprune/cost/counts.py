"""What a model costs: multiply-accumulates, parameters and latency, as functions of what is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Literal

import numpy as np
from torch import fx, nn

from sslprune.analysis.atoms import Dim
from sslprune.analysis.factors import pairs_of
from sslprune.capture.program import Program
from sslprune.cost.layers import Asked, Layer, Table, layer_of_product, layers_of
from sslprune.cost.slots import Slots
from sslprune.cost.terms import Factored, Folding, Summand, Term
from sslprune.kinds.branches import too_many
from sslprune.kinds.closed import Left, closed
from sslprune.kinds.find import analysis_of
from sslprune.kinds.table import kind_of
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection

Measure = Literal["macs", "parameters", "latency"]


class _Timed:
    """One layer of ``node``, whose operands' sizes are the kept indices of ``operands``.

    Of the layers of a factored weight either the two are there or the one, as ``folding`` says.
    """

    def __init__(
        self,
        asked: Asked,
        operands: list[list[int]],
        node: fx.Node,
        folding: Folding | None = None,
        folded: bool = False,
    ) -> None:
        self.make, self.operands, self.nodes, self.folding, self.folded = asked.make, operands, [node], folding, folded

    def is_there(self, counts: np.ndarray) -> bool:
        return self.folding is None or self.folding.folds(counts) == self.folded


class Cost:
    """MACs of one sample and parameters of ``program`` when some groups of ``axes`` are removed.

    A `Selection` over ``axes`` says which groups go; None: none does. Costs equal those of the repacked model.
    With a table of ``layers`` it also knows the latency of ``batch`` samples, in microseconds: ``fit[0]`` + ``fit[1]``
    x the sum over the table's layers.
    """

    def __init__(self, program: Program, axes: Sequence[Axis], layers: Table | None = None, batch: int = 1) -> None:
        g = analysis_of(program).inference
        self.axes = list(axes)
        self._starts = np.cumsum([1, *(axis.size for axis in self.axes)])
        slots = np.zeros((len(g.atoms), 1), np.int64)  # of each atom, one for each axis that has it; 0 is always kept
        for axis, start in zip(self.axes, self._starts, strict=False):
            if slots[axis.atoms, -1].any():
                slots = np.pad(slots, ((0, 0), (0, 1)))
            slots[axis.atoms, -1] = np.arange(start, start + axis.size)[:, None]
        known: dict[tuple[int, ...] | int, int] = {}
        seen: dict[bytes, int] = {}

        def index(dim: Dim) -> int:
            if id(dim) not in known:
                rows = slots[g.atoms.rows(dim)].reshape(dim.size, -1)
                rows = rows[:, rows.any(axis=0)]  # what no axis has takes time at each count
                key = rows.tobytes() + bytes(str(rows.shape), "ascii")
                if key not in seen:
                    seen[key] = len(self._rows)
                    self._rows.append(rows)
                known[id(dim)] = seen[key]
                self._alive.append(dim)
            return known[id(dim)]

        self._rows: list[np.ndarray] = []  # of each distinct dimension: the slots of each index, shape (n, k)
        self._alive: list[Dim] = []  # keeps ids unique while they are keys
        graph = program.evaluation
        self._cuts = {i: axis.cuts[0] for i, axis in enumerate(self.axes) if axis.cuts}
        columns: dict[str, tuple[tuple[Dim, ...], Dim]] = {}  # of a weight: what they stand for, and themselves
        self._columns: dict[int, int] = {}
        for i, axis in enumerate(self.axes):
            size = kind_of(axis).sizes(g, axis)
            if size is not None:
                columns[axis.members[0].name] = size.whole, size.dim
                self._columns[i] = index(columns[axis.members[0].name][1])

        def by_column(name: str, dims: Sequence[Dim]) -> list[Dim]:
            """``dims`` with a weight's columns in place of its (C, *kernel), where columns are among the axes."""
            if name not in columns:
                return list(dims)
            whole, column = columns[name]
            return [*(dim for dim in dims if not any(dim is one for one in whole)), column]

        def term(dims: Sequence[Dim], times: float, nodes: list[fx.Node]) -> Term:
            moving = [d for d in dims if d.rows.shape[1]]
            constant = times * prod(d.size for d in dims if not d.rows.shape[1])
            return Term(constant, [index(d) for d in moving], nodes)

        self._terms: dict[str, list[Summand]] = {"macs": [], "parameters": []}
        self._folding: dict[fx.Node, Folding] = {}  # of each node of a factored weight
        self._ranks: dict[int, tuple[Folding, int]] = {}  # of axes, by their index; which layer is one matrix
        pairs = pairs_of(g.facts, graph)
        for pair in pairs:
            nodes = [pair.up.node]
            parts = [term(part.dims, 1 / program.batch, nodes) for part in (pair.down, pair.up)]
            folding = Folding(parts, term(pair.product, 1 / program.batch, nodes), index(pair.rank))
            self._folding |= {pair.down.node: folding, pair.up.node: folding}
            self._terms["macs"].append(Factored(folding, parts, folding.whole))
            down, up = (g.dims(part.weight) for part in (pair.down, pair.up))
            held = [term(dims, 1.0, nodes) for dims in (down, up)]
            whole = term([up[0], *down[1:], *up[2:]], 1.0, nodes)
            self._terms["parameters"].append(Factored(folding, held, whole))
        counted: dict[str, list[fx.Node]] = {}
        for node in graph.nodes:
            for contraction in g.facts[node].contractions if node not in self._folding else ():
                dims = by_column(str(contraction.weight.target), contraction.dims)
                self._terms["macs"].append(term(dims, contraction.times / program.batch, [node]))
            if node.op == "get_attr" and node.users:
                counted.setdefault(str(node.target), []).append(node)
        for name in [name for pair in pairs for name in pair.weights]:
            del counted[name]
        for name, nodes in counted.items():
            if name in program.aliases and isinstance(program.tensors[name], nn.Parameter):
                self._terms["parameters"].append(term(by_column(name, g.state[name]), 1.0, nodes))
        self.layers = layers
        self.fit = (0.0, 1.0)
        self._moved = 0.0  # microseconds, by what was measured whole near the budget
        self._errors: dict[tuple[Layer, ...], float] = {}
        self.whole: Callable[[Selection], float] | None = None  # measures a model's share of the dense latency
        self._timed: list[_Timed] = []
        for node in graph.nodes if layers is not None else ():
            asked, when = layers_of(g, node, batch, columns), self._folding.get(node)
            self._timed += [_Timed(a, [[index(d) for d in dims] for dims in a.operands], node, when) for a in asked]
        for pair in pairs if layers is not None else ():
            one, node = layer_of_product(g, pair, batch), pair.up.node
            operands = [[index(d) for d in dims] for dims in one.operands]
            self._timed.append(_Timed(one, operands, node, self._folding[node], folded=True))
            for i, axis in enumerate(self.axes):
                if np.isin(g.atoms.of([pair.rank]), axis.atoms).any():
                    self._ranks[i] = self._folding[node], len(self._timed) - 1
        self._slots = Slots(self._rows)
        self._output = next(node for node in reversed(graph.nodes) if node.op == "output")
        self._left: dict[frozenset[int], set[fx.Node]] = {}
        self._live_terms: dict[tuple[str, frozenset[int]], list[Summand]] = {}

    def _kept(self, selection: Selection | None) -> tuple[np.ndarray, set[int]]:
        """Which slots are kept, and which branches are gone."""
        if selection is None:
            return np.ones(self._starts[-1], bool), set()
        masks = closed(self.axes, selection, self._columns, self._left_by)
        return _flags(masks), {i for i in self._cuts if masks[i][0]}

    def _left_by(self, masks: Sequence[np.ndarray]) -> Left:
        flags = _flags(masks)
        return lambda i: flags[self._rows[self._columns[i]]].all(axis=1)

    def _is_last(self, branch: int, gone: set[int]) -> bool:
        """Whether a branch is all that its sum or concatenation has left."""
        return too_many([self._cuts[j] for j in gone], self._cuts[branch])

    def _needed(self, gone: set[int]) -> set[fx.Node]:
        """The nodes that the output still needs without the branches that are ``gone``."""
        key = frozenset(gone)
        if key not in self._left:
            cut = {(self._cuts[i].total, self._cuts[i].operand) for i in gone}
            live, stack = {self._output}, [self._output]
            while stack:
                node = stack.pop()
                for source in node.all_input_nodes:
                    if source not in live and (node.name, source.name) not in cut:
                        live.add(source)
                        stack.append(source)
            self._left[key] = live
        return self._left[key]

    def _live(self, measure: str, gone: set[int]) -> list[Summand]:
        key = measure, frozenset(gone)
        if key not in self._live_terms:
            live = self._needed(gone)
            terms = self._terms[measure]
            self._live_terms[key] = [term for term in terms if any(node in live for node in term.nodes)]
        return self._live_terms[key]

    def _counts(self, flags: np.ndarray) -> np.ndarray:
        return self._slots.counts(self._slots.kept(flags))

    def _sum(self, measure: str, counts: np.ndarray, gone: set[int]) -> float:
        return float(sum(term.value(counts) for term in self._live(measure, gone)))

    def _measure(self, measure: str, selection: Selection | None) -> float:
        flags, gone = self._kept(selection)
        return self._sum(measure, self._counts(flags), gone)

    def macs(self, selection: Selection | None = None) -> float:
        """Multiply-accumulates of one sample."""
        return self._measure("macs", selection)

    def parameters(self, selection: Selection | None = None) -> float:
        """Number of parameters."""
        return self._measure("parameters", selection)

    def latency(self, selection: Selection | None = None) -> float:
        """Microseconds of one call, by the table."""
        return self._latencies([self._kept(selection)])[0]

    def measured(self, selection: Selection) -> float | None:
        """The share of the dense latency without ``selection``, measured whole; the mean of such errors moves the sum.

        None where nothing can be measured: the other costs are what they say.
        """
        if self.whole is None:
            return None
        share, layers = self.whole(selection), tuple(self.asked(selection))
        offset, slope = self.fit
        sums = [sum(self._table.microseconds(found)) for found in (self.asked(), layers)]
        dense, plain = (offset + slope * taken for taken in sums)
        self._errors[layers] = share * dense - plain
        self._moved = float(np.mean(list(self._errors.values())))
        return share

    def asked(self, selection: Selection | None = None) -> list[Layer]:
        """The layers that run, as ONNX Runtime is asked for them."""
        flags, gone = self._kept(selection)
        return self._asked(self._counts(flags), gone)

    def saved(self, selection: Selection, blocks: Sequence[Mapping[int, np.ndarray]], measure: Measure) -> list[float]:
        """How much ``measure`` falls without each of ``blocks`` by itself: of axes, by their indices, some groups.

        Latency has stairs: it is the difference between two of its values, where the others are taken from a slope.
        """
        if measure != "latency":
            savings = self.savings(selection, measure)
            return [sum(float(savings[i][groups].sum()) for i, groups in block.items()) for block in blocks]
        cases = [self._kept(selection), *(self._kept(selection.plus(block)) for block in blocks)]
        now, *without = self._latencies(cases)
        flags, _ = cases[0]
        shares = [self._share(self._counts(flags), block) for block in blocks]
        return [now - then if share is None else share for then, share in zip(without, shares, strict=True)]

    def _share(self, counts: np.ndarray, block: Mapping[int, np.ndarray]) -> float | None:
        """What groups of a rank save, by their share, of a matrix that is one at these ``counts``; None of others."""
        found = 0.0
        for i, groups in block.items():
            folding, at = self._ranks.get(i, (None, 0))
            if folding is None or not folding.folds(counts):
                return None
            timed, sizes = self._timed[at], counts.astype(int).tolist()
            layer = timed.make([[sizes[d] for d in dims] for dims in timed.operands])
            taken = self.fit[1] * self._table.microseconds([layer])[0]
            found += taken * len(groups) / max(1.0, counts[folding.rank])
        return found

    @property
    def _table(self) -> Table:
        if self.layers is None:
            raise ValueError("latency needs a table of layers")
        return self.layers

    def _asked(self, counts: np.ndarray, gone: set[int]) -> list[Layer]:
        live = self._needed(gone)
        sizes = counts.astype(int).tolist()
        there = [t for t in self._timed if t.nodes[0] in live and t.is_there(counts)]
        return [t.make([[sizes[d] for d in dims] for dims in t.operands]) for t in there]

    def _latencies(self, cases: Sequence[tuple[np.ndarray, set[int]]]) -> list[float]:
        """Microseconds in each case of (flags, branches gone); what the table lacks for any is measured at once."""
        asked = [self._asked(self._counts(flags), gone) for flags, gone in cases]
        times = iter(self._table.microseconds([layer for layers in asked for layer in layers]))
        offset, slope = self.fit[0] + self._moved, self.fit[1]
        return [offset + slope * sum(next(times) for _ in layers) for layers in asked]

    def savings(self, selection: Selection | None, measure: Measure) -> list[np.ndarray]:
        """How much ``measure`` (no latency: see ``saved``) falls when one more group goes, for each group of each axis.

        Shape (size,) each. Groups already removed save nothing. First order: an index counts for each group in its
        row alone, and a column for its share of the convolution, which it saves once enough of them are gone.
        """
        flags, gone = self._kept(selection)
        kept = self._slots.kept(flags)
        counts = self._slots.counts(kept)
        slope = np.zeros(len(self._rows))  # of the cost, by the count of each dimension
        totals: dict[Summand, float] = {}
        for term in self._live(measure, gone):
            totals[term] = term.value(counts)
            for factor, value in term.slopes(counts):
                slope[factor] += value
        whole = sum(totals.values())
        by_slot = self._slots.spread(slope, kept, self._starts[-1])
        result = []
        for i, axis in enumerate(self.axes):
            part = slice(self._starts[i], self._starts[i + 1])
            if axis.cuts:
                saved = 0.0
                if i not in gone and not self._is_last(i, gone):
                    saved = whole - sum(totals[term] for term in self._live(measure, gone | {i})) + by_slot[part].sum()
                result.append(np.array([saved]))
            else:
                alive = flags[part] if selection is None else flags[part] & ~selection[i]
                result.append(np.where(kind_of(axis).next(alive), by_slot[part], 0.0))
        return result


def _flags(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Which slots are kept without the groups in ``masks``."""
    return ~np.concatenate([np.zeros(1, bool), *masks])
