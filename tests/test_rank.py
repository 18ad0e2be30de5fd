"""Rank: a matrix becomes two factors, exact at full rank; their rank is an axis; what does not pay is one again."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import sslprune
from sslprune.calibration import factor as factoring
from sslprune.choose.sections import select
from sslprune.cost.layers import Layer
from sslprune.errors import BudgetError, CalibrationError, ExportError, RecipeError, RepackError
from sslprune.recipe import PruneSection
from sslprune.removal.factors import Factored, fold_
from sslprune.removal.plan import Plan
from sslprune.removal.remove import removable
from sslprune.values.axes import Axis
from sslprune.values.compare import difference
from sslprune.values.selection import Selection
from tests.laws import lively_, settle_


class Block(nn.Module):
    """A block of a transformer with projections of its own, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 24)
        self.norm = nn.LayerNorm(24)
        self.query, self.key, self.value, self.out = (nn.Linear(24, 24) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(24, 40), nn.Linear(40, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        n = self.norm(h)
        q, k, v = (part(n).unflatten(-1, (4, 6)).transpose(1, 2) for part in (self.query, self.key, self.value))
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((h + self.down(F.gelu(self.up(h)))).mean(1))


def pictures() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, (3, 5), stride=(2, 1), padding=(2, 2), dilation=(2, 1)),
        nn.ReLU(),
        nn.Conv2d(24, 20, 3, padding="same"),
        nn.ReLU(),
        nn.Conv2d(20, 12, 1),
        nn.Flatten(),
        nn.Linear(12 * 32, 30),
        nn.ReLU(),
        nn.Linear(30, 5),
    )


def lines() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 12, 5, stride=2, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 12))


MODELS: dict[str, tuple[Any, Any]] = {
    "pictures": (pictures, lambda rows: torch.randn(rows, 3, 8, 8)),
    "lines": (lines, lambda rows: torch.randn(rows, 4, 16)),
    "attention": (Block, lambda rows: torch.randint(20, (rows, 7))),
}


def ranks(axes: list[Axis]) -> list[Axis]:
    return [axis for axis in axes if axis.kind == "rank"]


def factored_by(model: nn.Module) -> Plan:
    """The plan of what `factor` did to a model."""
    forms = {f"{path}.weight": module.form for path, module in model.named_modules() if isinstance(module, Factored)}
    return Plan(axes=(), tensors={}, zeroed=(), operators=(), factors=forms)


