"""Samples through the dense and the repacked model of a run: both answers, side by side, with their times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from sslprune.bench import Contender, interleave
from sslprune.bench.contenders import feeds_for
from sslprune.data.text import END, VOCABULARY, Vocabulary
from sslprune.errors import DataError, RunError
from sslprune.export.session import open_session
from sslprune.models.huggingface import load_tokenizer
from sslprune.recipe import Recipe
from sslprune.run.directory import RunDirectory

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
REPETITIONS = 30
NEXT_WORDS = 5  # of a language model's answer
PAIR = "|||"  # between the two texts of a sample, as parallel corpora have it


@dataclass(frozen=True)
class Answer:
    """What one model says: the class, its probability, and the median time of one call in milliseconds."""

    label: str
    probability: float
    milliseconds: float
    next_words: dict[str, float] = field(default_factory=dict)  # of a language model: the likeliest, with probabilities


@dataclass(frozen=True)
class Prediction:
    """Both models' answers to one sample."""

    sample: str
    dense: Answer
    repacked: Answer

    def values(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def predict_run(run: str | Path, samples: Sequence[str], threads: int = 1) -> list[Prediction]:
    """Answer each sample: a sentence, a picture's file, or a text file (.txt) of one sentence a line.

    A language model's answer is how the sentence goes on: the likeliest next words, read from a state of zeros.

    ONNX Runtime on the CPU, batch 1. Raises RunError where the run has not been exported, DataError for a sample that
    cannot be read or does not suit the model.
    """
    directory = RunDirectory(run)
    directory.require("export")
    recipe = directory.recipe()
    sessions = [open_session(path, threads) for path in (directory.dense_onnx, directory.onnx)]
    names = [node.name for node in sessions[1].get_inputs()]
    if recipe.data.task == "language-modelling" and recipe.data.factory is None:
        return _continued(directory, [line for sample in samples for line in _lines(sample)], sessions, recipe)
    if "input_ids" in names:
        return _sentences(directory, [line for sample in samples for line in _lines(sample)], sessions, names)
    if len(names) != 1 or len(sessions[1].get_inputs()[0].shape) != 4:
        raise RunError(f"{directory}: predict knows models of text (input_ids) and of pictures; this takes {names}")
    pictures = [{names[0]: _picture(sample, sessions[1], recipe)} for sample in samples]
    return [_answered(name, sessions, feeds, [], recipe) for name, feeds in zip(samples, pictures, strict=True)]


def side_by_side(predictions: Sequence[Prediction]) -> str:
    """For people: each sample with the two answers below it."""
    lines = []
    for p in predictions:
        lines.append(p.sample if len(p.sample) <= 100 else p.sample[:97] + "...")
        for name, answer in (("dense", p.dense), ("repacked", p.repacked)):
            told = answer.next_words or {answer.label: answer.probability}
            shares = "  ".join(f"{label}  {100 * share:.1f} %" for label, share in told.items())
            lines.append(f"  {name:<9} {shares}  {answer.milliseconds:.3f} ms")
    return "\n".join(lines)


def _sentences(
    directory: RunDirectory, lines: Sequence[str], sessions: Sequence[onnxruntime.InferenceSession], names: list[str]
) -> list[Prediction]:
    if not directory.tokenizer.is_dir():
        raise RunError(f"{directory.tokenizer}: no tokenizer there; the data of this run were not read with one")
    tokenizer = load_tokenizer(str(directory.tokenizer))
    labels = json.loads((directory.tokenizer / "labels.json").read_text(encoding="utf-8"))
    recipe = directory.recipe()
    section = recipe.data
    longest = section.max_length or min(int(tokenizer.model_max_length), 512)
    paired = section.text_pair is not None
    found = []
    for line in lines:
        parts = [part.strip() for part in line.split(PAIR)] if paired else [line]
        if paired and (len(parts) != 2 or not all(parts)):
            raise DataError(f'"{line}": the model reads pairs of texts; write "first {PAIR} second"')
        made = tokenizer(*([part] for part in parts), truncation=True, max_length=longest, return_tensors="np")
        if not made["input_ids"].size:
            raise DataError(f'"{line}": holds no token')
        feeds = {name: made[name].astype(np.int64) for name in names}
        found.append(_answered(line, sessions, feeds, labels, recipe))
    return found


def _continued(
    directory: RunDirectory, lines: Sequence[str], sessions: Sequence[onnxruntime.InferenceSession], recipe: Recipe
) -> list[Prediction]:
    file = directory.tokenizer / VOCABULARY
    if not file.is_file():
        raise RunError(f"{file}: no vocabulary there; repack this run again")
    vocabulary = Vocabulary.read(file)
    models = [Contender("", onnx=path) for path in (directory.dense_onnx, directory.onnx)]
    tokens, steps = models[0].inputs[0].name, models[0].inputs[0].shape[1]
    found = []
    for line in lines:  # <eos> goes before a text, as in training, and not after this one
        ids = np.array([[vocabulary.ids[END], *vocabulary.encode([line], "predict").tolist()[:-1]]], np.int64)
        count = ids.shape[1]
        if isinstance(steps, int) and count > steps:
            raise DataError(f'"{line[:60]}": {count - 1} words, this model reads {steps - 1} at once; give fewer')
        if isinstance(steps, int):
            ids = np.pad(ids, ((0, 0), (0, steps - count)))
        feeds = [feeds_for(model, 1, {tokens: ids}) for model in models]
        (dense, repacked), (first, second) = sessions, feeds
        times = interleave([lambda: dense.run(None, first), lambda: repacked.run(None, second)], REPETITIONS)  # noqa: B023
        answers = []
        for session, given, seconds in zip(sessions, feeds, np.median(times, axis=0), strict=True):
            logits = _logits(session, given, recipe)[0, count - 1]
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            best = [int(i) for i in np.argsort(-shares, kind="stable")[:NEXT_WORDS] if i < len(vocabulary)]
            words = {vocabulary.words[i]: float(shares[i]) for i in best}
            label, share = next(iter(words.items()))
            answers.append(Answer(label, share, 1e3 * float(seconds), words))
        found.append(Prediction(line, answers[0], answers[1]))
    return found


def _lines(sample: str) -> list[str]:
    path = Path(sample)
    if path.suffix.lower() in PICTURES and len(sample.split()) == 1:
        raise DataError(f"{sample}: a picture, and the model reads text")
    if path.suffix != ".txt" or len(sample.split()) > 1:
        return [sample]
    if not path.is_file():
        raise DataError(f"{sample}: no such file")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{sample}: empty; expected one sentence a line")
    return lines


def _picture(sample: str, session: onnxruntime.InferenceSession, recipe: Recipe) -> np.ndarray:
    """A picture as the model's input, (1, channels, height, width), resized where the model has one size."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError(f"{sample}: reading pictures needs pillow; pip install 'sslprune[images]'") from error
    if not Path(sample).is_file():
        raise DataError(f"{sample}: no such picture")
    _, channels, height, width = session.get_inputs()[0].shape
    try:
        picture: Any = Image.open(sample).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{sample}: not an image that can be decoded") from error
    if isinstance(height, int) and isinstance(width, int) and picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.float32).reshape(*picture.size[::-1], -1).transpose(2, 0, 1) / 255
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (recipe.data.mean, recipe.data.std))
    return np.ascontiguousarray(((pixels - mean) / std)[None], np.float32)


def _answered(
    sample: str,
    sessions: Sequence[onnxruntime.InferenceSession],
    feeds: dict[str, np.ndarray],
    labels: Sequence[str],
    recipe: Recipe,
) -> Prediction:
    dense, repacked = sessions
    times = interleave([lambda: dense.run(None, feeds), lambda: repacked.run(None, feeds)], REPETITIONS)
    answers = []
    for session, milliseconds in zip(sessions, 1e3 * np.median(times, axis=0), strict=True):
        logits = _logits(session, feeds, recipe)[0]
        logits = logits.reshape(-1, logits.shape[-1])  # (1 or steps, classes)
        chosen = logits.argmax(1)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        words = [labels[i] if i < len(labels) else str(i) for i in chosen]
        answers.append(Answer(" ".join(words), float(shares.max(1).min()), float(milliseconds)))
    return Prediction(sample, answers[0], answers[1])


def _logits(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray], recipe: Recipe) -> np.ndarray:
    """What the file says of the classes: the output that the recipe names, or ``logits``, or the only one there is."""
    names, wanted = [node.name for node in session.get_outputs()], recipe.data.output
    place = wanted if isinstance(wanted, int) else names.index("logits") if "logits" in names else 0
    if isinstance(wanted, str) and len(names) > 1:
        if wanted not in names:
            raise RunError(f"data.output: {wanted!r} is none of the file's outputs, {', '.join(names)}; give its place")
        place = names.index(wanted)
    return np.asarray(session.run([names[min(place, len(names) - 1)]], feeds)[0], np.float64)
