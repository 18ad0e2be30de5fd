"""The shipped recipes: each is run by `--dry-run`, with random weights and eight samples in place of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from scripts.shipped_looks import look
from sslprune.capture.trace import trace
from sslprune.cli import app
from sslprune.kinds.find import find_axes
from sslprune.models.example import example_of
from sslprune.recipe import load_recipe
from sslprune.recipe.data import PicturesSection
from sslprune.run.nearest import SHIPPED_FILE, Shipped, nearest, sections_of, traits
from tests.material import MATERIAL, sets_for, sound

pytestmark = pytest.mark.filterwarnings("ignore")
RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("name", MATERIAL)
def test_a_dry_run_takes_every_phase(name: str, tmp_path: Path) -> None:
    recipe = RECIPES / f"{name}.toml"
    loaded = load_recipe(recipe)
    library = loaded.model.factory.partition(":")[0]
    needs = {"torchvision": ["torchvision"], "timm": ["timm"], "hf": ["transformers"]}.get(library, [])
    if isinstance(loaded.data, PicturesSection) and loaded.data.size is not None:
        needs.append("torchvision")
    for package in needs:
        pytest.importorskip(package)
    shrinks = ["schedule.shrink=1it"] if loaded.schedule.shrink is not None else []
    sets = ["run.device=cpu", "run.threads=1", "train.warmup=0it", *shrinks, *sets_for(name, tmp_path)]
    words = ["run", str(recipe), "--dry-run", "--force", "--json", *(word for one in sets for word in ("--set", one))]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [phase["name"] for phase in plan["phases"]][-2:] == ["sparse", "heal"]


def test_init_knows_the_recipes_as_they_are(tmp_path: Path) -> None:
    known = json.loads(SHIPPED_FILE.read_text(encoding="utf-8"))
    assert list(known) == list(MATERIAL), "run: python scripts/shipped_looks.py"
    for name, one in known.items():
        text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
        assert one["sections"] == sections_of(text), f"{name}: run python scripts/shipped_looks.py"
        kinds = [section.kind for section in load_recipe(RECIPES / f"{name}.toml").prune]
        assert one["kinds"] == list(dict.fromkeys(kinds))
    for name in ("resnet56-cifar10", "lstm-tagger"):
        (tmp_path / name).mkdir()
        assert look(name, tmp_path / name) == known[name], f"{name}: run python scripts/shipped_looks.py"


def test_the_documented_factory_reads_a_folder_of_sounds(tmp_path: Path) -> None:
    page = (RECIPES.parent / "docs" / "data.md").read_text(encoding="utf-8")
    block = next(text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def sounds" in text)
    names: dict[str, Any] = {}
    exec(compile(block, "data.md", "exec"), names)
    for n in range(10):
        sound(tmp_path / ("low", "high")[n % 2] / f"{n}.wav", 200 + 300 * (n % 2))
    train, test = names["sounds"](str(tmp_path))
    assert [tuple(part.tensors[0].shape) for part in (train, test)] == [(8, 8000), (2, 8000)]
    assert sorted(train.tensors[1].tolist()) == [0] * 4 + [1] * 4
    pitches = [torch.fft.rfft(heard[:4000]).abs().argmax().item() * 4 for heard in train.tensors[0]]
    assert [{200: 1, 500: 0}[pitch] for pitch in pitches] == train.tensors[1].tolist()  # 16,000 a second: 4 Hz a line


SMALL = dict(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=80)


@pytest.mark.parametrize(
    ("model", "sizes", "recipe"),
    [
        ("Qwen2ForCausalLM", {**SMALL, "num_key_value_heads": 2, "use_cache": False}, "llama"),
        ("OlmoeForCausalLM", {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "use_cache": False}, "mixtral"),
        (
            "DistilBertForSequenceClassification",
            {"dim": 48, "hidden_dim": 80, "n_layers": 1, "n_heads": 4},
            "bert-base",
        ),
        ("ViTForImageClassification", {**SMALL, "image_size": 32, "patch_size": 8}, "deit-imagenet"),
    ],
)
def test_a_starter_begins_with_the_nearest(model: str, sizes: dict[str, int], recipe: str) -> None:
    """None of these is a recipe's own model, and none is known by its name."""
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, model)(getattr(transformers, f"{model.partition('For')[0]}Config")(**sizes))
    example = example_of(made, "hf")
    program = trace(made, example.args, example.kwargs, sequence=example.sequence)
    found = nearest(traits(program, find_axes(program)))
    assert found is not None and found.name == recipe


@pytest.mark.parametrize(
    ("model", "sizes", "taught"),
    [
        ("DistilBertForSequenceClassification", {"dim": 48, "hidden_dim": 80, "n_heads": 4}, (0.9, ["*.layer.?"])),
        ("AlbertForSequenceClassification", {**SMALL, "embedding_size": 16}, (0.0, [])),  # all its layers are one
    ],
)
def test_a_starter_teaches_what_the_model_has(
    model: str, sizes: dict[str, int], taught: tuple[float, list[str]], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{model.partition('For')[0]}Config")(vocab_size=50, **sizes)
    getattr(transformers, model)(config).save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(app, ["init", f"hf:{tmp_path / 'model'}", "--out", str(tmp_path / "mine.toml")])
    assert result.exit_code == 0, result.output
    distill = load_recipe(tmp_path / "mine.toml").distill
    assert distill is not None and (distill.hidden, distill.modules) == taught and distill.weight == 1.0


def test_rare_traits_and_what_is_read_decide() -> None:
    plain, rare = (
        Shipped(name, frozenset({"reads pictures", "add", "relu", *own}), ("filters",), {})
        for name, own in (("plain", ["pool"]), ("rare", ["topk"]))
    )
    words = Shipped("words", frozenset({"reads words", "add", "relu", "topk"}), ("neurons",), {})
    among = (plain, rare, words)
    assert nearest({"reads pictures", "add", "relu", "topk"}, among) is rare
    assert nearest({"reads pictures", "add", "mul", "pool"}, among) is plain
    assert nearest({"reads words", "add", "relu", "pool"}, among) is words
    assert nearest({"reads sound", "add", "relu", "topk"}, among) is None
    assert nearest({"reads pictures", *map(str, range(30))}, among) is None
