"""The whole road: a recipe with ties, its Hugging Face directory, and a pipeline of transformers that knows no more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

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
    assert result.exit_code == 0, result.output
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
    result = call("export", run, "--format", "huggingface", "--json")
    assert result.exit_code == 0, result.output
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
    assert call("export", folder / "none", "--format", "huggingface").exit_code == 1
