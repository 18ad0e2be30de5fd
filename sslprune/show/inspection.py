"""What a person sees of a model before it is trained: its axes, their costs, and what stands in the way."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sslprune.kinds.table import kind_of
from sslprune.report import MEASURE_WORDS, Inspection, Sensitivity
from sslprune.show.figures import counts
from sslprune.values.amounts import ms
from sslprune.values.metrics import figure

TIED = {"indices": "tied: the same groups as in", "block": "tied: goes with"}


def inspection(found: Inspection) -> RenderableType:
    """Every axis with what one of its groups costs, and why it cannot be removed where it cannot."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("axis", overflow="fold")
    table.add_column("kind", no_wrap=True, style="dim")
    for heading in ("size", "params/group", "MACs/group"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("removable", overflow="fold")
    # inside a layer there are so many that those of a kind have one row, unless the recipe names them
    fine = [axis for axis in found.axes if kind_of(axis).is_inside and not axis.pruned and not axis.frozen]
    for axis in found.axes:
        if axis in fine:
            continue
        if axis.frozen:
            state = Text.assemble(("no", "red"), f": {axis.reason}")
        elif not axis.exact:
            state = Text.assemble(("inexact", "yellow"), f": {axis.reason}")
        else:
            state = Text("yes", style="green")
        if not axis.frozen and not axis.pruned:
            state.append(", not named by the recipe", style="dim")
        if axis.tie is not None:
            how = TIED.get(axis.tie, "tied: as many groups as in")
            state.append(f", {how} {len(axis.tied_to)} other{'s' if len(axis.tied_to) > 1 else ''}")
        costs = ("", "") if axis.frozen else counts(axis.parameters_per_group, axis.macs_per_group)
        table.add_row(axis.name, axis.kind, str(axis.size), *costs, state)
    for kind in dict.fromkeys(axis.kind for axis in fine):
        count = sum(axis.kind == kind for axis in fine)
        state = Text.assemble(("yes", "green"), (", not named by the recipe (--json lists them)", "dim"))
        table.add_row(f"{count} axes", kind, "", "", "", state)
    fixed = f" ({found.untrained:,} of them do not train, and count in a budget)" if found.untrained else ""
    total = f"{found.parameters:,} parameters{fixed}, {counts(found.macs)[0]} MACs per sample"
    pruned = sum(axis.pruned for axis in found.axes)
    last = f"{len(found.axes)} axes, {pruned} named by the recipe"
    notes = [Text(note, style="dim") for note in found.notes]
    reach = _reach(found)
    felt = _felt(found.sensitivity) if found.sensitivity is not None else ()
    return Group(
        Text.assemble((found.model, "bold"), f"  {total}"),
        *notes,
        "",
        table,
        "",
        Text(last, style="dim"),
        *reach,
        *felt,
    )


def _reach(found: Inspection) -> tuple[RenderableType, ...]:
    """How small the model can get, and what the budgets that were asked for would leave."""
    said: list[RenderableType] = []
    if found.least:
        measure, words = (
            MEASURE_WORDS[found.least[0].measure],
            {"all": "all of them", "recipe": "what the recipe names"},
        )
        each = (f"{words.get(one.what, one.what)} {100 * one.fraction:.1f} %" for one in found.least)
        said = ["", Text(f"the least of the {measure} that can remain: {', '.join(each)}")]
    if not found.budgets:
        return tuple(said)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    measure = MEASURE_WORDS[found.budgets[0].measure]
    for heading in (f"{measure} that remain", "MACs", "parameters", "layers, 1 thread", "predicted"):
        table.add_column(heading, justify="right", no_wrap=True)
    reached = [one for one in found.budgets if one.ms is not None and one.dense_ms is not None]
    if reached:
        table.add_row("100 %", counts(found.macs)[0], counts(found.parameters)[0], ms(reached[0].dense_ms or 0.0), "")
    for one in found.budgets:
        if one.ms is None or one.macs is None or one.parameters is None:
            table.add_row(f"{100 * one.fraction:g} %", "not reachable")
            continue
        faster = f"{(one.dense_ms or 0.0) / one.ms:.2f}x"
        table.add_row(f"{100 * one.fraction:g} %", *counts(one.macs, one.parameters), ms(one.ms), faster)
    widths = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    widths.add_column("axis", overflow="fold")
    for heading in ("kind", "dense", *(f"{100 * one.fraction:g} %" for one in reached)):
        widths.add_column(heading, justify="right" if heading != "kind" else "left", no_wrap=True)
    for axis in found.axes:
        left = [one.widths.get(f"{axis.name} {axis.kind}") for one in reached]
        if any(count is not None for count in left):
            widths.add_row(axis.name, axis.kind, str(axis.size), *map(str, left))
    note = "widths: the same share of each axis, as an example (training decides); layers timed one by one"
    return (*said, "", table, *(("", widths, Text(note, style="dim")) if reached else ()))


def _felt(found: Sensitivity) -> tuple[RenderableType, ...]:
    """What each axis and each budget does to the outputs."""
    axes = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    axes.add_column("axis", overflow="fold")
    axes.add_column("kind", no_wrap=True, style="dim")
    axes.add_column("divergence, with so many of its groups gone", overflow="fold")
    for axis in found.axes:
        steps = (f"{divergence:.2g} ({gone})" for gone, divergence in zip(axis.gone, axis.divergence, strict=True))
        axes.add_row(axis.name, axis.kind, "  ".join(steps))
    budgets = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading in (f"{found.measure} that remain", "divergence, cut", "repaired", *found.dense):
        budgets.add_column(heading, justify="right", no_wrap=True)
    budgets.add_row("100 %", "", "", *map(figure, found.dense.values()))
    for point in found.budgets:
        scores = map(figure, point.metrics.values())
        budgets.add_row(f"{100 * point.fraction:.0f} %", f"{point.cut:.3g}", f"{point.repaired:.3g}", *scores)
    said = f"what the outputs feel, on {found.samples:,} samples, without training (see `sslprune calibrate`)"
    return ("", Text(said, style="bold"), "", axes, "", budgets)
