"""What ``scripts/fuzz.py`` damages: a folder with small data, checkpoints of each format, and a finished run.

The shipped recipes find their data, models and checkpoints in it, small enough that each trains in a second.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sslprune.recipe.writing import write_toml
from sslprune.zoo import digits_cnn, resnet_cifar

Call = Callable[[list[str], Path], bool]  # the command line in a folder: whether it came to its end
SHIPPED = Path(__file__).parents[1] / "recipes"
SHORT = {"dense": "2it", "sparse": "16it", "heal": "2it"}
SMALL = """
[run]
threads = 1
device = "cpu"
[model]
factory = "sslprune.zoo:digits_cnn"
arguments = { width = 4 }
[data]
factory = "sslprune.data:digits"
batch_size = 32
[[prune]]
kind = "filters"
[budget]
macs = 0.6
round_to = 1
[schedule]
dense = "2it"
sparse = "16it"
heal = "2it"
[lasso]
decay = 4
interval = 2
[bench]
threads = [1]
"""
WORDS = ("good", "fine", "bad", "dull", "the", "film", "was", "a", "very", "long", "one", "of", "them")
PICTURES = {"mnist": ("L", 28), "cifar10": ("RGB", 32)}
CHECKPOINTS = (
    "weights.pt",
    "lightning.ckpt",
    "weights.safetensors",
    "model.safetensors.index.json",
    "old.pth.tar",
    "bare",
)
TABLES = ("table.csv", "table.tsv", "table.jsonl", "table.parquet")


def make(folder: Path, call: Call) -> None:
    """Write everything below ``folder``; the finished run by the command line itself."""
    torch.manual_seed(0)
    (folder / "small.toml").write_text(SMALL, encoding="utf-8")
    _recipes(folder)
    for name, (mode, size) in PICTURES.items():
        for part, count in (("train", 300), ("test", 20)):
            _pictures(folder / "data" / name / f"{part}.parquet", mode, size, count)
    _texts(folder)
    _tokenized(folder / "models/minilm-l6", folder / "models/bert-base-uncased")
    _checkpoints(folder / "checkpoints")
    words = ["run", "small.toml", "--run", "run", "--set", "export.quantize=int8-dynamic"]
    if not (call(words, folder) and call(["control", "run", "--from", "scratch"], folder)):
        raise SystemExit("the material could not be made: the unharmed run fails")


def _recipes(folder: Path) -> None:
    """The shipped recipes, each with so little training that it is over in a second or two."""
    (folder / "recipes").mkdir(parents=True)
    for file in sorted(SHIPPED.glob("*.toml")):
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        short = SHORT if "dense" in values.get("schedule", {}) else {"sparse": "16it", "heal": "2it"}
        if "calibrate" in values:
            short = dict.fromkeys(short, "0it") | {"dense": short.get("dense", "0it")}
            values["calibrate"] |= {"samples": 16, "candidates": 1}
        values["schedule"] = values.get("schedule", {}) | short
        values["lasso"] = values.get("lasso", {}) | {"decay": 4, "interval": 2}
        values["run"] = values.get("run", {}) | {"threads": 1}
        values["bench"] = values.get("bench", {}) | {"threads": [1]}
        values["data"]["batch_size"] = 8
        values.pop("gates", None)
        values["schedule"] |= {"shrink": "8it"} if "shrink" in values["schedule"] else {}
        values.get("train", {}).pop("warmup", None)
        if values.get("train", {}).get("heal") == "rewind":
            del values["train"]["heal"]
        arguments = values["model"].get("arguments", {})
        arguments.update({"depth": 8} if "depth" in arguments else {"width": 4} if "width" in arguments else {})
        if values["data"].get("task") == "language-modelling":
            values["model"]["arguments"] = {"vocabulary": len(WORDS) + 1, "hidden": 8}
        (folder / "recipes" / file.name).write_text(write_toml(values), encoding="utf-8")
    for file in sorted(SHIPPED.glob("*.py")):
        shutil.copy(file, folder / "recipes")


def picture(mode: str, size: int, seed: int = 0) -> bytes:
    from PIL import Image

    shape = (size, size, 3) if mode == "RGB" else (size, size)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, np.uint8), mode).save(buffer, "PNG")
    return buffer.getvalue()


def _pictures(path: Path, mode: str, size: int, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": picture(mode, size, seed), "path": None} for seed in range(count)]
    image = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": image, "label": [i % 10 for i in range(count)]}), path)
    (path.parent / "one.png").write_bytes(picture(mode, size))


def _texts(folder: Path) -> None:
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, random.integers(2, 9))) for _ in range(120)]
    rows = [(line, "positive" if i % 2 else "negative") for i, line in enumerate(lines)]
    for place, names in (("ptb", ("train", "valid", "test")), ("sst2", ("train", "validation"))):
        (folder / "data" / place).mkdir(parents=True, exist_ok=True)
        for name in names:
            text = "\n".join(lines) if place == "ptb" else "sentence\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in rows)
            (folder / "data" / place / f"{name}.{'txt' if place == 'ptb' else 'tsv'}").write_text(text)
    tables = folder / "data/tables"
    tables.mkdir()
    (tables / "table.csv").write_text("text,label\n" + "".join(f'"{a}",{b}\n' for a, b in rows))
    (tables / "table.tsv").write_text("text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    (tables / "table.jsonl").write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": lines, "label": [label for _, label in rows]}), tables / "table.parquet")


def _tokenized(*folders: Path) -> None:
    """A small BERT with its tokenizer."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=512,
    )  # fmt: skip
    for folder in folders:
        folder.mkdir(parents=True)
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(words))
        library: Any = transformers
        library.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)


def weights() -> dict[str, Tensor]:
    """Those of the small recipe's model."""
    torch.manual_seed(1)
    return digits_cnn(4).state_dict()


def _checkpoints(folder: Path) -> None:
    folder.mkdir()
    table = weights()
    torch.save(table, folder / "weights.pt")
    torch.save(table, folder / "bare")
    wrapped = {f"module.{name}": value for name, value in table.items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "best": 0.9}, folder / "old.pth.tar")
    lightning = {f"model.{name}": value for name, value in table.items()}
    extra = {"hyper_parameters": {"lr": 0.1}, "optimizer_states": [{"state": {0: torch.ones(2)}}]}
    torch.save({"epoch": 1, "state_dict": lightning, **extra}, folder / "lightning.ckpt")
    save_file(table, folder / "weights.safetensors")
    names = list(table)
    shards = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for shard, part in shards.items():
        save_file({name: table[name] for name in part}, folder / shard)
    places = {name: shard for shard, part in shards.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for depth in (20, 56):
        torch.save(resnet_cifar(8).state_dict(), folder / f"resnet{depth}-cifar10.th")
    torch.save({name: value * math.nan for name, value in table.items()}, folder / "nan.pt")
