"""Checkpoints that hold something else, and files that would run code, for ``scripts/fuzz.py``."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from scripts.fuzz_case import Case
from scripts.fuzz_damage import changed, damage
from scripts.fuzz_material import CHECKPOINTS, weights


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
        refuse = told not in ("half", "views", "nested", "extra plain")
        refuse &= not (told == "gone" and key.endswith("num_batches_tracked"))  # which torch does without too
        table = random.choice((table, {"state_dict": table, "epoch": 1}, {"model": table}))
        torch.save(table, file)
        if told == "pickle":
            file.write_bytes(pickle.dumps(table))
        told = f"{name}: {told} of {key}"
    field_ = random.choice(("model.checkpoint",) * 4 + ("distill.teacher", "control"))
    path = f"checkpoints/{name}"
    teacher = f'{{factory="sslprune.zoo:digits_cnn", arguments={{width=4}}, checkpoint="{path}"}}'
    given = {"model.checkpoint": path, "distill.teacher": teacher, "control": f'[{{name="x", {teacher[1:-1]}}}]'}[
        field_
    ]
    command = (
        "inspect"
        if field_ == "model.checkpoint" and random.random() < 0.7
        else "run"
        if field_ == "control"
        else "train"
    )
    refuse &= not (command == "inspect" and told.endswith(": gone"))  # what may go does not depend on the weights
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
    "numbers": lambda t, k, v, f: dict(enumerate(t.values())),
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


def crafted(random: Random, folder: Path) -> Case:
    """Files that make a folder ``marker`` if any code in them runs."""
    marker, kind = folder / "marker", random.choice(("checkpoint", "run", "auto_map", "pt2", "onnx"))
    if kind == "checkpoint":
        name = random.choice([c for c in CHECKPOINTS if not c.endswith(".json")])
        saved = {"state_dict": weights(), "more": Marks(marker)}
        file = folder / "checkpoints" / name
        file.write_bytes(pickle.dumps(saved)) if random.random() < 0.5 else torch.save(
            saved, file, _use_new_zipfile_serialization=random.random() < 0.7
        )
        return Case(
            [random.choice(("inspect", "train")), "small.toml", "--set", f"model.checkpoint=checkpoints/{name}"],
            name,
            True,
        )
    if kind == "run":
        name = random.choice(("train/checkpoint.pt", "train/dense.safetensors", "train/masked.safetensors"))
        torch.save({"state_dict": Marks(marker)}, folder / "run" / name)
        words = random.choice(
            (["repack", "run"], ["export", "run"], ["train", "small.toml", "--run", "run", "--resume"])
        )
        return Case(words, name, touched={f"run/{name}"})
    if kind == "auto_map":
        place = folder / "models/minilm-l6"
        name = random.choice(("config.json", "tokenizer_config.json"))
        values = json.loads((place / name).read_text()) | {
            "auto_map": dict.fromkeys(("AutoConfig", "AutoTokenizer"), "own.Own")
        }
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
                           ["inspect", "small.toml", "--set", f"model.factory={program}"]))  # fmt: skip
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
