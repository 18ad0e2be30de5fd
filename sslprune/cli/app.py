"""The command line: its name, its version, and the table of its commands.

Exit status: 0 done; 1 a mistake that one line on stderr explains; 2 usage; 3 a gate of the recipe was missed;
130 interrupted (143 by SIGTERM, 129 by SIGHUP).
"""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from sslprune.cli import asking, commands, cutting

COMMANDS = {
    "init": commands.init,
    "inspect": commands.inspect,
    "train": commands.train,
    "calibrate": commands.calibrate,
    "repack": commands.repack,
    "export": commands.export,
    "cut": cutting.cut,
    "run": commands.run_all,
    "control": commands.control,
    "bench": commands.bench,
    "predict": asking.predict,
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Structured pruning for PyTorch: learns what a model can live without, and hands back a smaller dense one.",
    epilog="Exit status: 0 done, 1 a mistake (one line says which), 2 usage, 3 a gate was missed, 130 interrupted.",
)
for name, command in COMMANDS.items():
    app.command(name)(command)


def _version(value: bool) -> None:
    if value:
        try:
            print(f"sslprune {metadata.version('sslprune')}")
        except metadata.PackageNotFoundError:  # run from a checkout
            print("sslprune, not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
