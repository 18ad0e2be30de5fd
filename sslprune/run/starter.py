"""A starter recipe for a model: complete in its keys, commented for a person who has never seen one.

What a look at the model tells is filled in: its kinds and how far each can go, what kind of data it reads, and the
rates and the schedule of the shipped recipe whose model is most like it. Where it cannot be looked at, the recipe says
what to find out.
"""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sslprune.capture.trace import trace
from sslprune.errors import RecipeError, SslpruneError
from sslprune.files import write_text
from sslprune.kinds.find import find_axes
from sslprune.kinds.table import KINDS
from sslprune.models.build import build_model, find_factory, model_table
from sslprune.models.example import Example, example_from, example_of
from sslprune.models.huggingface import PREFIX
from sslprune.models.libraries import library_of
from sslprune.recipe import BudgetSection, LassoSection, ModelSection, load_recipe
from sslprune.recipe.schema import DIRECTIVE, SCHEMA_FILE
from sslprune.report import Least
from sslprune.run.look import NEARLY_ALL, least_of, proposed
from sslprune.run.nearest import Shipped, nearest, traits
from sslprune.train.hidden import named

HEAD = """\
{schema}
# A recipe of sslprune: which model, which data, how small. Next: fill in [model] and [data], then
#   sslprune inspect {file} --budget 0.5   what can be removed, and what half of it would cost
#   sslprune run {file} --dry-run          how long it will take
#   sslprune run {file}                    train, repack, export, report

"""
PICTURES = """\
[data]
train = "pictures/train"  # a folder of a folder for each class; or a .csv of paths and labels, or a .parquet file
test = "pictures/test"  # left out, with split = 0.1: a part of the training pictures
size = {size}
mean = {mean}  # of pixels in 0..1; those of the weights that you begin with
std = {std}
augment = {augment}
batch_size = 128
"""
SENTENCES = """\
[data]
train = "train.tsv"  # or .csv, .jsonl, .parquet; columns by their usual names, or: text = "...", label = "..."
test = "test.tsv"
max_length = {length}
batch_size = 32
"""
TEXT = """\
[data]
task = "language-modelling"
train = "train.txt"  # plain text, one sentence a line
test = "test.txt"
steps = {length}  # tokens a batch
batch_size = 16
"""
OWN = """\
[data]
factory = "my_data.py:loaders"  # returns (train, test): datasets or loaders of (input, label)
# or pictures: train = "pictures/train" (a folder of a folder for each class), test = "pictures/test", size = 224
# or texts: train = "train.tsv", test = "test.tsv"
batch_size = 128
"""
REST = """\

[budget]
macs = 0.5  # the fraction of the dense model's MACs that may remain; or: parameters or latency (on this CPU)

[schedule]  # "5ep" is epochs, "200it" is steps
# dense = "10ep"  # ordinary training first, for a model without a checkpoint
sparse = "10ep"  # groups go to zero, until the budget is met
heal = "20ep"  # the zeros stay, the rest recovers

[train]
optimizer = "sgd"  # or "adamw"
lr = 0.01
weight_decay = 1e-4

[gates]  # a gate that is missed makes the exit status 3; everything is written all the same
max_metric_drop = 1.0  # points
# min_speedup = 1.3  # on the CPU, at batch_size
"""
LIKE = """
# What follows is that of recipes/{name}.toml, which ships with sslprune: of all of them the most like this model.
# What was measured of it stands there. "5ep" is epochs, "200it" is steps.

"""
EXPORT = """
# [choose]
# evidence = "first-order"  # what groups are ranked by in training; also magnitude, second-order, beta-rank

# [export]
# quantize = ["int8-static"]  # variants on top of the repacked model; also int8-dynamic, fp16, bf16
"""
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SMALL = 64  # pixels, below which pictures are padded and cut rather than cut out


@dataclass(frozen=True)
class Look:
    """What was seen of a model: what it is called with, how far its kinds can go, which shipped recipe is nearest."""

    example: Example
    least: Sequence[Least]
    like: Shipped | None
    pixels: tuple[list[float], list[float]]  # mean and standard deviation, where it reads pictures
    modules: Sequence[str] = ()  # the names of its own


def write_starter(model: str, path: Path | None = None, *, force: bool = False, inputs: Sequence[str] = ()) -> Path:
    """Write the starter recipe of ``model`` to ``path`` (by default ``<its name>.toml``); returns the path.

    ``model``: "torchvision:resnet18", "timm:name", "hf:directory" or a factory; ``inputs``: what it is called with,
    where it does not say so itself ("1,3,224,224"). Raises RecipeError for one that cannot be imported or refuses the
    inputs, and for a file that is there already unless ``force``.
    """
    table = model_table(model)
    factory = None if table["factory"].startswith(PREFIX) else find_factory(table["factory"], "MODEL")
    path = path or Path(f"{Path(model.rpartition(':')[2]).name or 'model'}.toml")
    if path.exists() and not force:
        raise RecipeError(f"{path}: exists already; name another file with --out, or write over it with --force")
    look = _look(ModelSection(**table), inputs)
    text = (
        HEAD.format(schema=DIRECTIVE + SCHEMA_FILE.as_uri(), file=path)
        + _model(table, factory)
        + "\n"
        + _data(table["factory"], look)
        + "\n"
        + _prune(look)
    )
    write_text(path, text + _rest(look))
    load_recipe(path)
    return path


