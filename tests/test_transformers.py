"""Transformers from Hugging Face directories and labelled text, through the same commands as everything else."""

import csv
import json
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sslprune.cli import app
from sslprune.data import build_data, reopen
from sslprune.data.labelled import classes_of
from sslprune.data.tables import chosen, read_table, rows_of
from sslprune.errors import CheckpointError, DataError, RecipeError, RepackError
from sslprune.export.session import open_session
from sslprune.models.build import build_model
from sslprune.models.huggingface import class_of, kind_of_directory
from sslprune.recipe import Recipe, load_recipe, parse_recipe
from sslprune.run.directory import RunDirectory
from sslprune.train.evaluate import evaluate
from sslprune.train.prepare import prepare, whole_size
from sslprune.values.voice import SILENT

pytest.importorskip("transformers")
try:
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel
except (ImportError, RuntimeError) as error:  # it imports torchvision where that is there, and fails with it
    pytest.skip(f"transformers cannot be imported: {error}", allow_module_level=True)

GOOD, BAD, PLAIN = (
    ("good", "fine", "great"),
    ("bad", "dull", "awful"),
    ("the", "film", "was", "a", "very", "long", "one"),
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN]


def texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences of 3 to 20 words in which one word decides the label."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(random.integers(2))
        words = [str(word) for word in random.choice(PLAIN, random.integers(2, 20))]
        words.insert(int(random.integers(len(words))), str(random.choice((BAD, GOOD)[label])))
        rows.append((" ".join(words), ("negative", "positive")[label]))
    return rows