@pytest.mark.parametrize(
    ("name", "form"), [("pictures", "pointwise"), ("pictures", "separable"), ("lines", "pointwise"), ("attention", "")]
)
def test_masked_is_repacked_is_onnx_with_what_else_goes(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, batch = MODELS[name]
    monkeypatch.setattr(factoring, "forms", lambda w: ("linear",) if w.dim() == 2 else (form,))
    torch.manual_seed(0)
    x, more = batch(3), batch(20)
    whole = settle_(lively_(make()), (more,))
    model = sslprune.factor(whole, (x,), samples=[more])
    assert difference(whole(more), model(more))[1] < 1e-5  # exact at full rank
    program = sslprune.trace(model, (x,))
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind not in ("layers", "columns")]
    assert len(ranks(axes)) == sum(isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d) for m in whole.modules())
    dense, cost = sslprune.Cost(sslprune.trace(whole, (x,)), []), sslprune.Cost(program, axes)
    assert (cost.macs(), cost.parameters()) == (dense.macs(), dense.parameters())  # of one matrix, as it is folded
    random = np.random.default_rng(0)
    far = ranks(axes)[::2]  # whose rank falls far enough to pay; the others' does not
    for axis in axes:
        left = max(1, axis.size // 6 if axis in far else axis.size - 2 if axis.kind == "rank" else axis.size // 2)
        sslprune.zero_groups(model, axis, random.permutation(axis.size)[left:])
    small = sslprune.repack(model, program, axes)
    names = set(small.state_dict())
    assert {n.endswith("_down") for n in names if "bias" not in n} == {True, False}
    for training in (False, True):
        model.train(training), small.train(training)
        assert difference(model(more), small(more))[1] < 1e-5
    assert difference(whole(more), model.eval()(more))[1] > 1e-3  # what went was not nothing
    selection = removable(program, Selection.zeros(model, axes))
    again = sslprune.Cost(sslprune.trace(small, (x,)), [])
    assert (cost.macs(selection), cost.parameters(selection)) == (again.macs(), again.parameters())
    sslprune.export_onnx(small.eval(), (x,), tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    given = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    assert difference(small(more), torch.from_numpy(given[0]))[1] < 1e-4
    plan = sslprune.make_plan(model, program, axes).model_copy(update={"first": factored_by(model)})
    assert plan.folded and set(plan.folded) < set(factored_by(model).factors)
    save_file({key: value.contiguous() for key, value in small.state_dict().items()}, tmp_path / "weights.safetensors")
    if name == "pictures":  # its own code says no sizes of its own
        own = sslprune.apply_plan(make(), plan, tmp_path / "weights.safetensors").eval()
        assert difference(small(more), own(more))[1] < 1e-5
        assert set(own.state_dict()) == names


def test_what_is_folded_keeps_its_rank_in_a_selection() -> None:
    model = sslprune.factor(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), (torch.randn(2, 8),))
    program = sslprune.trace(model, (torch.randn(2, 8),))
    first, second = ranks(sslprune.find_axes(program))
    cost = sslprune.Cost(program, [first, second])
    wanted = Selection.of([first, second], [np.arange(8) >= 4, np.arange(8) >= 3])  # 4 x 16 = 64, as much as 8 x 8
    found = removable(program, wanted)
    assert (found.left(first), found.left(second)) == (8, 3)
    assert cost.macs(wanted) == cost.macs(found) == 64 + 3 * 16
    savings = cost.savings(Selection.none([first, second]), "macs")
    assert savings[0] == pytest.approx(np.full(8, 8.0))  # the share of a matrix that is one still
    assert cost.savings(wanted, "macs")[1] == pytest.approx([16.0] * 3 + [0.0] * 5)


def test_samples_weigh_what_goes() -> None:
    torch.manual_seed(0)
    layer: Any = nn.Sequential(nn.Linear(16, 12))
    x = torch.randn(500, 16) * torch.logspace(0, -2, 16)  # some inputs hardly vary
    errors = []
    for samples in (None, [x]):
        model: Any = sslprune.factor(layer, (x,), samples=samples)
        (axis,) = ranks(sslprune.find_axes(sslprune.trace(model, (x,))))
        sslprune.zero_groups(model, axis, range(4, 12))
        errors.append(float((model(x) - layer(x)).square().mean()))
    assert errors[1] < 0.5 * errors[0]
    assert all(isinstance(module, nn.Linear) for module in model)  # of the class that it was
    torch.testing.assert_close(fold_(model)(x), model(x))
    assert set(model.state_dict()) == set(layer.state_dict())


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.middle(self.embed(x))))


REFUSED: dict[str, tuple[Any, Any, str, str]] = {
    "depthwise": (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), torch.randn(2, 4, 5, 5), "0", "depthwise convolution"),
    "grouped": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)), torch.randn(2, 4, 5, 5), "0", "grouped convolution"),
    "padded": (
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")), torch.randn(2, 4, 5, 5), "0", "reflect",
    ),
    "recurrent": (nn.LSTM(4, 5, batch_first=True), torch.randn(2, 3, 4), "*", "recurrent"),
    "embedding": (Tied(), torch.randint(9, (2, 3)), "embed", "looked up"),
    "tied": (Tied(), torch.randint(9, (2, 3)), "head", "shared with embed|looked up"),
    "several times": (Tied(), torch.randint(9, (2, 3)), "middle", "several times"),
    "own": (nn.Sequential(Own(4, 4)), torch.randn(2, 4), "0", "own forward"),
    "frozen": (nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)), torch.randn(2, 4), "0", "train"),
    "one": (nn.Sequential(nn.Linear(4, 1)), torch.randn(2, 4), "0", "rank is 1"),
    "no such": (nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), "fc*", r"matches no matrix; there are 0"),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 4, 3)), torch.randn(2, 4, 5, 5), "0", "nn.Conv2d"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["columns", "kernel"])
