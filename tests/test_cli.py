"""The commands: the whole road on the shipped digits, and every mistake in one line."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner, Result

import sslprune
from sslprune.cli import app
from sslprune.data import digits
from sslprune.errors import RepackError
from sslprune.export.session import open_session
from sslprune.models.build import load_trained
from sslprune.recipe import OwnDataSection, load_recipe
from sslprune.removal.remove import remove
from sslprune.report import Report, Speedup
from sslprune.run import repack
from sslprune.run.directory import RunDirectory
from sslprune.train.checkpoint import write_weights

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
sparse = "40it"
heal = "10it"
[lasso]
decay = 8
[bench]
threads = [1]
[gates]
max_metric_drop = 100.0
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
    monkeypatch.setattr("sslprune.bench.timing.ENOUGH", 0.01)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went the whole road, by way of --json."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
        patch.setattr("sslprune.bench.timing.ENOUGH", 0.01)
        result = invoke("run", folder / "tiny.toml", "--run", folder / "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((folder / "run/report.json").read_text())
    assert "heal 1/1: loss" in result.stderr and "MACs" not in result.stdout.partition("{")[0]
    return folder


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def mistake(*words: object) -> str:
    """The one line that a command fails with."""
    result = invoke(*words)
    assert result.exit_code == 1, result.output
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in result.output
    return lines[-1]


def test_run_writes_everything_and_tells_the_truth(finished: Path) -> None:
    run = RunDirectory(finished / "run")
    report = Report.load(run.report)
    for stage in ("train", "repack", "export"):
        assert run.finished(stage)
    assert not list(run.path.rglob(".*"))
    assert 0.48 < report.budget.reached <= 0.5
    assert report.repacked.macs == round(report.budget.reached * report.dense.macs)
    assert report.equivalence.samples == 360 and report.equivalence.max_relative < 1e-4
    assert report.equivalence.metrics == report.repacked.metrics
    assert report.dense.file_bytes == run.dense_onnx.stat().st_size > report.repacked.file_bytes
    assert {(x.device, getattr(x, "batch_size", None)) for x in report.speedup} >= {("cpu", 1), ("cpu", 32)}
    assert any(x.device == "cuda" for x in report.speedup)
    filters = {axis.name: axis.after for axis in report.axes if axis.kind == "filters"}
    small = torch.export.load(run.program).module()
    assert (
        small.state_dict()["stem.weight"].shape[0] == filters["stem"] if "stem.weight" in small.state_dict() else True
    )
    assert sum(p.numel() for p in small.parameters()) == report.repacked.parameters
    shapes = [[(i.name, i.shape) for i in open_session(file).get_inputs()] for file in (run.onnx, run.dense_onnx)]
    assert shapes[0] == shapes[1]


def models_alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many of the models that repack loaded are still there, each time it loads one and when it writes."""
    models: list[weakref.ref[Any]] = []
    counts: list[int] = []

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            counts.append(sum(model() is not None for model in models))
            found = function(*args)
            models.extend([weakref.ref(found)] if isinstance(found, nn.Module) else [])
            return found

        return counted

    for function in (load_trained, write_weights):
        monkeypatch.setattr(repack, function.__name__, counting(function))
    return counts


