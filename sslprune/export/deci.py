"""A repacked decoder whose layers differ, in the format of DeciLM: llama.cpp and vLLM open it.

What the format says of a layer is read from llama.cpp (conversion/deci.py, src/models/deci.cpp) and from vLLM
(model_executor/models/nemotron_nas.py). One number of heads stands for all layers, of a width that makes them as wide
as the layer; keys and values may be fewer in each, and an attention may be missing, but not the first one. Neurons are
a multiple of 256. llama.cpp leaves an attention out that has no feed-forward behind it. So what is smaller is filled up
with zeros, which compute nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslprune.errors import ExportError
from sslprune.export.huggingface import (
    HF_TOLERANCE,
    apart_of,
    asked_of,
    check_class,
    filled,
    ungated,
    whole_tensors,
    write,
)
from sslprune.export.norms import rescaled
from sslprune.export.renumber import Held, renumbered
from sslprune.models.huggingface import quiet_transformers

ELSE = "deploy export/decoder.onnx or repacked/model.pt2"
STACK = "model.layers"
OUTER = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
WIDTHS = {  # which dimension of which weights is as wide as what
    "self_attn.q_proj": (0, "queries"), "self_attn.o_proj": (1, "outputs"),
    "self_attn.k_proj": (0, "keys"), "self_attn.v_proj": (0, "values"),
    "mlp.gate_proj": (0, "inner"), "mlp.up_proj": (0, "inner"), "mlp.down_proj": (1, "inner"),
}  # fmt: skip
INSIDE = {f"{name}.{part}" for name in WIDTHS for part in ("weight", "bias")}
NORMS = {"self_attn": "input_layernorm", "mlp": "post_attention_layernorm"}  # before each part of a layer
INSIDE |= {f"{norm}.weight" for norm in NORMS.values()}
QUERIES, DOWN = "self_attn.q_proj.weight", "mlp.down_proj.weight"
ROPES = ("default", "llama3")  # which llama.cpp's converter takes along
Layer = Mapping[str, Tensor]  # its tensors, by their names inside it


def export_deci(
    model: nn.Module,
    small: nn.Module,
    path: str | Path,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    finish: Callable[[Any, Path], None] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Write ``small``, which `repack` made of ``model``, as a DeciLM directory; the sizes of its layers.

    ``model`` is a causal language model of Llama's architecture, known by its tensors' names and by what it computes.
    The arguments are those of `export_huggingface`. The result says ``num_attention_heads``, of each layer
    ``num_key_value_heads`` (0: it does not attend) and ``intermediate_size``, and how many weights are zeros that fill
    up (``zeros``). The directory is loaded again, and compared with ``small`` to 1e-5 (relative), before it takes the
    place of what was at ``path``.

    Raises ExportError for another architecture, and for sizes that the format cannot hold: it names layer and field.
    """
    check_class(model, "--format deci")
    own = whole_tensors(small, tensors, "deci")
    with quiet_transformers("--format deci"), torch.no_grad():
        deci: Any = importlib.import_module("sslprune.export.modeling_deci")
        asked = asked_of(small, args, kwargs)
        held = ungated(model, renumbered(model, own, parts=True))
        _check_names(held.tensors)
        fields = _fields(deci, model, held)
        instance = _made(deci, fields, held)
        weights, floats = rescaled(model, instance, held)
        if weights:  # of a width that got smaller
            held = Held({**held.tensors, **weights}, held.before, held.kept)
            instance = _made(deci, {**fields, **floats}, held)
        apart = apart_of(instance, asked)
        if not apart <= HF_TOLERANCE:
            raise ExportError(
                f"--format deci: with the tensors of {type(model).__name__} Llama's class computes something else (its "
                f"outputs differ by {apart:.1e}, relative; {HF_TOLERANCE:g} is allowed); {ELSE}"
            )
        write(model, instance, Path(path), asked, finish)
    blocks = [(block.attention, block.ffn) for block in instance.config.block_configs]
    heads, width = fields["num_attention_heads"], fields["hidden_size"]
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": [0 if a.no_op else heads // a.n_heads_in_group for a, _ in blocks],
        "intermediate_size": [deci.neurons(ffn.ffn_mult, width) for _, ffn in blocks],
        "zeros": sum(t.numel() for t in instance.state_dict().values()) - sum(t.numel() for t in held.tensors.values()),
    }


def _check_names(tensors: Layer) -> None:
    """Raise ExportError for a tensor that Llama's architecture does not have."""
    for name in tensors:
        inside = name.removeprefix(f"{STACK}.").partition(".")[2]
        if name not in OUTER and not (name.startswith(f"{STACK}.") and inside in INSIDE):
            raise ExportError(f"--format deci: {name} is no tensor of Llama's architecture, which deci's is; {ELSE}")


def _check_said(config: Any) -> None:
    """Raise ExportError for what llama.cpp and vLLM would not hear of, though a short text computes the same."""
    said = config.to_dict()
    rope = said.get("rope_parameters") or said.get("rope_scaling") or {}
    window, act = said.get("sliding_window"), said.get("hidden_act", "silu")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if window is not None and said.get("use_sliding_window", True):
        wrong = f"sliding_window = {window}: deci attends to all of the past"
    elif kind not in ROPES:
        wrong = f"rope_type = {kind}: llama.cpp reads {' and '.join(ROPES)} of deci"
    elif act != "silu":
        wrong = f"hidden_act = {act}: llama.cpp computes silu in deci"
    else:
        return
    raise ExportError(f"--format deci: {type(config).__name__}.{wrong}; {ELSE}")


