"""How ``scripts/fuzz.py`` damages its material: one function a family of inputs, each decided by its generator."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from scripts.fuzz_case import Case
from scripts.fuzz_checkpoints import checkpoints, crafted
from scripts.fuzz_damage import bytes_of, changed, damage, places_in, text_of, value_of
from scripts.fuzz_fields import FIELDS
from scripts.fuzz_material import TABLES, picture
from scripts.fuzz_own import own_module
from scripts.fuzz_structures import structures
from sslprune.recipe.writing import write_toml

RECIPES = (
    "digits", "mlp-mnist", "lenet-mnist", "lenet-shapes-mnist", "lstm-ptb", "minilm-sst2", "bert-base",
    "resnet56-cifar10",
)  # fmt: skip


def mutated(family: str, random: Random, folder: Path) -> Case:
    """Damage ``folder``, a copy of the material, and say which command is to meet it."""
    return FAMILIES[family](random, folder)


def recipes(random: Random, folder: Path) -> Case:
    """The shipped recipes: their text, their values, and fields that they do not have."""
    name, refuse = random.choice(RECIPES), False
    file = folder / "recipes" / f"{name}.toml"
    text = file.read_text(encoding="utf-8")
    words = [random.choice(("inspect",) * 6 + ("train",) * 5 + ("run",)), f"recipes/{name}.toml"]
    kind = random.choice(
        ("text", "values", "values", "set", "set", "field", "field", "field", "unknown", "mixed", "bytes")
    )
    told = kind
    if kind == "bytes":
        content, told = bytes_of(random, file.read_bytes())
        file.write_bytes(content)
    elif kind == "text":
        lines = (folder / "recipes" / f"{random.choice(RECIPES)}.toml").read_text(encoding="utf-8")
        text, told = text_of(random, text, lines)
        file.write_text(text, encoding="utf-8")
    elif kind == "set":
        key = random.choice([".".join(map(str, way)) for way in places_in(tomllib.loads(text))] + list(FIELDS))
        value = random.choice(FIELDS[key]) if key in FIELDS and random.random() < 0.8 else value_of(random)
        told = f"{key}={_toml(value)}"[:60_000].replace("\x00", "")
        words += ["--set", told]
    else:
        values = tomllib.loads(text)
        if kind == "unknown":
            table = random.choice([v for v in values.values() if isinstance(v, dict)])
            table["unknwon"], refuse = value_of(random), True
        elif kind == "field":
            told = ""
            for name in random.sample([name for name in FIELDS if name.count(".") == 1], random.choice((1, 2, 3))):
                section, key = name.split(".")
                value = random.choice(FIELDS[name])
                told += f" {name} = {value!s:.60}"
                values.setdefault(section, {})[key] = value
        elif kind == "mixed":
            other = tomllib.loads((folder / "recipes" / f"{random.choice(RECIPES)}.toml").read_text(encoding="utf-8"))
            told = random.choice(list(other))
            values[told] = other[told]
        else:
            told = "; ".join(changed(random, values) for _ in range(random.choice((1, 1, 2))))
        try:
            file.write_text(write_toml(values), encoding="utf-8")
        except ValueError:  # no TOML, e.g. text with lone surrogates
            file.write_text("name = \n", encoding="utf-8")
    if words[0] != "inspect" and not refuse:
        words += ["--run", "new"]
    return Case(words, f"{name}: {told}", refuse)


def _toml(value: Any) -> str:
    """A value as one line of TOML, tables included."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else json.dumps(value, ensure_ascii=False)


def data(random: Random, folder: Path) -> Case:
    """Tables of text, running text, tokenizers, and pictures."""
    kind = random.choice(("table", "table", "text", "pictures", "tokenizer", "one"))
    command = random.choice(("inspect", "inspect", "train"))
    run = [] if command == "inspect" else ["--run", "new"]
    if kind == "table":
        name = random.choice(TABLES)
        file = folder / "data/tables" / name
        told = _table(random, file)
        part = random.choice(("train", "test"))
        paths = {"train": "data/tables/table.csv", "test": "data/tables/table.tsv"} | {part: f"data/tables/{name}"}
        sets = [f"data.{key}={path}" for key, path in paths.items()]
        return Case([command, "recipes/minilm-sst2.toml", *(w for s in sets for w in ("--set", s)), *run], told)
    if kind == "text":
        file = folder / "data/ptb" / random.choice(("train.txt", "test.txt", "valid.txt"))
        if random.random() < 0.5:
            told = damage(random, file)
        else:
            text, told = text_of(random, file.read_text())
            file.write_text(text)
        return Case([command, "recipes/lstm-ptb.toml", *run], told)
    if kind == "tokenizer":
        file = random.choice(sorted((folder / "models/minilm-l6").iterdir()))
        if file.suffix == ".json" and random.random() < 0.6:
            values = json.loads(file.read_text())
            told = f"{file.name}: " + changed(random, values)
            file.write_text(json.dumps(values))
        else:
            told = damage(random, file)
        return Case([command, "recipes/minilm-sst2.toml", *run], told)
    if kind == "pictures":
        file = folder / "data/mnist" / random.choice(("train.parquet", "test.parquet"))
        told = _pictures(random, file)
        return Case([command, "recipes/lenet-mnist.toml", *run], told)
    (folder / "one.png").write_bytes(picture("L", 8))
    told = damage(random, folder / "one.png")
    given = random.choice(
        ("one.png", "data/mnist/one.png", "data/cifar10/one.png", "x.txt", "", "\x00"[:0] + "🦊", "/", ".")
    )
    return Case(["predict", "run", given], f"{told}; {given}")


