"""Models: building one from its factory, and loading a checkpoint as it is found in the wild."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sslprune.errors import CheckpointError, RecipeError, few
from sslprune.models.huggingface import PREFIX, load_model
from sslprune.models.pt2 import read_program
from sslprune.recipe import ModelSection, RunSection

NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")  # where training scripts put the weights
PREFIXES = ("module.", "_orig_mod.", "model.")  # what DataParallel, torch.compile and Lightning put before a name
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".th", ".bin")


def build_model(section: ModelSection) -> tuple[nn.Module, list[str]]:
    """The model of a recipe, with its checkpoint loaded, and one note for each thing that the loader unwrapped.

    The factory is "module:callable", "file.py:callable", "hf:<kind>" (see ``models.huggingface``), or a .pt2 file.

    Raises RecipeError for a factory that cannot be called, CheckpointError for weights that do not fit.
    """
    notes: list[str] = []
    if section.factory.startswith(PREFIX):
        model, notes = load_model(section.factory.removeprefix(PREFIX), section.arguments)
    elif section.factory.endswith(".pt2"):
        model = load_program(section.factory)
    else:
        factory = find_callable(section.factory, "model.factory")
        try:
            model = factory(**section.arguments)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"model.arguments: {section.factory} refuses {section.arguments}: {error}") from error
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model.factory: {section.factory} returned {type(model).__name__}; expected an nn.Module")
    if section.checkpoint is None:
        return model, notes
    weights, said = unwrap(load_checkpoint(section.checkpoint), section.checkpoint, set(model.state_dict()))
    load_weights(model, weights, section.checkpoint)
    return model, said


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


def find_callable(reference: str, field: str) -> Callable[..., Any]:
    """What "module:callable" or "file.py:callable" names; modules are also looked for in the current directory."""
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise RecipeError(f'{field}: expected "module:callable" or "file.py:callable"; got "{reference}"')
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(spec.name, module)  # dataclasses look their own module up
            spec.loader.exec_module(module)
        else:
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(place)
    except (ImportError, OSError, SyntaxError) as error:
        raise RecipeError(f"{field}: cannot import {place}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise RecipeError(f"{field}: {place} has no callable {name}")
    return found


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a .safetensors or .pt/.pth/.th file; code in a pickle is never run.

    Raises CheckpointError for a file that is missing, truncated, of an unknown format, or needs code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; set model.checkpoint")
    if path.suffix not in WEIGHT_FILES:
        raise CheckpointError(f"{path}: not a known format; expected one of {', '.join(WEIGHT_FILES)}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(
                f"{path}: holds a pickled object, not weights; save model.state_dict() and name that file instead"
            ) from error
        raise CheckpointError(f"{path}: damaged or not a checkpoint; copy or download it again") from error
    except (OSError, EOFError, RuntimeError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: truncated or damaged; copy or download it again") from error
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path}: holds a {type(contents).__name__}; expected a mapping of names to tensors")
    return dict(contents)


def unwrap(contents: dict[str, Any], source: str, expected: set[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights out of what training scripts wrap them in, steered by the ``expected`` names; notes say what was done."""
    notes, file = [], Path(source).name
    for key in NESTED:
        if isinstance(contents.get(key), Mapping) and key not in expected:
            notes.append(f"{file}: took '{key}' of {len(contents)} entries")
            contents = dict(contents[key])
            break
    others = [str(name) for name, value in contents.items() if not isinstance(value, Tensor)]
    weights = {str(name): value for name, value in contents.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"{source}: holds no tensors, only {few(others) or 'nothing'}; expected a state_dict")
    if others:
        notes.append(f"{file}: left out {len(others)} entries that are not tensors: {few(others)}")
    for prefix in PREFIXES:
        prefixed = [name for name in weights if name.startswith(prefix)]
        if prefixed and not any(name.startswith(prefix) for name in expected):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
            notes.append(f"{file}: removed prefix '{prefix}' from {len(prefixed)} keys")
    return weights, notes


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load ``weights`` into ``model``, in place; every name, shape and number has to be right, or nothing is loaded.

    Raises CheckpointError that lists what is missing, unexpected, of another shape, or not finite.
    """
    expected = model.state_dict()
    # checkpoints older than PyTorch 0.4.1 do not count the batches that a norm has seen
    missing = [n for n in expected if n not in weights and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in weights if n not in expected]
    if missing or unexpected:
        lists = [f"{what} {few(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
        raise CheckpointError(f"{source}: not a checkpoint of this model: {'; '.join(lists)}; see model.arguments")
    shapes = [
        f"{name} is {tuple(value.shape)}, the model's {tuple(expected[name].shape)}"
        for name, value in weights.items()
        if value.shape != expected[name].shape
    ]
    if shapes:
        raise CheckpointError(f"{source}: other shapes: {few(shapes)}; see model.arguments")
    broken = [n for n, value in weights.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise CheckpointError(f"{source}: values that are not finite in {few(broken)}; use an earlier checkpoint")
    expected.update(weights)  # which keeps the versions of the model's modules: a module may ask for its own
    model.load_state_dict(expected)


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
    load_weights(model, load_checkpoint(weights), weights)
    return model.eval()


def count_parameters(model: nn.Module) -> int:
    """The numbers in a model's parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
