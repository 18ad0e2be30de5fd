"""What a run learns from and is judged by: ``[data]``, a section for each kind of data.

The file has one table, and what stands in it says which kind it is: ``KINDS``, in this order. A field that only other
kinds read is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from sslprune.recipe.fields import FILE, Count, Fraction, Length, Size, Steps, Workers
from sslprune.recipe.sources import (
    OTHER_STEPS,
    PLAIN_STEPS,
    DataSection,
    FactorySection,
    FilesSection,
    PixelsSection,
    SamplesSection,
    TextsSection,
)
from sslprune.values.bounds import MOST_LENGTH

OF_PICTURES = frozenset({"image", "size", "resize", "channels", "split"})  # which say that a table or dataset has them
TEXT_FILES = (".tsv", ".csv", ".jsonl", ".json")  # of labelled text; a Parquet file may hold pictures as well


class PicturesSection(PixelsSection, FilesSection):
    """Pictures with what is said of each.

    Folders of a folder for each class, tables (.csv, .tsv, .jsonl) of paths and labels, Parquet files in the Hugging
    Face image layout (image {bytes, path}, label), or splits of a dataset.
    """

    KIND = "pictures"
    DOES_NOT = "pictures do not read it"
    STEPS = f"{PLAIN_STEPS}|{OTHER_STEPS}"

    test: Annotated[str | None, FILE] = None
    """What is reported, and never chosen by; left out: the share `split` of the training pictures."""
    split: Fraction | None = None
    """In place of test: the share of the training pictures, of each class, that is not trained on; the same ones for
    every seed."""
    dataset: Annotated[str | None, FILE] = None
    """Hugging Face datasets: a folder, or a name on the hub; train, test and valid are its splits."""
    subset: str | None = None
    """Of the dataset, where it has several."""
    image: str | None = None
    """The column of the picture or of its path; left out: the first of the usual names."""
    label: str | list[str] | None = None
    """The column of the class, label, number or mask; a list of columns for several labels or numbers; left out: the
    first of the usual names."""
    labels: list[str] = []
    """The names of the classes, in order; empty: those of the training data."""
    size: Size | None = None
    """Pixels: pictures are cut to a square of so many, or resized to [height, width]; left out: all have one size."""
    resize: Annotated[int, Field(ge=1, le=MOST_LENGTH)] | None = None
    """Pixels of the shorter side before the middle is cut out; left out: size / 0.875."""
    channels: Literal[1, 3] = 3
    """Of pictures that are not read at once: 1 is grey."""
    workers: Workers | None = None
    """Processes that read pictures; left out: one less than there are cores, 8 at most."""

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        if (self.test is None) == (self.split is None):
            raise ValueError("give either test, or split, the share of train that is tested on, as 0.2")
        if self.subset is not None and self.dataset is None:
            raise ValueError("subset needs a dataset")
        if self.resize is not None and not isinstance(self.size, int):
            raise ValueError("resize is what a square size is cut out of; give size as one number, or leave resize out")
        return self

    def located(self, folder: Path) -> Self:
        found = super().located(folder)
        splits = {key: getattr(self, key) for key in ("train", "test", "valid")}
        return found if self.dataset is None else found.model_copy(update=splits)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of labels that are named."""
        return () if self.label is None else (self.label,) if isinstance(self.label, str) else tuple(self.label)

    @classmethod
    def suits(cls, values: dict[str, Any], model: str) -> bool:
        return True


class LabelledTextSection(SamplesSection, TextsSection):
    """Texts with labels, for transformers: .tsv, .csv, .jsonl or .parquet files, or splits of a dataset.

    Chosen by such a file, by dataset, tokenizer or text, or by a model "hf:<kind>".
    """

    KIND = "labelled text"
    DOES_NOT = "labelled text does not read it"

    dataset: Annotated[str | None, FILE] = None
    """Hugging Face datasets: a folder, or a name on the hub; train, test and valid are its splits."""
    subset: str | None = None
    """Of the dataset, where it has several: "sst2" of "glue"."""
    tokenizer: Annotated[str | None, FILE] = None
    """A Hugging Face model directory; left out: the model's own."""
    max_length: Length | None = None
    """Tokens that a text is cut to; left out: what the tokenizer says, 512 at most."""
    pad_to: Steps = 16
    """Batches are padded to a multiple of so many tokens."""
    text: str | None = None
    """The column of the text; left out: the first of the usual names."""
    text_pair: str | None = None
    """The column of a second text, where the label is that of a pair."""
    label: str | None = None
    """The column of the label; left out: the first of the usual names."""
    labels: list[str] = []
    """The names of the classes, in order; empty: those of the training data."""

    @classmethod
    def suits(cls, values: dict[str, Any], model: str) -> bool:
        if {"tokenizer", "text"} & values.keys():
            return True
        if OF_PICTURES & values.keys() or (model.startswith("hf:") and re.search("image|semantic", model)):
            return False
        return model.startswith("hf:") or "dataset" in values or Path(str(values.get("train"))).suffix in TEXT_FILES

    @model_validator(mode="after")
    def _subset_of(self) -> Self:
        if self.subset is not None and self.dataset is None:
            raise ValueError("subset needs a dataset")
        return self

    def located(self, folder: Path) -> Self:
        found = super().located(folder)
        splits = {key: getattr(self, key) for key in ("train", "test", "valid")}
        return found if self.dataset is None else found.model_copy(update=splits)


