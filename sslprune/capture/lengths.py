"""LSTMs and GRUs of any length: torch.export unrolls them to learn their shapes, and takes the length for a constant.

The operator itself stays in the graph, so shapes are all that is asked for, and they do not need the steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch.nn.functional as F
from torch import Tensor
from torch._decomp import decompositions

Params = tuple[Tensor, ...]  # of one layer in one direction: weight_ih, weight_hh, then biases and projection


def _lstm(x: Tensor, hidden: tuple[Tensor, Tensor], params: Params, *_: Any, **__: Any) -> Any:
    h, c = hidden
    return _steps(x, h, params), (h.clone(), c.clone())


def _gru(unrolled: Callable[..., Any]) -> Callable[..., Any]:
    def layer(x: Tensor, hidden: Tensor, params: Params, *args: Any, hidden_fn: Any, **options: Any) -> Any:
        if hidden_fn is not decompositions.gru_cell:  # nn.RNN has no ONNX operator here: what it computes is asked for
            return unrolled(x, hidden, params, *args, hidden_fn=hidden_fn, **options)
        return _steps(x, hidden, params), hidden.clone()

    return layer


def _steps(x: Tensor, hidden: Tensor, params: Params) -> Tensor:
    """Something of the output's shape: x (steps, batch, in), hidden (batch, units) -> (steps, batch, units).

    A hidden state whose batch size is written down fixes that of the input, as it does in truth.
    """
    return F.linear(x, params[0])[..., : hidden.shape[-1]] + hidden


@contextlib.contextmanager
def any_length() -> Iterator[None]:
    """Inside the block exporting an LSTM or GRU leaves its length open; nothing may be computed in it."""
    with contextlib.ExitStack() as stack:
        # torch's own names, and private: another version may do without
        if hasattr(decompositions, "one_layer_lstm"):
            stack.enter_context(mock.patch.object(decompositions, "one_layer_lstm", _lstm))
        if hasattr(decompositions, "one_layer_rnn") and hasattr(decompositions, "gru_cell"):
            stack.enter_context(mock.patch.object(decompositions, "one_layer_rnn", _gru(decompositions.one_layer_rnn)))
        yield
