"""Nothing is ever silently wrong: operators without a rule, wrapped in random graphs, freeze what they touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sslprune
from sslprune.analysis.rules import RULES
from sslprune.capture.program import operator_name
from sslprune.kinds.find import analysis_of
from sslprune.values.axes import Axis, zero_groups
from sslprune.values.compare import difference
from sslprune.values.inputs import random_like
from tests.laws import lively_

LIBRARY = torch.library.Library("sslprune_test", "FRAGMENT")
Op = Callable[..., Tensor]


def _stir(x: Tensor) -> None:
    x.add_(x.flip(1).sum(2, True))


def _custom(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sslprune_test::{name}", fake, lib=LIBRARY)


# Each mixes channels, so that a wrong slice is seen; the last one writes into its argument.
_custom("twist(Tensor x) -> Tensor", lambda x: x + x.roll(1, 1) ** 2, torch.empty_like)
_custom("pair(Tensor x, Tensor y) -> (Tensor, Tensor)", lambda x, y: (x * y.sum(1, True), x.flip(1) + y),
        lambda x, y: (torch.empty_like(x), torch.empty_like(x)))  # fmt: skip
_custom("pick(Tensor[] xs, int i) -> Tensor", lambda xs, i: xs[i] * xs[0].sum(1, True) + 0.5,
        lambda xs, i: torch.empty_like(xs[i]))  # fmt: skip
_custom("stir_(Tensor(a!) x) -> ()", _stir, lambda x: None)
custom = torch.ops.sslprune_test


def stir(x: Tensor) -> Tensor:
    y = x * 1.5
    custom.stir_(y)
    return y


def scattered(x: Tensor) -> Tensor:
    index = torch.arange(x.shape[1], device=x.device).flip(0)[None, :, None].expand(x.shape)
    return torch.zeros_like(x).scatter_add(1, index, x)


def sampled(x: Tensor) -> Tensor:
    image = x[:, :, None].expand(-1, -1, 3, -1)
    grid = torch.tanh(torch.stack([x.mean(1), x.amax(1)], -1))[:, None].expand(-1, 2, -1, -1)
    return F.grid_sample(image, grid, align_corners=False).flatten(2)


def square(x: Tensor) -> Tensor:
    return x @ x.mT + 4 * torch.eye(x.shape[1])


# (batch, channels, places) -> a tensor; channels are at least 2, places at least 2
OPS: dict[str, Op] = {
    "twist": custom.twist,
    "pair": lambda x: custom.pair(x, x.tanh())[1],
    "pick": lambda x: custom.pick([x, x.sigmoid()], 1),
    "stir": stir,
    "cdist": lambda x: torch.cdist(x, x.flip(1)),
    "fft_rfft": lambda x: torch.fft.rfft(x, dim=1).abs(),
    "fft_fft": lambda x: torch.view_as_real(torch.fft.fft(x, dim=2)).flatten(2),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x.sin())).flatten(2),
    "fold": lambda x: F.fold(torch.cat([x, x], 1), (1, x.shape[2] + 1), (1, 2)).flatten(2),
    "solve": lambda x: torch.linalg.solve(square(x), x),
    "inv": lambda x: torch.linalg.inv(square(x)),
    "det": lambda x: torch.linalg.det(square(x))[:, None, None].tanh(),
    "cholesky": lambda x: torch.linalg.cholesky(square(x)),
    "cummax": lambda x: torch.cummax(x, 1)[0],
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(1),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "diff": lambda x: x.diff(dim=1),
    "scatter_add": scattered,
    "scatter": lambda x: x.scatter(1, torch.zeros_like(x[:, :1], dtype=torch.long), 1.0),
    "index_add": lambda x: x.index_add(1, torch.tensor([0, 1]), x[:, :2]),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([0]), 2.0),
    "index_put": lambda x: x.index_put((torch.tensor([0]),), torch.tensor(3.0)),
    "masked_scatter": lambda x: x.masked_scatter(x > 0, x.flip(1)),
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.5])).float(),
    "searchsorted": lambda x: torch.searchsorted(torch.tensor([-1.0, 0.0, 0.5]), x).float(),
    "one_hot": lambda x: F.one_hot(x.argmax(2), x.shape[2]).float() * 2.0,
    "argsort": lambda x: x.argsort(1).float(),
    "topk": lambda x: x.topk(2, 1)[0],
    "median": lambda x: x.median(1)[0][:, None],
    "kthvalue": lambda x: x.kthvalue(1, 1)[0][:, None],
    "mode": lambda x: (x > 0).float().mode(1)[0][:, None],
    "quantile": lambda x: x.quantile(0.5, 1)[:, None],
    "grid_sample": sampled,
    "kron": lambda x: torch.kron(x, torch.tensor([[[1.0, 2.0], [0.5, 3.0]]])),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(),
    "diagonal": lambda x: x.diagonal(0, 1, 2)[:, None],
    "diag_embed": lambda x: x.mean(2).diag_embed(),
    "trace": lambda x: torch.einsum("bcl,bdl->bcd", x, x).diagonal(0, 1, 2)[:, :, None],
    "roll": lambda x: x.roll(1, 1),
    "rot90": lambda x: x.rot90(1, (1, 2)),
    "unfold": lambda x: x.unfold(1, 2, 1).flatten(2),
    "im2col": lambda x: F.unfold(x[:, :, None], (1, 2)),
    "numpy_T": lambda x: x.mean(2).T.T[:, :, None],
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "tile": lambda x: x.tile(1, 2, 1),
    "threshold": lambda x: F.threshold(x, 0.1, 1.0),
    "threshold_below": lambda x: F.threshold(x, -0.1, 1.0),
    "hardtanh": lambda x: F.hardtanh(x, 0.2, 0.8),
    "clamp": lambda x: x.clamp(0.1, 1.0),
    "softplus": lambda x: F.softplus(x),
    "glu": lambda x: F.glu(torch.cat([x, x.flip(1)], 1), 1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "renorm": lambda x: torch.renorm(x, 2, 1, 0.5),
    "local_response_norm": lambda x: F.local_response_norm(x, 3),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(2), dim=1)[:, None],
    "softmax": lambda x: x.softmax(1),
    "softmin": lambda x: F.softmin(x, 1),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "prod": lambda x: x.prod(1, keepdim=True),
    "std": lambda x: x.std(1, keepdim=True),
    "var_mean": lambda x: torch.cat(torch.var_mean(x, 1, keepdim=True), 1),
    "norm_inf": lambda x: torch.linalg.vector_norm(x, float("inf"), 1, keepdim=True),
    "norm_0": lambda x: torch.linalg.vector_norm(x, 0, 1, keepdim=True),
    "norm_1": lambda x: torch.linalg.vector_norm(x, 1, 1, keepdim=True),
    "norm_neg": lambda x: torch.linalg.vector_norm(x.abs() + 1, -1, 1, keepdim=True),
    "matrix_norm": lambda x: torch.linalg.matrix_norm(x, "nuc")[:, None, None],
    "count_nonzero": lambda x: x.count_nonzero(1)[:, None].float(),
    "all": lambda x: (x > -1).all(1, keepdim=True).float(),
    "any": lambda x: (x > 1).any(1, keepdim=True).float(),
    "argmax": lambda x: x.argmax(1, keepdim=True).float(),
    "cos": lambda x: x.cos(),
    "rsub": lambda x: 1 - x,
    "reciprocal": lambda x: 1 / (x.abs() + 1),
    "pow_tensor": lambda x: (x.abs() + 0.5) ** x,
    "pow_zero": lambda x: x**0,
    "where": lambda x: torch.where(x > 0, x, 1.0),
    "maximum": lambda x: torch.maximum(x, torch.ones_like(x)),
    "lerp": lambda x: torch.lerp(x, torch.ones_like(x), 0.3),
    "addcmul": lambda x: torch.addcmul(torch.ones_like(x), x, x),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1),
    "xlogy": lambda x: torch.xlogy(x, x.abs() + 1),
    "atan2": lambda x: torch.atan2(x, x.flip(1)),
    "heaviside": lambda x: torch.heaviside(x, torch.tensor(0.5)),
    "nan_to_num": lambda x: (x * 1.0).nan_to_num(1.0),
    "isfinite": lambda x: x.isfinite().float(),
    "lgamma": lambda x: (x.abs() + 1).lgamma(),
    "erfinv": lambda x: (x.tanh() * 0.9).erfinv(),
    "i0": lambda x: torch.special.i0(x),
    "sinc": lambda x: x.sinc(),
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(1)),
    "hypot": lambda x: torch.hypot(x, x.flip(1)),
    "cross": lambda x: torch.linalg.cross(x[:, :, :1].expand(-1, -1, 3), x[:, :, 1:2].expand(-1, -1, 3)),
    "outer": lambda x: torch.einsum("bc,bd->bcd", x.mean(2), x.amax(2)),
    "tensordot": lambda x: torch.tensordot(x, x[0], dims=([2], [1])),
    "bilinear": lambda x: F.bilinear(x, x, torch.ones(2, x.shape[2], x.shape[2])),
    "baddbmm": lambda x: torch.baddbmm(x, x @ x.mT, x),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "pixel_shuffle": lambda x: F.pixel_shuffle(torch.cat([x] * 4, 1)[:, :, None], 2).flatten(2),
    "channel_shuffle": lambda x: F.channel_shuffle(torch.cat([x, x.sin()], 1)[:, :, None], 2).flatten(2),
    "max_pool": lambda x: F.max_pool1d(x, 2, 1),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x[:, None], (2, 2)).flatten(2),
    "avg_pool_channels": lambda x: F.avg_pool2d(x[:, None], 2, 1)[:, 0],
    "interpolate_channels": lambda x: F.interpolate(x.mT, scale_factor=2.0, mode="linear").mT,
    "pad_reflect": lambda x: F.pad(x[:, None], (0, 0, 1, 1), mode="reflect")[:, 0],
    "pad_circular": lambda x: F.pad(x.mT, (1, 1), mode="circular").mT,
    "pad_value": lambda x: F.pad(x, (0, 0, 1, 1), value=2.0),
    "pad_crop": lambda x: F.pad(x, (0, 0, -1, 2)),
    "instance_norm": lambda x: F.instance_norm(x),
    "group_norm": lambda x: F.group_norm(torch.cat([x, x], 1), 2),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "rms_norm": lambda x: F.rms_norm(x.mT, x.shape[1:2]).mT,
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "gumbel": lambda x: (x * 3).softmax(1).round(),
    "take_along_dim": lambda x: torch.take_along_dim(x, x.argsort(2), 2),
    "index_channels": lambda x: x[:, torch.tensor([1, 0, 1])],
    "index_places": lambda x: x[:, :, torch.tensor([1, 0])],
    "bool_mask": lambda x: x * (torch.arange(x.shape[1]) % 2 == 0)[:, None],
    "arange_add": lambda x: x + torch.arange(x.shape[1])[:, None] * 0.1,
    "ones_add": lambda x: x + torch.ones(x.shape[1], 1),
    "full_mul": lambda x: x * torch.full((x.shape[1], 1), 0.5),
    "select": lambda x: x.select(1, 1)[:, None],
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "stack": lambda x: torch.stack([x, x.sin()], 2).flatten(1, 2),
    "movedim": lambda x: x.movedim(1, 2),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "unflatten": lambda x: x.repeat_interleave(2, 1).unflatten(1, (-1, 2)).mean(2),
    "numel": lambda x: x.sum(1, keepdim=True) / x[0].numel(),
    "meshgrid": lambda x: x * torch.meshgrid(torch.arange(x.shape[1]), torch.arange(x.shape[2]), indexing="ij")[0],
    "slice_assign": lambda x: _assigned(x),
    "in_place_view": lambda x: _in_place(x),
    "real_of_fft": lambda x: torch.fft.fft2(x).real,
    "stft": lambda x: torch.stft(x.flatten(1), 4, 2, return_complex=True, window=torch.ones(4)).abs(),
    "embedding_bag": lambda x: F.embedding_bag((x.mean(2) > 0).long(), torch.tensor([[1.0, 2.0], [3.0, 5.0]]))[:, None],
    "histc": lambda x: x + torch.histc(x.detach(), 4, -1.0, 1.0),
    "vander": lambda x: torch.linalg.vander(x.mean(2)),
    "pdist": lambda x: F.pdist(x[0])[None, None].expand(x.shape[0], -1, -1),
    "trapezoid": lambda x: torch.trapezoid(x, dim=1)[:, None],
    "upsample": lambda x: F.interpolate(x, scale_factor=2.0),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.0, training=True),
    "rrelu": lambda x: F.rrelu(x),
    "celu": lambda x: F.celu(x),
    "logit": lambda x: x.sigmoid().logit(),
    "float_power": lambda x: torch.float_power(x, 2).float(),
    "bernoulli": lambda x: torch.bernoulli((x > 0).float()),
    "gather": lambda x: x.gather(1, torch.zeros_like(x[:, :1], dtype=torch.long)),
    "nested_view": lambda x: x.reshape(x.shape[0], x.shape[2], x.shape[1]),
    "squeeze_mean": lambda x: x.mean(1, keepdim=True).expand(-1, x.shape[1], -1) + x,
    "sub_mean": lambda x: x - x.mean(1, keepdim=True),
    "size_scale": lambda x: x * x.shape[1] ** -0.5,
}


def _assigned(x: Tensor) -> Tensor:
    y = x * 1.0
    y[:, 1] = y[:, 0] + 1
    return y


def _in_place(x: Tensor) -> Tensor:
    y = x * 1.0
    y.mT.add_(y.mT.sum(2, keepdim=True))
    return y


Step = tuple[str, int, int]  # what, on which value so far, and a number: another value, a width, a place
PLAIN = ("conv", "linear", "relu", "sigmoid", "add", "mul", "cat", "cat places", "slice", "chunk", "reshape", "fold",
         "transpose", "flip", "batch norm", "layer norm", "sum")  # fmt: skip
SIZE = 48  # the largest value, of one sample
if torch.__version__ < "2.13":
    del OPS["quantile"]  # its export reads the data there
RANDOM = {"alpha_dropout", "bernoulli", "rrelu"}  # draw random numbers


class Net(nn.Module):
    """A graph of values (batch, channels, places), grown by steps; a step that does not fit the shapes is left out."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.layers = nn.ModuleDict()
        x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
        self.layers["stem"] = nn.Conv1d(3, 6, 1)
        values = [self.layers["stem"](x)]
        used: set[int] = set()
        for step in steps:
            what, i, k = step[0], step[1] % len(values), step[2]
            self.layers.update(self._layer(f"at{len(values)}", what, values[i], k))
            try:
                made = self._value(f"at{len(values)}", what, values, i, k)
            except (RuntimeError, IndexError, ValueError):
                made = torch.empty(0)
            if made.shape[:1] == (2,) and 0 < made[0].numel() <= SIZE and min(made.shape) and made.is_floating_point():
                values.append(made)
                self.steps.append((what, i, k))
                used |= {i, k % (len(values) - 1)} if what in ("add", "mul", "cat", "cat places") else {i}
        self.ends = [i for i in range(len(values)) if i not in used or i == len(values) - 1]
        for i in self.ends:
            self.layers[f"head{i}"] = nn.Linear(values[i][0].numel(), 3)
        self.layers = nn.ModuleDict({name: m for name, m in self.layers.items()
                                     if name[:2] != "at" or int(name[2:]) < len(values)})  # fmt: skip

    @staticmethod
    def _layer(name: str, what: str, x: Tensor, k: int) -> dict[str, nn.Module]:
        match what:
            case "conv":
                return {name: nn.Conv1d(x.shape[1], 2 + k % 5, 1, bias=bool(k % 2))}
            case "linear":
                return {name: nn.Linear(x.shape[2], 2 + k % 5)}
            case "batch norm":
                return {name: nn.BatchNorm1d(x.shape[1])}
            case "layer norm":
                return {name: nn.LayerNorm(x.shape[2])}
        return {}

    def _value(self, name: str, what: str, values: list[Tensor], i: int, k: int) -> Tensor:
        x, y = values[i], values[k % len(values)]
        match what:
            case "conv" | "linear" | "batch norm" | "layer norm":
                return self.layers[name](x)
            case "relu":
                return x.relu()
            case "sigmoid":
                return x.sigmoid()
            case "add" | "mul":
                if x.shape != y.shape and min(x.shape[1], y.shape[1]) > 1:
                    raise ValueError
                return x + y if what == "add" else x * y
            case "cat":
                return torch.cat([x, y], 1)
            case "cat places":
                return torch.cat([x, y], 2)
            case "slice":
                return x[:, k % x.shape[1] :]
            case "chunk":
                return x.chunk(2, 1)[k % 2]
            case "reshape":
                return x.reshape(x.shape[0], x.shape[2], x.shape[1])
            case "fold":
                return x.reshape(x.shape[0], 2, -1) if k % 2 else x.reshape(x.shape[0], -1, 2)
            case "transpose":
                return x.mT
            case "flip":
                return x.flip(1 + k % 2)
            case "sum":
                return x.sum(1 + k % 2, keepdim=True)
        made = OPS[what](x)
        return made[:, :, None] if made.dim() == 2 else made.flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.layers["stem"](x)]
        for what, i, k in self.steps:
            values.append(self._value(f"at{len(values)}", what, values, i, k))
        return torch.stack([self.layers[f"head{i}"](values[i].flatten(1)) for i in self.ends]).sum(0)


