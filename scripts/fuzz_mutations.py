"""How ``scripts/fuzz.py`` damages its material: one function a family of inputs, each decided by its generator."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from scripts.fuzz_fields import FIELDS
from scripts.fuzz_material import CHECKPOINTS, TABLES, picture, weights
from scripts.fuzz_own import own_module
from sslprune.recipe.writing import write_toml

RECIPES = (
    "digits", "mlp-mnist", "lenet-mnist", "lenet-shapes-mnist", "lstm-ptb", "minilm-sst2", "bert-base", "resnet56-cifar10",
)  # fmt: skip
TEXTS = (
    "", " ", "a" * 70_000, "\x00", "🦊\u202e", "../../evil", "/etc/passwd", "..", "-1", "nan", "a:b", ":", "os:system",
    "sslprune.zoo:nothing", "sslprune.zoo:lenet", "own.py:net", "hf:causal-lm", "hf:", "x.pt2", "/dev/zero", ".", "1ep", "0it",
    "-1ep", "999999999999ep", "1e3ep", "5 ep", "int8-static", "int8-dynamic", "fp16", "cuda", "cuda:99", "auto", "layers",
    "filters", "*", "[", "language-modelling", "tagging", "accuracy", "f1", "flip", "pad-crop:9999", "torch", "tensorrt",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 3, 7, 64, 10**6, 10**9, 10**30, -(10**30), 0.5, 1e-300, 1e308, float("inf"), float("nan"), -0.0, 0.999)
OTHERS: tuple[Any, ...] = (True, False, [], {}, [[]], [0.5, 0.3], [0.3, 0.5], [1], ["a", "a"], [""], {"a": {"b": [{}]}}, [{}])


@dataclass
class Case:
    """``refuse``: known to be wrong; ``touched``: files that the command may change or remove."""

    words: list[str]
    told: str
    refuse: bool = False
    touched: set[str] = field(default_factory=set)
    names: str = ""  # what a line about it has to name


def mutated(family: str, random: Random, folder: Path) -> Case:
    """Damage ``folder``, a copy of the material, and say which command is to meet it."""
    return FAMILIES[family](random, folder)


# bytes


def bytes_of(random: Random, content: bytes) -> tuple[bytes, str]:
    """``content`` with one damage, and what it is called."""
    size = len(content)
    at = random.randrange(size + 1)
    kind = random.choice(("cut", "cut", "flip", "flip", "flips", "zeros", "insert", "double", "empty", "start", "noise"))
    data = bytearray(content)
    if kind == "cut":
        del data[at:]
    elif kind in ("flip", "flips") and size:
        for _ in range(1 if kind == "flip" else 30):
            data[random.randrange(size)] ^= 1 << random.randrange(8)
    elif kind == "zeros":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif kind == "insert":
        data[at:at] = random.randbytes(random.choice((1, 7, 300)))
    elif kind == "double":
        data += content
    elif kind == "empty":
        data.clear()
    elif kind == "start":
        data[:16] = random.randbytes(16)
    elif kind == "noise":
        data = bytearray(random.randbytes(size))
    return bytes(data), f"{kind} at {at} of {size}"


def damage(random: Random, file: Path) -> str:
    """Damage a file's bytes, or put something else in its place."""
    kind = random.choice(("bytes",) * 12 + ("gone", "folder", "link", "unreadable"))
    if kind == "bytes":
        content, told = bytes_of(random, file.read_bytes())
        file.write_bytes(content)
        return f"{file.name}: {told}"
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to(random.choice(("/dev/zero", "/nowhere", file.name, "/etc/hostname")))
    elif kind == "unreadable":
        os.mkfifo(file) if random.random() < 0.3 else file.write_bytes(b"\xff\xfe\x00")
    return f"{file.name}: {kind}"


