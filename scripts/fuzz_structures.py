"""Recipes whose values are each well formed, put together as nobody has: kinds, and what learns them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from random import Random
from typing import Any

from scripts.fuzz_case import Case
from sslprune.recipe.writing import write_toml

PICTURES = ("filters", "filters", "layers", "layers", "rank", "columns", "blocks", "kernel")
WORDS = ("heads", "neurons", "head_dim", "value_dim", "width", "layers", "rank", "blocks")
KINDS = {  # of a shipped recipe: those that its model has
    "digits": PICTURES,
    "digits-nested": PICTURES,
    "digits-rank": PICTURES,
    "digits-blocks": PICTURES,
    "digits-calibrate": PICTURES,
    "resnet20-classes": PICTURES,
    "lenet-shapes-mnist": (*PICTURES, "neurons"),
    "digits-experts": ("experts", "neurons", "rank", "layers", "blocks", "width"),
    "minilm-sst2-tokens": WORDS,
    "minilm-sst2-calibrate": WORDS,
    "lstm-ptb": ("hidden", "width", "rank", "neurons", "blocks"),
}
ALL = sorted({kind for kinds in KINDS.values() for kind in kinds})
BUDGETS: tuple[dict[str, Any], ...] = (
    {"macs": 0.7}, {"macs": 0.4}, {"parameters": 0.6}, {"macs": [0.8, 0.6]}, {"macs": [0.8, 0.6], "nested": True},
    {"parameters": [0.9, 0.7, 0.5], "nested": True}, {"macs": 0.6, "round_to": 8}, {"latency": 0.8},
)  # fmt: skip
# of each: a section, and what is put into it
MORE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("choose", {"evidence": "magnitude"}),
    ("choose", {"evidence": "second-order"}),
    ("choose", {"evidence": "beta-rank"}),
    ("calibrate", {"samples": 32, "candidates": 1}),
    ("calibrate", {"samples": 32, "repair": "none", "evidence": "magnitude"}),
    ("calibrate", {"samples": 32, "candidates": 2, "fraction": 0.9}),
    ("schedule", {"shrink": "4it"}),
    ("schedule", {"sparse": "0it", "heal": "0it"}),
    ("schedule", {"dense": "0it"}),
    ("data", {"keep_classes": ["1", "3"]}),
    ("data", {"keep_tokens": True}),
    ("data", {"hold_out": 20}),
    ("distill", {"weight": 0.5}),
    ("lasso", {"method": "subgradient"}),
    ("lasso", {"floor": 0.0}),
    ("train", {"heal": "fresh", "recalibrate": "2it"}),
    ("train", {"amp": "bf16"}),
    ("train", {"accumulate": 2}),
    ("export", {"quantize": ["int8-dynamic"]}),
    ("export", {"quantize": ["int8-static"]}),
    ("export", {"huggingface": True}),
    ("export", {"decoder": True}),
    ("run", {"shard": True}),
)


def structures(random: Random, folder: Path) -> Case:
    """A shipped recipe with other sections: sometimes a strength in place of its budget."""
    name = random.choice(list(KINDS))
    file = folder / "recipes" / f"{name}.toml"
    values = tomllib.loads(file.read_text(encoding="utf-8"))
    if random.random() < 0.8:
        kinds = ALL if random.random() < 0.1 else KINDS[name]
        values["prune"] = [_section(random, kind) for kind in random.sample(kinds, random.choice((1, 2, 2, 3)))]
    if random.random() < 0.15:
        values.pop("budget", None)
        values["lasso"] = {"strength": random.choice((1e-4, 1e-2, 0.3))}
    elif random.random() < 0.6:
        values["budget"] = random.choice(BUDGETS)
        values["lasso"] = {"decay": 4, "interval": 2}
    more = random.sample(MORE, random.choice((0, 1, 1, 2, 3)))
    for section, fields in more:
        values[section] = values.get(section, {}) | fields
    if "keep_classes" in values["data"]:
        values["data"]["keep_classes"] = random.choice((["1", "3"], ["0", "1", "2", "7"]))  # of pictures without names
    file.write_text(write_toml(values), encoding="utf-8")
    command = random.choice(("run", "run", "run", "train", "inspect"))
    told = f"{name}: {json.dumps(values['prune'])} {values.get('budget')} {more}"
    dry = ["--dry-run"] if command == "run" and random.random() < 0.15 else []
    run = [] if command == "inspect" or dry else ["--run", "new"]
    return Case([command, f"recipes/{name}.toml", *run, *dry], told)


def _section(random: Random, kind: str) -> dict[str, Any]:
    made: dict[str, Any] = {"kind": kind}
    if random.random() < 0.15:
        made["tie"] = random.choice(("layers", "indices", "block"))
    if random.random() < 0.15:
        made["least"] = 0.5
    if kind == "blocks":
        made["shape"] = random.choice(([8, 8], [1, 1], [3, 5], [2, 2]))
    return made