def tokenizer(folder, longest: int):
    """Lower case, words between spaces, as BERT has them."""
    import transformers

    library: Any = transformers
    return library.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=longest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model directory with its tokenizer, saved as float16 and without a head, and the data beside it."""
    path = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=64, max_position_embeddings=40)  # fmt: skip
    BertForSequenceClassification(config).bert.half().save_pretrained(path / "model")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer(path, 40).save_pretrained(path / "model")
    for name, count in (("train", 256), ("test", 60)):
        rows = "".join(f"{text}\t{label}\n" for text, label in texts(count, count))
        (path / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    return path


def recipe(folder, data=(), model=(), **sections) -> Recipe:
    return parse_recipe(
        {
            "run": {"device": "cpu", "threads": 1},
            "model": {
                "factory": "hf:sequence-classification", "arguments": {"path": str(folder / "model"), **dict(model)},
            },
            "data": {
                "train": str(folder / "train.tsv"), "test": str(folder / "test.tsv"), "batch_size": 16, "pad_to": 4,
                "eval_batch_size": 20, **dict(data),
            },
            "prune": [{"kind": "heads"}, {"kind": "neurons", "include": ["*intermediate*"]}, {"kind": "layers"}],
            "budget": {"macs": 0.6, "round_to": 1},
            "schedule": {"dense": "8ep", "sparse": "2ep", "heal": "1ep"},
            "train": {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.01},
            "distill": {"weight": 0.5},
            "bench": {"threads": [1]},
            **sections,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(folder) -> RunDirectory:
    file = folder / "text.toml"
    taught = {"weight": 1.0, "hidden": 0.9, "modules": ["*.layer.?"]}  # as recipes/minilm-sst2.toml
    schedule = {"dense": "8ep", "sparse": "2ep", "heal": "1ep", "shrink": "8it"}
    file.write_text(recipe(folder, distill=taught, schedule=schedule).to_toml())
    result = CliRunner().invoke(app, ["run", str(file), "--run", str(folder / "run"), "--debug"])
    assert result.exit_code == 0, result.output
    return RunDirectory(folder / "run")


def test_the_whole_road(run):
    report = json.loads(run.report.read_text())
    assert report["repacked"]["macs"] <= 0.6 * report["dense"]["macs"]
    assert report["equivalence"]["max_relative"] < 1e-5
    assert report["dense"]["metrics"]["accuracy"] > 90 and report["repacked"]["metrics"]["accuracy"] > 85
    assert {axis["kind"] for axis in report["axes"]} == {"heads", "neurons", "layers"}
    assert (run.tokenizer / "tokenizer.json").is_file()
    assert json.loads((run.tokenizer / "labels.json").read_text()) == ["negative", "positive"]


@pytest.mark.parametrize(("runtime", "file"), [("torch", "model.pt2"), ("onnxruntime", "model.onnx")])
def test_other_batches_and_lengths_in_a_fresh_process(run, runtime, file, tmp_path):
    """With that one library alone: neither sslprune nor transformers can be imported there."""
    import sslprune

    path, small = (run.repacked_dir if runtime == "torch" else run.export_dir) / file, sslprune.load(run.path)
    masked, _ = build_model(run.recipe().model)
    from safetensors.torch import load_file

    masked.load_state_dict(load_file(run.masked))
    masked.eval()
    cases = {}
    for rows, length in ((1, 2), (3, 17), (5, 40)):
        ids = torch.randint(5, len(WORDS), (rows, length))
        mask = (torch.arange(length) < torch.randint(1, length + 1, (rows, 1))).long()
        with torch.no_grad():
            logits = masked(input_ids=ids, attention_mask=mask).logits
            assert torch.allclose(small(input_ids=ids, attention_mask=mask)["logits"], logits, atol=1e-5)
        cases[f"{rows}.{length}"] = (ids.numpy(), mask.numpy(), logits.numpy())
    np.savez(tmp_path / "cases.npz", **{f"{k}.{i}": v for k, case in cases.items() for i, v in enumerate(case)})
    others = {"torch": ("onnxruntime", "transformers"), "onnxruntime": ("torch", "transformers")}[runtime]
    call = {
        "torch": "import torch; m = torch.export.load(sys.argv[1]).module(); "
        "f = lambda i, a: m(input_ids=torch.tensor(i), attention_mask=torch.tensor(a))['logits'].detach().numpy()",
        "onnxruntime": "import onnxruntime as o; m = o.InferenceSession(sys.argv[1]); "
        "f = lambda i, a: m.run(['logits'], {'input_ids': i, 'attention_mask': a})[0]",
    }[runtime]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys(('sslprune', *{others!r})))\nimport numpy as np\n{call}\n"
        "c = np.load(sys.argv[2]); keys = {k.rpartition('.')[0] for k in c}; assert len(keys) == 3\n"
        "for k in keys: assert np.allclose(f(c[k + '.0'], c[k + '.1']), c[k + '.2'], atol=1e-4), k\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path, tmp_path / "cases.npz"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def operators(path) -> dict[str, int]:
    """The operators of a file as ONNX Runtime runs it, after its own fusions."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".fused"))
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    counts: dict[str, int] = {}
    for node in onnx.load(path.with_suffix(".fused")).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def test_fusions_still_apply(run):
    from safetensors.torch import load_file

    dense, small = operators(run.dense_onnx), operators(run.onnx)
    assert not set(small) - set(dense)  # nothing that the dense model does without
    for counts in (dense, small):  # where a sum has lost its branch, a plain normalisation is left of the fused one
        counts["LayerNormalization"] += counts.pop("SkipLayerNormalization", 0)
    assert all(small.get(name, 0) <= count for name, count in dense.items())
    left = [name.rpartition(".")[0] for name in load_file(run.weights) if name.endswith(".weight")]
    assert dense["BiasGelu"] == 2 and dense["FusedMatMul"] == 2
    assert small.get("BiasGelu", 0) == sum(name.endswith("intermediate.dense") for name in left)
    assert small.get("FusedMatMul", 0) == sum(name.endswith("attention.self.query") for name in left)


def test_names_of_open_dimensions(run):
    for path in (run.onnx, run.dense_onnx):
        assert [node.shape for node in open_session(path).get_inputs()] == [["batch", "sequence"]] * 2


def test_predict(run, tmp_path):
    (tmp_path / "more.txt").write_text("the film was awful\n\na very dull one\n")
    result = CliRunner().invoke(app, ["predict", str(run), "the film was great", str(tmp_path / "more.txt"), "--json"])
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)
    assert [answer["dense"]["label"] for answer in answers] == ["positive", "negative", "negative"]
    assert all(0.5 <= answer["repacked"]["probability"] <= 1 for answer in answers)
    shown = CliRunner().invoke(app, ["predict", str(run), "the film was great"]).stdout
    assert "dense" in shown and "repacked" in shown and "positive" in shown and " ms" in shown


