"""Plain text as a language model's data: words, streams, and what is wrong with a text, in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sslprune.data import build_data, reopen
from sslprune.data.text import TextBatches, Vocabulary
from sslprune.errors import DataError, RunError
from sslprune.models.build import build_model
from sslprune.recipe import parse_recipe
from sslprune.train.evaluate import evaluate
from sslprune.values.carry import with_state
from sslprune.values.metrics import IGNORED
from sslprune.zoo import digits_cnn, lstm_lm
from tests.laws import lively_

CPU = torch.device("cpu")
TEXT = "b a b\na <unk> a a\n\n"


def recipe(folder: Path, text: str = TEXT, test: str = "a b\n", **data: Any) -> Any:
    (folder / "train.txt").write_text(text)
    (folder / "test.txt").write_text(test)
    values = {"task": "language-modelling", "train": str(folder / "train.txt"), "test": str(folder / "test.txt")}
    return parse_recipe(
        {
            "model": {"factory": "sslprune.zoo:lstm_lm", "arguments": {"vocabulary": 4, "hidden": 6}},
            "data": values | {"batch_size": 2, "steps": 3} | data,
            "prune": [{"kind": "hidden"}],
            "budget": {"parameters": 0.5},
            "schedule": {"sparse": "1ep", "heal": "1ep"},
        }
    )


def words_of(inputs: Any) -> torch.Tensor:
    return inputs[0]


def test_a_vocabulary_is_the_words_by_their_number() -> None:
    vocabulary = Vocabulary.of(TEXT.splitlines())
    assert vocabulary.words == ("a", "<eos>", "b", "<unk>")  # four, three, two, one
    assert vocabulary.encode(["b nobody", "", "a"], "x").tolist() == [2, 3, 1, 1, 0, 1]


def test_training_reads_parallel_streams_in_order() -> None:
    batches = TextBatches(torch.arange(17), steps=3, streams=2, device=CPU)
    found = list(batches.epoch(4))
    assert len(found) == len(batches) == 3
    inputs = torch.cat([words_of(args) for args, _ in found], 1)
    targets = torch.cat([target for _, target in found], 1)
    assert inputs[:, :7].tolist() == [[0, 1, 2, 3, 4, 5, 6], [8, 9, 10, 11, 12, 13, 14]]
    assert targets[:, :7].tolist() == [[1, 2, 3, 4, 5, 6, 7], [9, 10, 11, 12, 13, 14, 15]]
    assert (targets[:, 7:] == IGNORED).all() and inputs.shape == (2, 9)


def test_evaluation_predicts_every_word_once(tmp_path: Path) -> None:
    data = build_data(recipe(tmp_path, test="a b\nb\n"))
    targets = torch.cat([target for _, target in data.test], 1)
    assert targets[targets != IGNORED].tolist() == [0, 2, 1, 2, 1]
    assert words_of(next(iter(data.test))[0]).tolist() == [[1, 0, 2]]  # <eos> stands before the text
    assert words_of(data.example).shape == (2, 3)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_perplexity_is_that_of_one_long_pass(tmp_path: Path, steps: int) -> None:
    data = build_data(recipe(tmp_path, test="a b b\nb a\n<unk> b\n", steps=steps))
    model = lively_(lstm_lm(vocabulary=4, hidden=6, dropout=0.5)).eval()
    text = torch.tensor([[1, 0, 2, 2, 1, 2, 0, 1, 3, 2, 1]])
    with torch.no_grad():
        logits = model(*with_state(model, (text[:, :-1],)))[0]
    whole = F.cross_entropy(logits[0].double(), text[0, 1:])
    assert evaluate(model, data.test, data.task)["perplexity"] == pytest.approx(math.exp(whole), rel=1e-5)


def test_a_state_that_is_carried_reads_no_word_twice(tmp_path: Path) -> None:
    data = build_data(recipe(tmp_path, test="a b b\nb a\n", steps=3, stride=2))
    assert len(data.test) == 3 and sum(int((t != IGNORED).sum()) for _, t in data.test) == 7
    with pytest.raises(DataError, match=r"data\.stride: the model carries its state on"):
        data.check(lstm_lm(vocabulary=4, hidden=6))


def test_a_vocabulary_can_be_given(tmp_path: Path) -> None:
    for name, text in (("words.txt", "<eos>\nb\na\n"), ("words.json", json.dumps(["<eos>", "b", "a"]))):
        (tmp_path / name).write_text(text)
        data = build_data(recipe(tmp_path, "a b\n" * 3, vocabulary=str(tmp_path / name)))
        assert data.num_ids == 3
        assert words_of(next(iter(data.train))[0]).tolist() == [[2, 1, 0], [1, 0, 2]]


@pytest.mark.parametrize(
    ("text", "test", "data", "said"),
    [
        ("a b\n" * 9, "a\nb c\n", {}, r'test.txt: line 2: "c" is not among the 3 words of .*train.txt, which has no'),
        ("", "a\n", {}, "train.txt: empty"),
        (TEXT, " \n", {}, "test.txt: empty"),
        ("a b c\n" * 9, "a\n", {"steps": 999}, r"data.steps: 999, and .* has 36 words; give fewer steps"),
        ("a\n", "a\n", {}, "2 words are too few for 2 parallel streams of two or more; lower data.batch_size"),
        (TEXT, "a\n", {"vocabulary": "none.txt"}, "none.txt: no such file"),
        (TEXT, "a\n", {"valid": "gone.txt"}, "gone.txt: no such file"),
    ],
)  # fmt: skip
def test_texts_that_are_refused(tmp_path: Path, text: str, test: str, data: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        build_data(recipe(tmp_path, text, test, **data))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("v.txt", "a\nb\na\n<eos>\n", '"a" stands there twice'),
        ("v.txt", "a\nb\n", "<eos> is missing"),
        ("v.txt", "a b\n<eos>\n", "a list of words"),
        ("v.json", '{"a": 1}', "a list of words"),
        ("v.json", "[", "not a readable JSON list of words"),
        ("v.json", "[" * 99999, "not a readable JSON list of words"),
    ],
)
def test_vocabularies_that_are_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        Vocabulary.read(tmp_path / name)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    (tmp_path / "test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"test.txt: not UTF-8"):
        build_data(made)


@pytest.mark.parametrize("test", ["a b\n", "nothing known\n"])
def test_a_model_of_fewer_words_is_refused(tmp_path: Path, test: str) -> None:
    made = recipe(tmp_path, test=test)
    data = build_data(made)
    data.check(build_model(made.model)[0])
    with pytest.raises(DataError, match=r"4 words, and the model \w+; set model.arguments.vocabulary = 4"):
        data.check(lstm_lm(vocabulary=3, hidden=6))


def test_a_model_of_something_else_is_refused(tmp_path: Path) -> None:
    data = build_data(recipe(tmp_path))
    with pytest.raises(DataError, match=r"the model cannot take the data, inputs of shape \(2, \d+\): RuntimeError: "):
        data.check(digits_cnn(2))


def test_a_beginning_is_encoded_with_eos_before_it(tmp_path: Path) -> None:
    made = recipe(tmp_path, fixed_length=True, steps=5)
    data = build_data(made)
    data.save(tmp_path / "saved")
    for encoder in (data.encoder, reopen(made, tmp_path / "saved", (1, 5))):
        assert words_of(encoder.encode("b a")).tolist() == [[1, 2, 0, 0, 0]]  # padded to the one length
        logits = torch.zeros(1, 5, 4)
        logits[0, 2] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()  # of the last word, not of the padding
        told = encoder.told("b a", logits.numpy())
        assert encoder.continues and list(told) == ["<unk>", "b", "<eos>", "a"] and told["<unk>"] == pytest.approx(0.4)
    with pytest.raises(DataError, match='"a a a a a": 5 words, this model reads 4 at once; give fewer'):
        data.encode("a a a a a")
    free = build_data(recipe(tmp_path))
    assert words_of(free.encode("b a")).tolist() == [[1, 2, 0]]
    with pytest.raises(RunError, match=r"vocabulary.json: no vocabulary there; repack this run again"):
        reopen(made, tmp_path / "nowhere", (1, 5))
