"""A vocabulary of the tokens that texts use: the tokenizer is numbered anew, and the embedding loses the other rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import sslprune
from sslprune.cli import app
from sslprune.data import build_data
from sslprune.errors import DataError, RepackError
from sslprune.models.build import build_model
from sslprune.models.huggingface import load_tokenizer
from sslprune.models.vocabulary import kept_tokens, numbers_of, smaller_tokenizer
from sslprune.recipe import parse_recipe
from sslprune.removal.vocabulary import keep_tokens
from sslprune.report import Report
from sslprune.run.directory import RunDirectory
from sslprune.train.prepare import fitted, prepare

pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")
try:
    import transformers
    from transformers import BertConfig, BertForSequenceClassification
except (ImportError, RuntimeError) as error:  # it imports torchvision where that is there, and fails with it
    pytest.skip(f"transformers cannot be imported: {error}", allow_module_level=True)

LIBRARY: Any = transformers
TEXTS = ["the film was great", "a dull film", "great and fine", "the dull one was awful", "unfilmable greatness"]
MORE = ["a great film", "the awful one", "fine films and dull ones", "filming the greatest"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def trained(kind: str) -> Any:
    """A tokenizer of one kind, trained on the texts, with special tokens before and behind its own."""
    models, trainers = tokenizers.models, tokenizers.trainers
    model, trainer = {
        "WordPiece": (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
        "BPE": (models.BPE(unk_token="[UNK]"), trainers.BpeTrainer),
        "Unigram": (models.Unigram(), trainers.UnigramTrainer),
    }[kind]
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    more = {"unk_token": "[UNK]"} if kind == "Unigram" else {}
    made.train_from_iterator(TEXTS + MORE, trainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False, **more))
    made.add_special_tokens(["[LAST]"])
    pairs = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]", "[LAST]")]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP] [LAST]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=pairs
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return LIBRARY.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=40, model_input_names=inputs, **names
    )


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_texts_of_kept_tokens_are_split_as_before(kind: str, tmp_path: Path) -> None:
    whole = trained(kind)
    used = {i for ids in whole(TEXTS[:3])["input_ids"] for i in ids}
    kept = kept_tokens(whole, used)
    small = smaller_tokenizer(whole, kept.tolist())
    assert used <= set(kept.tolist()) and len(small) == len(kept) < len(whole)
    small.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    same = 0
    for text in TEXTS + MORE:
        before = whole(text)["input_ids"]
        for one in (small, again):
            after = kept[np.array(one(text)["input_ids"])].tolist()
            if set(before) <= set(kept.tolist()):
                assert after == before
                same += 1
            assert (after[0], after[-1]) == (before[0], before[-1])
    assert same >= 6
    pair = [one("a film", "great") for one in (whole, small)]
    assert pair[0]["token_type_ids"] == pair[1]["token_type_ids"]
    for name in ("pad", "cls", "sep", "unk"):
        number = getattr(small, f"{name}_token_id")
        assert kept[number] == getattr(whole, f"{name}_token_id")


def test_a_token_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(DataError, match=r'words\.txt: "flim" is no token of'):
        numbers_of(trained("WordPiece"), ["film", "flim"], "words.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("vocabulary")
    torch.manual_seed(0)
    whole = trained("WordPiece")
    sizes: Any = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(whole), max_position_embeddings=40, **sizes)
    BertForSequenceClassification(config).save_pretrained(path / "model")
    whole.save_pretrained(path / "model")
    for name, texts in (("train", TEXTS[:3] * 12), ("test", TEXTS)):
        rows = "".join(f"{text}\t{'great' in text:d}\n" for text in texts)
        (path / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    return path


def recipe(folder: Path, **data: Any) -> Any:
    return parse_recipe(
        {
            "run": {"device": "cpu", "threads": 1},
            "model": {
                "factory": "hf:sequence-classification",
                "arguments": {"path": str(folder / "model"), "num_labels": 2},
            },
            "data": {
                "train": str(folder / "train.tsv"), "test": str(folder / "test.tsv"), "batch_size": 8,
                "keep_tokens": True, **data,
            },
            "prune": [{"kind": "neurons", "include": ["*intermediate*"]}],
            "budget": {"macs": 0.9, "round_to": 1},
            "schedule": {"sparse": "4it", "heal": "4it"},
            "train": {"optimizer": "adamw", "lr": 1e-3},
            "bench": {"threads": [1]},
        },
        "x",
    )  # fmt: skip


def test_a_run_from_the_first_step_to_the_report(folder: Path, tmp_path: Path) -> None:
    file, run = tmp_path / "x.toml", RunDirectory(tmp_path / "run")
    file.write_text(recipe(folder).to_toml())
    told = CliRunner().invoke(app, ["run", str(file), "--run", str(run), "--force"])
    assert told.exit_code == 0, told.output
    assert "of 5 texts of test.tsv hold others" in told.output
    report = Report.load(run.report)
    assert report.equivalence.max_relative < 1e-4
    assert report.repacked.onnx is not None and report.repacked.onnx.max_relative < 1e-4
    whole, data = build_model(recipe(folder).model)[0].eval(), build_data(recipe(folder))
    assert report.whole is not None and report.whole.parameters == sum(p.numel() for p in whole.parameters())
    assert data.tokens is not None
    rows = len(data.tokens.numbers)
    small = sslprune.load(run.program)
    tokenizer = load_tokenizer(str(run.tokenizer))
    assert len(tokenizer) == rows < len(load_tokenizer(str(folder / "model")))
    assert small.state_dict()["bert.embeddings.word_embeddings.weight"].shape == (rows, 16)
    own: Any = sslprune.apply_plan(build_model(recipe(folder).model)[0], run.path).eval()
    inputs: Any = tokenizer(["the film was great"], return_tensors="pt", return_token_type_ids=False)
    assert own.config.vocab_size == rows
    torch.testing.assert_close(own(**inputs).logits, small(**inputs)["logits"])
    told = CliRunner().invoke(app, ["predict", str(run), "a dull film"])
    assert told.exit_code == 0, told.output


def test_the_cut_model_says_the_same_of_the_same_texts(folder: Path) -> None:
    data, (whole, _) = build_data(recipe(folder)), build_model(recipe(folder).model)
    prepared = prepare(whole.eval(), data)
    assert data.tokens is not None and prepared.plan is not None
    kept = torch.tensor(data.tokens.numbers)
    inputs, _ = next(iter(data.test))
    assert isinstance(inputs, dict)
    small = prepared.model(**inputs).logits
    torch.testing.assert_close(small, whole(**(inputs | {"input_ids": kept[inputs["input_ids"]]})).logits)
    embedding: Any = prepared.model.get_submodule("bert.embeddings.word_embeddings")
    assert embedding.padding_idx == 0 and embedding.num_embeddings == len(kept)
    assert fitted(prepared.model, data) is prepared.model
    other: Any = fitted(whole, data)
    assert other.config.vocab_size == len(kept)


def test_a_file_that_is_not_there_is_one_line(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.keep_tokens: none\.txt: no such file; expected a token a line"):
        build_data(recipe(folder, keep_tokens="none.txt"))


def test_tokens_of_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("film\nthe\ngreat\n")
    data = build_data(recipe(folder, keep_tokens=str(tmp_path / "words.txt")))
    assert data.tokens is not None
    names = load_tokenizer(str(folder / "model")).convert_ids_to_tokens(list(data.tokens.numbers))
    assert {"film", "the", "great", *SPECIAL, "[LAST]", "f"} <= set(names) and "dull" not in names


class Knows(nn.Module):
    """Reads a token by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(30, 4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.out((self.words(input_ids) * (input_ids != 9).unsqueeze(-1)).sum(1))


class Counts(nn.Module):
    """Counts the words of a text by their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Linear(30, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.words(nn.functional.one_hot(input_ids, 30).sum(1).float())


@pytest.mark.parametrize(
    ("model", "kept", "said"),
    [
        (Knows(), [0, 3, 9, 12], "its own code knows a token by its number"),
        (Knows(), [0, 31], "has 30 rows; token 31 is none of them"),
        (Counts(), [0, 3], "looks input_ids up in no embedding"),
    ],
)
def test_models_that_cannot_lose_rows(model: nn.Module, kept: list[int], said: str) -> None:
    ids = torch.tensor([[0, 1, 1], [1, 0, 0]]) if len(kept) < 4 else torch.tensor([[0, 2, 1], [2, 3, 3]])
    program = sslprune.trace(model.eval(), (), {"input_ids": ids})
    with pytest.raises(RepackError, match=said):
        keep_tokens(model, program, kept)
