"""The weights of an ONNX file: beside it while it is made, within it where they fit, a piece at a time in memory."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx
from onnx.external_data_helper import ExternalDataInfo

from sslprune.export.file import read_graph

PIECE = 2**24  # bytes
LENGTH_DELIMITED = 2  # protobuf's wire type of messages and bytes


def beside(path: Path) -> Path:
    """The file that holds the weights of ``path``."""
    return path.with_name(f"{path.name}.data")


def embed(path: Path) -> None:
    """Take the weights of ``path`` that lie beside it into it; in place.

    Serialising a graph with its weights takes two more copies of them. Here the file is put together from its parts in
    protobuf's wire format, where a field is its number, its length and its bytes: the model without the graph, the
    graph without the weights, and each weight from the file beside.
    """
    source, model = beside(path), read_graph(path)
    weights = [weight for weight in model.graph.initializer if weight.data_location == onnx.TensorProto.EXTERNAL]
    spans = [(int(span.offset or 0), int(span.length or 0)) for span in map(ExternalDataInfo, weights)]
    if sum(length for _, length in spans) != source.stat().st_size:  # some belong to the bodies of operators
        onnx.save(onnx.load(str(path)), str(path))
        source.unlink()
        return
    heads = [
        onnx.TensorProto(name=weight.name, dims=weight.dims, data_type=weight.data_type).SerializeToString()
        for weight in weights
    ]
    raws = [_begun(onnx.TensorProto, "raw_data", length) for _, length in spans]
    parts = [len(head) + len(raw) + length for head, raw, (_, length) in zip(heads, raws, spans, strict=True)]
    starts = [_begun(onnx.GraphProto, "initializer", length) for length in parts]
    rest = [weight for weight in model.graph.initializer if weight.data_location != onnx.TensorProto.EXTERNAL]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(rest)
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    with open(path, "wb") as file, open(source, "rb") as data:
        file.write(model.SerializeToString())
        file.write(_begun(onnx.ModelProto, "graph", len(graph) + sum(map(len, starts)) + sum(parts)))
        file.write(graph)
        for start, head, raw, (offset, length) in zip(starts, heads, raws, spans, strict=True):
            file.write(start + head + raw)
            _copy(data, offset, length, file)
    source.unlink()


def _begun(message: type, field: str, length: int) -> bytes:
    """What stands before the ``length`` bytes of ``field``: its number and its wire type, and the length."""
    number = message.DESCRIPTOR.fields_by_name[field].number  # type: ignore[attr-defined]
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have their highest bit set."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _copy(source: BinaryIO, offset: int, length: int, file: BinaryIO) -> None:
    source.seek(offset)
    while length > 0:
        piece = source.read(min(length, PIECE))
        file.write(piece)
        length -= len(piece)