def test_a_convolution_of_two_factors_says_why_it_has_no_columns(kind: str) -> None:
    model = sslprune.factor(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), (torch.randn(2, 3, 9, 9),)
    )
    program = sslprune.trace(model, (torch.randn(2, 3, 9, 9),))
    sections = [PruneSection(kind="rank"), PruneSection(kind=kind)]
    with pytest.raises(RecipeError, match=rf'prune\.1\.kind: no axis is of kind "{kind}".*"rank".*with exclude'):
        select(sslprune.find_axes(program), sections)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rank_is_refused_by_name(name: str) -> None:
    model, x, include, said = REFUSED[name]
    with pytest.raises(RecipeError, match=said) as caught:
        sslprune.factor(model, (x,), include=[include])
    assert "\n" not in str(caught.value) and "prune.0.include" in str(caught.value)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (5, "samples: int; expected batches"),
        ([torch.randn(4, 9)], "samples: the model cannot take a batch"),
        ([torch.full((4, 8), torch.nan)], "samples: what 0 reads of them is not finite"),
    ],
)
def test_samples_that_do_not_suit(samples: Any, said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        sslprune.factor(nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 8),), samples=samples)


def test_other_matrices_are_passed_over() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(54, 3))
    made = sslprune.factor(model, (torch.randn(2, 4, 5, 5),), exclude=["3"])
    assert [name for name, module in made.named_modules() if isinstance(module, Factored)] == ["1"]
    assert set(made.state_dict()) == {
        "0.weight",
        "0.bias",
        "1.bias",
        "1.weight_down",
        "1.weight_up",
        "3.weight",
        "3.bias",
    }
    with pytest.raises(RepackError, match="build the same model"):
        sslprune.apply_plan(nn.Sequential(nn.ReLU()), factored_by(made))


def test_calibration_factors_by_itself_and_lands_on_the_budget_of_the_whole_model() -> None:
    torch.manual_seed(0)
    whole: Any = lively_(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)))
    with torch.no_grad():  # of rank 6, but for a little
        whole[2].weight.copy_(torch.randn(32, 6) @ torch.randn(6, 32) / 6 + 0.01 * torch.randn(32, 32))
    samples = torch.randn(300, 16)
    dense = sslprune.Cost(sslprune.trace(whole, (samples[:2],)), []).macs()
    small = sslprune.calibrate(whole, (samples[:2],), [samples], prune="rank", macs=0.79, round_to=1)
    macs = sslprune.Cost(sslprune.trace(small, (samples[:2],)), []).macs()
    assert 0.78 * dense <= macs <= 0.79 * dense
    assert {name for name in small.state_dict() if name.startswith("2.")} == {"2.bias", "2.weight_down", "2.weight_up"}
    assert difference(whole(samples), small(samples))[1] < 0.1
    assert not any(isinstance(module, Factored) for module in whole.modules())
    with pytest.raises(BudgetError, match="least reachable"):
        sslprune.calibrate(whole, (samples[:2],), [samples], prune={"kind": "rank", "min_groups": 20}, macs=0.3)


