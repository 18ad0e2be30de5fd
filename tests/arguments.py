"""The arguments of operators whose schema does not say enough: a row for each, the ways in which it is called."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from tests.smallest import SHAPE, Call, Constant, FromInput, Mode, Operand, Weight, sizes

call = functools.partial(Call, "default")


def positive(x: Tensor) -> Tensor:
    return x.abs() + 0.5


def whole(x: Tensor) -> Tensor:
    return x.round().int()


def share(x: Tensor) -> Tensor:
    """From 0, where x is, to 1."""
    return x.tanh().abs()


def complex_(x: Tensor) -> Tensor:
    return torch.complex(x, x.sin())


X = Operand()
FLAT = Operand((6,))


def _pools(count: int) -> dict[str, list[Call]]:
    """Operators that resample the last ``count`` dimensions of (batch, 6, *places)."""
    x = Operand((6, *(4,) * count))
    halves, wide, twos = [2] * count, [8] * count, [2.0] * count
    aligned = {1: "upsample_linear1d", 2: "upsample_bilinear2d", 3: "upsample_trilinear3d"}[count]
    found = {
        f"max_pool{count}d": [call((x, halves))],
        f"avg_pool{count}d": [call((x, halves))],
        f"max_pool{count}d_with_indices": [call((x, halves), after=first)],
        f"adaptive_avg_pool{count}d": [call((x, halves))],
        f"adaptive_max_pool{count}d": [call((x, halves), after=first)],
        **{
            name: [call((x, wide)), Call("vec", (x, None, twos)), Call("vec", (x, wide, None))]
            for name in (f"upsample_nearest{count}d", f"_upsample_nearest_exact{count}d")
        },
        aligned: [call((x, wide, False)), Call("vec", (x, None, True, twos))],
    }
    if count > 1:
        draws = Operand((6, count), torch.sigmoid)
        found[f"_adaptive_avg_pool{count}d"] = [call((x, halves))]
        found[f"fractional_max_pool{count}d"] = [call((x, halves, halves, draws), after=first)]
        at = FromInput(lambda x: (torch.arange(2**count) * 2).view(1, 1, *halves).expand(x.shape[0], 6, *halves))
        more = ([2] * count, [0] * count) if count == 3 else ()
        small = Operand((6, *halves))
        grid = FromInput(
            lambda x: torch.linspace(-1, 1, 2**count * count).view(1, *halves, count).expand(len(x), *halves, count)
        )
        found[f"grid_sampler_{count}d"] = [call((x, grid, 0, 0, False))]
        found[f"max_unpool{count}d"] = [call((small, at, [4] * count, *more))]
        found["grid_sampler"] = [call((x, grid, 0, 1, True))]
    return found


def first(made: Any) -> Tensor:
    return made[0]


def _norms() -> dict[str, list[Call]]:
    """Normalisations of (batch, 6, 4), with and without their own scale and shift."""
    scale, shift = Weight((6,)), Weight((6,))
    mean, var = Constant([0.1] * 6, torch.float32), Constant([1.5] * 6, torch.float32)
    last = Weight((4,)), Weight((4,))
    both = ((scale, shift), (None, None))
    return {
        "batch_norm": [call((X, *w, mean, var, Mode(), 0.1, 1e-5, False)) for w in both],
        "instance_norm": [call((X, *w, None, None, True, 0.1, 1e-5, False)) for w in both],
        "_native_batch_norm_legit_no_training": [call((X, *w, mean, var, 0.1, 1e-5), after=first) for w in both],
        "_native_batch_norm_legit_functional": [
            call((X, *w, mean, var, Mode(), 0.1, 1e-5), after=first) for w in both
        ],
        "_native_batch_norm_legit": [Call("no_stats", (X, *w, True, 0.1, 1e-5), after=first) for w in both],
        "native_batch_norm": [call((X, *w, mean, var, Mode(), 0.1, 1e-5), after=first) for w in both],
        "group_norm": [call((X, 3, *w)) for w in both],
        "layer_norm": [call((X, [4], *w)) for w in (last, (None, None))] + [call((X, [6, 4]))],
        "rms_norm": [call((X, [4], last[0])), call((X, [4]))],
        "_weight_norm": [call((Weight((6, 5)), Weight((6, 1))), after=as_weight, beside=(Operand((4, 5)),))],
        "_weight_norm_interface": [
            call((Weight((6, 5)), Weight((6, 1))), after=lambda w, x: x @ w[0].mT, beside=(Operand((4, 5)),))
        ],
    }  # fmt: skip


def as_weight(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight.mT


def _convolutions() -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}
    for count in (1, 2, 3):
        x, kernel = Operand((6, *(4,) * count)), (3,) * count
        own, bias, grouped = Weight((4, 6, *kernel)), Weight((4,)), Weight((4, 3, *kernel))
        back, back_grouped = Weight((6, 4, *kernel)), Weight((6, 2, *kernel))
        ones, noughts = [1] * count, [0] * count
        plain = "default" if count == 1 else "input"
        found[f"conv{count}d"] = [
            call((x, own, bias, ones, ones)),
            call((x, grouped, None, ones, ones, ones, 2)),
            Call("padding", (x, own, bias, ones, "same")),
        ]
        found[f"conv_transpose{count}d"] = [
            Call(plain, (x, back, bias)), Call(plain, (x, back_grouped, None, [2] * count, noughts, noughts, 2))
        ]  # fmt: skip
    x, own, back = Operand((6, 4, 4)), Weight((4, 6, 3, 3)), Weight((6, 4, 3, 3))
    found["convolution"] = [
        call((x, weight, None, [1, 1], [1, 1], [1, 1], turned, [0, 0], 1))
        for weight, turned in ((own, False), (back, True))
    ]
    return found


def _recurrent() -> dict[str, list[Call]]:
    """Cells, and two stacked layers of (batch, 4 steps, 6)."""
    found: dict[str, list[Call]] = {}
    units = 5
    for name, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)):
        zeros = FromInput(lambda x: x.new_zeros(2, x.shape[0], units))
        params = [Weight((gates * units, *rest)) for wide in (6, units) for rest in ((wide,), (units,), (), ())]
        start: Any = [zeros, zeros] if name == "lstm" else zeros
        given = (Operand((4, 6)), start, params, True, 2, 0.0, Mode(), False, True)
        found[name] = [Call("input", given, after=lambda made: [made[0], *(state[-1] for state in made[1:])])]
        state: Any = [Operand((units,)), Operand((units,))] if name == "lstm" else Operand((units,))
        own = [Weight((gates * units, *rest)) for rest in ((6,), (units,), (), ())]
        found[f"{name}_cell"] = [call((FLAT, state, *own))]
    return found


def _made() -> dict[str, list[Call]]:
    """Tensors made of nothing: each is added to an operand."""
    met: dict[str, Any] = {"after": lambda made, x: made + x, "beside": (X,)}
    shape, one = sizes(*SHAPE), FromInput(lambda x: x)
    filled = {name: [call((shape,), **met)] for name in ("zeros", "ones", "rand", "randn")}
    return {
        **filled,
        "empty": [Call("memory_format", (shape,), after=lambda made, x: torch.zeros_like(made) + x, beside=(X,))],
        "full": [call((shape, value), **met) for value in (0.0, 2.0)],
        "new_zeros": [call((one, shape), **met)], "new_ones": [call((one, shape), **met)],
        "new_empty": [call((one, shape), after=lambda made, x: torch.zeros_like(made) + x, beside=(X,))],
        "new_full": [call((one, shape, value), **met) for value in (0.0, 2.0)],
        "empty_like": [call((X,), after=torch.zeros_like)],
        "arange": [call((4,), **met), Call("start", (1, 5), **met), Call("start_step", (0, 8, 2), **met)],
        "eye": [call((4,), after=lambda made, x: x @ made, beside=(X,)), Call("m", (6, 4), **met)],
        "linspace": [call((0, 1, 4), **met)],
        "scalar_tensor": [call((2.0,), **met)],
        **{name: [call((3, 3), after=lambda made, x: x[:, made[0], made[1]], beside=(X,))]
           for name in ("tril_indices", "triu_indices")},
        "sym_size": [Call("int", (X, 0), after=lambda made, x: x.reshape(made, -1), beside=(X,))],
    }  # fmt: skip


PLACES = Constant([0, 2, 1])
POSITIVE = Operand(SHAPE, positive)
COARSE = Operand((8, 8), lambda x: x.flatten(0, 1).bfloat16()), Weight((2, 8, 16), lambda w: w.bfloat16())
ARITHMETIC = ("div", "divide", "true_divide", "remainder", "fmod", "xlogy")
# Ways to call an operator beside those that its schema asks for: where zero is no longer zero, or divides.
MORE: dict[str, list[Call]] = {
    **{name: [call((POSITIVE,))] for name in ["log", "log2", "log10", "rsqrt", "reciprocal", "lgamma", "digamma"]},
    **{name: [Call("Tensor", (Operand(), POSITIVE))] for name in ARITHMETIC},
    "rrelu": [call((Operand(), 0.1, 0.5, Mode()))],
    "logit": [call((Operand(SHAPE, torch.sigmoid),))],
    "floor_divide": [call((Operand(), POSITIVE))],
    **{name: [call((Operand(SHAPE, complex_),))] for name in ("conj", "resolve_conj", "real")},
    "threshold": [call((Operand(), 0.1, 1.0))],
    "hardtanh": [call((Operand(), 0.2, 0.8))],
}  # fmt: skip
WHERE = FromInput(lambda x: (x[:, :1] > 0)[:, :, None])
OFFSETS = FromInput(lambda x: (torch.arange(1, 3) * 4 * x.shape[0]).int())
EXPERTS = Operand((8, 8), lambda x: x.flatten(0, 1)), Weight((2, 8, 16))
CALLS: dict[str, list[Call]] = {
    **_pools(1), **_pools(2), **_pools(3), **_norms(), **_convolutions(), **_recurrent(), **_made(),
    **{f"_upsample_{kind}2d_aa": [call((Operand((6, 4, 4)), [3, 3], False))] for kind in ("bilinear", "bicubic")},
    "upsample_bicubic2d": [call((Operand((6, 4, 4)), [8, 8], False))],
    # moved from place to place
    **{name: [call((X, sizes(4, 6))), call((X, sizes(24))), call((X, sizes(3, 2, 4)))]
       for name in ("view", "reshape", "_unsafe_view")},
    **{name: [call((X, Operand((4, 6))))] for name in ("view_as", "reshape_as")},
    "flatten": [Call("using_ints", (X, 1)), Call("using_ints", (Operand((6, 2, 3)), 2))],
    "unflatten": [Call("int", (X, 1, [2, 3])), Call("int", (X, 1, [-1, 3]))],
    "squeeze": [call((Operand((2, 1, 4)),)), Call("dim", (Operand((1, 4)), 1)),
                Call("dims", (Operand((2, 4, 1)), [1, 3]))],
    "permute": [call((X, [0, 2, 1]))],
    "t": [call((FLAT,), after=lambda made: made.transpose(0, 1))],
    "numpy_T": [call((FLAT,), after=lambda made: made.transpose(0, 1))],
    "pad": [call((X, [1, 2])), call((X, [0, 0, 1, 2])), call((X, [1, 1], "reflect")),
            call((X, [1, 2], "constant", 0.5))],
    "constant_pad_nd": [call((X, [1, 2])), call((X, [0, 0, 1, -2]))],
    "flip": [call((X, [1])), call((X, [1, 2]))],
    "expand": [call((Operand((1, 4)), sizes(6, 4)))],
    "expand_as": [call((Operand((1, 4)), X))],
    "repeat": [call((X, [1, 2, 1])), call((X, [1, 1, 2]))],
    "repeat_interleave": [Call("self_int", (X, 2, 1)), Call("self_int", (X, 2, 2), {"output_size": 8}),
                          Call("self_Tensor", (X, Constant([2] * 6), 1), {"output_size": 12}),
                          Call("Tensor", (Constant([2] * 3),), {"output_size": 6},
                               after=lambda made, x: x.index_select(1, made), beside=(X,))],
    "im2col": [call((Operand((6, 4, 4)), [2, 2], [1, 1], [0, 0], [1, 1]))],
    # parts
    "slice": [Call("Tensor", (X, 1, 1, 5)), Call("Tensor", (X, 2, 0, 4, 2)), Call("Tensor", (X, 1, -3))],
    "narrow": [call((X, 1, 1, 3))],
    "split": [Call("Tensor", (X, 4, 1)), Call("sizes", (X, [1, 3], 2))],
    "split_with_sizes": [call((X, [2, 4], 1))],
    "unsafe_split": [Call("Tensor", (X, 4, 1))],
    "tensor_split": [Call("sections", (X, 4, 1)), Call("indices", (X, [1, 4], 1))],
    "glu": [call((X, 1)), call((X,))],
    "pixel_shuffle": [call((Operand((8, 2, 2)), 2))],
    "pixel_unshuffle": [call((Operand((2, 4, 4)), 2))],
    **{name: [call((Operand((6, 2, 2)), 3))] for name in ("channel_shuffle", "native_channel_shuffle")},
    "stack": [call(([X, Operand()], 1)), call(([X, Operand()], 1), after=lambda made: made[:, 0])],
    # looked up
    "embedding": [call((Weight((7, 6)), FromInput(lambda x: (x > 0).long())))],
    "embedding_bag": [
        call((Weight((7, 6)), FromInput(lambda x: (x > 0).long().flatten()),
                         FromInput(lambda x: torch.arange(x.shape[0]) * 5), False, mode), after=first)
        for mode in (0, 1, 2)
    ],
    "index_select": [call((X, 1, PLACES))],
    "histc": [call((X, 4, 0, 3), after=lambda made, x: x * made.sum(), beside=(X,))],
    "one_hot": [call((Operand((6,), lambda x: x.detach().abs().long().clamp(max=3)), 4))],
    "scatter": [Call("value", (X, 1, FromInput(lambda x: torch.ones(x.shape[0], 2, 4, dtype=torch.int64)), 0.5))],
    "index": [Call("Tensor", (X, [None, PLACES])), Call("Tensor", (X, [None, PLACES, PLACES]))],
    "gather": [call((X, 1, FromInput(lambda x: torch.zeros(x.shape[0], 1, 4, dtype=torch.int64))))],
    "index_add": [call((X, 1, PLACES, Operand((3, 4))))],
    "slice_scatter": [call((X, Operand((2, 4)), 1, 1, 3))],
    "select_scatter": [call((X, Operand((4,)), 1, 1))],
    "copy_": [call((Constant([0.0] * 6, torch.float32), Operand((6,), lambda x: x.mean(0))),
                   after=lambda made, x: made + x, beside=(FLAT,))],
    # products
    "linear": [call((X, Weight((3, 4)), Weight((3,))))],
    "bilinear": [call((X, Operand((6, 3)), Weight((5, 4, 3)), Weight((5,))))],
    "matmul": [call((X, Operand((4, 3)))), call((X, Weight((4, 3)))), call((X, Weight((4,))))],
    "mm": [call((FLAT, Weight((6, 4))))],
    "bmm": [call((X, Operand((4, 3))))],
    "mv": [call((FLAT, Weight((6,))))],
    **{name: [call((Weight((6,)), Weight((6,))), after=lambda made, x: made * x, beside=(X,))]
       for name in ("dot", "vdot")},
    "addmm": [call((Weight((4,)), FLAT, Weight((6, 4))))],
    "baddbmm": [call((Operand((6, 3)), X, Operand((4, 3))))],
    "einsum": [call(("bcl,bdl->bcd", [X, Operand((5, 4))])), call(("bcl,cd->bdl", [X, Weight((6, 3))]))],
    "scaled_dot_product_attention": [
        call((Operand((2, 3, 4)), Operand((2, 5, 4)), Operand((2, 5, 4)))),
        call((Operand((2, 3, 4)), Operand((2, 5, 4)), Operand((2, 5, 6)), None, 0.0, False), {"scale": 0.3}),
    ],
    "_grouped_mm": [call((*COARSE, OFFSETS), after=lambda made: made.unflatten(0, (-1, 8)))],
    "transformers::grouped_mm_fallback": [
        call((*EXPERTS, OFFSETS), after=lambda made: made.unflatten(0, (-1, 8)))
    ],
    # and others
    **{name: [call((X, -0.1, 0.1)), call((X, 0.1, None)), Call("Tensor", (X, None, Operand()))]
       for name in ("clamp", "clip")},
    "pow": [Call("Tensor_Scalar", (X, 2)), Call("Tensor_Scalar", (X, 0)), Call("Tensor_Scalar", (POSITIVE, -1.5)),
            Call("Tensor_Tensor", (POSITIVE, X)), Call("Tensor_Tensor", (Operand(SHAPE, torch.abs), X)),
            Call("Scalar", (0.5, X))],
    "fill": [Call("Scalar", (X, 0.0)), Call("Scalar", (X, 2.0)), Call("Tensor", (X, Constant(0.5, torch.float32)))],
    "roll": [call((X, [1], [1])), call((X, [1, 2], [1, 2])), call((X, [1]))],
    "to": [Call("dtype", (X, torch.float64)), Call("other", (X, Operand()))],
    "where": [Call(overload, (FromInput(lambda x: (x[:, :1] > 0)[:, :, None]), *given)) for overload, given in
              (("self", (X, Operand())), ("ScalarOther", (X, 0.0)), ("ScalarSelf", (0.5, X)))],
    "masked_fill": [Call("Scalar", (X, WHERE, value)) for value in (0.0, 1.0)]
    + [Call("Tensor", (X, WHERE, Constant(0.5, torch.float32)))],
    "_prelu_kernel": [call((X, Weight((1, 6, 1))))],
    "prelu": [call((X, Weight((6,)))), call((X, Weight((1,))))],
    "norm": [Call("Scalar", (X,)), Call("ScalarOpt_dim", (X, 2, [1])), Call("ScalarOpt_dim", (X, 3, [2]))],
    "linalg_vector_norm": [call((X, order, [1])) for order in (2, 1, 0, float("inf"))],
}  # fmt: skip
