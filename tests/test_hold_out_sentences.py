"""Whole sentences are held out of a file of phrases, and all that stands in them."""

import sys
from pathlib import Path

import pytest

from scripts import hold_out_sentences

ROWS = ["a fine film", "a fine film with wit", "with wit", "dull", "it is dull", "wit", "a fine day"]


def call(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[list[str], list[str]]:
    file = folder / "train.tsv"
    file.write_text("\n".join(["sentence\tlabel", *(f"{row} \t1" for row in ROWS), ""]))
    monkeypatch.setattr(sys, "argv", ["hold_out", str(file), *more])
    hold_out_sentences.main()
    held, rest = ((folder / f"train-{name}.tsv").read_text().splitlines() for name in ("held", "rest"))
    assert held[0] == rest[0] == "sentence\tlabel"
    return [row.split("\t")[0].strip() for row in held[1:]], [row.split("\t")[0].strip() for row in rest[1:]]


@pytest.mark.parametrize("seed", range(4))
def test_no_part_of_what_is_held_out_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    held, rest = call(tmp_path, monkeypatch, "--count", "2", "--seed", str(seed))
    assert len(held) == 2 and set(held) < {"a fine film with wit", "it is dull", "a fine day"}
    assert not [text for text in rest if any(f" {text} " in f" {sentence} " for sentence in held)]
    assert set(ROWS) - set(rest) == {text for text in ROWS if any(f" {text} " in f" {s} " for s in held)}


def test_some_sentences_have_to_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="--count: 3 of 3 sentences; leave some to train on"):
        call(tmp_path, monkeypatch, "--count", "3")
