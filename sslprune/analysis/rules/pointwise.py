"""Operators that act on each element alone: dimensions broadcast, zeros pass or do not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from torch import fx

from sslprune.analysis.atoms import Dim, fixed
from sslprune.analysis.inference import Inference, Rule, may_be_computed
from sslprune.analysis.zeros import AllOf, AnyOf, Beaten, Keeps
from sslprune.capture.draws import draws
from sslprune.capture.program import operator_name


def broadcast(g: Inference, node: fx.Node, sources: Sequence[Any]) -> list[Dim]:
    """Unify the sources' dimensions from the right, as broadcasting aligns them; the result's dimensions."""
    shape = g.shape(node)
    out: list[Dim] = []
    tensors = [(g.dims(source), g.shape(source)) for source in sources if g.is_tensor(source)]
    for i in range(1, len(shape) + 1):
        here = [dims[-i] for dims, sizes in tensors if len(sizes) >= i and sizes[-i] == shape[-i]]
        for other in here[1:]:
            g.unify(here[0], other, node)
        out.append(here[0] if here else fixed(shape[-i]))
    return out[::-1]


def operands(node: fx.Node) -> list[fx.Node]:
    return [arg for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, fx.Node)]


@may_be_computed("other")
def keeps(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """f(0) = 0 in the first operand; the others only broadcast (a slope, a mask, a dropout rate)."""
    sources = operands(node)
    g.out(node, broadcast(g, node, sources), Keeps(sources[0]))


@may_be_computed("self", "other", "alpha")
def loses(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """f(0) is not zero."""
    g.out(node, broadcast(g, node, operands(node)))


def diverges(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """f(0) is infinite: a weight of zero that reads it gives no number."""
    loses(g, node, a)
    if getattr(a, "eps", None) is None:  # logit's keeps away from zero
        g.infinite(node, Keeps(a.self))


@may_be_computed("self", "other")
def division(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Zero where the dividend is, unless the divisor is as well."""
    keeping = Keeps(a.self) if g.is_tensor(a.self) else None
    g.out(node, broadcast(g, node, operands(node)), keeping)
    if g.is_tensor(a.other):
        g.infinite(node, Keeps(a.other))


