"""Llama with other sizes in each layer, as DeciLM and Nemotron-NAS write them. It needs transformers alone.

`sslprune export RUN --format deci` puts this file beside the weights: transformers and vLLM read it there, with
``trust_remote_code``; llama.cpp reads config.json. An entry of ``block_configs`` stands for one layer:

    {"attention": {"no_op": False, "n_heads_in_group": 4, "replace_with_linear": False},
     "ffn": {"no_op": False, "ffn_mult": 1.5, "replace_with_linear": False}}

``n_heads_in_group``: queries of a key-value head, of ``num_attention_heads`` in all. ``ffn_mult``: see `neurons`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

MULTIPLE = 256  # of neurons


def neurons(ffn_mult: float, width: int) -> int:
    """The neurons of a feed-forward in a layer of ``width``: 2/3 of ``ffn_mult`` times it, up to a multiple of 256."""
    return -(-int(2 * ffn_mult * width / 3) // MULTIPLE) * MULTIPLE


class Entry(dict):
    """A table whose entries are attributes too: vLLM reads ``config.block_configs[0].attention.no_op``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class DeciConfig(LlamaConfig):
    """Llama's fields, and ``block_configs``."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = (), **fields: Any) -> None:
        super().__init__(**fields)
        self.block_configs = [Entry({part: Entry(said) for part, said in block.items()}) for block in block_configs]


class NoOp(nn.Module):
    """In the place of an attention that is not there: it adds nothing."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class DeciLMForCausalLM(LlamaForCausalLM):
    """Llama's class, each layer of which has the sizes of its entry in ``block_configs``."""

    config_class = DeciConfig

    def __init__(self, config: DeciConfig) -> None:
        super().__init__(config)
        caches = 0  # of the layers that attend: a cache's length is its first layer's
        for index, block in enumerate(config.block_configs):
            own = copy.copy(config)
            attention = block.attention
            own.num_key_value_heads = config.num_attention_heads // (attention.n_heads_in_group or 1)
            own.intermediate_size = neurons(block.ffn.ffn_mult, config.hidden_size)
            self.model.layers[index] = layer = LlamaDecoderLayer(own, caches)
            if attention.no_op:
                layer.add_module("self_attn", NoOp())
                layer.add_module("input_layernorm", nn.Identity())
            caches += not attention.no_op
        self.post_init()


DeciConfig.register_for_auto_class()
DeciLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
