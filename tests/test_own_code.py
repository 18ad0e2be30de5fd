"""Whatever a person's code raises is one line that names its file, its line and what was called, with status 1."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from sslprune.cli import app
from sslprune.data import build_data
from sslprune.errors import RecipeError
from sslprune.models.build import build_model, find_callable
from sslprune.recipe import ModelSection, load_recipe
from sslprune.values.metrics import Metric
from sslprune.values.own_code import own_code

MODULE = """
import sys
import torch
from sslprune.data import Data, digits
from sslprune.zoo import digits_cnn

{at_import}

def net():
    {in_net}
    return digits_cnn(4)

class Loader:
    def __len__(self):
        return 2

    def __iter__(self):
        yield torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
        {in_loader}

def loaders():
    {in_data}
    return Loader(), Loader()

class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        {in_sample}
        return torch.zeros(1, 8, 8), 0

def workers():
    return (torch.utils.data.DataLoader(Samples(), 2, num_workers=1),) * 2

class Source:
    def __len__(self):
        return 2

    def __iter__(self):
        return self.epoch(0)

    def epoch(self, number):
        yield (torch.zeros(4, 1, 8, 8),), torch.zeros(4, dtype=torch.long)
        {in_source}

class Own(Data):
    def check(self, model):
        {in_check}

def data():
    return Own(Source(), Source())

def metric(logits, targets):
    {in_metric}
    return {figure}
