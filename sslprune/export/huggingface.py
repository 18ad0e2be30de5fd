"""A repacked model as a Hugging Face directory: its own class with another configuration, proven equal."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslprune.analysis.factors import is_factor
from sslprune.capture.mode import evaluating
from sslprune.errors import ExportError, SslpruneError, first_line
from sslprune.export.configuration import Configurations, configurations
from sslprune.export.norms import rescaled
from sslprune.export.padded import padded
from sslprune.export.renumber import Held, renumbered
from sslprune.export.scales import rescaled_projections
from sslprune.models.huggingface import quiet_transformers, unfilled
from sslprune.removal.gates import gates_in
from sslprune.values.axes import tensors_of
from sslprune.values.compare import difference
from sslprune.values.inputs import random_like

HF_TOLERANCE = 1e-5  # relative
SHARD = "5GB"  # the most in one file of weights
Asked = tuple[tuple[tuple[Any, ...], Mapping[str, Any]], Any]  # a call, and what the repacked model answers


def export_huggingface(
    model: nn.Module,
    small: nn.Module,
    path: str | Path,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    finish: Callable[[Any, Path], None] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    pad: bool = False,
) -> dict[str, Any]:
    """Write ``small``, which `repack` made of ``model``, as a directory that ``from_pretrained`` opens; its new fields.

    ``model`` is as it was repacked, at zero where something went.
    ``args`` and ``kwargs`` are example inputs. The fields of the configuration that say the new sizes are found by
    building the class of ``model``. The directory is loaded by transformers alone, and compared with ``small`` to 1e-5
    (relative), before it takes the place of what was at ``path``. ``finish(instance, folder)`` may write what belongs
    beside it, such as a tokenizer. ``tensors``: those of ``small``, where it has other names for them. ``pad``: layers
    of different sizes are filled up with zeros to the widest one, whose time all take; ``zeros`` says how many.

    Raises ExportError for a model that is not of transformers, and for sizes that no field of its configuration can
    hold: it names the layer and the field.
    """
    check_class(model)
    own = whole_tensors(small, tensors, "huggingface")
    with quiet_transformers("--format huggingface"), torch.no_grad():
        asked = asked_of(small, args, kwargs)
        held = ungated(model, renumbered(model, own, parts=pad))
        held, zeros = padded(model, held) if pad else (held, 0)
        instance, changes = _instance(model, held, asked)
        write(model, instance, Path(path), asked, finish)
    return {**changes, "zeros": zeros} if zeros else changes


def whole_tensors(small: nn.Module, tensors: Mapping[str, Tensor] | None, format: str) -> dict[str, Tensor]:
    """``tensors``, or those of ``small``; raises ExportError where one is two factors."""
    own = dict(tensors if tensors is not None else tensors_of(small))
    factor = next((name for name in own if is_factor(name)), None)
    if factor is not None:
        raise ExportError(
            f"--format {format}: {factor.rpartition('.')[0]} is two factors of a rank, which no class of transformers "
            "has; deploy export/model.onnx or repacked/model.pt2, or leave that kind out"
        )
    return own


def asked_of(small: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> list[Asked]:
    """The example, and inputs like it of one row and of three, with what ``small`` answers."""
    calls = [(args, dict(kwargs or {}))]
    calls += [random_like(calls[0], rows, rows) for rows in (1, 3)]
    with evaluating(small):
        return [(call, small(*call[0], **call[1])) for call in calls]


def check_class(model: nn.Module, by: str = "--format huggingface") -> None:
    """Raise ExportError for a model that is no class of transformers, or that is quantized; ``by``: who asks."""
    if not hasattr(model, "save_pretrained") or not hasattr(getattr(model, "config", None), "to_dict"):
        raise ExportError(
            f"{by}: {type(model).__name__} is no class of transformers; deploy export/model.onnx or "
            "repacked/model.pt2, or give an instance of your class the sizes with sslprune.apply_plan"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise ExportError(
            f"{by}: {type(model).__name__} is quantized, and its tensors are no weights; prune the "
            "model before it is quantized"
        )


def ungated(model: nn.Module, held: Held) -> Held:
    """``held`` without gates, of which the class knows nothing: they may go where they are open."""
    gates = {new for new, old in held.before.items() if old in gates_in(model)}
    ajar = next((name for name in sorted(gates) if not bool((held.tensors[name] == 1).all())), None)
    if ajar is not None:
        raise ExportError(
            f"{ajar}: the class has no gates, and these are not all open; let the model heal (schedule.heal), which "
            "opens those that are left"
        )
    tensors = {name: tensor for name, tensor in held.tensors.items() if name not in gates}
    return replace(held, tensors=tensors, before={name: held.before[name] for name in tensors})


def _instance(model: Any, held: Held, asked: Sequence[Asked]) -> tuple[Any, dict[str, Any]]:
    """An instance of the class of ``model`` that says what is ``asked``, and the fields that differ."""
    tried: list[tuple[dict[str, Any], float, str]] = []
    try:
        for changes, config in configurations(model, held):
            for more, instance in _instances(model, held, changes, config):
                try:
                    apart, why = apart_of(instance, asked), ""
                except (RuntimeError, ValueError, IndexError) as error:  # sizes that the class's own code cannot run
                    apart, why = float("inf"), first_line(error)
                if apart <= HF_TOLERANCE:
                    return instance, more
                tried.append((more, apart, why))
    except ExportError:
        if not tried:
            raise
    changes, apart, why = min(tried, key=lambda one: one[1])
    said = ", ".join(f"{name} = {value}" for name, value in changes.items()) or "its configuration as it was"
    if why:
        raise ExportError(
            f"{type(model).__name__} with {said} has the repacked model's tensors, and cannot run: {why}; multiples of "
            "four or eight may run: set budget.round_to, or another budget where the landing leaves it"
        )
    raise ExportError(
        f"{type(model).__name__} with {said} has the tensors of the repacked model, and computes something else (its "
        f"outputs differ by {apart:.1e}, relative; {HF_TOLERANCE:g} is allowed): it makes numbers of these sizes, as "
        "rotary angles of the head's or means of the layer's width; leave that kind out"
    )


def _instances(model: Any, held: Held, changes: dict[str, Any], config: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """The class with the tensors of ``held``; then with norms or projections rescaled, where some got narrower."""
    first = filled(type(model), config, held.tensors)
    yield changes, first
    weights, fields = rescaled(model, first, held)
    if weights:
        changes = {**changes, **fields}
        yield changes, filled(type(model), Configurations(model).made(changes), {**held.tensors, **weights})
        return
    for scaled in rescaled_projections(model, held, changes):
        yield changes, filled(type(model), config, {**held.tensors, **scaled})


def filled(kind: Any, config: Any, tensors: Mapping[str, Tensor]) -> Any:
    """An instance with these tensors themselves: no memory but theirs, unless the class has more, which it draws."""
    with unfilled():
        instance = kind(config)
    if instance.load_state_dict(dict(tensors), strict=False, assign=True).missing_keys:
        instance = kind(config)
        instance.load_state_dict(dict(tensors), strict=False)
    instance.tie_weights()
    return instance.to(torch.float32)


def apart_of(instance: Any, asked: Sequence[Asked]) -> float:
    """The largest relative difference of the outputs; infinite where they are not of one shape."""
    instance.eval()
    if hasattr(instance.config, "use_cache"):
        instance.config.use_cache = False  # as it was traced
    worst = 0.0
    for (args, kwargs), expected in asked:
        _, relative = difference(expected, instance(*args, **kwargs))
        worst = max(worst, relative) if relative == relative else float("inf")
    return worst


def write(
    model: Any,
    instance: Any,
    path: Path,
    asked: Sequence[Asked],
    finish: Callable[[Any, Path], None] | None,
) -> None:
    """Save, load by transformers, compare, and only then take the place of what is at ``path``."""
    if hasattr(instance.config, "use_cache"):
        instance.config.use_cache = type(instance.config)().use_cache  # the trace had none, generating has
    if getattr(model, "generation_config", None) is not None:
        instance.generation_config = copy.deepcopy(model.generation_config)
        instance.generation_config.use_cache = True
    folder = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if finish is not None:
            finish(instance, folder)
        instance.save_pretrained(folder, max_shard_size=SHARD)
        again = type(instance).from_pretrained(folder, attn_implementation=model.config._attn_implementation)
        apart = apart_of(again.to(torch.float32), asked)
        if not apart <= HF_TOLERANCE:
            raise ExportError(
                f"{path}: loaded again, its outputs differ by {apart:.1e} (relative; {HF_TOLERANCE:g} is allowed); "
                "nothing was written; please report the model"
            )
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, old)
        os.rename(folder, path)
        shutil.rmtree(old, ignore_errors=True)
    except SslpruneError:
        raise
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error.strerror or first_line(error)})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
