"""Nested points: one set of weights, and smaller models that are parts of the larger ones.

The largest point is learned as any budget is, and its zeros are zeros. Each further point is a *view* of the same
weights: its own groups are multiplied by factors that decay to zero along its own plan, while the weights stay what the
larger points need. A step trains the largest view, the smallest one and one between, drawn anew (the sandwich rule: Yu
and Huang 2019, "Universally slimmable networks"; BigNAS: Yu et al. 2020), by the mean of their gradients. Each view has
running statistics of its own, as what a norm sees differs (slimmable networks: Yu et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslprune.capture.program import Program
from sslprune.cost.counts import Cost
from sslprune.errors import TrainingError
from sslprune.recipe import PruneSection, Recipe
from sslprune.train.budget import BudgetController
from sslprune.train.lasso import GroupLasso
from sslprune.train.shrink import Follower
from sslprune.train.sparsity import Sparsity, build_controller
from sslprune.values.axes import Axis
from sslprune.values.carry import carries
from sslprune.values.selection import Selection
from sslprune.values.tasks import Task
from sslprune.values.team import Team


class ViewLasso(GroupLasso):
    """What acts on a view's ``factors``, shape (groups + 1,), in place of the weights, which are not its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.factors = torch.ones_like(self.alive)

    def _scale(self, factor: Tensor) -> None:
        self.factors *= factor

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "factors": self.factors.clone()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The weights times the factors inside the block, and gradients made there: of the weights, behind it."""
        kept = [tensor.clone() for bundle in self.bundles for tensor in bundle.tensors]
        with torch.no_grad():
            super()._scale(self.factors)
        try:
            yield
        finally:
            with torch.no_grad():
                rest = iter(kept)
                for bundle in self.bundles:
                    by = prod(
                        (self._along(self.factors, bundle, sheet) for sheet in bundle.sheets), start=torch.ones(())
                    )
                    for parameter, factor in zip(bundle.parameters, by, strict=True):
                        parameter.copy_(next(rest))
                        if parameter.grad is not None:
                            parameter.grad.mul_(factor.to(parameter.grad.dtype))


class View:
    """A smaller point: what steers it, the ``lasso`` that its controller acts through, and its own statistics."""

    def __init__(self, fraction: float, controller: BudgetController) -> None:
        assert isinstance(controller.lasso, ViewLasso)
        self.fraction, self.controller, self.lasso = fraction, controller, controller.lasso
        self.buffers: dict[str, Tensor] = {}  # from its beginning on

    @property
    def learns(self) -> bool:
        """Whether it is still on its way."""
        return self.controller.taken < self.controller.num_steps

    def begin(self, larger: Selection, buffers: Mapping[str, Tensor]) -> None:
        """Start from where the next larger point has ended."""
        self.controller.begin(larger)
        self.lasso.factors.copy_(self.lasso.alive)
        self.buffers = {name: value.clone() for name, value in buffers.items()}

    @contextmanager
    def worn(self, model: nn.Module) -> Iterator[None]:
        """``model`` is this point inside the block; what its buffers become there is kept for the next time."""
        there = dict(model.named_buffers())
        kept = {name: value.clone() for name, value in there.items()}
        _fill(there, self.buffers)
        try:
            with self.lasso.applied():
                yield
        finally:
            self.buffers = {name: value.clone() for name, value in there.items()}
            _fill(there, kept)


class Nested(Sparsity):
    """A `Sparsity` of several points: its own controller is the largest one's, and ``views`` are the others.

    ``sparse`` steps are taken for one point after the other. ``num_begun``: how many views are trained so far.
    """

    views: list[View]
    fractions: tuple[float, ...]  # of the points, largest first
    seed: int
    num_begun: int
    drawn: int  # how often a view between was

    @classmethod
    def of(
        cls,
        model: nn.Module,
        program: Program,
        chosen: Sequence[tuple[Axis, PruneSection]],
        cost: Cost,
        recipe: Recipe,
        steps: int,
        team: Team,
        task: Task | None = None,
    ) -> Nested:
        """Steers ``model`` to all points of ``recipe``, in ``steps`` sparse steps together."""
        first, *smaller = recipe.points()
        each = steps // len(recipe.budget.points)
        made = cls.__new__(cls)
        made._steer(model, program, build_controller(model, program, chosen, cost, first, each, team=team), team, task)
        made.views, made.fractions, made.seed = [], recipe.budget.points, recipe.run.seed
        made.num_begun = made.drawn = 0
        for point in smaller:
            plain = point.model_copy(update={"lasso": point.lasso.model_copy(update={"ratio": 0.0})})  # no penalty
            controller = build_controller(model, program, chosen, cost, plain, each, team=team, lasso=ViewLasso)
            assert isinstance(controller, BudgetController)
            made.views.append(View(point.budget.fraction, controller))
        return made

    @property
    def begun(self) -> list[View]:
        """The views that are trained so far."""
        return self.views[: self.num_begun]

    @property
    def fraction(self) -> float:
        return self.begun[-1].controller.fraction if self.begun else super().fraction

    @property
    def planned(self) -> float | None:
        return self.begun[-1].controller.planned if self.begun else super().planned

    @property
    def lassos(self) -> list[GroupLasso]:
        return [*super().lassos, *(view.lasso for view in self.views)]

    @property
    def statistics(self) -> list[Tensor]:
        return [value for view in self.begun for value in view.buffers.values()]

    @property
    def num_passes(self) -> int:
        return 1 + len(self.views)

    def passes_in(self, phase: str) -> float:
        passes = [min(n, 3) for n in range(1, self.num_passes + 1)]  # while the n-th point is on its way
        return {"sparse": float(np.mean(passes)), "heal": float(passes[-1])}.get(phase, 1.0)

    def observe(self, loss: float | Tensor, inputs: Any = None) -> None:
        if not self.begun:  # a view looks at its own passes
            super().observe(loss, inputs)

    def step(self, lr: float) -> None:
        super().step(lr)
        if self.begun and self.begun[-1].learns:
            self.begun[-1].controller.step(lr)
        latest = self.begun[-1].controller if self.begun else self.controller
        if latest.taken >= latest.num_steps and self.num_begun < len(self.views):
            before = self.begun[-1].buffers if self.begun else dict(self.model.named_buffers())
            self.views[self.num_begun].begin(latest.selection, before)
            self.num_begun += 1

    def passes(self, backward: Callable[[int], Tensor], inputs: Any = None) -> Tensor:
        """The mean loss of the sandwich's views, and in the gradients the mean of theirs.

        ``backward(i)`` makes gradients by the students of pass ``i``: 0 is the largest point, i the i-th view.
        """
        if not self.begun:
            return super().passes(backward, inputs)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        chosen = self._sandwich()
        losses, total = [], [torch.zeros_like(parameter) for parameter in trained]
        for i in chosen:
            losses.append(self._pass(i, backward, inputs))
            for parameter, sum_ in zip(trained, total, strict=True):
                if parameter.grad is not None:
                    sum_ += parameter.grad
                parameter.grad = None
        for parameter, sum_ in zip(trained, total, strict=True):
            parameter.grad = sum_ / len(chosen)
        return torch.stack(losses).mean()

    def _pass(self, i: int, backward: Callable[[int], Tensor], inputs: Any) -> Tensor:
        if i == 0:
            return backward(0)
        view = self.views[i - 1]
        with view.worn(self.model):
            loss = backward(i)
            if view.learns:
                view.controller.observe(loss, self._sight(inputs))
        return loss

    def _sandwich(self) -> list[int]:
        """The largest, the smallest and, where there are others, one of them: the same at a step of any resumed run."""
        between = range(1, self.num_begun)
        if not between or carries(self.model):  # whose state is that of the batch before
            return [0, *between, self.num_begun]
        self.drawn += 1
        return [0, int(np.random.default_rng((self.seed, self.drawn)).choice(between)), self.num_begun]

    def judged(self, name: str, scores: Callable[[], dict[str, float]]) -> dict[str, Any]:
        """The scores of the smallest point so far, and of each by itself: with its cost and its plan."""
        controllers = [self.controller, *(view.controller for view in self.begun)]
        points: dict[str, dict[str, Any]] = {}
        for i, (fraction, controller) in enumerate(zip(self.fractions, controllers, strict=False)):
            with self.at(i):
                points[str(fraction)] = {"cost": controller.fraction, "plan": controller.planned, name: scores()}
        return {name: points[str(self.fractions[self.num_begun])][name], "points": points}

    @contextmanager
    def at(self, i: int) -> Iterator[None]:
        """The model is the point ``i`` inside the block."""
        if i == 0:
            yield
            return
        with self.views[i - 1].worn(self.model):
            yield

    def selections(self, whole: nn.Module) -> list[Selection]:
        """What goes at each point, largest first: each goes in all that are smaller."""
        found = [self.selected(whole)]
        for view in self.views:
            kept_to = view.controller.goal.constraints.kept_to
            found.append(kept_to(view.controller.selection | found[-1], view.controller.selection))
        return found

    def shrink(self, *followers: Follower) -> nn.Module:
        raise TrainingError("nested points do not shrink while they train: the largest one needs what others lose")

    def state_dict(self) -> dict[str, Any]:
        views = [{"controller": view.controller.state_dict(), "buffers": view.buffers} for view in self.views]
        return {**super().state_dict(), "views": views, "begun": self.num_begun, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any], *followers: Follower) -> None:
        super().load_state_dict(state, *followers)
        self.num_begun, self.drawn = state["begun"], state["drawn"]
        device = next(iter(self.model.parameters())).device
        for view, kept in zip(self.views, state["views"], strict=True):
            view.controller.load_state_dict(kept["controller"])
            view.buffers = {name: value.to(device) for name, value in kept["buffers"].items()}


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        tensors[name].copy_(value)