def text_of(random: Random, text: str, other: str = "") -> tuple[str, str]:
    """Lines moved about, and odd letters; ``other`` is a text to take lines from."""
    lines = text.splitlines()
    at = random.randrange(len(lines))
    kind = random.choice(("drop", "double", "swap", "letter", "foreign", "end", "word", "joined"))
    if kind == "drop":
        del lines[at]
    elif kind == "double":
        lines.insert(at, lines[at])
    elif kind == "swap":
        to = random.randrange(len(lines))
        lines[at], lines[to] = lines[to], lines[at]
    elif kind == "letter":
        place = random.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:place] + random.choice("\"'[]{}=,.#\t\x00\x7f🦊é0-") + lines[at][place:]
    elif kind == "foreign" and other:
        lines.insert(at, random.choice(other.splitlines()))
    elif kind == "end":
        del lines[at:]
    elif kind == "word":
        words = lines[at].split(" ")
        words[random.randrange(len(words))] = str(value_of(random))[:200]
        lines[at] = " ".join(words)
    elif kind == "joined":
        lines[at : at + 2] = ["".join(lines[at : at + 2])]
    return "\n".join(lines) + "\n", f"{kind} at line {at + 1}"


def value_of(random: Random) -> Any:
    return random.choice(random.choice((TEXTS, NUMBERS, OTHERS)))


def places_in(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value of nested tables and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(*way, key), *places_in(inner, (*way, key))]]


def changed(random: Random, values: Any) -> str:
    """Another value, none, or one more, somewhere in nested ``values``."""
    ways = places_in(values)
    if not ways:
        return "nothing in it"
    *way, key = random.choice(ways)
    table = values
    for step in way:
        table = table[step]
    kind = random.choice(("value",) * 4 + ("drop", "rename", "like"))
    old = table[key]
    if kind == "drop":
        del table[key]
    elif kind == "rename" and isinstance(table, dict):
        table[random.choice((f"{key}x", "../small.toml"))] = table.pop(key)
    elif kind == "like" and isinstance(old, int | float) and not isinstance(old, bool):
        table[key] = random.choice((-old, old * 1000, old + 0.5, str(old)))
    else:
        table[key] = value_of(random)
    return f"{kind} of {'.'.join(map(str, [*way, key]))}: {str(table[key] if kind != 'drop' and key in (table if isinstance(table, dict) else range(len(table))) else '')[:60]}"


# families


def recipes(random: Random, folder: Path) -> Case:
    """The shipped recipes: their text, their values, and fields that they do not have."""
    name, refuse = random.choice(RECIPES), False
    file = folder / "recipes" / f"{name}.toml"
    text = file.read_text(encoding="utf-8")
    words = [random.choice(("inspect",) * 6 + ("train",) * 5 + ("run",)), f"recipes/{name}.toml"]
    kind = random.choice(("text", "values", "values", "set", "set", "field", "field", "field", "unknown", "mixed", "bytes"))
    told = kind
    if kind == "bytes":
        content, told = bytes_of(random, file.read_bytes())
        file.write_bytes(content)
    elif kind == "text":
        other = (folder / "recipes" / f"{random.choice(RECIPES)}.toml").read_text(encoding="utf-8")
        text, told = text_of(random, text, other)
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


