"""Values: a recipe, read from TOML and checked against a schema."""

from sslprune.recipe.reading import load_recipe, parse_recipe
from sslprune.recipe.schema import (
    BudgetSection,
    ControlSection,
    DataSection,
    ExportSection,
    GateSection,
    GatesSection,
    LassoSection,
    ModelSection,
    PruneSection,
    Recipe,
    RunSection,
    Span,
    TeacherSection,
    TrainSection,
)

__all__ = [
    "BudgetSection",
    "ControlSection",
    "DataSection",
    "ExportSection",
    "GateSection",
    "GatesSection",
    "LassoSection",
    "ModelSection",
    "PruneSection",
    "Recipe",
    "RunSection",
    "Span",
    "TeacherSection",
    "TrainSection",
    "load_recipe",
    "parse_recipe",
]
