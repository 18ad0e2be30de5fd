"""Timing in turns, and the arithmetic of ratios.

One session has one layout of its memory and one mood of its clock: repeated calls in it agree more closely with each
other than with those of the next. So the calls come in *blocks*, each with models opened afresh, and the interval of a
ratio is bootstrapped over blocks first and over the calls within them second (a two-stage cluster bootstrap: Davison
and Hinkley 1997, section 3.8).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from sslprune.values.measure import Latency, Speedup

WARM_UP = 0.03  # seconds per model and block
ENOUGH = 0.7  # seconds of rounds for each model, beyond the number of repetitions asked for
MOST = 1000  # rounds
SHORT = 0.03  # seconds: a call this short feels what the one before it left in the caches
MOST_BLOCKS, LEAST_BLOCKS = 10, 3
OPENING = 2.0  # seconds that opening models again and again may take


Calls = Sequence[Callable[[], Any]]


def in_blocks(open_all: Callable[[], Calls], repetitions: int) -> list[np.ndarray]:
    """Seconds of each call, as blocks of shape (rounds, models); ``open_all`` is called anew for each block.

    At least ``repetitions`` rounds in all. There are ten blocks, fewer where opening takes long.
    """
    started = time.perf_counter()
    calls = open_all()
    opening = max(time.perf_counter() - started, 1e-6)
    count = max(LEAST_BLOCKS, min(MOST_BLOCKS, int(OPENING / opening)))
    blocks = []
    for index in range(count):
        if index:
            del calls  # memory of the last block, before more is asked for
            calls = open_all()
        blocks.append(interleave(calls, math.ceil(repetitions / count), ENOUGH * len(calls) / count, MOST // count))
    return blocks


def interleave(calls: Calls, repetitions: int, enough: float | None = None, most: int = MOST) -> np.ndarray:
    """Seconds of each call, taken in turns after a warm-up: shape (repetitions or more, len(calls)).

    Who goes first alternates, so that a drift of the clock or a busy neighbour meets all alike. Short calls are
    repeated more often, until they have been watched for ``enough`` seconds. A short call is preceded by one that is
    not timed: alone, too, a model finds its own weights in the caches and not another's.
    """
    enough = ENOUGH if enough is None else enough
    short = []
    for call in calls:
        started = time.perf_counter()
        last = started
        while True:
            call()
            now = time.perf_counter()
            if now - started > WARM_UP:
                break
            last = now
        short.append(now - last < SHORT)
    times: list[list[float]] = []
    order = range(len(calls))
    started = time.perf_counter()
    while len(times) < repetitions or (len(times) < most and time.perf_counter() - started < enough):
        seconds = [0.0] * len(calls)
        for index in order if len(times) % 2 == 0 else reversed(order):
            if short[index]:
                calls[index]()
            before = time.perf_counter()
            calls[index]()
            seconds[index] = time.perf_counter() - before
        times.append(seconds)
    return np.array(times)


def summarize(
    blocks: Sequence[np.ndarray], settings: Sequence[Mapping[str, Any]], against: int = 0
) -> tuple[list[Latency], list[Speedup]]:
    """Medians and 95th percentiles of ``blocks`` in seconds, and each model's speed-up over model ``against``.

    ``settings[i]`` says device, runtime, batch size and threads of model ``i``.
    """
    times = np.concatenate(blocks)
    medians, p95s = np.median(times, axis=0) * 1e3, np.percentile(times, 95, axis=0) * 1e3
    latencies, speedups = [], []
    for i, setting in enumerate(settings):
        latencies.append(
            Latency(
                **setting,
                median_ms=float(medians[i]),
                p95_ms=float(p95s[i]),
                repetitions=len(times),
                samples_per_second=float(setting["batch_size"] / medians[i] * 1e3),
            )
        )
        ratios = [block[:, against] / block[:, i] for block in blocks]
        low, high = median_interval(ratios)
        speedups.append(Speedup(**setting, ratio=float(np.median(np.concatenate(ratios))), low=low, high=high))
    return latencies, speedups


def median_interval(blocks: Sequence[np.ndarray], confidence: float = 0.95, draws: int = 1000) -> tuple[float, float]:
    """Percentile bootstrap interval of the median of all values; the same values give the same interval.

    Blocks are drawn with replacement, then values within each; one block alone is the ordinary bootstrap.
    """
    random = np.random.default_rng(0)
    medians = np.empty(draws)
    for draw in range(draws):
        chosen = random.integers(len(blocks), size=len(blocks)) if len(blocks) > 1 else [0]
        medians[draw] = np.median(
            np.concatenate([blocks[i][random.integers(len(blocks[i]), size=len(blocks[i]))] for i in chosen])
        )
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """This thread, and those that it starts, on ``threads`` cores inside the block, where Linux lets us."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, set(sorted(allowed)[-threads:]))  # the first core serves most interrupts
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
