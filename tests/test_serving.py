"""Hugging Face directories of uniform widths: found by the class itself, opened by transformers alone."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import sslprune
from sslprune.errors import ExportError

tf: Any = pytest.importorskip("transformers")
try:
    tf.BertConfig  # noqa: B018
except (ImportError, RuntimeError) as error:  # it imports torchvision where that is there, and fails with it
    pytest.skip(f"transformers cannot be imported: {error}", allow_module_level=True)

TEXT: dict[str, Any] = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                            intermediate_size=48, max_position_embeddings=40)  # fmt: skip
CAUSAL = {**TEXT, "num_key_value_heads": 2, "use_cache": False}
PICTURE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16,
               patch_size=8)  # fmt: skip
SOUND = dict(vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
             decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8,
             max_source_positions=16, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
             decoder_start_token_id=1, use_cache=False)  # fmt: skip
MADE: dict[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**TEXT)),
    "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**TEXT)),
    "distilbert": lambda: tf.DistilBertForSequenceClassification(
        tf.DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40)
    ),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**PICTURE)),
    "deit": lambda: tf.DeiTForImageClassification(tf.DeiTConfig(**PICTURE)),
    "whisper": lambda: tf.WhisperForConditionalGeneration(tf.WhisperConfig(**SOUND)),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, use_cache=False)
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=40, use_cache=False)
    ),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**CAUSAL)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**CAUSAL, head_dim=8)),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**{**CAUSAL, "num_key_value_heads": 1}, head_dim=8)),
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**CAUSAL)),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**CAUSAL, num_local_experts=4)),
}
Cuts = dict[str, tuple[str, int]]  # by kind: a part of the axes' names, and how many groups go of each


def traced(name: str) -> tuple[Any, sslprune.Program]:
    """A model whose every tensor says something, and its program."""
    torch.manual_seed(0)
    model = MADE[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(3, 60, (2, 6))
    args: dict[str, Any] = {
        "vit": (torch.randn(2, 3, 16, 16),), "deit": (torch.randn(2, 3, 16, 16),), "whisper": (torch.randn(2, 8, 32),)
    }  # fmt: skip
    kwargs = {"decoder_input_ids": ids} if name in ("t5", "whisper") else {}
    return model, sslprune.trace(model, args.get(name, (ids,)), kwargs)


def cut(model: Any, program: sslprune.Program, cuts: Cuts) -> Any:
    """What is left of a copy of the model; the copy."""
    masked, random, chosen = copy.deepcopy(model), np.random.default_rng(0), []
    for axis in sslprune.find_axes(program):
        part, count = cuts.get(axis.kind, ("", 0))
        if count and axis.exact and part in axis.name:
            sslprune.zero_groups(masked, axis, random.permutation(axis.size)[:count])
            chosen.append(axis)
    assert {axis.kind for axis in chosen} == set(cuts)
    return masked, sslprune.repack(masked, program, chosen, verify=False)  # the directory's own check is narrower


HELD: list[tuple[str, Cuts, dict[str, Any]]] = [
    ("bert", {"neurons": ("intermediate", 13)}, {"intermediate_size": 35}),
    ("roberta", {"neurons": ("intermediate", 13)}, {"intermediate_size": 35}),
    ("distilbert", {"neurons": ("lin1", 13)}, {"hidden_dim": 35}),
    ("vit", {"neurons": ("fc1", 13), "layers": ("layers.1/", 1)}, {"intermediate_size": 35, "num_hidden_layers": 1}),
    ("vit", {"heads": ("", 1)}, {"num_attention_heads": 3, "head_dim": 8}),
    ("vit", {"head_dim": ("", 3), "value_dim": ("", 3)}, {"head_dim": 5}),  # its queries make up for another scale
    ("vit", {"heads": ("", 1), "head_dim": ("", 3), "value_dim": ("", 3)},
     {"num_attention_heads": 3, "head_dim": 5}),
    ("deit", {"neurons": ("fc1", 13), "heads": ("", 1)},
     {"intermediate_size": 35, "num_attention_heads": 3, "head_dim": 8}),
    ("deit", {"layers": ("layers.0/", 1)}, {"num_hidden_layers": 1}),
    ("whisper", {"neurons": ("", 13)}, {"encoder_ffn_dim": 35, "decoder_ffn_dim": 35}),
    ("whisper", {"layers": ("encoder.layers.0/", 1)}, {"encoder_layers": 1}),
    ("t5", {"neurons": ("", 13), "heads": ("", 1)}, {"d_ff": 35, "num_heads": 3}),
    ("t5", {"head_dim": ("", 3), "value_dim": ("", 3)}, {"d_kv": 5}),
    ("t5", {"layers": ("encoder.block.0.", 1)}, {"num_layers": 1}),  # its table of positions moves on
    ("gpt2", {"neurons": ("", 13), "layers": ("h.0/", 1)}, {"n_inner": 115, "n_layer": 1}),
    ("llama", {"neurons": ("", 13), "layers": ("layers.0/", 1)}, {"intermediate_size": 35, "num_hidden_layers": 1}),
    ("llama", {"heads": ("/heads.2", 1)}, {"num_attention_heads": 2}),
    ("llama", {"heads": ("/heads", 1)}, {"num_attention_heads": 1, "num_key_value_heads": 1}),
    ("qwen3", {"neurons": ("", 13), "layers": ("layers.1/", 1)},
     {"intermediate_size": 35, "num_hidden_layers": 1, "layer_types": ["full_attention"]}),
    ("qwen3", {"width": ("", 8), "heads": ("/heads.2", 1)},  # its norms are rescaled
     {"hidden_size": 24, "num_attention_heads": 2, "rms_norm_eps": pytest.approx(1e-6 * 32 / 24)}),
    ("gemma", {"neurons": ("", 13), "heads": ("", 1)}, {"intermediate_size": 35, "num_attention_heads": 3}),
    ("gemma", {"layers": ("layers.1/", 1)}, {"num_hidden_layers": 1}),
    ("phi", {"neurons": ("fc1", 13), "layers": ("layers.1", 1)}, {"intermediate_size": 35, "num_hidden_layers": 1}),
    ("phi", {"heads": ("/heads.2", 1)}, {"num_attention_heads": 2, "head_dim": 8}),
    ("mixtral", {"neurons": ("", 16), "layers": ("layers.0/", 1)},  # grouped products want rows of 16 bytes
     {"intermediate_size": 32, "num_hidden_layers": 1}),
    ("mixtral", {"heads": ("/heads.2", 1)}, {"num_attention_heads": 2, "head_dim": 8}),
    ("mixtral", {"width": ("", 8)},
     {"hidden_size": 24, "head_dim": 8, "rms_norm_eps": pytest.approx(1e-5 * 32 / 24)}),
]  # fmt: skip

FRESH = """
import json, sys
sys.modules['sslprune'] = None
import torch, transformers
for folder in sys.argv[1:]:
    config = json.load(open(folder + '/config.json'))
    model = getattr(transformers, config['architectures'][0]).from_pretrained(folder).eval()
    case = torch.load(folder + '/case.pt')
    with torch.no_grad():
        found = model(*case['args'], **case['kwargs'], use_cache=False).logits if case['cache'] else \\
            model(*case['args'], **case['kwargs']).logits
    assert (found - case['logits']).abs().max() <= 1e-5 * case['logits'].abs().max(), folder
    print('equal', folder)
