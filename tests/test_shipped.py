"""The shipped recipes: each is run by `--dry-run`, with random weights and eight samples in place of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sslprune.cli import app
from sslprune.recipe import load_recipe
from tests.material import MATERIAL, sets_for

pytestmark = pytest.mark.filterwarnings("ignore")
RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("name", MATERIAL)
def test_a_dry_run_takes_every_phase(name: str, tmp_path: Path) -> None:
    recipe = RECIPES / f"{name}.toml"
    loaded = load_recipe(recipe)
    library = loaded.model.factory.partition(":")[0]
    needs = {"torchvision": ["torchvision"], "timm": ["timm"], "hf": ["transformers"]}.get(library, [])
    for package in needs:
        pytest.importorskip(package)
    shrinks = ["schedule.shrink=1it"] if loaded.schedule.shrink is not None else []
    sets = ["run.device=cpu", "run.threads=1", "train.warmup=0it", *shrinks, *sets_for(name, tmp_path)]
    words = ["run", str(recipe), "--dry-run", "--force", "--json", *(word for one in sets for word in ("--set", one))]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [phase["name"] for phase in plan["phases"]][-2:] == ["sparse", "heal"]