def test_the_stages_alone_give_the_same(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "stages"
    trained = invoke("train", finished / "tiny.toml", "--run", run)
    assert trained.exit_code == 0 and trained.stdout.strip() == str(run / "train/masked.safetensors")
    alive = models_alive(monkeypatch)
    repacked = invoke("repack", run)
    assert repacked.exit_code == 0 and repacked.stdout.strip() == str(run / "repacked/model.pt2")
    assert alive == [0, 0, 0]  # the dense one, the masked one, and none while the repacked one is written
    exported = invoke("export", run)
    assert exported.exit_code == 0 and "fewer MACs" in exported.stdout
    one, other = (Report.load(folder / "report.json") for folder in (finished / "run", run))
    same = ("equivalence", "axes", "budget")
    assert one.model_dump(include=set(same)) == other.model_dump(include=set(same))
    assert one.repacked.metrics == other.repacked.metrics


def test_resume_skips_and_a_missed_gate_is_status_3(finished: Path) -> None:
    before = (finished / "run/repacked/model.pt2").stat().st_mtime_ns
    words = ("run", finished / "tiny.toml", "--run", finished / "run", "--resume", "--set", "gates.min_speedup=1000")
    result = invoke(*words)
    assert result.exit_code == 3
    missed = r"gate missed: min_speedup is [\d.]+ at batch \d+, 1 thread, limit 1000"
    assert re.fullmatch(missed, result.stderr.splitlines()[-1])
    assert "finished already" in result.stderr and "\u2717 min_speedup" in result.stdout
    assert (finished / "run/repacked/model.pt2").stat().st_mtime_ns == before
    assert not Report.load(finished / "run/report.json").passed


def test_variants_controls_and_a_baseline(finished: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished / "run", run.path)
    before = Report.load(run.report)
    control = '[{name="small",factory="sslprune.zoo:digits_cnn",arguments={width=8}}]'
    gates = '[{variant="int8-static",max_file_bytes=10,max_metric_drop=100.0},{variant="small",max_parameters=100000}]'
    words = [
        "--set",
        "gates={}",
        "--set",
        'export.quantize="int8-static"',
        "--set",
        f"control={control}",
        "--set",
        f"gate={gates}",
    ]
    words += ["--set", 'export.dynamic_axes={batch="N"}', "--set", 'export.input_names=["pixels"]']
    result = invoke("export", run.path, "--baseline", finished / "run/report.json", *words)
    assert result.exit_code == 3
    assert re.fullmatch(
        r"gate missed: int8-static: max_file_bytes is [\d.e+]+, limit 10", result.stderr.splitlines()[-1]
    )
    report = Report.load(run.report)
    quantized, small = report.variants
    assert (quantized.name, quantized.kind, small.name, small.kind) == ("int8-static", "quantized", "small", "control")
    assert quantized.file_bytes == (run.export_dir / "int8-static.onnx").stat().st_size < report.repacked.file_bytes
    assert quantized.max_relative is not None and 0 < quantized.max_relative < 0.5
    assert abs(quantized.metrics["accuracy"] - report.repacked.metrics["accuracy"]) < 10
    assert quantized.parameters == report.repacked.parameters and small.macs is not None
    assert len(quantized.latency) == len(quantized.over_repacked) == len(small.speedup) == len(report.speedup)
    for figures in (report.dense, report.repacked):
        assert figures.onnx is not None and figures.onnx.samples == 360 and figures.onnx.max_relative < 1e-4
        assert figures.onnx.metrics == figures.metrics and figures.load_ms is not None
    shares = [s.realised * report.macs_ratio / s.ratio for s in report.speedup if isinstance(s, Speedup) and s.realised]
    assert shares == pytest.approx([1.0] * len(shares)) and shares
    assert [profile.model for profile in report.profiles] == ["dense", "repacked", "int8-static", "small"]
    assert report.staircase is not None and report.staircase.step in (1, 4, 8, 16)
    assert report.baseline is not None and report.baseline.same_machine
    kinds = {(c.variant, c.name): c.verdict for c in report.baseline.changes}
    assert kinds["repacked", "macs"] == kinds["dense", "accuracy"] == "same"
    session = open_session(run.onnx)
    assert [(i.name, i.shape[0]) for i in session.get_inputs()] == [("pixels", "N")]
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["sslprune.metrics"]) == report.repacked.metrics
    assert told["sslprune.recipe_sha256"] == hashlib.sha256(run.recipe_file.read_bytes()).hexdigest()
    assert report.recipe_sha256 == told["sslprune.recipe_sha256"]
    for file in (run.page, run.junit, run.summary):
        assert "int8-static" in file.read_text(encoding="utf-8")
    assert before.repacked.metrics == report.repacked.metrics
    run.clear("export")
    assert not list(run.export_dir.iterdir()) and not run.page.exists()


