"""Labelled text out of Hugging Face datasets: the same rows and batches as out of files."""

from pathlib import Path
from typing import Any

import pytest

from sslprune.data.hub import read_dataset
from sslprune.errors import DataError, RecipeError
from sslprune.recipe import parse_recipe

datasets = pytest.importorskip("datasets")

ROWS = {"sentence": ["the film was good", "a dull one", "very fine"], "label": [1, 0, 1]}


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    labels = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["-", "+"])})
    splits = {name: datasets.Dataset.from_dict(ROWS, features=labels) for name in ("train", "validation")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    splits["train"].save_to_disk(tmp_path / "lone")
    (tmp_path / "parquet").mkdir()
    for name, split in splits.items():
        split.to_parquet(tmp_path / "parquet" / f"{name}.parquet")
    return tmp_path


def test_folders(saved: Path) -> None:
    wanted = [(i, {"sentence": s, "label": n}) for i, (s, n) in enumerate(zip(*ROWS.values(), strict=True))]
    for folder, split in (("saved", "validation"), ("lone", "train"), ("parquet", "validation")):
        assert read_dataset(str(saved / folder), None, split) == wanted


def test_bad_input_is_one_line(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def failure(*arguments: str | None) -> str:
        with pytest.raises(DataError) as error:
            read_dataset(*arguments)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        return str(error.value)

    assert 'no split "test"; it has train, validation' in failure(str(saved / "saved"), None, "test")
    assert "could not be had from the hub" in failure("someone/absent-data", None, "train")
    (saved / "empty").mkdir()
    assert str(saved / "empty") in failure(str(saved / "empty"), None, "train")


def test_the_batches_of_a_file(saved: Path) -> None:
    pytest.importorskip("transformers")
    import transformers

    from sslprune.data import build_data

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(ROWS["sentence"]).split()]  # type: ignore[arg-type]
    (saved / "vocab.txt").write_text("\n".join(dict.fromkeys(words)))
    library: Any = transformers
    made = library.BertTokenizerFast(vocab=str(saved / "vocab.txt"), model_max_length=16)
    made.save_pretrained(saved / "tokenizer")

    def batches(**data: str):
        return list(build_data(parse_recipe(recipe(data | {"tokenizer": str(saved / "tokenizer")}))).test)

    files = {name: str(saved / "parquet" / f"{name}.parquet") for name in ("train", "validation")}
    ours = batches(dataset=str(saved / "saved"), train="train", test="validation")
    theirs = batches(train=files["train"], test=files["validation"])
    assert ours[0][0]["input_ids"].tolist() == theirs[0][0]["input_ids"].tolist()
    assert ours[0][1].tolist() == theirs[0][1].tolist() == [1, 0, 1]  # sorted by length
    with pytest.raises(DataError, match='no column "body"'):
        batches(dataset=str(saved / "saved"), train="train", test="validation", text="body")


def test_what_takes_no_dataset() -> None:
    for data in (
        {"dataset": "x", "train": "a", "test": "b", "task": "language-modelling"},
        {"subset": "sst2", "train": "a", "test": "b"},
    ):
        with pytest.raises(RecipeError, match="dataset"):
            parse_recipe(recipe(data))


def recipe(data: dict[str, str]) -> dict:
    return {
        "run": {"device": "cpu"},
        "model": {"factory": "sslprune.zoo:digits_cnn"},
        "data": data,
        "prune": [{"kind": "neurons"}],
        "budget": {"macs": 0.5},
        "schedule": {"sparse": "1ep", "heal": "1ep"},
    }
