"""How the model gets smaller: what goes and how much, by training or by calibration."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sslprune.recipe.fields import (
    FACTORY,
    FILE,
    MEASURES,
    Arguments,
    Count,
    Damping,
    Duration,
    Falling,
    Fraction,
    Grain,
    Interval,
    Measure,
    NotNegative,
    Positive,
    Section,
    Share,
    Span,
)
from sslprune.values.bounds import MOST_SAMPLES


class PruneSection(Section):
    """One kind of structure that may go; all sections share one budget."""

    kind: str
    """The kind of its axes, as `sslprune inspect` lists them: "filters", "neurons", "heads", ..."""
    include: list[str] = ["*"]
    """Globs over the names of axes."""
    exclude: list[str] = []
    """Globs over the names of axes that stay whole."""
    strength: Positive = 1.0
    """How hard the section is pulled, relative to the other sections."""
    min_groups: Count = 1
    """Groups of each axis that always stay; a whole branch (kind "layers") can always go."""
    least: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the section's groups, over all its axes, that always stays."""
    allow_inexact: bool = False
    """Whether axes may shrink whose removal changes the function."""
    shape: list[Count] | None = None
    """Of kind "blocks": the rows and columns of a tile; left out, [8, 8]."""
    tie: Literal["layers", "indices", "block"] | None = None
    """What goes together: "layers", as many groups of each of the section's axes; "indices", the same ones of each;
    "block", all branches of a layer, for kind "layers"."""

    @field_validator("shape")
    @classmethod
    def _two_sides(cls, shape: list[int] | None) -> list[int] | None:
        if shape is not None and len(shape) != 2:
            raise ValueError("expected [rows, columns] of a tile, as [8, 8]")
        return shape

    def names(self, axis: str) -> bool:
        """Whether the globs mean an axis: by its name, or without the kind behind it ("fc1/rank": "fc1")."""
        alike = {axis, axis.removesuffix(f"/{self.kind}")}
        included, excluded = (
            any(fnmatchcase(one, glob) for one in alike for glob in globs) for globs in (self.include, self.exclude)
        )
        return included and not excluded


class BudgetSection(Section):
    """What may remain of the dense model; exactly one measure. A list is a sweep: each point goes on from the last."""

    macs: Falling | None = None
    """Of multiply-accumulates per sample."""
    parameters: Falling | None = None
    """Of parameters, those that do not train included; buffers are none."""
    latency: Falling | None = None
    """Of milliseconds in ONNX Runtime on this machine, at the first of bench.batch_sizes (or 1), one thread."""
    round_to: Grain = "auto"
    """Widths stay multiples of this; "auto": of what is fast on this machine."""
    nested: bool = False
    """Whether the points of a list are trained together, as one set of weights: each smaller model is a part of the
    larger ones, and `sslprune cut` gives any of them."""

    @model_validator(mode="after")
    def _several_nested(self) -> BudgetSection:
        if self.nested and len(self.points) < 2:
            given = f"{self.measure} = {self.points[0]:g} is one" if self.points else "there is none"
            raise ValueError(f"nested: it takes a falling list of budgets, as macs = [0.6, 0.36]; {given}")
        return self

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
    """How long each phase lasts."""

    dense: Duration = Span(0, "ep")
    """Ordinary training first, with a learning-rate schedule of its own."""
    sparse: Duration
    """Groups go to zero, along a planned curve of cost; of each point of a sweep."""
    heal: Duration
    """The rest trains on, zeros held; of each point of a sweep, and of nested ones once."""
    shrink: Interval = None
    """How often zero groups leave the model that trains; "never": only at the end."""