def checkpoints(random: Random, folder: Path) -> Case:
    """A checkpoint of each format: its bytes, its table, and what is pickled in it."""
    name, refuse = random.choice(CHECKPOINTS), False
    file = folder / "checkpoints" / name
    if name.endswith(".json") and random.random() < 0.5:
        values = json.loads(file.read_text())
        told = changed(random, values)
        file.write_text(json.dumps(values))
    elif name.endswith(".json") and random.random() < 0.5:
        told = damage(random, file.with_name("a.safetensors"))
    elif name.endswith((".json", ".safetensors")) or random.random() < 0.5:
        told = damage(random, file)
        refuse = ": cut" in told or ": empty" in told or ": gone" in told
    else:
        table: Any = weights()
        key = random.choice(list(table))
        told, made = random.choice(list(TABLES_OF.items()))
        table = made(table, key, table[key], folder)
        refuse = told != "half" and told != "views" and told != "nested" and told != "extra plain"
        table = random.choice((table, {"state_dict": table, "epoch": 1}, {"model": table}))
        torch.save(table, file)
        if told == "pickle":
            file.write_bytes(pickle.dumps(table))
        told = f"{name}: {told} of {key}"
    field_ = random.choice(("model.checkpoint",) * 4 + ("distill.teacher", "control"))
    path = f"checkpoints/{name}"
    teacher = f'{{factory="sslprune.zoo:digits_cnn", arguments={{width=4}}, checkpoint="{path}"}}'
    given = {"model.checkpoint": path, "distill.teacher": teacher, "control": f'[{{name="x", {teacher[1:-1]}}}]'}[field_]
    command = "inspect" if field_ == "model.checkpoint" and random.random() < 0.7 else "run" if field_ == "control" else "train"
    words = [command, "small.toml", "--set", f"{field_}={given}"] + ([] if command == "inspect" else ["--run", "new"])
    return Case(words, told, refuse)


