"""Shrinking while training: what is left trains as it would have, whatever the optimizer; and resumes to the same."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sslprune
from sslprune.errors import RecipeError, RepackError, TrainingError
from sslprune.removal.remove import origins
from sslprune.values.axes import tensors_of
from sslprune.values.carry import with_state
from sslprune.zoo import digits_cnn, lstm_lm
from tests.laws import lively_
from tests.test_train import StopsAfter, recipe, same, trained

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True, fused=True),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01, t0=3),
}


def pixels(model: nn.Module) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    random = torch.Generator().manual_seed(0)
    while True:
        yield (torch.randn(16, 1, 8, 8, generator=random).double(),), torch.randint(10, (16,), generator=random)


def words(model: nn.Module) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    random = torch.Generator().manual_seed(0)
    while True:
        text = torch.randint(20, (4, 6), generator=random)
        yield with_state(model, (text[:, :-1],)), text[:, 1:].flatten()


class Columned(nn.Module):
    """A convolution whose columns go, behind one whose kernel gets smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(1, 8, 5, padding=2), nn.Conv2d(8, 6, 3), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.one(x).relu()).relu().amax((2, 3)))


class Normed(nn.Module):
    """A convolution with a computed weight, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 8, 3))
        self.two, self.out = nn.Conv2d(8, 6, 3), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.one(x).relu()).relu().amax((2, 3)))


MODELS: dict[str, tuple[Callable[[], nn.Module], Any, tuple[str, ...]]] = {
    "filters": (lambda: digits_cnn(width=8), pixels, ("filters",)),
    "filters and layers": (lambda: digits_cnn(width=8), pixels, ("filters", "layers")),
    "columns and kernels": (Columned, pixels, ("filters", "columns", "kernel")),
    "lstm, tied": (lambda: lstm_lm(vocabulary=20, hidden=12, tied=True), words, ("hidden", "width")),
    "computed": (Normed, pixels, ("filters",)),
}


class Loop:
    """A person's own loop, in float64: groups decay to zero now and then, and go where ``every`` is above 0."""

    def __init__(self, name: str, optimizer: str = "SGD", every: int = 0, strength: float = 0.0) -> None:
        make, batches, kinds = MODELS[name]
        self.whole = lively_(make()).double().train()
        for parameter in self.whole.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.program = sslprune.trace(self.whole, next(batches(self.whole))[0])
        self.axes = [axis for axis in sslprune.find_axes(self.program) if axis.exact and axis.kind in kinds]
        self.optimizer = OPTIMIZERS[optimizer](self.whole.parameters())
        self.lasso = sslprune.GroupLasso(self.whole, self.axes, strength=strength)
        self.average = AveragedModel(self.whole, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        self.shrinker = sslprune.Shrinker(self.whole, self.program, self.axes, self.lasso)
        self.went: list[bool] = []
        self.train(batches, every)
        self.left = tensors_of(self.shrinker.model).keys() & dict(self.whole.named_parameters()).keys()
        self.shrinker.restore()

    def train(self, batches: Any, every: int) -> None:
        goes = [a.size - a.size // 20 if a.kind in ("columns", "layers") else a.size // 3 for a in self.axes]
        random = np.random.default_rng(0)
        chosen = [random.permutation(axis.size)[:count] for axis, count in zip(self.axes, goes, strict=True)]
        groups = np.concatenate([s + c for s, c in zip(self.lasso.starts, chosen, strict=False)])
        for step, (_, (inputs, targets)) in enumerate(zip(range(18), batches(self.whole), strict=False)):
            model = self.shrinker.model
            outputs = model(*with_state(model, inputs[:1]))
            self.optimizer.zero_grad()
            F.cross_entropy(outputs[0].flatten(0, 1) if isinstance(outputs, tuple) else outputs, targets).backward()
            self.optimizer.step()
            if step in (1, 7):
                self.lasso.decay(groups[step > 1 :: 2], 3)
            self.lasso.step(0.02)
            self.average.update_parameters(model)
            if every and step % every == every - 1:
                self.went.append(self.shrinker.shrink(self.optimizer, self.average))


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("filters and layers", "SGD"),
        ("filters and layers", "AdamW"),
        ("columns and kernels", "ASGD"),
        ("lstm, tied", "SGD"),
        ("computed", "AdamW"),
    ],
)
def test_what_is_left_trains_as_it_would_have(name: str, optimizer: str) -> None:
    masked, shrunk = Loop(name, optimizer), Loop(name, optimizer, every=5)
    assert shrunk.went == [True, True, False]
    small = shrunk.shrinker.model
    assert sum(p.numel() for p in small.parameters()) < 0.9 * sum(p.numel() for p in shrunk.whole.parameters())
    expected, found = tensors_of(masked.whole), tensors_of(shrunk.whole)
    for part in shrunk.left:
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=1e-12)
    assert torch.equal(shrunk.lasso.alive, masked.lasso.alive)
    # what a repack of the whole model gives at the end has the size, and is the function, of what trained
    again = sslprune.repack(shrunk.whole, shrunk.program, shrunk.axes)
    if name not in ("computed", "columns and kernels"):  # repack puts in the one; whether the other pays may change
        assert np.array_equal(np.concatenate(shrunk.shrinker.removed.masks), shrunk.lasso.alive[:-1] == 0)
        sizes = [sum(p.numel() for p in model.parameters()) for model in (small, again)]
        assert sizes[0] == sizes[1]
    inputs = next(MODELS[name][1](shrunk.whole))[0]
    outputs = [model.eval()(*with_state(model, inputs[:1])) for model in (shrunk.whole, small)]
    torch.testing.assert_close(*(out[0] if isinstance(out, tuple) else out for out in outputs))
    # the averages of what is left, and the optimizer's state, have their numbers, and their layout
    where = origins(shrunk.program, shrunk.shrinker.removed)
    assert where
    averages, before = tensors_of(shrunk.average.module), tensors_of(masked.average.module)
    for part in shrunk.left:
        whole = before[part].reshape(-1)
        torch.testing.assert_close(averages[part], whole[where[part]] if part in where else before[part])
    own = {id(p) for group in shrunk.optimizer.param_groups for p in group["params"]}
    assert own == {id(p) for p in small.parameters()} >= {id(p) for p in shrunk.optimizer.state}
    for parameter, state in shrunk.optimizer.state.items():
        kept = [v for v in state.values() if isinstance(v, Tensor) and v.dim()]
        assert all(v.shape == parameter.shape and v.stride() == parameter.stride() for v in kept)


