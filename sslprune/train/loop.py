"""The training loop: dense, sparse, heal; a checkpoint after every epoch; a resume that changes nothing."""

from __future__ import annotations

import copy
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sslprune.carry import carrying, with_state
from sslprune.data import Data, build_data
from sslprune.errors import TrainingError
from sslprune.files import write_atomic, write_json
from sslprune.grain import grain
from sslprune.graph.cost import Cost
from sslprune.graph.find import find_axes
from sslprune.graph.trace import trace
from sslprune.inputs import Inputs, arguments, call, each
from sslprune.models import build_model, device_of, load_checkpoint
from sslprune.recipe import Recipe, parse_recipe
from sslprune.train.budget import BudgetController
from sslprune.train.evaluate import evaluate
from sslprune.train.lasso import GroupLasso
from sslprune.train.optimizer import build_optimizer, learning_rate
from sslprune.train.recalibrate import recalibrate
from sslprune.train.select import select_with_sections

CHECK_EVERY = 20  # steps between looks at the loss: on a GPU each look waits for the device


class TrainFiles(Protocol):
    """Where training writes: a run directory."""

    train_dir: Path
    checkpoint: Path
    initial: Path
    dense: Path
    masked: Path
    history: Path


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data, or the part of one that a phase still needs."""

    phase: str  # "dense", "sparse" or "heal"
    number: int  # from 0, over all phases
    num_steps: int
    label: str  # for people: "sparse 2/5"


@dataclass(frozen=True)
class Schedule:
    """The epochs of a run, and how many steps each phase has."""

    epochs: tuple[Epoch, ...]
    steps: dict[str, int]
    epoch_steps: int

    @classmethod
    def of(cls, recipe: Recipe, epoch_steps: int) -> Schedule:
        epochs: list[Epoch] = []
        steps = {}
        for phase in ("dense", "sparse", "heal"):
            left = steps[phase] = getattr(recipe.schedule, phase).steps(epoch_steps)
            count = math.ceil(left / epoch_steps)
            for i in range(count):
                epochs.append(Epoch(phase, len(epochs), min(epoch_steps, left), f"{phase} {i + 1}/{count}"))
                left -= epoch_steps
        return cls(tuple(epochs), steps, epoch_steps)

    def learning_rates(self, recipe: Recipe, epoch: Epoch) -> Iterator[float]:
        """The learning rate of each step of ``epoch``."""
        section, steps, heal = recipe.train, self.steps, recipe.train.heal
        first = sum(e.num_steps for e in self.epochs[: epoch.number] if e.phase == epoch.phase)
        num_steps = steps[epoch.phase]
        if heal == "continue" and epoch.phase != "dense":
            first += steps["sparse"] if epoch.phase == "heal" else 0
            num_steps = steps["sparse"] + steps["heal"]
        elif heal == "rewind" and epoch.phase == "heal":
            first, num_steps = first + steps["dense"] - num_steps, steps["dense"]
        elif epoch.phase == "sparse":
            section = section.model_copy(update={"lr": section.sparse_lr or section.lr})
        return (learning_rate(section, first + i, num_steps, self.epoch_steps) for i in range(epoch.num_steps))


class Trainer:
    """Everything of a run that changes while it trains; ``state_dict`` holds all of it."""

    def __init__(self, recipe: Recipe, run: TrainFiles, data: Data, model: nn.Module, show: Any) -> None:
        self.recipe, self.run, self.data, self.show = recipe, run, data, show
        self.device = device_of(recipe.run)
        self.model = model.to(self.device)
        for parameter in self.model.parameters():
            parameter.data = _channels_last(parameter.data)
        self.schedule = Schedule.of(recipe, len(data.train))
        self.controller = self._controller() if self.schedule.steps["sparse"] else None
        self.optimizer = build_optimizer(self.model, recipe.train)
        self.teacher: nn.Module | None = None
        self.student: Callable[..., Any] = self.model
        self.tutor: Callable[..., Any] | None = None
        self.judge = "valid" if data.valid is not None else "test"  # the data that each epoch is judged by
        self.history: list[dict[str, Any]] = []

    def fit(self) -> None:
        """Train the epochs that are not done yet, and write the masked model."""
        first = None  # kept until there is a run to keep it for
        if not self.history and self.recipe.model.checkpoint is None:
            first = weights_of(self.model)
        for epoch in self.schedule.epochs[len(self.history) :]:
            self._enter(epoch.phase)
            started = time.perf_counter()
            loss, lr = self._epoch(epoch)
            self.history.append(
                {
                    "epoch": epoch.number + 1,
                    "phase": epoch.phase,
                    "loss": loss,
                    "lr": lr,
                    "cost": self.controller.fraction if self.controller else 1.0,
                    "plan": self.controller.planned if self.controller and epoch.phase != "dense" else 1.0,
                    "norms": self._mean_norms(),
                    self.judge: evaluate(self.model, self.data.valid or self.data.test, self.data.task),
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
            if first is not None:
                write_weights(self.run.initial, first)
                first = None
            write_checkpoint(self.run.checkpoint, self.state_dict())
            write_json(self.run.history, self.history)
            self.show.say(_line(epoch, self.history[-1], self.judge))
        self._enter("done")
        self._recalibrate(self.model)
        write_weights(self.run.masked, self.model)

    def _mean_norms(self) -> dict[str, float]:
        """The mean ‖w_g‖ over the groups of each axis, by kind and name: for the report's picture of training."""
        if self.controller is None:
            return {}
        lasso = self.controller.lasso
        means = [float(norms.mean()) for norms in lasso.norms()]
        return {f"{axis.kind} {axis.name}": mean for axis, mean in zip(lasso.axes, means, strict=True)}

    def _controller(self) -> BudgetController:
        with self.show.progress("finding the axes"):
            example = each(self.data.example, lambda value: value.to(self.device))
            args, kwargs = arguments(example)
            program = trace(self.model, with_state(self.model, args), kwargs, sequence=self.data.sequence)
            axes = find_axes(program)
        chosen = select_with_sections(axes, self.recipe.prune)
        pruned = [axis for axis, _ in chosen]
        round_to = self.recipe.budget.round_to
        return BudgetController(
            GroupLasso(self.model, pruned),
            Cost(program, pruned),
            self.recipe.budget,
            self.recipe.lasso,
            self.schedule.steps["sparse"],
            round_to=grain() if round_to == "auto" else round_to,
            floors=[section.min_groups for _, section in chosen],
            strengths=[section.strength for _, section in chosen],
        )

    def _enter(self, phase: str) -> None:
        """What happens once, when the dense model is done: it is written, and from then on it may teach."""
        if phase == "dense" or self.teacher is not None:
            return
        if all(record["phase"] == "dense" for record in self.history):
            write_weights(self.run.dense, self.model)
            # a fresh start: the momentum of another schedule's last steps says nothing about this one's first
            self.optimizer = build_optimizer(self.model, self.recipe.train)
        if self.recipe.distill is not None:
            self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
            self.teacher.load_state_dict(load_file(self.run.dense))
            self._recalibrate(self.teacher)

    def _recalibrate(self, model: nn.Module) -> None:
        steps = self.recipe.train.recalibrate.steps(self.schedule.epoch_steps)
        if steps:
            with self.show.progress("taking batch statistics", steps) as bar:
                recalibrate(model, self.data.train, steps, bar.advance)

    def _epoch(self, epoch: Epoch) -> tuple[float, float]:
        """Train one epoch; returns the mean loss and the last learning rate."""
        rates = self.schedule.learning_rates(self.recipe, epoch)
        total = torch.zeros((), device=self.device)
        lr = 0.0
        self.model.train()
        self.student = carrying(self.model)  # over one epoch: a text begins anew with the next
        self.tutor = carrying(self.teacher) if self.teacher is not None else None
        with self.show.progress(epoch.label, epoch.num_steps) as bar:
            batches = self.data.train.epoch(epoch.number)
            for step, (lr, (inputs, targets)) in enumerate(zip(rates, batches, strict=False)):
                loss = self._step(inputs, targets, lr, epoch.phase)
                total += loss
                fields: dict[str, Any] = {}
                if step % CHECK_EVERY == CHECK_EVERY - 1 or step == epoch.num_steps - 1:
                    self._check(math.isfinite(total), f"{epoch.label}: the loss is {float(total)} by step {step + 1}")
                    fields = {"loss": float(total) / (step + 1)}
                    if epoch.phase == "sparse" and self.controller is not None:
                        fields |= {"cost": self.controller.fraction, "plan": self.controller.planned}
                bar.advance(1, **fields)
        finite = all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())
        self._check(finite, f"{epoch.label}: a weight is not finite")
        return float(total) / epoch.num_steps, lr

    def _step(self, inputs: Inputs, targets: Tensor, lr: float, phase: str) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        inputs = each(inputs, _channels_last)
        with self._precision():
            loss = self._loss(inputs, targets)
        loss = loss * self.recipe.train.loss_factor
        loss.backward()
        if self.recipe.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.train.clip_norm)
        if self.controller is not None and phase == "sparse":
            self.controller.observe(loss)
        self.optimizer.step()
        if self.controller is not None and phase != "dense":
            self.controller.step(lr)
        return loss.detach() / self.recipe.train.loss_factor

    def _loss(self, inputs: Inputs, targets: Tensor) -> Tensor:
        outputs, task = call(self.student, inputs), self.data.task
        if not self.history:  # once over the data is enough, and on a GPU each look waits for the device
            task.check(outputs, targets)
        loss = task.loss(outputs, targets, self.recipe.train.label_smoothing)
        if self.tutor is None or self.recipe.distill is None:
            return loss
        weight = self.recipe.distill.weight
        with torch.no_grad():
            taught = call(self.tutor, inputs)
        return (1 - weight) * loss + weight * task.distillation(
            outputs, taught, targets, self.recipe.distill.temperature
        )

    def _precision(self) -> AbstractContextManager[Any]:
        amp = self.recipe.train.amp
        if amp == "bf16" or (amp == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _check(self, finite: bool, found: str) -> None:
        if not finite:
            kept = f"the checkpoint of epoch {len(self.history)} is kept" if self.history else "nothing was kept"
            raise TrainingError(f"{found}; {kept}: lower train.lr or set train.clip_norm")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values alone, so that it loads with ``weights_only``."""
        return {
            "recipe": json.dumps(self.recipe.values()),
            "history": json.dumps(self.history),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "controller": self.controller.state_dict() if self.controller else None,
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; raises TrainingError if the recipe is another one now."""
        keys = parse_recipe(json.loads(state["recipe"])).differences(self.recipe)
        if keys:
            raise TrainingError(
                f"{self.run.checkpoint}: the recipe has changed since ({', '.join(keys)}); set it back, or start over "
                "without --resume"
            )
        self.history = json.loads(state["history"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], self.device)


def train(recipe: Recipe, run: TrainFiles, show: Any, start: nn.Module | None = None) -> None:
    """Train ``recipe``, or ``start`` by it, into ``run``; where its checkpoint exists, go on from there, to the same.

    Writes checkpoint.pt and history.json after each epoch, dense.safetensors (the model before any sparsity) and, last,
    masked.safetensors; after the first epoch, the weights that a model without a checkpoint began with. Raises the
    errors of the recipe, its data, its model and its budget before any training, and TrainingError for a loss that is
    not finite.
    """
    with _threads(recipe.run.threads):
        torch.manual_seed(recipe.run.seed)
        data = build_data(recipe, show)
        model, notes = (start, []) if start is not None else build_model(recipe.model)
        for note in notes:
            show.say(note)
        data.check(model)
        trainer = Trainer(recipe, run, data, model, show)
        if run.checkpoint.is_file():
            trainer.load_state_dict(load_checkpoint(run.checkpoint))
            show.say(f"resuming after epoch {len(trainer.history)} of {len(trainer.schedule.epochs)}")
        trainer.fit()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """``count`` threads of the CPU inside the block, 0 for as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer of ``model`` by its name, on the CPU."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}


def write_weights(path: Path, weights: nn.Module | dict[str, Tensor]) -> None:
    """The weights of a model, as safetensors."""
    packed = save(weights_of(weights) if isinstance(weights, nn.Module) else weights)
    write_atomic(path, lambda temporary: temporary.write_bytes(packed))


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """``torch.save``, but through memory: writing to a full disk is then an OSError like any other."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def _channels_last(value: Tensor) -> Tensor:
    """The layout that oneDNN and cuDNN compute 2d convolutions in: a fifth faster on a CPU than the default."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def _line(epoch: Epoch, record: dict[str, Any], judge: str) -> str:
    scores = ", ".join(f"{name} {value:.2f}" for name, value in record[judge].items())
    cost = f", cost {record['cost']:.3f} (plan {record['plan']:.3f})" if epoch.phase == "sparse" else ""
    return f"{epoch.label}: loss {record['loss']:.4f}, {judge} {scores}{cost}, {record['seconds']:.1f} s"