def _table(random: Random, file: Path) -> str:
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: list[Any] = [
            [1, 2],
            ["a", None],
            [None, None],
            [b"a", b"\xff"],
            [[1], [2]],
            [{"a": 1}, {"a": 2}],
            [],
            [1.5, 2.5],
        ]
        if random.random() < 0.4:
            return damage(random, file)
        one, two = random.choice(columns), random.choice(columns)
        size = min(len(one), len(two))
        names = random.choice((["text", "label"], ["label", "text"], ["text", "text"], ["a", "b"], ["", "label"]))
        pq.write_table(pa.Table.from_arrays([pa.array(one[:size]), pa.array(two[:size])], names=names), file)
        return f"{file.name}: {names} {one} {two}"
    if random.random() < 0.3:
        return damage(random, file)
    if file.suffix == ".jsonl" and random.random() < 0.6:
        lines = file.read_text().splitlines()
        at = random.randrange(len(lines))
        row = json.loads(lines[at])
        row[random.choice(("text", "label", "more"))] = value_of(random)
        lines[at] = random.choice((json.dumps(row), json.dumps([row]), json.dumps(value_of(random)), "[" * 5000))
        file.write_text("\n".join(lines))
        return f"{file.name}: line {at + 1}: {lines[at][:80]}"
    text, told = text_of(random, file.read_text())
    file.write_bytes(text.encode(random.choice(("utf-8", "utf-8", "utf-16", "utf-8-sig")), "replace"))
    return f"{file.name}: {told}"


def _pictures(random: Random, file: Path) -> str:
    if random.random() < 0.4:
        return damage(random, file)
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(file).to_pylist()
    row, kind = random.choice(rows), random.choice(("bytes", "size", "mode", "label", "none", "big"))
    if kind == "bytes":
        row["image"]["bytes"], kind = bytes_of(random, row["image"]["bytes"])
    elif kind in ("size", "mode"):
        row["image"]["bytes"] = picture(
            "RGB" if kind == "mode" else "L", 28 if kind == "mode" else random.choice((1, 27, 29))
        )
    elif kind == "big":
        row["image"]["bytes"] = _bomb()
    elif kind == "label":
        row["label"] = random.choice((-1, 10, 255, 10**9, 2**62))
    else:
        row[random.choice(("image", "label"))] = None
    pq.write_table(pa.Table.from_pylist(rows), file)
    return f"{file.name}: {kind}"


def _bomb() -> bytes:
    """A picture of a few bytes that says it is enormous."""
    content = bytearray(picture("L", 8))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(content)


