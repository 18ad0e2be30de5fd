"""Labelled text for transformers: tokenised once, batches padded to a few lengths, in an order of (seed, epoch).

Classification has one label a text. Tagging has one a word: the text is a list of words (or words between spaces), the
label a list as long; the first piece of a word carries its label, and the others -100. A pair of texts is one sequence
of two segments, which ``token_type_ids`` tell apart where the tokenizer has them (Devlin et al. 2019, figure 2).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslprune.data.batches import Batch, Data, hold_out
from sslprune.data.hub import read_dataset
from sslprune.data.tables import chosen, rows_of
from sslprune.errors import DataError
from sslprune.files import write_text
from sslprune.models.huggingface import load_tokenizer, max_positions
from sslprune.recipe import DataSection, Recipe
from sslprune.values.tasks import IGNORED, Task
from sslprune.values.voice import SILENT, Voice

POOL = 50  # batches that are sorted by length together
LONGEST = 512  # tokens, where neither recipe nor tokenizer say


@dataclass(frozen=True)
class Encoded:
    """Texts as token ids, one after the other: text i is ``ids[starts[i]:starts[i + 1]]``; ``labels`` alike."""

    ids: np.ndarray  # (tokens,) int32
    starts: np.ndarray  # (texts + 1,) int64
    labels: np.ndarray  # (texts,), or (tokens,) for tagging, int64
    types: np.ndarray | None = None  # (tokens,) int8: the segment of each token, of pairs of texts

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


class SentenceBatches:
    """Batches of ``({input_ids, attention_mask[, token_type_ids]}, labels)``, padded to multiples of ``pad_to``.

    Training mixes texts of about the same length, and leaves out what does not fill a batch; evaluation takes them
    sorted by length.
    """

    def __init__(
        self, data: Encoded, pad: int, pad_to: int, longest: int, batch_size: int, device: torch.device,
        train_seed: int | None,
    ) -> None:  # fmt: skip
        self.data, self.pad, self.pad_to, self.longest = data, pad, pad_to, longest
        self.batch_size, self.device, self.seed = batch_size, device, train_seed

    def __len__(self) -> int:
        size = len(self.data)
        return max(1, size // self.batch_size) if self.seed is not None else -(-size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass; what is in each batch, and their order, is decided by the seed and ``epoch``."""
        lengths = self.data.lengths
        if self.seed is None:
            order = np.argsort(lengths, kind="stable")
            for start in range(0, len(order), self.batch_size):
                yield self._batch(order[start : start + self.batch_size])
            return
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(lengths))
        batches = []
        for start in range(0, len(order), POOL * self.batch_size):
            pool = order[start : start + POOL * self.batch_size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        batches = [batch for batch in batches if len(batch) == self.batch_size] or batches
        for i in random.permutation(len(batches))[: len(self)]:
            yield self._batch(batches[i])

    @property
    def example(self) -> dict[str, Tensor]:
        """Two texts of the middle length."""
        middle = np.argsort(self.data.lengths, kind="stable")[(len(self.data) - 1) // 2 :][:2]
        inputs, _ = self._batch(np.resize(middle, 2))
        assert isinstance(inputs, dict)
        return inputs

    def _batch(self, rows: np.ndarray) -> Batch:
        data, lengths = self.data, self.data.lengths[rows]
        width = min(-(-int(lengths.max()) // self.pad_to) * self.pad_to, self.longest)
        mask = np.arange(width) < lengths[:, None]  # (rows, width)
        places = np.concatenate([np.arange(data.starts[r], data.starts[r + 1]) for r in rows])
        ids = np.full(mask.shape, self.pad, np.int64)
        ids[mask] = data.ids[places]
        labels: np.ndarray
        if len(data.labels) == len(data):
            labels = data.labels[rows]
        else:
            labels = np.full(mask.shape, IGNORED, np.int64)
            labels[mask] = data.labels[places]
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        if data.types is not None:
            types = np.zeros(mask.shape, np.int64)
            types[mask] = data.types[places]
            inputs["token_type_ids"] = torch.from_numpy(types)
        return {name: value.to(self.device) for name, value in inputs.items()}, torch.from_numpy(labels).to(self.device)


@dataclass(frozen=True)
class SentenceData(Data):
    """Labelled text, with what read it: the tokenizer and the names of the classes."""

    tokenizer: Any = None
    classes: tuple[str, ...] = ()

    def check(self, model: nn.Module) -> None:
        """Raise DataError unless ``model`` knows the tokenizer's tokens, the length of the texts, and the classes."""
        config = getattr(model, "config", None)
        embedded: Any = getattr(model, "get_input_embeddings", lambda: None)
        known = getattr(embedded(), "num_embeddings", None)
        if known is not None and len(self.tokenizer) > known:
            raise DataError(
                f"data.tokenizer: {self.tokenizer.name_or_path} has {len(self.tokenizer):,} tokens, the model's "
                f"embedding {known:,}; name the tokenizer that the model was trained with"
            )
        positions = max_positions(config)
        if positions is not None and self.sequence is not None and self.sequence > positions:
            raise DataError(f"data.max_length: {self.sequence} tokens, the model takes {positions}; lower it")
        num_labels = getattr(config, "num_labels", None)
        if num_labels is not None and num_labels < len(self.classes):
            names = ", ".join(self.classes[:6]) + (", ..." if len(self.classes) > 6 else "")
            raise DataError(
                f"the data have {len(self.classes)} labels ({names}), and the model {num_labels}; set "
                f"model.arguments.num_labels = {len(self.classes)}"
            )

    def save(self, folder: Path) -> None:
        """Write the tokenizer's own files, and ``labels.json`` with the names of the classes, into ``folder``."""
        self.tokenizer.save_pretrained(folder)
        write_text(folder / "labels.json", json.dumps(list(self.classes), ensure_ascii=False) + "\n")


def sentence_data(recipe: Recipe, task: Task, device: torch.device, show: Voice = SILENT) -> SentenceData:
    """The texts of a recipe, tokenised. Raises DataError, in one line, for files or labels that do not fit."""
    section, arguments = recipe.data, recipe.model.arguments
    assert section.train is not None and section.test is not None
    source = section.tokenizer or (arguments.get("path") if recipe.model.factory.startswith("hf:") else None)
    if source is None:
        raise DataError("data.tokenizer: missing; name a local Hugging Face model directory for its tokenizer")
    names = {"train": section.train, "test": section.test} | ({"valid": section.valid} if section.valid else {})
    tables = {
        part: chosen(name, _read(section, name), section.text, section.label, section.text_pair)
        for part, name in names.items()
    }
    if section.hold_out:
        kept, held = hold_out(len(tables["train"]), section.hold_out, section.train)
        whole, names["valid"] = tables["train"], section.train
        tables["train"], tables["valid"] = [whole[i] for i in kept], [whole[i] for i in held]
    tagging = task.name == "tagging"
    if tagging and section.text_pair is not None:
        raise DataError('data.text_pair: a pair has one label; expected task = "classification", got "tagging"')
    classes = tuple(section.labels) or _classes(tables["train"], tagging)
    tokenizer = load_tokenizer(source)
    longest = section.max_length or min(int(tokenizer.model_max_length), LONGEST)
    batches = {}
    for part, rows in tables.items():
        data, cut = _encode(names[part], rows, tokenizer, longest, classes, tagging)
        if cut:
            show.say(f"{Path(names[part]).name}: {cut:,} of {len(data):,} texts are cut to {longest} tokens")
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        size, seed = (section.batch_size, recipe.run.seed) if part == "train" else (section.eval_batch_size, None)
        batches[part] = SentenceBatches(data, pad, section.pad_to, longest, size, device, seed)
    return SentenceData(
        batches["train"], batches["test"], task, longest, batches.get("valid"), tokenizer=tokenizer, classes=classes
    )


def _read(section: DataSection, name: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a file, or of a split of ``data.dataset``."""
    return rows_of(name) if section.dataset is None else read_dataset(section.dataset, section.subset, name)


def _classes(rows: Sequence[tuple[int, Any, Any]], tagging: bool) -> tuple[str, ...]:
    """The names of the labels of the training data: numbers count from 0, words stand in alphabetical order."""
    seen = {str(part) for _, _, label in rows for part in (_words(label) if tagging else [label])}
    if all(name.isdecimal() for name in seen):
        return tuple(str(i) for i in range(max(int(name) for name in seen) + 1))
    return tuple(sorted(seen))


def parts_of(text: Any) -> tuple[Any, ...]:
    """A pair's texts; one text alone otherwise."""
    return text if isinstance(text, tuple) else (text,)


def _words(value: Any) -> list[Any]:
    return value.split() if isinstance(value, str) else list(value)


def _encode(
    path: str, rows: Sequence[tuple[int, Any, Any]], tokenizer: Any, longest: int, classes: Sequence[str], tagging: bool
) -> tuple[Encoded, int]:
    """The rows of a file as ids, and how many had to be cut."""
    numbers = {name: i for i, name in enumerate(classes)}

    def number(label: Any, row: int) -> int:
        found = numbers.get(str(label))
        if found is None:
            known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            raise DataError(f'{path}: row {row}: label "{label}" is not one of {known}; see data.labels')
        return found

    texts: list[Any] = [_words(text) if tagging else text for _, text, _ in rows]
    columns: list[Any] = [texts]
    if not tagging:  # one column, or those of pairs
        columns = [[str(part) for part in column] for column in zip(*map(parts_of, texts), strict=True)]
    options = dict(is_split_into_words=tagging, truncation=True, max_length=longest)
    made = tokenizer(*columns, return_attention_mask=False, **options)
    ids, types = made["input_ids"], None
    lengths = np.array([len(part) for part in ids], np.int64)
    labels: list[int] = []
    if not tagging:
        labels = [number(label, row) for row, _, label in rows]
    for i, (row, _, label) in enumerate(rows if tagging else ()):
        tags = [number(part, row) for part in _words(label)]
        if len(tags) != len(texts[i]):
            raise DataError(f"{path}: row {row} has {len(texts[i])} words and {len(tags)} labels; expected one a word")
        places = made.word_ids(i)
        labels += [
            IGNORED if word is None or (at and places[at - 1] == word) else tags[word] for at, word in enumerate(places)
        ]
    if not lengths.all():
        raise DataError(f"{path}: row {rows[int(np.argmin(lengths))][0]} holds no token")
    flat = np.fromiter((token for part in ids for token in part), np.int32, int(lengths.sum()))
    if len(columns) > 1 and "token_type_ids" in made:
        types = np.fromiter((kind for part in made["token_type_ids"] for kind in part), np.int8, len(flat))
    encoded = Encoded(flat, np.concatenate([[0], lengths.cumsum()]), np.array(labels, np.int64), types)
    return encoded, int((lengths >= longest).sum())
