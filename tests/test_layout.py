"""Channels lie last in memory while a model trains, unless its own code needs rows; nothing else about it changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sslprune.train.checkpoint import weights_of
from sslprune.train.layout import channels_last, lay_out_


class Flattens(nn.Module):
    """A picture flattened behind a convolution: by ``flatten``, by ``view``, or by ``view`` while it trains."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.conv, self.norm, self.linear, self.by = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, 2), by
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.conv(x)))
        rows = self.by == "view" or (self.by == "view in training" and self.training)
        return self.linear(x.view(x.size(0), 16) if rows else x.flatten(1))


class Patches(nn.Module):
    """No convolution, and a view of the picture itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.view(x.size(0), 48))


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (lambda: Flattens("flatten"), True),
        (lambda: Flattens("view"), False),
        (lambda: Flattens("view in training"), False),
        (Patches, False),
        (lambda: nn.Sequential(Flattens("flatten"), nn.Linear(3, 2)), False),  # fails however it lies
    ],
)
def test_channels_lie_last_where_the_models_code_allows_it(make: Callable[[], nn.Module], changes: bool) -> None:
    model, x = make(), torch.randn(2, 3, 4, 4)
    next(model.children()).eval()
    before, modes, random = weights_of(model), [m.training for m in model.modules()], torch.get_rng_state()
    lay_out = lay_out_([model], (x,))
    assert torch.equal(torch.get_rng_state(), random)
    for value in (lay_out(x), *(p for p in model.parameters() if p.dim() == 4)):
        assert value.is_contiguous(memory_format=torch.channels_last) == changes
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_layout_for_all_that_see_a_batch() -> None:
    models, x = [Flattens("flatten"), Flattens("view")], torch.randn(2, 3, 4, 4)
    assert lay_out_(models, (x,))(x) is x
    assert all(model.conv.weight.is_contiguous() for model in models)
    assert lay_out_(models[:1], {"x": x}) is channels_last