@pytest.mark.parametrize("name", ["filters", "columns and kernels", "lstm, tied"])
def test_the_lasso_acts_on_what_is_left(name: str) -> None:
    shrunk = Loop(name, every=5, strength=0.02)
    assert shrunk.went[0]
    anew = sslprune.GroupLasso(shrunk.whole, shrunk.axes)
    for a, b in zip(shrunk.lasso.norms(), anew.norms(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    if name == "columns and kernels":
        return  # held columns, that another side still trains, count in the norms of a step until they are zeroed again
    masked = Loop(name, strength=0.02)
    for part in shrunk.left:
        torch.testing.assert_close(tensors_of(shrunk.whole)[part], tensors_of(masked.whole)[part], rtol=0, atol=1e-5)
    assert torch.equal(shrunk.lasso.alive, masked.lasso.alive)


def test_a_computed_weight_stays_and_is_named() -> None:
    loop = Loop("computed", every=5)
    assert [note.partition(":")[0] for note in loop.shrinker.notes] == [
        "one [filters] stays at its size while the model trains"
    ]
    assert "one.parametrizations.weight.original0 is not a weight itself" in loop.shrinker.notes[0]
    assert not loop.shrinker.removed["one"].any()


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            torch.optim.Adafactor,
            r"Adafactor: the state 'row_var' of stem.weight is of shape \(8, 1, 3, 1\), expected one",
        ),
        (
            lambda p: torch.optim.LBFGS(list(p)),
            r"LBFGS: the state 'al' of stem.weight is a list, expected one",
        ),
    ],
)
def test_an_optimizer_whose_state_cannot_be_sliced(optimizer: Any, message: str) -> None:
    model = digits_cnn(width=8)
    (x,), y = next(pixels(model))
    program = sslprune.trace(model, (x.float(),))
    axes = [axis for axis in sslprune.find_axes(program) if axis.kind == "filters"]
    made = optimizer(model.parameters())

    def closure() -> Tensor:
        made.zero_grad()
        loss = F.cross_entropy(model(x.float()), y)
        loss.backward()
        return loss

    made.step(closure)
    sslprune.zero_groups(model, axes[0], [1, 2])
    before = copy.deepcopy(model.state_dict()), [id(p) for p in made.param_groups[0]["params"]]
    with pytest.raises(TrainingError, match=message) as caught:
        sslprune.shrink(model, program, axes, made)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert [id(p) for p in made.param_groups[0]["params"]] == before[1]
    small = sslprune.shrink(model, program, axes, torch.optim.Adam(model.parameters()))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    with pytest.raises(RepackError, match="cannot shrink while it trains: the batch size is fixed"):
        sslprune.shrink(
            model, dataclasses.replace(program, dynamic_batch=False, notes=("the batch size is fixed",)), axes
        )


