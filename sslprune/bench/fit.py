"""Latency as a cost: a table of layers, fitted to two models measured whole.

A sum over layers leaves out what runs between them, and large models find their weights colder than a table does. So
the dense model and one that is about as narrow as the budget wants are exported, timed in turns, and the sum is
stretched to meet both. Where training lands, the model that it would become is measured whole as well.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor, nn

from sslprune.bench import Contender, compare
from sslprune.bench.table import LayerTable
from sslprune.capture.program import Program, operator_name
from sslprune.capture.trace import trace
from sslprune.choose.sections import select
from sslprune.cost.counts import Cost
from sslprune.export.file import feeds_of
from sslprune.export.onnx import export_onnx
from sslprune.export.session import open_session
from sslprune.kinds.find import find_axes
from sslprune.kinds.table import kind_of
from sslprune.recipe import Recipe
from sslprune.removal.factors import fold_
from sslprune.removal.remove import remove
from sslprune.values.axes import Axis
from sslprune.values.carry import example_for
from sslprune.values.inputs import Inputs, with_length
from sslprune.values.measure import Latency, Speedup
from sslprune.values.selection import Selection

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)  # widths of the second model that are tried
CLEAR = 0.05  # the share of the time that it has to save, for the fit to use it
STRETCH = 3.0  # of the sum, beyond which the second model is not believed
LEAST_TIMINGS, MOST_TIMINGS = 3, 5  # of a whole model: one differs from the next by a percent, more than its interval
NARROW = 0.01  # width of the interval, over its middle, that needs no more of them

ExampleOf = Callable[[nn.Module], tuple[tuple[Any, ...], dict[str, Tensor]]]  # args and kwargs


@dataclass(frozen=True)
class Fitted:
    """``cost`` knows latency; microseconds of the dense model by its table, and measured whole."""

    cost: Cost
    table: float
    whole: float
    num_measured: int  # layers and models, which the cache did not have


def latency_cost(
    model: nn.Module, inputs: Inputs, sequence: int | None, recipe: Recipe, table: LayerTable | None = None
) -> Fitted:
    """The cost of ``model`` on the CPU over the axes that ``recipe`` prunes, fitted near its budget.

    ``inputs`` and ``sequence`` are the data's. The batch is the first of ``bench.batch_sizes``, or one row; the length
    of sequences the first of ``bench.lengths``, or that of ``inputs``. What has been measured on this machine before
    is read from the cache of ``table``.
    """
    model = copy.deepcopy(model).cpu().eval()
    fraction, batch = recipe.budget.fraction, (recipe.bench.batch_sizes or [1])[0]
    if sequence and recipe.bench.lengths:
        inputs = with_length(inputs, recipe.bench.lengths[0])
    example_of = functools.partial(example_for, inputs=inputs, sequence=sequence)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    table = table or LayerTable(num_bytes=size)
    program = trace(model, *example_of(model), sequence=sequence)
    axes = select(find_axes(program, recipe.prune), recipe.prune)
    cost = Cost(program, axes, table, batch)
    whole = _Whole(model, program, batch, example_of)
    operators = [operator_name(node) for node in program.evaluation.nodes if node.op == "call_function"]

    def recalled(selection: Selection) -> tuple[float, float]:
        what = [*operators, *map(str, [*cost.asked(), *cost.asked(selection)]), f"batch {batch}"]
        digest = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
        timed = functools.cache(lambda: whole.timed(selection))
        return table.recall(f"whole {digest}", lambda: timed()[0]), table.recall(f"share {digest}", lambda: timed()[1])

    narrower = _narrow(cost, axes, fraction, table.step)
    microseconds, share = recalled(narrower)
    dense, narrow = cost.latency(), cost.latency(narrower)
    slope = microseconds / dense
    if dense - narrow > CLEAR * dense:
        steeper = microseconds * (1 - share) / (dense - narrow)
        slope = steeper if 1 / STRETCH < steeper / slope < STRETCH else slope
    cost.fit = (microseconds - slope * dense, slope)
    cost.whole = lambda selection: recalled(selection)[1]
    return Fitted(cost, dense, microseconds, table.num_measured)


def _narrow(cost: Cost, axes: Sequence[Axis], fraction: float, step: int) -> Selection:
    """About as much of each axis gone as leaves ``fraction`` of the latency; of branches alone, as many."""
    wide = [kind_of(axis).is_width for axis in axes]
    dense, selection = cost.latency(), Selection.none(axes)
    for share in SHARES:
        goes, gone = 0.0, []
        for axis, is_wide in zip(axes, wide, strict=True):
            size = axis.size
            if is_wide:
                grain = step if axis.size >= 2 * step else 1
                size = max(1, min(axis.size, round(share * axis.size / grain) * grain))
            elif kind_of(axis).is_whole and not any(wide):
                goes += 1 - share
                size, goes = (0, goes - 1) if goes >= 1 else (1, goes)
            gone.append(np.arange(axis.size) >= size)
        selection = Selection.of(axes, gone)
        if cost.latency(selection) <= fraction * dense:
            break
    return selection


class _Whole:
    """The dense model, and narrower ones to time it against; their weights do not matter."""

    def __init__(self, model: nn.Module, program: Program, batch: int, example_of: ExampleOf) -> None:
        self.model, self.program = model, program
        self.batch, self.example_of = batch, example_of
        self.folder = tempfile.TemporaryDirectory()
        self.dense = Path(self.folder.name) / "dense.onnx"

    def timed(self, selection: Selection) -> tuple[float, float]:
        """Microseconds of the dense model, and the share of them without the groups of ``selection``."""
        if not self.dense.is_file():
            self._export(fold_(copy.deepcopy(self.model)), self.dense, None)
        session = open_session(self.dense, 1)
        narrow = remove(self.model, self.program, selection, verify=False)
        path = self.dense.with_name("narrow.onnx")
        self._export(narrow, path, [node.name for node in session.get_inputs()])
        contenders = [Contender("dense", onnx=self.dense), Contender("narrow", onnx=path)]
        feeds = feeds_of(session, *self.example_of(self.model))
        milliseconds: list[float] = []
        ratios: list[float] = []
        while len(ratios) < MOST_TIMINGS:
            found = compare(contenders, batch_sizes=(self.batch,), threads=(1,), example=feeds)
            latency, speedup = found.dense[0], found.speedup[0]
            assert isinstance(latency, Latency) and isinstance(speedup, Speedup)
            milliseconds.append(latency.median_ms)
            ratios.append(speedup.ratio)
            clear = (speedup.high / speedup.low - 1) / math.sqrt(len(ratios)) < NARROW
            if clear and len(ratios) >= LEAST_TIMINGS:
                break
        return median(milliseconds) * 1e3, 1 / median(ratios)

    def _export(self, model: nn.Module, path: Path, names: list[str] | None) -> None:
        args, kwargs = self.example_of(model)
        export_onnx(model, args, path, kwargs, sequence=self.program.sequence, input_names=names)
