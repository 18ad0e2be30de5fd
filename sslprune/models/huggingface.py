"""Models and tokenizers of Hugging Face, from local directories: ``model.factory = "hf:<kind>"``.

The kind names one of transformers' Auto classes: "hf:sequence-classification" is AutoModelForSequenceClassification.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslprune.errors import CheckpointError, DataError, RecipeError, SslpruneError, few, first_line

PREFIX = "hf:"
TOKENIZERS = ("tokenizer.json", "*vocab*", "*.model", "merges.txt")  # files of which there is one at least
SAID = {"lm": "LM", "ctc": "CTC", "seq2seq": "Seq2Seq"}  # words that a class name writes in its own way


def load_model(kind: str, arguments: dict[str, Any]) -> tuple[nn.Module, list[str]]:
    """The model of ``arguments["path"]`` in float32, and notes on what its checkpoint lacked and had beside.

    The other arguments are fields of its configuration (``num_labels = 2``). Weights that the checkpoint lacks are
    initialised, which is for heads alone: a checkpoint that lacks some of the body is of another architecture.
    Raises RecipeError and CheckpointError, in one line.
    """
    library, options = _library("model.factory"), dict(arguments)
    path = options.pop("path", None)
    name = class_of(kind)
    auto = getattr(library, name, None)
    if auto is None:
        raise RecipeError(f'model.factory: transformers has no {name}; e.g. "hf:sequence-classification"')
    if not isinstance(path, str):
        raise RecipeError('model.arguments: missing path; name a Hugging Face model directory: { path = "dir" }')
    with _quiet(library):
        config = _config(library, path)
        quantized = getattr(config, "quantization_config", None)
        if quantized is not None:
            how = quantized.get("quant_method") if isinstance(quantized, dict) else type(quantized).__name__
            raise CheckpointError(
                f"model.arguments.path: {path} is quantized ({how}), and its tensors are no weights; prune the model "
                "before it is quantized"
            )
        unknown = [key for key in options if not hasattr(config, key)]
        if unknown:
            raise RecipeError(f"model.arguments.{unknown[0]}: {type(config).__name__} has no such field")
        if hasattr(config, "use_cache"):
            options.setdefault("use_cache", False)  # a cache is for generating, and no output of a graph
        try:
            model, found = auto.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False,
                attn_implementation=options.pop("attn_implementation", None), **options,
            )  # fmt: skip
        except Exception as error:
            raise CheckpointError(f"model.arguments.path: {_why(path, error)}") from error
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    mismatched = sorted(str(entry[0]) if isinstance(entry, tuple) else str(entry) for entry in found["mismatched_keys"])
    names = list(dict(model.named_parameters()))
    body = [n for n in names if n.startswith(f"{model.base_model_prefix}.") and "pooler" not in n]
    if not set(body) - set(missing) or (set(missing) & set(body)):
        lacks = next(n for n in missing if n in body)
        raise CheckpointError(
            f"{path}: not a checkpoint of {type(model).__name__}: {lacks} and {len(missing) - 1} more are missing"
        )
    if mismatched:
        raise CheckpointError(f"{path}: other shapes than the checkpoint's: {few(mismatched, 6)}; see model.arguments")
    notes = []
    if missing:
        notes.append(f"{Path(path).name}: initialised at random, the checkpoint lacks them: {few(missing, 6)}")
    if unexpected:
        notes.append(f"{Path(path).name}: left out {few(unexpected, 6)}, which the model does not have")
    return model, notes


def kind_of_directory(path: str) -> str:
    """What "hf:<kind>" the model in the directory ``path`` is, by its configuration: "sequence-classification".

    One without a head of its own is taken for a classifier of sequences. Raises RecipeError as ``load_model`` does.
    """
    library = _library("model.factory")
    with _quiet(library):
        config = _config(library, path)
        named = (config.architectures or [""])[0]
        kind = _kind_of_class(named.partition("For")[2])
        if kind and hasattr(library, class_of(kind)):
            return kind
        headless = "For" not in named and "LMHead" not in named
        return next(iter(()) if headless else _kinds_of(library, config, named), "sequence-classification")


def _kinds_of(library: Any, config: Any, named: str) -> Iterator[str]:
    """The kinds whose Auto class makes a ``named`` of such a configuration, those of as many halves as it has first."""
    autos = [name for name in dir(library) if name.startswith("AutoModelFor") and not name.endswith("PreTraining")]
    halves = bool(getattr(config, "is_encoder_decoder", False))
    for auto in sorted(autos, key=lambda name: ("Seq2Seq" in name) != halves):
        try:
            made = getattr(library, auto)._model_mapping[type(config)]
        except (KeyError, AttributeError, ImportError):  # none of such a configuration, or without its library
            continue
        if any(one.__name__ == named for one in (made if isinstance(made, tuple) else (made,))):
            yield _kind_of_class(auto.removeprefix("AutoModelFor"))


def _kind_of_class(name: str) -> str:
    """ "SpeechSeq2Seq" as "speech-seq2seq"."""
    return "-".join(word.lower() for word in re.findall(r"Seq2Seq|[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", name))


def class_of(kind: str) -> str:
    """The name of transformers' Auto class for "hf:<kind>"."""
    return "AutoModelFor" + "".join(SAID.get(word, word.capitalize()) for word in kind.split("-"))


