"""Samples through the dense and the repacked model of a run: both answers, side by side, with their times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from sslprune.bench import Contender, interleave
from sslprune.data import Encoder, reopen
from sslprune.errors import RunError
from sslprune.export.file import feeds_of
from sslprune.export.session import open_session
from sslprune.run.directory import RunDirectory
from sslprune.values.inputs import Inputs, arguments
from sslprune.values.outputs import Output

REPETITIONS = 30


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
    paths = (directory.dense_onnx, directory.onnx)
    models = [Contender(path.stem, onnx=path) for path in paths]
    sessions = [open_session(path, threads) for path in paths]
    encoder = reopen(directory.recipe(), directory.tokenizer, models[1].inputs[0].shape)
    index, found = _index_of(sessions[1], directory.recipe().data.output), []
    for sample in (sample for given in samples for sample in encoder.samples(given)):
        inputs = encoder.encode(sample)
        feeds = [_feeds(model, session, inputs) for model, session in zip(models, sessions, strict=True)]
        found.append(_answered(sample, encoder, feeds, sessions, index))
    return found


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


def _feeds(model: Contender, session: onnxruntime.InferenceSession, inputs: Inputs) -> dict[str, np.ndarray]:
    """What the file is fed: the sample, and zeros for a state that it carries."""
    args, kwargs = arguments(inputs)
    states = [wanted for wanted in model.inputs if wanted.state]
    zeros = [np.zeros([size if isinstance(size, int) else 1 for size in s.shape], s.dtype) for s in states]
    return feeds_of(session, (*args, *map(torch.from_numpy, zeros)), kwargs)


def _answered(
    sample: str,
    encoder: Encoder,
    feeds: Sequence[dict[str, np.ndarray]],
    sessions: Sequence[onnxruntime.InferenceSession],
    index: int,
) -> Prediction:
    calls = [lambda s=session, f=given: s.run(None, f) for session, given in zip(sessions, feeds, strict=True)]
    times = 1e3 * np.median(interleave(calls, REPETITIONS), axis=0)
    answers = []
    for call, milliseconds in zip(calls, times, strict=True):
        told = encoder.told(sample, np.asarray(call()[index]))
        label, share = next(iter(told.items()))
        answers.append(Answer(label, share, float(milliseconds), told if encoder.continues else {}))
    return Prediction(sample, *answers)


def _index_of(session: onnxruntime.InferenceSession, wanted: Output) -> int:
    """Where the answer stands among a file's outputs: as the recipe names it, or ``logits``, or the first."""
    names = [node.name for node in session.get_outputs()]
    if isinstance(wanted, int):
        return wanted if len(names) > 1 else 0
    if wanted is not None and len(names) > 1 and wanted not in names:
        raise RunError(f"data.output: {wanted!r} is none of the file's outputs, {', '.join(names)}; give its place")
    return next((names.index(name) for name in (wanted, "logits") if name in names), 0)
