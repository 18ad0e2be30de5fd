"""Values: a recipe, read from TOML and checked against a schema."""

from sslprune.recipe.fields import Span
from sslprune.recipe.reading import load_recipe, parse_recipe, parse_sparsifying
from sslprune.recipe.schema import (
    BudgetSection,
    ControlSection,
    DataSection,
    DistillSection,
    ExportSection,
    GateSection,
    GatesSection,
    LassoSection,
    ModelSection,
    PruneSection,
    Recipe,
    RunSection,
    Sparsifying,
    TeacherSection,
    TrainSection,
)

__all__ = [
    "BudgetSection",
    "ControlSection",
    "DataSection",
    "DistillSection",
    "ExportSection",
    "GateSection",
    "GatesSection",
    "LassoSection",
    "ModelSection",
    "PruneSection",
    "Recipe",
    "RunSection",
    "Span",
    "Sparsifying",
    "TeacherSection",
    "TrainSection",
    "load_recipe",
    "parse_recipe",
    "parse_sparsifying",
]
