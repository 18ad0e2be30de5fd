"""Pairs of texts with one label, as MRPC and RTE have them: from the file to both models' answers."""

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sslprune
from sslprune.cli import app
from sslprune.data import build_data, reopen
from sslprune.errors import DataError, SslpruneError
from sslprune.export.session import open_session
from sslprune.models.build import build_model
from sslprune.recipe import parse_recipe

transformers = pytest.importorskip("transformers")
try:
    from transformers import BertConfig, BertForSequenceClassification
except (ImportError, RuntimeError) as error:
    pytest.skip(f"transformers cannot be imported: {error}", allow_module_level=True)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=24)  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), model_max_length=24)
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [f"{x} {x}\t{y} c d\t{int(x == y)}\n" for x in "abcd" for y in "abcd"] * 2
    for name in ("train", "test"):
        (tmp_path / f"{name}.tsv").write_text("sentence1\tsentence2\tlabel\n" + "".join(rows))
    return tmp_path


def recipe(folder, **data):
    return parse_recipe(
        {
            "run": {"device": "cpu", "threads": 1},
            "model": {"factory": "hf:sequence-classification", "arguments": {"path": str(folder / "model")}},
            "data": {
                "train": str(folder / "train.tsv"), "test": str(folder / "test.tsv"), "batch_size": 8, "pad_to": 4,
                "eval_batch_size": 8, "text": "sentence1", "text_pair": "sentence2", **data,
            },
            "prune": [{"kind": "neurons", "include": ["*intermediate*"]}],
            "budget": {"macs": 0.8, "round_to": 1},
            "schedule": {"sparse": "20it", "heal": "2it"},
            "lasso": {"decay": 4, "interval": 4},
            "bench": {"threads": [1], "batch_sizes": [1], "lengths": [6, 24]},
        }
    )  # fmt: skip


def test_segments(folder):
    inputs, labels = next(iter(build_data(recipe(folder)).test))
    assert isinstance(inputs, dict)
    assert inputs["input_ids"][1].tolist() == [2, 5, 5, 3, 6, 7, 8, 3]  # [CLS] a a [SEP] b c d [SEP]
    assert inputs["token_type_ids"][1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert labels[:2].tolist() == [1, 0]
    data = build_data(recipe(folder))
    data.save(folder / "saved")
    for encoder in (data, reopen(recipe(folder), folder / "saved", ("batch", "sequence"))):
        one = encoder.encode("a a ||| b c d")
        assert isinstance(one, dict) and all(torch.equal(one[name], inputs[name][1:2]) for name in inputs)


def test_bad_input_is_one_line(folder):
    (folder / "gap.tsv").write_text("sentence1\tsentence2\tlabel\na\t\t1\n")
    for data, said in (
        ({"text_pair": "other"}, r'no column "other" \(data.text_pair\)'),
        ({"task": "tagging"}, "data.text_pair: a pair has one label"),
        ({"test": str(folder / "gap.tsv")}, "row 2 has no sentence2"),
    ):
        with pytest.raises(DataError, match=said) as error:
            build_data(recipe(folder, **data))
        assert "\n" not in str(error.value)


def test_lengths_to_time_must_fit(folder):
    made = recipe(folder)
    for lengths, said in (([25], "25 steps, the data have at most 24"),):
        longer = made.model_copy(update={"bench": made.bench.model_copy(update={"lengths": lengths})})
        with pytest.raises(DataError, match=said):
            build_data(longer)
    shipped = {"factory": "sslprune.data:digits"}
    pictures = parse_recipe({**made.values(), "data": shipped, "model": {"factory": "sslprune.zoo:digits_cnn"}})
    with pytest.raises(DataError, match=r"bench\.lengths: the data are no sequences"):
        build_data(pictures)


def test_the_whole_road(folder):
    (folder / "pairs.toml").write_text(recipe(folder).to_toml())
    run = folder / "run"
    result = CliRunner().invoke(app, ["run", str(folder / "pairs.toml"), "--run", str(run), "--debug"])
    assert result.exit_code == 0, result.output
    report = json.loads((run / "report.json").read_text())
    for rows in (report["dense"]["latency"], report["repacked"]["latency"], report["speedup"]):
        timed = {(row["batch_size"], row["length"]) for row in rows if "absent" not in row}
        assert timed == {(1, 6), (1, 24)}
    names = {node.name for node in open_session(run / "export" / "model.onnx").get_inputs()}
    assert names == {"input_ids", "attention_mask", "token_type_ids"}
    own: Any = build_model(recipe(folder).model)[0]  # the class as it is holds a width of its own in each layer
    before = [layer.intermediate.dense.out_features for layer in own.bert.encoder.layer]
    small: Any = sslprune.apply_plan(own, run).eval()
    widths = {axis["name"]: axis["after"] for axis in report["axes"]}
    after = [layer.intermediate.dense.out_features for layer in small.bert.encoder.layer]
    assert sorted(after) == sorted(widths.values()) and sum(after) < sum(before) == 64
    inputs, _ = next(iter(build_data(recipe(folder)).test))
    assert isinstance(inputs, dict)
    with torch.no_grad():
        assert torch.allclose(small(**inputs).logits, sslprune.load(run)(**inputs)["logits"], atol=1e-5)
    said = CliRunner().invoke(app, ["predict", str(run), "a a ||| b c d", "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)[0]["dense"]["label"] in ("0", "1")
    alone = CliRunner().invoke(app, ["predict", str(run), "a a", "--debug"])
    assert isinstance(alone.exception, SslpruneError) and '"first ||| second"' in str(alone.exception)
