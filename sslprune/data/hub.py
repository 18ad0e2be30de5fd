"""Text and pictures out of Hugging Face ``datasets``: a folder that it saved or can read, or a name on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sslprune.data.foreign import reading
from sslprune.errors import DataError


def read_dataset(source: str, subset: str | None, split: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows of one split with all their columns, each with its number from 0; class labels stay numbers."""
    found = open_dataset(source, subset, split)
    with reading(source, "dataset"):
        return list(enumerate(found.to_list()))


def open_dataset(source: str, subset: str | None, split: str) -> Any:
    """One split of a dataset, as the library has it.

    ``source`` is a folder that ``save_to_disk`` wrote, a dataset's folder or a folder of Parquet files (split names in
    the files' names), or a name on the hub. Raises DataError, in one line.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("data.dataset: needs datasets; pip install 'sslprune[datasets]'") from error
    folder = Path(source)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        found = datasets.load_from_disk(source) if saved else datasets.load_dataset(source, subset)
    except Exception as error:
        raise DataError(f"data.dataset: {_why(folder, source, error)}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    if not isinstance(found, dict):  # a lone split
        found = {str(found.split or "train"): found}
    if split not in found:
        raise DataError(f'{source}: no split "{split}"; it has {", ".join(found)}: see data.train and data.test')
    return found[split]


def _why(folder: Path, source: str, error: Exception) -> str:
    if folder.exists():
        return f"{source}: {' '.join(str(error).split())[:200]}"
    if "config" in str(error).lower() and "available" in str(error).lower():  # the hub answered
        return f"{source}: {' '.join(str(error).split())[:200]}; see data.subset"
    return f'"{source}" is no local folder, and could not be had from the hub; download it, and name its folder'