def test_training_needs_a_factored_model_and_folds_at_the_end() -> None:
    torch.manual_seed(0)
    whole, x = lively_(nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))), torch.randn(32, 12)
    with pytest.raises(RecipeError, match="a recipe by itself"):
        sslprune.Sparsity(whole, (x,), prune="rank", steps=30, macs=0.7)
    model = sslprune.factor(whole, (x,))
    sparsity = sslprune.Sparsity(model, (x,), prune=["rank", "neurons"], steps=60, macs=0.6, round_to=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(70):
        optimizer.zero_grad()
        loss = F.mse_loss(sparsity.trained(x), whole(x).detach())
        loss.backward()
        sparsity.observe(loss)
        optimizer.step()
        sparsity.step(0.01)
        if step in (30, 60):
            sparsity.shrink(optimizer)
    small = sparsity.repack()
    macs = sslprune.Cost(sslprune.trace(small, (x,)), []).macs()
    assert 0.6 * 384 - 36 < macs <= 0.6 * 384  # a component has 36 of them at most, and processors round differently
    assert difference(copy.deepcopy(model)(x), small(x))[1] < 1e-5


class Flat:
    """A table in which a layer takes as long as it has multiply-accumulates."""

    def microseconds(self, layers: Iterable[Layer]) -> list[float]:
        return [float(np.prod(layer.widths) * layer.settings[0][0]) for layer in layers]


def test_latency_is_that_of_what_a_repack_leaves() -> None:
    x = torch.randn(1, 8)
    model = sslprune.factor(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), (x,))
    program = sslprune.trace(model, (x,))
    axes = ranks(sslprune.find_axes(program))
    cost = sslprune.Cost(program, axes, Flat())
    nothing = Selection.none(axes)
    assert cost.latency() == 128 and [str(layer) for layer in cost.asked()] == ["MatMul 8x8 1"] * 2
    two, more = np.array([6, 7]), np.arange(4, 8)
    assert cost.saved(nothing, [{0: two}, {1: more}], "latency") == [2 * 64 / 8, 4 * 64 / 8]  # by their share
    fewer = nothing.plus({0: np.arange(3, 8)})
    assert cost.latency(fewer) == 3 * 16 + 64
    assert cost.saved(fewer, [{0: np.array([2])}], "latency") == [16]
    picture = torch.randn(1, 6, 9, 9)
    conv = sslprune.factor(nn.Sequential(nn.Conv2d(6, 6, 3, stride=2, padding=1)), (picture,))
    dense = sslprune.trace(fold_(copy.deepcopy(conv)), (picture,))
    program = sslprune.trace(conv, (picture,))
    whole, again = sslprune.Cost(dense, [], Flat()), sslprune.Cost(program, ranks(sslprune.find_axes(program)), Flat())
    assert whole.asked() == again.asked()


def test_no_directory_for_hugging_face_holds_two_factors(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, **sizes)).eval()
    given = {"input_ids": torch.randint(20, (2, 5))}
    model = sslprune.factor(whole, (), given, include=["*.intermediate.dense"])
    program = sslprune.trace(model, (), given)
    (axis,) = ranks(sslprune.find_axes(program))
    sslprune.zero_groups(model, axis, range(4, axis.size))
    small = sslprune.repack(model, program, [axis])
    with pytest.raises(ExportError, match=r"bert.encoder.layer.0.intermediate.dense is two factors"):
        sslprune.export_huggingface(model, small, tmp_path / "out", (), given)
    assert not (tmp_path / "out").exists()


def test_a_plan_factors_without_numbers_and_the_function_stays() -> None:
    x = torch.randn(3, 3, 8, 8)
    whole = settle_(lively_(pictures()), (x,))
    model = sslprune.factor(whole, (x,))
    own = sslprune.apply_plan(copy.deepcopy(whole), factored_by(model)).eval()
    torch.testing.assert_close(own(x), whole(x), rtol=1e-4, atol=1e-5)
    assert [p.shape for p in own.parameters()] == [p.shape for p in model.parameters()]
    before = own.state_dict()["9.weight_down"].clone()
    torch.testing.assert_close(factoring.anew_(own)(x), whole(x), rtol=1e-4, atol=1e-5)
    norms = [own.state_dict()["9.weight_down"].norm(dim=1), own.state_dict()["9.weight_up"].norm(dim=0)]
    torch.testing.assert_close(*norms)
    assert not torch.equal(before, own.state_dict()["9.weight_down"])
