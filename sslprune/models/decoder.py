"""Decoders of transformers that go on from what they made of the tokens before: keys and values as plain tensors."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sslprune.errors import ExportError, first_line
from sslprune.models.huggingface import quiet_transformers

ROWS, STEPS, PAST = 2, 3, 5  # sizes of the example, no two of them equal, none of them 0 or 1


class Decoder(nn.Module):
    """A causal language model of transformers that takes and gives a cache.

    ``forward(input_ids, attention_mask[, position_ids], past)``: ids (batch, steps) of the tokens that are new, a mask
    (batch, past + steps), and of each layer the keys and the values of the old ones, (batch, key heads, past, width).
    It gives the logits (batch, steps, vocabulary), and then keys and values of all tokens: a state that is carried,
    which begins without any. A layer keeps all of its past, one that attends to a window of it too.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.sizes = cache_sizes(model)  # (key heads, width) of the keys and of the values of each layer
        self.has_positions = "position_ids" in inspect.signature(model.forward).parameters

    def initial_state(self, rows: int) -> list[Tensor]:
        """A past of no tokens."""
        return [torch.zeros(rows, heads, 0, width) for heads, width in self.sizes]

    def example(self) -> tuple[Any, ...]:
        """Inputs of more than one row, token and token before."""
        positions = torch.arange(PAST, PAST + STEPS).expand(ROWS, STEPS).contiguous()
        past = [torch.zeros(ROWS, heads, PAST, width) for heads, width in self.sizes]
        mask = torch.ones(ROWS, PAST + STEPS, dtype=torch.long)
        return (torch.ones(ROWS, STEPS, dtype=torch.long), mask, *([positions] if self.has_positions else []), past)

    def forward(self, *args: Any) -> tuple[Tensor, list[Tensor]]:
        input_ids, attention_mask, *positions, past = args
        keywords = {"position_ids": positions[0]} if positions else {}
        cache = _cache_of(past)
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **keywords
        )
        return out.logits, [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]

    def whole(self, input_ids: Tensor, attention_mask: Tensor, *positions: Tensor) -> Tensor:
        """The logits of whole texts, without a cache."""
        keywords = {"position_ids": positions[0]} if positions else {}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **keywords).logits


def _cache_of(past: list[Tensor]) -> Any:
    with quiet_transformers("export.decoder") as library:
        cache = library.DynamicCache()
        for keys, values in zip(past[::2], past[1::2], strict=True):
            layer = library.cache_utils.DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values  # as they are: `update` would put an empty tensor before them
            cache.layers.append(layer)
        return cache


def cache_sizes(model: Any) -> list[tuple[int, int]]:
    """(key heads, width) of the keys and of the values of each layer; raises ExportError for who has no such cache."""
    name, config = type(model).__name__, getattr(model, "config", None)
    asked = inspect.signature(model.forward).parameters if isinstance(model, nn.Module) else {}
    if not hasattr(config, "to_dict") or "past_key_values" not in asked or "input_ids" not in asked:
        raise ExportError(
            f"export.decoder: {name} takes no past_key_values: it is for causal language models of transformers, as "
            '"hf:causal-lm" makes them'
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ExportError(f"export.decoder: {name} has an encoder too; such models are not written with a past")
    try:
        with torch.no_grad():
            out = model(input_ids=torch.ones(1, 2, dtype=torch.long), use_cache=True)
        pairs = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        sizes = [(tensor.shape[1], tensor.shape[3]) for pair in pairs for tensor in pair]
        if any(tensor.dim() != 4 or tensor.shape[2] != 2 for pair in pairs for tensor in pair) or not sizes:
            raise ValueError("its cache is not of keys and values")
        out.logits  # noqa: B018
    except Exception as error:  # whatever a class raises that keeps another state, or none
        raise ExportError(f"export.decoder: {name} keeps no cache of keys and values ({first_line(error)})") from error
    return sizes
