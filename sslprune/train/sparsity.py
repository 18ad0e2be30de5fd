"""A model and what steers it, for a person's own training loop and for the callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from sslprune.axes import Axis
from sslprune.errors import TrainingError
from sslprune.grain import grain
from sslprune.graph.cost import Cost
from sslprune.graph.find import find_axes
from sslprune.graph.packed import Packed
from sslprune.graph.program import Program
from sslprune.graph.repack import repack
from sslprune.graph.trace import trace
from sslprune.recipe import BudgetSection, LassoSection, PruneSection, Sparsifying, parse_sparsifying
from sslprune.train.budget import BudgetController, Kept
from sslprune.train.lasso import GroupLasso
from sslprune.train.select import select_with_sections
from sslprune.train.strength import StrengthController

Prune = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]  # a kind, the fields of a [[prune]], or several


class Controller(Protocol):
    """What steers a ``GroupLasso``: a ``BudgetController`` or a ``StrengthController``."""

    lasso: GroupLasso
    num_steps: int
    taken: int

    @property
    def fraction(self) -> float: ...
    @property
    def planned(self) -> float | None: ...
    def observe(self, loss: float | Tensor) -> None: ...
    def step(self, lr: float) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def build_controller(
    model: nn.Module,
    program: Program,
    chosen: Sequence[tuple[Axis, PruneSection]],
    budget: BudgetSection,
    section: LassoSection,
    num_steps: int,
    kept: Kept | None = None,
) -> Controller:
    """What steers the ``chosen`` axes of ``model`` to a budget, or by an explicit strength where there is none.

    ``kept``: the groups that are not zero from the beginning, bool per axis, shape (size,).
    """
    axes = [axis for axis, _ in chosen]
    lasso, cost = GroupLasso(model, axes, method=section.method), Cost(program, axes)
    floors, strengths = [s.min_groups for _, s in chosen], [s.strength for _, s in chosen]
    if not budget.given:
        return StrengthController(lasso, cost, section, num_steps, floors, strengths)
    round_to = grain() if budget.round_to == "auto" else budget.round_to
    return BudgetController(lasso, cost, budget, section, num_steps, round_to, floors, strengths, kept)


def settings_of(
    prune: Prune,
    macs: float | None = None,
    parameters: float | None = None,
    strength: float | None = None,
    round_to: int | Literal["auto"] = "auto",
    **lasso: Any,
) -> Sparsifying:
    """The same fields as a recipe's [[prune]], [budget] and [lasso]; raises RecipeError, in one line."""
    several = [prune] if isinstance(prune, str | Mapping) else list(prune)
    return parse_sparsifying(
        {
            "prune": [{"kind": entry} if isinstance(entry, str) else dict(entry) for entry in several],
            "budget": {"macs": macs, "parameters": parameters, "round_to": round_to},
            "lasso": {"strength": strength, **lasso},
        }
    )


class Sparsity:
    """Sparse training in a loop of one's own: ``observe(loss)`` before the optimizer's step, ``step(lr)`` after it.

    ``args`` and ``kwargs`` are example inputs of ``model``, first dimension = batch. ``prune`` says which axes: a kind
    ("filters"), the fields of a [[prune]] section, or a list of either. In ``steps`` optimizer steps the model goes to
    the fraction ``macs`` or ``parameters`` of its dense cost, or λ is ``strength``; after them ``step`` holds the zeros
    while the rest heals. Other keywords are fields of [lasso], such as ``method``. ``sequence``: the longest sequence,
    where dimension 1 of the inputs is open. ``repack()`` then gives the smaller model. Raises RecipeError, TraceError
    and BudgetError before any training.
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
        **settings: Any,
    ) -> None:
        found = settings_of(prune, **settings)
        self.model = model
        self.program = trace(model, args, dict(kwargs or {}), sequence=sequence)
        chosen = select_with_sections(find_axes(self.program), found.prune)
        self.axes = [axis for axis, _ in chosen]
        self.controller = build_controller(model, self.program, chosen, found.budget, found.lasso, steps)

    @property
    def fraction(self) -> float:
        """The cost of what is kept now, as a fraction of the dense model's; groups that still decay count as gone."""
        return self.controller.fraction

    def observe(self, loss: float | Tensor) -> None:
        """Take note of a batch's loss and gradients: call between ``backward`` and the optimizer's step."""
        self.controller.observe(loss)

    def step(self, lr: float) -> None:
        """The lasso's step, or in healing the hold: call after the optimizer's step, with its learning rate."""
        self.controller.step(lr)

    def repack(self) -> Packed:
        """The model without its zero groups, verified against the masked one; it trains on, and exports.

        Raises TrainingError before the sparse phase is over, and RepackError where the two models differ.
        """
        taken, steps = self.controller.taken, self.controller.num_steps
        if taken < steps:
            raise TrainingError(f"repack: the sparse phase is at step {taken} of {steps}; train it to its end first")
        exact = all(axis.exact for axis in self.axes)  # the settings allowed the others by name
        return repack(self.model, self.program, self.axes, allow_inexact=not exact)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, beside the model's and the optimizer's: tensors and numbers."""
        return self.controller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; raises TrainingError for a state of other axes."""
        try:
            self.controller.load_state_dict(state)
        except (ValueError, KeyError) as error:
            raise TrainingError(f"the state of the sparsity does not fit this model and prune: {error}") from error
