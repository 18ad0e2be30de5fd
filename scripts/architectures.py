"""The coverage list: name -> builder of ``(model, args)``, batch of two; nothing is downloaded, weights are random.

A builder imports its library itself, so that the list can be read where timm or transformers are not installed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scripts import own_models as own
from tests.architectures import UNet

Case = tuple[nn.Module, tuple[Any, ...]]
SHIM = "SSLPRUNE_TORCHVISION_SHIM"  # a file that declares torchvision's operators where its library does not load


def images(size: int) -> tuple[Tensor]:
    return (torch.randn(2, 3, size, size),)


def tokens(length: int = 9) -> Tensor:
    return torch.randint(own.VOCABULARY, (2, length))


def torchvision_model(name: str, size: int = 224, **options: Any) -> Case:
    load_shim()
    if name.startswith("fcn"):  # segmentation
        from torchvision.models import segmentation as models
    else:
        from torchvision import models
    return getattr(models, name)(weights=None, **options), images(size)


def load_shim() -> None:
    """Import the file that ``SSLPRUNE_TORCHVISION_SHIM`` names, once, before torchvision."""
    path = os.environ.get(SHIM)
    if path and "torchvision_shim" not in sys.modules:
        spec = importlib.util.spec_from_file_location("torchvision_shim", path)
        assert spec is not None and spec.loader is not None, path
        module = sys.modules["torchvision_shim"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def timm_model(name: str) -> Case:
    load_shim()  # timm imports torchvision
    import timm

    model: Any = timm.create_model(name, pretrained=False)
    return model, (torch.randn(2, *model.default_cfg["input_size"]),)


class FirstTensor(nn.Module):
    """A transformers model that takes its inputs by name and returns logits (or hidden states) as a plain tensor."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=False)[0]


V = own.VOCABULARY
ENCODER = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80)
DECODER = ENCODER | dict(vocab_size=V, num_key_value_heads=2, head_dim=12, use_cache=False)
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, use_cache=False)
WHISPER = dict(
    vocab_size=V, d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=80, decoder_ffn_dim=80, num_mel_bins=10, max_source_positions=12, max_target_positions=16,
)  # fmt: skip
MIXTURE = dict(num_local_experts=4, num_experts_per_tok=2)
SMALL: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> (class, its configuration's class, fields)
    "bert": ("BertForSequenceClassification", "BertConfig", ENCODER | dict(vocab_size=V)),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        dict(vocab_size=V, dim=48, hidden_dim=80, n_layers=2, n_heads=4),
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        dict(vocab_size=V, n_embd=48, n_layer=2, n_head=4, n_positions=16) | SPECIAL,
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DECODER),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", DECODER | MIXTURE),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        dict(vocab_size=V, hidden_size=48, num_hidden_layers=2, state_size=6, use_cache=False),
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        dict(vocab_size=V, d_model=48, d_kv=12, d_ff=80, num_layers=2, num_heads=4) | SPECIAL,
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", ENCODER | dict(image_size=32, patch_size=8)),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER | SPECIAL),
}


def transformers_model(name: str) -> Case:
    load_shim()
    import transformers

    class_name, config_name, fields = SMALL[name]
    model = getattr(transformers, class_name)(getattr(transformers, config_name)(**fields))
    match name:
        case "vit":
            return FirstTensor(model, "pixel_values"), images(32)
        case "t5":
            return FirstTensor(model, "input_ids", "decoder_input_ids"), (tokens(), tokens(7))
        case "whisper":
            return FirstTensor(model, "input_features", "decoder_input_ids"), (torch.randn(2, 10, 24), tokens(7))
        case _:
            return FirstTensor(model, "input_ids"), (tokens(),)


def own_model(build: Callable[[], nn.Module], *args: Callable[[], Tensor]) -> Case:
    return build(), tuple(arg() for arg in args)


def resnet56() -> Case:
    from sslprune.zoo import resnet_cifar

    return resnet_cifar(depth=56), images(32)


TORCHVISION = [
    "alexnet", "vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "googlenet", "inception_v3",
    "mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x1_0", "squeezenet1_0", "mnasnet1_0", "efficientnet_b0",
    "regnet_y_400mf", "convnext_tiny", "swin_t", "vit_b_16", "maxvit_t", "fcn_resnet50",
]  # fmt: skip
TIMM = [
    "hrnet_w18_small", "ghostnet_100", "dla34", "mobilevit_s", "levit_128", "deit_tiny_patch16_224",
    "beit_base_patch16_224", "mixer_s32_224", "repvgg_a0", "res2net50_26w_4s", "cspresnet50", "nfnet_f0",
]  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False, "size": 299},
    "fcn_resnet50": {"weights_backbone": None, "size": 128},
}
features = partial(torch.randn, 2, 7, 10)
letters = partial(torch.randint, 30, (2, 9, 6))
its_letters = partial(torch.randint, 30, (2, 5, 6))
ARCHITECTURES: dict[str, dict[str, Callable[[], Case]]] = {
    "torchvision": {name: partial(torchvision_model, name, **OPTIONS.get(name, {})) for name in TORCHVISION},
    "timm": {name: partial(timm_model, name) for name in TIMM},
    "transformers": {name: partial(transformers_model, name) for name in SMALL},
    "torch.nn": {
        "lstm_language_model": partial(own_model, partial(own.LanguageModel, nn.LSTM, num_layers=2), tokens),
        "lstm_tied": partial(own_model, partial(own.LanguageModel, nn.LSTM, tied=True), tokens),
        "lstm_projected": partial(own_model, partial(own.LanguageModel, nn.LSTM, proj_size=16), tokens),
        "lstm_bidirectional_tagger": partial(own_model, partial(own.Tagger, nn.LSTM), tokens),
        "lstm_translator": partial(own_model, own.Translator, tokens, partial(tokens, 7)),
        "lstm_cells": partial(own_model, own.UnrolledCells, tokens),
        "gru_language_model": partial(own_model, partial(own.LanguageModel, nn.GRU, num_layers=2), tokens),
        "gru_bidirectional_tagger": partial(own_model, partial(own.Tagger, nn.GRU), tokens),
        "rnn_language_model": partial(own_model, partial(own.LanguageModel, nn.RNN), tokens),
        "transformer_encoder": partial(own_model, own.Encoder, tokens),
        "transformer_encoder_pre_norm": partial(own_model, partial(own.Encoder, norm_first=True), tokens),
        "transformer": partial(own_model, own.Seq2Seq, tokens, partial(tokens, 7)),
        "multihead_attention": partial(own_model, own.CrossAttention, features, features),
    },
    "own": {
        "unet": partial(own_model, UNet, partial(torch.randn, 2, 3, 16, 16)),
        "resnet56_cifar": resnet56,
        "recurrent_highway": partial(own_model, own.RecurrentHighway, tokens),
        "reader": partial(own_model, own.Reader, tokens, letters, partial(tokens, 5), its_letters),
    },
}
BUILDERS = {name: builder for family in ARCHITECTURES.values() for name, builder in family.items()}
FAMILY = {name: family for family, builders in ARCHITECTURES.items() for name in builders}
