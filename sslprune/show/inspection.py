"""What a person sees of a model before it is trained: its axes, their costs, and what stands in the way."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sslprune.kinds.table import kind_of
from sslprune.report import Inspection, Sensitivity
from sslprune.show.figures import counts
from sslprune.values.metrics import figure


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
    felt = _felt(found.sensitivity) if found.sensitivity is not None else ()
    return Group(
        Text.assemble((found.model, "bold"), f"  {total}"), *notes, "", table, "", Text(last, style="dim"), *felt
    )


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