def test_apply_plan_gives_back_the_class_with_fewer_heads(run):
    import sslprune

    model, _ = build_model(run.recipe().model)
    small = sslprune.apply_plan(model, run.path).eval()  # BERT's views leave the number of heads open
    ids = torch.randint(5, len(WORDS), (2, 9))
    loaded = sslprune.load(run.path)(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
    assert torch.allclose(small(input_ids=ids).logits, loaded, atol=1e-5)


def test_apply_plan_names_the_module_that_fixes_its_widths():
    import sslprune
    from sslprune.removal.plan import make_plan

    def model():
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=4)).eval()

    own, ids = model(), torch.randint(20, (2, 8))
    program = sslprune.trace(own, (), {"input_ids": ids, "use_cache": False})
    heads = [axis for axis in sslprune.find_axes(program) if axis.kind == "heads" and axis.exact]
    sslprune.zero_groups(own, heads[1], [0, 2])
    plan = make_plan(own, program, heads)
    with pytest.raises(RepackError, match=r"^transformer\.h\.1\.attn\.c_attn: its own code fixes the arguments of `"):
        sslprune.apply_plan(model(), plan)  # its view fixes 3 x 16


def test_batches(folder):
    data = build_data(recipe(folder))
    first, again, later = (list(data.train.epoch(i)) for i in (1, 1, 2))
    assert len(first) == len(data.train) == 16
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(first, later, strict=True))
    for inputs, _ in first:
        assert isinstance(inputs, dict) and inputs["input_ids"].shape[1] % 4 == 0
        used = inputs["attention_mask"].sum(1)
        assert int(used.max()) > inputs["input_ids"].shape[1] - 4 and (inputs["input_ids"][:, 0] == 2).all()
        assert ((inputs["input_ids"] == 0) == (inputs["attention_mask"] == 0)).all()
    assert sum(len(labels) for _, labels in data.test) == 60
    assert data.sequence == 40


def test_heads_are_initialised_and_said_to_be(folder):
    model, notes = build_model(recipe(folder, model={"num_labels": 3}).model)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert "initialised at random" in notes[0] and "classifier.weight" in notes[0]
    assert model(input_ids=torch.tensor([[2, 5, 3]])).logits.shape == (1, 3)


def test_tagging(folder, tmp_path):
    for name in ("train", "test"):
        rows = [{"tokens": ["the", "film", "was", "good"], "tags": ["O", "N", "O", "A"]}] * 4
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    made = recipe(folder, data={"task": "tagging", **files}, model={"num_labels": 3})
    made = made.model_copy(update={"model": made.model.model_copy(update={"factory": "hf:token-classification"})})
    data = build_data(made)
    _, labels = next(iter(data.test))
    assert labels[0].tolist() == [-100, 2, 1, 2, 0, -100, -100, -100]  # A, N, O; [CLS], [SEP] and padding left out
    model, _ = build_model(made.model)
    assert set(evaluate(model, data.test, data.task)) == {"accuracy", "f1"}
    data.save(tmp_path / "saved")
    for encoder in (data.encoder, reopen(made, tmp_path / "saved", ("batch", "sequence"))):
        inputs = encoder.encode("the film")
        assert isinstance(inputs, dict) and list(inputs) == ["input_ids", "attention_mask"]
        assert inputs["input_ids"].shape == (1, 4)  # [CLS] the film [SEP]
        logits = np.log([[[0.8, 0.1, 0.1], [0.1, 0.3, 0.6], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]])
        assert encoder.told("the film", logits) == {"O N": pytest.approx(0.6)}  # one tag a word


def test_some_of_the_labels(folder, tmp_path):
    """The rows of the labels that are kept, numbered anew, and a classifier of as many outputs."""
    rows = "good\tup\ndull\tdown\nfilm\tno\nfine\tup\nbad\tdown\n"
    (tmp_path / "three.tsv").write_text("sentence\tlabel\n" + rows)
    some = recipe(
        folder,
        {"train": str(tmp_path / "three.tsv"), "test": str(tmp_path / "three.tsv"), "keep_classes": ["up", "down"]},
        {"num_labels": 3},
    )
    data = build_data(some)
    inputs, labels = next(iter(data.test))
    assert isinstance(inputs, dict)
    assert (labels.tolist(), data.encoder.classes) == ([1, 0, 1, 0], ("down", "up"))
    whole, _ = build_model(some.model)
    data.check(whole)
    prepared = prepare(whole.eval(), data)
    assert prepared.plan is not None and set(prepared.plan.tensors) == {"classifier.weight", "classifier.bias"}
    assert prepared.model.config.num_labels == 2 and whole.config.num_labels == 3  # type: ignore[union-attr]
    small = prepared.model(**inputs).logits
    torch.testing.assert_close(small, whole(**inputs).logits[:, [0, 2]])
    known = whole_size(prepared, data, torch.device("cpu"), SILENT).metrics["accuracy"]
    right = whole(**inputs).logits.argmax(1) == torch.tensor([0, 2])[labels]
    assert known == pytest.approx(100 * float(right.float().mean()))