SHRINKING: dict[str, dict[str, Any]] = {
    "schedule": {"dense": "9it", "sparse": "40it", "heal": "26it", "shrink": "10it"},
    "lasso": {"decay": 8},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(tmp_path_factory.mktemp("whole"), **SHRINKING)


def parameters(run: Any) -> list[int]:
    return [record["parameters"] for record in json.loads(run.history.read_text())]


@pytest.mark.parametrize("epochs", [2, 4])
def test_resume_is_bit_equal(whole: Any, tmp_path: Path, epochs: int) -> None:
    sizes = parameters(whole)
    assert sizes[0] > sizes[1] > sizes[-1], sizes
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, StopsAfter(epochs), **SHRINKING)
    torch.manual_seed(99)
    again = trained(tmp_path, **SHRINKING)
    assert same(whole.masked, again.masked) and parameters(again) == sizes


def test_the_end_is_that_of_a_run_without_shrinking(whole: Any, tmp_path: Path) -> None:
    masked = trained(tmp_path, **SHRINKING | {"schedule": SHRINKING["schedule"] | {"shrink": "never"}})
    ends = [json.loads(run.history.read_text())[-1] for run in (whole, masked)]
    assert ends[0]["cost"] == pytest.approx(ends[1]["cost"], abs=0.02)
    assert ends[0]["loss"] == pytest.approx(ends[1]["loss"], rel=0.1)


def test_nothing_removed_changes_nothing(tmp_path: Path) -> None:
    short = {"schedule": {"dense": "2it", "sparse": "12it", "heal": "0ep"}}
    once = trained(tmp_path / "once", **short)
    often = trained(tmp_path / "often", **{"schedule": {**short["schedule"], "shrink": "12it"}})  # looks at step 0 only
    assert same(once.masked, often.masked)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r'schedule.shrink.*write "1ep" or more, or "never"'):
        recipe(schedule={"shrink": "0ep"})


def test_the_average_of_another_model_is_refused() -> None:
    model = digits_cnn(width=8)
    (x,), _ = next(pixels(model))
    program = sslprune.trace(model, (x.float(),))
    axes = [axis for axis in sslprune.find_axes(program) if axis.kind == "filters"]
    sslprune.zero_groups(model, axes[0], [1, 2])
    with pytest.raises(TrainingError, match=r"AveragedModel: stem.weight is not of the same shape in the averaged"):
        sslprune.shrink(model, program, axes, AveragedModel(digits_cnn(width=4)))


def test_a_loop_of_ones_own_shrinks_now_and_then_and_resumes_to_the_same():
    torch.manual_seed(0)
    start = lively_(digits_cnn(8).double())

    class Loop:
        def __init__(self) -> None:
            self.whole = copy.deepcopy(start)
            self.optimizer = torch.optim.SGD(self.whole.parameters(), lr=0.05, momentum=0.9)
            example = next(pixels(self.whole))[0]
            self.sparsity = sslprune.Sparsity(self.whole, example, prune="filters", macs=0.5, steps=40, round_to=1)

        def run(self, first: int, last: int, every: int | None) -> None:
            for step, (args, target) in enumerate(itertools.islice(pixels(self.whole), first, last), first):
                if every and step % every == 0:
                    self.sparsity.shrink(self.optimizer)
                self.optimizer.zero_grad()
                loss = F.cross_entropy(self.sparsity.trained(*args), target)
                loss.backward()
                self.sparsity.observe(loss)
                self.optimizer.step()
                self.sparsity.step(0.05)

    plain, shrunk, begun, resumed = Loop(), Loop(), Loop(), Loop()
    plain.run(0, 50, None)
    shrunk.run(0, 50, 10)
    ends = shrunk.sparsity.restore().state_dict()
    for name, value in plain.whole.named_parameters():
        torch.testing.assert_close(ends[name], value, rtol=1e-4, atol=1e-6)  # the lasso counts in float32
    assert len(nn.utils.parameters_to_vector(shrunk.sparsity.trained.parameters())) < len(
        nn.utils.parameters_to_vector(plain.whole.parameters())
    )
    begun.run(0, 33, 10)
    resumed.whole.load_state_dict(begun.sparsity.restore().state_dict())
    resumed.sparsity.load_state_dict(begun.sparsity.state_dict(), resumed.optimizer)
    resumed.optimizer.load_state_dict(begun.optimizer.state_dict())
    resumed.run(33, 50, 10)
    small = resumed.sparsity.repack()
    torch.testing.assert_close(resumed.sparsity.restore().state_dict(), ends, rtol=0, atol=0)
    assert small.state_dict().keys() == plain.sparsity.repack().state_dict().keys()
    again = begun.sparsity  # an earlier state, from before anything had left
    begun.whole.load_state_dict(start.state_dict())
    again.load_state_dict(Loop().sparsity.state_dict(), begun.optimizer)
    assert [p.shape for p in again.trained.parameters()] == [p.shape for p in start.parameters()]
