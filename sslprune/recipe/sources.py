"""The sections of a recipe that say what a run begins with: the device, the model and the data."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, model_validator

from sslprune.recipe.fields import Count, Positive, Section


class RunSection(Section):
    seed: int = Field(default=0, ge=0)
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1"
    threads: int = Field(default=0, ge=0)  # of the CPU; 0: all


class ModelSection(Section):
    factory: str  # "module:callable", "file.py:callable", "hf:<kind>" or a .pt2 file: see sslprune.models.build_model
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
    task: str = "classification"  # or "tagging", "language-modelling": see sslprune.tasks
    metrics: list[str] = []  # of sslprune.tasks.METRICS, or "module:callable"; empty: what the task is judged by
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
