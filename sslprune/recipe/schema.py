"""The schema of a recipe.

Every section is a frozen pydantic model that refuses unknown keys. Durations and sizes carry their unit ("5ep",
"200it", points, bytes); fractions are of the dense model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sslprune.recipe.fields import (
    MEASURES,
    Count,
    Duration,
    Falling,
    Fraction,
    Interval,
    Measure,
    NotNegative,
    Positive,
    Section,
    Share,
    Span,
)
from sslprune.recipe.writing import is_section, write_toml


class RunSection(Section):
    seed: int = Field(default=0, ge=0)
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1"
    threads: int = Field(default=0, ge=0)  # of the CPU; 0: all


class ModelSection(Section):
    factory: str  # "module:callable", "file.py:callable", "hf:<kind>" or a .pt2 file: see models.build
    arguments: dict[str, Any] = {}
    checkpoint: str | None = None


class DataSection(Section):
    factory: str | None = None  # "module:callable": see sslprune.data.build_data; instead of train and test
    arguments: dict[str, Any] = {}
    dataset: str | None = (
        None  # labelled text of Hugging Face datasets: a folder or a hub name; train, test: its splits
    )
    subset: str | None = None  # of the dataset, where it has several: "sst2" of glue
    train: str | None = None  # Parquet in the Hugging Face image layout, or labelled text
    test: str | None = None
    mean: list[float] = [0.0]  # of pixels in 0..1, per channel or one for all
    std: list[Positive] = [1.0]
    augment: list[str] = []  # "pad-crop:4", "flip"
    batch_size: Count = 128
    eval_batch_size: Count = 500
    task: str = "classification"  # or "tagging", "language-modelling": see sslprune.values.tasks
    metrics: list[str] = []  # of sslprune.values.tasks.METRICS, or "module:callable"; empty: what the task is judged by
    output: str | int | None = None  # of a model that gives several: the one that is trained and judged; name or place
    valid: str | None = None  # what the epochs are judged by in place of the test data: a file, as train is ...
    hold_out: int = Field(default=0, ge=0)  # ... or as many samples of the training data, drawn alike for every seed
    vocabulary: str | None = None  # of a language model: words, one a line; else those of the training text
    steps: Count = 35  # of a language model: words a batch, and of truncated backpropagation
    fixed_length: bool = False  # of a language model: its graph has one length, as one unrolled in time does
    max_length: Annotated[int, Field(ge=2)] | None = None  # the inputs are sequences (dimension 1), at most this long
    tokenizer: str | None = None  # of labelled text: a Hugging Face model directory; the model's own where it has one
    text: str | None = None  # the columns of labelled text; where left out, those of the usual names ...
    text_pair: str | None = None  # the column of a second text, where the label is that of a pair
    label: str | None = None
    labels: list[str] = []  # ... and the names of the classes, in order; those of the training data
    pad_to: Count = 16  # batches of text are padded to a multiple of this

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        if self.factory is None and (self.train is None or self.test is None):
            raise ValueError("give either train and test (Parquet files) or a factory")
        if self.factory is not None and (self.train is not None or self.test is not None):
            raise ValueError("give either train and test (Parquet files) or a factory, not both")
        if self.dataset is not None and (self.factory is not None or self.task == "language-modelling"):
            raise ValueError("dataset is for labelled text; a factory and a language model take none")
        if self.hold_out and (self.valid is not None or self.task == "language-modelling"):
            raise ValueError(
                "hold_out is for images and labelled text, in place of valid; a text has a file of its own"
            )
        if self.valid is not None and self.factory is not None:
            raise ValueError("valid belongs to train and test; a factory may return a Data with valid in it")
        if self.subset is not None and self.dataset is None:
            raise ValueError("subset needs a dataset")
        for step in self.augment:
            if not re.fullmatch(r"flip|pad-crop:[1-9]\d*", step):
                raise ValueError(f'augment knows "flip" and "pad-crop:<pixels>"; got "{step}"')
        return self


class PruneSection(Section):
    kind: str
    include: list[str] = ["*"]  # globs over axis names
    exclude: list[str] = []
    strength: Positive = 1.0  # relative to the other sections
    min_groups: Count = 1  # of each axis; a whole branch (kind "layers") can always go
    least: Annotated[float, Field(ge=0, lt=1)] = 0.0  # the share of the section's groups, over all its axes, that stays
    allow_inexact: bool = False


class BudgetSection(Section):
    macs: Falling | None = None  # of the dense model; a list is a sweep: each point goes on from the one before it
    parameters: Falling | None = None
    latency: Falling | None = None  # in ONNX Runtime on this machine: bench.batch_sizes' first (or 1), one thread
    round_to: Literal["auto"] | Count = "auto"  # widths stay multiples of this; auto: what is fast on this machine

    @model_validator(mode="after")
    def _one_measure(self) -> BudgetSection:
        if sum(getattr(self, measure) is not None for measure in MEASURES) > 1:
            raise ValueError("give exactly one of macs, parameters and latency")
        return self

    @property
    def given(self) -> bool:
        """Whether there is a budget; without one, ``lasso.strength`` decides how much goes."""
        return bool(self.points)

    @property
    def measure(self) -> Measure:
        return next((measure for measure in MEASURES if getattr(self, measure) is not None), "macs")

    @property
    def points(self) -> tuple[float, ...]:
        """The fractions of a sweep, largest first; one where it is none, and none without a budget."""
        return getattr(self, self.measure) or ()

    @property
    def fraction(self) -> float:
        """What may remain at the end."""
        return self.points[-1]


class ScheduleSection(Section):
    dense: Duration = Span(0, "ep")  # ordinary training first, with a learning-rate schedule of its own
    sparse: Duration
    heal: Duration
    shrink: Interval = None  # how often zero groups leave the model that trains; never: only at the end


class TrainSection(Section):
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.05
    momentum: Share = 0.9
    weight_decay: NotNegative = 1e-4
    nesterov: bool = False
    lr_schedule: Literal["cosine", "step", "one-cycle", "constant"] = "cosine"
    warmup: Duration = Span(0, "it")
    milestones: list[Fraction] = [0.5, 0.75]  # of a "step" schedule: the shares of training at which lr falls ...
    gamma: Fraction = 0.1  # ... to this times what it was
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Positive | None = None
    heal: Literal["continue", "fresh", "rewind"] = (
        "continue"  # the rates of healing: the sparse phase's schedule goes on;
    )
    # a schedule of its own; or the last of the dense phase's (Renda et al. 2020, "learning rate rewinding")
    sparse_lr: Positive | None = None  # the peak of the sparse phase where healing has a schedule of its own; lr
    recalibrate: Duration = Span(
        0, "it"
    )  # batches that batch norms' statistics are taken anew from: a teacher's before
    # it teaches, as a checkpoint's may come from other pictures, and the masked model's when all is done
    loss_factor: Positive = 1.0  # of the loss before its gradient; 35 where a paper sums over 35 steps, as lr then does
    amp: Literal["auto", "bf16", "off"] = "auto"  # bfloat16 in products; auto: on a CUDA device that has it

    @model_validator(mode="after")
    def _sparse_lr(self) -> TrainSection:
        if self.sparse_lr is not None and self.heal == "continue":
            raise ValueError(
                'sparse_lr needs heal = "fresh" or "rewind"; with "continue" both phases share one schedule'
            )
        return self

    @model_validator(mode="after")
    def _nesterov(self) -> TrainSection:
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError('nesterov needs optimizer = "sgd" and a momentum above 0')
        return self


class LassoSection(Section):
    """How the penalty Σ λ_g ‖w_g‖ acts, and how strongly: found for a budget, or ``strength`` as papers give it."""

    method: Literal["proximal", "subgradient"] = "proximal"  # see sslprune.train.lasso
    strength: Positive | None = None  # λ, in place of a budget: what it takes to zero goes, wherever the cost then ends
    weights: Literal["sqrt-size", "equal"] = "sqrt-size"  # λ_g = strength x √(numbers in g), or x 1 as SSL and ISS have
    threshold: Positive = 1e-4  # subgradient: at the end, groups whose root mean square is below it are set to zero
    ratio: NotNegative = 0.2  # the penalty's share of the loss when sparse training begins (PruneTrain: 0.2 to 0.25)
    decay: Count = 120  # steps that a chosen group takes to reach zero
    interval: Count = 20  # steps between choices
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.1  # the share of each axis that always stays


class TeacherSection(Section):
    """``[distill.teacher]``: a model as in ``[model]``, or the dense model of a finished run."""

    run: str | None = None  # its directory; ``teacher = "runs/big"`` is short for it
    factory: str | None = None
    arguments: dict[str, Any] = {}
    checkpoint: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TeacherSection:
        if (self.run is None) == (self.factory is None):
            raise ValueError("give either a run directory or a factory")
        if self.run is not None and (self.arguments or self.checkpoint is not None):
            raise ValueError("a run has its own arguments and checkpoint; give them with a factory")
        return self


class DistillSection(Section):
    temperature: Positive = 4.0
    weight: Share = 0.5
    teacher: Annotated[TeacherSection | None, BeforeValidator(lambda v: {"run": v} if isinstance(v, str) else v)] = (
        None  # the run's own dense model
    )


def _as_table(budget: object) -> object:
    """``budget = [0.5, 0.3]`` is short for macs."""
    return {"macs": budget} if isinstance(budget, int | float | list) else budget


NOT_READ_BY_TRAINING = ("name", "bench", "gates", "gate", "control", "export")
Quantized = Literal["int8-dynamic", "int8-static", "fp16", "bf16"]


class ExportSection(Section):
    opset: int | None = Field(default=None, ge=17)
    input_names: list[str] = []  # of the ONNX files, in order; empty: those of the model's forward
    output_names: list[str] = []
    dynamic_axes: dict[str, str] = {}  # new names of open dimensions: { batch = "N" }
    quantize: Annotated[list[Quantized], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []
    calibration: Count = 256  # training samples that int8-static looks at


class BenchSection(Section):
    batch_sizes: list[Count] = []  # empty: 1 and the recipe's batch; the first is that of a budget in latency
    lengths: list[Annotated[int, Field(ge=2)]] = []  # of sequences, where the model takes any; empty: a test batch's
    repetitions: int = Field(default=30, ge=30)
    threads: list[Annotated[int, Field(ge=0)]] = [1, 0]  # 0: all
    runtimes: list[Literal["onnxruntime", "tensorrt", "torch", "torch.compile"]] = ["onnxruntime"]


class GatesSection(Section):
    """Gates on the repacked model; a gate that is missed makes the exit status 3."""

    max_metric_drop: float | None = None  # points, in any metric, from the dense model
    min_metric: float | None = None  # of the first metric
    max_metric: float | None = None  # likewise, for a loss or a perplexity
    min_speedup: Positive | None = None  # over the dense model, in ONNX Runtime on the CPU at the recipe's batch
    max_macs: Positive | None = None  # fraction
    max_parameters: Count | None = None
    max_file_bytes: Count | None = None
    max_output_difference: Positive | None = 1e-4  # relative


class GateSection(GatesSection):
    """``[[gate]]``: gates on one variant, and which of its timings ``min_speedup`` holds for (all that fit)."""

    variant: str = "repacked"  # "repacked", an entry of export.quantize, or the name of a [[control]]
    device: str = "cpu"
    runtime: str = "onnxruntime"
    batch_size: Count | None = None  # the recipe's batch
    threads: Annotated[int, Field(ge=0)] | None = None  # 0: all cores; left out: whatever was measured
    max_output_difference: Positive | None = None


class ControlSection(Section):
    """``[[control]]``: a model that a person would pick instead; measured beside the dense and the repacked one."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    factory: str | None = None  # as in [model]
    arguments: dict[str, Any] = {}
    checkpoint: str | None = None
    onnx: str | None = None  # a file, instead of a factory

    @model_validator(mode="after")
    def _one_source(self) -> ControlSection:
        if (self.factory is None) == (self.onnx is None):
            raise ValueError("give either a factory or an onnx file")
        return self


