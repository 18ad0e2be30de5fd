"""llama.cpp runs the Hugging Face directory: its own converter, its own runtime, transformers' tokens.

It wants `pip install xllamacpp gguf sentencepiece`, and LLAMA_CPP, the folder of convert_hf_to_gguf.py.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sslprune
from tests.test_deci import UNEVEN, cut

tf: Any = pytest.importorskip("transformers")
for package in ("xllamacpp", "gguf", "sentencepiece"):
    pytest.importorskip(package)
SOURCES = Path(os.environ.get("LLAMA_CPP", ""))
if not (SOURCES / "convert_hf_to_gguf.py").is_file():
    pytest.skip("LLAMA_CPP is not a folder with convert_hf_to_gguf.py", allow_module_level=True)

TEXT = ["the cat sees a door", "anna follows the moon", "a tiger unhinges bob", "once upon a time there was a queen"]
SIZES: dict[str, Any] = dict(
    hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
    max_position_embeddings=256, use_cache=False,
)  # fmt: skip
Cuts = dict[str, tuple[str, int]]
CASES: list[tuple[str, Cuts]] = [
    ("Llama", {"neurons": ("", 32), "layers": ("layers.1/", 1)}),
    ("Llama", {"heads": ("/heads.2", 1), "neurons": ("", 32)}),  # two heads of 16: a head_dim beside them
    ("Mistral", {"heads": ("/heads", 1), "layers": ("layers.0/", 1)}),
    ("Qwen3", {"heads": ("/heads.2", 1), "neurons": ("", 40), "width": ("", 32)}),
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as Llama's, of a few sentences: of other makes llama.cpp's converter takes published ones alone.

    Without bytes: the server keeps tokens back that are no whole letters.
    """
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 9), model_prefix=str(folder / "tokenizer"), vocab_size=120, model_type="bpe",
        minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    return folder / "tokenizer.model"


@pytest.mark.parametrize(("name", "cuts"), CASES, ids=[f"{name}-{'-'.join(cuts)}" for name, cuts in CASES])
def test_llama_cpp_says_what_transformers_says(vocabulary: Path, tmp_path: Path, name: str, cuts: Cuts) -> None:
    more = {"Qwen3": {"head_dim": 16}}.get(name, {})
    model, program = traced(vocabulary, name, more)
    masked, chosen = copy.deepcopy(model), []
    for axis in sslprune.find_axes(program):
        part, count = cuts.get(axis.kind, ("", 0))
        if count and axis.exact and part in axis.name:
            sslprune.zero_groups(masked, axis, range(count))
            chosen.append(axis)
    assert {axis.kind for axis in chosen} == set(cuts)
    small = sslprune.repack(masked, program, chosen, verify=False)
    finish = finished(vocabulary)
    assert sslprune.export_huggingface(masked, small, tmp_path / "out", program.args, finish=finish)
    file = converted(tmp_path)
    import gguf

    tensors = gguf.GGUFReader(file).tensors
    assert sum(tensor.n_elements for tensor in tensors) == sum(parameter.numel() for parameter in small.parameters())
    check_equal(tmp_path / "out", file)


@pytest.mark.parametrize("name", ["Llama", "Qwen2"])  # Qwen2 adds biases to queries, keys and values
def test_llama_cpp_runs_layers_that_differ(vocabulary: Path, tmp_path: Path, name: str) -> None:
    model, program = traced(vocabulary, name, {"num_hidden_layers": 7, "intermediate_size": 300})
    masked, small = cut(model, UNEVEN, program)
    said = sslprune.export_deci(masked, small, tmp_path / "out", program.args, finish=finished(vocabulary))
    assert said["num_key_value_heads"] == [1, 2, 2, 1, 2, 0]
    assert said["intermediate_size"] == [512, 256, 256, 512, 512, 512]
    # fewer tokens: one of them may end a text
    check_equal(tmp_path / "out", converted(tmp_path), "--trust-remote-code", "--tokens", "8")


def traced(vocabulary: Path, name: str, more: dict[str, Any]) -> tuple[Any, sslprune.Program]:
    """A model of this class, whose every tensor says something."""
    tokens = len(tf.LlamaTokenizer.from_pretrained(vocabulary.parent))
    config = getattr(tf, f"{name}Config")(**{**SIZES, **more}, vocab_size=tokens, pad_token_id=None)
    torch.manual_seed(0)
    model = getattr(tf, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, sslprune.trace(model, (torch.randint(3, 60, (2, 6)),))


def finished(vocabulary: Path) -> Callable[[Any, Path], None]:
    """What writes the tokenizer beside the weights."""

    def finish(instance: Any, folder: Path) -> None:
        tokenizer = tf.LlamaTokenizer.from_pretrained(vocabulary.parent, add_bos_token=True)  # as llama.cpp does
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.model").write_bytes(vocabulary.read_bytes())

    return finish


def converted(folder: Path) -> Path:
    """The GGUF file that llama.cpp's converter makes of ``folder``/out."""
    file = folder / "small.gguf"
    done = subprocess.run(
        [sys.executable, SOURCES / "convert_hf_to_gguf.py", folder / "out", "--outfile", file, "--outtype", "f32"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return file


def check_equal(folder: Path, file: Path, *options: str) -> None:
    """llama.cpp chooses the tokens that transformers chooses, of the same probabilities."""
    told = subprocess.run(
        [sys.executable, "-m", "scripts.compare_gguf", folder, file, "--text", "the queen sees a tiger", *options],
        capture_output=True, text=True, env={**os.environ, "HF_MODULES_CACHE": str(folder.parent / "modules")},
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr[-2000:]
    said = json.loads(told.stdout.splitlines()[-1])
    assert len(set(said["llama.cpp"])) > 1 and said["apart"] < 1e-4
