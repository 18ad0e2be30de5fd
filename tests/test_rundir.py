"""A run directory belongs to one recipe, and says what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslprune.errors import RunError
from sslprune.recipe import Recipe, parse_recipe
from sslprune.run.directory import RunDirectory


def recipe(**changes: object) -> Recipe:
    values: dict[str, object] = {
        "name": "tiny",
        "model": {"factory": "sslprune.zoo:digits_cnn"},
        "data": {"factory": "sslprune.data:digits"},
        "prune": [{"kind": "filters"}],
        "budget": {"macs": 0.5},
        "schedule": {"sparse": "1ep", "heal": "1ep"},
    }
    return parse_recipe({**values, **changes})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_claim_keeps_the_recipe(run: RunDirectory) -> None:
    run.claim(recipe())
    assert run.recipe() == recipe()
    run.claim(recipe())


def test_another_recipe_is_refused_by_key(run: RunDirectory) -> None:
    run.claim(recipe())
    run.claim(recipe(budget={"macs": 0.3}))  # nothing was trained yet, so nothing can be lost
    run.claim(recipe())
    make(run)
    with pytest.raises(RunError, match=r"another recipe \(budget.macs differ\).*--run"):
        run.claim(recipe(budget={"macs": 0.4}))
    assert run.recipe() == recipe()


def test_gates_may_change(run: RunDirectory) -> None:
    run.claim(recipe())
    stricter = recipe(gates={"min_speedup": 2.0})
    run.claim(stricter)
    assert run.recipe() == stricter


def test_a_folder_of_something_else_is_refused(run: RunDirectory) -> None:
    run.path.mkdir()
    (run.path / "thesis.tex").touch()
    with pytest.raises(RunError, match="not a run directory"):
        run.claim(recipe())
    assert [p.name for p in run.path.iterdir()] == ["thesis.tex"]


def test_a_run_that_never_started_leaves_nothing(run: RunDirectory) -> None:
    run.claim(recipe())
    run.release()
    assert not run.path.exists()
    run.claim(recipe())
    make(run)
    run.release()
    assert run.recipe_file.exists() and run.finished("train")


def test_an_empty_folder_is_welcome(run: RunDirectory) -> None:
    run.path.mkdir()
    run.claim(recipe())


def test_require_names_the_command_that_mends(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        run.require("train")
    run.claim(recipe())
    with pytest.raises(RunError, match=r"train/dense.safetensors is missing; first `sslprune train .* --resume`"):
        run.require("train")
    with pytest.raises(RunError, match=r"repacked/model.pt2 is missing; first `sslprune repack "):
        run.require("repack")
    make(run)
    run.require("train")
    run.require("repack")


def test_clear_removes_the_stage_and_what_follows(run: RunDirectory) -> None:
    run.claim(recipe())
    make(run)
    keep = run.path / "notes.txt"
    keep.touch()
    run.clear("repack")
    assert run.finished("train") and not run.finished("repack") and not run.report.exists()
    run.clear("train")
    assert not run.finished("train") and not run.checkpoint.exists()
    assert keep.exists() and run.recipe_file.exists()


def test_the_points_of_a_sweep_are_runs_beside_each_other(run: RunDirectory) -> None:
    sweep = recipe(budget={"macs": [0.5, 0.3, 0.2]})
    run.claim(sweep)
    places = run.each_point(sweep)
    names = [str(place.path.relative_to(run.path)) for _, place in places]
    assert names == ["points/0.5", "points/0.3", "."] and run.points == []
    for point, place in places[:2]:
        place.claim(point)
    assert [str(point) for point in run.points] == [str(place) for _, place in places[:2]]
    assert str(run.points[1].sweep) == str(run) and run.sweep is run
    assert [str(place) for _, place in run.points[1].each_point(places[1][0])] == [str(p) for p in run.points]
    with pytest.raises(RunError, match=rf"first `sslprune train {run.recipe_file} --run {run} --resume`"):
        run.points[0].require("train")
    make(run.points[0])
    assert run.started and not run.checkpoint.exists()
    with pytest.raises(RunError, match=r"another recipe \(budget.macs differ\)"):
        run.claim(recipe(budget={"macs": [0.5, 0.25]}))
    run.clear("train")
    assert not run.started
    run.release()
    assert not run.path.exists() or not run.recipe_file.exists()


def make(run: RunDirectory) -> None:
    for file in (run.checkpoint, *run.files("train"), *run.files("repack"), *run.files("export")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
