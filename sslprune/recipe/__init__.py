"""Values: a recipe, read from TOML and checked against a schema."""

from sslprune.recipe.data import (
    LabelledTextSection,
    OwnDataSection,
    PicturesSection,
    RunningTextSection,
)
from sslprune.recipe.fields import Span
from sslprune.recipe.method import (
    BudgetSection,
    CalibrateSection,
    ChooseSection,
    DistillSection,
    LassoSection,
    PruneSection,
    TeacherSection,
    TrainSection,
)
from sslprune.recipe.model import ModelSection, RunSection
from sslprune.recipe.output import ControlSection, ExportSection, GateSection, GatesSection, LogSection
from sslprune.recipe.reading import load_recipe, overridden, parse_recipe, parse_sparsifying
from sslprune.recipe.recipe import Recipe, Sparsifying
from sslprune.recipe.sources import DataSection, PixelsSection

__all__ = [
    "BudgetSection",
    "CalibrateSection",
    "ChooseSection",
    "ControlSection",
    "DataSection",
    "DistillSection",
    "ExportSection",
    "GateSection",
    "GatesSection",
    "LabelledTextSection",
    "LassoSection",
    "LogSection",
    "ModelSection",
    "OwnDataSection",
    "PicturesSection",
    "PixelsSection",
    "PruneSection",
    "Recipe",
    "RunSection",
    "RunningTextSection",
    "Span",
    "Sparsifying",
    "TeacherSection",
    "TrainSection",
    "load_recipe",
    "overridden",
    "parse_recipe",
    "parse_sparsifying",
]