"""


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, sslprune.Program]]:
    return {name: traced(name) for name in MADE}


@pytest.fixture(scope="module")
def written(tmp_path_factory, models) -> dict[int, Any]:
    """Each case of ``HELD``: the directory, or what was raised."""
    root, found = tmp_path_factory.mktemp("hf"), dict[int, Any]()
    for number, (name, cuts, _) in enumerate(HELD):
        folder = root / f"{name}-{number}"
        try:
            model, program = models[name]
            masked, small = cut(model, program, cuts)
            changed = sslprune.export_huggingface(masked, small, folder, program.args, program.kwargs)
        except Exception as error:
            found[number] = error
            continue
        found[number] = (folder, changed)
        with torch.no_grad():
            logits = small.eval()(*program.args, **program.kwargs).logits
        case = {"args": program.args, "kwargs": program.kwargs, "logits": logits, "cache": "use_cache" in
                json.loads((folder / "config.json").read_text())}  # fmt: skip
        torch.save(case, folder / "case.pt")
    return found


@pytest.mark.parametrize("number", range(len(HELD)), ids=[f"{n}-{'-'.join(c)}" for n, c, _ in HELD])
def test_the_class_holds_what_is_uniform(written, number):
    found = written[number]
    if isinstance(found, Exception):
        raise found
    folder, changed = found
    config = json.loads((folder / "config.json").read_text())
    assert changed == HELD[number][2] and all(config[key] == value for key, value in changed.items())


def test_transformers_alone_computes_the_same(written):
    folders = [str(found[0]) for found in written.values() if not isinstance(found, Exception)]
    done = subprocess.run([sys.executable, "-c", FRESH, *folders], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("equal") == len(folders), done.stderr[-2000:]


REFUSED: list[tuple[str, Cuts, str]] = [
    ("bert", {"neurons": ("layer.1.intermediate", 13)}, r"layer\.1\.intermediate\.dense\.weight: 35 of 48 are left, of "
     r"bert.*layer\.0.* 48; BertConfig has one number for all layers \(intermediate_size\); .*tie = \"layers\""),
    ("bert", {"heads": ("", 1)}, r"query\.weight: 24 of 32 are left in dimension 0, .*refuses num_attention_heads"),
    ("bert", {"layers": ("layer.1", 1)}, r"encoder\.layer\.1: .*its normalisations stand behind the sums"),
    ("bert", {"layers": ("layer.1.attention", 1)}, r"the rest of it stays .*tie = \"block\""),
    ("t5", {"layers": ("layer.0", 1)}, r"encoder\.block\.0\.layer: 1 of 2 are left, .*tie = \"block\""),
    ("gpt2", {"layers": ("layers.2", 1)}, r"mlp\.c_proj\.weight went with its branch"),  # of every layer
    ("llama", {"head_dim": ("", 2), "value_dim": ("", 4)}, r"with head_dim = 4 has the tensors .* something else"),
    ("mixtral", {"neurons": ("", 13)}, r"with intermediate_size = 35 has .* and cannot run: "),
    ("gpt2", {"width": ("", 8)}, r"wte\.weight: 24 of 32 are left in dimension 1"),
    ("vit", {"width": ("", 8)}, r"ViTForImageClassification with .*hidden_size = 24 has .* something else"),
    ("gemma", {"width": ("", 8)}, r"GemmaForCausalLM with hidden_size = 24, .* something else"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "cuts", "said"), REFUSED, ids=[f"{n}-{'-'.join(c)}" for n, c, _ in REFUSED])
def test_what_no_configuration_says_names_the_layer_and_the_field(models, tmp_path, name, cuts, said):
    model, program = models[name]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("kept")
    masked, small = cut(model, program, cuts)
    with pytest.raises(ExportError, match=said) as caught:
        sslprune.export_huggingface(masked, small, tmp_path / "out", program.args, program.kwargs)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_a_checkpoint_in_shards_is_read_and_a_quantized_one_is_not(tmp_path):
    from sslprune.errors import CheckpointError
    from sslprune.models.huggingface import load_model

    model = MADE["bert"]()
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    found, _ = load_model("sequence-classification", {"path": str(tmp_path / "shards")})
    assert all(torch.equal(found.state_dict()[name], value) for name, value in model.state_dict().items())
    file = tmp_path / "shards" / "config.json"
    quantized = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantized}))
    with pytest.raises(
        CheckpointError, match=r"shards is quantized \(bitsandbytes\).*; prune the model before"
    ) as caught:
        load_model("sequence-classification", {"path": str(tmp_path / "shards")})
    assert "\n" not in str(caught.value)
    model.config.quantization_config = quantized
    with pytest.raises(ExportError, match=r"BertForSequenceClassification is quantized, .*before it is quantized"):
        sslprune.export_huggingface(model, model, tmp_path / "out", (torch.randint(3, 60, (2, 6)),))
    assert not (tmp_path / "out").exists()


def test_a_class_of_ones_own_is_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    with pytest.raises(ExportError, match=r"Sequential is no class of transformers; .*apply_plan"):
        sslprune.export_huggingface(model, model, tmp_path / "out", (torch.randn(2, 3),))
    assert not list(tmp_path.iterdir())


def test_what_generates_does_so_with_and_without_a_cache(written):
    number = next(i for i, (name, cuts, _) in enumerate(HELD) if name == "qwen3" and "layers" in cuts)
    folder, _ = written[number]
    model = tf.Qwen3ForCausalLM.from_pretrained(folder).eval()
    assert model.config.use_cache
    ids = torch.tensor([[5, 9, 11]])
    one, two = (model.generate(ids, max_new_tokens=9, do_sample=False, use_cache=cached) for cached in (True, False))
    assert one.tolist() == two.tolist() and one.shape == (1, 12)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "phi"])
def test_llama_cpp_has_a_place_for_every_tensor(written, kind):
    """By the table of names in llama.cpp's own package, whose converter is not published on its own."""
    gguf: Any = pytest.importorskip("gguf")
    from safetensors import safe_open

    number = next(i for i, (name, cuts, _) in enumerate(HELD) if name == kind and "neurons" in cuts)
    folder, _ = written[number]
    config = json.loads((folder / "config.json").read_text())
    table = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[{"phi": "PHI2"}.get(kind, kind.upper())], config["num_hidden_layers"]
    )
    with safe_open(folder / "model.safetensors", "pt") as stored:
        names = list(stored.keys())
    assert len(names) > 8 and [n for n in names if not table.get_name(n, try_suffixes=(".weight", ".bias"))] == []


