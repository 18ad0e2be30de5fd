"""The whole road: a recipe with ties, its Hugging Face directory, and a pipeline of transformers that knows no more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sslprune
from sslprune.cli import app
from sslprune.run.directory import RunDirectory

pytest.importorskip("transformers")
from tests.test_transformers import folder, recipe, texts

__all__ = ["folder"]
TIED = {"kind": "neurons", "include": ["*intermediate*"], "tie": "layers"}
SHORT: dict[str, Any] = {
    "schedule": {"dense": "4ep", "sparse": "1ep", "heal": "0ep"}, "budget": {"macs": 0.8, "round_to": 1},
    "distill": None, "bench": {"threads": [1], "batch_sizes": [1], "lengths": [8]},
}  # fmt: skip
PIPELINE = """
import json, sys
sys.modules['sslprune'] = None
from transformers import pipeline
classify = pipeline('text-classification', sys.argv[1], device='cpu')
print(json.dumps([classify(text)[0] for text in json.load(sys.stdin)]))
"""


def call(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def run(folder) -> RunDirectory:
    file = folder / "tied.toml"
    file.write_text(recipe(folder, **{**SHORT, "prune": [TIED], "export": {"huggingface": True}}).to_toml())
    result = call("run", file, "--run", folder / "tied")
    assert result.exit_code == 0 and "for from_pretrained" in result.output, result.output
    return RunDirectory(folder / "tied")


def test_a_pipeline_says_what_the_run_says(run):
    config = json.loads((run.huggingface / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"] and config["intermediate_size"] < 64
    sentences = [text for text, _ in texts(12, 3)]
    done = subprocess.run([sys.executable, "-c", PIPELINE, str(run.huggingface)], capture_output=True, text=True,
                          input=json.dumps(sentences))  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    ours = json.loads(call("predict", run, *sentences, "--json").stdout)
    for theirs, answer in zip(json.loads(done.stdout), ours, strict=True):
        assert theirs["label"] == answer["repacked"]["label"] in ("negative", "positive")
        assert theirs["score"] == pytest.approx(answer["repacked"]["probability"], abs=1e-4)


def test_the_command_writes_it_alone(run):
    before = {path: path.read_bytes() for path in run.huggingface.iterdir()}
    shutil.rmtree(run.huggingface)
    assert call("export", run, "--format", "huggingface", "--baseline", "x.json").exit_code == 2
    pieces = Path(run.recipe().model.arguments["path"]) / "tokenizer.model"  # which converters to GGUF read
    pieces.write_bytes(b"pieces")
    result = call("export", run, "--format", "huggingface", "--json")
    pieces.unlink()
    assert result.exit_code == 0, result.output
    copied = run.huggingface / pieces.name
    assert copied.read_bytes() == b"pieces"
    copied.unlink()
    said = json.loads(result.stdout)
    assert said["huggingface"] == str(run.huggingface) and list(said["changed"]) == ["intermediate_size"]
    assert {path: path.read_bytes() for path in run.huggingface.iterdir()} == before
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in before}


def test_what_is_not_uniform_is_one_line_and_writes_nothing(run, folder):
    """The same model by a repack in which one layer alone lost neurons."""
    file = folder / "free.toml"
    free = {"kind": "neurons", "include": ["*layer.1.intermediate*"]}
    sections = {**SHORT, "prune": [free], "budget": {"macs": 0.93, "round_to": 1}}
    file.write_text(recipe(folder, **sections).to_toml())
    assert call("train", file, "--run", folder / "free", "--force").exit_code == 0
    assert call("repack", folder / "free").exit_code == 0
    result = call("export", folder / "free", "--format", "huggingface")
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "BertConfig has one number for all layers (intermediate_size)" in " ".join(result.output.split())
    assert not (folder / "free" / "export").exists()
    assert call("export", folder / "free", "--format", "deci", "--pad").exit_code == 2
    result = call("export", folder / "free", "--format", "huggingface", "--pad")
    assert result.exit_code == 0 and "zeros that fill its layers up" in " ".join(result.output.split())
    config = json.loads((folder / "free" / "export" / "huggingface" / "config.json").read_text())
    assert config["intermediate_size"] == 64
    assert call("export", folder / "none", "--format", "huggingface").exit_code == 1


def test_a_tokenizer_with_more_words_than_rows_is_one_line_and_keeps_what_is_there(run):
    """The tokenizer that the run keeps got a token that the model never saw."""
    file = run.tokenizer / "tokenizer.json"
    before, text = {path: path.read_bytes() for path in run.huggingface.iterdir()}, file.read_text()
    settings = json.loads(text)
    settings["added_tokens"].append({**settings["added_tokens"][0], "id": 100_000, "content": "<more>"})
    rows = json.loads((run.huggingface / "config.json").read_text())["vocab_size"]
    settings["added_tokens"] += [
        {**settings["added_tokens"][0], "id": 100_001 + i, "content": f"<more{i}>"} for i in range(rows)
    ]
    file.write_text(json.dumps(settings))
    try:
        result = call("export", run, "--format", "huggingface")
    finally:
        file.write_text(text)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert f"the model's embedding {rows}" in " ".join(result.output.split())
    assert {path: path.read_bytes() for path in run.huggingface.iterdir()} == before


LANGUAGE = """
name = "lm"
run = { device = "cpu", threads = 1 }
model = { factory = "hf:causal-lm", arguments = { path = "model" } }
data = { task = "language-modelling", train = "train.txt", test = "test.txt", batch_size = 8, steps = 12, stride = 6 }
prune = [{ kind = "neurons", tie = "layers" }, { kind = "heads", tie = "layers" }, { kind = "layers", tie = "block" }]
budget = { macs = 0.6, round_to = 1 }
schedule = { dense = "2ep", sparse = "30it", heal = "5it" }
lasso = { decay = 8 }
train = { optimizer = "adamw", lr = 1e-2 }
"""


def test_a_language_model_is_tied_trained_and_generates_by_transformers(tmp_path):
    import torch
    import transformers

    from tests.test_hf_language_models import sentences, tokenizer_of

    library: Any = transformers
    tokenizer = tokenizer_of(sentences(200, 0))
    torch.manual_seed(0)
    config = library.Qwen3Config(
        vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id, hidden_size=32,
        intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=64,
    )  # fmt: skip
    library.Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, count in (("train", 200), ("test", 20)):
        (tmp_path / f"{name}.txt").write_text("\n".join(sentences(count, count)) + "\n")
    (tmp_path / "lm.toml").write_text(LANGUAGE)
    run = RunDirectory(tmp_path / "run")
    for command in (("train", tmp_path / "lm.toml", "--run", run), ("repack", run)):
        assert call(*command).exit_code == 0
    result = call("export", run, "--format", "huggingface", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["changed"], result.output
    model = library.AutoModelForCausalLM.from_pretrained(run.huggingface).eval()
    own = library.AutoTokenizer.from_pretrained(run.huggingface)
    ids = own("Anna sees", return_tensors="pt")["input_ids"]
    assert model.config.use_cache and model.num_parameters() < 0.9 * sum(
        parameter.numel() for parameter in library.Qwen3ForCausalLM(config).parameters()
    )
    found = {
        cached: model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=cached)[0].tolist()
        for cached in (True, False)
    }
    small, text = sslprune.load(run.path), ids[0].tolist()
    while len(text) < len(found[True]):
        with torch.no_grad():
            text.append(int(small(torch.tensor([text]))["logits"][0, -1].argmax()))
    assert found[True] == found[False] == text


@pytest.mark.parametrize("field", ["huggingface", "deci", "decoder"])
def test_a_model_of_no_such_class_is_refused_before_it_is_trained(tmp_path, field):
    run = tmp_path / "run"
    told = CliRunner().invoke(app, ["train", "recipes/digits.toml", "--run", str(run), "--set", f"export.{field}=true"])
    assert told.exit_code == 1 and "DigitsCNN" in told.output and not (run / "train").exists()
