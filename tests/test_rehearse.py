"""`run --dry-run`: what a run would take, and nothing kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sslprune.cli import app
from sslprune.recipe import load_recipe
from sslprune.run.rehearse import rehearse
from sslprune.values.durations import duration
from sslprune.values.voice import SILENT

RECIPE = """
budget = [0.6, 0.4]
[model]
factory = "sslprune.zoo:digits_cnn"
arguments = { width = 8 }
[data]
factory = "sslprune.data:digits"
batch_size = 64
[[prune]]
kind = "filters"
[schedule]
dense = "1ep"
sparse = "30it"
heal = "2ep"
shrink = "1ep"
[gates]
max_metric_drop = 1.0
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def dry(*words: object) -> Result:
    return CliRunner().invoke(app, ["run", *map(str, words), "--dry-run"])


def test_a_dry_run_plans_every_phase_and_keeps_nothing(recipe: Path) -> None:
    result = dry(recipe, "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    steps = plan["phases"][0]["steps"]
    assert [(phase["name"], phase["epochs"], phase["steps"]) for phase in plan["phases"]] == [
        ("dense", 1, steps),
        ("sparse", 2, 30),
        ("heal", 2, 2 * steps),
    ]
    assert plan["points"] == 2 and plan["shrinks"] and plan["smaller"] > 0
    longest = sum(
        2 * (p["steps"] * p["step_seconds"] + p["epochs"] * plan["evaluation_seconds"]) for p in plan["phases"]
    )
    assert 0 < plan["seconds"] < longest * max(1.0, plan["smaller"])
    assert plan["peak_bytes"] > plan["disk_bytes"] > 0
    assert [path.name for path in recipe.parent.iterdir()] == ["tiny.toml"]


def test_what_a_run_refuses_a_dry_run_refuses(recipe: Path) -> None:
    for over, said in (
        ("budget=[0.000001]", "cannot be reached"),
        ("data.factory=gone.py:data", "gone.py"),
        ("schedule.dense=0ep", "it is not trained"),
    ):
        result = dry(recipe, "--set", over)
        assert result.exit_code == 1 and said in result.output.strip().splitlines()[-1], result.output


def test_a_fixed_strength_has_no_size_to_look_forward_to(recipe: Path) -> None:
    text = recipe.read_text().replace("budget = [0.6, 0.4]\n", "").replace('shrink = "1ep"', "")
    recipe.write_text(text + "[lasso]\nstrength = 1e-4\n")
    plan = rehearse(load_recipe(recipe), SILENT)  # type: ignore[arg-type]
    assert plan.smaller is None and not plan.shrinks and plan.points == 1


def test_durations_are_said_for_people() -> None:
    assert [duration(s) for s in (3, 99, 125, 3 * 3600 + 240)] == ["3 s", "99 s", "2 min", "3 h 04 min"]
