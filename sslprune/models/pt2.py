"""Reading ``.pt2``: an archive is looked through before torch loads it, so that nothing in it can run.

``torch.export.load`` unpickles constants, custom objects and sample inputs, opens compiled libraries, and falls back to
an older format of pickles. Its graph, which is JSON, holds text that is evaluated: see ``models.pt2_graph``.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch._export.serde import schema
from torch._export.serde.serialize import _dict_to_dataclass
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader
from torch.export.pt2_archive._package import load_pt2

from sslprune.errors import CheckpointError, first_line
from sslprune.models.pt2_graph import Refused, check_graph

GRAPH = "models/model.json"
PAYLOADS = {  # what the tables say of their tensors, and the names of the records that hold those
    "data/weights/model_weights_config.json": r"weight_\d+",
    "data/constants/model_constants_config.json": r"tensor_\d+",
}
PICKLES = ("data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/model.pt")  # the last two until 2.8
TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
PLAIN = re.compile(r"archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment")
EXTRA = "extra/"


def read_program(path: str | Path) -> tuple[ExportedProgram, dict[str, str]]:
    """The program of a ``.pt2`` file and its extra files by name; every ``.pt2`` is read here, and none runs code.

    Raises CheckpointError for a file that is not there, damaged, or holds what could run code, whoever wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        _check(PT2ArchiveReader(str(path)))
        found = load_pt2(str(path))  # not torch.export.load, which tries pickles where this fails
        return found.exported_programs["model"], found.extra_files
    except Refused as error:
        raise CheckpointError(
            f"{path}: holds {error}, which could run code; export it again, of plain tensors and ATen operators"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from error
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable .pt2 file ({first_line(error)})") from error


def _check(archive: PT2ArchiveReader) -> None:
    """Raise Refused for the first record that is more than a tensor, a graph, or plain values."""
    records = archive.get_file_names()
    _check_names(records)
    for pickled in set(PICKLES) & set(records):
        _check_pickle(pickled, archive.read_bytes(pickled))
    for table, name in PAYLOADS.items():
        if table in records:
            _check_payloads(table, archive.read_string(table), name)
    check_graph(archive.read_bytes(GRAPH))


def _check_names(records: Iterable[str]) -> None:
    known = {GRAPH, *PAYLOADS, *PICKLES}
    for record in records:
        if not (record in known or record.startswith(EXTRA) or TENSORS.fullmatch(record) or PLAIN.fullmatch(record)):
            raise Refused(f"a record {record[:60]!r} that is neither tensor nor graph")


def _check_pickle(record: str, content: bytes) -> None:
    """Tensors and plain values are read without running a pickle's code; what needs more is refused."""
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise Refused(f"a pickled object in {record}") from error


def _check_payloads(table: str, text: str, name: str) -> None:
    for key, payload in _dict_to_dataclass(schema.PayloadConfig, json.loads(text)).config.items():
        if payload.use_pickle is not False:
            raise Refused(f"a pickled object {key[:60]!r} in {table}")
        if not isinstance(payload.path_name, str) or not re.fullmatch(name, payload.path_name):
            raise Refused(f"an object {key[:60]!r} in {table} that is no tensor")
