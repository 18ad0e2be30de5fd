"""What is said with plain operators before a file is written, because not everybody who opens the file knows it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sslprune.capture.program import operator_name
from sslprune.export.unprojected import is_projected, unproject_


def is_portable(graph: fx.Graph, onnx: bool) -> bool:
    """Whether a file can hold the graph as it is."""
    odd = lambda n: is_projected(n) or _is_odd(n) or operator_name(n) == "rrelu"  # noqa: E731
    return not any(operator_name(n) in _PLAIN or (onnx and odd(n)) for n in graph.nodes)


def make_portable_(module: fx.GraphModule, onnx: bool) -> None:
    """Rewrite an exported module in place: operators of other libraries become ATen's; ONNX lacks some."""
    for node in module.graph.nodes:
        if operator_name(node) in _PLAIN:
            node.target = _PLAIN[operator_name(node)]
        elif onnx and _is_odd(node):
            node.target = attention
        elif onnx and operator_name(node) == "rrelu":
            node.target = steady_slope
    if onnx:
        unproject_(module)
    module.recompile()


def grouped_mm(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """Rows x (T, k) in runs that end at ``offs`` (experts,), run e times weight[e] of (experts, k, n) -> (T, n).

    Every expert sees every row, as static shapes ask for: the price of a file that any runtime can read.
    """
    rows = torch.arange(x.shape[0], device=x.device)
    expert = (rows[:, None] >= offs[None, :]).sum(1)  # rows after the last run belong to none, and are zero
    at = expert.clamp(max=weight.shape[0] - 1)[None, :, None].expand(1, -1, weight.shape[2])
    return torch.matmul(x[None], weight).gather(0, at)[0] * (expert < weight.shape[0])[:, None].to(x.dtype)


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **more: Any
) -> Tensor:
    """Scaled dot-product attention as (batch, heads, steps, features), which is all that ONNX takes."""
    lead = query.shape[:-3]
    if attn_mask is not None and attn_mask.dim() > 2:
        attn_mask = attn_mask.expand(*lead, *attn_mask.shape[-3:]).reshape(-1, *attn_mask.shape[-3:])
    q, k, v = (tensor.reshape(-1, *tensor.shape[-3:]) for tensor in (query, key, value))
    result = F.scaled_dot_product_attention(q, k, v, attn_mask, *rest, **more)
    return result.reshape(*lead, *result.shape[-3:])


def steady_slope(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *rest: Any, **more: Any) -> Tensor:
    """``rrelu`` in evaluation: the slope of negative numbers is the mean of those that training draws."""
    return F.leaky_relu(x, (lower + upper) / 2)


def _is_odd(node: fx.Node) -> bool:
    """Whether the node is an attention that has not four dimensions."""
    if node.op != "call_function" or operator_name(node) != "scaled_dot_product_attention":
        return False
    query: Any = node.args[0]
    value = query.meta.get("val")
    return isinstance(value, Tensor) and value.dim() != 4


_PLAIN = {"transformers::grouped_mm_fallback": grouped_mm}
