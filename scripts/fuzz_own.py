"""Modules of a person's own that go wrong, for ``scripts/fuzz.py``."""

from __future__ import annotations

from random import Random

MODULE = """
import sys
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
import sslprune
from sslprune.data import Data, Images, digits
from sslprune.zoo import digits_cnn

{at_import}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = digits_cnn(4)
        {in_init}

    def forward(self, x):
        y = self.body(x)
        {in_forward}
        return {returned}

def net(**arguments):
    {in_net}
    return {net}

class Samples(Dataset):
    def __len__(self):
        {in_length}
        return 24

    def __getitem__(self, number):
        if number == {number}:
            {in_item}
        if number >= 24:
            raise IndexError
        return {item}

def loaders(**arguments):
    {in_data}
    return {loaders}

class Source:
    def __len__(self):
        {in_length}
        return 3

    def __iter__(self):
        return self.epoch(0)

    def epoch(self, number):
        for count in range(3):
            {in_source}
            yield {batch}

def metric(logits, targets):
    {in_metric}
    return {figure}
"""
PLACES = (
    "at_import", "in_init", "in_forward", "in_net", "in_length", "in_item", "in_data", "in_source", "in_metric",
)  # fmt: skip
STATEMENTS = (
    "raise KeyError('width')", "sys.exit(0)", "raise SystemExit", "1 / 0", "raise RuntimeError('a\\nb')",
    "assert False", "raise NotImplementedError", "torch.zeros(2, 3) @ torch.zeros(2, 3)", "[][3]",
    "raise OSError(5, 'x')", "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'odd')", "raise BaseException",
    "raise MemoryError", "raise GeneratorExit", "(lambda f: f(f))(lambda f: f(f))",
    "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()", "undefined", "torch.empty(1 << 60)",
    "raise RuntimeError('CUDA out of memory')", "raise TimeoutError", "raise EOFError",
)  # fmt: skip
RETURNED = (
    "None", "1", "'x'", "[]", "{}", "(y, None)", "(y, y)", "{'a': y, 'b': 'text'}", "y.numpy()", "y.sum()",
    "y.long()", "y.mean(0)", "y[:0]", "y * float('nan')", "y.detach()", "y.double()", "y.half()", "(y,)",
    "y.unsqueeze(0)", "y + torch.rand_like(y)", "y if y.sum() > 0 else -y", "y.to_sparse()", "torch.complex(y, y)",
    "[y, [y, (y,)]]", "iter([y])", "y.tolist()", "x",
)  # fmt: skip
NETS = (
    "None", "1", "Net", "[Net()]", "nn.Sequential()", "nn.Identity()", "digits_cnn(4).double()",
    "digits_cnn(4).half()", "Net().requires_grad_(False)", "digits_cnn(4).to('meta')", "nn.ModuleList([Net()])",
    "lambda x: x", "torch.jit.script(digits_cnn(4))",
)  # fmt: skip
ITEMS = (
    "torch.zeros(8, 8), 0", "torch.zeros(1, 8, 8), 'a'", "None, 0", "torch.zeros(1, 8, 8), None",
    "torch.zeros(1, 8, 8), 0.5", "torch.zeros(1, 8, 8), 99", "torch.zeros(1, 8, 8), -5", "torch.zeros(1, 8, 8)",
    "{'x': torch.zeros(1, 8, 8), 'y': 0}", "torch.zeros(1, 8, 8 + number), 0",
    "(torch.zeros(1, 8, 8), torch.zeros(3)), 0", "torch.full((1, 8, 8), float('nan')), 0",
    "torch.zeros(1, 8, 8, dtype=torch.int64), 0", "torch.zeros(1, 8, 8, dtype=torch.complex64), 0", "'text', 0",
    "torch.zeros(0), 0", "np.zeros((1, 8, 8)), 0", "torch.zeros(1, 8, 8), 255",
    "torch.zeros(1, 8, 8), torch.zeros(3)", "{'x': torch.zeros(1, 8, 8)}, 0",
)  # fmt: skip
GOOD_ITEM = "torch.rand(1, 8, 8), number % 10"
LOADERS = (
    "None", "1", "(1, 2)", "([], [])", "(Samples(), Samples())", "digits()[0]", "(digits()[0], None)",
    "(iter([]), iter([]))", "{}", "(DataLoader(Samples(), 4), DataLoader(Samples(), 1))",
    "(DataLoader(Samples(), 4), DataLoader(Samples(), 5))", "digits()",
    "(Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 3]), 10),) * 2",
    "(Images(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]), 10),) * 2", "Data(None, None)", "Data([], [])",
    "Data(Source(), DataLoader(Samples(), 4))", "((x for x in ()), (x for x in ()))", "'train', 'test'",
    "(np.zeros(3), np.zeros(3))",
)  # fmt: skip
GOOD_LOADERS = ("(DataLoader(Samples(), 8, shuffle=True), DataLoader(Samples(), 6))", "Data(Source(), Source())")
BATCHES = (
    "None", "1", "torch.zeros(8, 1, 8, 8)", "(torch.zeros(8, 1, 8, 8), torch.zeros(8).long())",
    "((1,), torch.zeros(8).long())", "((torch.zeros(8, 1, 8, 8),), None)",
    "((torch.zeros(8, 1, 8, 8),), torch.zeros(8))", "((), torch.zeros(8).long())", "('a', 'b')",
    "((torch.zeros(8, 1, 8, 8),), torch.zeros(3).long())", "({}, torch.zeros(8).long())",
)  # fmt: skip
GOOD_BATCH = "((torch.rand(8, 1, 8, 8),), torch.arange(8) % 10)"
FIGURES = ("None", "1", "(1,)", "('a', 'b')", "(0, 0)", "(float('nan'), 1.0)", "(logits, targets)", "{}", "(1.0, 0.0)")
KINDS = ("place", "place", "place", "returned", "net", "item", "loaders", "batch", "figure", "text")


def own_module(random: Random) -> tuple[str, str]:
    """The text of a module in which one thing is wrong, and which."""
    kind = random.choice(KINDS)
    given = dict.fromkeys(PLACES, "pass") | {
        "returned": "y", "net": "Net()", "number": str(random.choice((0, 9))), "item": GOOD_ITEM, "batch": GOOD_BATCH,
        "loaders": random.choice(GOOD_LOADERS), "figure": "(1.0, 2.0)",
    }  # fmt: skip
    if kind == "place":
        told = random.choice(PLACES)
        given[told] = random.choice(STATEMENTS)
        given["loaders"] = GOOD_LOADERS[told == "in_source"] if told in ("in_item", "in_source") else given["loaders"]
    elif kind == "text":
        text = MODULE.format(**given)
        at = random.randrange(len(text))
        return text[:at] + random.choice(("(", "\x00", "\t", "\n  x", "é", "'")) + text[at:], f"text at {at}"
    else:
        told = kind
        given[kind] = random.choice(
            {"returned": RETURNED, "net": NETS, "item": ITEMS, "loaders": LOADERS, "batch": BATCHES, "figure": FIGURES}[
                kind
            ]
        )
        given["loaders"] = {"item": GOOD_LOADERS[0], "batch": GOOD_LOADERS[1]}.get(kind, given["loaders"])
    return MODULE.format(**given), f"{told}: {given[told]}"
