"""Where pictures lie: folders of classes, tables of paths, Parquet files, Hugging Face datasets; none of them decoded.

Each gives the picture of a row when it is asked for, so that not all of them are in memory.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sslprune.data.foreign import reading
from sslprune.data.hub import open_dataset
from sslprune.data.images import IMAGE_COLUMNS, LABEL_COLUMNS, PICTURE_FILES, class_names, open_table
from sslprune.data.tables import rows_of
from sslprune.errors import DataError, few

PATH_COLUMNS = (*IMAGE_COLUMNS, "path", "file", "filename", "file_name", "picture")
OF_LABELS = (*LABEL_COLUMNS, "class", "category", "target", "mask")
SPLITS = frozenset({"train", "training", "test", "val", "valid", "validation"})


class Rows(Protocol):
    """Pictures with what is said of each."""

    @property
    def source(self) -> str:
        """What errors call all of them."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of classes that the data themselves have, in their order."""
        ...

    def __len__(self) -> int: ...
    def picture(self, row: int) -> Any:
        """A PIL picture, as it lies there; raises DataError, which names it, for one that cannot be read."""
        ...

    def label(self, row: int) -> Any:
        """A class, by number or name; labels, numbers, or a mask."""
        ...

    def name(self, row: int) -> str:
        """What errors call it."""
        ...


def open_file(path: str | Path) -> Any:
    """A picture's file as a PIL picture, decoded and turned as its camera says; raises DataError that names it."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such picture")
    with open(path, "rb") as file:
        return opened(file, str(path))


def opened(file: Any, name: str) -> Any:
    """The picture in an open file."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(f"{name}: reading pictures needs pillow; pip install 'sslprune[images]'") from error
    with reading(name, "picture"):
        picture = Image.open(file)
        picture.load()
        return ImageOps.exif_transpose(picture)


class FolderRows:
    """A folder of a folder for each class, as torchvision's ImageFolder has it; below those, at any depth, pictures.

    ``labelled`` is False where nothing is said of the pictures: they may lie anywhere in the folder then.
    """

    def __init__(self, root: str, labelled: bool = True) -> None:
        self.source, folder = root, Path(root)
        self.classes: tuple[str, ...] = ()
        if not labelled:
            self.files = _pictures_in(folder)
            self.numbers = [0] * len(self.files)
            if not self.files:
                raise DataError(f"{root}: no pictures in it; expected files such as {', '.join(PICTURE_FILES[:3])}")
            return
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not below:
            raise DataError(f"{root}: no folders in it; expected one for each class, with pictures in it")
        if {path.name.lower() for path in below} <= SPLITS:
            named = ", ".join(path.name for path in below)
            raise DataError(
                f"{root}: its folders are {named}, and no classes; set data.train and data.test to those folders"
            )
        self.classes = tuple(path.name for path in below)
        self.files, self.numbers = list[Path](), list[int]()
        for number, path in enumerate(below):
            found = _pictures_in(path)
            if not found:
                raise DataError(f"{path}: the folder of a class, and no picture in it; put some there, or remove it")
            self.files += found
            self.numbers += [number] * len(found)

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, row: int) -> Any:
        return open_file(self.files[row])

    def label(self, row: int) -> Any:
        return self.classes[self.numbers[row]] if self.classes else None

    def name(self, row: int) -> str:
        return str(self.files[row])


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_FILES and path.is_file())


@dataclass(frozen=True)
class TableRows:
    """A table (.csv, .tsv, .jsonl) of paths, looked for beside the table, and labels."""

    source: str
    table: list[tuple[int, dict[str, Any]]]
    image: str
    labels: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def picture(self, row: int) -> Any:
        return open_file(self.name(row))

    def label(self, row: int) -> Any:
        return _one_or_all([self.table[row][1].get(column) for column in self.labels])

    def name(self, row: int) -> str:
        return str(self.beside(self.table[row][1].get(self.image)))

    def beside(self, path: Any) -> Path:
        """A path of the table, which stands beside the table's file unless it is absolute."""
        return Path(self.source).parent / str(path)


class ParquetRows:
    """A Parquet file in the Hugging Face image layout, mapped and not read."""

    def __init__(self, path: str, image: str | None, labels: tuple[str, ...]) -> None:
        self.source = path
        table, self.image, label = open_table(path, image, labels[0] if labels else None)
        self.labels = labels or ((label,) if label else ())
        self.classes = class_names(table.schema, label) if label else ()
        self.pictures = table.column(self.image)
        self.said = [table.column(column) for column in self.labels]

    def __len__(self) -> int:
        return len(self.pictures)

    def picture(self, row: int) -> Any:
        encoded = self.pictures[row].as_py()["bytes"]
        return opened(io.BytesIO(encoded or b""), self.name(row))

    def label(self, row: int) -> Any:
        return _one_or_all([column[row].as_py() for column in self.said])

    def name(self, row: int) -> str:
        return f"{self.source}: row {row}"