class Sparsifying(Section):
    """The sections of a recipe that say what goes and how, for who trains in a loop of their own."""

    prune: list[PruneSection] = Field(min_length=1)
    budget: BudgetSection = BudgetSection()
    lasso: LassoSection = LassoSection()

    @model_validator(mode="after")
    def _one_strength(self) -> Sparsifying:
        check_strength(self.budget, self.lasso)
        if len(self.budget.points) > 1:
            raise ValueError(f"budget.{self.budget.measure}: a sweep is for a recipe; give one fraction here")
        return self


class Recipe(Section):
    """One run. ``name`` is the stem of the recipe's file unless the file says otherwise."""

    name: str = "run"
    run: RunSection = RunSection()
    model: ModelSection
    data: DataSection
    prune: list[PruneSection] = Field(min_length=1)
    budget: Annotated[BudgetSection, BeforeValidator(_as_table)] = BudgetSection()
    schedule: ScheduleSection
    train: TrainSection = TrainSection()
    lasso: LassoSection = LassoSection()
    distill: DistillSection | None = None
    export: ExportSection = ExportSection()
    bench: BenchSection = BenchSection()
    gates: GatesSection = GatesSection()
    gate: list[GateSection] = []
    control: list[ControlSection] = []

    @model_validator(mode="after")
    def _one_strength(self) -> Recipe:
        check_strength(self.budget, self.lasso)
        return self

    @model_validator(mode="after")
    def _rewound(self) -> Recipe:
        heal, dense = self.schedule.heal, self.schedule.dense
        if self.train.heal == "rewind" and (heal.unit != dense.unit or heal.count > dense.count):
            raise ValueError(
                f'train.heal: "rewind" heals by the last steps of the dense phase, which has {dense}; expected at '
                f"least schedule.heal = {heal}, in the same unit"
            )
        return self

    @model_validator(mode="after")
    def _variants(self) -> Recipe:
        names = [control.name for control in self.control]
        known = ["repacked", *self.export.quantize, *names]
        for index, name in enumerate(["dense", *known]):
            if name in ["dense", *known][:index]:
                raise ValueError(f'"{name}" names two models; control names and export.quantize have to differ')
        for gate in self.gate:
            if gate.variant not in known:
                raise ValueError(
                    f'gate: no variant "{gate.variant}" is built; there are {", ".join(known)}:'
                    " add it to export.quantize, or as a [[control]]"
                )
        return self

    def points(self) -> list[Recipe]:
        """The recipe of each point of a sweep: the sweep as far as that point; the last is this recipe."""
        fractions, budget = self.budget.points, self.budget
        earlier = [budget.model_copy(update={budget.measure: fractions[: i + 1]}) for i in range(len(fractions) - 1)]
        return [self.model_copy(update={"name": f"{self.name}-{b.fraction}", "budget": b}) for b in earlier] + [self]

    def values(self) -> dict[str, Any]:
        """Plain values of every field that has one, defaults included."""
        return self.model_dump(mode="json", exclude_none=True)

    def differences(self, other: Recipe, ignore: Sequence[str] = NOT_READ_BY_TRAINING) -> list[str]:
        """The dotted keys in which two recipes differ, leaving out what training does not read."""
        mine, theirs = dict(_flat(self.values())), dict(_flat(other.values()))
        keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        return [key for key in keys if key.partition(".")[0] not in ignore]

    def to_toml(self) -> str:
        """The recipe as TOML text that ``load_recipe`` reads back to an equal recipe."""
        return write_toml(self.values())