class RunningTextSection(DataSection, TextsSection):
    """Plain text for language models, one sentence a line. Chosen by task = "language-modelling"."""

    KIND = "running text"
    DOES_NOT = "running text does not read it"
    INSTEAD = {"hold_out": "give a text of its own as data.valid"}

    task: Literal["language-modelling"]
    """What is learned."""
    vocabulary: Annotated[str | None, FILE] = None
    """A file of words, one a line; left out: those of the tokenizer, or of the training text where there is none."""
    tokenizer: Annotated[str | None, FILE] = None
    """A Hugging Face model directory; left out: that of a model "hf:<kind>"."""
    steps: Steps = 35
    """Words (or tokens) a batch, and of truncated backpropagation."""
    stride: Steps | None = None
    """Of evaluation, for a model without state: so far a window of ``steps`` moves on, and what it has seen before is
    context alone; left out: each window begins anew."""
    fixed_length: bool = False
    """The model's graph has one length, as one unrolled in time does."""

    @classmethod
    def suits(cls, values: dict[str, Any], model: str) -> bool:
        return values.get("task") == "language-modelling"

    @model_validator(mode="after")
    def _one_reader(self) -> Self:
        if self.vocabulary is not None and self.tokenizer is not None:
            raise ValueError("vocabulary and tokenizer both say what a word is; leave one of them out")
        if self.stride is not None and self.stride > self.steps:
            raise ValueError(
                f"stride {self.stride} is beyond steps {self.steps}, so that words would be skipped; lower it"
            )
        return self


class OwnDataSection(PixelsSection, FactorySection):
    """A factory of your own: it returns a pair (train, test) of loaders, datasets or `sslprune.data.Images`, or a Data.

    Chosen by factory. What is about pixels is for Images.
    """

    KIND = "a data factory"
    DOES_NOT = "a data factory does not read it"
    INSTEAD = {"valid": "return a Data with valid in it"}

    label: str | None = None
    """Of loaders of dicts: the key of the targets; left out: the first of the usual names."""
    steps_per_epoch: Count | None = None
    """Of training loaders: batches that are called an epoch; needed where a loader has no length."""
    workers: Workers = 0
    """Of datasets: processes that load samples."""
    max_length: Length | None = None
    """Of loaders: inputs are sequences (dimension 1), of at most so many steps; left out: dimension 1 is fixed."""

    @classmethod
    def suits(cls, values: dict[str, Any], model: str) -> bool:
        return "factory" in values


KINDS: tuple[type[DataSection], ...] = (OwnDataSection, RunningTextSection, LabelledTextSection, PicturesSection)
EVERY_FIELD = {key: field for kind in KINDS for key, field in kind.model_fields.items()}


def _of_its_kind(values: object, info: ValidationInfo) -> object:
    """The table ``[data]`` as the section of its kind.

    A field of another kind that is at its default says nothing: run directories of earlier versions list them all.
    """
    if isinstance(values, DataSection):
        return values
    if not isinstance(values, dict):
        raise ValueError("expected a section")
    values = {key: value for key, value in values.items() if value is not None}
    model = getattr(info.data.get("model"), "factory", "")
    kind = next(kind for kind in KINDS if kind.suits(values, model))
    files = {"train", "test"} & values.keys()
    if kind is OwnDataSection and files:
        raise ValueError("give either train and test (files or folders) or a factory, not both")
    if kind is not OwnDataSection and len(files) < 2 and not ("train" in files and "split" in values):
        raise ValueError("give either train and test (files or folders), or a factory")
    foreign = {key: EVERY_FIELD[key] for key in values if key in EVERY_FIELD and key not in kind.model_fields}
    given = {key: values[key] for key, field in foreign.items() if values[key] != field.get_default()}
    if given:
        raise ValidationError.from_exception_data("data", [_not_read(kind, key, came) for key, came in given.items()])
    return kind.model_validate({key: value for key, value in values.items() if key not in foreign})


def _not_read(kind: type[DataSection], key: str, came: object) -> InitErrorDetails:
    message = f"{kind.DOES_NOT}; {kind.INSTEAD.get(key, 'leave it out')}"
    return InitErrorDetails(type=PydanticCustomError("not_read", "{said}", {"said": message}), loc=(key,), input=came)


AnyData = Annotated[
    PicturesSection | LabelledTextSection | RunningTextSection | OwnDataSection, BeforeValidator(_of_its_kind)
]
