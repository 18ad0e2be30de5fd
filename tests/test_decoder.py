"""Decoders as ONNX with past keys and values: equal to generating without, whatever the widths of their layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sslprune
from sslprune.errors import ExportError
from sslprune.export.decoder import Cache, export_decoder
from sslprune.export.session import open_session

tf: Any = pytest.importorskip("transformers")
try:
    tf.LlamaConfig  # noqa: B018
except (ImportError, RuntimeError) as error:  # it imports torchvision where that is there, and fails with it
    pytest.skip(f"transformers cannot be imported: {error}", allow_module_level=True)

SIZE: dict[str, Any] = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                            num_key_value_heads=2, intermediate_size=12, max_position_embeddings=24, use_cache=False,
                            bos_token_id=None, eos_token_id=None, pad_token_id=0)  # fmt: skip
MADE: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZE)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SIZE, head_dim=4)),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=11, use_cache=False,
                      bos_token_id=None, eos_token_id=None)
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(
        tf.MixtralConfig(**{**SIZE, "num_hidden_layers": 1}, num_local_experts=2, num_experts_per_tok=1)
    ),
}  # fmt: skip
# by kind: of the axes whose names hold the first word so many groups go; no two layers are left alike
UNEVEN: dict[str, dict[str, tuple[str, int]]] = {
    "llama": {"neurons": ("layers.0", 5), "heads": ("layers.1.self_attn.q_proj/heads", 1)},
    "qwen3": {"width": ("", 4), "neurons": ("layers.1", 3), "layers": ("layers.0/layers", 1)},
    "gpt2": {"heads": ("h.1", 1), "layers": ("h.0/layers", 1)},
    "mixtral": {"heads": ("/heads.2", 1)},
}
HEADS = {"llama": [(2, 2), (1, 1)], "qwen3": [(2, 2)], "gpt2": [(3, 3)], "mixtral": [(2, 2)]}  # of keys and of values


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = MADE[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def cut(model: Any, cuts: dict[str, tuple[str, int]]) -> tuple[Any, sslprune.Program, list[sslprune.Axis], Any]:
    """The model at zero where something goes, its program, the axes, and the plan."""
    program, masked, chosen = sslprune.trace(model, (torch.randint(3, 30, (2, 11)),)), copy.deepcopy(model), []
    for axis in sslprune.find_axes(program):
        part, count = cuts.get(axis.kind, ("", 0))
        if count and axis.exact and part in axis.name:
            sslprune.zero_groups(masked, axis, range(min(count, axis.size)))
            chosen.append(axis)
    assert {axis.kind for axis in chosen} == set(cuts)
    return masked, program, chosen, sslprune.make_plan(masked, program, chosen)


def goes_on(file: Path, ids: np.ndarray, count: int) -> list[list[int]]:
    """``ids`` (rows, steps) and the likeliest ``count`` tokens after them, by the file alone."""
    cache, new = Cache(open_session(file, 1), len(ids)), ids
    for _ in range(count):
        new = cache.tokens(new)[:, -1:].argmax(-1)
        ids = np.concatenate([ids, new], axis=1)
    assert cache.length == ids.shape[1] - 1
    return ids.tolist()


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen3", "mixtral"))]
)
def test_a_decoder_of_uneven_layers_generates_as_its_class_does(tmp_path, name):
    masked, program, chosen, plan = cut(made(name), UNEVEN[name])
    file = tmp_path / "decoder.onnx"
    assert export_decoder(masked, file, plan) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["decoder.onnx"]
    inputs = {node.name: node.shape for node in open_session(file, 1).get_inputs()}
    assert list(inputs)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert inputs["input_ids"] == ["batch_size", "sequence_length"]
    for layer, (keys, values) in enumerate(HEADS[name]):
        assert inputs.pop(f"past_key_values.{layer}.key") == ["batch_size", keys, "past_sequence_length", 4]
        assert inputs.pop(f"past_key_values.{layer}.value") == ["batch_size", values, "past_sequence_length", 4]
    assert len(inputs) == 3
    ids = torch.randint(3, 30, (2, 4), generator=torch.Generator().manual_seed(1))
    expected = masked.generate(ids, max_new_tokens=7, do_sample=False, use_cache=True, pad_token_id=0)
    assert goes_on(file, ids.numpy(), 7) == expected.tolist()
    small = sslprune.repack(masked, program, chosen, verify=name != "mixtral")
    whole = small(expected)["logits"].detach()
    found = Cache(open_session(file, 1), 2).tokens(expected.numpy())
    assert np.abs(found - whole.numpy()).max() < 1e-4 * whole.abs().max()


def test_what_a_plan_says_wrongly_writes_nothing(tmp_path):
    """A plan of another model: what it takes away is not zero here."""
    model = tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=11, use_cache=False)
    ).eval()
    *_, plan = cut(model, {"neurons": ("", 9)})
    with pytest.raises(ExportError, match=r"decoder\.onnx: with its cache .* differs by .* on 4 tokens after 0"):
        export_decoder(model, tmp_path / "decoder.onnx", plan)
    assert not list(tmp_path.iterdir())


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: torch.nn.Linear(3, 4), r"Linear takes no past_key_values: .*hf:causal-lm"),
    (lambda: tf.ViTModel(tf.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)),
     r"ViTModel takes no past_key_values"),
    (lambda: tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1,
                                                       num_heads=2)), r"T5ForConditionalGeneration has an encoder too"),
    (lambda: tf.BertForSequenceClassification(tf.BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1,
                                                            num_attention_heads=2, intermediate_size=8)),
     r"BertForSequenceClassification (takes no past_key_values|keeps no cache)"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "said"), REFUSED)
def test_who_keeps_no_cache_is_told_so(tmp_path, build, said):
    with pytest.raises(ExportError, match=f"export.decoder: {said}") as caught:
        export_decoder(build().eval(), tmp_path / "decoder.onnx")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
