"""An ONNX file after it is written: what it says about itself, its dimensions' names, and running it like torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sslprune.errors import ExportError


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


def feeds(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inputs of a torch module as ONNX Runtime takes them: keywords by their names, the rest in order."""
    given: dict[str, Any] = {name: kwargs[name] for name in names if name in kwargs}
    rest = [v for v in pytree.tree_leaves((args, {k: v for k, v in kwargs.items() if k not in given})) if _is_tensor(v)]
    open_names = [name for name in names if name not in given]
    if len(rest) != len(open_names):
        raise ExportError(f"{len(rest) + len(given)} inputs for an ONNX model that takes {', '.join(names)}")
    given.update(zip(open_names, rest, strict=True))
    return {name: given[name].detach().cpu().numpy() for name in names}


class OnnxModule(nn.Module):
    """An ONNX Runtime session that is called like the torch module it was made from.

    ``like``: an output of that module; tensors are nested as there. The result lies on the inputs' device.
    """

    def __init__(self, session: onnxruntime.InferenceSession, like: Any) -> None:
        super().__init__()
        self.session = session
        self.names = [node.name for node in session.get_inputs()]
        self.leaves, self.spec = pytree.tree_flatten(like)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        device = next((v.device for v in pytree.tree_leaves((args, kwargs)) if _is_tensor(v)), torch.device("cpu"))
        outputs = iter(self.session.run(None, feeds(self.names, args, kwargs)))
        found = [torch.from_numpy(np.asarray(next(outputs))).to(device) if _is_tensor(v) else v for v in self.leaves]
        return pytree.tree_unflatten(found, self.spec)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
