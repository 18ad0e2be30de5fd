"""What can be timed: an ONNX file, an exported program, a module; each opened to a call that runs once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from sslprune.errors import ExportError, first_line
from sslprune.export.session import open_session
from sslprune.models.pt2 import read_program
from sslprune.values.inputs import counts_rows

PROVIDERS = {
    ("cpu", "onnxruntime"): "CPUExecutionProvider",
    ("cuda", "onnxruntime"): "CUDAExecutionProvider",
    ("cuda", "tensorrt"): "TensorrtExecutionProvider",
}
PAST = "past_key_values"
ONNX_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


@dataclass(frozen=True)
class Input:
    """One input of a model: ``dtype`` as numpy names it; a size that is not an int may be chosen, and has a name.

    ``state``: it is carried from call to call (an output ``next_<name>`` feeds it, or of ``past_key_values.0.key``
    ``present.0.key``), and its sizes are the model's own.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    state: bool = False

    def __str__(self) -> str:
        sizes = [str(size) if isinstance(size, int) and not self.state else "?" for size in self.shape]
        return f"{self.dtype} [{', '.join(sizes)}]"


@dataclass(frozen=True)
class Contender:
    """A model in a comparison, by the name that a person gave it.

    ``onnx``: the file for ONNX Runtime; ``module``: makes the module for torch on a device. ``pack`` turns the input
    tensors, in order, into that module's (args, kwargs).
    """

    name: str
    onnx: Path | None = None
    module: Callable[[str], nn.Module] | None = None
    pack: Callable[[list[torch.Tensor]], tuple[tuple[Any, ...], dict[str, Any]]] = lambda values: (tuple(values), {})
    program: Path | None = None
    _modules: dict[tuple[str, str], Callable[..., Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def runtimes(self) -> tuple[str, ...]:
        return ("onnxruntime", "tensorrt") * (self.onnx is not None) + ("torch", "torch.compile") * (
            self.module is not None
        )

    @property
    def file(self) -> Path | None:
        return self.onnx or self.program

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """What the model takes; raises ExportError, in one line, for a file that cannot be opened."""
        if self.onnx is not None:
            session = open_session(self.onnx, 1)
            outputs = {node.name for node in session.get_outputs()}
            return tuple(
                Input(node.name, _dtype(node, self.onnx), tuple(node.shape), bool(_nexts(node.name) & outputs))
                for node in session.get_inputs()
            )
        if self.program is None:
            raise ExportError(f"{self.name}: a module has no inputs of their own to see; give its ONNX file as well")
        return _program_inputs(read_program(self.program)[0])

    def open(self, runtime: str, device: str, threads: int, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
        """A call that runs the model once on ``feeds``. Raises ExportError where it cannot be run, in one line."""
        call = (self._onnx if runtime in ("onnxruntime", "tensorrt") else self._torch)(runtime, device, threads, feeds)
        try:
            call()
        except Exception as error:
            raise ExportError(
                f"{self.file or self.name}: {runtime} cannot run it on {device}: {first_line(error)}"
            ) from error
        return call

    def _onnx(self, runtime: str, device: str, threads: int, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
        assert self.onnx is not None
        session = open_session(self.onnx, threads, PROVIDERS[device, runtime])
        values = dict(feeds)
        return lambda: session.run(None, values)

    def _torch(self, runtime: str, device: str, threads: int, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
        if (runtime, device) not in self._modules:  # compiled once, for all settings
            assert self.module is not None
            module = self.module(device)
            self._modules[runtime, device] = torch.compile(module) if runtime == "torch.compile" else module
        run = self._modules[runtime, device]
        args, kwargs = self.pack([torch.from_numpy(np.array(value)).to(device) for value in feeds.values()])

        if device == "cpu":
            torch.set_num_threads(threads)

        def call() -> None:
            with torch.inference_mode():
                run(*args, **kwargs)
            if device == "cuda":
                torch.cuda.synchronize()

        return call


def from_file(path: str | Path, name: str | None = None) -> Contender:
    """The contender in a ``.onnx`` or ``.pt2`` file; raises ExportError for another kind of file, or a missing one."""
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ExportError(f"{path}: not a model that bench knows; give .onnx or .pt2 files")
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    if path.suffix == ".onnx":
        return Contender(name or path.name, onnx=path)
    return Contender(
        name or path.name,
        program=path,
        module=program_loader(path),
        pack=packed_as(read_program(path)[0].call_spec.in_spec),
    )


def program_loader(path: Path) -> Callable[[str], nn.Module]:
    """Loads a ``.pt2`` for a device: an exported program names the device of each tensor that it makes."""

    def load(device: str) -> nn.Module:
        program, _ = read_program(path)
        return (program if device == "cpu" else move_to_device_pass(program, device)).module()

    return load


def module_loader(module: nn.Module) -> Callable[[str], nn.Module]:
    """``module`` itself in eval mode, on the device that is asked for."""

    def load(device: str) -> nn.Module:
        with suppress(NotImplementedError):  # a loaded .pt2 has one mode only, and refuses to be asked
            module.eval()
        return module.to(device)

    return load


def packed_as(spec: Any) -> Callable[[list[torch.Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """``pack`` for inputs that are nested as ``spec``, a pytree of (args, kwargs)."""
    return lambda values: pytree.tree_unflatten(values, spec)


def _nexts(name: str) -> set[str]:
    """What the output may be called that is the input ``name`` of the next call."""
    return {f"next_{name}", name.replace(PAST, "present", 1)} - {name}


def check_same_inputs(models: Sequence[Contender]) -> None:
    """Raise ExportError, naming the input, where a model takes other inputs than the first.

    ONNX inputs have names; those of a ``.pt2`` have an order, and are called by it.
    """
    for model in models[1:]:
        by_name = models[0].onnx is not None and model.onnx is not None
        first, other = (
            {
                found.name if by_name else str(index): str(found)
                for index, found in enumerate(side.inputs)
                if not (by_name and found.state and found.name.startswith(PAST))  # layers are a model's own
            }
            for side in (models[0], model)
        )
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                said = [f"takes {takes[name]}" if name in takes else "has no such input" for takes in (first, other)]
                raise ExportError(
                    f"input {name}: {models[0].file} {said[0]}, {model.file} {said[1]};"
                    " compare models that take the same inputs"
                )


def feeds_for(
    model: Contender,
    batch_size: int,
    example: Mapping[str, np.ndarray] | None = None,
    dims: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """``batch_size`` rows of ``example`` (name -> array), in the model's order; noise for an input it does not have.

    Of inputs that count each other's rows, as bonds do of atoms, the whole example ``batch_size`` times over.
    Of a noise input, symbolic sizes come from ``dims``; dimension 0 is the batch unless ``dims`` says otherwise. A
    state that is carried from call to call begins with zeros.
    """
    random = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    first = next((str(wanted.shape[0]) for wanted in model.inputs if wanted.shape and not wanted.state), "batch")
    given = example or {}
    whole = counts_rows([torch.from_numpy(given[i.name]) for i in model.inputs if i.name in given and not i.state])
    for wanted in model.inputs:
        if wanted.name in given and not wanted.state:
            rows = given[wanted.name]
            if whole:
                feeds[wanted.name] = np.concatenate([rows] * batch_size) if _is_open(wanted) else rows
                continue
            feeds[wanted.name] = rows[np.arange(batch_size) % len(rows)] if rows.ndim else rows
            continue
        shape = []
        for index, size in enumerate(wanted.shape):
            named = _named_size(str(size), dims or {})
            if isinstance(size, int):
                shape.append(size)
            elif named is not None or index == 0 or size == first:
                shape.append(batch_size if named is None else named)
            else:
                raise ExportError(
                    f"{model.file}: input {wanted.name!r} has a dimension {size!r} of any size;"
                    f" say which: --dim {size}=128"
                )
        dtype = np.dtype(wanted.dtype)
        noise = random.standard_normal(shape) if np.issubdtype(dtype, np.floating) else np.ones(shape)
        noise *= not wanted.state
        feeds[wanted.name] = noise.astype(dtype)
    return feeds


def _named_size(name: str, dims: Mapping[str, int]) -> int | None:
    """The size called ``name``, or the sum of those in "past_sequence_length + sequence_length"; None: not given."""
    sizes = [dims.get(part) for part in name.split(" + ")]
    return dims.get(name, None if None in sizes else sum(size for size in sizes if size is not None))


def _is_open(wanted: Input) -> bool:
    return bool(wanted.shape) and not isinstance(wanted.shape[0], int)


def of_length(model: Contender, feeds: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """``feeds`` with sequences of ``length`` steps, cut or repeated. Raises ExportError where the length is fixed."""
    sequences = _sequences(model)
    if not sequences:
        raise ExportError(f"bench.lengths: {model.file or model.name} takes no sequences of any length")
    return {
        name: value[:, np.arange(length) % value.shape[1]] if name in sequences else value
        for name, value in feeds.items()
    }


def open_length(model: Contender, feeds: Mapping[str, np.ndarray]) -> int | None:
    """The length of the sequences in ``feeds``; None for a model whose length is fixed, or that takes none."""
    return next((feeds[name].shape[1] for name in _sequences(model) if feeds[name].ndim > 1), None)


def _sequences(model: Contender) -> list[str]:
    """The inputs whose dimension 1 may have any size."""
    return [i.name for i in model.inputs if len(i.shape) > 1 and not i.state and isinstance(i.shape[1], str)]


def _dtype(node: Any, path: Path) -> str:
    if node.type not in ONNX_TYPES:
        raise ExportError(f"{path}: input {node.name!r} is a {node.type}; known are {', '.join(ONNX_TYPES)}")
    return np.dtype(ONNX_TYPES[node.type]).name


def _program_inputs(program: torch.export.ExportedProgram) -> tuple[Input, ...]:
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    tensors = [(name, values[name]) for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return tuple(
        Input(
            name,
            str(value.dtype).removeprefix("torch."),
            tuple(size if isinstance(size, int) else str(size) for size in value.shape),
        )
        for name, value in tensors
        if isinstance(value, torch.Tensor)
    )
