"""A starter recipe for a model: complete in its keys, commented for a person who has never seen one."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from sslprune.errors import RecipeError
from sslprune.files import write_text
from sslprune.models.build import find_callable
from sslprune.recipe import load_recipe

TEMPLATE = """\
# A recipe of sslprune: which model, which data, how small. Next: fill in [data], then
#   sslprune inspect {file}    what can be removed, and what each piece of it costs
#   sslprune run {file}        train, repack, export, report

[model]
factory = {factory}  # any "module:callable" or "file.py:callable" that returns an nn.Module
{arguments}
# checkpoint = "weights.safetensors"  # or a file of torch.save: weights only, no pickled code

[data]
# Parquet files in the Hugging Face image layout (image: {{bytes, path}}, label: int64) ...
train = "train.parquet"
test = "test.parquet"
# mean = [0.485, 0.456, 0.406]  # of pixels in 0..1
# std = [0.229, 0.224, 0.225]
# augment = ["pad-crop:4", "flip"]
# ... or, instead of train and test, anything of your own that returns (train_loader, test_loader):
# factory = "my_data.py:loaders"
batch_size = 128

[[prune]]  # as many sections as wanted; all their penalties are one sum
kind = "filters"  # output channels of convolutions
# include = ["layer*"]  # globs over the names that `sslprune inspect` shows; exclude = [...] likewise
# [[prune]]
# kind = "neurons"  # outputs of linear layers
# [[prune]]
# kind = "layers"  # whole residual branches

[budget]
macs = 0.5  # the fraction of the dense model's MACs that may remain; or: parameters or latency (on this CPU)

[schedule]  # "5ep" is epochs, "200it" is steps
# dense = "10ep"  # ordinary training first, for a model without a checkpoint
sparse = "10ep"  # groups go to zero, until the budget is met
heal = "20ep"  # the zeros stay, the rest recovers

[train]
optimizer = "sgd"  # or "adamw"
lr = 0.05
weight_decay = 1e-4

# [export]
# quantize = ["int8-static"]  # variants on top of the repacked model; also int8-dynamic, fp16, bf16

[gates]  # a gate that is missed makes the exit status 3; everything is written all the same
max_metric_drop = 1.0  # points
# min_speedup = 1.3  # on the CPU, at batch_size
"""


def write_starter(model: str, path: Path | None = None, *, force: bool = False) -> Path:
    """Write the starter recipe of the factory ``model`` to ``path`` (by default ``<callable>.toml``); returns the path.

    Raises RecipeError for a factory that cannot be imported, and for a file that is there already unless ``force``.
    """
    factory = find_callable(model, "MODEL")
    path = path or Path(f"{model.rpartition(':')[2]}.toml")
    if path.exists() and not force:
        raise RecipeError(f"{path}: exists already; name another file with --out, or write over it with --force")
    text = TEMPLATE.format(file=path, factory=json.dumps(model), arguments=_arguments(factory))
    write_text(path, text)
    load_recipe(path)
    return path


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