def test_layouts_of_files(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"yes, it is",1\nno,0\n')
    assert read_table(tmp_path / "a.csv") == [(2, "yes, it is", "1"), (3, "no", "0")]
    (tmp_path / "a.tsv").write_text('review\tclass\n"quoted\tb\n')
    assert read_table(tmp_path / "a.tsv") == [(2, '"quoted', "b")]
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"body": ["x", "y"], "label": [1, 0]}), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", text="body") == [(0, "x", 1), (1, "y", 0)]


def test_bad_input_is_one_line(folder, tmp_path):
    def failure(kind: type[Exception] = DataError, **changes) -> str:
        with pytest.raises(kind) as error:
            made = recipe(folder, **changes)
            build_data(made).check(build_model(made.model)[0])
        assert "\n" not in str(error.value)
        return str(error.value)

    (tmp_path / "plain.txt").write_text("the film was good\n")
    assert "not a known layout" in failure(data={"train": str(tmp_path / "plain.txt")})
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "header.tsv").write_text("sentence\tlabel\n")
    (tmp_path / "other.tsv").write_text("sentence\tlabel\nthe film\tneutral\n")
    (tmp_path / "cells.tsv").write_text("sentence\tlabel\nthe\tfilm\tpositive\n")
    (tmp_path / "names.tsv").write_text("a\tb\n1\t2\n")
    for name in ("empty", "header"):
        assert "empty" in failure(data={"train": str(tmp_path / f"{name}.tsv")})
    assert 'row 2: label "neutral" is not one of negative, positive: the labels of train.tsv' in failure(
        data={"test": str(tmp_path / "other.tsv")}
    )
    assert 'label "negative" is not one of up, down: data.labels' in failure(data={"labels": ["up", "down"]})
    assert "line 2 has 3 columns" in failure(data={"test": str(tmp_path / "cells.tsv")})
    assert "say which holds the text" in failure(data={"test": str(tmp_path / "names.tsv")})
    assert 'no column "body"' in failure(data={"text": "body"})
    assert "data.max_length: 41 tokens, the model takes 40" in failure(data={"max_length": 41})
    assert "2 labels (negative, positive), and the model 1" in failure(model={"num_labels": 1})
    assert "has no such field" in failure(RecipeError, model={"nmu_labels": 2})
    larger = tokenizer(folder, 40)
    larger.add_tokens([f"word{i}" for i in range(50)])
    larger.save_pretrained(tmp_path / "larger")
    assert "data.tokenizer" in failure(data={"tokenizer": str(tmp_path / "larger")})
    own = {"tokenizer": str(folder / "model")}
    assert "no local directory" in failure(RecipeError, model={"path": "someone/absent-model"}, data=own)


def test_tables_that_are_refused(tmp_path):
    def failure(name: str, text: str | bytes, tagging: bool = False, **columns) -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DataError) as error:
            chosen(path, rows_of(path), **columns, lists=tagging)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
        return str(error.value).removeprefix(f"{path}: ").removeprefix(f"{path}")

    listed = '{"text": ["a", "film"], "label": 1}\n'
    said = 'row 1: text is of type list; expected text; a list of words is for data.task = "tagging"'
    assert failure("a.jsonl", listed) == said
    assert failure("a.jsonl", '{"text": 5, "label": 1}\n') == "row 1: text is of type int; expected text"
    assert "row 1: label is of type dict; expected text or a number" in failure(
        "a.jsonl", '{"text": "a", "label": {"x": 1}}\n'
    )
    assert "row 1: tags is of type int; expected text, or a list of words" in failure(
        "a.jsonl", '{"tokens": ["a"], "tags": 1}\n', tagging=True
    )
    assert 'line 2: column "text" stands there twice' in failure(
        "a.jsonl", '{"text": "a", "label": 0}\n{"text": "a", "text": "b", "label": 0}\n'
    )
    assert 'column "label" stands there twice; expected each name once' in failure("a.csv", "text,label,label\na,0,1\n")
    assert "line 1: not a readable JSON object (maximum recursion" in failure("a.jsonl", "[" * 99999)
    assert "line 1 is a JSON list; expected one object a line" in failure("a.jsonl", "[1]\n")
    assert "not UTF-8 text (byte 0)" in failure("a.csv", b"\xff\xfe")
    assert "not a readable Parquet file" in failure("a.parquet", b"PAR1 and no more PAR1")
    pictures = 'column file holds names of pictures; set data.image = "file"'
    assert pictures in failure("p.csv", "file,label\ncats/1.JPG,0\ndogs/2.jpg,1\n")
    with pytest.raises(DataError, match=r": a folder; expected a file; a saved dataset is data\.dataset"):
        rows_of(tmp_path)


