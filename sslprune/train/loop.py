"""The training loop: dense, sparse, heal; a checkpoint after every epoch; a resume that changes nothing."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from sslprune.capture.program import Program
from sslprune.data import Data
from sslprune.errors import RepackError, TrainingError
from sslprune.files import write_atomic, write_json, write_text
from sslprune.models.build import count_parameters, device_of, load_checkpoint, load_weights
from sslprune.recipe import Recipe, parse_recipe
from sslprune.removal.factors import fold_
from sslprune.train.calibrate import calibrate_
from sslprune.train.checkpoint import TrainingFiles, weights_of, write_checkpoint, write_weights
from sslprune.train.cuts import finish_
from sslprune.train.evaluate import evaluate
from sslprune.train.layout import lay_out_
from sslprune.train.log import Log, line_of
from sslprune.train.nested import Nested
from sslprune.train.optimizer import build_optimizer
from sslprune.train.pace import Pace
from sslprune.train.parts import OwnParts
from sslprune.train.recalibrate import recalibrate
from sslprune.train.recall import Recall
from sslprune.train.replicas import Replicas
from sslprune.train.schedule import Epoch, Schedule
from sslprune.train.shards import Shards
from sslprune.train.sparsity import Sparsity
from sslprune.train.steered import steered
from sslprune.train.step import Step
from sslprune.train.teacher import build_teacher
from sslprune.values.axes import tensors_of
from sslprune.values.carry import carrying
from sslprune.values.inputs import each
from sslprune.values.selection import Selection
from sslprune.values.team import Alone, Team, digest
from sslprune.values.voice import Voice

CHECK_EVERY = 20  # steps between looks at the loss: on a GPU each look waits for the device


class Trainer:
    """Everything of a run that changes while it trains; ``state_dict`` holds all of it.

    ``model`` is the one that ``previous`` ended with, where that is an earlier point of a sweep: there are no dense
    epochs then, and what is zero stays so. Of a ``team`` each process has a trainer; the first one's writes.
    """

    def __init__(
        self,
        recipe: Recipe,
        files: TrainingFiles,
        data: Data,
        model: nn.Module,
        show: Voice,
        previous: TrainingFiles | None = None,
        team: Team | None = None,
    ) -> None:
        self.recipe, self.files, self.data, self.show, self.previous = recipe, files, data, show, previous
        self.team = team or Alone()
        self.device = device_of(recipe.run)
        self.replicas = (Shards if recipe.run.shard else Replicas)(recipe, self.team, data.task, self.device)
        self.model = model.to(self.device)
        self.other: nn.Module | None = None  # that the recipe names to teach, in place of the dense model
        if recipe.distill is not None and recipe.distill.teacher is not None:
            self.other = build_teacher(recipe.distill.teacher, self.model, data).to(self.device)
        example = each(data.example, lambda value: value.to(self.device))
        shaped = [] if recipe.run.shard else [self.model, *([self.other] if self.other is not None else [])]
        laid_out = lay_out_(shaped, example)  # what is shared out lies row by row
        self.schedule = Schedule.of(recipe, len(data.train), dense=previous is None)
        self.sparsity: Sparsity | None = None
        steps = self.schedule.steps["sparse"]
        if steps or recipe.calibrate is not None:
            self.sparsity = steered(recipe, data, self.model, steps, show, self.team, begun=previous is not None)
        self.shrinks = self._shrinks()
        self.replicas.lay_out_(self.model, self.sparsity)
        self.optimizer = build_optimizer(self.model, recipe.train)
        self.teacher: nn.Module | None = None  # from the end of the dense epochs on
        self.recall = Recall(2 * self.schedule.epoch_steps * recipe.train.accumulate)
        self.step = Step(recipe, data.task, self.device, laid_out, self.replicas, self.recall)
        self.recall.over = self.team.world > 1 or self.step.hidden is not None  # a checkpoint has one process's memory
        self.judge = "valid" if data.valid is not None else "test"  # the data that each epoch is judged by
        self.history: list[dict[str, Any]] = []
        self.log: Log | None = None  # from the beginning of `fit` on, of the process that writes
        self.pace = Pace(self.schedule)
        self.replicas.draw_apart()

    @property
    def program(self) -> Program | None:
        """What the model was traced to, where anything is to be removed."""
        return self.sparsity.program if self.sparsity is not None else None

    @property
    def trained(self) -> nn.Module:
        """The model that trains: the whole one, or what shrinking has left of it."""
        return self.sparsity.trained if self.sparsity is not None else self.model

    def fit(self) -> None:
        """Train the epochs that are not done yet, and write the masked model."""
        first = None  # kept until there is a run to keep it for
        writes = self.team.first
        if not self.history and self.recipe.model.checkpoint is None and self.previous is None:
            whole = self._restored()
            first = weights_of(whole) if writes else None
        left = self.schedule.epochs[len(self.history) :]
        if writes and left:
            self.log = Log(self.recipe, self.files, self.show, left[0].number, self.schedule.steps_before(left[0]))
        for epoch in left:
            self.enter(epoch.phase)
            started = time.perf_counter()
            loss, lr = self._calibrate() if epoch.phase == "calibrate" else self.epoch(epoch)
            self.history.append(
                {
                    "epoch": epoch.number + 1,
                    "phase": epoch.phase,
                    "loss": loss,
                    "lr": lr,
                    "cost": self.sparsity.fraction if self.sparsity else 1.0,
                    "plan": self.sparsity.planned if self.sparsity and epoch.phase != "dense" else 1.0,
                    "norms": self._mean_norms(),
                    "parameters": count_parameters(self.trained),
                    **self._judged(),
                    **(self.replicas.sent(self.trained) if epoch.num_steps else {}),
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
            if first is not None:
                write_weights(self.files.initial, first)
                first = None
            self._tell(epoch, epoch.num_steps, {k: v for k, v in self.history[-1].items() if k != "norms"})
            state = self.state_dict()
            if writes:
                write_checkpoint(self.files.checkpoint, state)
                write_json(self.files.history, self.history)
            self.show.say(line_of(epoch, self.history[-1], self.judge, self.trained is not self.model))
        if self.log is not None:
            self.log.close()
        self.enter("done")
        if isinstance(self.sparsity, Nested):
            self._select(finish_(self.sparsity, self._recalibrate, self.files if writes else None))
        else:
            if self.sparsity is not None:
                self._select(self.sparsity.selected(self._restored()))
            self._recalibrate(self.model)  # which is whole again; what trained has the statistics of before
        masked = self.replicas.whole(self.model)
        if writes:
            if not self.schedule.epochs:  # a point of a sweep that nothing is trained for
                write_json(self.files.history, self.history)
            write_weights(self.files.masked, masked)

    def _select(self, selection: Selection) -> None:
        """Write down what goes, which is the same on all processes."""
        text = selection.to_json()
        self.team.agree("selection", digest(text))
        if self.team.first:
            write_text(self.files.selection, text)

    def _calibrate(self) -> tuple[float, float]:
        """Choose and repair without training; returns how far the outputs are from the dense model's, and no rate."""
        assert self.sparsity is not None
        apart = 0.0
        if self.team.first:
            dense = None if self.previous is None else load_checkpoint(self.files.dense)
            apart = calibrate_(self.sparsity, self.recipe, self.data, dense, self.show).repaired
        self.team.share_(tensors_of(self.model).values())
        if self.team.world > 1:
            self.sparsity.load_state_dict(self.team.broadcast(self.sparsity.state_dict()), self.optimizer)
        return apart, 0.0

    def _mean_norms(self) -> dict[str, float]:
        """The mean ‖w_g‖ over the groups of each axis, by kind and name: for the report's picture of training."""
        if self.sparsity is None:
            return {}
        lasso = self.sparsity.controller.lasso
        means = [float(norms.mean()) for norms in lasso.norms()]
        return {f"{axis.kind} {axis.name}": mean for axis, mean in zip(lasso.axes, means, strict=True)}

    def enter(self, phase: str) -> None:
        """What happens once, when the dense model is done: it is written, and from then on it may teach."""
        if phase == "dense" or self.teacher is not None:
            return
        if all(record["phase"] == "dense" for record in self.history):
            dense = self._restored()
            if self.team.first and self.previous is None:
                write_weights(self.files.dense, dense)
            elif self.team.first and self.previous is not None:
                for there, here in (
                    (self.previous.initial, self.files.initial),
                    (self.previous.dense, self.files.dense),
                ):
                    if there.is_file():
                        write_atomic(here, partial(shutil.copyfile, there))
            # a fresh start: the momentum of another schedule's last steps says nothing about this one's first
            self.optimizer = build_optimizer(self.model, self.recipe.train)
        if self.recipe.distill is not None:
            self.teacher = self.other
            if self.teacher is None:
                self.teacher = copy.deepcopy(self._restored()).to(self.device).eval().requires_grad_(False)
                if self.team.first:
                    load_weights(self.teacher, load_checkpoint(self.files.dense), self.files.dense)
                self.team.share_(tensors_of(self.teacher).values())
                fold_(self.teacher)
            self._recalibrate(self.teacher)

    def _recalibrate(self, model: nn.Module) -> None:
        steps = self.recipe.train.recalibrate.steps(self.schedule.epoch_steps)
        if steps:
            with self.show.progress("taking batch statistics", steps) as bar, self.replicas.statistics():
                parts = OwnParts(self.data.train, self.team, self.recipe.train.accumulate)
                recalibrate(model, parts, steps * self.recipe.train.accumulate, bar.advance)
            self.replicas.average_(model)

    def _shrinks(self) -> bool:
        """Whether zero groups leave the model while it trains: where the recipe asks for it and the model can."""
        if self.sparsity is None or self.recipe.schedule.shrink is None:
            return False
        try:
            shrinker = self.sparsity.shrinkable()
        except RepackError as error:  # it trains at its full size then, to the same end
            self.show.say(f"schedule.shrink: {error}")
            return False
        for note in shrinker.notes:
            self.show.say(f"schedule.shrink: {note}")
        return True

    def _shrink(self, epoch: Epoch, step: int) -> bool:
        """Take zero groups out of the model that trains, where it is time to; whether anything went."""
        if not self.shrinks or epoch.phase == "dense":
            return False
        assert self.sparsity is not None and self.recipe.schedule.shrink is not None
        done = sum(e.num_steps for e in self.schedule.epochs[: epoch.number] if e.phase != "dense") + step
        every = self.recipe.schedule.shrink.steps(self.schedule.epoch_steps)
        due = done % every == 0 or done == self.schedule.steps["sparse"]
        if not due:
            return False
        before = self.trained
        self.replicas.settle(before, self.optimizer, self.sparsity)
        after = self.sparsity.shrink(self.optimizer)
        return after is not before

    def _restored(self) -> nn.Module:
        """The whole model as it is trained so far: every process asks, the first one's has its numbers."""
        return self.replicas.whole(self.sparsity.restore() if self.sparsity is not None else self.model)

    def _judged(self) -> dict[str, Any]:
        """What goes into the history of an epoch: the scores, of each nested point where there are any."""
        judges = self.data.valid or self.data.test
        scores = partial(evaluate, self.trained, judges, self.data.task, self.replicas.judges)
        return self.sparsity.judged(self.judge, scores) if self.sparsity is not None else {self.judge: scores()}

    def epoch(self, epoch: Epoch) -> tuple[float, float]:
        """Train one epoch; returns the mean loss and the last learning rate."""
        rates = self.schedule.learning_rates(self.recipe, epoch)
        total = torch.zeros((), device=self.device)
        lr = 0.0
        self.trained.train()
        students = self._students()  # over one epoch: a text begins anew with the next
        count = self.recipe.train.accumulate
        sparsity = self.sparsity if epoch.phase != "dense" else None
        num_passes = self.sparsity.num_passes if self.sparsity is not None else 1
        teacher = self.teacher
        tutors = [[carrying(teacher) for _ in range(count)] for _ in range(num_passes)] if teacher is not None else None
        self.pace.begin()
        with self.show.progress(epoch.label, epoch.num_steps) as bar:
            batches = self.data.train.epoch(epoch.number)
            for step, (lr, batch) in enumerate(zip(rates, batches, strict=False)):
                if self._shrink(epoch, step):
                    students = self._students()  # a carried state begins anew
                observes = epoch.phase == "sparse"
                total += self.step(self.trained, students, tutors, self.optimizer, batch, lr, sparsity, observes)
                self.step.checked = self.step.checked or bool(self.history)
                fields: dict[str, Any] = {}
                if step % CHECK_EVERY == CHECK_EVERY - 1 or step == epoch.num_steps - 1:
                    self._check(math.isfinite(total), f"{epoch.label}: the loss is {float(total)} by step {step + 1}")
                    fields = {"loss": float(total) / (step + 1)}
                    if epoch.phase == "sparse" and sparsity is not None:
                        fields["cost"] = sparsity.fraction
                        if sparsity.planned is not None:
                            fields["plan"] = sparsity.planned
                    self._tell(epoch, step + 1, {"lr": lr, **fields})
                    fields |= self.pace.left(epoch, step + 1)
                bar.advance(1, **fields)
        self.pace.end()
        finite = all(bool(parameter.isfinite().all()) for parameter in self.trained.parameters())
        self._check(finite, f"{epoch.label}: a weight is not finite")
        self.replicas.settle(self.trained, self.optimizer, self.sparsity)
        return float(self.team.mean(total)) / epoch.num_steps, lr

    def _tell(self, epoch: Epoch, step: int, record: dict[str, Any]) -> None:
        """A line of the log, and whoever else listens, at a step of ``epoch``."""
        if self.log is not None:
            step += self.schedule.steps_before(epoch)
            if epoch.phase == "sparse" and self.sparsity is not None:
                record["strength"] = float(self.sparsity.controller.lasso.strength.max())
            self.log.add(step, {"epoch": epoch.number + 1, "phase": epoch.phase, **record})

    def _students(self) -> list[list[Callable[..., Any]]]:
        """What is called for each pass over a batch and each part of it, to train."""
        wrapper, count = self.step.compiler(self.replicas.wrap(self.trained)), range(self.recipe.train.accumulate)
        passes = self.sparsity.num_passes if self.sparsity is not None else 1
        return [[carrying(self.trained, wrapper) for _ in count] for _ in range(passes)]

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
            "optimizer": self.replicas.optimizer_state(self.trained, self.optimizer),
            "sparsity": self.sparsity.state_dict() if self.sparsity else None,
            "recall": self.recall.state_dict(),
            **self.replicas.draws(self.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; raises TrainingError if the recipe is another one now."""
        keys = parse_recipe(json.loads(state["recipe"])).differences(self.recipe)
        if keys:
            raise TrainingError(
                f"{self.files.checkpoint}: the recipe has changed since ({', '.join(keys)}); set it back, or start "
                "over without --resume"
            )
        self.history = json.loads(state["history"])
        self.replicas.load_(self.model, state["model"], self.files.checkpoint)
        if self.sparsity is not None:
            self.sparsity.load_state_dict(state["sparsity"], self.optimizer)
        self.replicas.load_optimizer(self.trained, self.optimizer, state["optimizer"])
        self.recall.load_state_dict(state.get("recall"))
        if not self.replicas.draw_on(state, self.device):
            self.show.say(
                f"the run had {1 + len(state.get('others', []))} processes, and has {self.team.world} now: it goes on, "
                "and sums differ in their last digits",
                "yellow",
            )