class Marks:
    """Unpickled, it makes the folder ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


Make = Callable[[dict[str, Any], str, torch.Tensor, Path], Any]
TABLES_OF: dict[str, Make] = {
    "gone": lambda t, k, v, f: {n: x for n, x in t.items() if n != k},
    "renamed": lambda t, k, v, f: {f"{n}_" if n == k else n: x for n, x in t.items()},
    "one more": lambda t, k, v, f: t | {"more": v},
    "extra plain": lambda t, k, v, f: t | {"epoch": 3, "name": "a\x00b"},
    "shape": lambda t, k, v, f: t | {k: torch.zeros(3, 1, 2)},
    "integers": lambda t, k, v, f: {n: x.long() if x.is_floating_point() else x.float() for n, x in t.items()},
    "complex": lambda t, k, v, f: {n: x.to(torch.complex64) if x.is_floating_point() else x for n, x in t.items()},
    "half": lambda t, k, v, f: {n: x.half() if x.is_floating_point() else x for n, x in t.items()},
    "nan": lambda t, k, v, f: {n: x * float("nan") if x.is_floating_point() else x for n, x in t.items()},
    "sparse": lambda t, k, v, f: {n: x.to_sparse() for n, x in t.items()},
    "meta": lambda t, k, v, f: {n: x.to("meta") for n, x in t.items()},
    "views": lambda t, k, v, f: {n: x.expand(2, *x.shape)[1] for n, x in t.items()},
    "nested": lambda t, k, v, f: {"module": {"state_dict": {"model": t}}},
    "numbers": lambda t, k, v, f: {i: x for i, x in enumerate(t.values())},
    "arrays": lambda t, k, v, f: {n: x.numpy() for n, x in t.items()},
    "list": lambda t, k, v, f: list(t.values()),
    "none": lambda t, k, v, f: {k: None},
    "empty table": lambda t, k, v, f: {},
    "deep": lambda t, k, v, f: _deep(t),
    "quantized": lambda t, k, v, f: t | {k: torch.quantize_per_tensor(v.float(), 0.1, 0, torch.qint8)},
    "code": lambda t, k, v, f: t | {k: Marks(f / "marker")},
    "pickle": lambda t, k, v, f: {"weights": Marks(f / "marker")},
    "module": lambda t, k, v, f: torch.nn.Linear(2, 2),
}


def _deep(table: dict[str, Any]) -> dict[str, Any]:
    for _ in range(200):
        table = {"a": table}
    return table


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
    given = random.choice(("one.png", "data/mnist/one.png", "data/cifar10/one.png", "x.txt", "", "\x00"[:0] + "🦊", "/", "."))
    return Case(["predict", "run", given], f"{told}; {given}")


def _table(random: Random, file: Path) -> str:
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: list[Any] = [[1, 2], ["a", None], [None, None], [b"a", b"\xff"], [[1], [2]], [{"a": 1}, {"a": 2}], [], [1.5, 2.5]]
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
        row["image"]["bytes"] = picture("RGB" if kind == "mode" else "L", 28 if kind == "mode" else random.choice((1, 27, 29)))
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
        place = folder / "run" / random.choice(("notes.txt", "points/0.9/recipe.toml", ".lock", ".writer.json", ".new-export/x", ".done-repack/x", ".done-export/stale.json"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(random.choice(("", "mine", "{}", '["../small.toml"]', "[3]")))
        told, file = f"{place.relative_to(folder)} beside it", place
    touched = {str(file.relative_to(folder))} if kind != "over" else set()
    commands = [
        ["repack", "run"], ["export", "run"], ["train", "small.toml", "--run", "run", "--resume"],
        ["run", "small.toml", "--run", "run", "--resume"], ["run", "run/recipe.toml", "--run", "run", "--resume"],
        ["control", "run", "--from", random.choice(("dense", "scratch", "ticket")), random.choice(("--force", "--resume"))],
        ["predict", "run", "one.png"], ["bench", "run/export/dense.onnx", "run/export/model.onnx"],
        ["bench", "run/export/model.onnx", "run/repacked/model.pt2"], ["export", "run", "--baseline", "run/report.json"],
        ["inspect", "run/recipe.toml"], ["inspect", "small.toml", "--set", "model.factory=run/repacked/model.pt2", "--set", "model.arguments={}"],
    ]  # fmt: skip
    if kind == "over":
        field_, wrong = random.choice(("data.factory", "model.factory", "budget.macs", "name")), random.choice(("gone.py:x", "1e-9", "../x", "'"))
        over = ["--set", f"{field_}={wrong}"]
        words, refuse = random.choice((
            (["train", "small.toml", "--run", "run"], True), (["run", "run/recipe.toml", "--run", "run"], True),
            (["train", "small.toml", "--run", "run", "--force", *over], True), (["export", "run", *over], True),
            (["export", "run", "--set", 'export.input_names=["a","b"]'], True), (["train", "small.toml", "--run", "data"], True),
            (["train", "small.toml", "--run", "small.toml"], True), (["control", "run", "--from", "scratch"], True),
        ))  # fmt: skip
        told = "over what is there"
    elif kind == "name":
        words = ["train", "small.toml", "--set", "name=" + random.choice(("../../evil", "/evil", "..", "", ".x", "a/b", "a\nb", "x" * 300))]
        told, refuse = "name", True
    else:
        (folder / "one.png").write_bytes(picture("L", 8))
        words = random.choice(commands)
    return Case(words, told, refuse, touched)


def crafted(random: Random, folder: Path) -> Case:
    """Files that make a folder ``marker`` if any code in them runs."""
    marker, kind = folder / "marker", random.choice(("checkpoint", "run", "auto_map", "pt2", "onnx"))
    if kind == "checkpoint":
        name = random.choice([c for c in CHECKPOINTS if not c.endswith(".json")])
        saved = {"state_dict": weights(), "more": Marks(marker)}
        file = folder / "checkpoints" / name
        file.write_bytes(pickle.dumps(saved)) if random.random() < 0.5 else torch.save(saved, file, _use_new_zipfile_serialization=random.random() < 0.7)
        return Case([random.choice(("inspect", "train")), "small.toml", "--set", f"model.checkpoint=checkpoints/{name}"], name, True)
    if kind == "run":
        name = random.choice(("train/checkpoint.pt", "train/dense.safetensors", "train/masked.safetensors"))
        torch.save({"state_dict": Marks(marker)}, folder / "run" / name)
        words = random.choice((["repack", "run"], ["export", "run"], ["train", "small.toml", "--run", "run", "--resume"]))
        return Case(words, name, touched={f"run/{name}"})
    if kind == "auto_map":
        place = folder / "models/minilm-l6"
        name = random.choice(("config.json", "tokenizer_config.json"))
        values = json.loads((place / name).read_text()) | {"auto_map": {c: "own.Own" for c in ("AutoConfig", "AutoTokenizer")}}
        (place / name).write_text(json.dumps(values))
        (place / "own.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
        return Case([random.choice(("inspect", "train")), "recipes/minilm-sst2.toml"], name, True)
    if kind == "onnx":
        shutil.copy(folder / "checkpoints/weights.pt", folder / "run/export/model.onnx")
        return Case(["bench", "run/export/dense.onnx", "run/export/model.onnx"], "no ONNX file", True)
    program = folder / "run/repacked/model.pt2"
    records = _records(program)
    told = random.choice(("sample inputs", "table", "graph"))
    buffer = io.BytesIO()
    torch.save(((Marks(marker),), {}), buffer)
    if told == "sample inputs":
        records["data/sample_inputs/model.pt"] = buffer.getvalue()
    elif told == "table":
        name = "data/weights/model_weights_config.json"
        values = json.loads(records[name])
        entry = random.choice(list(values["config"].values()))
        entry["use_pickle"] = True
        records[name], records[f"data/weights/{entry['path_name']}"] = json.dumps(values).encode(), buffer.getvalue()
    else:
        values = json.loads(records["models/model.json"])
        values["guards_code"] = [f"__import__('os').mkdir('{marker}') is L['x'].size()[0]"]
        records["models/model.json"] = json.dumps(values).encode()
    _write_records(program, records)
    words = random.choice((["bench", "run/export/model.onnx", str(program)], ["export", "run"],
                           ["inspect", "small.toml", "--set", f"model.factory={program}", "--set", "model.arguments={}"]))  # fmt: skip
    return Case(words, f"model.pt2: {told}", True)


def _records(path: Path) -> dict[str, bytes]:
    archive = torch._C.PyTorchFileReader(str(path))
    kept = (name for name in archive.get_all_records() if name != "byteorder" and not name.startswith(".data/"))
    return {name: archive.get_record(name) for name in kept}


def _write_records(path: Path, records: dict[str, bytes]) -> None:
    path.unlink()
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.set_min_version(6)
    for name, content in records.items():
        writer.write_record(name, content, len(content))
    writer.write_end_of_file()


def own(random: Random, folder: Path) -> Case:
    """Modules of a person: models, loaders, datasets and metrics that raise, or return what nobody expects."""
    text, told = own_module(random)
    (folder / "own.py").write_text(text, encoding="utf-8")
    words = [random.choice(("inspect",) * 4 + ("train",) * 7 + ("run",)), "small.toml"]
    given = {"model.factory": "own.py:net", "model.arguments": "{}", "data.factory": "own.py:loaders"}
    if "return Data(" not in text:  # which has metrics of its own
        given["data.metrics"] = '["own.py:metric"]'
    words += [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    return Case(words + ([] if words[0] == "inspect" else ["--run", "new"]), told, names="own.py" if "in_" in told and "MemoryError" not in told else "")


def words(random: Random, folder: Path) -> Case:
    """The words of the command line themselves."""
    commands = ("init", "inspect", "train", "repack", "export", "run", "control", "bench", "predict")
    things = (
        "small.toml", "run", "run/recipe.toml", "run/export/model.onnx", "run/repacked/model.pt2", "gone", "", ".", "/dev/null", "data",
        "checkpoints/weights.pt", "sslprune.zoo:digits_cnn", "own.py:net", "os:system", "a:b", "🦊", "--", "x" * 5000,
    )  # fmt: skip
    options = (
        "--json", "--debug", "--resume", "--force", "--run", "--set", "--from", "--batch", "--threads", "--dim", "--device",
        "--baseline", "--out", "--profile", "--repetitions", "--runtime", "--help", "--version", "--unknown", "-o",
    )  # fmt: skip
    chosen = [random.choice(commands)]
    for _ in range(random.choice((0, 1, 1, 2, 2, 3, 4))):
        chosen.append(random.choice(random.choice((things, things, options, ("0", "-1", "30", "1e9", "x=1", "a.b=c", "dense")))))
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
}