"""
RECIPE = """
[model]
factory = "own.py:net"
[data]
factory = "own.py:loaders"
metrics = ["own.py:metric"]
[[prune]]
kind = "filters"
[budget]
macs = 0.5
[schedule]
sparse = "20it"
heal = "2it"
[lasso]
decay = 4
interval = 2
"""
PLACES = ("at_import", "in_net", "in_data", "in_loader", "in_metric", "in_sample", "in_source", "in_check")
FACTORIES = {"in_sample": "workers", "in_source": "data", "in_check": "data"}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    # or a second text, as long and of the same second, would be taken for the first
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(place: str, statement: str, figure: str = "0.0, 1.0") -> int:
        """A module that does ``statement`` at ``place``; returns the number of that line."""
        text = MODULE.format(figure=figure, **{name: statement if name == place else "pass" for name in PLACES})
        (tmp_path / "own.py").write_text(text)
        recipe = RECIPE.replace("loaders", FACTORIES.get(place, "loaders"))
        metrics = 'metrics = ["own.py:metric"]\n'  # which a Data has itself
        (tmp_path / "own.toml").write_text(recipe.replace(metrics, "" if ":data" in recipe else metrics))
        return next(number for number, line in enumerate(text.splitlines(), 1) if statement in line)

    return write


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("sys.exit(0)", "SystemExit: 0"),
        ("raise SystemExit", "SystemExit"),
        ("{}['width']", "KeyError: 'width'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("raise OSError('a\\nb')", "OSError: a"),
        ("torch.zeros(2, 3) @ torch.zeros(2, 3)", "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    ],
)
@pytest.mark.parametrize(
    ("place", "called", "function"),
    [
        ("at_import", "data.metrics: cannot import {}", "<module>"),
        ("in_net", "model.factory: {}:net failed", "net"),
        ("in_data", "data.factory: {}:loaders failed", "loaders"),
        ("in_loader", "data.factory: its loader failed", "__iter__"),
        ("in_metric", "data.metrics: {}:metric failed", "metric"),
        ("in_source", "data.factory: train of its Data failed", "epoch"),
    ],
)
def test_one_line(place: str, called: str, function: str, statement: str, said: str, write, tmp_path: Path) -> None:
    line = write(place, statement)
    result = invoke("run", "own.toml")
    own = str(tmp_path / "own.py")
    assert result.exit_code == 1, result.output
    told = result.stderr.splitlines()[-1]
    assert told.startswith(f"error: {called.format(own)}: {said}"), told
    assert told.endswith(f"({own}, line {line}, in {function})") and "Traceback" not in result.output


@pytest.mark.parametrize("statement", ["{}['width']", "1 / 0"])
def test_wherever_else_it_fails(statement: str, write, tmp_path: Path) -> None:
    said = {"{}['width']": "KeyError: 'width'", "1 / 0": "ZeroDivisionError: division by zero"}[statement]
    for place, begins, function in (
        ("in_sample", "data.factory: its loader failed", "__getitem__"),
        ("in_check", "code of yours failed", "check"),
    ):
        line = write(place, statement)
        result = invoke("run", "own.toml")
        told = f"error: {begins}: {said} ({tmp_path / 'own.py'}, line {line}, in {function})"
        assert result.exit_code == 1 and result.stderr.splitlines()[-1] == told, result.output


@pytest.mark.parametrize("raised", ["GeneratorExit", "type('Odd', (BaseException,), {})"])
def test_what_is_no_exception(raised: str, write, tmp_path: Path) -> None:
    line = write("in_net", f"raise {raised}")
    result = invoke("inspect", "own.toml")
    assert result.exit_code == 1 and result.stderr.startswith("error: "), result.output
    assert result.stderr.endswith(f"({tmp_path / 'own.py'}, line {line}, in net)\n")


@pytest.mark.parametrize("figure", ["None", "(1,)", "('a', 'b')", "(logits, targets)", "(1.0, None)"])
def test_a_metric_that_is_no_figure(figure: str, write) -> None:
    write("in_metric", "pass", figure)
    result = invoke("run", "own.toml")
    assert result.exit_code == 1 and "own.py:metric returned" in result.stderr, result.output
    assert "expected (sum, number)" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("Own(None, Source())", "train of its Data is a NoneType, which has no __len__; expected a Source"),
        ("Own(Source(), [])", "test of its Data is a list, which has no epoch; expected a Source"),
        ("([None], [None])", "a batch is a NoneType; expected (inputs, targets)"),
    ],
)
def test_a_data_of_other_things(data: str, said: str, write) -> None:
    write("in_source", "pass")
    with open("own.py", "a") as file:
        file.write(f"def data():\n    return {data}\n")
    result = invoke("inspect", "own.toml")
    assert result.exit_code == 1 and said in result.stderr.splitlines()[-1], result.output


def test_mistakes_in_the_text_of_a_module(write, tmp_path: Path) -> None:
    line = write("in_net", "return return")
    assert invoke("init", "own.py:net").exit_code == 1
    with pytest.raises(RecipeError, match=rf"MODEL: cannot import own.py: SyntaxError: .*own.py, line {line}\)"):
        find_callable("own.py:net", "MODEL")
    with pytest.raises(RecipeError, match=r"cannot import gone.py: FileNotFoundError"):
        find_callable("gone.py:net", "MODEL")
    write("at_import", "import absent_library")
    with pytest.raises(RecipeError, match=r"No module named 'absent_library' \(.*own.py, line 7, in <module>\)"):
        find_callable("own.py:net", "MODEL")


def test_arguments_that_do_not_fit(write) -> None:
    line = write("in_net", "raise ValueError('width must be even')")
    with pytest.raises(
        RecipeError, match=rf"model.arguments: .*refuses {{}}: width must be even \(.*line {line}, in net"
    ):
        build_model(ModelSection(factory="own.py:net"))
    with pytest.raises(RecipeError, match=r"model.arguments: .*unexpected keyword argument 'width'$"):
        build_model(ModelSection(factory="own.py:net", arguments={"width": 3}))


def test_a_control_and_a_model_that_ends_the_program(write, tmp_path: Path) -> None:
    line = write("in_net", "sys.exit(0)")
    words = ("--set", "model.factory=sslprune.zoo:digits_cnn", "--set", 'control=[{name="x",factory="own.py:net"}]')
    result = invoke("run", "own.toml", *words)
    assert result.exit_code == 1 and f"control x: model.factory: {tmp_path}/own.py:net failed" in result.stderr
    assert f"line {line}, in net)" in result.stderr.splitlines()[-1]
    write("in_net", "return Ends()")
    with open("own.py", "a") as file:
        file.write("class Ends(torch.nn.Linear):\n    def forward(self, x):\n        raise SystemExit(0)\n")
        file.write("Ends.__init__ = lambda self: torch.nn.Linear.__init__(self, 8, 8)\n")
    result = invoke("inspect", "own.toml")
    assert result.exit_code == 1 and result.stderr.startswith("error: ")


def test_what_passes_through(write) -> None:
    for kind in (KeyboardInterrupt, MemoryError):
        with pytest.raises(kind), own_code("x"):
            raise kind
    with pytest.raises(RecipeError, match=r"^inner$"), own_code("x"):
        raise RecipeError("inner")


def test_a_metric_keeps_what_it_says_of_itself(write) -> None:
    write("in_metric", "pass")
    with open("own.py", "a") as file:
        file.write("metric.lower_is_better = True\n")
        file.write("from sslprune.values.metrics import Metric\nother = Metric(lambda a, b: torch.ones(2))\n")
    recipe = load_recipe("own.toml", ['data.metrics=["own.py:metric", "own.py:other"]'])
    task = build_data(recipe).task
    assert set(task.lower_is_better) == {"metric"}
    other = task.metrics["other"]
    assert isinstance(other, Metric) and other(torch.zeros(2, 2), torch.zeros(2)) == 1.0
