"""Samples through the dense and the repacked model of a run: both answers, side by side, with their times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from sslprune.bench import Contender, interleave
from sslprune.data import Encoder, reopen
from sslprune.data.batches import task_for
from sslprune.errors import RunError, printable
from sslprune.export.file import feeds_of
from sslprune.export.session import open_session
from sslprune.run.directory import RunDirectory
from sslprune.run.generate import Sampling, cached, go_on
from sslprune.values.inputs import Inputs, arguments
from sslprune.values.outputs import Output
from sslprune.values.tasks import Task

REPETITIONS = 30


@dataclass(frozen=True)
class Answer:
    """What one model says: the class, its probability, and the median time of one call in milliseconds.

    A model that gives no class says ``values``: numbers, labels with their probabilities, or the shares of a mask's
    classes, whose picture is ``mask``.
    """

    label: str
    probability: float | None
    milliseconds: float
    next_words: dict[str, float] = field(default_factory=dict)  # of a language model: the likeliest, with probabilities
    goes_on: str | None = None  # of a language model: what it adds, token after token ...
    tokens_per_second: float | None = None  # ... and how fast: with a cache where there is decoder.onnx
    values: dict[str, float] = field(default_factory=dict)
    mask: str | None = None
    shares: bool = False  # the values are parts of 1


@dataclass(frozen=True)
class Prediction:
    """Both models' answers to one sample."""

    sample: str
    dense: Answer
    repacked: Answer

    def values(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def predict_run(
    run: str | Path, samples: Sequence[str], threads: int = 1, sampling: Sampling | None = None
) -> list[Prediction]:
    """Answer each sample: a sentence, a picture's file, or a text file (.txt) of one sentence a line.

    A mask is written as a picture of classes, below ``RUN/predictions``.
    A language model's answer is how the sentence goes on, read from a state of zeros: the likeliest next words, and
    what it adds by ``sampling`` (where it is left out 20 tokens, the likeliest each time): token by token from the
    decoders with a cache, where the run has them, else each from the whole text.

    ONNX Runtime on the CPU, batch 1. Raises RunError where the run has not been exported, DataError for a sample that
    cannot be read or does not suit the model.
    """
    directory = RunDirectory(run)
    directory.require("export")
    paths = (directory.dense_onnx, directory.onnx)
    models = [Contender(path.stem, onnx=path) for path in paths]
    sessions = [open_session(path, threads) for path in paths]
    recipe = directory.recipe()
    encoder = reopen(recipe, directory.tokenizer, models[1].inputs[0].shape)
    task = encoder.task(task_for(recipe.data))
    decoders = (directory.dense_decoder, directory.decoder)
    with_cache = [open_session(path, threads) for path in decoders if all(file.is_file() for file in decoders)]
    index, found = _index_of(sessions[1], task.output), []
    for sample in (sample for given in samples for sample in encoder.samples(given)):
        inputs = encoder.encode(sample)
        feeds = [_feeds(model, session, inputs) for model, session in zip(models, sessions, strict=True)]
        answered = _answered(sample, encoder, task, feeds, sessions, index, directory.predictions)
        if encoder.continues:
            asked = [cached(session) for session in with_cache] or [
                _whole(encoder, model, session, index) for model, session in zip(models, sessions, strict=True)
            ]
            longest = encoder.longest if with_cache else encoder.longest_text
            answered = _continued(answered, encoder, asked, sampling or Sampling(), longest)
        found.append(answered)
    return found


def side_by_side(predictions: Sequence[Prediction]) -> str:
    """For people: each sample with the two answers below it."""
    lines = []
    for p in predictions:
        lines.append(p.sample if len(p.sample) <= 100 else p.sample[:97] + "...")
        for name, answer in (("dense", p.dense), ("repacked", p.repacked)):
            lines.append(f"  {name:<9} {_told(answer)}  {answer.milliseconds:.3f} ms")
            if answer.goes_on is not None:
                lines.append(f"  {'':<9} {answer.goes_on!r}  {answer.tokens_per_second:.0f} tokens/s")
    return "\n".join(lines)


def _told(answer: Answer) -> str:
    """What a model says, in words."""
    shares = answer.next_words or {}
    if answer.probability is not None:
        shares = shares or {answer.label: answer.probability}
    if answer.values and not answer.shares:
        return "  ".join(f"{name}  {value:.4g}".strip() for name, value in answer.values.items())
    words = "  ".join(f"{printable(label)}  {100 * share:.1f} %" for label, share in (answer.values or shares).items())
    return f"{words}  {answer.mask}" if answer.mask else words


def _feeds(model: Contender, session: onnxruntime.InferenceSession, inputs: Inputs) -> dict[str, np.ndarray]:
    """What the file is fed: the sample, and zeros for a state that it carries."""
    args, kwargs = arguments(inputs)
    states = [wanted for wanted in model.inputs if wanted.state]
    zeros = [np.zeros([size if isinstance(size, int) else 1 for size in s.shape], s.dtype) for s in states]
    return feeds_of(session, (*args, *map(torch.from_numpy, zeros)), kwargs)


def _answered(
    sample: str,
    encoder: Encoder,
    task: Task,
    feeds: Sequence[dict[str, np.ndarray]],
    sessions: Sequence[onnxruntime.InferenceSession],
    index: int,
    folder: Path,
) -> Prediction:
    calls = [lambda s=session, f=given: s.run(None, f) for session, given in zip(sessions, feeds, strict=True)]
    times = 1e3 * np.median(interleave(calls, REPETITIONS), axis=0)
    answers = []
    for name, call, milliseconds in zip(("dense", "repacked"), calls, times, strict=True):
        given = np.asarray(call()[index])
        said = task.answer(torch.from_numpy(given), encoder.classes) if given.dtype.kind == "f" else None
        if said is not None:
            mask = None if said.mask is None else encoder.draw(said.mask.numpy(), folder, f"{Path(sample).stem}-{name}")
            first = next(iter(said.values), "")
            answers.append(Answer(first, None, float(milliseconds), values=said.values, mask=mask, shares=said.shares))
            continue
        told = encoder.told(sample, given)
        label, share = next(iter(told.items()))
        answers.append(Answer(label, share, float(milliseconds), told if encoder.continues else {}))
    return Prediction(sample, *answers)


def _whole(
    encoder: Encoder, model: Contender, session: onnxruntime.InferenceSession, index: int
) -> Callable[[list[int]], np.ndarray]:
    """What `go_on` asks for the next token, of a file that reads the whole text each time."""
    return lambda ids: np.asarray(session.run(None, _feeds(model, session, encoder.inputs(ids)))[index])[
        0, len(ids) - 1
    ]


def _continued(
    answered: Prediction,
    encoder: Encoder,
    asked: Sequence[Callable[[list[int]], np.ndarray]],
    sampling: Sampling,
    longest: int | None,
) -> Prediction:
    """The same with what both models add to the sample."""
    answers = []
    for answer, ask in zip((answered.dense, answered.repacked), asked, strict=True):
        made = go_on(encoder, answered.sample, ask, sampling, longest)
        answers.append(replace(answer, goes_on=made.text, tokens_per_second=made.tokens_per_second))
    return Prediction(answered.sample, *answers)


def _index_of(session: onnxruntime.InferenceSession, wanted: Output) -> int:
    """Where the answer stands among a file's outputs: as the recipe names it, or ``logits``, or the first."""
    names = [node.name for node in session.get_outputs()]
    if isinstance(wanted, int):
        return wanted if len(names) > 1 else 0
    if wanted is not None and len(names) > 1 and wanted not in names:
        raise RunError(f"data.output: {wanted!r} is none of the file's outputs, {', '.join(names)}; give its place")
    return next((names.index(name) for name in (wanted, "logits") if name in names), 0)
