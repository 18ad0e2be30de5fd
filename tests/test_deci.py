"""DeciLM directories: layers of different sizes, opened by transformers alone; tests/test_gguf.py runs llama.cpp."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sslprune
from sslprune.errors import ExportError
from tests.test_serving import CAUSAL, tf

SIZES = {**CAUSAL, "num_hidden_layers": 7, "intermediate_size": 300}
UNEVEN = {  # of each layer something else, by the axes' names
    "layers.0/layers": 1, "layers.1.mlp.gate_proj": 200, "layers.2/layers.2": 1, "layers.3.self_attn.q_proj/heads": 1,
    "layers.4.self_attn.q_proj/heads.2": 1, "layers.4.self_attn.v_proj": 3, "layers.5/layers": 1,
    "layers.5/layers.2": 1, "layers.6/layers": 1,
}  # fmt: skip
FRESH = """
import sys
sys.modules['sslprune'] = None
import torch, transformers
folder = sys.argv[1]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
case = torch.load(folder + '/../case.pt')
with torch.no_grad():
    found = model(case['ids'], use_cache=False).logits
    texts = [model.generate(case['ids'][:1], max_new_tokens=9, do_sample=False, use_cache=c) for c in (False, True)]
assert (found - case['logits']).abs().max() <= 1e-5 * case['logits'].abs().max()
assert texts[0].tolist() == texts[1].tolist() and len(texts[0][0]) == case['ids'].shape[1] + 9
print(model.config.block_configs[5].attention.no_op, hasattr(model.config.block_configs[5].ffn, 'ffn_mult'))
"""


IDS = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))


def made(name: str, **fields: Any) -> Any:
    """A model of this class, whose every tensor says something."""
    torch.manual_seed(0)
    model = getattr(tf, f"{name}ForCausalLM")(getattr(tf, f"{name}Config")(**{**SIZES, **fields}, eos_token_id=None))
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def cut(model: Any, counts: dict[str, int], program: Any = None) -> tuple[Any, Any]:
    """The model with these groups at zero, and what is left of it."""
    program, masked, chosen = program or sslprune.trace(model, (IDS,)), copy.deepcopy(model), []
    for axis in sslprune.find_axes(program):
        count = counts.get(axis.name.removeprefix("model."), 0)
        if count:
            sslprune.zero_groups(masked, axis, range(count))
            chosen.append(axis)
    assert len(chosen) == len(counts)
    return masked, sslprune.repack(masked, program, chosen, verify=False)


def test_layers_that_differ_are_opened_by_transformers_alone(tmp_path: Path) -> None:
    masked, small = cut(made("Llama"), UNEVEN)
    out = tmp_path / "deci"
    said = sslprune.export_deci(masked, small, out, (IDS,))
    zeros = said.pop("zeros")
    assert said == {
        "num_attention_heads": 4,
        "num_key_value_heads": [1, 2, 2, 1, 2, 0],
        "intermediate_size": [512, 256, 256, 512, 512, 512],
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["DeciLMForCausalLM"] and config["num_hidden_layers"] == 6
    # as llama.cpp and vLLM read an entry
    for block, keys, size in zip(
        config["block_configs"], said["num_key_value_heads"], said["intermediate_size"], strict=True
    ):
        group, wide = block["attention"]["n_heads_in_group"], int(2 * block["ffn"]["ffn_mult"] * 32 / 3)
        assert (0 if group is None else 4 // group) == keys and wide + -wide % 256 == size
        assert block["attention"]["no_op"] == (group is None) and block["ffn"]["no_op"] is False
    weights = sum(parameter.numel() for parameter in small.parameters())
    again = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "modeling_deci.py"} <= again
    with torch.no_grad():
        torch.save({"ids": IDS, "logits": small.eval()(IDS).logits}, tmp_path / "case.pt")
    done = subprocess.run([sys.executable, "-c", FRESH, str(out)], capture_output=True, text=True,
                          env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")})  # fmt: skip
    assert done.returncode == 0 and done.stdout.split()[-2:] == ["True", "True"], done.stderr[-2000:]
    from safetensors.torch import load_file

    written = load_file(out / "model.safetensors")
    assert sum(tensor.numel() for tensor in written.values()) == weights + zeros


REFUSED: list[tuple[str, dict[str, Any], dict[str, int], str]] = [
    ("Gemma", {"head_dim": 8, "hidden_act": "silu"}, {}, r"the tensors of GemmaForCausalLM Llama's class computes"),
    ("Qwen3", {"head_dim": 8}, {}, r"layers\.0\.self_attn\.q_norm\.weight is no tensor of Llama's architecture"),
    ("Mistral", {"sliding_window": 64}, {}, r"MistralConfig\.sliding_window = 64: deci attends to all of the past"),
    ("Llama", {"hidden_act": "gelu"}, {}, r"LlamaConfig\.hidden_act = gelu: llama\.cpp computes silu"),
    ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, {},
     r"LlamaConfig\.rope_type = linear: llama\.cpp reads default and llama3"),
    ("Llama", {}, {"embed_tokens": 5}, r"27 of hidden_size are left, no multiple of a head's width \(8\)"),
    ("Llama", {}, {"embed_tokens": 8}, r"layers\.0\.self_attn: 2 key-value heads of 2 queries are left, of num_att"),
    ("Llama", {}, {"layers.0.self_attn.q_proj/head_dim": 2}, r"layers\.0\.self_attn: its heads are no longer 8 wide"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "counts", "said"), REFUSED, ids=[case[3][:20] for case in REFUSED])
def test_what_deci_cannot_say_names_the_layer_and_the_field(
    tmp_path: Path, name: str, fields: dict[str, Any], counts: dict[str, int], said: str
) -> None:
    model = made(name, **{"num_hidden_layers": 1, **fields})
    masked, small = cut(model, counts) if counts else (model, model)
    with pytest.raises(ExportError, match=said) as caught:
        sslprune.export_deci(masked, small, tmp_path / "out", (IDS,))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_biases_of_queries_alone_and_tied_embeddings(tmp_path: Path) -> None:
    masked, small = cut(made("Qwen2", num_hidden_layers=2, tie_word_embeddings=True), {"layers.0/layers": 1})
    sslprune.export_deci(masked, small, tmp_path / "out", (IDS,))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["attention_bias"] and config["tie_word_embeddings"] and not config["mlp_bias"]


def test_a_width_that_all_heads_still_fit_into_is_rescaled(tmp_path: Path) -> None:
    heads = {f"layers.{i}.self_attn.q_proj/heads": 1 for i in (0, 1)}
    masked, small = cut(made("Llama", num_hidden_layers=2), {"embed_tokens": 8, **heads, "layers.1.mlp.gate_proj": 44})
    said = sslprune.export_deci(masked, small, tmp_path / "out", (IDS,))
    assert said["num_attention_heads"] == 3 and said["intermediate_size"] == [512, 256]
