"""`repack(..., release=True)`: the model is given up tensor by tensor, and the result is the same."""

from __future__ import annotations

import copy

import pytest
import torch

import sslprune
from sslprune.errors import RepackError
from tests.architectures import ARCHITECTURES


def case() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], sslprune.Program, list[sslprune.Axis]]:
    torch.manual_seed(0)
    model, args = ARCHITECTURES["views"]()
    program = sslprune.trace(model.eval(), args)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact and axis.size > 2]
    for axis in axes:
        sslprune.zero_groups(model, axis, [0])
    return model, args, program, axes


def test_a_released_model_leaves_the_same_small_one() -> None:
    model, args, program, axes = case()
    expected = sslprune.repack(copy.deepcopy(model), program, axes)
    before = model(*args)
    small = sslprune.repack(model, program, axes, release=True)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in small.state_dict().items())
    torch.testing.assert_close(small(*args), before)
    assert not any(parameter.numel() for parameter in model.parameters())


def test_a_difference_is_seen_though_the_model_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, program, axes = case()
    monkeypatch.setattr("sslprune.removal.remove.TOLERANCE", -1.0)
    with pytest.raises(RepackError, match="evaluation mode, and that was released; repack without release"):
        sslprune.repack(model, program, axes, release=True)
