"""What the kinds of data have in common: the sections that those of `sslprune.recipe.data` are made of."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from sslprune.recipe.fields import FACTORY, FILE, Arguments, BatchSize, Positive, Section
from sslprune.values.bounds import MOST


class MetricSection(Section):
    """A metric of your own that needs arguments, or does not say whether more of it is better."""

    metric: Annotated[str, FACTORY]
    """"module:callable" or "file.py:callable": a class of torchmetrics, or what makes a metric."""
    arguments: Arguments | None = None
    """Passed to it by name."""
    lower_is_better: bool | None = None
    """Left out: what the metric itself says."""


class DataSection(Section):
    """What every kind of data reads."""

    KIND: ClassVar[str]
    DOES_NOT: ClassVar[str]  # what an error says of a field that this kind does not read
    INSTEAD: ClassVar[dict[str, str]] = {}  # the mend, where it is not to leave the field out

    batch_size: BatchSize = 128
    """Samples a step; parallel streams of running text."""
    task: Annotated[str, FACTORY] = "classification"
    """What is learned: "classification", "multi-label", "regression", "segmentation", "tagging", "language-modelling",
    "embedding", "distill", or "module:callable" that returns a Task."""
    metrics: Annotated[list[str | MetricSection], FACTORY] = []
    """Those of the task by name, or "module:callable"; empty: what the task is judged by."""
    output: str | int | None = None
    """Of a model that gives several: the output that is trained and judged, by its name or its place."""
    void: int | None = Field(default=None, ge=-MOST, le=MOST)
    """The class of a target that counts for nothing, as -100 does; left out: 255 in segmentation."""

    @classmethod
    def suits(cls, values: dict[str, Any], model: str) -> bool:
        """Whether the table ``values``, not checked yet, and the factory of the model ask for this kind."""
        raise NotImplementedError


class FilesSection(Section):
    """Data that lie in files."""

    train: Annotated[str, FILE]
    """What the model learns from."""
    valid: Annotated[str | None, FILE] = None
    """What the epochs are judged by in place of the test data."""


class TextsSection(FilesSection):
    """Data that lie in files of text."""

    test: Annotated[str, FILE]
    """What is reported, and never chosen by."""
    keep_tokens: Annotated[bool | str, FILE] = False
    """Whether only the tokens that the training texts use stay of the tokenizer's vocabulary; or a file of those that
    do, one a line."""


class FactorySection(Section):
    """Data that are made."""

    factory: Annotated[str, FACTORY]
    """What returns the data: "module:callable" or "file.py:callable"."""
    arguments: Arguments = {}
    """Passed to the factory by name."""


class SamplesSection(DataSection):
    """Samples that stand alone."""

    eval_batch_size: BatchSize = 500
    """Samples a batch of evaluation."""
    hold_out: int = Field(default=0, ge=0, le=MOST)
    """What the epochs are judged by in place of valid: so many training samples, drawn alike for every seed."""

    keep_classes: list[str | int] = []
    """The classes that are needed, by name or number: the model is cut to them, and data of others are left out."""

    @model_validator(mode="after")
    def _some_classes(self) -> Self:
        kept = list(map(str, self.keep_classes))
        if kept and self.task != "classification":
            raise ValueError(f'keep_classes is for task = "classification"; got "{self.task}": leave it out')
        if len(kept) == 1:
            raise ValueError(f'keep_classes has one class, "{kept[0]}"; a choice needs two')
        twice = next((name for name in kept if kept.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f'keep_classes has "{twice}" twice; give it once')
        return self

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if self.hold_out and getattr(self, "valid", None) is not None:
            raise ValueError("hold_out is what the epochs are judged by in place of valid; leave one of them out")
        return self


PLAIN_STEPS = r"flip|pad-crop:[1-9][0-9]{0,3}"
SHARE = r"(0?\.[0-9]+|[01](\.0*)?)"
OTHER_STEPS = (
    rf"random-resized-crop(:{SHARE})?|rand-augment(:([0-9]|[12][0-9]|30))?|mixup(:(?=[0-9.]*[1-9])[0-9]*\.?[0-9]+)?"
)
MORE_STEPS = ', "random-resized-crop:<share>", "rand-augment:<0 to 30>" and "mixup:<α>"'


class PixelsSection(SamplesSection):
    """How pictures become what a model reads."""

    mean: list[float] = [0.0]
    """Of pixels in 0..1, one for each channel or one for all."""
    std: list[Positive] = [1.0]
    """Of pixels in 0..1, one for each channel or one for all."""
    augment: list[str] = []
    """Of training pictures: "flip", "pad-crop:4" (pixels); and, of pictures in files, "random-resized-crop:0.08" (the
    least share of the area), "rand-augment:9" (the magnitude), "mixup:0.2" (α)."""

    STEPS: ClassVar[str] = PLAIN_STEPS

    @model_validator(mode="after")
    def _known_steps(self) -> Self:
        for step in self.augment:
            if not re.fullmatch(self.STEPS, step):
                more = "" if self.STEPS == PLAIN_STEPS else MORE_STEPS
                raise ValueError(f'augment knows "flip" and "pad-crop:<pixels>"{more}; got "{step}"')
        kinds = [step.partition(":")[0] for step in self.augment]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice is not None:
            raise ValueError(f'augment has "{twice}" twice; give it once')
        return self
