"""What several commands take: their arguments and options, by one name and one help text each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sslprune.values.bounds import MOST_PROCESSES, MOST_SAMPLES

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.", show_default=False)]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", "--run-dir", metavar="DIR", help="The run directory.", show_default="runs/<recipe's name>"),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a field of the recipe; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout; progress stays on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped; skip finished stages.")]
Force = Annotated[
    bool, typer.Option("--force", help="Train over a run that is there, and from a dense model at chance.")
]

ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        max=MOST_PROCESSES,
        help="Train in N processes on this machine, which share each batch.",
        show_default="1",
    ),
]
BaselineOption = Annotated[
    Path | None, typer.Option("--baseline", metavar="REPORT.json", help="An earlier report to compare with.")
]


SensitivityOption = Annotated[
    int | None,
    typer.Option(
        "--sensitivity",
        metavar="SAMPLES",
        min=2,
        max=MOST_SAMPLES,
        help="Also what the outputs feel of each removal, on so many training samples; 256 are enough for a look.",
    ),
]


InputsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=][TYPE:]SHAPE",
        help="What the model is called with, in place of data: 1,3,224,224 or int64:1,64; may be repeated.",
        show_default=False,
    ),
]
BudgetsOption = Annotated[
    list[float] | None,
    typer.Option(
        "--budget",
        metavar="FRACTION",
        help="Show widths, MACs, parameters and milliseconds at this share of the budget; may be repeated.",
        show_default=False,
    ),
]


TokensOption = Annotated[
    int, typer.Option("--tokens", metavar="N", min=0, max=4096, help="Of a language model: how many it adds, at most.")
]
TemperatureOption = Annotated[
    float,
    typer.Option("--temperature", min=0.0, max=100.0, help="Draw them by their probabilities; 0 takes the likeliest."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of what is drawn.")]


class Beginning(StrEnum):
    """Where a control starts from."""

    dense = "dense"
    scratch = "scratch"
    ticket = "ticket"


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


class Format(StrEnum):
    onnx = "onnx"
    huggingface = "huggingface"
    decoder = "decoder"
    deci = "deci"


FormatOption = Annotated[
    Format,
    typer.Option(
        "--format",
        help="One of the others alone: huggingface, for from_pretrained; decoder, ONNX with past keys and values; "
        "deci, for llama.cpp and vLLM where layers differ.",
    ),
]


PadOption = Annotated[
    bool,
    typer.Option(
        "--pad", help="Of --format huggingface: fill layers up with zeros to the widest one, whose time all take."
    ),
]


class Runtime(StrEnum):
    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    torch = "torch"
    compiled = "torch.compile"


def one_of(resume: bool, force: bool) -> None:
    """Raise BadParameter for both at once."""
    if resume and force:
        raise typer.BadParameter("--resume goes on with a run and --force trains over it; give one of them")


def one_format(format: Format, baseline: Path | None, sets: list[str] | None) -> None:
    """Raise BadParameter for what a ``format`` written alone does not read."""
    if baseline is not None or sets:
        raise typer.BadParameter(f"--format {format} judges nothing: leave --baseline and --set out")


def only_padded(pad: bool, format: Format) -> None:
    """Raise BadParameter for zeros in a format that needs none."""
    if pad and format is not Format.huggingface:
        raise typer.BadParameter("--pad fills up the layers of --format huggingface; the others hold any widths")


def dims_of(dims: list[str]) -> dict[str, int]:
    """Sizes by the names of dimensions; raises BadParameter for what is not NAME=SIZE."""
    sizes = {}
    for dim in dims:
        name, _, size = dim.partition("=")
        if not name or not size.isdecimal() or int(size) < 1:
            raise typer.BadParameter(f"expected NAME=SIZE, e.g. sequence=128; got {dim!r}", param_hint="--dim")
        sizes[name] = int(size)
    return sizes


def is_model(word: str) -> bool:
    """Whether a word names a model and no recipe: a factory has a colon, and a program its suffix."""
    return word.endswith(".pt2") or (":" in word and not word.endswith(".toml") and not Path(word).is_file())