PADDED: list[tuple[str, Cuts, dict[str, Any]]] = [  # one layer alone each
    ("llama", {"neurons": ("layers.0.mlp", 13), "layers": ("layers.1/layers.2", 1)}, {}),  # the other has all of them
    ("llama", {"heads": ("layers.1.self_attn.q_proj/heads", 1)}, {}),
    ("bert", {"neurons": ("layer.1.intermediate", 13), "layers": ("layer.0.attention", 1)}, {}),
    ("gpt2", {"neurons": ("h.0", 13), "layers": ("h.1/", 1)}, {"n_inner": 115, "n_layer": 1}),  # nothing to fill up
]


@pytest.mark.parametrize(("name", "cuts", "said"), PADDED, ids=[f"{n}-{'-'.join(c)}" for n, c, _ in PADDED])
def test_layers_that_differ_are_filled_up_where_that_is_asked_for(models, tmp_path, name, cuts, said):
    model, program = models[name]
    masked, small = cut(model, program, cuts)
    changed = sslprune.export_huggingface(masked, small, tmp_path / "out", program.args, program.kwargs, pad=True)
    zeros = changed.pop("zeros", 0)
    assert {field: changed[field] for field in said} == said and bool(zeros) != bool(said)
    again = type(model).from_pretrained(tmp_path / "out")
    assert again.num_parameters() == zeros + sum(parameter.numel() for parameter in small.parameters())


def test_zeros_that_would_be_read_as_something_else_are_refused(models, tmp_path):
    """GPT-2's queries, keys and values lie side by side in one weight."""
    model, program = models["gpt2"]
    masked, small = cut(model, program, {"heads": ("h.0", 1)})
    with pytest.raises(ExportError, match="computes something else"):
        sslprune.export_huggingface(masked, small, tmp_path / "out", program.args, program.kwargs, pad=True)
    assert not list(tmp_path.iterdir())
