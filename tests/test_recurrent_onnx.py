"""Repacked recurrent and attention models as ONNX: one operator a recurrent layer, whatever its width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslprune
from sslprune.export.session import open_session
from sslprune.values.axes import Axis, zero_groups
from sslprune.values.compare import difference
from tests.laws import lively_

TOKENS = torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(0))


class LanguageModel(nn.Module):
    """Tokens (batch, length) -> next-token scores (batch, length, 20), through two recurrent layers."""

    def __init__(self, cell: Any, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.rnn = cell(8, 12, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(24 if options.get("bidirectional") else 12, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0])


class Attention(nn.Module):
    """An encoder layer of BERT's shape (Devlin et al. 2019): four heads, a mask, a feed-forward of twice the width."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.grow, self.shrink = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for w in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = self.norms[0](x + self.out(y.transpose(1, 2).flatten(2)))
        return self.norms[1](x + self.shrink(F.gelu(self.grow(x))))


class Encoder(nn.Module):
    """Tokens and a mask (batch, length) -> scores (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers, self.head = (
            nn.Embedding(20, 16),
            nn.ModuleList([Attention(), Attention()]),
            nn.Linear(16, 3),
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x[:, 0])


def pruned(model: nn.Module, args: tuple[Tensor, ...], gone: dict[str, float]) -> tuple[nn.Module, list[Axis]]:
    """``model`` masked, and repacked; ``gone`` says which share of each kind's groups goes, and one more in turn."""
    lively_(model).eval()
    program = sslprune.trace(model, args)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind in gone]
    random = np.random.default_rng(0)
    for i, axis in enumerate(axes):
        count = int(axis.size * gone[axis.kind]) + i % 2
        zero_groups(model, axis, random.permutation(axis.size)[:count])
    return sslprune.repack(model, program, axes), axes


def written(model: nn.Module, small: nn.Module, args: tuple[Tensor, ...], path: Path) -> onnx.ModelProto:
    """``small`` as ONNX, which computes what the masked ``model`` does at another batch size."""
    assert sslprune.export_onnx(small, args, path) < 1e-4
    args = tuple(torch.cat([arg, arg.flip(1), arg]) for arg in args)
    session = open_session(path)
    found = session.run(None, {i.name: a.numpy() for i, a in zip(session.get_inputs(), args, strict=True)})[0]
    with torch.no_grad():
        assert difference(model(*args), torch.from_numpy(found))[1] < 1e-4
    return onnx.load(path)


def operators(file: onnx.ModelProto, *names: str) -> list[onnx.NodeProto]:
    inside = [node for function in file.functions for node in function.node]
    return [node for node in [*file.graph.node, *inside] if node.op_type in names]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_a_recurrent_stack_is_one_operator_a_layer(cell: Any, bidirectional: bool, tmp_path: Path) -> None:
    model = LanguageModel(cell, bidirectional=bidirectional)
    small, axes = pruned(model, (TOKENS,), {"hidden": 0.25, "width": 0.25})
    widths = [int(axis.size * 0.75) - i % 2 for i, axis in enumerate(axes) if axis.kind == "hidden"]
    assert len(set(widths)) == 2, "the layers' widths should differ"
    file = written(model, small, (TOKENS,), tmp_path / "model.onnx")
    found = operators(file, "LSTM", "GRU", "RNN", "Loop", "Scan")
    assert [node.op_type for node in found] == [cell.__name__] * 2
    sizes = [a.i for node in found for a in node.attribute if a.name == "hidden_size"]
    assert sizes == widths


def test_attention_of_unequal_layers(tmp_path: Path) -> None:
    model, mask = Encoder(), torch.zeros(2, 7).index_fill_(1, torch.tensor([5, 6]), -1e4)
    small, axes = pruned(
        model, (TOKENS, mask), {"heads": 0.25, "head_dim": 0.25, "value_dim": 0.25, "neurons": 0.4, "width": 0.2}
    )
    assert {"heads", "head_dim", "value_dim", "neurons"} <= {axis.kind for axis in axes}
    file = written(model, small, (TOKENS, mask), tmp_path / "model.onnx")
    assert len(operators(file, "Softmax")) + len(operators(file, "Attention")) == 2
