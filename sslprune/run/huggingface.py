"""A run's repacked model as a directory of weights, with what belongs beside it: RUN/export/huggingface and deci."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sslprune.data import Data, build_data
from sslprune.errors import ExportError
from sslprune.export.deci import export_deci
from sslprune.export.huggingface import export_huggingface
from sslprune.export.program import load
from sslprune.models.build import load_trained
from sslprune.models.huggingface import check_tokens, load_tokenizer, save_tokenizer
from sslprune.recipe import Recipe
from sslprune.removal.factors import fold_
from sslprune.run.directory import RunDirectory
from sslprune.show.terminal import Show
from sslprune.values.carry import carries

FORMATS = {"huggingface": export_huggingface, "deci": export_deci}
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # how pictures and sound become inputs
SENTENCES = "tokenizer.model"  # of the tokenizer's training, which transformers reads and does not write; converters do


def export_run(directory: RunDirectory, show: Show, format: str, *, pad: bool = False) -> dict[str, Any]:
    """Write RUN/export/huggingface or deci of a run that is repacked; the sizes that its configuration says.

    Raises ExportError, and writes nothing, as `sslprune.export_huggingface` and `sslprune.export_deci` do.
    """
    directory.require("repack")
    recipe = directory.recipe()
    show.stage("export", f"{recipe.name}: the weights of {format}, loaded by transformers and compared")
    with directory.writing():
        options = {"pad": True} if pad else {}
        return write_directory(directory, recipe, build_data(recipe, show), show, format, **options)


def write_directory(
    directory: RunDirectory, recipe: Recipe, data: Data, show: Show, format: str = "huggingface", **options: bool
) -> dict[str, Any]:
    """The same, where ``directory`` is being written; ``options``: those of the function that writes the format."""
    small, model = load(directory.program), fold_(load_trained(recipe.model, directory.masked))
    if carries(small):
        raise ExportError(f"--format {format}: a model that carries state is no class of transformers")

    def finish(instance: Any, folder: Path) -> None:
        source = Path(str(recipe.model.arguments.get("path", "")))
        whole = not getattr(recipe.data, "keep_tokens", None)  # with fewer tokens it would number them as before
        for name in (*PROCESSORS, SENTENCES) if whole else PROCESSORS:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        if directory.tokenizer.is_dir():
            tokenizer = load_tokenizer(str(directory.tokenizer))
            check_tokens(tokenizer, instance, None, "")
            save_tokenizer(tokenizer, folder)
        names = _classes(directory)
        if len(names) == getattr(instance.config, "num_labels", None):
            instance.config.id2label = dict(enumerate(names))
            instance.config.label2id = {name: i for i, name in enumerate(names)}

    args, kwargs = data.example_for(small)
    with show.progress(f"writing the weights of {format}"):
        tensors = load_file(directory.weights)
        path = getattr(directory, format)
        changes = FORMATS[format](model, small, path, args, kwargs, finish=finish, tensors=tensors, **options)
    fields = ", ".join(f"{name} = {value}" for name, value in changes.items() if name != "zeros") or "no field"
    if changes.get("zeros"):
        fields += f"; {changes['zeros']:,} weights more, zeros that fill its layers up"
    show.say(f"export/{format}: {fields}; loaded by transformers, and equal")
    return changes


def _classes(directory: RunDirectory) -> list[str]:
    """The names of the classes, as the data have them."""
    file = directory.tokenizer / "labels.json"
    return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []
