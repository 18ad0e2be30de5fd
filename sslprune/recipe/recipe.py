"""A whole recipe, and the part of one that a loop of one's own needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from sslprune.errors import RecipeError
from sslprune.recipe.checks import check_calibration, check_choice, check_strength, check_ties
from sslprune.recipe.data import AnyData
from sslprune.recipe.fields import Folder, Section, Seed, Span
from sslprune.recipe.method import (
    BudgetSection,
    CalibrateSection,
    ChooseSection,
    DistillSection,
    LassoSection,
    PruneSection,
    ScheduleSection,
    TrainSection,
)
from sslprune.recipe.model import ModelSection, RunSection
from sslprune.recipe.output import BenchSection, ControlSection, ExportSection, GateSection, GatesSection, LogSection
from sslprune.recipe.writing import write_toml
from sslprune.values.task_table import UNLABELLED

NOT_READ_BY_TRAINING = ("name", "bench", "gates", "gate", "control", "export", "log")


def _as_table(budget: object) -> object:
    """``budget = [0.5, 0.3]`` is short for macs."""
    return {"macs": budget} if isinstance(budget, int | float | list) else budget


def _check_no_sweep(budget: BudgetSection) -> None:
    if len(budget.points) > 1:
        raise ValueError(f"budget.{budget.measure}: a sweep is for a recipe; give one fraction here")


class Sparsifying(Section):
    """The sections of a recipe that say what goes and how, for who trains in a loop of their own."""

    prune: list[PruneSection] = Field(min_length=1)
    budget: BudgetSection = BudgetSection()
    choose: ChooseSection = ChooseSection()
    lasso: LassoSection = LassoSection()

    @model_validator(mode="after")
    def _one_strength(self) -> Sparsifying:
        check_strength(self.budget, self.lasso)
        check_ties(self.prune, self.budget)
        check_choice(self.choose, self.budget)
        _check_no_sweep(self.budget)
        return self


class Calibrating(Sparsifying):
    """The same for who calibrates in code of their own: nothing is trained, and the budget is all that there is."""

    calibrate: CalibrateSection = CalibrateSection()
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_strength(self) -> Calibrating:
        if not self.budget.given:
            raise ValueError("budget: nothing says how much may go: give macs or parameters, the fraction that remains")
        if self.calibrate.fraction is not None:
            raise ValueError("calibrate.fraction: nothing is trained after it; give macs or parameters")
        _check_no_sweep(self.budget)
        return self


class Recipe(Section):
    """One run."""

    name: Folder = "run"
    """What the run is called; left out: the stem of the recipe's file."""
    run: RunSection = RunSection()
    model: ModelSection
    data: AnyData
    prune: list[PruneSection] = Field(min_length=1)
    budget: Annotated[
        BudgetSection, BeforeValidator(_as_table, json_schema_input_type=BudgetSection | float | list[float])
    ] = BudgetSection()
    schedule: ScheduleSection
    calibrate: CalibrateSection | None = None
    choose: ChooseSection = ChooseSection()
    train: TrainSection = TrainSection()
    lasso: LassoSection = LassoSection()
    distill: DistillSection | None = None
    export: ExportSection = ExportSection()
    bench: BenchSection = BenchSection()
    log: LogSection = LogSection()
    gates: GatesSection = GatesSection()
    gate: list[GateSection] = []
    control: list[ControlSection] = []

    @model_validator(mode="before")
    @classmethod
    def _without_training(cls, values: Any) -> Any:
        """A recipe with [calibrate] needs no [schedule]: nothing is trained then."""
        if isinstance(values, dict) and values.get("calibrate") is not None and "schedule" not in values:
            return {**values, "schedule": {"sparse": "0ep", "heal": "0ep"}}
        return values

    @model_validator(mode="after")
    def _one_strength(self) -> Recipe:
        check_strength(self.budget, self.lasso)
        check_ties(self.prune, self.budget)
        check_calibration(self.calibrate, self.budget, self.schedule)
        check_choice(self.choose, self.budget, self.schedule.sparse, self.calibrate)
        return self

    @model_validator(mode="after")
    def _heard(self) -> Recipe:
        if self.train.compile and self.distill is not None and self.distill.hidden:
            raise ValueError("train.compile: distill.hidden listens to modules, which it dissolves; leave one out")
        return self

    @model_validator(mode="after")
    def _sharded(self) -> Recipe:
        others = {
            "schedule.shrink": self.schedule.shrink is not None,
            "calibrate": self.calibrate is not None,
            "train.compress": self.train.compress != "off",
            'train.loss = "model"': self.train.loss == "model",
            f'choose.evidence = "{self.choose.evidence}"': self.choose.looks,
        }
        other = next((name for name, given in others.items() if given), None)
        if self.run.shard and other is not None:
            raise ValueError(
                f"run.shard: {other} needs the whole model in each process; leave it out, or train without run.shard"
            )
        return self

    @model_validator(mode="after")
    def _nested(self) -> Recipe:
        others = {
            "run.shard": (self.run.shard, "needs the weights of all points whole in each process"),
            "schedule.shrink": (self.schedule.shrink is not None, "would take away what only the largest point needs"),
            "calibrate": (self.calibrate is not None, "repairs weights for one point alone"),
            "train.compress": (self.train.compress != "off", "remembers the gradients of one model"),
            "schedule.sparse": (not self.schedule.sparse.count, "is 0, and the points are found by sparse training"),
        }
        found = next(((name, why) for name, (given, why) in others.items() if given), None)
        if self.budget.nested and found is not None:
            raise ValueError(f"budget.nested: {found[0]} {found[1]}; change it, or leave nested out for a sweep")
        return self

    @model_validator(mode="after")
    def _teachable(self) -> Recipe:
        if self.data.task in UNLABELLED and self.schedule.dense.count:
            raise ValueError(
                f'schedule.dense: data.task = "{self.data.task}" learns from the dense model as it is, and trains it '
                "not; leave it out, and bring a trained model"
            )
        if self.train.loss == "model" and self.schedule.shrink is not None:
            raise ValueError("schedule.shrink: what has shrunk returns no loss of its own; leave it out, or train.loss")
        return self

    @model_validator(mode="after")
    def _rewound(self) -> Recipe:
        heal, dense = self.schedule.heal, self.schedule.dense
        if self.train.heal == "rewind" and (heal.unit != dense.unit or heal.count > dense.count):
            raise ValueError(
                f'train.heal: "rewind" heals by the last steps of the dense phase, which has {dense}; expected at '
                f"least schedule.heal = {heal}, in the same unit"
            )
        return self

    @model_validator(mode="after")
    def _variants(self) -> Recipe:
        names = [control.name for control in self.control]
        known = ["repacked", *self.export.quantize, *names]
        for index, name in enumerate(["dense", *known]):
            if name in ["dense", *known][:index]:
                raise ValueError(f'"{name}" names two models; control names and export.quantize have to differ')
        for gate in self.gate:
            if gate.variant not in known:
                raise ValueError(
                    f'gate: no variant "{gate.variant}" is built; there are {", ".join(known)}:'
                    " add it to export.quantize, or as a [[control]]"
                )
        return self

    def points(self) -> list[Recipe]:
        """The recipe of each point of a sweep: the sweep as far as that point; the last is this recipe.

        A nested point's is that of one budget, trained for as long as all of them were.
        """
        fractions, budget = self.budget.points, self.budget
        if budget.nested:
            span = self.schedule.sparse
            sparse = Span(span.count * len(fractions), span.unit)
            alone = self.model_copy(update={"schedule": self.schedule.model_copy(update={"sparse": sparse})})
            each = [budget.model_copy(update={budget.measure: (f,), "nested": False}) for f in fractions[:-1]]
            return [alone.model_copy(update={"name": f"{self.name}-{b.fraction}", "budget": b}) for b in each] + [self]
        earlier = [budget.model_copy(update={budget.measure: fractions[: i + 1]}) for i in range(len(fractions) - 1)]
        return [self.model_copy(update={"name": f"{self.name}-{b.fraction}", "budget": b}) for b in earlier] + [self]

    def untrained(self) -> Recipe:
        """The same by calibration alone, without sparse and healing epochs; raises RecipeError where it cannot be."""
        none = Span(0, self.schedule.dense.unit)
        schedule = self.schedule.model_copy(update={"sparse": none, "heal": none, "shrink": None})
        section = (self.calibrate or CalibrateSection()).model_copy(update={"fraction": None})
        recipe = self.model_copy(update={"schedule": schedule, "calibrate": section, "choose": ChooseSection()})
        try:
            check_calibration(section, self.budget, schedule)
        except ValueError as error:
            raise RecipeError(f"{self.name}: {error}") from error
        return recipe

    def values(self) -> dict[str, Any]:
        """Values for JSON of every field that has one, defaults included."""
        return self.model_dump(mode="json", exclude_none=True)

    def differences(self, other: Recipe, ignore: Sequence[str] = NOT_READ_BY_TRAINING) -> list[str]:
        """The dotted keys in which two recipes differ, leaving out what training does not read."""
        mine, theirs = (dict(_flat(recipe.model_dump(exclude_none=True))) for recipe in (self, other))
        keys = [key for key in {**mine, **theirs} if not _same(mine.get(key), theirs.get(key))]
        return [key for key in keys if key.partition(".")[0] not in ignore]

    def to_toml(self) -> str:
        """The recipe as TOML text that ``load_recipe`` reads back to an equal recipe."""
        return write_toml(self.model_dump(exclude_none=True))


def _same(one: Any, other: Any) -> bool:
    """Equality in which a NaN is equal to itself."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other or (one != one and other != other)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    tables = isinstance(value, list) and value and all(isinstance(inner, dict) for inner in value)
    items = value.items() if isinstance(value, dict) else enumerate(value) if tables else None
    if items is None:
        yield prefix, value
    else:
        for key, inner in items:
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
