"""A run's repacked model as a Hugging Face directory, with what belongs beside it: RUN/export/huggingface."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sslprune.data import Data, build_data
from sslprune.errors import ExportError
from sslprune.export.huggingface import export_huggingface
from sslprune.export.program import load
from sslprune.models.build import load_trained
from sslprune.models.huggingface import check_tokens, load_tokenizer
from sslprune.recipe import Recipe
from sslprune.removal.factors import fold_
from sslprune.run.directory import RunDirectory
from sslprune.show.terminal import Show
from sslprune.values.carry import carries

PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # how pictures and sound become inputs
SENTENCES = "tokenizer.model"  # of the tokenizer's training, which transformers reads and does not write; converters do


def export_run(directory: RunDirectory, show: Show) -> dict[str, Any]:
    """Write RUN/export/huggingface of a run that is repacked; the fields of its configuration that changed.

    Raises ExportError, and writes nothing, as `sslprune.export_huggingface` does.
    """
    directory.require("repack")
    recipe = directory.recipe()
    show.stage("export", f"{recipe.name}: a Hugging Face directory, loaded by transformers and compared")
    with directory.writing():
        return write_directory(directory, recipe, build_data(recipe, show), show)


def write_directory(directory: RunDirectory, recipe: Recipe, data: Data, show: Show) -> dict[str, Any]:
    """The same, where ``directory`` is being written."""
    small, model = load(directory.program), fold_(load_trained(recipe.model, directory.masked))
    if carries(small):
        raise ExportError("--format huggingface: a model that carries state is no class of transformers")

    def finish(instance: Any, folder: Path) -> None:
        source = Path(str(recipe.model.arguments.get("path", "")))
        whole = not getattr(recipe.data, "keep_tokens", None)  # with fewer tokens it would number them as before
        for name in (*PROCESSORS, SENTENCES) if whole else PROCESSORS:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        if directory.tokenizer.is_dir():
            tokenizer = load_tokenizer(str(directory.tokenizer))
            check_tokens(tokenizer, instance, None, "")
            tokenizer.save_pretrained(folder)
        names = _classes(directory)
        if len(names) == getattr(instance.config, "num_labels", None):
            instance.config.id2label = dict(enumerate(names))
            instance.config.label2id = {name: i for i, name in enumerate(names)}

    args, kwargs = data.example_for(small)
    with show.progress("writing the Hugging Face directory"):
        tensors = load_file(directory.weights)
        changes = export_huggingface(model, small, directory.huggingface, args, kwargs, finish=finish, tensors=tensors)
    fields = ", ".join(f"{name} = {value}" for name, value in changes.items()) or "no field"
    show.say(f"export/huggingface: {fields}; loaded by transformers, and equal")
    return changes


def _classes(directory: RunDirectory) -> list[str]:
    """The names of the classes, as the data have them."""
    file = directory.tokenizer / "labels.json"
    return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []
