"""Labelled text for transformers, tokenised once.

Classification has one label a text. Tagging has one a word: the text is a list of words (or words between spaces), the
label a list as long; the first piece of a word carries its label, and the others -100. A pair of texts is one sequence
of two segments, which ``token_type_ids`` tell apart where the tokenizer has them (Devlin et al. 2019, figure 2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sslprune.data.batches import Data, hold_out
from sslprune.data.hub import read_dataset
from sslprune.data.kept import KeptClasses, KeptTokens, tokens_left
from sslprune.data.samples import Encoder, likeliest, lines_in
from sslprune.data.sentences import Encoded, SentenceBatches
from sslprune.data.tables import Row, chosen, rows_of
from sslprune.errors import DataError, RunError, few
from sslprune.files import write_text
from sslprune.models.huggingface import check_tokens, load_tokenizer, save_tokenizer
from sslprune.models.vocabulary import smaller_tokenizer
from sslprune.recipe import LabelledTextSection, Recipe
from sslprune.values.bounds import MOST_CLASSES
from sslprune.values.inputs import Inputs
from sslprune.values.metrics import IGNORED
from sslprune.values.tasks import Task
from sslprune.values.voice import Voice

LONGEST = 512  # tokens, where neither recipe nor tokenizer say
LABELS = "labels.json"
MANY = 100  # rows, from which on half as many different labels are no classes
PAIR = "|||"  # between the two texts of a sample, as parallel corpora have it


@dataclass(frozen=True)
class SentenceEncoder(Encoder):
    """Texts as token ids, at most ``longest``; ``tagging``: of words with a label each; ``paired``: of two texts."""

    tokenizer: Any
    longest: int
    tagging: bool = False
    paired: bool = False
    classes: tuple[str, ...] = ()

    def tokens(self, columns: Sequence[Sequence[Any]]) -> Any:
        """What the tokenizer makes of texts, a column or two of them; of lists of words for tagging."""
        options = dict(is_split_into_words=self.tagging, truncation=True, max_length=self.longest)
        return self.tokenizer(*columns, return_attention_mask=False, **options)

    def samples(self, given: str) -> list[str]:
        return lines_in(given)

    def encode(self, sample: str) -> Inputs:
        parts: list[Any] = [part.strip() for part in sample.split(PAIR)] if self.paired else [sample]
        if self.paired and (len(parts) != 2 or not all(parts)):
            raise DataError(f'"{sample}": the model reads pairs of texts; write "first {PAIR} second"')
        made = self.tokens([[words_of(part) if self.tagging else part] for part in parts])
        ids = torch.tensor(made["input_ids"], dtype=torch.int64).reshape(1, -1)
        if not ids.numel():
            raise DataError(f'"{sample}": holds no token')
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.paired and "token_type_ids" in made:
            inputs["token_type_ids"] = torch.tensor(made["token_type_ids"], dtype=torch.int64)
        return inputs

    def told(self, sample: str, logits: np.ndarray) -> dict[str, float]:
        if not self.tagging:
            return super().told(sample, logits)
        words = self.tokens([[words_of(sample)]]).word_ids(0)
        first = [at for at, word in enumerate(words) if word is not None and (not at or words[at - 1] != word)]
        found, shares = likeliest(logits[0, first])
        return {" ".join(self.named(i) for i in found): float(shares.min())}

    def save(self, folder: Path) -> None:
        """Write the tokenizer's own files, and ``labels.json`` with the names of the classes, into ``folder``."""
        save_tokenizer(self.tokenizer, folder)
        write_text(folder / LABELS, json.dumps(list(self.classes), ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class SentenceData(Data):
    """Labelled text, which a model has to suit."""

    def check(self, model: nn.Module) -> None:
        """Raise DataError unless ``model`` knows the tokenizer's tokens, the length of the texts, and the classes."""
        assert isinstance(self.encoder, SentenceEncoder)
        config, classes = getattr(model, "config", None), self.encoder.classes
        check_tokens(self.encoder.tokenizer, model, self.sequence, f"data.max_length: {self.sequence} tokens")
        num_labels = getattr(config, "num_labels", None)
        if num_labels is not None and num_labels < len(classes):
            names = ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
            raise DataError(
                f"the data have {len(classes)} labels ({names}), and the model {num_labels}; set "
                f"model.arguments.num_labels = {len(classes)}"
            )


def read(recipe: Recipe, task: Task, device: torch.device, show: Voice) -> Data:
    """The texts of a recipe, tokenised. Raises DataError, in one line, for files or labels that do not fit."""
    section, arguments = recipe.data, recipe.model.arguments
    assert isinstance(section, LabelledTextSection)
    tagging = task.name == "tagging"
    if tagging and section.text_pair is not None:
        raise DataError('data.text_pair: a pair has one label; expected task = "classification", got "tagging"')
    names = {"train": section.train, "test": section.test} | ({"valid": section.valid} if section.valid else {})
    tables = {
        part: chosen(name, _rows(section, name), section.text, section.label, section.text_pair, lists=tagging)
        for part, name in names.items()
    }
    source = section.tokenizer or (arguments.get("path") if recipe.model.factory.startswith("hf:") else None)
    if source is None:
        raise DataError(
            "data.tokenizer: missing; name a local Hugging Face model directory for its tokenizer; "
            "or, of pictures, their column: data.image"
        )
    classes = tuple(section.labels)
    some: KeptClasses | None = None
    if section.keep_classes:
        classes = classes or classes_of(section.train, tables["train"], tagging)
        some = KeptClasses.of(section.keep_classes, classes, len(classes), section.train)
        tables = {part: _of_some(names[part], rows, some) for part, rows in tables.items()}
        classes = some.names
    if section.hold_out:
        kept, held = hold_out(len(tables["train"]), section.hold_out, section.train)
        every, names["valid"] = tables["train"], section.train
        tables["train"], tables["valid"] = [every[i] for i in kept], [every[i] for i in held]
    classes = classes or classes_of(section.train, tables["train"], tagging)
    of_classes = "data.labels" if section.labels else f"the labels of {Path(section.train).name}"
    encoder = _encoder(section, load_tokenizer(source), classes)
    whole, left = encoder, None
    if section.keep_tokens:
        used = _encode(names["train"], tables["train"], whole, of_classes)[0].ids
        left = tokens_left(section.keep_tokens, used, whole.tokenizer)
        encoder = replace(encoder, tokenizer=smaller_tokenizer(whole.tokenizer, left.tolist()))
    tokenizer, longest = encoder.tokenizer, encoder.longest
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    batches = {}
    for part, rows in tables.items():
        data, cut = _encode(names[part], rows, encoder, of_classes)
        if cut:
            show.say(f"{Path(names[part]).name}: {cut:,} of {len(data):,} texts are cut to {longest} tokens")
        size, seed = (section.batch_size, recipe.run.seed) if part == "train" else (section.eval_batch_size, None)
        batches[part] = SentenceBatches(data, pad, section.pad_to, longest, size, device, seed)
    train, test, valid = (batches.get(part) for part in ("train", "test", "valid"))
    assert train is not None and test is not None
    tokens = None
    if left is not None:
        before, _ = _encode(names["test"], tables["test"], whole, of_classes)
        gone = np.add.reduceat(~np.isin(before.ids, left), before.starts[:-1]) > 0
        show.say(
            f"{len(left):,} of {len(whole.tokenizer):,} tokens stay; {int(gone.sum()):,} of {len(gone):,} texts of "
            f"{Path(names['test']).name} hold others, and are split anew"
        )
        old_pad = whole.tokenizer.pad_token_id if whole.tokenizer.pad_token_id is not None else int(left[pad])
        old = SentenceBatches(before, old_pad, section.pad_to, longest, section.eval_batch_size, device, None)
        tokens = KeptTokens(tuple(left.tolist()), old)
    return SentenceData(train, test, task, longest, valid, encoder=encoder, kept=some, tokens=tokens)


def _of_some(name: str, rows: list[Row], kept: KeptClasses) -> list[Row]:
    """The rows whose label is one of the classes ``kept``; raises DataError where one of them has none."""
    found = [row for row in rows if str(row[2]) in kept.names]
    kept.check((kept.names.index(str(label)) for _, _, label in found), name)
    return found


def reopen(recipe: Recipe, folder: Path, shape: tuple[int | str | None, ...]) -> Encoder:
    """What reads one more text: the tokenizer and the classes that ``save`` wrote into ``folder``."""
    section = recipe.data
    assert isinstance(section, LabelledTextSection)
    if not folder.is_dir():
        raise RunError(f"{folder}: no tokenizer there; repack this run again")
    try:
        classes = tuple(json.loads((folder / LABELS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{folder / LABELS}: missing or damaged; repack this run again") from error
    return _encoder(section, load_tokenizer(str(folder)), classes)


def _encoder(section: LabelledTextSection, tokenizer: Any, classes: tuple[str, ...]) -> SentenceEncoder:
    longest = section.max_length or min(int(tokenizer.model_max_length), LONGEST)
    return SentenceEncoder(tokenizer, longest, section.task == "tagging", section.text_pair is not None, classes)


def _rows(section: LabelledTextSection, name: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a file, or of a split of ``data.dataset``."""
    return rows_of(name) if section.dataset is None else read_dataset(section.dataset, section.subset, name)


def classes_of(path: str, rows: Sequence[Row], tagging: bool) -> tuple[str, ...]:
    """The names of the labels of the training data: numbers count from 0, words stand in alphabetical order.

    Raises DataError for a label that is unlike the others, and for a column that is no label.
    """
    seen: dict[str, int] = {}  # and the row where each stands first
    for row, _, label in rows:
        for part in words_of(label) if tagging else [label]:
            seen.setdefault(str(part), row)
    numbers = [name for name in seen if re.fullmatch(r"[+-]?\d+([.]\d*)?", name)]
    words = [name for name in seen if name not in numbers]
    if numbers and words:
        odd, others, what = (words, numbers, "numbers") if len(words) < len(numbers) else (numbers, words, "words")
        raise DataError(
            f'{path}: row {seen[odd[0]]}: label "{odd[0]}", where others are {what} ({few(others, 4)}); mend it, or '
            "name the classes in data.labels"
        )
    if not tagging and len(rows) >= MANY and 2 * len(seen) > len(rows):
        raise DataError(f"{path}: {len(seen):,} different labels in {len(rows):,} rows; see data.label")
    if not all(name.isdecimal() for name in seen):
        return tuple(sorted(seen))
    most = max(seen, key=int)
    if int(most) >= MOST_CLASSES:
        raise DataError(f"{path}: row {seen[most]}: label {most}; expected labels from 0 to {MOST_CLASSES - 1} at most")
    return tuple(str(i) for i in range(int(most) + 1))


def parts_of(text: Any) -> tuple[Any, ...]:
    """A pair's texts; one text alone otherwise."""
    return text if isinstance(text, tuple) else (text,)


def words_of(value: Any) -> list[Any]:
    return value.split() if isinstance(value, str) else list(value)


def _encode(path: str, rows: Sequence[Row], encoder: SentenceEncoder, of_classes: str) -> tuple[Encoded, int]:
    """The rows of a file as ids, and how many had to be cut."""
    classes, tagging = encoder.classes, encoder.tagging
    numbers = {name: i for i, name in enumerate(classes)}

    def number(label: Any, row: int) -> int:
        found = numbers.get(str(label))
        if found is None:
            known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            raise DataError(f'{path}: row {row}: label "{label}" is not one of {known}: {of_classes}')
        return found

    texts: list[Any] = [words_of(text) if tagging else text for _, text, _ in rows]
    columns: list[Any] = [texts]
    if not tagging:  # one column, or those of pairs
        columns = [[str(part) for part in column] for column in zip(*map(parts_of, texts), strict=True)]
    made = encoder.tokens(columns)
    ids, types = made["input_ids"], None
    lengths = np.array([len(part) for part in ids], np.int64)
    labels: list[int] = []
    if not tagging:
        labels = [number(label, row) for row, _, label in rows]
    for i, (row, _, label) in enumerate(rows if tagging else ()):
        tags = [number(part, row) for part in words_of(label)]
        if len(tags) != len(texts[i]):
            raise DataError(f"{path}: row {row} has {len(texts[i])} words and {len(tags)} labels; expected one a word")
        words = made.word_ids(i)
        labels += [
            IGNORED if word is None or (at and words[at - 1] == word) else tags[word] for at, word in enumerate(words)
        ]
    if not lengths.all():
        raise DataError(f"{path}: row {rows[int(np.argmin(lengths))][0]} holds no token")
    flat = np.fromiter((token for part in ids for token in part), np.int32, int(lengths.sum()))
    if len(columns) > 1 and "token_type_ids" in made:
        types = np.fromiter((kind for part in made["token_type_ids"] for kind in part), np.int8, len(flat))
    encoded = Encoded(flat, np.concatenate([[0], lengths.cumsum()]), np.array(labels, np.int64), types)
    return encoded, int((lengths >= encoder.longest).sum())
