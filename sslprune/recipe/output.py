"""What is written and judged: ``[export]``, ``[bench]``, ``[gates]``, ``[[gate]]`` and ``[[control]]``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from sslprune.recipe.fields import (
    FACTORY,
    FILE,
    Arguments,
    BatchSize,
    Count,
    Length,
    Positive,
    Repetitions,
    Section,
    Threads,
)
from sslprune.values.bounds import MOST

Quantized = Literal["int8-dynamic", "int8-static", "fp16", "bf16"]


class ExportSection(Section):
    """The files to deploy: ONNX, and a Hugging Face directory where it is asked for."""

    huggingface: bool = False
    """Whether RUN/export/huggingface is written, for a model of transformers whose widths are uniform (see `tie`)."""
    deci: bool = False
    """Whether RUN/export/deci is written: a causal language model as Llama whose layers differ, for llama.cpp, vLLM."""
    decoder: bool = False
    """Whether RUN/export/decoder.onnx is written: a causal language model of transformers with past keys and values."""
    opset: int | None = Field(default=None, ge=17)
    """The version of ONNX's operators; left out: what the exporter writes."""
    input_names: list[str] = []
    """Of the files' inputs, in order; empty: those of the model's forward."""
    output_names: list[str] = []
    """Of the files' outputs, in order; empty: those that the exporter gives."""
    dynamic_axes: dict[str, str] = {}
    """New names of open dimensions (`batch`, `sequence`, `rows_2`): `{ batch = "N" }`."""
    quantize: Annotated[list[Quantized], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []
    """Variants on top of the repacked model."""
    calibration: Count = 256
    """Training samples that "int8-static" looks at."""


class BenchSection(Section):
    """What is timed, and how."""

    batch_sizes: list[BatchSize] = []
    """Samples a call; empty: 1 and data.batch_size. A budget in latency is at the first."""
    lengths: list[Length] = []
    """Steps of sequences, where the model takes any; empty: those of a test batch."""
    repetitions: Repetitions = 30
    """The least number of rounds in turns."""
    threads: list[Threads] = [1, 0]
    """CPU threads; 0: all."""
    runtimes: list[Literal["onnxruntime", "tensorrt", "torch", "torch.compile"]] = ["onnxruntime"]
    """Who runs the models."""


class LogSection(Section):
    """Who else is told how training goes; RUN/train/log.jsonl always is. A logger that fails is a warning."""

    tensorboard: bool = False
    """Event files in RUN/train/tensorboard."""
    mlflow: bool = False
    """At MLFLOW_TRACKING_URI, or in the folder mlruns; the report is an artifact of the run."""
    wandb: bool = False
    """Weights & Biases; the report is a file of the run."""
    project: str = Field(default="sslprune", min_length=1)
    """MLflow's experiment, and the project of Weights & Biases."""


class GatesSection(Section):
    """Gates on the repacked model; a gate that is missed makes the exit status 3."""

    max_metric_drop: float | None = None
    """Points below the dense model, in any metric."""
    min_metric: float | None = None
    """Of the first metric."""
    max_metric: float | None = None
    """Of the first metric, for a loss or a perplexity."""
    min_speedup: Positive | None = None
    """Over the dense model, in ONNX Runtime on the CPU at data.batch_size."""
    max_macs: Positive | None = None
    """The fraction of the dense model's."""
    max_parameters: Annotated[int, Field(ge=1, le=MOST**2)] | None = None
    """The number of them."""
    max_file_bytes: Annotated[int, Field(ge=1, le=MOST**2)] | None = None
    """Bytes of the ONNX file."""
    max_output_difference: Positive | None = 1e-4
    """How far its output is from the masked model's, relative to the largest output."""


class GateSection(GatesSection):
    """Gates on one variant, and which of its timings `min_speedup` holds for: all that fit."""

    variant: str = "repacked"
    """An entry of export.quantize, the name of a `[[control]]`, or "repacked"."""
    device: str = "cpu"
    """Where it is timed: "cpu" or "cuda"."""
    runtime: str = "onnxruntime"
    """An entry of bench.runtimes."""
    batch_size: BatchSize | None = None
    """Samples a call; left out: data.batch_size."""
    threads: Threads | None = None
    """CPU threads, 0: all; left out: whatever was measured."""
    max_output_difference: Positive | None = None
    """How far its output is from the repacked model's, relative to the largest output."""


class ControlSection(Section):
    """A model that a person would pick instead, measured beside the dense and the repacked one."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """What reports call it."""
    factory: Annotated[str | None, FACTORY] = None
    """As `model.factory`."""
    arguments: Arguments = {}
    """As `model.arguments`."""
    checkpoint: Annotated[str | None, FILE] = None
    """As `model.checkpoint`."""
    key: str | None = None
    """As `model.key`."""
    onnx: Annotated[str | None, FILE] = None
    """An ONNX file, instead of a factory."""

    @model_validator(mode="after")
    def _one_source(self) -> ControlSection:
        if (self.factory is None) == (self.onnx is None):
            raise ValueError("give either a factory or an onnx file")
        return self
