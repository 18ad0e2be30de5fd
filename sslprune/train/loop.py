"""The training loop: dense, sparse, heal; a checkpoint after every epoch; a resume that changes nothing."""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sslprune.bench.fit import latency_cost
from sslprune.capture.demands import check_for_run
from sslprune.capture.program import Program
from sslprune.capture.trace import trace
from sslprune.choose.sections import select_with_sections
from sslprune.cost.counts import Cost
from sslprune.data import Data, build_data
from sslprune.errors import RepackError, TrainingError
from sslprune.files import write_atomic, write_json
from sslprune.kinds.find import find_axes
from sslprune.models.build import build_model, count_parameters, device_of, load_checkpoint, load_weights
from sslprune.recipe import Recipe, parse_recipe
from sslprune.train.budget import BudgetController
from sslprune.train.evaluate import evaluate
from sslprune.train.optimizer import build_optimizer
from sslprune.train.recalibrate import recalibrate
from sslprune.train.schedule import Epoch, Schedule
from sslprune.train.shrink import Shrinker
from sslprune.train.sparsity import Controller, build_controller
from sslprune.train.teacher import build_teacher, mixed_loss
from sslprune.values.axes import tensors_of, zero_mask
from sslprune.values.carry import carrying
from sslprune.values.inputs import Inputs, call, each

CHECK_EVERY = 20  # steps between looks at the loss: on a GPU each look waits for the device


class TrainFiles(Protocol):
    """Where training writes: a run directory."""

    train_dir: Path
    checkpoint: Path
    initial: Path
    dense: Path
    masked: Path
    history: Path