class CalibrateSection(Section):
    """Choosing what goes, and making up for it, from a few samples, without labels; in place of `[schedule]`, or before
    it."""

    samples: Annotated[int, Field(ge=2, le=MOST_SAMPLES)] = 1024
    """How many of the training samples are looked at."""
    evidence: Literal["second-order", "first-order", "magnitude"] = "second-order"
    """What groups are ranked by: how much the model's own outputs feel them, squared or not, or their weights."""
    repair: Literal["least-squares", "none"] = "least-squares"
    """What is done to the weights that stay."""
    damping: Damping = "auto"
    """Of the repair: how strongly weights are held where they were, times the mean square of what they read; "auto":
    what serves samples best that are held out."""
    target: Literal["outputs"] = "outputs"
    """What the smaller model is to be like: the dense model's outputs."""
    candidates: Annotated[int, Field(ge=1, le=64)] = 3
    """How many ways to reach the budget are repaired; the one whose outputs stay nearest to the dense model's is
    kept."""
    seconds: Positive | None = None
    """No further candidate is begun after so long; left out: all are."""
    memory: Annotated[int, Field(ge=16)] = 1024
    """Megabytes that what the layers make of the samples may take; what is more is kept in temporary files. With little
    of it fewer samples are computed at once."""
    fraction: Fraction | None = None
    """What may remain after it, where `[schedule]` goes on; left out: the budget."""


class ChooseSection(Section):
    """How a budget's sparse training chooses what goes."""

    evidence: Literal["first-order", "magnitude", "second-order", "beta-rank"] = "first-order"
    """What groups are ranked by: what the loss owes to them, squared; their weights; how much the model's own outputs
    feel them; or their weights times what they make of the spread of what they read (Beta-Rank)."""

    @property
    def looks(self) -> bool:
        """Whether batches are looked at for it, beside what training computes anyway."""
        return self.evidence in ("second-order", "beta-rank")


class TrainSection(Section):
    """Optimizer and learning rates."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Who takes the steps."""
    loss: Annotated[str | None, FACTORY] = None
    """One of the task's, "model" for what the model returns itself, or "module:callable" of (outputs, targets); left
    out: the task's first."""
    lr: Positive = 0.05
    """The peak of the learning rate."""
    momentum: Share = 0.9
    """Of "sgd"."""
    weight_decay: NotNegative = 1e-4
    """Of both optimizers; decoupled in "adamw"."""
    nesterov: bool = False
    """Nesterov's momentum, of "sgd"."""
    lr_schedule: Literal["cosine", "linear", "step", "one-cycle", "constant"] = "cosine"
    """How the learning rate falls; "linear" is what transformers are usually fine-tuned with."""
    warmup: Duration = Span(0, "it")
    """How long the learning rate rises first."""
    milestones: list[Fraction] = [0.5, 0.75]
    """Of a "step" schedule: the shares of training at which the learning rate falls."""
    gamma: Fraction = 0.1
    """Of a "step" schedule: what the learning rate is multiplied by at each milestone."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of each target that is spread over all classes."""
    clip_norm: Positive | None = None
    """The largest norm of all gradients together; left out: any."""
    heal: Literal["continue", "fresh", "rewind"] = "continue"
    """The rates of healing: the sparse phase's schedule goes on; one of its own; or the last of the dense phase's
    (Renda et al. 2020, "learning rate rewinding")."""
    sparse_lr: Positive | None = None
    """The peak of the sparse phase where healing has a schedule of its own; left out: lr."""
    recalibrate: Duration = Span(0, "it")
    """Batches that the statistics of batch norms are taken anew from: a teacher's before it teaches, and the masked
    model's at the end."""
    accumulate: Count = 1
    """In how many backward passes a step takes its batch: it needs less memory, and gives the same gradient."""
    compile: bool = False
    """Whether the model that trains is compiled by torch.compile. Steps are shorter then, but for the first ones and
    those after a shrink; a CPU needs a C++ compiler. Not for recurrent layers."""
    compress: Literal["off", "ternary", "powersgd", "fp16", "bf16"] = "off"
    """How processes send gradients: "ternary" as -1, 0 and 1 times a number a tensor (TernGrad), "powersgd" as two
    factors of rank 2 (Vogels et al. 2019), or in 16 bits."""
    sync_batch_norm: bool = False
    """Whether batch norms see the batch of all processes; else each sees its own part of it."""
    loss_factor: Positive = 1.0
    """The loss is multiplied by this before its gradient; 35 where a paper sums over 35 steps."""
    amp: Literal["auto", "bf16", "off"] = "auto"
    """bfloat16 in products; "auto": on a CUDA device that has it. A device without them trains in float32."""

    @field_validator("milestones")
    @classmethod
    def _rising(cls, milestones: list[float]) -> list[float]:
        if any(later <= sooner for sooner, later in pairwise(milestones)):
            raise ValueError("milestones have to rise, as in [0.5, 0.75]")
        return milestones

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
    """How the penalty Σ λ_g ‖w_g‖ acts, and how strongly: found for a budget, or `strength` as papers give it."""

    method: Literal["proximal", "subgradient"] = "proximal"
    """A proximal step after each optimizer step, which gives exact zeros; or the penalty in the gradient."""
    strength: Positive | None = None
    """λ, in place of a budget: what it takes to zero goes, wherever the cost then ends."""
    weights: Literal["sqrt-size", "equal"] = "sqrt-size"
    """Of a given λ: λ_g = strength x √(numbers in g), or x 1 as SSL and ISS have it."""
    threshold: Positive = 1e-4
    """Of "subgradient": groups whose root mean square is below it at the end are set to zero."""
    ratio: NotNegative = 0.2
    """Of a budget: the penalty's share of the loss when sparse training begins (PruneTrain: 0.2 to 0.25)."""
    decay: Count = 120
    """Of a budget: optimizer steps that a chosen group takes to reach zero."""
    interval: Count = 20
    """Of a budget: optimizer steps between choices."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of each axis that always stays."""


