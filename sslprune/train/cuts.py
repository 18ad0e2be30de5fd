"""What nested training leaves: one file of weights, and the list of the cuts that make each point of them.

nested.safetensors holds the largest point's weights by their names, and of each smaller point its running statistics as
"0.36:bn1.running_mean". cuts.json holds what goes at each point, largest first, as selection.json does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from sslprune.errors import RunError
from sslprune.files import write_json
from sslprune.models.build import load_checkpoint, load_weights
from sslprune.train.checkpoint import TrainingFiles, weights_of, write_weights
from sslprune.train.nested import Nested
from sslprune.values.axes import Axis, zero_groups
from sslprune.values.selection import SCHEMA, Selection


def finish_(sparsity: Nested, recalibrate: Callable[[nn.Module], None], files: TrainingFiles | None) -> Selection:
    """Take the statistics of each point anew, write all of them to ``files``, and make the model the smallest one.

    Returns what goes there. None: another process writes.
    """
    model = sparsity.model
    selections = sparsity.selections(model)
    for i in range(len(selections)):
        with sparsity.at(i):
            recalibrate(model)
    buffers = sparsity.views[-1].buffers
    if files is not None:
        weights = weights_of(model)
        for view in sparsity.views:
            own = {f"{view.fraction}:{name}": value.cpu() for name, value in view.buffers.items() if name in weights}
            weights |= {name: value.contiguous().clone() for name, value in own.items()}
        write_weights(files.nested, weights)
        points = zip(sparsity.fractions, selections, strict=True)
        cuts = [{"fraction": fraction, **json.loads(selection.to_json())} for fraction, selection in points]
        write_json(files.cuts, {"schema": SCHEMA, "cuts": cuts})
    cut_(model, selections[-1])
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return selections[-1]


def cut_(model: nn.Module, selection: Selection) -> None:
    """Set to zero what goes, in place."""
    for axis, gone in zip(selection.axes, selection, strict=True):
        zero_groups(model, axis, gone.nonzero()[0])


def point_(model: nn.Module, files: TrainingFiles, fraction: float, axes: Sequence[Axis]) -> Selection:
    """Make ``model`` the point ``fraction`` of what nested training left in ``files``; what goes there.

    ``axes`` are those that it was trained with. Raises RunError for a point that is not in the list, and
    SslpruneError for a list of other axes.
    """
    listed = read_cuts(files.cuts)
    if fraction not in listed:
        raise RunError(f"{files.cuts}: no point {fraction:g}; there are {words(list(listed))}")
    weights = load_checkpoint(files.nested)
    own = {name: value for name, value in weights.items() if ":" not in name}
    mark = f"{fraction}:"
    own |= {name.removeprefix(mark): value for name, value in weights.items() if name.startswith(mark)}
    load_weights(model, own, files.nested)
    selection = Selection.from_json(listed[fraction], axes, str(files.cuts))
    cut_(model, selection)
    return selection


def read_cuts(file: Path) -> dict[float, str]:
    """The points of a cut list, largest first: of each the text of its selection. Raises RunError for another file."""
    try:
        cuts = json.loads(file.read_text(encoding="utf-8"))["cuts"]
        return {float(cut["fraction"]): json.dumps({"schema": SCHEMA, "axes": cut["axes"]}) for cut in cuts}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{file}: not a cut list ({type(error).__name__}); make it again: `sslprune train RECIPE --run"
            f" {file.parent.parent} --resume`"
        ) from error


def words(fractions: Sequence[float]) -> str:
    """The points, for people."""
    return ", ".join(f"{fraction:g}" for fraction in fractions)
