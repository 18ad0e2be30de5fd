"""A recipe says what is wrong with it in one line, and survives being written and read."""

import tomllib
from pathlib import Path

import pytest

from sslprune.errors import RecipeError
from sslprune.recipe import Recipe, Span, load_recipe, parse_recipe

MINIMAL = """
[model]
factory = "sslprune.zoo:digits_cnn"
[data]
factory = "sslprune.data:digits"
[[prune]]
kind = "filters"
[budget]
macs = 0.4
[schedule]
sparse = "3ep"
heal = "200it"
"""


def write(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_minimal(tmp_path):
    recipe = load_recipe(write(tmp_path))
    assert recipe.name == "mine"
    assert recipe.budget.measure == "macs" and recipe.budget.fraction == 0.4
    assert recipe.schedule.sparse.steps(11) == 33 and recipe.schedule.heal.steps(11) == 200
    assert recipe.schedule.dense.steps(11) == 0


def test_overrides(tmp_path):
    recipe = load_recipe(
        write(tmp_path),
        ["schedule.sparse=0ep", "model.arguments={width = 8}", "prune.0.strength=2", "data.batch_size=7", "name=other"],
    )
    assert recipe.schedule.sparse == Span(0, "ep")
    assert recipe.model.arguments == {"width": 8}
    assert recipe.prune[0].strength == 2 and recipe.data.batch_size == 7 and recipe.name == "other"


def test_toml_round_trip(tmp_path):
    recipe = load_recipe(write(tmp_path), ['data.augment=["flip"]', "distill.weight=0.3", 'run.device="ä \\"q\\""'])
    again = parse_recipe(tomllib.loads(recipe.to_toml()))
    assert again == recipe and again.differences(recipe) == []


def test_differences_name_the_keys(tmp_path):
    path = write(tmp_path)
    other = load_recipe(path, ["train.lr=0.5", "prune.0.min_groups=3", "bench.repetitions=50", "name=x"])
    assert load_recipe(path).differences(other) == ["prune.0.min_groups", "train.lr"]


def test_paths_follow_the_recipe(tmp_path):
    (tmp_path / "weights.pt").touch()
    (tmp_path / "nets.py").touch()
    recipe = load_recipe(
        write(tmp_path), ["model.checkpoint=weights.pt", "model.factory=nets.py:build", "data.factory=own:loaders"]
    )
    assert recipe.model.checkpoint == str(tmp_path / "weights.pt")
    assert recipe.model.factory == f"{tmp_path / 'nets.py'}:build"
    assert recipe.data.factory == "own:loaders"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget.mac=0.3", "budget.mac: unknown key; did you mean macs?"),
        ("trian.lr=0.3", "trian: unknown key; did you mean train?"),
        ("prune.0.knd=1", "prune.0.knd: unknown key; did you mean kind?"),
        ("distill.temprature=3", "distill.temprature: unknown key; did you mean temperature?"),
        ("budget.macs=1.5", "budget.macs: input should be less than 1; got 1.5"),
        ("budget.macs=0", "budget.macs: input should be greater than 0; got 0"),
        ('budget.macs="half"', 'budget.macs: input should be a valid number; got "half"'),
        ("budget.parameters=0.5", "budget: give exactly one of macs and parameters"),
        ("budget={}", "recipe: nothing says how much may go: give budget.macs or budget.parameters"),
        ("lasso.strength=1e-4", "recipe: budget.macs and lasso.strength: the one finds λ, the other gives it"),
        ("lasso.strength=0", "lasso.strength: input should be greater than 0; got 0"),
        ("schedule.sparse=5", 'schedule.sparse: write epochs as "5ep" or steps as "200it"; got 5'),
        ("schedule.heal=5 epochs", 'schedule.heal: write epochs as "5ep" or steps as "200it"; got "5 epochs"'),
        ("prune.0.strength=-1", "prune.0.strength: input should be greater than 0; got -1"),
        ("prune=[]", "prune: list should have at least 1 item after validation, not 0; got []"),
        ("data.train=a.parquet", "data: give either train and test (Parquet files) or a factory, not both"),
        ('data.augment=["rotate"]', 'data: augment knows "flip" and "pad-crop:<pixels>"; got "rotate"'),
        ("name.deep=3", "name: input should be a valid string"),
        ("train.lr=nan", "train.lr: input should be a finite number"),
        ("train.optimizer=adam", "train.optimizer: input should be 'sgd' or 'adamw'; got \"adam\""),
    ],
)
def test_mistakes_are_named(tmp_path, override, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(write(tmp_path), [override])
    assert str(error.value).startswith(f"mine.toml: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["schedule", "=3", "prune.9.kind=filters", "budget..macs=1"])
def test_malformed_overrides(tmp_path, override):
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(write(tmp_path), [override])


def test_unreadable_files(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "absent.toml")
    with pytest.raises(RecipeError, match="not a readable TOML file"):
        load_recipe(write(tmp_path, "[model"))
    with pytest.raises(RecipeError, match="schedule: missing"):
        load_recipe(write(tmp_path, MINIMAL.partition("[schedule]")[0]))


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("recipes/*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path):
    assert isinstance(load_recipe(path), Recipe)
