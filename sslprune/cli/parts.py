"""What several commands do: read a recipe, open a run, speak to a person, tell the verdict.

Everything heavy is imported inside, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslprune.cli.guard import fail

if TYPE_CHECKING:
    from sslprune.recipe import Recipe
    from sslprune.report import Report
    from sslprune.run.directory import RunDirectory
    from sslprune.show.terminal import Show


def load(path: Path, sets: list[str] | None) -> Recipe:
    """The recipe in the file ``path``, with its overrides."""
    from sslprune.recipe import load_recipe

    return load_recipe(path, sets or [])


def directory_of(recipe: Recipe, run: Path | None) -> RunDirectory:
    """Where the run of ``recipe`` lies: ``run``, or a folder of the recipe's name."""
    from sslprune.run.directory import RunDirectory

    return RunDirectory(run or Path("runs") / recipe.name)


def show_of(quiet: bool = False) -> Show:
    """Who speaks to a person, on stderr, with ``--json`` too; ``quiet``: another process does."""
    from sslprune.show.terminal import Show

    return Show(quiet=quiet)


def tell_verdict(report: Report, directory: RunDirectory, show: Show, as_json: bool) -> None:
    """Print the report; ends with status 3 where a gate was missed."""
    from sslprune.show.summary import Written, summary

    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        names = ("onnx", "program", "weights", "page", "report", "huggingface", "deci")
        written = Written(directory.path, **{name: getattr(directory, name) for name in names})
        show.result(summary(report, written))
    if not report.passed:
        missed = [gate.told(title) for title, gate in report.every_gate if not gate.passed]
        fail(f"gate missed: {'; '.join(missed)}", 3)


def write_weights(format: str, directory: RunDirectory, show: Show, as_json: bool, *, pad: bool = False) -> None:
    """Write the weights of a run as a class of transformers or as DeciLM, and say where they lie."""
    from sslprune.run.huggingface import export_run

    changes, folder = export_run(directory, show, format, pad=pad), getattr(directory, format)
    print_json({format: str(folder), "changed": changes}) if as_json else print(folder)


def write_decoder(directory: RunDirectory, show: Show, as_json: bool) -> None:
    """Write the decoders of a run, and say how long they take."""
    from sslprune.run.decoder import export_decoders
    from sslprune.show.speed import decoding

    found = export_decoders(directory, show)
    if as_json:
        values = {"decoder": str(directory.decoder), "decoding": [row.model_dump(mode="json") for row in found]}
        return print_json(values)
    show.result(decoding(found))
    print(directory.decoder)


def print_json(value: Any) -> None:
    """The result, and nothing else."""
    print(json.dumps(value, indent=2))