def _layers(tensors: Layer) -> list[dict[str, Tensor]]:
    """The tensors of each layer, by their names inside it; without those of a part that lacks some."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{STACK}."):
            number, _, inside = name.removeprefix(f"{STACK}.").partition(".")
            found.setdefault(int(number), {})[inside] = tensor
    for layer in found.values():
        for part, norm in NORMS.items():
            if any(name.startswith(part) and f"{name}.weight" not in layer for name in WIDTHS):
                for inside in [inside for inside in layer if inside.startswith((part, norm))]:
                    del layer[inside]
    return [layer for _, layer in sorted(found.items())]


def _fields(deci: Any, model: Any, held: Held) -> dict[str, Any]:
    """The fields of the configuration: Llama's as the model has them, and the sizes of each layer."""
    config, names = model.config, deci.LlamaConfig().to_dict()
    _check_said(config)
    rows, width = held.tensors["model.embed_tokens.weight"].shape
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = width // head
    if heads * head != width:
        raise ExportError(
            f"--format deci: {width} of hidden_size are left, no multiple of a head's width ({head}), which deci has; "
            "leave the width out with exclude"
        )
    layers = _layers(held.tensors)
    said = {name: value for name, value in config.to_dict().items() if name in names and name != "architectures"}
    return said | {
        "model_type": deci.DeciConfig.model_type,
        "vocab_size": rows,
        "hidden_size": width,
        "head_dim": head,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "attention_bias": any(name.startswith("self_attn") and name.endswith("bias") for one in layers for name in one),
        "mlp_bias": any(name.startswith("mlp") and name.endswith("bias") for one in layers for name in one),
        "block_configs": [_block(number, layer, head, heads, width) for number, layer in enumerate(layers)],
    }


def _block(number: int, layer: Layer, head: int, heads: int, width: int) -> dict[str, Any]:
    """What block_configs says of a layer."""
    left = layer[DOWN].shape[1] if DOWN in layer else 1
    size = -(-left // 256) * 256
    group = _group(number, layer, head, heads)
    rest = {"replace_with_linear": False}
    return {
        "attention": {"no_op": group is None, "n_heads_in_group": group, **rest},
        "ffn": {"no_op": False, "ffn_mult": 3 * size / (2 * width), **rest},
    }


def _group(number: int, layer: Layer, head: int, heads: int) -> int | None:
    """How many queries a key-value head has where all are ``heads``: the most, so that there are fewest keys."""
    if QUERIES not in layer:
        return None if number else heads  # neither program loads a first layer without an attention
    keys, queries, values = _attention(layer, head)
    wide = {layer[f"self_attn.{part}_proj.weight"].shape[0] for part in "qk"}
    fitting = [n for n in range(1, heads + 1) if heads % n == 0 and n >= queries and heads // n >= keys]
    if wide != {keys * queries * head, keys * head} or values > head:
        wrong, what = f"its heads are no longer {head} wide, and head_dim is that of all layers", "head_dim"
    elif not fitting:
        wrong, what = f"{keys} key-value heads of {queries} queries are left, of num_attention_heads = {heads}", "width"
    else:
        return max(fitting)
    raise ExportError(f"{STACK}.{number}.self_attn: {wrong} in deci; leave the kind {what} out")


def _attention(layer: Layer, head: int) -> tuple[int, int, int]:
    """Key-value heads of a layer, the queries of each, and how wide its values are."""
    queries, keys, values = (layer[f"self_attn.{part}_proj.weight"].shape[0] for part in "qkv")
    return max(keys // head, 1), max(queries // keys, 1), values // max(keys // head, 1)


def _made(deci: Any, fields: Mapping[str, Any], held: Held) -> Any:
    """The class with these fields and the tensors, filled up with zeros to its sizes."""
    config = deci.DeciConfig(**fields)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in deci.DeciLMForCausalLM(config).state_dict().items()}
    head, heads, tensors = config.head_dim, config.num_attention_heads, {}
    for number, layer in enumerate(_layers(held.tensors)):
        before: dict[str, tuple[int, ...]] = {}
        after: dict[str, tuple[int, ...]] = {}
        block = config.block_configs[number]
        if QUERIES in layer:
            keys, queries, wide = _attention(layer, head)
            group = block.attention.n_heads_in_group
            before = {"keys": (keys, head), "queries": (keys, queries, head)}
            before |= {"values": (keys, wide), "outputs": (keys, queries, wide)}
            after["keys"] = after["values"] = (heads // group, head)
            after["queries"] = after["outputs"] = (heads // group, group, head)
        if DOWN in layer:
            before["inner"] = (layer[DOWN].shape[1],)
            after["inner"] = (deci.neurons(block.ffn.ffn_mult, config.hidden_size),)
        for inside, tensor in layer.items():
            dim, width = WIDTHS.get(inside.rpartition(".")[0], (tensor.dim(), ""))
            if dim < tensor.dim() and width in before:
                tensor = _filled_up(tensor, dim, before[width], after[width])
            tensors[f"{STACK}.{number}.{inside}"] = tensor
    tensors |= {name: tensor for name, tensor in held.tensors.items() if name in OUTER}
    none = {name: torch.zeros(shape) for name, shape in shapes.items() if name not in tensors and name not in OUTER}
    return filled(deci.DeciLMForCausalLM, config, {**tensors, **none})


def _filled_up(tensor: Tensor, dim: int, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """``tensor``, whose dimension ``dim`` is the sizes ``before`` in one, with zeros to the sizes ``after``."""
    if before == after:
        return tensor
    front, behind = tensor.shape[:dim], tensor.shape[dim + 1 :]
    whole = tensor.new_zeros(*front, *after, *behind)
    whole[(*(slice(None) for _ in front), *(slice(size) for size in before))] = tensor.view(*front, *before, *behind)
    return whole.flatten(dim, dim + len(after) - 1)