def _look(section: ModelSection, inputs: Sequence[str]) -> Look | None:
    """What can be seen of the model; None where it cannot be built or traced without a person's help."""
    try:
        model, _ = build_model(section)
        example = example_from(inputs) if inputs else example_of(model, section.factory)
        example.check(model)
        program = trace(model, example.args, example.kwargs, sequence=example.sequence)
        axes = find_axes(program)
        least = least_of(program, axes, proposed(axes), BudgetSection(macs=(NEARLY_ALL,)), LassoSection())
    except SslpruneError:
        if inputs:
            raise
        return None
    own: Any = getattr(model, "default_cfg", None)  # of timm
    pixels = (list(own["mean"]), list(own["std"])) if isinstance(own, dict) and "mean" in own else IMAGENET
    modules = [name for name, _ in model.named_modules()]
    return Look(example, [one for one in least if one.what in KINDS], nearest(traits(program, axes)), pixels, modules)


def _model(table: dict[str, Any], factory: Any) -> str:
    lines = ["[model]", f"factory = {json.dumps(table['factory'])}"]
    if "arguments" in table:  # a directory holds its own weights
        return "\n".join([*lines, f"arguments = {{ path = {json.dumps(table['arguments']['path'])} }}", ""])
    library = library_of(table["factory"])
    own = {"torchvision": '{ weights = "DEFAULT" }', "timm": "{ pretrained = true }"}.get(library or "")
    instead = f"; or the library's own: arguments = {own}" if own else ""
    lines += [
        _arguments(factory) if library is None else "# arguments = { num_classes = 10 }  # of the library",
        f'checkpoint = "weights.safetensors"  # or a file of torch.save: weights only, no pickled code{instead}',
        "",
    ]
    return "\n".join(lines)


def _data(factory: str, look: Look | None) -> str:
    """The data section of what the model reads."""
    if look is None:
        return OWN
    given = [*look.example.args, *look.example.kwargs.values()]
    first: Tensor = given[0]
    if "input_ids" in look.example.kwargs:
        return (TEXT if factory.endswith("lm") else SENTENCES).format(length=first.shape[1])
    if len(given) == 1 and first.dim() == 4 and first.shape[1] in (1, 3) and first.is_floating_point():
        size = first.shape[2] if first.shape[2] == first.shape[3] else list(first.shape[2:])
        mean, std = look.pixels if first.shape[1] == 3 else ([0.5], [0.5])
        small = max(first.shape[2:]) < SMALL
        augment = ["pad-crop:4", "flip"] if small else ["random-resized-crop:0.35", "flip"]
        return PICTURES.format(size=size, mean=mean, std=std, augment=json.dumps(augment))
    return OWN


def _prune(look: Look | None) -> str:
    """A section for each kind; those switched on that the nearest recipe prunes, or that are usual."""
    if look is None or not look.least:
        return '[[prune]]  # as many sections as wanted; `sslprune inspect` lists the kinds\nkind = "filters"\n'
    sections = []
    named = look.like.kinds if look.like is not None else ()
    usual = [one.what for one in look.least if one.what in named]
    usual = usual or [one.what for one in look.least if KINDS[one.what].is_usual]
    for one in sorted(look.least, key=lambda one: (one.what not in usual, one.what)):
        on = "" if one.what in usual or not usual else "# "
        far = f"by themselves down to {100 * one.fraction:.0f} % of the MACs"
        sections.append(f'{on}[[prune]]\n{on}kind = "{one.what}"  # {far}\n')
    hint = '# include = ["layer*"] and exclude choose among the names that `sslprune inspect` shows\n'
    return "".join(sections) + hint


def _rest(look: Look | None) -> str:
    """Budget, schedule and optimizer: those of the nearest shipped recipe, whose dense epochs a checkpoint has had."""
    if look is None or look.like is None:
        return REST + EXPORT
    sections = dict(look.like.sections)
    dense, why = '# dense = "10ep"', "ordinary training first, for a model without a checkpoint"
    kept = re.sub(r"^dense .*\n", "", sections["schedule"], flags=re.MULTILINE)
    sections["schedule"] = kept.replace("[schedule]\n", f"[schedule]\n{dense}  # {why}\n", 1)
    if "distill" in sections:
        sections["distill"] = _taught(sections["distill"], look.modules)
    return LIKE.format(name=look.like.name) + "\n".join(sections.values()) + EXPORT


def _taught(section: str, modules: Sequence[str]) -> str:
    """A teacher's section with those of its globs that mean one of ``modules``; without any the outputs alone teach."""
    globs = tomllib.loads(section)["distill"].get("modules", [])
    own = [glob for glob in globs if named(modules, [glob])]
    if not own:
        return re.sub(r"^(hidden|modules) .*\n", "", section, flags=re.MULTILINE)
    return re.sub(r"^(modules +=).*$", lambda found: f"{found[1]} {json.dumps(own)}", section, flags=re.MULTILINE)


def _arguments(factory: Any) -> str:
    """A line for ``model.arguments`` that shows what the factory takes and the values it would use."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return "# arguments = { }"
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in named if p.default is p.empty]
    plain = [p for p in named if isinstance(p.default, bool | int | float | str) or p.default is p.empty]
    shown = ", ".join(f"{p.name} = {'?' if p.default is p.empty else json.dumps(p.default)}" for p in plain)
    hint = f"  # needed: {', '.join(needed)}" if needed else "  # these are the defaults"
    return f"# arguments = {{ {shown} }}{hint}" if shown else "# arguments = { }  # of the factory"
