"""Models: building one from its factory, with the weights of its checkpoint."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslprune.errors import CheckpointError, RecipeError, first_line
from sslprune.models.checkpoint import load_checkpoint as load_checkpoint
from sslprune.models.checkpoint import load_weights as load_weights
from sslprune.models.checkpoint import unwrap
from sslprune.models.huggingface import PREFIX, kind_of_directory, load_model
from sslprune.models.libraries import library_of, published
from sslprune.models.pt2 import read_program
from sslprune.recipe import ModelSection, RunSection
from sslprune.removal.plan import prepared_as
from sslprune.values.own_code import own_code, where


def build_model(section: ModelSection) -> tuple[nn.Module, list[str]]:
    """The model of a recipe, with its checkpoint loaded, and one note for each thing that the loader unwrapped.

    The factory is "module:callable", "file.py:callable", "torchvision:name", "timm:name", "hf:<kind>" (see
    ``models.huggingface``), or a .pt2 file.

    Raises RecipeError for a factory that cannot be called, CheckpointError for weights that do not fit.
    """
    notes: list[str] = []
    if section.factory.startswith(PREFIX):
        model, notes = load_model(section.factory.removeprefix(PREFIX), section.arguments)
    elif section.factory.endswith(".pt2"):
        if section.arguments:
            raise RecipeError(
                f"model.arguments: {section.factory} is an exported program, which takes none; got "
                f"{', '.join(section.arguments)}; leave them out"
            )
        model = load_program(section.factory)
    else:
        factory = find_factory(section.factory, "model.factory")
        model = call_factory(factory, "model", section.factory, section.arguments)
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model.factory: {section.factory} returned {type(model).__name__}; expected an nn.Module")
    empty = next((name for name, value in model.state_dict().items() if value.is_meta), None)
    if empty is not None:
        raise RecipeError(
            f"model.factory: {section.factory}: {empty} is on the meta device, without numbers; build it on the CPU"
        )
    if section.checkpoint is None:
        return model, notes
    contents = load_checkpoint(section.checkpoint)
    weights, said = unwrap(contents, section.checkpoint, set(model.state_dict()), section.key)
    load_weights(model, weights, section.checkpoint)
    return model, [*notes, *said]


def load_program(path: str) -> nn.Module:
    """The module of a ``.pt2`` file; it trains as it evaluates, without dropout. Raises CheckpointError."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; set model.factory")
    model = read_program(path)[0].module()

    def train(mode: bool = True) -> nn.Module:
        model.training = mode
        return model

    vars(model).update(train=train, eval=lambda: train(False))  # it has one mode, and refuses to be asked
    return model


def call_factory(factory: Callable[..., Any], section: str, name: str, arguments: dict[str, Any]) -> Any:
    """What the factory of a ``section`` of the recipe makes of its ``arguments``.

    Raises RecipeError, by its line, for whatever it raises.
    """
    with own_code(f"{section}.factory: {name} failed"):
        try:
            return factory(**arguments)
        except (TypeError, ValueError) as error:
            said = first_line(error)
            raise RecipeError(f"{section}.arguments: {name} refuses {arguments}: {said}{where(error)}") from error


def model_table(word: str) -> dict[str, Any]:
    """The [model] of a recipe for one word: "hf:directory" by what its configuration says it is, any factory as it is.

    Raises RecipeError for a directory whose configuration cannot be read.
    """
    path = word.removeprefix(PREFIX)
    if word.startswith(PREFIX) and ("/" in path or Path(path).exists()):
        return {"factory": PREFIX + kind_of_directory(path), "arguments": {"path": path}}
    return {"factory": word}


def find_factory(reference: str, field: str) -> Callable[..., Any]:
    """What makes a model: of a library by the name that it has there, or any callable."""
    return published(reference, field) if library_of(reference) else find_callable(reference, field)


def find_callable(reference: str, field: str) -> Callable[..., Any]:
    """What "module:callable" or "file.py:callable" names; modules are also looked for in the current directory."""
    source, colon, name = reference.rpartition(":")
    if not colon or not source or not name:
        raise RecipeError(f'{field}: expected "module:callable" or "file.py:callable"; got "{reference}"')
    with own_code(f"{field}: cannot import {source}"):
        if source.endswith(".py"):
            folder = str(Path(source).resolve().parent)
            if folder not in sys.path:
                sys.path.insert(0, folder)  # it may import its neighbours, as a script may
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(spec.name, module)  # dataclasses look their own module up
            try:
                spec.loader.exec_module(module)
            except BaseException:
                if sys.modules.get(spec.name) is module:
                    del sys.modules[spec.name]
                raise
        else:
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(source)
        found = getattr(module, name, None)
    if not callable(found):
        raise RecipeError(f"{field}: {source} has no callable {name}")
    return found


def device_of(section: RunSection) -> torch.device:
    """The device that a run uses: what it names, or CUDA where there is one."""
    if section.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(section.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f'run.device: "{section.device}" is not there; use "auto" or "cpu"') from error
    return device


def load_trained(section: ModelSection, weights: str | Path) -> nn.Module:
    """The model of ``section`` on the CPU, in eval mode, with the weights of a file in a run directory."""
    model, _ = build_model(section.model_copy(update={"checkpoint": None}))
    model = prepared_as(model, weights)
    load_weights(model, load_checkpoint(weights), weights)
    return model.eval()


def count_parameters(model: nn.Module) -> int:
    """The numbers in a model's parameters, shared ones once; those that do not train too."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_zeros(model: nn.Module) -> int:
    """How many of them are zero."""
    return sum(int((parameter == 0).sum()) for parameter in model.parameters())


def count_trained(model: nn.Module, without: Collection[str] = ()) -> int:
    """The same of those that train, without those of these names."""
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if p.requires_grad and name not in without)
