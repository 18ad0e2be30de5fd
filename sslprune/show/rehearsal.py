"""What a person sees of a dry run."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sslprune.report import RunPlan
from sslprune.values.amounts import ms, size_text
from sslprune.values.durations import duration


def rehearsal(plan: RunPlan) -> RenderableType:
    """The phases with their steps, then the run's length, its memory and its disk."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("phase")
    for heading in ("epochs", "steps", "a step", "at the budget"):
        table.add_column(heading, justify="right", no_wrap=True)
    for phase in plan.phases:
        shown = ms(1e3 * phase.step_seconds * plan.smaller) if plan.smaller and phase.name != "dense" else ""
        table.add_row(phase.name, str(phase.epochs), f"{phase.steps:,}", ms(1e3 * phase.step_seconds), shown)
    shrinks = "it shrinks while it trains" if plan.shrinks else "it keeps its full size while it trains"
    sweep = f", {plan.points} points" if plan.points > 1 else ""
    beside = "calibration, exports and timings" if plan.calibrates else "exports and timings"
    return Group(
        Text.assemble((plan.recipe, "bold"), f"  dry run: nothing is kept; {shrinks}{sweep}"),
        "",
        table,
        "",
        f"training   {duration(plan.seconds)} with {ms(1e3 * plan.evaluation_seconds)} of evaluation an epoch; "
        f"{beside} come on top",
        f"memory     {size_text(plan.peak_bytes)} at most so far",
        f"disk       {size_text(plan.disk_bytes)}",
    )