class HubRows:
    """A split of a dataset of Hugging Face ``datasets``, whose pictures are decoded when they are asked for."""

    def __init__(self, source: str, subset: str | None, split: str, image: str | None, labels: tuple[str, ...]) -> None:
        import datasets

        found = open_dataset(source, subset, split)
        self.source, columns = f"{source}, {split}", list(found.column_names)
        self.image = _named(self.source, columns, image, PATH_COLUMNS, "image")
        if not isinstance(found.features[self.image], datasets.Image):
            raise DataError(
                f"{self.source}: column {self.image} is {found.features[self.image]}; expected pictures: see "
                "data.image; labelled text needs data.tokenizer"
            )
        self.labels = labels or tuple(name for name in OF_LABELS if name in columns)[:1]
        first = found.features[self.labels[0]] if self.labels else None
        self.classes = tuple(getattr(first, "names", None) or ())
        self.found = found.cast_column(self.image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self.found)

    def picture(self, row: int) -> Any:
        kept = self.found[row][self.image]
        if kept.get("bytes") is None:
            return open_file(kept.get("path") or "")
        return opened(io.BytesIO(kept["bytes"]), self.name(row))

    def label(self, row: int) -> Any:
        kept = self.found[row]
        return _one_or_all([kept[column] for column in self.labels])

    def name(self, row: int) -> str:
        return f"{self.source}: row {row}"


@dataclass(frozen=True)
class SomeRows:
    """Some of the rows of a source, by their ``numbers``."""

    rows: Rows
    numbers: Sequence[int]

    @property
    def source(self) -> str:
        return self.rows.source

    @property
    def classes(self) -> tuple[str, ...]:
        return self.rows.classes

    def __len__(self) -> int:
        return len(self.numbers)

    def picture(self, row: int) -> Any:
        return self.rows.picture(self.numbers[row])

    def label(self, row: int) -> Any:
        return self.rows.label(self.numbers[row])

    def name(self, row: int) -> str:
        return self.rows.name(self.numbers[row])


def open_rows(path: str, image: str | None, labels: Sequence[str], labelled: bool) -> Rows:
    """The pictures at ``path``: a folder, a table of paths, or a Parquet file. Raises DataError for anything else."""
    at, wanted = Path(path), tuple(labels)
    if at.is_dir():
        if image is not None or wanted:
            raise DataError(f"{path}: a folder, whose folders are the classes; leave data.image and data.label out")
        return FolderRows(path, labelled)
    if at.suffix == ".parquet" or not at.exists() or at.suffix.lower() in PICTURE_FILES:
        return ParquetRows(path, image, wanted)
    table = rows_of(at)
    if not table:
        raise DataError(f"{path}: empty; expected a row for each picture")
    columns = list(table[0][1])
    column = image or next((name for name in columns if _holds_paths(table, name)), None)
    of_pictures = _named(path, columns, column, PATH_COLUMNS, "image")
    if labelled:
        others = [name for name in columns if name != of_pictures]
        usual = (*OF_LABELS, *others) if len(others) == 1 else OF_LABELS
        wanted = tuple(_named(path, columns, name, (), "label") for name in wanted) or (
            _named(path, columns, None, usual, "label"),
        )
    return TableRows(path, table, of_pictures, wanted if labelled else ())


def _holds_paths(table: Sequence[tuple[int, dict[str, Any]]], column: str) -> bool:
    names = [row.get(column) for _, row in table[:10]]
    return all(isinstance(name, str) and Path(name).suffix.lower() in PICTURE_FILES for name in names)


def _named(source: str, columns: Sequence[str], given: str | None, usual: Sequence[str], field: str) -> str:
    if given is not None and given not in columns:
        raise DataError(f'{source}: no column "{given}" (data.{field}); it has {few(list(columns), 8)}')
    found = given or next((name for name in usual if name in columns), None)
    if found is None:
        text = "; labelled text needs data.tokenizer" if field == "image" else ""
        raise DataError(
            f"{source}: columns are {few(list(columns), 8)}; say which holds the {field}: data.{field}{text}"
        )
    return found


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values or None
