"""The commands: each is a thin shell over one function of the Python API.

Everything heavy is imported inside them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from sslprune.cli.guard import guarded, guarded_together, rank_here
from sslprune.cli.learning import learn, rehearsed
from sslprune.cli.options import (
    BaselineOption,
    Beginning,
    BudgetsOption,
    Debug,
    Device,
    Force,
    Format,
    FormatOption,
    InputsOption,
    Json,
    PadOption,
    ProcessesOption,
    RecipeFile,
    Resume,
    RunFolder,
    RunOption,
    Runtime,
    SensitivityOption,
    Sets,
    dims_of,
    is_model,
    one_format,
    one_of,
    only_padded,
)
from sslprune.cli.parts import directory_of, load, print_json, show_of, tell_verdict, write_decoder, write_weights
from sslprune.cli.together import agreed, joined, launched, restarted
from sslprune.values.bounds import MOST_REPETITIONS, MOST_SAMPLES, MOST_THREADS


@guarded
def init(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="torchvision:NAME, timm:NAME, hf:DIRECTORY, module:callable, file.py:Class."
        ),
    ],
    inputs: InputsOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The recipe.", show_default="<callable>.toml"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a commented starter recipe for a model.

    Example: sslprune init torchvision:resnet18
    """
    from sslprune.run.starter import write_starter

    path = write_starter(model, out, force=force, inputs=inputs or [])
    if as_json:
        print_json({"recipe": str(path)})
    else:
        print(f"wrote {path}; fill in [model] and [data], then: sslprune inspect {path}")


@guarded
def inspect(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|MODEL",
            help="A recipe, or a model alone: torchvision:resnet50, timm:NAME, hf:DIRECTORY, file.py:callable, x.pt2.",
            show_default=False,
        ),
    ],
    sets: Sets = None,
    inputs: InputsOption = None,
    budgets: BudgetsOption = None,
    sensitivity: SensitivityOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the axes of a model: what can be removed, what one group of it costs, and what stands in the way.

    Example: sslprune inspect torchvision:resnet50 --budget 0.7 --budget 0.5
    """
    show = show_of()
    from sslprune.run.inspect import bare_recipe
    from sslprune.run.inspect import inspect as inspect_model

    bare = is_model(subject)
    loaded = bare_recipe(subject, sets or []) if bare else load(Path(subject), sets)
    inspection = inspect_model(loaded, show, sensitivity, inputs=inputs or [], budgets=budgets or [], bare=bare)
    if as_json:
        print_json(inspection.model_dump())
    else:
        from sslprune.show.inspection import inspection as table

        show.result(table(inspection))


@guarded_together
def train(
    recipe: RecipeFile,
    run: RunOption = None,
    sets: Sets = None,
    resume: Resume = False,
    force: Force = False,
    processes: ProcessesOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train to sparsity, land on the budget, heal: RUN/train/."""
    one_of(resume, force)
    learn(lambda: load(recipe, sets), run, resume, force, processes, as_json)