@may_be_computed("self", "other")
def logarithm_times(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """``xlogy``: x · log(y)."""
    loses(g, node, a)
    if g.is_tensor(a.other):
        g.infinite(node, Keeps(a.other))


@may_be_computed("other")
def product(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    sources = [source for source in operands(node) if g.is_tensor(source)]
    g.out(node, broadcast(g, node, sources), AnyOf(tuple(Keeps(source) for source in sources)))


@may_be_computed("other", "alpha")
def addition(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Zero where both operands are; a number added to it must be zero itself."""
    dims = broadcast(g, node, operands(node))
    parts = [Keeps(value) if g.is_tensor(value) else value for value in (a.self, a.other)]
    zeros = [part for part in parts if isinstance(part, Keeps)]
    exact = all(isinstance(part, Keeps) or part == 0 for part in parts)
    g.out(node, dims, AllOf(tuple(zeros)) if exact and zeros else None)


@may_be_computed("self", "other")
def choice(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """``where``, ``maximum``, ``minimum``: zero where both candidates are."""
    candidates = [value for value in (a.self, a.other) if isinstance(value, fx.Node)]
    dims = broadcast(g, node, operands(node))
    exact = all(g.is_tensor(value) or value == 0 for value in (a.self, a.other))
    g.out(node, dims, AllOf(tuple(Keeps(value) for value in candidates)) if exact and candidates else None)


@may_be_computed("min", "max")
def clamp(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    low, high = (
        getattr(a, name, None) for name in (("min_val", "max_val") if hasattr(a, "min_val") else ("min", "max"))
    )
    numbers = all(isinstance(bound, (int, float)) or bound is None for bound in (low, high))
    zero = numbers and (low is None or low <= 0) and (high is None or high >= 0)
    g.out(node, broadcast(g, node, operands(node)), Keeps(a.self) if zero else None)


def threshold(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """x where x > threshold, else value: zero stays zero where it lies above, or where the value is zero."""
    g.out(node, g.dims(a.self), Keeps(a.self) if a.threshold < 0 or a.value == 0 else None)


@may_be_computed("self", "exponent")
def power(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    exponent, base = a.exponent, Keeps(a.self) if g.is_tensor(a.self) else None
    number = isinstance(exponent, (int, float))
    g.out(node, broadcast(g, node, operands(node)), base if number and exponent > 0 else None)
    if base is not None and not (number and exponent >= 0):
        g.infinite(node, base)


@may_be_computed("value")
def masked_fill(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Filled with -inf where a weight is zero, an entry is beaten by all others there."""
    zero = Keeps(a.self) if isinstance(a.value, (int, float)) and a.value == 0 else None
    g.out(node, broadcast(g, node, operands(node)), zero)
    mask: Any = a.mask
    if a.value == -math.inf and operator_name(mask) == "eq" and mask.args[1] == 0:
        g.facts[node].beaten = Keeps(mask.args[0])


def sigmoid(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Positive everywhere but at -inf."""
    beaten = Beaten(a.self, tuple(g.dims(a.self))) if g.facts[a.self].beaten is not None else None
    g.out(node, g.dims(a.self), beaten)
    g.facts[node].beaten = beaten


def prelu(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """The slope, where there is one a channel, runs along dimension 1."""
    dims = g.dims(a.self)
    if g.shape(a.weight)[0] > 1:
        g.unify(dims[1], g.dims(a.weight)[0], node)
    g.out(node, dims, Keeps(a.self))


def bernoulli(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """A draw of 1 with the probability that a tensor gives, or a number for all of them."""
    chance = getattr(a, "p", a.self)
    g.out(node, broadcast(g, node, operands(node)), Keeps(chance) if g.is_tensor(chance) else None)


def alpha_dropout(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Where it drops, it moves everything, zeros too, so that mean and variance stay."""
    (loses if draws(node) else keeps)(g, node, a)


def native_dropout(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    g.out(node, g.dims(a.input), Keeps(a.input))
    g.out(node, g.dims(a.input))


def lerp(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    g.out(node, broadcast(g, node, operands(node)), AllOf((Keeps(a.self), Keeps(a.end))))


def addcmul(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    both = AnyOf((Keeps(a.tensor1), Keeps(a.tensor2)))
    g.out(node, broadcast(g, node, operands(node)), AllOf((Keeps(a.self), both)))


KEEPS = (
    "relu relu6 gelu silu tanh elu selu celu leaky_relu hardswish mish softshrink hardshrink rrelu abs neg negative "
    "sin tan sqrt square sign sgn round floor ceil trunc frac erf asin atan sinh asinh expm1 log1p deg2rad rad2deg "
    "positive nan_to_num dropout feature_dropout clone contiguous to _to_copy type_as detach alias "
    "lift_fresh_copy real conj _conj resolve_conj"
)
LOSES = (
    "exp exp2 cos cosh acos softplus log_sigmoid hardsigmoid erfc eq ne lt le gt ge logical_and logical_or "
    "logical_xor logical_not bitwise_and bitwise_or bitwise_not bitwise_xor isnan isinf isfinite atan2 rsub "
    "__and__ __or__"
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(KEEPS.split(), keeps),
    **dict.fromkeys(LOSES.split(), loses),
    **dict.fromkeys(("log", "log2", "log10", "logit", "rsqrt", "reciprocal", "lgamma", "digamma"), diverges),
    **dict.fromkeys(("div", "divide", "true_divide", "floor_divide", "remainder", "fmod"), division),
    "xlogy": logarithm_times,
    "mul": product, "multiply": product,
    "add": addition, "sub": addition, "subtract": addition,
    "where": choice, "maximum": choice, "minimum": choice,
    "clamp": clamp, "clamp_min": clamp, "clamp_max": clamp, "clip": clamp, "hardtanh": clamp,
    "pow": power, "threshold": threshold, "masked_fill": masked_fill, "prelu": prelu, "_prelu_kernel": keeps,
    "bernoulli": bernoulli, "alpha_dropout": alpha_dropout, "native_dropout": native_dropout,
    "lerp": lerp, "addcmul": addcmul, "sigmoid": sigmoid, "special_expit": sigmoid,
}  # fmt: skip
