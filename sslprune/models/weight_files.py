"""Files of weights, told apart by their first bytes and read by torch or safetensors; nothing in them is run."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from sslprune.errors import CheckpointError, few

TORCH, SAFETENSORS, INDEX = "torch", "safetensors", "index"
USUAL = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt")  # the names of files that are taken for damaged ones
OTHERS = {  # first bytes of what people name by mistake
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
}


def read_weights(path: Path, *, whole: bool = True) -> Any:
    """What a file of torch.save or safetensors holds, or all the files of a sharded index.

    Objects that only their own code could make are left out as empty ones. Raises CheckpointError, in one line; also
    for an index unless the file may be a ``whole`` checkpoint.
    """
    kind = _kind(path)
    if kind == INDEX and whole:
        return _sharded(path)
    try:
        if kind == SAFETENSORS:
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            return _torch_load(path)
    except CheckpointError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        raise CheckpointError(f"{path}: truncated or damaged; copy or download it again") from error


def _kind(path: Path) -> str:
    """Which reader a file is for, by its first bytes; raises CheckpointError that names what it is otherwise."""
    if path.is_dir():
        raise CheckpointError(f"{path}: a directory; name the file with the weights in it")
    if path.exists() and not path.is_file():  # to open a pipe that nobody writes to would wait for ever
        raise CheckpointError(f"{path}: a pipe or a device; copy what it gives into a file")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if head[:4] == b"PK\x03\x04":
        _check_archive(path)
        return TORCH
    if head[257:262] == b"ustar":
        raise CheckpointError(
            f"{path}: a tar archive, as the first versions of PyTorch wrote; load it with torch.load, and save its"
            " state_dict again"
        )
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return SAFETENSORS
    if head[:1] == b"\x80":
        return TORCH
    if head.lstrip()[:1] == b"{":
        return INDEX
    if not head:
        raise CheckpointError(f"{path}: empty, not a known format; expected torch.save or safetensors")
    known = next((said for first, said in OTHERS.items() if head.startswith(first)), None)
    if known is None and path.suffix in USUAL:
        raise CheckpointError(f"{path}: truncated or damaged; copy or download it again")
    raise CheckpointError(f"{path}: {known or 'not a known format'}; expected torch.save or safetensors")


def _check_archive(path: Path) -> None:
    """Raise CheckpointError, by name, for archives of PyTorch that are no checkpoints."""
    try:
        records = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except Exception as error:
        try:
            zipfile.ZipFile(path).close()
        except Exception:
            raise CheckpointError(f"{path}: truncated or damaged; copy or download it again") from error
        records = []
    if "constants.pkl" in records:
        raise CheckpointError(
            f"{path}: a TorchScript archive, which holds code; save state_dict() of the model that it was made from"
        )
    if "models/model.json" in records:
        raise CheckpointError(f"{path}: an exported program (.pt2); set it as model.factory")
    if "data.pkl" not in records:
        raise CheckpointError(
            f"{path}: a zip archive that torch.save did not write; expected torch.save or safetensors"
        )


def _torch_load(path: Path) -> Any:
    try:
        return _plain(path)
    except Exception as error:
        said = str(error)
        if "Unsupported global" not in said and "Unsupported class" not in said and "GLOBAL" not in said:
            raise
    try:
        unknown = get_unsafe_globals_in_checkpoint(path)
        stubs: list[Any] = [(AbsentDict if "dict" in name.lower() else Absent, name) for name in unknown]
        with safe_globals(stubs):
            contents = _plain(path)
    except Exception as error:
        raise _pickled(path) from error
    if not isinstance(contents, Mapping) or not _holds_tensors(contents):
        raise _pickled(path, unknown)
    return contents


def _plain(path: Path) -> Any:
    with open(path, "rb") as file:  # of a path torch.load also reads the suffix
        return torch.load(file, map_location="cpu", weights_only=True)


def _pickled(path: Path, names: list[str] | None = None) -> CheckpointError:
    what = f" ({few(sorted(names), 3)})" if names else ""
    return CheckpointError(
        f"{path}: holds a pickled object{what}, not weights; save model.state_dict() and name that file instead"
    )


class Absent:
    """Stands where a checkpoint has an object of a class that is not loaded: hyperparameters, paths, callbacks."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __new__(cls, *_: Any, **__: Any) -> Absent:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


class AbsentDict:
    """The same for a class of dictionaries, whose entries are set one by one."""

    def __new__(cls, *_: Any, **__: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def _holds_tensors(value: Any, depth: int = 5) -> bool:
    if isinstance(value, Mapping) and depth:
        return any(_holds_tensors(inner, depth - 1) for inner in value.values())
    return isinstance(value, torch.Tensor)


def _sharded(path: Path) -> dict[str, Any]:
    """The tensors that a ``*.index.json`` spreads over the files beside it."""
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(file) for file in shards.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: a JSON file without a weight_map; expected torch.save, safetensors, or the index of shards"
        ) from error
    found: dict[str, Any] = {}
    for file in files:
        shard = path.parent / file
        if not re.fullmatch(r"[^/\\\x00]+", file) or file in (".", ".."):
            raise CheckpointError(f"{path}: its shard {file!r} is not a file beside it")
        if not shard.is_file():
            raise CheckpointError(f"{path}: its shard {file} is missing; download it as well")
        contents = read_weights(shard, whole=False)
        if isinstance(contents, Mapping):
            found.update(contents)
    missing = [str(name) for name in shards if name not in found]
    if missing:
        raise CheckpointError(f"{path}: its shards lack {few(missing)}; download them again")
    return {name: found[name] for name in shards}
