"""A tokenizer of fewer tokens, numbered anew in the old order: texts that hold no removed one are split as before.

WordPiece and Unigram look for pieces: taking away one that a text does not use leaves its split the best. Byte-pair
encoding merges upwards: whatever a kept token is merged of stays, with the merges. Special tokens stay, and so do
single characters, of which a word without pieces of its own is still spelled.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from sslprune.errors import DataError

FIELD = "data.keep_tokens"
CONTINUES = "##"  # before a WordPiece that goes on a word


def kept_tokens(tokenizer: Any, wanted: Collection[int]) -> np.ndarray:
    """The numbers of all tokens that have to stay for those ``wanted`` to: ascending, int64.

    Raises DataError for a tokenizer of another model than WordPiece, WordLevel, BPE or Unigram.
    """
    state = _state(tokenizer)
    model, numbers = state["model"], _numbers(state["model"])
    kept = {int(number) for number in wanted}
    kept |= {entry["id"] for entry in state["added_tokens"]}
    prefix = model.get("continuing_subword_prefix") or (CONTINUES if model["type"] == "WordPiece" else "")
    kept |= {number for token, number in numbers.items() if len(token.removeprefix(prefix)) == 1}
    kept |= {number for token, number in numbers.items() if token.startswith("<0x")}  # bytes to fall back to
    if isinstance(model.get("unk_token"), str):
        kept |= {numbers[model["unk_token"]]} if model["unk_token"] in numbers else set()
    if model.get("unk_id") is not None:
        kept.add(model["unk_id"])
    made: dict[int, list[tuple[int, int]]] = {}
    for one, other in _merges(model):
        product = numbers.get(one + other.removeprefix(prefix))
        if product is not None:
            made.setdefault(product, []).append((numbers[one], numbers[other]))
    waiting = list(kept)
    while waiting:
        for pair in made.get(waiting.pop(), ()):
            waiting += [part for part in pair if part not in kept]
            kept.update(pair)
    return np.array(sorted(kept), np.int64)


def smaller_tokenizer(tokenizer: Any, kept: Sequence[int]) -> Any:
    """``tokenizer`` with the tokens ``kept``, as `kept_tokens` gives them, numbered from 0 in their order."""
    import tokenizers
    import transformers

    new = {int(old): number for number, old in enumerate(kept)}
    state = _state(tokenizer)
    model, numbers = state["model"], _numbers(state["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        model["unk_id"] = None if model.get("unk_id") is None else new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[number] for token, number in numbers.items() if number in new}
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        stays = [a in model["vocab"] and b in model["vocab"] and a + b.removeprefix(prefix) in model["vocab"]
                 for a, b in _merges(model)]  # fmt: skip
        model["merges"] = [merge for merge, good in zip(model["merges"], stays, strict=True) if good]
    for entry in state["added_tokens"]:
        entry["id"] = new[entry["id"]]
    state["post_processor"] = _renumbered(state.get("post_processor"), new)
    if isinstance(state.get("padding"), dict):
        state["padding"]["pad_id"] = new.get(state["padding"]["pad_id"], 0)
    library: Any = transformers
    return library.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_input_names=list(tokenizer.model_input_names),
        clean_up_tokenization_spaces=getattr(tokenizer, "clean_up_tokenization_spaces", False),
        **tokenizer.special_tokens_map,
    )


def numbers_of(tokenizer: Any, tokens: Sequence[str], source: str) -> list[int]:
    """The numbers of ``tokens``; raises DataError for one that the tokenizer lacks."""
    known: Mapping[str, int] = tokenizer.get_vocab()
    missing = next((token for token in tokens if token not in known), None)
    if missing is not None:
        raise DataError(f'{FIELD}: {source}: "{missing}" is no token of {tokenizer.name_or_path}; one a line, as it is')
    return [known[token] for token in tokens]


def _state(tokenizer: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = state["model"].get("type")
    if kind not in ("WordPiece", "WordLevel", "BPE", "Unigram"):
        raise DataError(f"{FIELD}: {tokenizer.name_or_path} splits by {kind}; expected WordPiece, BPE or Unigram")
    return state


def _numbers(model: Mapping[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {entry[0]: number for number, entry in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ())]
    return [(pair[0], pair[1]) for pair in pairs]


def _renumbered(step: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with the new numbers: [token, number] pairs, and the lists of `ids` of templates."""
    if isinstance(step, dict):
        return {
            key: [new[i] for i in value]
            if key == "ids"
            else [value[0], new[value[1]]]
            if key in ("sep", "cls") and isinstance(value, list)
            else _renumbered(value, new)
            for key, value in step.items()
        }
    return [_renumbered(part, new) for part in step] if isinstance(step, list) else step
