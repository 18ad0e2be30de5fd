"""What a run learns from and is judged by: ``[data]``."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from sslprune.recipe.fields import FACTORY, FILE, Arguments, BatchSize, Count, Length, Positive, Section


class DataSection(Section):
    """Where the samples are, and how they are read."""

    factory: Annotated[str | None, FACTORY] = None
    """What returns a pair (train, test), "module:callable"; in place of train and test."""
    arguments: Arguments = {}
    """Passed to the factory by name."""
    dataset: str | None = None
    """Labelled text of Hugging Face datasets: a folder, or a name on the hub; train and test are its splits."""
    subset: str | None = None
    """Of the dataset, where it has several: "sst2" of "glue"."""
    train: Annotated[str | None, FILE] = None
    """What the model learns from."""
    test: Annotated[str | None, FILE] = None
    """What is reported."""
    mean: list[float] = [0.0]
    """Of pixels in 0..1, one for each channel or one for all."""
    std: list[Positive] = [1.0]
    """Of pixels in 0..1, one for each channel or one for all."""
    augment: list[str] = []
    """Of training pictures: "pad-crop:4" (pixels), "flip"."""
    batch_size: BatchSize = 128
    """Samples a step."""
    eval_batch_size: BatchSize = 500
    """Samples a batch of evaluation."""
    task: str = "classification"
    """Or "tagging", "language-modelling"."""
    metrics: list[str] = []
    """Of accuracy, f1, matthews, loss and perplexity, or "module:callable"; empty: what the task is judged by."""
    valid: Annotated[str | None, FILE] = None
    """What the epochs are judged by in place of the test data: a file as train is."""
    hold_out: int = Field(default=0, ge=0)
    """What the epochs are judged by: so many samples of the training data, drawn alike for every seed."""
    vocabulary: Annotated[str | None, FILE] = None
    """Of a language model: a file of words, one a line; left out: the words of the training text."""
    steps: Count = 35
    """Of a language model: words a batch, and of truncated backpropagation."""
    fixed_length: bool = False
    """Of a language model: its graph has one length, as one unrolled in time does."""
    max_length: Length | None = None
    """The inputs are sequences (dimension 1), of at most so many tokens."""
    tokenizer: Annotated[str | None, FILE] = None
    """Of labelled text: a Hugging Face model directory; left out: the model's own."""
    text: str | None = None
    """Of labelled text: the column of the text; left out: the first of the usual names."""
    text_pair: str | None = None
    """Of labelled text: the column of a second text, where the label is that of a pair."""
    label: str | None = None
    """Of labelled text: the column of the label; left out: the first of the usual names."""
    labels: list[str] = []
    """Of labelled text: the names of the classes, in order; empty: those of the training data."""
    pad_to: Count = 16
    """Of labelled text: batches are padded to a multiple of so many tokens."""

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
