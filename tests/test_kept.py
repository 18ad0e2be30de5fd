"""Work is never lost: checked first, written beside, swapped last; one writer; finished means verified."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sslprune.cli import app
from sslprune.errors import RunError, SslpruneError
from sslprune.recipe import Recipe, load_recipe
from sslprune.run.directory import RunDirectory
from sslprune.run.learn import train
from sslprune.run.repack import repack
from sslprune.show.terminal import Show
from tests.test_pt2 import crafted, sample_inputs

RECIPE = """
[model]
factory = "sslprune.zoo:digits_cnn"
[data]
factory = "sslprune.data:digits"
batch_size = 32
[[prune]]
kind = "filters"
[budget]
macs = 0.5
[schedule]
dense = "10it"
sparse = "40it"
heal = "10it"
[lasso]
decay = 8
[bench]
threads = [1]
"""
SHOW = Show(quiet=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
    monkeypatch.setattr("sslprune.bench.timing.ENOUGH", 0.01)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside a run that went the whole road."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tiny.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
        patch.setattr("sslprune.bench.timing.ENOUGH", 0.01)
        result = invoke("run", folder / "tiny.toml", "--run", folder / "run")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(made / "run", tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object) -> str:
    result = invoke(*words)
    assert result.exit_code == 1, result.output
    assert "unexpected" not in result.stderr and "Traceback" not in result.output
    return result.stderr.splitlines()[-1]


def contents(folder: Path | RunDirectory) -> dict[str, bytes]:
    folder = Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_training_over_a_run_is_asked_for(run: RunDirectory, made: Path) -> None:
    before = contents(run)
    for words in (("train", made / "tiny.toml"), ("run", made / "tiny.toml"), ("run", run.recipe_file)):
        assert re.search("holds a finished run; .*--resume.*--force", refused(*words, "--run", run))
    for file in (*run.files("train"), *run.files("repack"), *run.files("export")):
        if file != run.history:
            file.unlink()
    run.initial.unlink()
    for words in (("train", made / "tiny.toml"), ("run", run.recipe_file)):
        assert re.search("a run that is not finished; .*--resume.*--force", refused(*words, "--run", run))
    assert run.checkpoint.read_bytes() == before["train/checkpoint.pt"]
    assert invoke("train", made / "tiny.toml", "--run", run, "--resume", "--force").exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("train", "RECIPE", "--run", "RUN", "--force", "--set", "data.factory=gone.py:data"),
        ("run", "RECIPE", "--run", "RUN", "--force", "--set", "model.arguments={width=0.5}"),
        ("run", "RECIPE", "--run", "RUN", "--force", "--set", "budget.macs=0.0001"),
        ("export", "RUN", "--set", 'export.input_names=["a","b"]'),
        ("control", "RUN", "--from", "scratch", "--set", "data.factory=gone.py:data"),
    ],
    ids=lambda words: " ".join(words[:1] + words[-1:]),
)
def test_a_command_that_fails_changes_nothing(words: tuple[str, ...], run: RunDirectory, made: Path) -> None:
    before = contents(run)
    refused(*({"RECIPE": str(made / "tiny.toml"), "RUN": str(run)}.get(word, word) for word in words))
    assert contents(run) == before and not list(run.path.rglob(".*"))


def test_damaged_weights_cost_no_result(run: RunDirectory) -> None:
    run.dense.write_bytes(run.dense.read_bytes()[:1000])
    before = contents(run)
    assert "dense.safetensors: truncated or damaged" in refused("repack", run)
    assert "dense.safetensors: truncated or damaged" in refused("export", run)
    assert contents(run) == before


def test_a_replaced_model_runs_no_code(run: RunDirectory, tmp_path: Path) -> None:
    crafted(run.program, tmp_path / "crafted.pt2", lambda records: sample_inputs(records, tmp_path / "marker"))
    shutil.move(tmp_path / "crafted.pt2", run.program)
    before = contents(run)
    assert "repacked/model.pt2: holds a pickled object" in refused("export", run)
    assert contents(run) == before and not (tmp_path / "marker").exists()


@pytest.mark.parametrize("stopped", ["run.export.measure_speed", "run.build.quantize", "report.ci.write_text"])
def test_an_interrupted_export_keeps_the_old_one(
    stopped: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = contents(run)
    monkeypatch.setattr(f"sslprune.{stopped}", interrupted)
    assert invoke("export", run, "--set", "export.quantize=int8-dynamic").exit_code == 130
    assert contents(run) == before


def test_a_message_names_the_file_by_its_own_place(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **__: object) -> None:
        raise SslpruneError(f"{args[2]}: wrong")

    monkeypatch.setattr("sslprune.run.build.export_onnx", wrong)
    assert refused("export", run) == f"error: {run.dense_onnx}: wrong"


def test_an_export_says_which_file_it_makes(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sslprune.show.terminal.PLAIN_EVERY", 0.0)
    monkeypatch.setattr("sslprune.run.build.export_onnx", interrupted)
    assert f"file {run.dense_onnx.name}" in invoke("export", run).output


def test_a_repack_to_the_same_keeps_what_was_made_of_it(run: RunDirectory) -> None:
    result = run.control("scratch").result
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    before = contents(run)
    repack(run, SHOW)
    assert contents(run) == before
    run.masked.write_bytes(run.dense.read_bytes())
    run.selection.unlink()  # then what is zero goes
    repack(run, SHOW)  # nothing is removed: another model
    assert contents(run)["repacked/model.pt2"] != before["repacked/model.pt2"]
    assert not run.report.exists() and not run.onnx.exists() and not result.exists()


def test_a_swap_that_was_cut_short_is_finished(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(run)
    (run.repacked_dir / "old.bin").write_bytes(b"of an earlier version")
    run.program.write_bytes(b"old")
    real, moved = os.replace, 0

    def killed(source: Path, target: Path) -> None:
        nonlocal moved
        moved += ".done-repack" in str(source)
        if moved > 2:
            raise SystemExit  # as a process that is no more
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(SystemExit):
            repack(run, SHOW)
    assert list(run.path.glob(".done-repack"))
    with run.writing():
        pass
    assert contents(run) == before | {"repacked/old.bin": b"of an earlier version"}
    assert not list(run.path.rglob(".*"))


def test_what_the_new_result_lacks_goes(run: RunDirectory) -> None:
    variant = run.export_dir / "int8-dynamic.onnx"
    assert invoke("export", run, "--set", "export.quantize=int8-dynamic").exit_code == 0 and variant.is_file()
    note = run.export_dir / "note.txt"
    note.write_text("mine")
    assert invoke("export", run, "--set", "export.quantize=[]").exit_code == 0
    assert not variant.exists() and note.read_text() == "mine" and run.onnx.is_file()


@pytest.mark.parametrize("names", ['["../mine.txt"]', '["/mine.txt", "export/../../mine.txt", ""]', "{", "3", "[3]"])
def test_a_list_of_files_leads_out_of_no_run(names: str, run: RunDirectory, made: Path) -> None:
    mine, before = run.path.parent / "mine.txt", contents(run)
    mine.write_text("mine")
    (run.path / ".done-export").mkdir()
    (run.path / ".done-export/stale.json").write_text(names.replace('"/', f'"{run.path.parent}/'))
    with run.writing():
        pass
    assert mine.read_text() == "mine" and contents(run) == before and not list(run.path.rglob(".*"))
    for record in (run.training.folder / "files.json", run.repacked_dir / "files.json"):
        record.write_text(
            json.dumps({"../mine.txt": {"bytes": 1, "sha256": ""}, str(mine): {"bytes": 1, "sha256": ""}})
        )
    assert not run.damaged("train")
    repack(run, SHOW)
    train(run.recipe(), run, SHOW, resume=True)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("record", ['{"a": {"bytes": Infinity, "sha256": ""}}', "[" * 100_000, "a pipe"])
def test_a_record_that_is_none(record: str, run: RunDirectory) -> None:
    file = run.training.folder / "files.json"
    if record == "a pipe":  # nobody writes to it: who reads waits for ever
        file.unlink()
        os.mkfifo(file)
    else:
        file.write_text(record)
    assert not run.damaged("train")


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (halved, ["masked.safetensors"]),
        (flipped, ["masked.safetensors"]),
        (Path.unlink, ["masked.safetensors", "history.json"]),
        (Path.unlink, ["dense.safetensors"]),
        (flipped, ["dense.safetensors", "initial.safetensors"]),
        (halved, ["checkpoint.pt", "masked.safetensors"]),
    ],
    ids=lambda value: getattr(value, "__name__", " "),
)
@pytest.mark.parametrize("dense", ["0it", "10it"])
def test_resume_makes_again_what_is_damaged(
    dense: str, damage: Callable[[Path], None], names: list[str], runs: dict[str, RunDirectory], tmp_path: Path
) -> None:
    shutil.copytree(runs[dense], tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    recipe, before = run.recipe(), contents(run)
    assert not run.damaged("train")
    for name in names:
        damage(run.training.folder / name)
    train(recipe, run, SHOW, resume=True)
    after = contents(run)
    for name in before:
        if name.endswith(".safetensors"):
            assert after[name] == before[name], name
    assert set(after) == set(before) and not run.damaged("train")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    """Trained runs, by the length of their dense phase."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    (folder / "tiny.toml").write_text(RECIPE)
    for dense in ("0it", "10it"):
        made[dense] = RunDirectory(folder / dense)
        train(load_recipe(folder / "tiny.toml", [f"schedule.dense={dense}"]), made[dense], SHOW)
    return made


