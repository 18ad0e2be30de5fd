"""A model and what steers it, for a person's own training loop and for the callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from sslprune.capture.program import Program
from sslprune.capture.trace import trace
from sslprune.choose.blocks import goal_of
from sslprune.choose.constraints import constraints_of
from sslprune.choose.sections import check_counted, select_with_sections
from sslprune.cost.counts import Cost
from sslprune.errors import TrainingError
from sslprune.kinds.find import find_axes
from sslprune.kinds.table import kind_of
from sslprune.recipe import BudgetSection, PruneSection, Recipe, Sparsifying
from sslprune.recipe.settings import Prune, settings_of
from sslprune.removal.gates import gates_in, open_
from sslprune.removal.packed import Packed
from sslprune.removal.remove import removable, remove
from sslprune.removal.unread import zero_unread_
from sslprune.train.budget import BudgetController
from sslprune.train.criteria import CRITERIA, Sight
from sslprune.train.lasso import GroupLasso
from sslprune.train.shrink import Follower, Shrinker
from sslprune.train.strength import StrengthController
from sslprune.values.axes import Axis, tensors_of
from sslprune.values.selection import Selection
from sslprune.values.tasks import Task
from sslprune.values.team import Alone, Team, digest, team_here


class Controller(Protocol):
    """What steers a ``GroupLasso``: a ``BudgetController`` or a ``StrengthController``."""

    lasso: GroupLasso
    num_steps: int
    taken: int

    @property
    def selection(self) -> Selection: ...
    @property
    def fraction(self) -> float: ...
    @property
    def planned(self) -> float | None: ...
    def gone(self, zeros: Selection) -> Selection: ...
    def observe(self, loss: float | Tensor, sight: Sight | None = None) -> None: ...
    def step(self, lr: float) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def build_controller(
    model: nn.Module,
    program: Program,
    chosen: Sequence[tuple[Axis, PruneSection]],
    cost: Cost,
    settings: Sparsifying | Recipe,
    num_steps: int,
    begin: Selection | None = None,
    team: Team | None = None,
    lasso: type[GroupLasso] = GroupLasso,
) -> Controller:
    """What steers the ``chosen`` axes of ``model`` to a budget, or by an explicit strength where there is none.

    ``program`` is the model traced, and ``cost`` is over those axes. ``begin``: what is at zero from the beginning, and
    stays there. Of a ``team`` only the first process chooses, and needs to know what its budget is in. ``lasso``: the
    class that acts.
    """
    budget, section = settings.budget, settings.lasso
    if team is not None and not team.first and budget.given:
        budget = BudgetSection(macs=budget.points, round_to=1)
    acting = lasso(model, [axis for axis, _ in chosen], method=section.method)
    strengths = [s.strength for _, s in chosen]
    if not budget.given:
        floors = constraints_of(chosen, section.floor, 1).floors
        return StrengthController(acting, cost, section, num_steps, floors, strengths)
    check_counted(chosen, settings.budget.measure)
    goal = goal_of(chosen, cost, budget, section.floor)
    criterion = CRITERIA[settings.choose.evidence](program, acting.axes)
    return BudgetController(acting, goal, section, num_steps, strengths, begin, team, criterion)


class Sparsity:
    """Sparse training in a loop of one's own: ``observe(loss)`` before the optimizer's step, ``step(lr)`` after it.

    ``args`` and ``kwargs`` are example inputs of ``model``, first dimension = batch. ``prune`` says which axes: a kind
    ("filters"), the fields of a [[prune]] section, or a list of either. In ``steps`` optimizer steps the model goes to
    the fraction ``macs`` or ``parameters`` of its dense cost, or λ is ``strength``; after them ``step`` holds the zeros
    while the rest heals. ``evidence`` is `[choose]`'s; one that looks at batches is told them, ``observe(loss,
    inputs)``, and by ``task``, a `sslprune.values.tasks.Task`, what the outputs are. Other keywords are fields of
    [lasso], such as ``method``. ``sequence``: the longest sequence, where dimension 1 of the inputs is open.
    ``repack()`` then gives the smaller model, ``shrink(optimizer)`` one to train on before that. Raises RecipeError,
    TraceError and BudgetError before any training.

    Where torch's default process group has several processes, each has one of these over its replica: the first chooses
    what goes, from the evidence of all. ``model`` may be wrapped in `DistributedDataParallel`; what ``shrink`` returns
    is not, and has to be wrapped anew. Raises TrainingError for parameters that are sharded.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        prune: Prune,
        steps: int,
        sequence: int | None = None,
        task: Task | None = None,
        **settings: Any,
    ) -> None:
        found = settings_of(prune, **settings)
        model = _replica(model)
        program = trace(model, args, dict(kwargs or {}), sequence=sequence)
        chosen = select_with_sections(find_axes(program, found.prune), found.prune)
        cost = Cost(program, [axis for axis, _ in chosen])
        team = team_here()
        team.agree("list of axes", digest(str([(axis.name, axis.size) for axis, _ in chosen])))
        controller = build_controller(model, program, chosen, cost, found, steps, team=team)
        self._steer(model, program, controller, team, task)

    @classmethod
    def over(
        cls,
        model: nn.Module,
        program: Program,
        controller: Controller,
        team: Team | None = None,
        task: Task | None = None,
    ) -> Sparsity:
        """The same for a model that is traced already, by what `build_controller` made."""
        made = cls.__new__(cls)
        made._steer(model, program, controller, team or Alone(), task)
        return made

    def _steer(self, model: nn.Module, program: Program, controller: Controller, team: Team, task: Task | None) -> None:
        self.model, self.program, self.controller, self.team, self.task = model, program, controller, team, task
        self.axes = list(controller.lasso.axes)
        self._gates = gates_in(model)
        self._shrinker: Shrinker | None = None  # from the first call on

    @property
    def trained(self) -> nn.Module:
        """What trains: ``model``, or what `shrink` has left of it."""
        return self._shrinker.model if self._shrinker is not None else self.model

    @property
    def fraction(self) -> float:
        """The cost of what is kept now, as a fraction of the dense model's; groups that still decay count as gone."""
        return self.controller.fraction

    @property
    def planned(self) -> float | None:
        """The fraction that the plan allows now; None where a strength decides."""
        return self.controller.planned

    @property
    def lassos(self) -> list[GroupLasso]:
        """Everything that acts."""
        return [self.controller.lasso]

    @property
    def num_passes(self) -> int:
        """How often a batch is looked at, at most."""
        return 1

    def passes_in(self, phase: str) -> float:
        """How often a batch of a phase is looked at, on average."""
        return 1.0

    @property
    def statistics(self) -> list[Tensor]:
        """The buffers that are not the model's own, but of points that are nested in it."""
        return []

    def check_reachable(self, fraction: float) -> None:
        """Raise BudgetError if ``fraction`` of the dense cost, smaller than the budget, cannot be reached from here."""
        if isinstance(self.controller, BudgetController):
            self.controller.goal.check_reachable(self.controller.selection, fraction)

    def passes(self, backward: Callable[[int], Tensor], inputs: Any = None) -> Tensor:
        """The loss and the gradients of a batch of ``inputs``, by ``backward(i)`` for each pass ``i`` that it takes."""
        return backward(0)

    def judged(self, name: str, scores: Callable[[], dict[str, float]]) -> dict[str, Any]:
        """What an epoch's record says of the model as it is now: under ``name`` its scores."""
        return {name: scores()}

    def observe(self, loss: float | Tensor, inputs: Any = None) -> None:
        """Take note of a batch's loss and gradients: call between ``backward`` and the optimizer's step.

        ``inputs``: what the model was called with, for evidence that looks at batches.
        """
        self.controller.observe(loss, self._sight(inputs))

    def _sight(self, inputs: Any) -> Sight:
        return Sight(self.program, self.restore, inputs, self.task)

    def step(self, lr: float) -> None:
        """The lasso's step, or in healing the hold: call after the optimizer's step, with its learning rate.

        The gates that are left are open from its last step on.
        """
        self.controller.step(lr)
        if self._gates and self.controller.taken >= self.controller.num_steps:
            tensors = tensors_of(self.trained)
            open_(tensors[name] for name in self._gates if name in tensors)

    def shrink(self, *followers: Follower) -> nn.Module:
        """What trains from here on: the model without the groups that are held at zero (PruneTrain: Lym et al. 2019).

        Call it between a step and the next batch, as often as you like. ``followers`` are the optimizers of the model
        and its averaged copies: they are changed in place. Raises RepackError for a model that cannot shrink while it
        trains, and TrainingError, before anything is changed, for an optimizer whose state cannot be sliced.
        """
        self.shrinkable().shrink(*followers)
        self.team.agree("selection at a removal", digest(self.removed.to_json()))
        return self.trained

    def restore(self) -> nn.Module:
        """``model`` at its full size, with the trained numbers in their places: for a checkpoint."""
        return self._shrinker.restore() if self._shrinker is not None else self.model

    @property
    def selection(self) -> Selection:
        """What goes: what was chosen, and whatever else is exactly zero, as far as ties let it."""
        return self.selected(self.restore())

    def selected(self, whole: nn.Module) -> Selection:
        """The same by the zeros of ``whole``, the model with all of its numbers.

        Where tiles of weights are zero, what nothing makes or nobody reads any more is set to zero first.
        """
        if any(kind_of(axis).is_tiled for axis in self.axes):
            zero_unread_(whole, self.axes, self.program.args, self.program.kwargs)
        return self.controller.gone(Selection.zeros(whole, self.axes))

    def repack(self) -> Packed:
        """The model without its zero groups, verified against the masked one; it trains on, and exports.

        Raises TrainingError before the sparse phase is over, and RepackError where the two models differ.
        """
        taken, steps = self.controller.taken, self.controller.num_steps
        if taken < steps:
            raise TrainingError(f"repack: the sparse phase is at step {taken} of {steps}; train it to its end first")
        exact = all(axis.exact for axis in self.axes)  # the settings allowed the others by name
        removed = removable(self.program, self.selection, allow_inexact=not exact)
        return remove(self.model, self.program, removed, verify=exact)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the states of ``restore()`` and of the optimizer: tensors and numbers."""
        return {**self.controller.state_dict(), "removed": [torch.from_numpy(mask.copy()) for mask in self.removed]}

    def load_state_dict(self, state: dict[str, Any], *followers: Follower) -> None:
        """Go on where ``state_dict`` was taken; raises TrainingError for a state of other axes.

        ``model`` has its weights already. What had left it leaves it again: train ``trained``, and let the
        ``followers`` load their own state after this.
        """
        try:
            self.controller.load_state_dict(state)
            removed = Selection.of(self.axes, [mask.numpy() for mask in state["removed"]])
            if removed or self.removed:
                self.shrinkable().remove(removed, *followers)
        except (ValueError, KeyError) as error:
            raise TrainingError(f"the state of the sparsity does not fit this model and prune: {error}") from error

    @property
    def removed(self) -> Selection:
        """What has left the model that trains."""
        return self._shrinker.removed if self._shrinker is not None else Selection.none(self.axes)

    def shrinkable(self) -> Shrinker:
        """What shrinks the model; raises RepackError, before any training, for one that cannot shrink while it trains.

        Its ``notes`` say which axes stay at their size until the end.
        """
        if self._shrinker is None:
            self._shrinker = Shrinker(self.model, self.program, self.axes, self.controller.lasso)
        return self._shrinker


def _replica(model: nn.Module) -> nn.Module:
    """The model inside torch's wrapper of replicas; raises TrainingError for one that does not lie here whole."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if isinstance(model, nn.DataParallel):
        raise TrainingError("Sparsity: DataParallel makes its replicas anew at each step; take DistributedDataParallel")
    sharded = next((name for name, value in tensors_of(model).items() if isinstance(value, DTensor)), None)
    if sharded is not None:
        raise TrainingError(
            f"Sparsity: {sharded} is sharded (a DTensor, as FSDP and tensor parallelism make them); groups are chosen "
            "over whole weights: train replicas with DistributedDataParallel, or shard the repacked model"
        )
    return model
