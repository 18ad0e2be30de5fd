"""One model in figures: how large it is, what it scores, how fast it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sslprune.values.measure import Absent, Latency, Record, Speedup


class OnnxCheck(Record):
    """The ONNX file in ONNX Runtime on the test data: its metrics, and its largest relative difference from torch."""

    metrics: dict[str, float]
    max_relative: float
    samples: int


class Decoding(Record):
    """How long a decoder with past keys and values takes for one text: a ``prompt`` of so many tokens at once.

    ``part``: "prompt", all of them with no past, or "token", one more after them; ``samples_per_second`` of a token are
    tokens a second.
    """

    part: Literal["prompt", "token"]
    prompt: int
    dense: Latency
    repacked: Latency
    speedup: Speedup


class Size(Record):
    """One model. ``macs`` are for one sample; ``metrics`` are on the test data after the last epoch.

    ``zeros`` of the parameters are zero, and stay in dense weights: they and their MACs are counted all the same.
    """

    parameters: int
    macs: int
    metrics: dict[str, float]
    zeros: int = 0


class Figures(Size):
    """One model with its ONNX file (of ``file_bytes``) and how fast it runs.

    ``load_ms`` and ``peak_bytes`` are of a fresh process with one thread, one sample, and nothing but the runtime.
    """

    file_bytes: int
    latency: list[Latency | Absent]
    onnx: OnnxCheck | None = None
    load_ms: float | None = None
    peak_bytes: int | None = None


class Variant(Record):
    """A model beside dense and repacked: a quantized one, or a control. ``metrics`` are measured in ONNX Runtime.

    ``max_relative``: how far a quantized model's output is from the repacked model's on the test data. ``speedup`` is
    over the dense model, ``over_repacked`` over the repacked one.
    """

    name: str
    kind: Literal["quantized", "control"]
    file: str
    parameters: int | None
    macs: int | None
    metrics: dict[str, float]
    file_bytes: int
    latency: list[Latency | Absent]
    speedup: list[Speedup | Absent]
    over_repacked: list[Speedup | Absent]
    max_relative: float | None = None
    load_ms: float | None = None
    peak_bytes: int | None = None
    notes: list[str] = []


class Control(Size):
    """A model trained without sparsity beside the run: ``name`` says from where, ``epochs`` for how long."""

    name: str
    epochs: str


def read_controls(files: Sequence[Path]) -> list[Control]:
    """The figures of finished controls."""
    return [Control.load(file) for file in files]
