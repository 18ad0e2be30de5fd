"""A sweep of budgets through the commands: every point a run of its own, and one curve."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

import sslprune
from sslprune.models.build import count_parameters
from sslprune.report import Report
from sslprune.run.directory import RunDirectory
from tests.test_cli import RECIPE, invoke, mistake

SWEEP = RECIPE.replace("macs = 0.5", "macs = [0.6, 0.4]").replace("max_metric_drop", "max_macs = 0.5\nmax_metric_drop")


@pytest.fixture(autouse=True, scope="module")
def quick() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
        patch.setattr("sslprune.bench.timing.ENOUGH", 0.01)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A sweep whose first point misses a gate."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.toml").write_text(SWEEP)
    result = invoke("run", folder / "tiny.toml", "--run", folder / "run")
    assert result.exit_code == 3, result.output
    missed = r"gate missed: at 0\.6: max_macs is 0\.5\d+, limit 0\.5"
    assert re.fullmatch(missed, result.stderr.splitlines()[-1])  # and no other
    assert "points/" in result.stdout and "MACs allowed" in result.stdout
    return RunDirectory(folder / "run")


def test_the_curve_is_that_of_the_points(finished: RunDirectory) -> None:
    report, [earlier] = Report.load(finished.report), finished.points
    first = Report.load(earlier.report)
    assert [point.run for point in report.curve] == ["points/0.6", "."] and first.curve == []
    for point, own in zip(report.curve, (first, report), strict=True):
        assert (point.budget, point.macs, point.metrics) == (own.budget, own.repacked.macs, own.repacked.metrics)
        assert (point.speedup, point.gates) == (own.speedup, own.gates)
    histories = [json.loads(run.history.read_text()) for run in (earlier, finished)]
    seconds = [sum(record["seconds"] for record in history) for history in histories]
    assert first.course is not None and report.course is not None
    assert first.course.seconds == pytest.approx(seconds[0]) and report.course.seconds == pytest.approx(sum(seconds))
    reached = [point.budget.reached for point in report.curve]
    assert 0.594 <= reached[0] <= 0.6 and 0.396 <= reached[1] <= 0.4  # of the one dense model
    assert first.dense.macs == report.dense.macs and first.dense.metrics == report.dense.metrics
    assert not report.passed and all(gate.passed for gate in report.gates)
    before, after = ({axis.name: axis.after for axis in one.axes} for one in (first, report))
    assert all(after[name] <= width for name, width in before.items())
    for run, one in ((earlier, first), (finished, report)):
        assert count_parameters(sslprune.load(run.path)) == one.repacked.parameters
    suites = ElementTree.parse(finished.junit).getroot()
    assert {suite.get("name"): suite.get("failures") for suite in suites} == {
        "at 0.6: repacked": "1",
        "at 0.4: repacked": "0",
    }
    assert "### The curve" in finished.summary.read_text()
    page = finished.page.read_text()
    assert '<a href="points/0.6/report.html">0.6</a>' in page and (finished.path / "points/0.6/report.html").is_file()


def test_resume_goes_on_at_the_right_point(finished: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    shutil.rmtree(run.training.folder)  # as if killed when the first point had just been trained
    recipe = finished.path.parent / "tiny.toml"
    said = mistake("train", recipe, "--run", run, "--resume", "--set", "budget.macs=[0.6, 0.3]")
    assert "another recipe (budget.macs differ)" in said
    result = invoke("train", recipe, "--run", run, "--resume")
    assert result.exit_code == 0, result.output
    assert f"finished already: {run.path / 'points/0.6/train/masked.safetensors'}" in result.stderr
    assert run.masked.read_bytes() == finished.masked.read_bytes()
    assert run.dense.read_bytes() == run.points[0].dense.read_bytes()


def test_a_control_of_a_point_stands_in_the_curve(finished: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    for place, epochs in ((run.points[0], "50it"), (run, "100it")):  # the last took both points' training
        result = invoke("control", place, "--from", "scratch", "--json")
        assert result.exit_code == 0 and json.loads(result.stdout)["epochs"] == epochs, result.output
    report = Report.load(run.report)
    assert [[control.macs for control in point.controls] for point in report.curve] == [
        [point.macs] for point in report.curve
    ]
    page = run.page.read_text()
    assert "small, from scratch" in page and "Beside what was trained without sparsity" in page


def test_mistakes_stop_a_sweep_before_it_trains(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(SWEEP)
    for setting, said in (
        ("budget.macs=[0.5, 0.0001]", "budget.macs: 0.0001 of the dense model cannot be reached"),
        ("budget=[0.3, 0.5]", "budget.macs: the points of a sweep have to fall"),
        ("lasso.decay=41", "lasso.decay: 41 steps do not fit into the 40 sparse ones"),
        ("distill.teacher=gone", "distill.teacher: gone: not a run directory"),
    ):
        assert said in mistake("run", recipe, "--run", tmp_path / "run", "--set", setting)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]