def check_strength(budget: BudgetSection, lasso: LassoSection) -> None:
    """ValueError unless either the budget decides how much goes, or a strength does, with the fields that it reads."""
    if budget.given and lasso.strength is not None:
        raise ValueError(
            f"budget.{budget.measure} and lasso.strength: the one finds λ, the other gives it; leave one of them out"
        )
    if not budget.given and lasso.strength is None:
        raise ValueError(
            "nothing says how much may go: give budget.macs, .parameters or .latency, the fraction that may remain"
            " (0.5), or the penalty's λ as lasso.strength (1e-4)"
        )
    for_budget, for_strength = ("ratio", "decay", "interval"), ("weights", "threshold")
    for name in for_strength if budget.given else for_budget:
        if getattr(lasso, name) != LassoSection.model_fields[name].default:
            reads = "lasso.strength reads it" if budget.given else "a budget reads it"
            raise ValueError(f"lasso.{name}: only {reads}, and there is none; leave it out")
    if lasso.threshold != LassoSection.model_fields["threshold"].default and lasso.method != "subgradient":
        raise ValueError('lasso.threshold: only method = "subgradient" has one; the proximal step gives exact zeros')


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if is_section(value) else None
    if items is None:
        yield prefix, value
    else:
        for key, inner in items:
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
