"""A recipe says what is wrong with it in one line, and survives being written and read."""

import json
import re
import tomllib
from datetime import UTC, date, datetime, time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.recipe_reference import PAGE, reference
from sslprune.errors import RecipeError
from sslprune.recipe import (
    LabelledTextSection,
    OwnDataSection,
    PicturesSection,
    Recipe,
    RunningTextSection,
    Span,
    load_recipe,
    parse_recipe,
)
from sslprune.recipe.fields import Section, sections_in
from sslprune.recipe.schema import SCHEMA_FILE, recipe_schema

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


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NOON = time(12, 0, 0, 250)
LEAF = st.one_of(
    TEXT,
    st.sampled_from(["\x7f", "\x00\x1b[0m", "\r\n", '"""', "\\", "ä \u2028"]),
    st.booleans(),
    st.integers(),
    st.floats(),  # infinities and NaN among them
    st.sampled_from([date(1979, 5, 27), NOON, datetime(1979, 5, 27, 7, 32), datetime(1979, 5, 27, 0, 32, tzinfo=UTC)]),
)
ARGUMENTS = st.dictionaries(
    TEXT, st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
)


@settings(max_examples=200, deadline=None)
@given(ARGUMENTS, TEXT)
def test_what_is_written_is_read_back(arguments, device):
    values = tomllib.loads(MINIMAL)
    values["model"]["arguments"] = arguments
    recipe = parse_recipe({**values, "run": {"device": device}})  # a field of any text
    again = parse_recipe(tomllib.loads(recipe.to_toml()))
    assert alike(again.model_dump(), recipe.model_dump()) and again.differences(recipe) == []


