"""What cannot be traced is refused in one line that says why and where; what is traced leaves the model as it was."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

import sslprune
from sslprune.errors import TraceError
from sslprune.values.axes import tensors_of
from sslprune.values.compare import difference
from tests.laws import zero_random_

HERE = __file__


class Body(nn.Module):
    """Two linear layers, so that there is an axis to prune, and a batch norm, so that there is a state to spoil."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.norm(self.one(x)).relu())


class Decides(Body):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if y.sum() > 0:  # the line that is quoted
            return y
        return -y


class Selects(Body):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y[y[:, 0] > 0]  # as many rows as are positive


class Counts(Body):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y[: y.argmax().item()]  # as many rows as the largest says


class Branches(Body):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, self.one.forward, lambda v: -self.one(v), (x,))  # both are in the graph


class Leaves(Body):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(super().forward(x).detach().numpy())  # out of torch and back


class Caches(Body):
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen = 0, []  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = super().forward(x)
        self.seen.append(self.last)
        return self.last


class Scale(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * float(weight.detach().abs().sum())  # a number, not a tensor


def hooked() -> nn.Module:
    model = Body()
    model.two.register_forward_hook(lambda module, args, output: output * output.detach().numpy().max())  # a hook
    return model


def parametrized() -> nn.Module:
    body = Body()
    parametrize.register_parametrization(body.two, "weight", Scale())
    return nn.Sequential(nn.Linear(4, 4), body)


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.ReLU(), Body()), {nn.Linear})


def scripted_part() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
BAD: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], list[str]]] = {
    "control flow": (Decides, (X,), ["Decides cannot be exported", "depends on the data", "if y.sum() > 0:"]),
    "data-dependent size": (Selects, (X,), ["index", "its size depends on the data", "return y[y[:, 0] > 0]"]),
    "data-dependent slice": (Counts, (X,), ["slice", "its size depends on the data", "y.argmax().item()"]),
    "control-flow operator": (Branches, (X,), ["cond", "decides by the data", "torch.cond(x.sum() > 0"]),
    "out of torch": (Leaves, (X,), ["Leaves cannot be exported: RuntimeError: .numpy()", "torch.from_numpy("]),
    "hook": (hooked, (X,), ["Body cannot be exported: RuntimeError: .numpy()", " in two ", "register_forward_hook("]),
    "parametrization": (parametrized, (X,), [" in 1.two.parametrizations.weight.0 ", "return weight * float("]),
    "lazy": (lambda: nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3)), (X,), ["1.weight is not initialised yet"]),
    "quantized": (quantized, (X,), ["cannot be exported: 1.one._packed_params is quantized"]),
    "scripted": (lambda: torch.jit.script(nn.Linear(4, 4)), (X,), ["a scripted model (torch.jit) cannot be exported"]),
    "scripted part": (scripted_part, (X,), ["cannot be exported: 1 is scripted (RecursiveScriptModule)"]),
    "shape": (Body, (torch.randn(3, 5),), ["Body fails by itself", "float32 (3, 5)", "3x5 and 4x8", " in one "]),
    "rank": (Body, (torch.randn(3, 2, 2, 4),), ["Body fails by itself", "float32 (3, 2, 2, 4)", " in norm"]),
    "dtype": (Body, (X.long(),), ["Body fails by itself", "int64 (3, 4)", "dtype", " in one "]),
    "too many": (Body, (X, X), ["fails by itself", "float32 (3, 4), float32 (3, 4)", "2 positional arguments but 3"]),
    "too few": (Body, (), ["Body fails by itself on the example inputs ()", "missing 1 required positional argument"]),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_traced_is_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    if name == "data-dependent slice" and torch.__version__ < "2.11":
        pytest.skip("torch.export refuses it there, in words of its own")
    make, args, expected = BAD[name]
    model = make()
    before = _state(model)
    capfd.readouterr()
    with pytest.raises(TraceError) as caught:
        sslprune.trace(model, args)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 700, text
    assert all(part in text for part in expected), text
    quoted = [part for part in expected if part.endswith("(") or part.startswith(("if ", "return "))]
    if quoted:  # the line of this file
        line = next(i for i, code in enumerate(_lines(), 1) if quoted[0] in code)
        assert f"({HERE}:{line}: " in text, text
    assert tuple(capfd.readouterr()) == ("", "")
    _assert_same(before, _state(model))


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        (X, None, r"args must be a tuple of example inputs, got Tensor; write \(x,\)"),
        ([X], None, "args must be a tuple of example inputs, got list"),
        ((X,), [X], "kwargs must map names to example inputs, got list"),
        ((), {"y": X}, r"fails by itself on the example inputs \(y=float32 \(3, 4\)\): TypeError"),
        ((X, [X, {"k": 1}], None), None, r"\(float32 \(3, 4\), \[float32 \(3, 4\), \{k: 1\}\], None\)"),
    ],
)
def test_inputs_of_the_wrong_kind(args: Any, kwargs: Any, expected: str) -> None:
    with pytest.raises(TraceError, match=expected):
        sslprune.trace(Body(), args, kwargs)