def test_resume_repacks_again_what_is_damaged(run: RunDirectory, made: Path) -> None:
    before = contents(run)
    flipped(run.program)
    run.plan.unlink()
    result = invoke("run", made / "tiny.toml", "--run", run, "--resume")
    assert result.exit_code == 0, result.output
    after = contents(run)
    assert all(after[name] == before[name] for name in before if name.startswith(("repacked", "train")))


def test_the_points_of_a_sweep_are_verified_too(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "tiny.toml", ["budget.macs=[0.7,0.5]", "schedule.dense=0it"])
    run = RunDirectory(tmp_path / "run")
    train(recipe, run, SHOW)
    before = contents(run)
    [point] = run.points
    halved(point.masked)
    point.dense.unlink()
    train(recipe, run, SHOW, resume=True)
    assert contents(run) == before
    with pytest.raises(RunError, match="a run of another recipe"):
        train(load_recipe(tmp_path / "tiny.toml", ["budget.macs=[0.6,0.5]"]), run, SHOW, resume=True)
    train(load_recipe(tmp_path / "tiny.toml", ["budget.macs=[0.6,0.5]"]), run, SHOW, force=True)
    assert [point.path.name for point in run.points] == ["0.6"]


@pytest.fixture
def writer(run: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    script = (
        "import sys\nfrom sslprune.run.directory import RunDirectory\n"
        f"with RunDirectory({str(run)!r}).writing():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, "a b"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_run_has_one_writer(run: RunDirectory, made: Path, writer: subprocess.Popen[str]) -> None:
    before = contents(run)
    for words in (
        ("train", made / "tiny.toml", "--run", run, "--force"),
        ("run", made / "tiny.toml", "--run", run, "--resume"),
        ("repack", run),
        ("export", run),
        ("control", run, "--from", "dense"),
    ):
        said = refused(*words)
        assert re.search(rf"process {writer.pid} on \S+ \(since \d{{4}}-.*: -c 'a b'\) writes to it", said), said
    assert contents(run) == before
    writer.kill()  # and nothing is in the way of the next
    writer.wait()
    with run.writing(), run.writing():
        assert (run.path / ".lock").exists()
    assert not list(run.path.rglob(".*"))


def test_a_refused_command_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RunDirectory(tmp_path / "runs/new").writing():
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="exists and is not a run directory"), RunDirectory(tmp_path / "file").writing():
        pass


def test_what_killed_processes_left_goes_at_the_next_start(run: RunDirectory) -> None:
    before = contents(run)
    for name in ("train/.dense.123.safetensors", "repacked/.model.77/model.pt2", ".new-export/export/model.onnx"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_bytes(b"half")
    (run.path / ".report.9.json").write_text("{")
    (run.path / ".notes.2024.md").write_text("mine")
    with run.writing():
        pass
    assert contents(run) == before | {".notes.2024.md": b"mine"}


def test_a_full_disk_leaves_a_usable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    words = ("train", tmp_path / "tiny.toml", "--run", tmp_path / "run", "--set", "schedule.sparse=10it")
    real = os.replace

    def full(name: str, source: Path, target: Path) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    for name in (".writer.json", "recipe.toml", "initial.safetensors"):
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", partial(full, name))
            assert "No space left on device" in refused(*words)
        assert not (tmp_path / "run").exists()
    for name in ("dense.safetensors", "checkpoint.pt"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", partial(full, name))
            assert "No space left on device" in refused(*words)
        assert not list(tmp_path.rglob(".*"))
        assert invoke(*words, "--resume").exit_code == 0


def test_a_link_out_of_a_run_is_refused(run: RunDirectory, made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (run.path / "points").mkdir()
    (run.path / "points/0.9").symlink_to(other)
    before = contents(other)
    for words in (("train", made / "tiny.toml", "--run", run, "--force"), ("repack", run), ("export", run)):
        assert "points/0.9: a link" in refused(*words)
    assert contents(other) == before
    (tmp_path / "linked").symlink_to(other)  # the run itself may lie elsewhere
    repack(RunDirectory(tmp_path / "linked"), SHOW)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_as_an_interrupt_does(name: str, status: int, tmp_path: Path) -> None:
    if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup")
    (tmp_path / "tiny.toml").write_text(RECIPE.replace('"40it"', '"400ep"'))
    run = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "sslprune", "train", "tiny.toml", "--run", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not run.checkpoint.is_file() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(getattr(signal, name))
        _, said = process.communicate()
    assert process.returncode == status
    assert said.splitlines()[-1] == "interrupted; go on with: sslprune train tiny.toml --run run --resume"
    assert "Traceback" not in said and not list(run.path.rglob(".*"))
    assert run.checkpoint.is_file() and isinstance(run.recipe(), Recipe)