def alike(one, other) -> bool:
    """Of one type and equal, the order of keys aside; a NaN is like a NaN."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "model.arguments: x: of type NoneType, which TOML does not have"),
        ([{"y": object()}], "model.arguments: x.0.y: of type object, which TOML does not have"),
        ({3: 4}, "model.arguments: x: a key is of type int; expected text"),
        ("\udcff", "model.arguments: x: holds bytes that are no text"),
        (time(1, 2, tzinfo=UTC), "model.arguments: x: a time with a zone"),
    ],
)
def test_what_cannot_be_written_is_refused(value, message):
    values = tomllib.loads(MINIMAL)
    values["model"]["arguments"] = {"x": value}
    with pytest.raises(RecipeError) as error:
        parse_recipe(values)
    assert str(error.value).startswith(f"recipe: {message}")


def test_nested_beyond_reason_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match="not a readable TOML file"):
        load_recipe(write(tmp_path, "x = " + "[" * 5000))
    with pytest.raises(RecipeError, match=r"mine.toml: tables or lists nested too deeply"):
        load_recipe(write(tmp_path, MINIMAL + "[model.arguments" + ".a" * 5000 + "]"))


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
    assert isinstance(recipe.data, OwnDataSection) and recipe.data.factory == "own:loaders"


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
        ("data.train=a.parquet", "data: give either train and test (files or folders) or a factory, not both"),
        ('data.augment=["rotate"]', 'data: augment knows "flip" and "pad-crop:<pixels>"; got "rotate"'),
        ('data.augment=["pad-crop:4", "pad-crop:2"]', 'data: augment has "pad-crop" twice; give it once'),
        ('data.augment=["flip", "flip"]', 'data: augment has "flip" twice; give it once'),
        ("train.milestones=[0.7, 0.5]", "train.milestones: milestones have to rise, as in [0.5, 0.75]; got [0.7, 0.5]"),
        ("train.milestones=[0.5, 0.5]", "train.milestones: milestones have to rise, as in [0.5, 0.75]; got [0.5, 0.5]"),
        ("run.seed=4294967296", "run.seed: input should be less than or equal to 4294967295; got 4294967296"),
        ("run.threads=100000", "run.threads: input should be less than or equal to 1024; got 100000"),
        ("bench.threads=[1025]", "bench.threads.0: input should be less than or equal to 1024; got 1025"),
        ("bench.repetitions=1000000000", "bench.repetitions: input should be less than or equal to 100000; got"),
        ("bench.batch_sizes=[70000]", "bench.batch_sizes.0: input should be less than or equal to 65536; got 70000"),
        ("data.batch_size=99999999999", "data.batch_size: input should be less than or equal to 65536; got"),
        ("data.eval_batch_size=70000", "data.eval_batch_size: input should be less than or equal to 65536; got 70000"),
        ("data.max_length=2000000", "data.max_length: input should be less than or equal to 1000000; got 2000000"),
        ("lasso.decay=10000000000", "lasso.decay: input should be less than or equal to 1000000000; got"),
        (
            "schedule.dense=99999999999999999999ep",
            'schedule.dense: at most "100000ep" or "1000000it"; got "99999999999999999999ep"',
        ),
        ("schedule.heal=100001ep", 'schedule.heal: at most "100000ep" or "1000000it"; got "100001ep"'),
        ("train.warmup=1000001it", 'train.warmup: at most "100000ep" or "1000000it"; got "1000001it"'),
        ("schedule.sparse=" + "9" * 5000 + "it", 'schedule.sparse: at most "100000ep" or "1000000it"; got "999'),
        ("schedule.sparse=\u0663ep", 'schedule.sparse: write epochs as "5ep" or steps as "200it"; got'),
        ("budget.round_to=0", 'budget.round_to: expected "auto", or a whole number from 1 to 65536; got 0'),
        ("budget.round_to=widest", 'budget.round_to: expected "auto", or a whole number from 1 to 65536; got "widest"'),
        ("budget.round_to=true", 'budget.round_to: expected "auto", or a whole number from 1 to 65536; got true'),
        ("model.arguments.width=\udcff", "--set"),
        ("name.deep=3", "name: input should be a valid string"),
        ("train.lr=nan", "train.lr: input should be a finite number"),
        ("train.optimizer=adam", "train.optimizer: input should be 'sgd' or 'adamw'; got \"adam\""),
    ],
)
def test_mistakes_are_named(tmp_path, override, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(write(tmp_path), [override])
    assert str(error.value).startswith(f"mine.toml: {message}" if message != "--set" else message)
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


def test_the_published_schema_is_that_of_a_recipe():
    published = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert published == recipe_schema(), "run: python scripts/recipe_reference.py"
    assert published["$defs"]["ScheduleSection"]["properties"]["dense"]["default"] == "0ep"


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("recipes/*.toml")), ids=lambda path: path.stem)
def test_the_schema_knows_what_recipes_say(path):
    schema = recipe_schema()

    def fits(value, wanted) -> bool:
        """Types, keys, patterns and choices: as an editor would mark them."""
        if "$ref" in wanted:
            return fits(value, schema["$defs"][wanted["$ref"].rpartition("/")[2]])
        if "anyOf" in wanted and not any(fits(value, one) for one in wanted["anyOf"]):
            return False
        if isinstance(value, dict) and "properties" in wanted:
            known, needed = wanted["properties"], wanted.get("required", [])
            inner = all(key in known and fits(value[key], known[key]) for key in value)
            return inner and set(needed) <= value.keys()
        if isinstance(value, list) and wanted.get("type") == "array":
            return all(fits(one, wanted["items"]) for one in value)
        types = {"string": str, "integer": int, "number": int | float, "boolean": bool, "object": dict, "array": list}
        right = "type" not in wanted or isinstance(value, types[wanted["type"]])
        chosen = "enum" not in wanted or value in wanted["enum"]
        return (
            right
            and chosen
            and wanted.get("const", value) == value
            and ("pattern" not in wanted or re.search(wanted["pattern"], value) is not None)
        )

    values = tomllib.loads(path.read_text(encoding="utf-8"))
    assert fits(values, schema)
    for section, key, wrong in (("budget", "mac", 0.5), ("model", "factory", 3), ("train", "optimizer", "adam")):
        table = values.get(section, {})
        assert not fits({**values, section: {**table, key: wrong}}, schema)


FILES = {"train": "a.parquet", "test": "b.parquet"}
TEXTS = {"train": "a.tsv", "test": "b.tsv"}
WORDS = {"train": "a.txt", "test": "b.txt", "task": "language-modelling"}
OWN = {"factory": "own:loaders"}


def of_data(data, factory="sslprune.zoo:digits_cnn") -> Recipe:
    values = tomllib.loads(MINIMAL)
    return parse_recipe({**values, "data": data, "model": {"factory": factory}})


@pytest.mark.parametrize(
    ("data", "factory", "kind"),
    [
        (FILES, "nets:net", PicturesSection),
        (FILES, "hf:sequence-classification", LabelledTextSection),
        ({**FILES, "tokenizer": "minilm"}, "nets:net", LabelledTextSection),
        ({**FILES, "text": "sentence"}, "nets:net", LabelledTextSection),
        ({**FILES, "dataset": "glue", "subset": "sst2"}, "nets:net", LabelledTextSection),
        ({**FILES, "dataset": "pets", "image": "img"}, "nets:net", PicturesSection),
        ({**FILES, "dataset": "pets"}, "hf:image-classification", PicturesSection),
        ({"train": "a.csv", "split": 0.2, "task": "regression"}, "nets:net", PicturesSection),
        (TEXTS, "nets:net", LabelledTextSection),
        (WORDS, "nets:net", RunningTextSection),
        (WORDS, "hf:causal-lm", RunningTextSection),
        (OWN, "hf:sequence-classification", OwnDataSection),
        ({**OWN, "task": "language-modelling"}, "nets:net", OwnDataSection),
    ],
)
def test_data_are_of_one_kind(data, factory, kind):
    recipe = of_data(data, factory)
    assert type(recipe.data) is kind
    again = parse_recipe(tomllib.loads(recipe.to_toml()))
    assert again == recipe and type(again.data) is kind


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({**FILES, "vocabulary": "words.txt"}, "data.vocabulary: pictures do not read it; leave it out"),
        ({**FILES, "max_length": 9}, "data.max_length: pictures do not read it; leave it out"),
        ({**FILES, "subset": "sst2"}, "data: subset needs a dataset"),
        ({**TEXTS, "mean": [0.5]}, "data.mean: labelled text does not read it; leave it out"),
        ({**TEXTS, "steps": 9}, "data.steps: labelled text does not read it; leave it out"),
        ({**WORDS, "pad_to": 9}, "data.pad_to: running text does not read it; leave it out"),
        ({**WORDS, "dataset": "glue"}, "data.dataset: running text does not read it; leave it out"),
        (
            {**WORDS, "hold_out": 9},
            "data.hold_out: running text does not read it; give a text of its own as data.valid",
        ),
        ({**OWN, "vocabulary": "words.txt"}, "data.vocabulary: a data factory does not read it; leave it out"),
        ({**OWN, "labels": ["a"], "pad_to": 3}, "data.labels: a data factory does not read it; leave it out (and 1 mo"),
        ({**OWN, "valid": "v.parquet"}, "data.valid: a data factory does not read it; return a Data with valid in it"),
        ({**FILES, "valid": "v.parquet", "hold_out": 9}, "data: hold_out is what the epochs are judged by in place"),
        ({**FILES, "vocabluary": "a"}, "data.vocabluary: unknown key; did you mean vocabulary?"),
        ({**FILES, "batch_size": 0}, "data.batch_size: input should be greater than or equal to 1; got 0"),
        ({**TEXTS, "pad_to": "x"}, 'data.pad_to: input should be a valid integer; got "x"'),
        ({"train": "a.parquet"}, "data: give either train and test (files or folders), or a factory"),
        ({**FILES, "split": 0.2}, "data: give either test, or split, the share of train that is tested on, as 0.2"),
        (
            {**FILES, "size": [1]},
            "data.size: expected a number of pixels up to 8,192, as 224, or [height, width]; got [1]",
        ),
        (
            {**FILES, "augment": ["mixup:0.0"]},
            'data: augment knows "flip" and "pad-crop:<pixels>", "random-resized-crop',
        ),
        ({**FILES, "augment": ["mixup:x"]}, 'data: augment knows "flip" and "pad-crop:<pixels>", "random-resized-crop'),
        (3, "data: expected a section; got 3"),
    ],
)
def test_a_field_that_the_kind_does_not_read(data, message):
    with pytest.raises(RecipeError) as error:
        of_data(data)
    assert str(error.value).startswith(f"recipe: {message}")


def test_a_field_of_another_kind_at_its_default_says_nothing():
    """Run directories of earlier versions list the fields of all kinds."""
    old = {**FILES, "steps": 35, "fixed_length": False, "pad_to": 16, "labels": [], "arguments": {}}
    assert of_data(old) == of_data(FILES)
    assert "steps" not in of_data(old).values()["data"]


def test_the_splits_of_a_dataset_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "test", "glue"):
        (tmp_path / name).mkdir()
    data = of_data({"dataset": "glue", "train": "train", "test": "test"}).data
    assert isinstance(data, LabelledTextSection)
    assert (data.dataset, data.train, data.test) == (str(tmp_path / "glue"), "train", "test")


def sections(section: type[Section]) -> list[type[Section]]:
    inner = [one for field in section.model_fields.values() for one in sections_in(field.annotation)]
    return [section, *(deeper for one in inner for deeper in sections(one))]


def test_every_field_says_what_it_means():
    found = sections(Recipe)
    assert len(found) > 14
    missing = [
        f"{section.__name__}.{name}"
        for section in found
        for name, field in section.model_fields.items()
        if not field.description and not any(sections_in(field.annotation))
    ]
    assert not missing


def test_the_reference_is_the_schema_s():
    page = reference()
    assert '| `heal` | length: "5ep" or "200it" | *needed* | The rest trains on, zeros held; of each' in page
    assert "| `std` | list of numbers above 0 | `[1.0]` |" in page and "\n## `[[gate]]`\n" in page
    assert PAGE.read_text(encoding="utf-8") == page, "run: python scripts/recipe_reference.py"