@pytest.mark.parametrize("name", ["code", "graph", "meta"])
def test_a_name_that_graphs_have_themselves(name: str) -> None:
    model = nn.Sequential()
    model.add_module(name, nn.Linear(4, 3))
    with pytest.raises(TraceError, match=f"^{name}: .* rename the model's"):
        sslprune.trace(model, (X,))


def test_not_a_module() -> None:
    with pytest.raises(TraceError, match=r"model must be an nn\.Module, got function"):
        sslprune.trace(lambda x: x, (X,))  # type: ignore[arg-type]


def _lines() -> list[str]:
    with open(HERE) as file:
        return file.read().splitlines()


def _state(model: nn.Module) -> dict[str, Any]:
    parts = dict(model.named_modules())
    plain = {n: m for n, m in parts.items() if not isinstance(m, torch.jit.ScriptModule)}
    lazy = [n for n, t in tensors_of(model).items() if nn.parameter.is_lazy(t)]
    return {
        "modes": {n: m.training for n, m in parts.items()},
        "tensors": tensors_of(model),
        "values": {n: t.detach().clone() for n, t in tensors_of(model).items() if n not in lazy},
        "trained": {n: t.requires_grad for n, t in tensors_of(model).items()},
        "attributes": {n: {k: v for k, v in vars(m).items() if k != "training"} for n, m in plain.items()},
        "hooks": {n: dict(m._forward_hooks) for n, m in plain.items()},
        "random": torch.get_rng_state(),
    }


def _assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in ("modes", "trained", "hooks"):
        assert before[key] == after[key], key
    assert before["tensors"].keys() == after["tensors"].keys()
    assert all(after["tensors"][n] is t for n, t in before["tensors"].items())
    assert all(torch.equal(after["values"][n], t) for n, t in before["values"].items())
    for name, attributes in before["attributes"].items():
        assert attributes.keys() == after["attributes"][name].keys(), name
        assert all(after["attributes"][name][k] is v for k, v in attributes.items()), name
    assert torch.equal(before["random"], after["random"])


class FreezesNorm(Body):
    """Overrides train(), as models that keep their batch norms in evaluation mode do, and switches gradients."""

    def train(self, mode: bool = True) -> FreezesNorm:
        super().train(mode)
        self.norm.eval()
        self.one.requires_grad_(mode)
        return self


@pytest.mark.parametrize("make", [Body, Caches, FreezesNorm, lambda: nn.Sequential(Body(), nn.Dropout(0.5))])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(make: Callable[[], nn.Module], training: bool) -> None:
    if make is Caches and torch.__version__ < "2.11":
        pytest.skip("torch.export refuses it there")
    model = make().train(training)
    parts = list(model.modules())
    parts[-1].train(not training)
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda module, args, output: output * 2)
    before = _state(model)
    program = sslprune.trace(model, (X,))
    _assert_same(before, _state(model))
    assert program.training is not None and program.dynamic_batch
    if isinstance(model, Caches):
        assert model.calls == 0 and model.seen == [] and not hasattr(model, "last")


def test_a_training_graph_that_fails_is_a_note() -> None:
    class OnlyEvaluates(Body):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and x.sum() > 0:
                return x
            return super().forward(x)

    program = sslprune.trace(OnlyEvaluates(), (X,))
    assert program.training is None
    assert len(program.notes) == 1 and program.notes[0].startswith("no training graph: ") and HERE in program.notes[0]


def test_logging_and_warnings_work_again() -> None:
    with pytest.raises(TraceError):
        sslprune.trace(Decides(), (X,))
    assert logging.root.manager.disable == 0 and logging.getLogger("torch").isEnabledFor(logging.ERROR)
    assert sys.stderr is not None


# -- what is traced ----------------------------------------------------------------------------------------------------


class Keywords(Body):
    def forward(self, x: Tensor, *, scale: Tensor, shift: float = 0.0, twice: bool = False) -> Tensor:  # type: ignore[override]
        y = super().forward(x) * scale + shift
        return y + y if twice else y


