"""One damage at a time, for ``scripts/fuzz.py``: to bytes, to lines of text, to nested values."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

TEXTS = (
    "", " ", "a" * 70_000, "\x00", "🦊\u202e", "../../evil", "/etc/passwd", "..", "-1", "nan", "a:b", ":", "os:system",
    "sslprune.zoo:nothing", "sslprune.zoo:lenet", "own.py:net", "hf:causal-lm", "hf:", "x.pt2", "/dev/zero", ".",
    "1ep", "0it", "-1ep", "999999999999ep", "1e3ep", "5 ep", "int8-static", "int8-dynamic", "fp16", "cuda", "cuda:99",
    "auto", "layers", "filters", "*", "[", "language-modelling", "tagging", "accuracy", "f1", "flip", "pad-crop:9999",
    "torch", "tensorrt",
)  # fmt: skip
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    64,
    10**6,
    10**9,
    10**30,
    -(10**30),
    0.5,
    1e-300,
    1e308,
    float("inf"),
    float("nan"),
    -0.0,
    0.999,
)
OTHERS: tuple[Any, ...] = (
    True,
    False,
    [],
    {},
    [[]],
    [0.5, 0.3],
    [0.3, 0.5],
    [1],
    ["a", "a"],
    [""],
    {"a": {"b": [{}]}},
    [{}],
)


def bytes_of(random: Random, content: bytes) -> tuple[bytes, str]:
    """``content`` with one damage, and what it is called."""
    size = len(content)
    at = random.randrange(size + 1)
    kind = random.choice(
        ("cut", "cut", "flip", "flip", "flips", "zeros", "insert", "double", "empty", "start", "noise")
    )
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
    return f"{kind} of {'.'.join(map(str, [*way, key]))}, which was {str(old)[:60]}"