@guarded_together
def calibrate(
    recipe: RecipeFile,
    run: RunOption = None,
    sets: Sets = None,
    resume: Resume = False,
    force: Force = False,
    processes: ProcessesOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Land on the budget from a few samples, without sparse training: RUN/train/.

    The recipe's [calibrate] says how, and its defaults where there is none; sparse and healing epochs are left out.
    """
    one_of(resume, force)
    learn(lambda: load(recipe, sets).untrained(), run, resume, force, processes, as_json)


@guarded
def repack(run: RunFolder, as_json: Json = False, debug: Debug = False) -> None:
    """Remove the zeros physically, and prove that nothing changed: RUN/repacked/."""
    show = show_of()
    from sslprune.run.directory import RunDirectory
    from sslprune.run.repack import repack as repack_model

    directory = RunDirectory(run)
    result = repack_model(directory, show)
    if as_json:
        print_json(result.model_dump())
    else:
        print(directory.program)
        show.say(f"next: sslprune export {shlex.quote(str(directory))}")


@guarded
def export(
    run: RunFolder,
    baseline: BaselineOption = None,
    format: FormatOption = Format.onnx,
    pad: PadOption = False,
    sets: Sets = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write ONNX, verified, time it, and judge the gates: RUN/export/, RUN/report.json and report.html.

    Example: sslprune export runs/digits --set export.quantize=int8-static --baseline old/report.json
    """
    show = show_of()
    from sslprune.run.directory import RunDirectory

    directory = RunDirectory(run)
    only_padded(pad, format)
    if format is not Format.onnx:
        one_format(format, baseline, sets)
        if format is Format.decoder:
            return write_decoder(directory, show, as_json)
        return write_weights(format, directory, show, as_json, pad=pad)
    from sslprune.run.export import export as export_model

    with directory.changed(load(directory.recipe_file, sets)) if sets else nullcontext():
        report = export_model(directory, show, baseline=baseline)
    tell_verdict(report, directory, show, as_json)


@guarded_together
def run_all(
    recipe: RecipeFile,
    run: RunOption = None,
    sets: Sets = None,
    resume: Resume = False,
    force: Force = False,
    processes: ProcessesOption = None,
    baseline: BaselineOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, take a few steps, say how long the run would be.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train, repack and export in one go; exit status 3 when a gate of the recipe is missed.

    Example: sslprune run recipes/digits.toml --set budget.macs=0.3 --processes 2
    """
    one_of(resume, force)
    if dry_run:
        if not rank_here():
            rehearsed(load(recipe, sets), force, as_json)
        return
    if launched(lambda: load(recipe, sets), processes):
        return
    with joined(processes) as team:
        loaded = agreed(load(recipe, sets), team)
        show, directory = show_of(quiet=not team.first), directory_of(loaded, run)
        from sslprune.run.pipeline import run as run_pipeline

        resume, force = resume or restarted(), force and not restarted()
        report = run_pipeline(loaded, directory, show, resume=resume, force=force, baseline=baseline, team=team)
    if report is not None:
        tell_verdict(report, directory, show, as_json)


@guarded
def control(
    run: RunFolder,
    name: Annotated[
        Beginning,
        typer.Option(
            "--from", help="Where it starts: the dense model, weights drawn anew, or the run's first weights."
        ),
    ],
    sets: Sets = None,
    resume: Resume = False,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a control without sparsity beside a repacked run: RUN/controls/, and in RUN/report.json.

    dense: the dense model, for as long as the run was sparse and healed. scratch, ticket: the run's small architecture,
    for as long as the whole run, from weights drawn anew or from those that the run began with.

    Example: sslprune control runs/digits --from scratch
    """
    one_of(resume, force)
    show = show_of()
    from sslprune.run.control import control as train_control
    from sslprune.run.directory import RunDirectory

    result = train_control(RunDirectory(run), name.value, show, overrides=sets or [], resume=resume, force=force)
    if as_json:
        print_json(result.model_dump())
    else:
        from sslprune.show.figures import scores

        print(f"{result.name}: {result.parameters:,} parameters, {scores(result.metrics)} after {result.epochs}")


@guarded
def bench(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="A.onnx [B.onnx ...]", help="The model to time, then those to compare with it."),
    ],
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, max=MOST_SAMPLES, help="A batch size; may be repeated.", show_default="1"),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            "--threads",
            min=0,
            max=MOST_THREADS,
            help="A number of threads, 0 for all; may be repeated.",
            show_default="1, 0",
        ),
    ] = None,
    repetitions: Annotated[
        int, typer.Option("--repetitions", min=30, max=MOST_REPETITIONS, help="The least number of rounds.")
    ] = 30,
    dim: Annotated[
        list[str] | None, typer.Option("--dim", metavar="NAME=SIZE", help="The size of a symbolic dimension.")
    ] = None,
    device: Annotated[
        list[Device] | None,
        typer.Option("--device", help="May be repeated.", show_default="cpu, and cuda where present"),
    ] = None,
    runtime: Annotated[
        list[Runtime] | None,
        typer.Option("--runtime", help="May be repeated.", show_default="what the files are for"),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time goes, operator by operator.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time models, .onnx or .pt2, one or several: in turns, in one process, with the interval of each ratio.

    Example: sslprune bench dense.onnx model.onnx int8-static.onnx --batch 1 --batch 64 --profile
    """
    dims = dims_of(dim or [])
    show = show_of()
    from sslprune.bench import bench_files
    from sslprune.show.speed import comparison as table
    from sslprune.show.speed import operators

    with show.progress("timing") as bar:
        found = bench_files(
            files,
            devices=[str(name) for name in device or []],
            runtimes=[str(name) for name in runtime or []],
            batch_sizes=batch or [1],
            threads=threads or [1, 0],
            repetitions=repetitions,
            dims=dims,
            profile=profile,
            progress=bar,
        )
    if as_json:
        print_json(found.plain())
    else:
        show.result(table(found.comparison, found.sizes))
        if found.profiles:
            show.result("")
            show.result(operators(found.profiles))
