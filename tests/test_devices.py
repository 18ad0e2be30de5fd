"""A repacked model on another device: what its graphs make themselves goes along."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import sslprune
from sslprune.removal.packed import Packed


class Positions(nn.Module):
    """Its code makes a tensor of its own, where the input is; a traced graph names that device."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(16, 8), nn.Embedding(10, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.down(torch.relu(self.up(x)))


def test_a_repacked_model_makes_its_tensors_where_it_is() -> None:
    model, ids = Positions().eval(), torch.randint(16, (2, 5))
    program = sslprune.trace(model, (ids,))
    axes = [axis for axis in sslprune.find_axes(program) if axis.kind == "neurons" and axis.exact]
    sslprune.zero_groups(model, axes[0], [0, 1])
    small = sslprune.repack(model, program, axes).eval()
    moved = copy.deepcopy(small).to("meta")
    assert moved(ids.to("meta")).device.type == "meta"
    assert devices(moved) == {"meta"} and devices(small) == {"cpu"}
    torch.testing.assert_close(small(ids), model(ids))
    assert small.to(torch.float64)(ids).dtype is torch.float64


def devices(model: Packed) -> set[str]:
    kwargs = [value for graph in model._graphs for node in graph.nodes for value in node.kwargs.values()]
    return {value.type for value in kwargs if isinstance(value, torch.device)}


def test_a_program_of_another_device_is_not_exported_by_what_it_was() -> None:
    model, ids = Positions().eval(), torch.randint(16, (2, 5))
    program = sslprune.trace(model, (ids,))
    there = program.on("meta")
    assert program.on("cpu") is program and program.exported is not None
    assert there.exported is None and there.args[0].device.type == "meta"