def longest_of(arguments: dict[str, Any]) -> int | None:
    """How many tokens the model of ``arguments["path"]`` has places for, by its configuration alone; None: any number.

    Raises RecipeError as ``load_model`` does.
    """
    library = _library("model.factory")
    with _quiet(library):
        return max_positions(_config(library, arguments["path"]))


def _config(library: Any, path: str) -> Any:
    """The configuration in the directory ``path``, whose code is never run; raises RecipeError where there is none."""
    _check_code(path, "config.json", "model.arguments.path", RecipeError)
    try:
        return library.AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise RecipeError(f"model.arguments.path: {_why(path, error)}") from error


def load_tokenizer(path: str) -> Any:
    """The fast tokenizer of a Hugging Face directory; raises DataError where there is none."""
    library, folder = _library("data.tokenizer"), Path(path)
    if folder.is_dir() and not any(file for pattern in TOKENIZERS for file in folder.glob(pattern)):
        raise DataError(
            f"data.tokenizer: {path} has no tokenizer; save it there, with save_pretrained"
        )  # not an empty one
    _check_code(path, "tokenizer_config.json", "data.tokenizer", DataError)
    with _quiet(library):
        try:
            tokenizer = library.AutoTokenizer.from_pretrained(path, use_fast=True, trust_remote_code=False)
        except Exception as error:
            raise DataError(f"data.tokenizer: {_why(path, error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"data.tokenizer: {path} has no tokenizer.json; save it with its fast tokenizer")
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer that transformers 4 reads too, which optimum has: it has other words for two of the fields."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    if said.get("tokenizer_class") == "TokenizersBackend":
        said["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(said.get("extra_special_tokens"), list):
        said["additional_special_tokens"] = said.pop("extra_special_tokens")
    file.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_tokens(tokenizer: Any, model: nn.Module, length: int | None, told: str) -> None:
    """Raise DataError unless ``model`` knows the tokens of ``tokenizer``, and has places for ``length`` of them.

    ``told`` begins what is said of too many.
    """
    embedded: Any = getattr(model, "get_input_embeddings", lambda: None)
    known = getattr(embedded(), "num_embeddings", None)
    if known is not None and len(tokenizer) > known:
        raise DataError(
            f"data.tokenizer: {tokenizer.name_or_path} has {len(tokenizer):,} tokens, the model's "
            f"embedding {known:,}; name the tokenizer that the model was trained with"
        )
    positions = max_positions(getattr(model, "config", None))
    if positions is not None and length is not None and length > positions:
        raise DataError(f"{told}, the model takes {positions}; lower it")


def _check_code(path: str, name: str, field: str, kind: type[SslpruneError]) -> None:
    """Raise ``kind`` for a directory that brings classes of its own: they would be asked about, and run."""
    file = Path(path) / name
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise kind(f"{field}: {file}: not readable JSON ({first_line(error)})") from error
    if isinstance(settings, dict) and "auto_map" in settings:
        raise kind(
            f"{field}: {file} has an auto_map, which names code of its own, and that is not run; save the model with a"
            " class of transformers, or name a factory of yours"
        )


def max_positions(config: Any) -> int | None:
    """How many tokens a model has places for; None where its configuration does not say."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None
    # RoBERTa and its kin count positions from the padding's id on
    offset = getattr(config, "pad_token_id", 0) or 0
    return int(positions) - (offset + 1 if getattr(config, "model_type", "") in OFFSET else 0)


OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


def _library(field: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise RecipeError(f"{field}: needs transformers; pip install 'sslprune[hf]'") from error
    return transformers


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """No reports, progress bars or retries in transformers' own words."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def quiet_transformers(field: str) -> Iterator[Any]:
    """The library, without a word of its own inside the block; RecipeError, which begins with ``field``, without it."""
    library = _library(field)
    with _quiet(library):
        yield library


@contextlib.contextmanager
def unfilled() -> Iterator[None]:
    """Inside the block a class of transformers draws no first weights: they are about to be replaced."""
    homes = ("transformers.initialization", "transformers.modeling_utils")  # since version 5, and before
    found = importlib.import_module(homes[importlib.util.find_spec(homes[0]) is None])
    with found.no_init_weights():
        yield


def _why(path: str, error: Exception) -> str:
    """What is wrong with a directory, in one line."""
    if isinstance(error, SslpruneError):
        return str(error)
    folder = Path(path)
    said = " ".join(str(error).split())
    if not folder.is_dir():
        return f'"{path}" is no local directory, and could not be had from the hub; download it, and name its folder'
    if not (folder / "config.json").is_file():
        return f"{path}: no config.json there; expected a Hugging Face model directory"
    if "safetensors" in said and not list(folder.glob("*.safetensors")):
        return f"{path}: no model.safetensors there; save the model with safe_serialization=True"
    return f"{path}: {said[:200]}"
