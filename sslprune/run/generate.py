"""How a text goes on: token after token from an ONNX file, with a cache where the file has one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime

from sslprune.data.samples import Encoder, probabilities
from sslprune.export.decoder import Cache


@dataclass(frozen=True)
class Sampling:
    """``tokens`` at most; the likeliest each time, or drawn by the probabilities at a ``temperature`` above 0."""

    tokens: int = 20
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Continued:
    """What a model adds to a text, and how many tokens a second it took."""

    text: str
    tokens: int
    tokens_per_second: float


def cached(session: onnxruntime.InferenceSession) -> Callable[[list[int]], np.ndarray]:
    """What `go_on` asks for the next token of a text that grows, of a decoder's file: it reads what is new alone."""
    cache = Cache(session)
    return lambda ids: cache.tokens(np.array([ids[cache.length :]]))[0, -1]


def go_on(
    encoder: Encoder, sample: str, ask: Callable[[list[int]], np.ndarray], sampling: Sampling, longest: int | None
) -> Continued:
    """How ``sample`` goes on, as far as its end, ``longest`` tokens or ``sampling.tokens``.

    ``ask(ids)`` gives the logits (vocabulary,) of the next token. A file of a graph without a cache reads the text anew
    for each token: the time is for comparing two such files, and one with a cache is faster.
    """
    random = np.random.default_rng(sampling.seed)
    ids = encoder.begun(sample)
    first = len(ids)
    began = time.perf_counter()
    while len(ids) - first < sampling.tokens and (longest is None or len(ids) < longest):
        ids.append(_next(ask(ids)[: encoder.num_tokens], sampling, random))
        if ids[-1] == encoder.end:
            break
    seconds = time.perf_counter() - began
    made = ids[first:]
    return Continued(encoder.text(made), len(made), len(made) / seconds if made else 0.0)


def _next(logits: np.ndarray, sampling: Sampling, random: np.random.Generator) -> int:
    if not sampling.temperature:
        return int(logits.argmax())
    return int(random.choice(len(logits), p=probabilities(logits.astype(np.float64) / sampling.temperature)))