class Trainer:
    """Everything of a run that changes while it trains; ``state_dict`` holds all of it.

    ``model`` is the one that ``previous`` ended with, where that is an earlier point of a sweep: there are no dense
    epochs then, and what is zero stays so.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: TrainFiles,
        data: Data,
        model: nn.Module,
        show: Any,
        previous: TrainFiles | None = None,
    ) -> None:
        self.recipe, self.run, self.data, self.show, self.previous = recipe, run, data, show, previous
        self.device = device_of(recipe.run)
        self.model = model.to(self.device)
        for parameter in self.model.parameters():
            parameter.data = _channels_last(parameter.data)
        self.schedule = Schedule.of(recipe, len(data.train), dense=previous is None)
        self.program: Program | None = None
        self.controller = self._controller() if self.schedule.steps["sparse"] else None
        self.shrinker = self._shrinker()
        self.optimizer = build_optimizer(self.model, recipe.train)
        self.other: nn.Module | None = None  # that the recipe names to teach, in place of the dense model
        if recipe.distill is not None and recipe.distill.teacher is not None:
            self.other = build_teacher(recipe.distill.teacher, self.model, data).to(self.device)
        self.teacher: nn.Module | None = None  # from the end of the dense epochs on
        self.student: Callable[..., Any] = self.trained
        self.tutor: Callable[..., Any] | None = None
        self.judge = "valid" if data.valid is not None else "test"  # the data that each epoch is judged by
        self.history: list[dict[str, Any]] = []

    @property
    def trained(self) -> nn.Module:
        """The model that trains: the whole one, or what shrinking has left of it."""
        return self.shrinker.model if self.shrinker is not None else self.model

    def fit(self) -> None:
        """Train the epochs that are not done yet, and write the masked model."""
        first = None  # kept until there is a run to keep it for
        if not self.history and self.recipe.model.checkpoint is None and self.previous is None:
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
                    "parameters": count_parameters(self.trained),
                    self.judge: evaluate(self.trained, self.data.valid or self.data.test, self.data.task),
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
            if first is not None:
                write_weights(self.run.initial, first)
                first = None
            write_checkpoint(self.run.checkpoint, self.state_dict())
            write_json(self.run.history, self.history)
            self.show.say(_line(epoch, self.history[-1], self.judge, self.trained is not self.model))
        self._enter("done")
        masked = self._restored()
        self._recalibrate(masked)
        write_weights(self.run.masked, masked)

    def _mean_norms(self) -> dict[str, float]:
        """The mean ‖w_g‖ over the groups of each axis, by kind and name: for the report's picture of training."""
        if self.controller is None:
            return {}
        lasso = self.controller.lasso
        means = [float(norms.mean()) for norms in lasso.norms()]
        return {f"{axis.kind} {axis.name}": mean for axis, mean in zip(lasso.axes, means, strict=True)}

    def _controller(self) -> Controller:
        with self.show.progress("finding the axes"):
            example = self.data.example_for(self.model)
            example = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(self.device), example)
            self.program = program = trace(self.model, *example, sequence=self.data.sequence)
            check_for_run(program, self.model)
            chosen = select_with_sections(find_axes(program), self.recipe.prune)
        pruned = [axis for axis, _ in chosen]
        tensors = tensors_of(self.model)
        kept = [~zero_mask(self.model, axis, tensors) for axis in pruned] if self.previous is not None else None
        budget, section, steps = self.recipe.budget, self.recipe.lasso, self.schedule.steps["sparse"]
        cost = self._latency() if budget.measure == "latency" else Cost(program, pruned)
        return build_controller(self.model, chosen, cost, budget, section, steps, kept)

    def _latency(self) -> Cost:
        """The cost in microseconds of this machine's CPU, wherever the model trains."""
        with self.show.progress("measuring layers"):
            found = latency_cost(self.model, self.data.example, self.data.sequence, self.recipe)
        self.show.say(
            f"dense latency: {found.whole / 1e3:.3f} ms whole, {found.table / 1e3:.3f} ms as a sum over layers, fitted"
            f" to it ({found.num_measured or 'no'} new measurements)"
        )
        return found.cost

    def _enter(self, phase: str) -> None:
        """What happens once, when the dense model is done: it is written, and from then on it may teach."""
        if phase == "dense" or self.teacher is not None:
            return
        if all(record["phase"] == "dense" for record in self.history):
            if self.previous is None:
                write_weights(self.run.dense, self.model)
            else:
                for there, here in ((self.previous.initial, self.run.initial), (self.previous.dense, self.run.dense)):
                    if there.is_file():
                        write_atomic(here, partial(shutil.copyfile, there))
            # a fresh start: the momentum of another schedule's last steps says nothing about this one's first
            self.optimizer = build_optimizer(self.model, self.recipe.train)
        if self.recipe.distill is not None:
            self.teacher = self.other
            if self.teacher is None:
                self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
                self.teacher.load_state_dict(load_file(self.run.dense))
            self._recalibrate(self.teacher)

    def _recalibrate(self, model: nn.Module) -> None:
        steps = self.recipe.train.recalibrate.steps(self.schedule.epoch_steps)
        if steps:
            with self.show.progress("taking batch statistics", steps) as bar:
                recalibrate(model, self.data.train, steps, bar.advance)

    def _shrinker(self) -> Shrinker | None:
        """What takes zero groups out in training, where the recipe asks for it and the model can."""
        if self.controller is None or self.program is None or self.recipe.schedule.shrink is None:
            return None
        lasso = self.controller.lasso
        try:
            shrinker = Shrinker(self.model, self.program, lasso.axes, lasso)
        except RepackError as error:  # it trains at its full size then, to the same end
            self.show.say(f"schedule.shrink: {error}")
            return None
        for note in shrinker.notes:
            self.show.say(f"schedule.shrink: {note}")
        return shrinker

    def _shrink(self, epoch: Epoch, step: int) -> None:
        """Take zero groups out of the model that trains, where it is time to."""
        if self.shrinker is None or self.recipe.schedule.shrink is None or epoch.phase == "dense":
            return
        done = sum(e.num_steps for e in self.schedule.epochs[: epoch.number] if e.phase != "dense") + step
        every = self.recipe.schedule.shrink.steps(self.schedule.epoch_steps)
        due = done % every == 0 or done == self.schedule.steps["sparse"]
        if due and self.shrinker.shrink(self.optimizer):
            self.student = carrying(self.trained)  # a carried state begins anew

    def _restored(self) -> nn.Module:
        """The whole model as it is trained so far."""
        return self.shrinker.restore() if self.shrinker is not None else self.model

    def _epoch(self, epoch: Epoch) -> tuple[float, float]:
        """Train one epoch; returns the mean loss and the last learning rate."""
        rates = self.schedule.learning_rates(self.recipe, epoch)
        total = torch.zeros((), device=self.device)
        lr = 0.0
        self.trained.train()
        self.student = carrying(self.trained)  # over one epoch: a text begins anew with the next
        self.tutor = carrying(self.teacher) if self.teacher is not None else None
        with self.show.progress(epoch.label, epoch.num_steps) as bar:
            batches = self.data.train.epoch(epoch.number)
            for step, (lr, (inputs, targets)) in enumerate(zip(rates, batches, strict=False)):
                self._shrink(epoch, step)
                loss = self._step(inputs, targets, lr, epoch.phase)
                total += loss
                fields: dict[str, Any] = {}
                if step % CHECK_EVERY == CHECK_EVERY - 1 or step == epoch.num_steps - 1:
                    self._check(math.isfinite(total), f"{epoch.label}: the loss is {float(total)} by step {step + 1}")
                    fields = {"loss": float(total) / (step + 1)}
                    if epoch.phase == "sparse" and self.controller is not None:
                        fields["cost"] = self.controller.fraction
                        if self.controller.planned is not None:
                            fields["plan"] = self.controller.planned
                bar.advance(1, **fields)
        finite = all(bool(parameter.isfinite().all()) for parameter in self.trained.parameters())
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
            nn.utils.clip_grad_norm_(self.trained.parameters(), self.recipe.train.clip_norm)
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
        with torch.no_grad():
            taught = call(self.tutor, inputs)
        return mixed_loss(loss, outputs, taught, targets, task, self.recipe.distill)

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
            "model": self._restored().state_dict(),
            "removed": [torch.from_numpy(mask) for mask in self.shrinker.removed] if self.shrinker else None,
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
        if self.shrinker is not None and any(mask.any() for mask in state.get("removed") or ()):
            self.shrinker.remove([mask.numpy() for mask in state["removed"]], self.optimizer)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], self.device)