def test_a_cell_may_be_a_document(tmp_path):
    long = "word " * 40_000  # 200,000 characters; csv stops at 131,072
    (tmp_path / "a.csv").write_text(f'text,label\n"{long}",1\n')
    (tmp_path / "a.tsv").write_text(f"text\tlabel\n{long}\t1\n")
    before = csv.field_size_limit()
    assert read_table(tmp_path / "a.csv") == read_table(tmp_path / "a.tsv") == [(2, long, "1")]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["1", "0", 1, "3"], ("0", "1", "2", "3")),
        (["b", "a", "b"], ("a", "b")),
        (["-1", "1"], ("-1", "1")),
        ([0.0, 1.0], ("0.0", "1.0")),
        (["0", "1", "??", "1"], 'train.tsv: row 2: label "??", where others are numbers (0, 1); mend it, or name the'),
        (["no", "yes", "no", "7"], 'train.tsv: row 3: label "7", where others are words (no, yes); mend it, or name'),
        (["0", "1000000"], "train.tsv: row 1: label 1000000; expected labels from 0 to 999999 at most"),
        ([f"text {i % 80}" for i in range(150)], "train.tsv: 80 different labels in 150 rows; see data.label"),
        ([f"text {i % 75}" for i in range(150)], tuple(sorted(f"text {i}" for i in range(75)))),
    ],
)
def test_classes_of_the_training_labels(labels, classes):
    rows = [(i, "a", label) for i, label in enumerate(labels)]
    if isinstance(classes, tuple):
        assert classes_of("train.tsv", rows, tagging=False) == classes
        return
    with pytest.raises(DataError) as error:
        classes_of("train.tsv", rows, tagging=False)
    assert str(error.value).startswith(classes)


def test_code_of_a_directory_is_neither_run_nor_asked_about(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    code = f"import os\nos.mkdir({str(tmp_path / 'marker')!r})\n"
    for name, key, field in (
        ("config.json", "AutoConfig", r"model\.arguments\.path"),
        ("config.json", "AutoModelForSequenceClassification", r"model\.arguments\.path"),
        ("tokenizer_config.json", "AutoTokenizer", r"data\.tokenizer"),
    ):
        copy = tmp_path / key
        shutil.copytree(folder / "model", copy)
        (copy / "own.py").write_text(code)
        settings = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(settings | {"auto_map": {key: "own.Own"}, "model_type": "own"}))
        wanted = recipe(folder, model={"path": str(copy)})
        with pytest.raises((RecipeError, DataError), match=rf"{field}: .*{name} has an auto_map") as caught:
            build_model(wanted.model)
            build_data(wanted)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()


def test_a_directory_says_its_kind(tmp_path):
    import transformers

    for family, made, kind in (
        ("Whisper", "ForConditionalGeneration", "speech-seq2seq"),
        ("Bart", "ForConditionalGeneration", "seq2seq-lm"),
        ("GPT2", "LMHeadModel", "causal-lm"),
        ("Bert", "ForTokenClassification", "token-classification"),
        ("Bert", "Model", "sequence-classification"),
    ):
        named = family + made
        getattr(transformers, f"{family}Config")(architectures=[named]).save_pretrained(tmp_path / named)
        assert kind_of_directory(str(tmp_path / named)) == kind
        assert hasattr(transformers, class_of(kind))


def test_another_architecture(folder, tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    model.save_pretrained(tmp_path / "gpt2")
    config = json.loads((folder / "model" / "config.json").read_text())
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not a checkpoint of BertForSequenceClassification") as error:
        build_model(recipe(folder, model={"path": str(tmp_path / "gpt2")}).model)
    assert "\n" not in str(error.value)


def test_shipped_recipes_are_read():
    from pathlib import Path

    for name in ("minilm-sst2", "bert-base"):
        made = load_recipe(Path(__file__).parent.parent / "recipes" / f"{name}.toml")
        assert made.model.factory == "hf:sequence-classification"


def test_a_program_file_as_factory(run, folder):
    made = recipe(folder, data={"tokenizer": str(folder / "model")})
    section = made.model.model_copy(update={"factory": str(run.program), "arguments": {}})
    model, _ = build_model(section)
    accuracy = evaluate(model, build_data(made).test)["accuracy"]
    assert accuracy == json.loads(run.report.read_text())["repacked"]["metrics"]["accuracy"]
