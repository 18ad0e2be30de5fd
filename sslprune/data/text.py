"""Plain text for language models: one sentence a line, words between spaces, ``<eos>`` after each line.

Training reads the text as ``batch_size`` parallel streams, ``steps`` words at a time, in order, so that a model's state
can be carried from batch to batch. Evaluation reads it as one stream, and predicts every word of the file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslprune.data.batches import Batch, Data
from sslprune.data.foreign import reading
from sslprune.data.kept import KeptTokens, tokens_left
from sslprune.data.samples import Encoder, lines_in, probabilities, read_lines
from sslprune.data.tokens import LONGEST, TokenData, token_encoder
from sslprune.data.tokens import reopen as reopen_tokens
from sslprune.errors import DataError, RunError
from sslprune.files import write_text
from sslprune.models.huggingface import PREFIX, longest_of
from sslprune.models.vocabulary import smaller_tokenizer
from sslprune.recipe import Recipe, RunningTextSection
from sslprune.values.inputs import Inputs
from sslprune.values.metrics import IGNORED
from sslprune.values.tasks import Task
from sslprune.values.voice import Voice

END, UNKNOWN = "<eos>", "<unk>"
VOCABULARY = "vocabulary.json"
NEXT_WORDS = 5  # of an answer
SHORT = 512  # steps that any text may be padded to


class Vocabulary:
    """Words and their ids: ``words[id]``, ``ids[word]``; ``<eos>`` is always one of them."""

    def __init__(self, words: Sequence[str], source: str | Path) -> None:
        self.words, self.source = tuple(words), source
        self.ids = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def of(cls, lines: Sequence[str], source: str | Path = "the text") -> Vocabulary:
        """Every word of a text, the most frequent first, words as frequent in alphabetical order."""
        counts = Counter(word for line in lines for word in line.split())
        counts[END] += len(lines)
        return cls(sorted(counts, key=lambda word: (-counts[word], word)), source)

    @classmethod
    def read(cls, path: str | Path) -> Vocabulary:
        """A file of words: one a line, or a JSON list. Raises DataError for one that is empty or has a word twice."""
        lines = read_lines(path)
        with reading(path, "JSON list of words"):
            words = json.loads("\n".join(lines)) if Path(path).suffix == ".json" else [line.strip() for line in lines]
        if not isinstance(words, list) or not all(isinstance(word, str) and word.split() == [word] for word in words):
            raise DataError(f"{path}: expected a list of words, one a line and none empty")
        twice = next((word for word, count in Counter(words).items() if count > 1), None)
        if twice is not None:
            raise DataError(f'{path}: "{twice}" stands there twice; expected each word once')
        if END not in words:
            raise DataError(f"{path}: {END} is missing; it follows each line of the text")
        return cls(words, path)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, lines: Sequence[str], source: str | Path) -> Tensor:
        """The ids of a text, shape (words + lines,) int64; raises DataError for a word that it lacks."""
        ids, unknown = [], self.ids.get(UNKNOWN)
        for number, line in enumerate(lines, 1):
            for word in line.split():
                found = self.ids.get(word, unknown)
                if found is None:
                    raise DataError(
                        f'{source}: line {number}: "{word}" is not among the {len(self)} words of {self.source}, '
                        f"which has no {UNKNOWN}; give data.vocabulary, or put {UNKNOWN} in the text"
                    )
                ids.append(found)
            ids.append(self.ids[END])
        return torch.tensor(ids)


class TextBatches:
    """Batches of a text, as ``((words,), next words)``, both (streams, steps) int64, in order, all of one shape.

    Training has many ``streams``, and leaves out what does not fill them. Evaluation (``start`` is the id of ``<eos>``,
    which comes before the text, so that its first word is predicted too) has one. Places after the end are -100.
    With a ``stride`` each batch begins so much later than the last, and what that one has predicted already is -100:
    every word is predicted once, from ``steps - stride`` words or more but at the beginning.
    """

    def __init__(
        self,
        ids: Tensor,
        steps: int,
        streams: int,
        device: torch.device,
        *,
        start: int | None = None,
        stride: int | None = None,
    ) -> None:
        if start is not None:
            ids = torch.cat([torch.tensor([start]), ids])
        length = len(ids) // streams
        self.streams = ids[: length * streams].view(streams, length).to(device)
        self.batch_size = streams
        self.steps, self.stride = steps, stride or steps
        self.overlap = steps - self.stride  # words

    def __len__(self) -> int:
        return 1 + -(-max(0, self.streams.shape[1] - 1 - self.steps) // self.stride)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass, the same each time: a text has but one order."""
        missing = (len(self) - 1) * self.stride + self.steps - (self.streams.shape[1] - 1)
        words, targets = (
            F.pad(self.streams[:, :-1], (0, missing)),
            F.pad(self.streams[:, 1:], (0, missing), value=IGNORED),
        )
        for number in range(len(self)):
            window = slice(number * self.stride, number * self.stride + self.steps)
            wanted = targets[:, window]
            if number and self.overlap:
                wanted = wanted.clone()
                wanted[:, : self.overlap] = IGNORED
            yield (words[:, window],), wanted

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Two streams of ``steps`` words, the first and the last id of the text among them."""
        words = self.streams.flatten()
        two = words[torch.arange(2 * self.steps, device=words.device) % len(words)]
        two[0], two[1] = words.min(), words.max()
        return (two.view(2, self.steps),)


@dataclass(frozen=True)
class TextEncoder(Encoder):
    """A beginning as word ids, with <eos> before it as in training; the answer is how it goes on.

    ``steps``: how many words the model reads at once, where its graph has one length.
    """

    continues = True
    vocabulary: Vocabulary
    steps: int | None = None

    def samples(self, given: str) -> list[str]:
        return lines_in(given)

    @property
    def end(self) -> int:  # type: ignore[override]
        return self.vocabulary.ids[END]

    @property
    def longest_text(self) -> int | None:  # type: ignore[override]
        return self.steps

    @property
    def num_tokens(self) -> int:  # type: ignore[override]
        return len(self.vocabulary)

    def encode(self, sample: str) -> Inputs:
        ids = self.begun(sample)
        if self.steps is not None and len(ids) > self.steps:
            raise DataError(
                f'"{sample[:60]}": {len(ids) - 1} words, this model reads {self.steps - 1} at once; give fewer'
            )
        return self.inputs(ids)

    def text(self, ids: list[int]) -> str:
        return " ".join(self.vocabulary.words[i] for i in ids)

    def told(self, sample: str, logits: np.ndarray) -> dict[str, float]:
        """The likeliest next words, with their probabilities."""
        shares = probabilities(logits[0, len(self.begun(sample)) - 1])
        best = [int(i) for i in np.argsort(-shares, kind="stable")[:NEXT_WORDS] if i < len(self.vocabulary)]
        return {self.vocabulary.words[i]: float(shares[i]) for i in best}

    def save(self, folder: Path) -> None:
        """Write the words, in the order of their ids, as ``vocabulary.json`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / VOCABULARY, json.dumps(self.vocabulary.words, ensure_ascii=False) + "\n")

    def begun(self, sample: str) -> list[int]:
        """<eos> and the words; no <eos> after them."""
        return [self.vocabulary.ids[END], *self.vocabulary.encode([sample], "predict")[:-1].tolist()]


def read(recipe: Recipe, task: Task, device: torch.device, show: Voice) -> Data:
    """The training, validation and test text of a recipe: as words of the vocabulary that it names or the training text
    has, or as tokens of the model's own tokenizer."""
    section = recipe.data
    assert isinstance(section, RunningTextSection)
    source = _tokenizer(recipe)
    if source is not None:
        return _read_tokens(recipe, source, task, device, show)
    if section.keep_tokens:
        raise DataError(
            "data.keep_tokens: the text is read by words, and the model knows those of data.vocabulary, or of the "
            "training text, alone; leave it out"
        )
    lines = read_lines(section.train)
    vocabulary = Vocabulary.read(section.vocabulary) if section.vocabulary else Vocabulary.of(lines, section.train)
    ids, end = vocabulary.encode(lines, section.train), vocabulary.ids[END]
    train, test, valid = _batches(section, ids, lambda path: vocabulary.encode(read_lines(path), path), end, device)
    sequence = None if section.fixed_length else LONGEST
    return Data(train, test, task, sequence, valid, len(vocabulary), _encoder(section, vocabulary))


def _read_tokens(recipe: Recipe, source: str, task: Task, device: torch.device, show: Voice) -> Data:
    section, longest = recipe.data, None
    assert isinstance(section, RunningTextSection)
    if recipe.model.factory.startswith(PREFIX) and isinstance(recipe.model.arguments.get("path"), str):
        longest = longest_of(recipe.model.arguments)
    encoder = token_encoder(section, source, longest)
    name = Path(encoder.tokenizer.name_or_path).name
    whole, ids, tokens = encoder, encoder.ids(section.train), None
    if section.keep_tokens:
        left = tokens_left(section.keep_tokens, ids.numpy(), whole.tokenizer)
        encoder = replace(encoder, tokenizer=smaller_tokenizer(whole.tokenizer, left.tolist()))
        ids, before = encoder.ids(section.train), whole.ids(section.test)
        others = int((~torch.isin(before, torch.from_numpy(left))).sum())
        show.say(
            f"{len(left):,} of {len(whole.tokenizer):,} tokens stay; {others:,} of {len(before):,} tokens of "
            f"{Path(section.test).name} are others, and their words are split anew"
        )
        tokens = KeptTokens(tuple(left.tolist()), _judging(section, before, whole.start, device), said=True)
    train, test, valid = _batches(section, ids, encoder.ids, encoder.start, device)
    show.say(
        f"{Path(section.train).name}: {len(ids):,} tokens of {name}; loss and perplexity are per token, not per word"
    )
    sequence = None if section.fixed_length else encoder.longest
    return TokenData(train, test, task, sequence, valid, encoder=encoder, tokens=tokens)


def _batches(
    section: RunningTextSection, ids: Tensor, encode: Callable[[str], Tensor], start: int | None, device: torch.device
) -> tuple[TextBatches, TextBatches, TextBatches | None]:
    """Training in parallel streams of ``ids``; test and validation text, which ``encode`` reads, in one each."""
    if len(ids) < 2 * section.batch_size:
        raise DataError(
            f"{section.train}: {len(ids)} words are too few for {section.batch_size} parallel streams of two or more; "
            "lower data.batch_size"
        )
    if section.steps > max(len(ids), SHORT):
        raise DataError(f"data.steps: {section.steps:,}, and {section.train} has {len(ids):,} words; give fewer steps")
    test, valid = (
        _judging(section, encode(path), start, device) if path else None for path in (section.test, section.valid)
    )
    assert test is not None
    return TextBatches(ids, section.steps, section.batch_size, device), test, valid


def _judging(section: RunningTextSection, ids: Tensor, start: int | None, device: torch.device) -> TextBatches:
    """A text that is judged on, in one stream, ``start`` before it."""
    return TextBatches(ids, section.steps, 1, device, start=start, stride=section.stride)


def _tokenizer(recipe: Recipe) -> str | None:
    """The directory of the tokenizer; None where the text is read by words."""
    section = recipe.data
    assert isinstance(section, RunningTextSection)
    own = recipe.model.arguments.get("path") if recipe.model.factory.startswith(PREFIX) else None
    return section.tokenizer or (own if section.vocabulary is None and isinstance(own, str) else None)


def reopen(recipe: Recipe, folder: Path, shape: tuple[int | str | None, ...]) -> Encoder:
    """What reads one more text: the vocabulary or the tokenizer that ``save`` wrote into ``folder``."""
    section, file = recipe.data, folder / VOCABULARY
    assert isinstance(section, RunningTextSection)
    if _tokenizer(recipe) is not None:
        return reopen_tokens(section, folder)
    if not file.is_file():
        raise RunError(f"{file}: no vocabulary there; repack this run again")
    return _encoder(section, Vocabulary.read(file))


def _encoder(section: RunningTextSection, vocabulary: Vocabulary) -> TextEncoder:
    return TextEncoder(vocabulary, section.steps if section.fixed_length else None)