def test_mistakes_of_an_export_are_one_line(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    (tmp_path / "newer.json").write_text('{"schema": 7}')
    recipe, kept, runs = finished / "tiny.toml", (run / "recipe.toml").read_text(), [tmp_path / name for name in "abcd"]
    for words, said in (
        (("export", run, "--set", "budget.macs=0.7"), "budget.macs differ"),
        (("export", run, "--baseline", tmp_path / "newer.json"), "schema 7, written by a newer sslprune"),
        (("export", run, "--baseline", tmp_path / "none.json"), "none.json: cannot be read"),
        (("export", run, "--set", 'export.dynamic_axes={length="T"}'), "no open dimension 'length'; it has batch"),
        (("export", run, "--set", "export.quantize=int4"), "export.quantize"),
        # before any training
        (("run", recipe, "--run", runs[0], "--set", 'gate=[{variant="fp16",min_speedup=1.0}]'), 'variant "fp16"'),
        (("run", recipe, "--run", runs[1], "--baseline", tmp_path / "newer.json"), "newer sslprune"),
        (("run", recipe, "--run", runs[2], "--set", f'control=[{{name="x",onnx="{tmp_path}/bad.onnx"}}]'),
         "control x: .*bad.onnx: ONNX Runtime .* cannot open it"),
        (("run", recipe, "--run", runs[3], "--set", 'control=[{name="x",factory="sslprune.zoo:nets"}]'),
         "control x: .*has no callable nets"),
    ):  # fmt: skip
        assert re.search(said, mistake(*words))
    assert not any(path.exists() for path in runs)
    assert (run / "recipe.toml").read_text() == kept  # a setting that failed is not kept


def test_inspect(recipe: Path) -> None:
    text = invoke("inspect", recipe).stdout
    assert re.search(r"stem +filters +32 +[\d,]+ +[\d,]+ +yes", text)
    assert "no: it reaches the model's output" in text
    axes = {axis["name"]: axis for axis in json.loads(invoke("inspect", recipe, "--json").stdout)["axes"]}
    assert axes["stem"]["pruned"] and not axes["block1"]["pruned"] and axes["linear"]["frozen"]
    assert axes["stem"]["macs_per_group"] > 0 and axes["stem"]["parameters_per_group"] > 0


def test_inspect_shows_the_axes_where_a_pattern_matches_nothing(recipe: Path) -> None:
    result = invoke("inspect", recipe, "--set", "prune.0.kind=heads")
    assert result.exit_code == 0 and "stem" in result.stdout and 'no axis is of kind "heads"' in result.stdout


def test_init_writes_a_recipe_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("init", "sslprune.zoo:resnet_cifar").exit_code == 0
    recipe = load_recipe("resnet_cifar.toml")
    assert recipe.model.factory == "sslprune.zoo:resnet_cifar"
    assert "depth" in Path("resnet_cifar.toml").read_text()
    assert "exists already" in mistake("init", "sslprune.zoo:resnet_cifar")
    assert invoke("init", "sslprune.zoo:resnet_cifar", "--force").exit_code == 0
    assert json.loads(invoke("init", "sslprune.zoo:digits_cnn", "--json").stdout) == {"recipe": "digits_cnn.toml"}
    assert "has no callable nets" in mistake("init", "sslprune.zoo:nets")
    assert "module:callable" in mistake("init", "resnet")


def test_bench(finished: Path) -> None:
    files = (finished / "run/export/dense.onnx", finished / "run/export/model.onnx")
    result = invoke("bench", *files, "--batch", "1", "--batch", "4", "--threads", "1")
    assert result.exit_code == 0 and "batch 4, 1 thread" in result.stdout and "CUDA: absent" in result.stdout
    found = json.loads(invoke("bench", *files, "--threads", "1", "--json").stdout)
    dense, small = found["models"]
    assert small["speedup"][0]["ratio"] > 0 and dense["latency"][0]["repetitions"] >= 30
    assert dense["file_bytes"] == files[0].stat().st_size and dense["load_ms"] > 0
    assert "no such file" in mistake("bench", files[0], finished / "gone.onnx")
    assert invoke("bench", *files, "--dim", "x").exit_code == 2
    alone = invoke("bench", files[0], "--threads", "1", "--json")
    assert [model["name"] for model in json.loads(alone.stdout)["models"]] == ["dense.onnx"]
    assert invoke("bench", files[0], "--threads", "1").stdout.count("ms") >= 3 and invoke("bench").exit_code == 2
    for option, most in (("--batch", 65536), ("--threads", 1024), ("--repetitions", 100000)):
        too_many = invoke("bench", *files, option, most + 1)
        assert too_many.exit_code == 2 and str(most) in too_many.stderr


def test_mistakes_are_one_line(recipe: Path, tmp_path: Path, finished: Path) -> None:
    assert "no such recipe" in mistake("run", "gone.toml")
    assert "did you mean macs?" in mistake("run", recipe, "--set", "budget.mac=0.5")
    assert "budget.macs" in mistake("run", recipe, "--set", "budget.macs=2")
    assert 'kind "heads"' in mistake("run", recipe, "--set", "prune.0.kind=heads", "--run", "a")
    assert "least reachable" in mistake("run", recipe, "--set", "budget.macs=0.0001", "--run", "b")
    for format in ("huggingface", "deci"):
        assert f"export.{format}: " in mistake("run", recipe, "--set", f"export.{format}=true", "--run", "b")
    assert "no such checkpoint" in mistake("run", recipe, "--set", "model.checkpoint=x.pt", "--run", "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.toml"]
    assert "not a run directory" in mistake("repack", tmp_path / "nowhere")
    assert "another recipe (budget.macs differ)" in mistake(
        "run", finished / "tiny.toml", "--run", finished / "run", "--set", "budget.macs=0.6"
    )
    assert invoke("run").exit_code == 2 and invoke("run", recipe, "--nonsense").exit_code == 2


def raising(error: Exception) -> Any:
    """A function of ours that fails: by its file, an error in one of a test's would be a person's own."""
    scope: dict[str, Any] = {"error": error}
    exec(compile("def broken(*_, **__):\n    raise error", sslprune.__file__, "exec"), scope)
    return scope["broken"]


def test_a_full_memory_is_no_surprise(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes")
    monkeypatch.setattr("sslprune.run.inspect.build_data", raising(full))
    assert "out of memory; try a smaller data.batch_size" in mistake("inspect", recipe)


def test_an_unexpected_error_is_one_line_unless_debug(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslprune.run.inspect.build_data", raising(RuntimeError("first\nsecond")))
    assert mistake("inspect", recipe) == "error: unexpected RuntimeError: first second; --debug shows where"
    assert isinstance(invoke("inspect", recipe, "--debug").exception, RuntimeError)


def test_an_error_after_training_says_how_to_go_on(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be it a mistake or a surprise: the line ends with commands that work, and training is not done again."""
    errors = {"repack": RepackError("differs"), "export": RuntimeError("first\nsecond")}
    for name, error in errors.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"sslprune.run.pipeline.{name}", raising(error))
            line = mistake("run", recipe, "--run", "a run", *(["--resume"] if name == "export" else []))
        said, told = line.split("; training is kept; go on with: ")
        commands = [shlex.split(command)[1:] for command in told.split(" && ")]
        if name == "repack":
            assert said == "error: differs" and commands == [["repack", "a run"], ["export", "a run"]]
        else:
            assert said == "error: unexpected RuntimeError: first second; --debug shows where"
            assert commands == [["export", "a run"]]
            assert invoke(*commands[0]).exit_code == 0
        assert RunDirectory("a run").finished("train")


def test_a_repack_that_changes_the_function_writes_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)

    def wrong(*args: Any, **kwargs: Any) -> nn.Module:
        small = remove(*args, **kwargs)
        with torch.no_grad():
            next(iter(small.parameters())).mul_(1.01)
        return small

    monkeypatch.setattr("sslprune.run.repack.remove", wrong)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "repacked and masked model differ by" in mistake("repack", run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_damaged_files_of_a_run(finished: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished / "run", run.path)
    run.program.write_bytes(b"half")
    assert "model.pt2: not a readable .pt2 file" in mistake("export", run)
    run.masked.write_bytes(b"half")
    assert "masked.safetensors: truncated or damaged" in mistake("repack", run)
    run.masked.unlink()
    assert "first `sslprune train" in mistake("repack", run)


def test_interrupted(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sslprune.run.learn.train_model", interrupted)
    monkeypatch.setattr(sys, "argv", ["sslprune", "run", "tiny.toml"])
    result = invoke("run", recipe)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted; go on with: sslprune run tiny.toml --resume"


def test_help_and_version_answer_at_once() -> None:
    done = subprocess.run([sys.executable, "-m", "sslprune", "--help"], capture_output=True, text=True, check=True)
    assert "inspect" in done.stdout
    # torch alone takes a second to import
    heavy = "import sys, sslprune.cli.app; assert not {'torch', 'onnx', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", heavy], check=True)
    assert re.match(r"sslprune( \d|, not installed)", invoke("--version").stdout)
    for command in ("init", "inspect", "train", "repack", "export", "run", "bench"):
        assert invoke(command, "--help").exit_code == 0


OPTIONS = [
    (name, option)
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    for option in command.params
]


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=lambda part: part if isinstance(part, str) else part.name)
def test_help_texts_are_no_markup(name: str, option: Any) -> None:
    """rich reads "[default: 1]" in a help text as markup, and shows nothing."""
    assert "[" not in (getattr(option, "help", None) or "")
    assert ("--run" in option.opts) == ("--run-dir" in option.opts)


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("run", "runs/<recipe's name>"),
        ("train", "runs/<recipe's name>"),
        ("init", "<callable>.toml"),
        ("bench", "(1, 0)"),
        ("bench", "cpu, and cuda where present"),
        ("bench", "what the files are for"),
        ("bench", "[default: 30]"),
    ],
)
def test_help_shows_the_defaults(command: str, default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = " ".join(re.sub(r"[^\x20-\x7e]", " ", invoke(command, "--help").stdout).split())
    assert default in words


def test_the_shell_completes_commands() -> None:
    words = {"_SSLPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "sslprune ins", "COMP_CWORD": "1"}
    assert CliRunner().invoke(app, [], env=words, prog_name="sslprune").stdout.split() == ["inspect"]
    assert "--install-completion" in invoke("--help").stdout


def test_run_dir_is_the_run(recipe: Path, tmp_path: Path) -> None:
    done = invoke("train", recipe, "--run-dir", tmp_path / "here", "--set", "schedule.sparse=12it")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "here/train/masked.safetensors")


def test_predict_reads_a_picture(finished: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    images = digits()[1]
    picture = tmp_path / "digit.png"
    image.fromarray(images.pixels[0, 0].numpy()).save(picture)
    result = invoke("predict", finished / "run", picture, "--json")
    assert result.exit_code == 0, result.output
    [answer] = json.loads(result.stdout)
    section = load_recipe(finished / "tiny.toml").data
    assert isinstance(section, OwnDataSection)
    pixels = (images.pixels[:1].float() / 255 - section.mean[0]) / section.std[0]
    with torch.no_grad():
        shares = sslprune.load(finished / "run")(pixels).softmax(1)[0]
    assert answer["repacked"]["label"] == str(int(shares.argmax()))
    assert answer["repacked"]["probability"] == pytest.approx(float(shares.max()), abs=1e-5)
    (tmp_path / "torn.png").write_bytes(b"no picture")
    torn = invoke("predict", finished / "run", tmp_path / "torn.png")
    assert torn.exit_code == 1 and "not a readable picture" in torn.output.replace("\n", " ")


def test_a_model_that_is_not_of_transformers_has_no_directory(finished: Path) -> None:
    there = sorted(path.name for path in (finished / "run").rglob("*"))
    result = invoke("export", finished / "run", "--format", "huggingface")
    assert result.exit_code == 1 and "is no class of transformers" in " ".join(result.output.split()), result.output
    assert "Traceback" not in result.output and "apply_plan" in result.output
    assert sorted(path.name for path in (finished / "run").rglob("*")) == there
