"""Images held in memory, and reading them from Parquet files in the Hugging Face layout."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslprune.data.foreign import read_parquet, reading, require_file
from sslprune.errors import DataError
from sslprune.files import write_atomic
from sslprune.values.bounds import MOST_CLASSES

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
PICTURE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
PICTURES_ARE = "pictures are read from a folder of a folder for each class, a table of their paths, or a Parquet file"
IMAGE_LAYOUT = "expected image: {bytes, path} and label: int64 (the Hugging Face image layout)"


@dataclass(frozen=True)
class Images:
    """Pictures and their classes: ``pixels`` (n, channels, height, width) uint8, ``labels`` (n,) int64.

    ``names``: those of the classes, in order, where they have some.
    """

    pixels: Tensor
    labels: Tensor
    num_classes: int
    source: str = "images"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.dim() != 4 or self.pixels.dtype != torch.uint8 or len(self.pixels) != len(self.labels):
            shapes = f"{self.pixels.dtype} {tuple(self.pixels.shape)} and {tuple(self.labels.shape)}"
            raise DataError(f"{self.source}: expected uint8 (n, channels, height, width) and (n,) labels; got {shapes}")
        if not len(self.labels):
            raise DataError(f"{self.source}: empty; expected at least one image")
        low, high = int(self.labels.min()), int(self.labels.max())
        if self.num_classes > MOST_CLASSES:
            raise DataError(f"{self.source}: label {high}; expected labels from 0 to {MOST_CLASSES - 1} at most")
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise DataError(f"{self.source}: label {wrong} is out of range; expected 0 to {self.num_classes - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Tensor) -> Images:
        """Some of the images, by their numbers (n,)."""
        return Images(self.pixels[rows], self.labels[rows], self.num_classes, self.source, self.names)


def read_images(path: str | Path, advance: Callable[[int], Any] = lambda count: None) -> Images:
    """Read and decode every row of a Parquet file with an image column ({bytes, path}) and an integer label column.

    The pictures must have one size; grey ones stay of one channel. ``advance`` is told how many rows were decoded.
    Raises DataError for a file that is missing, empty, of another layout, or damaged.
    """
    table, image, label = _open(path)
    names = class_names(table.schema, label)
    with reading(path, "Parquet file of images"):
        labels = np.array(table.column(label).to_numpy(), dtype=np.int64)
        rows = table.column(image).combine_chunks().field("bytes")
    if not len(labels):
        raise DataError(f"{path}: empty; expected at least one image")
    pixels: np.ndarray | None = None
    for row, encoded in enumerate(rows):
        picture = _decode(encoded.as_py(), path, row)
        if pixels is None:
            pixels = np.empty((len(labels), *picture.shape), np.uint8)
        if picture.shape != pixels.shape[1:]:
            first, this = (" x ".join(map(str, shape)) for shape in (pixels.shape[1:], picture.shape))
            raise DataError(f"{path}: row {row} is {this} (height x width x channels), row 0 {first}; set data.size")
        pixels[row] = picture
        if row % 500 == 499:
            advance(500)
    assert pixels is not None
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Images(planes, torch.from_numpy(labels), len(names) or int(labels.max()) + 1, str(path), names)


def count_images(path: str | Path) -> int:
    """The number of rows of a Parquet file of images, without decoding any; checks the layout."""
    return len(_open(path)[0])


def classes_in(path: str | Path) -> tuple[tuple[str, ...], int]:
    """The names of a Parquet file's classes, where it has some, and how many there are; no picture is decoded."""
    table, _, label = _open(path)
    names = class_names(table.schema, label)
    with reading(path, "Parquet file of images"):
        return names, len(names) or int(np.array(table.column(label).to_numpy()).max(initial=-1)) + 1


def _open(path: str | Path) -> tuple[Any, str, str]:
    """The Parquet table with the names of its image and label columns, the latter of whole numbers."""
    import_pyarrow(path)
    import pyarrow

    table, image, label = open_table(path)
    kind = table.schema.field(label).type if label is not None else None
    if label is None:
        raise DataError(f"{path}: columns are {_columns(table)}; {IMAGE_LAYOUT}")
    if not pyarrow.types.is_integer(kind) or table.column(label).null_count:
        raise DataError(f"{path}: column {label} is {kind} with {table.column(label).null_count} nulls; use int64")
    return table, image, label


def import_pyarrow(path: str | Path) -> None:
    """Raise DataError where what reads pictures out of Parquet files is not installed."""
    try:
        import PIL  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise DataError(f"{path}: reading images needs pyarrow and pillow; pip install 'sslprune[images]'") from error


def open_table(path: str | Path, image: str | None = None, label: str | None = None) -> tuple[Any, str, str | None]:
    """The Parquet table with the names of its columns of pictures and of labels; None where it has none of these.

    ``image`` and ``label`` name them, where they are none of the usual ones.
    """
    import_pyarrow(path)
    import pyarrow

    require_file(path, mend="set data.train and data.test to Parquet files, folders or tables", folder=PICTURES_ARE)
    if Path(path).suffix.lower() in PICTURE_FILES:
        raise DataError(f"{path}: one picture; {PICTURES_ARE}")
    table = read_parquet(path, memory_map=True)
    for name, field in ((image, "image"), (label, "label")):
        if name is not None and name not in table.column_names:
            raise DataError(f'{path}: no column "{name}" (data.{field}); it has {", ".join(table.column_names)}')
    image = image or next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    label = label or next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if image is None or not pyarrow.types.is_struct(table.schema.field(image).type):
        raise DataError(f"{path}: columns are {_columns(table)}; {IMAGE_LAYOUT}")
    return table, image, label


def _columns(table: Any) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in table.schema)


def class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The names of the classes that the schema's metadata list; none where they list none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, ValueError, TypeError):
        return ()


def open_picture(path: str, *, grey: bool, size: tuple[int, int] | None) -> np.ndarray:
    """A picture's file as (height, width, channels) uint8, of one channel or three; resized to ``size``, if any."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{path}: reading pictures needs pillow; pip install 'sslprune[images]'") from error
    if not Path(path).is_file():
        raise DataError(f"{path}: no such picture")
    with reading(path, "picture"):
        picture: Any = Image.open(path).convert("L" if grey else "RGB")
        if size is not None and picture.size != size[::-1]:
            picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
        array = np.asarray(picture)
    return array if array.ndim == 3 else array[:, :, None]


def draw_mask(mask: np.ndarray, path: Path) -> str:
    """Write a mask (height, width) of classes as a PNG whose pixels are the classes, in PASCAL VOC's colours."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{path}: writing masks needs pillow; pip install 'sslprune[images]'") from error
    colours = [
        [sum(((i >> (3 * bit + plane)) & 1) << (7 - bit) for bit in range(3)) for plane in range(3)] for i in range(256)
    ]
    picture = Image.fromarray(mask.astype(np.uint8), mode="L")
    picture.putpalette([value for colour in colours for value in colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: picture.save(file, format="PNG"))
    return str(path)


def _decode(encoded: bytes | None, path: str | Path, row: int) -> np.ndarray:
    """One picture as (height, width, channels) uint8."""
    from PIL import Image

    try:
        picture: Image.Image = Image.open(io.BytesIO(encoded or b""))
        picture = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
        array = np.asarray(picture)
    except Exception as error:  # of whichever codec: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{path}: row {row} is not an image that can be decoded") from error
    return array if array.ndim == 3 else array[:, :, None]