def train(
    recipe: Recipe,
    run: TrainFiles,
    show: Any,
    start: nn.Module | None = None,
    *,
    previous: TrainFiles | None = None,
    goal: float | None = None,
    ready: Callable[[Data, nn.Module], None] = lambda data, model: None,
) -> Program | None:
    """Train ``recipe``, or ``start`` by it, into ``run``; where its checkpoint exists, go on from there, to the same.

    Writes checkpoint.pt and history.json after each epoch, dense.safetensors (the model before any sparsity) and, last,
    masked.safetensors; after the first epoch, the weights that a model without a checkpoint began with. Raises the
    errors of the recipe, its data, its model and its budget before any training, as ``ready`` does, which is given data
    and model; TrainingError for a loss that is not finite. Returns the program that the model was traced to, if any.

    In a sweep, ``previous`` is the finished point before this one: its masked weights and zeros are the beginning, and
    its dense model stays the dense one. ``goal`` is the sweep's smallest fraction, which has to be reachable as well.
    """
    with _threads(recipe.run.threads):
        torch.manual_seed(recipe.run.seed)
        data = build_data(recipe, show)
        section = recipe.model if previous is None else recipe.model.model_copy(update={"checkpoint": None})
        model, notes = (start, []) if start is not None else build_model(section)
        if previous is not None:
            load_weights(model, load_checkpoint(previous.masked), previous.masked)
        for note in notes if previous is None else ():
            show.say(note)
        data.check(model)
        ready(data, model)
        trainer = Trainer(recipe, run, data, model, show, previous)
        if goal is not None and isinstance(trainer.controller, BudgetController):
            trainer.controller.check_reachable(goal)
        if run.checkpoint.is_file():
            trainer.load_state_dict(load_checkpoint(run.checkpoint))
            show.say(f"resuming after epoch {len(trainer.history)} of {len(trainer.schedule.epochs)}")
        trainer.fit()
        return trainer.program


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


def _line(epoch: Epoch, record: dict[str, Any], judge: str, smaller: bool) -> str:
    scores = ", ".join(f"{name} {value:.2f}" for name, value in record[judge].items())
    plan = f" (plan {record['plan']:.3f})" if record["plan"] is not None else ""
    cost = f", cost {record['cost']:.3f}{plan}" if epoch.phase == "sparse" else ""
    size = f", {record['parameters']:,} parameters" if smaller else ""
    return f"{epoch.label}: loss {record['loss']:.4f}, {judge} {scores}{cost}{size}, {record['seconds']:.1f} s"
