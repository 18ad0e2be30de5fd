"""`inspect` before any data and any training: how small a model gets, and what a budget leaves of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sslprune.cli import app
from sslprune.cost.layers import Layer
from sslprune.errors import RecipeError
from sslprune.models.build import model_table
from sslprune.models.example import example_from
from sslprune.recipe import LabelledTextSection, PicturesSection, load_recipe
from sslprune.recipe.schema import SCHEMA_FILE

CNN = "sslprune.zoo:digits_cnn"


class Widths:
    """A table of layers that takes as many microseconds for one as its weight has columns and rows."""

    def __init__(self, **_: Any) -> None: ...

    def microseconds(self, layers: Iterable[Layer]) -> list[float]:
        return [float(prod(layer.widths)) for layer in layers]


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslprune.run.look.LayerTable", Widths)


def look(*words: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, words)])


def looked(*words: object) -> dict[str, Any]:
    result = look(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_model_alone_is_inspected_without_data() -> None:
    found = looked(CNN, "--input", "1,1,8,8", "--budget", "0.5", "--budget", "0.0001")
    least = {one["what"]: one["fraction"] for one in found["least"]}
    assert set(least) == {"filters", "layers", "all", "recipe"} and least["all"] == least["recipe"]
    assert 0 < least["all"] < min(least["filters"], least["layers"]) < 1
    half, none = found["budgets"]
    assert 0.99 * 0.5 * found["macs"] <= half["macs"] <= 0.5 * found["macs"]
    assert half["ms"] < half["dense_ms"] and half["parameters"] < found["parameters"]
    sizes = {f"{axis['name']} {axis['kind']}": axis["size"] for axis in found["axes"]}
    assert all(count <= sizes[name] for name, count in half["widths"].items())
    assert all(count == 1 for name, count in half["widths"].items() if name.endswith(" layers"))
    assert none["ms"] is None and none["widths"] == {}


def test_a_recipe_without_its_data_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init", CNN, "--out", "mine.toml"]).exit_code == 0
    result = look("mine.toml")
    assert result.exit_code == 1 and "my_data.py" in result.output and "--input 1,3,224,224" in result.output
    shown = look("mine.toml", "--input", "1,1,8,8").output
    assert "the least of the MACs that can remain: filters" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("texts", "shapes"),
    [
        (["1,3,8,8"], [(2, 3, 8, 8)]),
        (["int64:4,16", "mask=bool:4,16"], [(4, 16), (4, 16)]),
        (["1x3x8x8"], [(2, 3, 8, 8)]),
    ],
)
def test_inputs_by_their_words(texts: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
    example = example_from(texts)
    assert [tuple(t.shape) for t in (*example.args, *example.kwargs.values())] == list(shapes)
    assert [t.is_floating_point() for t in example.args] == ["int" not in texts[0]]


@pytest.mark.parametrize("text", ["", "1,,2", "float9:1,2", "0,3", "1,99999999999", "x=", "mask=bool:2,4 1,3"])
def test_inputs_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match="--input"):
        example_from([text])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((CNN,), "nothing says what sslprune.zoo:digits_cnn is called with"),
        ((CNN, "--input", "1,3,8,8"), "refuses float32:2,3,8,8"),
        ((CNN, "--input", "1,1,8,8", "--budget", "1.5"), "above 0 and below 1"),
        ((CNN, "--input", "1,1,8,8", "--sensitivity", "8"), "give a recipe with [data]"),
        (("no.toml",), "no.toml: no such recipe"),
        (("hf:./nowhere",), "model.arguments.path"),
    ],
)
def test_mistakes_in_one_line(words: Sequence[str], said: str) -> None:
    result = look(*words)
    assert result.exit_code == 1 and said in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_library_names_its_models() -> None:
    pytest.importorskip("torchvision")
    found = looked("torchvision:resnet18", "--input", "1,3,32,32", "--set", "model.arguments.num_classes=5")
    assert found["parameters"] < 11_689_512 and any(axis["pruned"] for axis in found["axes"])
    result = look("torchvision:resnt18")
    assert result.exit_code == 1 and "did you mean torchvision:resnet18?" in result.output


def test_a_directory_says_what_it_is(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=50
    )
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path / "bert")
    table = model_table(f"hf:{tmp_path / 'bert'}")
    assert table == {"factory": "hf:token-classification", "arguments": {"path": str(tmp_path / "bert")}}
    found = looked(f"hf:{tmp_path / 'bert'}", "--budget", "0.5")
    assert {axis["kind"] for axis in found["axes"] if axis["pruned"]} >= {"heads", "neurons", "width", "layers"}


def started(*words: object) -> str:
    result = CliRunner().invoke(app, ["init", *map(str, words), "--out", "mine.toml", "--force"])
    assert result.exit_code == 0, result.output
    return Path("mine.toml").read_text()


def test_a_starter_knows_what_the_model_reads_and_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = started(CNN, "--input", "1,1,8,8")
    recipe = load_recipe("mine.toml")
    assert isinstance(recipe.data, PicturesSection) and recipe.data.size == 8
    assert [section.kind for section in recipe.prune] == ["filters", "layers"]
    assert recipe.train.optimizer == "sgd" and recipe.model.checkpoint == "weights.safetensors"
    assert "width = 32" in text  # what the factory takes
    assert text.startswith(f"#:schema {SCHEMA_FILE.as_uri()}\n") and SCHEMA_FILE.is_file()
    assert "my_data.py" in started(CNN)  # nothing says what it is called with
    result = CliRunner().invoke(app, ["init", CNN, "--input", "1,5,8,8", "--force"])
    assert result.exit_code == 1 and "refuses float32:2,5,8,8" in result.output


def test_a_starter_for_a_directory_has_its_path_and_its_kind_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=50
    )
    transformers.BertForSequenceClassification(config).save_pretrained("bert")
    text = started("hf:bert")
    recipe = load_recipe("mine.toml")
    assert isinstance(recipe.data, LabelledTextSection) and recipe.train.optimizer == "adamw"
    assert [section.kind for section in recipe.prune] == ["heads", "layers", "neurons"]
    assert recipe.model.arguments["path"].endswith("bert") and recipe.model.checkpoint is None
    assert '# kind = "width"' in text
