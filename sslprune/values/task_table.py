"""The tasks by their names, with the metrics and the loss that a recipe gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sslprune.errors import RecipeError, first_line
from sslprune.values.imitation import Imitation, measures
from sslprune.values.metrics import Foreign, Measure, Metric
from sslprune.values.numbers import Labels, Numbers
from sslprune.values.outputs import Output
from sslprune.values.own_code import guarded
from sslprune.values.tasks import VOID, Task, loss_metric


@dataclass(frozen=True)
class Row:
    """A task without metrics, and those that it has where none are named."""

    task: Task
    metrics: tuple[str, ...]


TASKS: Mapping[str, Row] = {
    "classification": Row(Task("classification", {}), ("accuracy",)),
    "multi-label": Row(Labels("multi-label", {}), ("map", "f1")),
    "regression": Row(Numbers("regression", {}), ("mae", "rmse", "r2")),
    "segmentation": Row(Task("segmentation", {}, void=VOID, resized=True), ("miou", "accuracy")),
    "tagging": Row(Task("tagging", {}, classes_last=True), ("accuracy", "f1")),
    "language-modelling": Row(Task("language-modelling", {}, classes_last=True), ("perplexity",)),
    "embedding": Row(Imitation("embedding", {}, criterion="cosine"), ("cosine", "difference")),
    "distill": Row(Imitation("distill", {}, criterion="mse"), ("difference", "cosine")),
}
UNLABELLED = tuple(name for name, row in TASKS.items() if row.task.taught)


@dataclass(frozen=True)
class Named:
    """A metric as a recipe names it. ``lower_is_better``: where the metric itself does not say."""

    metric: str
    arguments: Mapping[str, Any] | None = None
    lower_is_better: bool | None = None


def task_of(
    name: str | Task,
    metrics: Sequence[str | Named] = (),
    own: Callable[[str], Any] | None = None,
    output: Output = None,
    void: int | None = None,
) -> Task:
    """The task of that name with the metrics of those names; ``own`` finds what "module:callable" names.

    ``name`` may be a task of one's own, which has metrics of its own where none are named.
    """
    usual: Sequence[str] = ()
    if isinstance(name, str) and name in TASKS:
        task, usual = TASKS[name].task, TASKS[name].metrics
    elif isinstance(name, Task):
        task = name
    elif not isinstance(name, str):
        raise RecipeError(f"data.task: its callable returned {type(name).__name__}; expected a sslprune.Task")
    else:
        raise RecipeError(
            f'data.task: "{name}" is not known; known are {", ".join(TASKS)}, and "module:callable" that returns a Task'
        )
    if output is not None:
        task = replace(task, output=output)
    if void is not None:
        if not task.of_classes or isinstance(task, Labels):
            raise RecipeError(f'data.void: data.task = "{task.name}" has no classes; leave it out')
        task = replace(task, void=void)
    table: Mapping[str, Measure] = measures(task) if isinstance(task, Imitation) else task.METRICS
    wanted = [entry if isinstance(entry, Named) else Named(entry) for entry in metrics or usual]
    found = {_short(entry.metric): _metric(entry, table, own, task) for entry in wanted}
    return replace(task, metrics=found) if found else task


def with_loss(task: Task, loss: str | None, label_smoothing: float, own: Callable[[str], Any]) -> Task:
    """``task`` with the loss that ``train.loss`` names; "model" is the model's own, and leaves the task as it is.

    Raises RecipeError for a loss that the task does not have, and a label smoothing that the loss does not read.
    """
    named_one = loss is not None and ":" in loss
    if label_smoothing and (named_one or loss == "model" or not task.of_classes):
        raise RecipeError(
            f"train.label_smoothing: {f'train.loss = {loss!r}' if loss else f'data.task = {task.name!r}'} does not "
            "read it; leave it out"
        )
    if loss is None or loss == "model":
        return _with_loss_metric(task, None)
    if named_one:
        function = _checked_loss(own(loss), loss)
        return _with_loss_metric(replace(task, own_loss=function), function)
    if loss not in task.LOSSES:
        raise RecipeError(
            f'train.loss: data.task = "{task.name}" has no loss "{loss}"; it has {", ".join(task.LOSSES)}; others are '
            '"module:callable" of (outputs, targets), and "model"'
        )
    return _with_loss_metric(replace(task, criterion=loss), None)


def _with_loss_metric(task: Task, own: Callable[[Any, Any], Tensor] | None) -> Task:
    """The metric "loss" is that of the loss which trains, where the task has no figure of its own for it."""
    if "loss" not in task.metrics or (own is None and "loss" in task.METRICS):
        return task
    measured = loss_metric(own or (lambda outputs, targets: task.loss(outputs, targets)))
    return replace(task, metrics={name: measured if name == "loss" else m for name, m in task.metrics.items()})


def _checked_loss(found: Callable[[Any, Any], Any], name: str) -> Callable[[Any, Any], Tensor]:
    def loss(outputs: Any, targets: Any) -> Tensor:
        value = found(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise RecipeError(f"train.loss: {name} returned {came}; expected a tensor of one number")
        return value.reshape(())

    return loss


def _metric(entry: Named, table: Mapping[str, Measure], own: Callable[[str], Any] | None, task: Task) -> Measure:
    name, lower = entry.metric, entry.lower_is_better
    if name in table:
        return table[name]
    if name == "loss":
        return loss_metric(lambda outputs, targets: task.loss(outputs, targets))
    if ":" not in name or own is None:
        known = [*table, *({"loss"} - set(table))]
        raise RecipeError(
            f'data.metrics: "{name}" is not known to data.task = "{task.name}"; known are {", ".join(known)}, and '
            '"module:callable"'
        )
    found, what = own(name), f"data.metrics: {name} failed"
    if isinstance(found, type) or entry.arguments is not None:
        found = _made(found, entry)
    if isinstance(found, Metric):
        less = found.lower_is_better if lower is None else lower
        sums, finish = guarded(found.sums, what), guarded(found.finish, what)
        return replace(found, sums=sums, finish=finish, lower_is_better=less)
    if _is_foreign(found):
        return Foreign(found, what, _direction(found, entry))
    less = bool(getattr(found, "lower_is_better", False)) if lower is None else lower
    return Metric(_sums_of(guarded(found, what), name), lower_is_better=less)


def _sums_of(found: Callable[[Any, Any], Any], name: str) -> Callable[[Any, Any], Tensor]:
    def sums(given: Any, targets: Any) -> Tensor:
        made = found(given, targets)
        try:
            total, number = map(float, made)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(
                f"data.metrics: {name} returned {type(made).__name__}; expected (sum, number) ({first_line(error)})"
            ) from error
        return torch.tensor([total, number], dtype=torch.float64)

    return sums


def _made(found: Any, entry: Named) -> Any:
    """The metric that a class or a function of arguments makes."""
    try:
        return found(**(entry.arguments or {}))
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"data.metrics: {entry.metric} refuses {dict(entry.arguments or {})}: {first_line(error)}; give what it "
            f'needs as {{ metric = "{entry.metric}", arguments = {{ ... }} }}'
        ) from error


def _is_foreign(found: Any) -> bool:
    """Whether it is an object that is updated and computed, as those of torchmetrics are."""
    return not isinstance(found, type) and all(hasattr(found, name) for name in ("update", "compute", "reset"))


def _direction(found: Any, entry: Named) -> bool:
    """Whether less is better, as the recipe or the metric says; RecipeError where neither does."""
    if entry.lower_is_better is not None:
        return entry.lower_is_better
    higher = getattr(found, "higher_is_better", None)
    if higher is None:
        raise RecipeError(
            f"data.metrics: {entry.metric} does not say whether more of it is better; give it as "
            f'{{ metric = "{entry.metric}", lower_is_better = true }}, or false'
        )
    return not higher


def _short(name: str) -> str:
    return name.rpartition(":")[2]
