"""What a model returns: its tensors by their names, and the one that says of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sslprune.errors import DataError
from sslprune.values.inputs import tensors_in

Output = str | int | None  # a tensor of the outputs by its name or its place; None: the one that there is


def output_names(outputs: Any) -> list[str]:
    """``logits`` for the key of a dict, ``output`` for a lone tensor, ``output_0`` and so on for a sequence."""
    named = [(keys, leaf) for keys, leaf in pytree.tree_flatten_with_path(outputs)[0] if isinstance(leaf, Tensor)]
    if len(named) == 1 and not named[0][0]:
        return ["output"]
    words = [
        "_".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in keys)
        for keys, _ in named
    ]
    return [word if word.isidentifier() else f"output_{word}" for word in words]


def logits_of(outputs: Any, output: Output = None) -> Tensor:
    """What a model's outputs say of the classes: a tensor, the ``output`` that is named, or ``logits``.

    Without either the only floating tensor there is. Raises DataError, which lists the outputs, where there are
    several: nobody is to learn from the first of them in silence.
    """
    if isinstance(outputs, Tensor):  # of a model that gives several in training, the one that it gives in evaluation
        return outputs
    if output is None:
        named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        if isinstance(named, Tensor):
            return named
    tensors = tensors_in(outputs)
    if not tensors:
        raise DataError(
            f"the model returns {type(outputs).__name__}; expected a tensor, or a tuple or dict of them; a dataclass "
            "of your own is one after torch.export.register_dataclass"
        )
    if isinstance(output, int) and 0 <= output < len(tensors):
        return tensors[output]
    names = output_names(outputs)
    if output in names:
        return tensors[names.index(str(output))]
    if output is not None:
        raise DataError(f"data.output: {output!r} is none of the model's outputs, which are {listed(outputs)}")
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    if len(floating) != 1:
        raise DataError(
            f"the model gives several outputs: {listed(outputs)}; say which one is trained and judged, by its name or "
            f'its place: data.output = "{names[0]}"'
        )
    return floating[0]


def listed(outputs: Any) -> str:
    """The tensors of some outputs for people: ``logits (2, 10), boxes (2, 4)``."""
    shown = zip(output_names(outputs), tensors_in(outputs), strict=True)
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in shown)


def loss_in(outputs: Any) -> Tensor:
    """The loss that a model returns itself: ``loss``, the sum of a dict of losses, the first number of a tuple, or all.

    Raises DataError where the outputs hold none.
    """
    named = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if isinstance(named, Tensor):
        return named.mean()
    if isinstance(outputs, Mapping) and outputs and all(_is_number(value) for value in outputs.values()):
        return torch.stack([value.reshape(()) for value in outputs.values()]).sum()
    first = outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs
    if _is_number(first):
        return first.reshape(())
    raise DataError(
        f'train.loss: the model returns {listed(outputs) or type(outputs).__name__}, and no loss; expected "loss", a '
        "number, or a dict of numbers when it is given its targets"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
