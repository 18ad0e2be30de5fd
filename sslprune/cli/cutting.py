"""The command that takes one point out of a nested run."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from sslprune.cli.guard import guarded
from sslprune.cli.options import Debug, Format, Json, RunFolder
from sslprune.cli.parts import print_json, show_of, tell_verdict, write_weights


@guarded
def cut(
    run: RunFolder,
    fraction: Annotated[float, typer.Argument(metavar="BUDGET", help="One of those that the run was trained for.")],
    format: Annotated[
        Format | None,
        typer.Option("--format", help="Export it too: ONNX with a report, or a directory of weights."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take one point of a nested run, without training: a run directory with the repacked model, verified.

    Example: sslprune cut runs/digits-nested 0.36 --format onnx
    """
    show = show_of()
    from sslprune.run.cut import cut as cut_run
    from sslprune.run.directory import RunDirectory

    point = cut_run(RunDirectory(run), fraction, show)
    if format in (Format.huggingface, Format.deci):
        return write_weights(format, point, show, as_json)
    if format is Format.onnx:
        from sslprune.run.export import export

        return tell_verdict(export(point, show), point, show, as_json)
    if as_json:
        print_json({"run": str(point), "program": str(point.program), "plan": str(point.plan)})
    else:
        print(point.program)
        show.say(f"next: sslprune export {shlex.quote(str(point))}")