def runs(random: Random, folder: Path) -> Case:
    """A finished run: one of its files is damaged, or a command that would lose it."""
    files = sorted(path for path in (folder / "run").rglob("*") if path.is_file())
    file, told, touched, refuse = random.choice(files), "", set(), False
    kind = random.choice(("damage", "damage", "json", "json", "over", "name", "other"))
    if kind == "json":
        file = random.choice([path for path in files if path.suffix == ".json"])
        values = json.loads(file.read_text())
        told = f"{file.relative_to(folder)}: {changed(random, values)}"
        file.write_text(json.dumps(values))
    elif kind == "damage":
        told = f"{file.relative_to(folder)}: {damage(random, file)}"
    elif kind == "other":
        place = (
            folder
            / "run"
            / random.choice(
                (
                    "notes.txt",
                    "points/0.9/recipe.toml",
                    ".lock",
                    ".writer.json",
                    ".new-export/x",
                    ".done-repack/x",
                    ".done-export/stale.json",
                )
            )
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(random.choice(("", "mine", "{}", '["../small.toml"]', "[3]")))
        told, file = f"{place.relative_to(folder)} beside it", place
    touched = {str(file.relative_to(folder))} if kind != "over" else set()
    again = ("--force", "--resume")
    commands = [
        ["repack", "run"], ["export", "run"], ["train", "small.toml", "--run", "run", "--resume"],
        ["run", "small.toml", "--run", "run", "--resume"], ["run", "run/recipe.toml", "--run", "run", "--resume"],
        ["control", "run", "--from", random.choice(("dense", "scratch", "ticket")), random.choice(again)],
        ["predict", "run", "one.png"], ["bench", "run/export/dense.onnx", "run/export/model.onnx"],
        ["bench", "run/export/model.onnx", "run/repacked/model.pt2"],
        ["export", "run", "--baseline", "run/report.json"], ["inspect", "run/recipe.toml"],
        ["inspect", "small.toml", "--set", "model.factory=run/repacked/model.pt2"],
    ]  # fmt: skip
    if kind == "over":
        field_, wrong = (
            random.choice(("data.factory", "model.factory", "budget.macs", "name")),
            random.choice(("gone.py:x", "1e-9", "../x", "'")),
        )
        over, named = ["--set", f"{field_}={wrong}"], field_ == "name" and "/" not in wrong  # of any letters
        words, refuse = random.choice((
            (["train", "small.toml", "--run", "run"], True), (["run", "run/recipe.toml", "--run", "run"], True),
            (["train", "small.toml", "--run", "run", "--force", *over], not named),
            (["export", "run", *over], not named),
            (["export", "run", "--set", 'export.input_names=["a","b"]'], True),
            (["train", "small.toml", "--run", "data"], True),
            (["train", "small.toml", "--run", "small.toml"], True), (["control", "run", "--from", "scratch"], True),
        ))  # fmt: skip
        told = "over what is there"
    elif kind == "name":
        words = [
            "train",
            "small.toml",
            "--set",
            "name=" + random.choice(("../../evil", "/evil", "..", "", ".x", "a/b", "a\nb", "x" * 300)),
        ]
        told, refuse = "name", True
    else:
        (folder / "one.png").write_bytes(picture("L", 8))
        words = random.choice(commands)
    return Case(words, told, refuse, touched)


def own(random: Random, folder: Path) -> Case:
    """Modules of a person: models, loaders, datasets and metrics that raise, or return what nobody expects."""
    text, told = own_module(random)
    (folder / "own.py").write_text(text, encoding="utf-8")
    words = [random.choice(("inspect",) * 4 + ("train",) * 7 + ("run",)), "small.toml"]
    given = {"model.factory": "own.py:net", "model.arguments": "{}", "data.factory": "own.py:loaders"}
    if "return Data(" not in text:  # which has metrics of its own
        given["data.metrics"] = '["own.py:metric"]'
    words += [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    return Case(
        words + ([] if words[0] == "inspect" else ["--run", "new"]),
        told,
        names="own.py" if "in_" in told and "MemoryError" not in told else "",
    )


def words(random: Random, folder: Path) -> Case:
    """The words of the command line themselves."""
    commands = ("init", "inspect", "train", "repack", "export", "run", "control", "bench", "predict")
    things = (
        "small.toml", "run", "run/recipe.toml", "run/export/model.onnx", "run/repacked/model.pt2", "gone", "", ".",
        "/dev/null", "data",
        "checkpoints/weights.pt", "sslprune.zoo:digits_cnn", "own.py:net", "os:system", "a:b", "🦊", "--", "x" * 5000,
    )  # fmt: skip
    options = (
        "--json", "--debug", "--resume", "--force", "--run", "--set", "--from", "--batch", "--threads", "--dim",
        "--device",
        "--baseline", "--out", "--profile", "--repetitions", "--runtime", "--help", "--version", "--unknown", "-o",
    )  # fmt: skip
    chosen = [random.choice(commands)]
    for _ in range(random.choice((0, 1, 1, 2, 2, 3, 4))):
        chosen.append(
            random.choice(random.choice((things, things, options, ("0", "-1", "30", "1e9", "x=1", "a.b=c", "dense"))))
        )
    chosen = [word for word in chosen if word != "--debug"]  # which asks for a traceback
    return Case(chosen, "words", touched={name for name in ("digits_cnn.toml", "net.toml") if (folder / name).exists()})


FAMILIES: dict[str, Callable[[Random, Path], Case]] = {
    "recipe": recipes,
    "checkpoint": checkpoints,
    "data": data,
    "run": runs,
    "own": own,
    "crafted": crafted,
    "words": words,
    "structures": structures,
}