class Nested(Body):
    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        image, (mask, bias) = batch["image"], batch["rest"]
        y = super().forward(image)
        return {"y": y, "pair": (y * mask, [y + bias, None]), "nothing": None}


class Variadic(Body):
    def forward(self, *values: Tensor, **named: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(super(Variadic, self).forward(v) for v in (*values, *named.values()))


class MixedVariadic(Body):
    def forward(self, first: Tensor, *values: Tensor, key: Tensor, **named: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(first + sum(values) + key) * named["other"]


class Flags(Body):
    def forward(self, x: Tensor, times: int, negate: bool, mode: str, skip: None = None) -> Tensor | None:  # type: ignore[override]
        y = super().forward(x)
        for _ in range(times):
            y = y + x
        return -y if negate and mode == "signed" else y


class OneRow(Body):
    """Its batch size is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(1, -1))


class ThreeRows(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(3, 4)).reshape(3, 4)


class Stateful(nn.Module):
    """The state's dimension 0 is not the batch, whatever its size."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.rnn(x, state)
        return self.head(y), state


class Regions(Body):
    """Regions of another gradient mode, and of no autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = self.norm(self.one(x))
        with torch.autocast("cpu", enabled=False):
            y = y.float().relu()
        return self.two(y)


class InPlace(nn.Module):
    """Parts of one tensor, changed in place and read through another."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        left = y[:, :4]
        left.add_(y[:, 4:])
        return self.two(y.relu_())


def r(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


GOOD: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, Any], bool]] = {
    "plain": (Body, (r(3, 4),), {}, True),
    "one row": (Body, (r(1, 4),), {}, True),
    "keywords": (Keywords, (r(3, 4),), {"scale": r(3, 1), "shift": 0.5, "twice": True}, True),
    "by keyword": (Body, (), {"x": r(3, 4)}, True),
    "nested": (Nested, ({"image": r(3, 4), "rest": (r(3, 1), r(3, 4))},), {}, True),
    "nested, one row": (Nested, ({"image": r(1, 4), "rest": (r(1, 1), r(1, 4))},), {}, True),
    "variadic": (Variadic, (r(3, 4), r(3, 4)), {"other": r(3, 4)}, True),
    "mixed": (MixedVariadic, (r(3, 4), r(3, 4), r(3, 4)), {"key": r(3, 4), "other": r(3, 1)}, True),
    "flags": (Flags, (r(3, 4), 2, True, "signed"), {"skip": None}, True),
    "fixed at one": (OneRow, (r(1, 4),), {}, False),
    "fixed at three": (ThreeRows, (r(3, 4),), {}, False),
    "stateful": (Stateful, (r(1, 5, 4), r(1, 1, 6)), {}, False),
    "regions": (Regions, (r(3, 4),), {}, True),
    "in place": (InPlace, (r(3, 4),), {}, True),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.filterwarnings("ignore")
def test_inputs_and_outputs_of_any_form(name: str) -> None:
    make, args, kwargs, dynamic = GOOD[name]
    torch.manual_seed(0)
    model = make().eval()
    program = sslprune.trace(model, args, kwargs)
    assert program.dynamic_batch is dynamic and program.training is not None, program.notes
    same, training = sslprune.repack(model, program, []), copy.deepcopy(model).train()
    _assert_alike(model, same, args, kwargs)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    zero_random_(model, program, axes, np.random.default_rng(0))
    _assert_alike(model, sslprune.repack(model, program, axes), args, kwargs)
    same.train()  # a batch norm does not train on one row: the program's inputs have two
    _assert_alike(training, same, program.args, program.kwargs)
    own = tensors_of(same)
    assert all(torch.allclose(own[n], b) for n, b in training.named_buffers())


def _assert_alike(one: nn.Module, other: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    expected, found = one(*args, **kwargs), other(*args, **kwargs)
    assert pytree.tree_structure(expected) == pytree.tree_structure(found)
    assert difference(expected, found)[1] < 1e-5


class Region(nn.Module):
    """A region of full precision: with it torch.export leaves no flatten, but a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = self.conv(x).relu()
        return self.head(x.flatten(1))


def test_what_is_flattened_may_be_in_another_memory_format() -> None:
    torch.manual_seed(0)
    model, x = Region().eval(), torch.randn(2, 3, 4, 4)
    small = sslprune.repack(model, sslprune.trace(model, (x,)), [])
    small.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert difference(model(x), small(x.contiguous(memory_format=torch.channels_last)))[1] < 1e-5
