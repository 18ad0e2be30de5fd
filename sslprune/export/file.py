"""An ONNX file after it is written: what it says about itself, its dimensions' names, and running it like torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sslprune.errors import ExportError
from sslprune.values.inputs import tensors_in


def read_graph(path: str | Path) -> onnx.ModelProto:
    """The graph of an ONNX file, leaving weights that lie in a file of their own where they are."""
    return onnx.load(str(path), load_external_data=False)


def write_metadata(path: Path, values: Mapping[str, str]) -> None:
    """Put ``values`` among the file's metadata, where any ONNX tool shows them; in place."""
    model = read_graph(path)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**kept, **values})
    onnx.save(model, str(path))


def rename_dimensions(path: Path, names: Mapping[str, str]) -> None:
    """Give open dimensions other names; in place. Raises ExportError for one that the file does not have."""
    model = read_graph(path)
    known = {d.dim_param for v in (*model.graph.input, *model.graph.output) for d in _sizes(v) if d.dim_param}
    for old in names:
        if old not in known:
            said = ", ".join(sorted(known)) or "none"
            raise ExportError(f"export.dynamic_axes: {path.name} has no open dimension {old!r}; it has {said}")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in _sizes(value):
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]
    onnx.save(model, str(path))


def _sizes(value: onnx.ValueInfoProto) -> Iterable[Any]:
    return value.type.tensor_type.shape.dim


def feeds_of(
    session: onnxruntime.InferenceSession, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """What an ONNX file is to be fed: keyword inputs by their names where it has them, the others in their order."""
    names = [node.name for node in session.get_inputs()]
    named = {name: value for name, value in kwargs.items() if name in names and isinstance(value, Tensor)}
    rest = tensors_in((args, {name: value for name, value in kwargs.items() if name not in named}))
    unnamed = [name for name in names if name not in named]
    if len(rest) != len(unnamed):
        raise ExportError(f"{len(rest) + len(named)} inputs for an ONNX file that takes {', '.join(names)}")
    feeds = named | dict(zip(unnamed, rest, strict=True))
    return {name: value.cpu().numpy() for name, value in feeds.items()}


class OnnxModule(nn.Module):
    """An ONNX Runtime session that is called like the torch module it was made from.

    ``like``: an output of that module; tensors are nested as there. ``begin``: its ``initial_state``, where it carries
    state. The result lies on the inputs' device.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, like: Any, begin: Callable[[int], Any] | None = None
    ) -> None:
        super().__init__()
        self.session = session
        self.leaves, self.spec = pytree.tree_flatten(like)
        if begin is not None:
            self.initial_state = begin

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        device = next((t.device for t in tensors_in((args, kwargs))), torch.device("cpu"))
        outputs = iter(self.session.run(None, feeds_of(self.session, args, kwargs)))
        found = [
            torch.from_numpy(np.asarray(next(outputs))).to(device) if isinstance(leaf, Tensor) else leaf
            for leaf in self.leaves
        ]
        return pytree.tree_unflatten(found, self.spec)
