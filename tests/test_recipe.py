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


def test_a_sweep_is_a_falling_list(tmp_path):
    path = write(
        tmp_path, MINIMAL.replace("[budget]\nmacs = 0.4", "").replace("[model]", "budget = [0.5, 0.3, 0.2]\n[model]")
    )
    recipe = load_recipe(path)
    assert recipe.budget.measure == "macs" and recipe.budget.points == (0.5, 0.3, 0.2) and recipe.budget.fraction == 0.2
    points = recipe.points()
    assert [point.budget.points for point in points] == [(0.5,), (0.5, 0.3), (0.5, 0.3, 0.2)]
    assert [point.name for point in points] == ["mine-0.5", "mine-0.3", "mine"] and points[-1] == recipe
    for point in points:
        assert parse_recipe(tomllib.loads(point.to_toml())) == point
    one = load_recipe(write(tmp_path), ["budget.macs=[0.4]"])
    assert one == load_recipe(write(tmp_path)) and one.points() == [one] and "macs = 0.4" in one.to_toml()


def test_differences_name_the_keys(tmp_path):
    path = write(tmp_path)
    other = load_recipe(path, ["train.lr=0.5", "prune.0.min_groups=3", "bench.repetitions=50", "name=x"])
    assert load_recipe(path).differences(other) == ["prune.0.min_groups", "train.lr"]


def test_paths_follow_the_recipe(tmp_path):
    (tmp_path / "weights.pt").touch()
    (tmp_path / "nets.py").touch()
    recipe = load_recipe(
        write(tmp_path),
        [
            "model.checkpoint=weights.pt",
            "model.factory=nets.py:build",
            "data.factory=own:loaders",
            "distill.teacher.factory=nets.py:large",
            "distill.teacher.checkpoint=weights.pt",
        ],
    )
    assert recipe.distill and recipe.distill.teacher
    assert recipe.distill.teacher.factory == f"{tmp_path / 'nets.py'}:large"
    assert recipe.distill.teacher.checkpoint == str(tmp_path / "weights.pt")
    (tmp_path / "runs").mkdir()
    of_run = load_recipe(write(tmp_path), ["distill.teacher=runs"]).distill
    assert of_run and of_run.teacher and of_run.teacher.run == str(tmp_path / "runs")
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
        (
            "budget.macs=1.5",
            "budget.macs: expected a fraction above 0 and below 1, or a list of them for a sweep; got 1.5",
        ),
        ("budget.macs=0", "budget.macs: expected a fraction above 0 and below 1, or a list of them for a sweep; got 0"),
        ('budget.macs="half"', "budget.macs: expected a fraction above 0 and below 1, or a list of them"),
        ("budget.macs=[]", "budget.macs: expected a fraction above 0 and below 1, or a list of them"),
        ("budget=[0.5, true]", "budget.macs: expected a fraction above 0 and below 1, or a list of them"),
        ("budget.macs=[0.3, 0.5]", "budget.macs: the points of a sweep have to fall, as in [0.5, 0.3, 0.2]; got [0.3"),
        ("budget=[0.5, 0.5]", "budget.macs: the points of a sweep have to fall, as in [0.5, 0.3, 0.2]; got [0.5"),
        ('budget="half"', "budget: input should be a valid dictionary"),
        ("budget.parameters=0.5", "budget: give exactly one of macs, parameters and latency"),
        ("budget={}", "recipe: nothing says how much may go: give budget.macs, .parameters or .latency"),
        ("lasso.strength=1e-4", "recipe: budget.macs and lasso.strength: the one finds λ, the other gives it"),
        ("lasso.strength=0", "lasso.strength: input should be greater than 0; got 0"),
        ("schedule.sparse=5", 'schedule.sparse: write epochs as "5ep" or steps as "200it"; got 5'),
        ("schedule.heal=5 epochs", 'schedule.heal: write epochs as "5ep" or steps as "200it"; got "5 epochs"'),
        ("prune.0.strength=-1", "prune.0.strength: input should be greater than 0; got -1"),
        ("prune.0.strength=0", "prune.0.strength: input should be greater than 0; got 0"),
        ("lasso.ratio=-0.1", "lasso.ratio: input should be greater than or equal to 0; got -0.1"),
        ("distill.teacher.checkpoint=a.pt", "distill.teacher: give either a run directory or a factory"),
        ('distill.teacher={run="a", checkpoint="b.pt"}', "distill.teacher: a run has its own arguments and checkpoint"),
        ("distill.teacher.facory=a:b", "distill.teacher.facory: unknown key; did you mean factory?"),
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


@pytest.mark.parametrize(
    "name", ["", "..", ".", ".git", "../../evil", "/tmp/evil", "a/b", "a\\b", "a\nb", "a\x00", " a", "x" * 201]
)
def test_a_name_is_one_folder(tmp_path, name):
    values = tomllib.loads(write(tmp_path).read_text()) | {"name": name}
    with pytest.raises(RecipeError, match=r"recipe: name: expected a name") as error:
        parse_recipe(values)
    assert "\n" not in str(error.value)
    assert parse_recipe(values | {"name": "résumé v2 (a=1)"}).name == "résumé v2 (a=1)"


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
