"""Write what `sslprune init` knows of the shipped recipes into the package: run it after a change to one of them.

Each model is built with random weights, as small as its test has it, and looked at; needs torchvision and timm.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from sslprune.capture.trace import trace
from sslprune.data import build_data
from sslprune.errors import RecipeError
from sslprune.files import write_text
from sslprune.kinds.find import find_axes
from sslprune.models.build import build_model
from sslprune.models.example import example_of
from sslprune.recipe import Recipe, load_recipe
from sslprune.run.nearest import SHIPPED_FILE, sections_of, traits
from sslprune.values.voice import SILENT
from tests.material import MATERIAL, sets_for

RECIPES = Path(__file__).parents[1] / "recipes"


def look(name: str, folder: Path) -> dict[str, Any]:
    """What is known of the shipped recipe of that name, whose material is written into ``folder``."""
    file = RECIPES / f"{name}.toml"
    recipe = load_recipe(file, ["run.device=cpu", "train.warmup=0it", *sets_for(name, folder)])
    return {
        "traits": sorted(look_at(recipe)),
        "kinds": list(dict.fromkeys(section.kind for section in recipe.prune)),
        "sections": sections_of(file.read_text(encoding="utf-8")),
    }


def look_at(recipe: Recipe) -> frozenset[str]:
    """The traits of a recipe's model: called as it says itself, as `init` calls it, or else with its data."""
    model, _ = build_model(recipe.model)
    try:
        example = example_of(model, recipe.model.factory)
        example.check(model)
        args, kwargs, sequence = example.args, example.kwargs, example.sequence
    except RecipeError:
        data = build_data(recipe, SILENT)
        (args, kwargs), sequence = data.example_for(model), data.sequence
    program = trace(model, args, kwargs, sequence=sequence)
    return traits(program, find_axes(program))


def main() -> None:
    found = {}
    for name in MATERIAL:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = look(name, Path(folder))
    print(write_text(SHIPPED_FILE, json.dumps(found, indent=1, ensure_ascii=False) + "\n"))


if __name__ == "__main__":
    main()