def check(model: nn.Module, args: tuple[Any, ...], random: np.random.Generator) -> list[Axis]:
    """Zero random groups of every exact axis: the repacked model computes what the masked one does, in both modes."""
    lively_(model).eval()
    program = sslprune.trace(model, args)
    axes = sslprune.find_axes(program)
    exact = [axis for axis in axes if axis.exact]
    for axis in exact:
        if axis.kind != "layers" or random.integers(2):
            zero_groups(model, axis, random.permutation(axis.size)[: max(axis.kind == "layers", axis.size // 2)])
    small = sslprune.repack(model, program, exact)
    for seed in (1, 2):
        inputs = random_like(args, 3 if program.dynamic_batch else program.batch, seed)
        with torch.no_grad():
            assert difference(model(*inputs), small(*inputs))[1] <= 1e-4
    g = analysis_of(program).inference
    for node in program.evaluation.nodes:
        if node.op == "call_function" and hasattr(node.target, "_schema") and operator_name(node) not in RULES:
            dims = [d for source in node.all_input_nodes for made in g.facts[source].outputs for d in made]
            touched = any((g.atoms.expanded(d) != 0).any() for d in dims)
            assert not any(g.atoms.of([d]).size for d in dims), f"{operator_name(node)} did not freeze its inputs"
            if touched:
                assert any(g.atoms.why(d).any() for d in dims)
    return axes


class Side(nn.Module):
    """Every operator between two layers of its own, side by side: one trace for all of them."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.before, self.after = nn.ModuleDict(), nn.ModuleDict()
        x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
        for name in names:
            self.before[name] = nn.Conv1d(3, 6, 1)
            self.after[name] = nn.Linear(OPS[name](self.before[name](x))[0].numel(), 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: self.after[name](OPS[name](layer(x)).flatten(1)) for name, layer in self.before.items()}


@pytest.fixture(scope="module")
def side() -> tuple[nn.Module, list[Axis]]:
    torch.manual_seed(0)
    model = Side([name for name in OPS if name not in RANDOM])
    return model, check(model, (torch.randn(2, 3, 4),), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("twist", "sslprune_test::twist"),
        ("pair", "sslprune_test::pair"),
        ("pick", "sslprune_test::pick"),
        ("stir", "sslprune_test::stir_"),
        ("cdist", "cdist"),
        ("fft_rfft", "fft_rfft"),
        ("fold", "col2im"),
        ("unfold", "unfold"),
        ("cummax", "cummax"),
        ("scatter_add", "scatter_add"),
        ("bucketize", "bucketize"),
        ("kron", "kron"),
        ("one_hot", "one_hot"),
        ("diag_embed", "diag_embed"),
    ],
)
def test_what_freezes_is_named(side: tuple[nn.Module, list[Axis]], name: str, operator: str) -> None:
    axis = next(axis for axis in side[1] if (f"before.{name}.weight", 0) in {(m.name, m.dim) for m in axis.members})
    assert axis.frozen and not axis.exact and operator in axis.reason


def test_what_is_understood_beside_it_stays_prunable(side: tuple[nn.Module, list[Axis]]) -> None:
    exact = {axis.members[0].name.split(".")[1] for axis in side[1] if axis.exact and axis.kind == "filters"}
    assert exact >= {"cos", "threshold", "hardtanh", "max_pool", "movedim", "pad_value", "stack"}


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("threshold", [-0.1, 0.1])
def test_a_threshold_keeps_zeros_only_where_it_does(threshold: float, value: float) -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv1d(3, 6, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.threshold(self.one(x), threshold, value).sum(1))

    axes = check(Summed(), (torch.randn(2, 3, 4),), np.random.default_rng(0))
    axis = next(axis for axis in axes if axis.kind == "filters")
    assert axis.exact is (threshold < 0 or value == 0)


@pytest.mark.parametrize("use", ["broadcast", "expand", "squeeze", "flatten", "chunk"])
def test_a_single_channel_that_is_read_alone_stays(use: str) -> None:
    """Its place could be filled by nothing: an empty dimension neither broadcasts nor is squeezed away."""

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv1d(3, 6, 1), nn.Linear(4 if use in ("squeeze", "flatten") else 24, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            last = y[:, 5:]
            if use == "chunk":
                last = y.chunk(6, 1)[5]
            if use == "squeeze":
                return self.two(last.squeeze(1))
            if use == "flatten":
                return self.two(last.mT.flatten(1))
            return self.two((last.expand(-1, 6, -1) if use == "expand" else y * last).flatten(1))

    model, x = Alone(), torch.randn(2, 3, 4)
    lively_(model).eval()
    program = sslprune.trace(model, (x,))
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    for axis in axes:
        if axis.kind == "filters":
            zero_groups(model, axis, range(axis.size // 2, axis.size))
    small = sslprune.repack(model, program, axes)
    assert difference(model(x), small(x))[1] <= 1e-4


steps = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(PLAIN), st.sampled_from(PLAIN), st.sampled_from(sorted(set(OPS) - RANDOM))),
        st.integers(0, 11),
        st.integers(0, 11),
    ),
    min_size=2,
    max_size=9,
)


@settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(steps=steps, seed=st.integers(0, 3))
def test_nothing_is_silently_wrong_in_random_graphs(steps: list[Step], seed: int) -> None:
    torch.manual_seed(0)
    check(Net(steps), (torch.randn(2, 3, 4),), np.random.default_rng(seed))