class TeacherSection(Section):
    """Another model that teaches: as in `[model]`, or the dense model of a finished run."""

    run: Annotated[str | None, FILE] = None
    """The run's directory; `teacher = "runs/big"` in `[distill]` is short for it."""
    factory: Annotated[str | None, FACTORY] = None
    """As `model.factory`."""
    arguments: Arguments = {}
    """As `model.arguments`."""
    checkpoint: Annotated[str | None, FILE] = None
    """As `model.checkpoint`."""
    key: str | None = None
    """As `model.key`."""

    @model_validator(mode="after")
    def _one_source(self) -> TeacherSection:
        if (self.run is None) == (self.factory is None):
            raise ValueError("give either a run directory or a factory")
        if self.run is not None and (self.arguments or self.checkpoint is not None or self.key is not None):
            raise ValueError("a run has its own arguments and checkpoint; give them with a factory")
        return self


class DistillSection(Section):
    """The sparse and the healing model learn from a teacher's outputs too (Hinton et al. 2015)."""

    temperature: Positive = 4.0
    """What both models' logits are divided by."""
    weight: Share = 0.5
    """The teacher's share of the loss."""
    hidden: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the loss that is the distance of what ``modules`` make to what the teacher's make: mean squared
    errors, summed over the modules (CoFi: Xia et al. 2022, eq. 4). The rest is as without it."""
    modules: list[str] = []
    """Globs over the names of the modules, as ["*.layer.?"]; left out are those that went, and those that never made
    the teacher's size."""
    teacher: Annotated[
        TeacherSection | None,
        BeforeValidator(lambda v: {"run": v} if isinstance(v, str) else v, json_schema_input_type=TeacherSection | str),
    ] = None
    """Who teaches; left out: the run's own dense model."""

    @model_validator(mode="after")
    def _both(self) -> DistillSection:
        if self.hidden and not self.modules:
            raise ValueError('hidden: of which modules is not said; give modules, as modules = ["*.layer.?"]')
        if self.modules and not self.hidden:
            raise ValueError("modules: hidden, their share of the loss, is 0; give it, as hidden = 0.5")
        return self
