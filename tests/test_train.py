"""The loop: phases, files, a resume that changes nothing, and losses that are refused."""

import json
import math
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sslprune.capture.trace import trace
from sslprune.choose.sections import select
from sslprune.cost.counts import Cost
from sslprune.data import build_data
from sslprune.errors import BudgetError, DataError, RecipeError, SslpruneError, TrainingError
from sslprune.kinds.find import find_axes
from sslprune.models.build import build_model
from sslprune.recipe import PruneSection, Recipe, TeacherSection, TrainSection, parse_recipe
from sslprune.run.directory import RunDirectory
from sslprune.train import recall
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.evaluate import evaluate
from sslprune.train.optimizer import learning_rate
from sslprune.train.recalibrate import recalibrate
from sslprune.train.recall import Recall
from sslprune.train.schedule import Schedule
from sslprune.train.teacher import build_teacher
from sslprune.train.training import train
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection
from sslprune.values.voice import Silent, SilentBar
from sslprune.zoo.digits_cnn import DigitsCNN


class Kept(Silent, SilentBar):
    """What a person would see, kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "", style: str = "") -> None:
        self.lines.append(line)

    @contextmanager
    def progress(self, description, total=None):
        yield self


class StopsAfter(Kept):
    """Somebody presses Ctrl-C in the middle of an epoch."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def advance(self, n=1, **fields) -> None:
        if len(self.lines) == self.epochs:
            raise KeyboardInterrupt


def recipe(**changes) -> Recipe:
    values: dict[str, Any] = {
        "run": {"device": "cpu", "seed": 3},
        "model": {"factory": f"{__file__}:net"},
        "data": {
            "factory": "sslprune.data:digits",
            "augment": ["pad-crop:1"],
            "batch_size": 64,
            "eval_batch_size": 180,
        },
        "prune": [{"kind": "filters"}, {"kind": "layers"}],
        "budget": {"macs": 0.5, "round_to": 1},
        "schedule": {"dense": "9it", "sparse": "30it", "heal": "5it"},
        "train": {"lr": 0.02},
    }
    for key, value in changes.items():
        values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
    return parse_recipe(values)


def net(width: int = 8, poison: bool = False) -> nn.Module:
    """The digits' CNN with a dropout, which draws random numbers, and on demand a weight that spoils everything."""
    model = DigitsCNN(width, 10)
    model.linear = nn.Sequential(nn.Dropout(0.1), model.linear)
    if poison:
        nn.init.constant_(model.stem.weight, math.nan)
    return model


def trained(folder: Path, show=None, **changes) -> TrainingFiles:
    run = TrainingFiles(folder)
    train(recipe(**changes), run, show or Kept())
    return run


def same(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from beginning to end."""
    return trained(tmp_path_factory.mktemp("whole"))


def test_reaches_its_budget_with_exact_zeros(whole):
    made = recipe()
    model, _ = build_model(made.model)
    model.load_state_dict(load_file(whole.masked))
    program = trace(model.eval(), (torch.randn(2, 1, 8, 8),))
    axes = select(find_axes(program), made.prune)
    cost = Cost(program, axes)
    assert 0.99 * 0.5 <= cost.macs(Selection.zeros(model, axes)) / cost.macs() <= 0.5


def test_history_and_files(whole):
    history = json.loads(whole.history.read_text())
    assert [record["phase"] for record in history] == ["dense", "sparse", "sparse", "heal"]
    assert history[0]["cost"] == 1 and history[-1]["cost"] <= 0.5
    assert {"epoch", "loss", "lr", "plan", "test", "seconds", "norms"} <= history[0].keys()
    assert sum(history[-1]["norms"].values()) < sum(history[0]["norms"].values())
    assert {path.name for path in whole.folder.iterdir()} == {
        "checkpoint.pt",
        "initial.safetensors",
        "dense.safetensors",
        "masked.safetensors",
        "selection.json",
        "history.json",
        "log.jsonl",
    }
    assert not same(whole.dense, whole.masked)
    state = torch.load(whole.checkpoint, weights_only=True)
    assert {"model", "optimizer", "sparsity", "random"} <= state.keys()


@pytest.mark.parametrize("epochs", [0, 1, 2, 3])
def test_resume_is_bit_equal(whole, tmp_path, epochs):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, StopsAfter(epochs))
    assert not (tmp_path / "masked.safetensors").exists()
    torch.manual_seed(99)
    again = trained(tmp_path)
    assert same(whole.dense, again.dense) and same(whole.masked, again.masked)
    history, other = (json.loads(run.history.read_text()) for run in (whole, again))
    for record in history + other:
        del record["seconds"]
    assert history == other


def test_a_changed_recipe_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, StopsAfter(1))
    with pytest.raises(TrainingError, match=r"the recipe has changed since \(train\.lr\)"):
        trained(tmp_path, train={"lr": 0.03})


def test_dense_control_needs_no_pruning(tmp_path):
    run = trained(tmp_path, schedule={"dense": "0ep", "sparse": "0ep", "heal": "6it"})
    history = json.loads(run.history.read_text())
    assert [record["phase"] for record in history] == ["heal"] and history[0]["cost"] == 1
    assert not same(run.dense, run.masked)


def test_recalibrated_statistics_are_the_plain_mean_over_the_batches():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
    model = nn.Sequential(conv, norm, nn.Dropout(0.5)).train()
    data = build_data(recipe(data={"factory": "sslprune.data:digits", "batch_size": 1000}))
    recalibrate(model, data.train, 3)  # of one batch an epoch
    assert model.training and norm.momentum == 0.1
    outputs = [conv(images).transpose(0, 1).flatten(1) for i in range(3) for (images,), _ in data.train.epoch(i)]
    means = torch.stack([values.mean(1) for values in outputs]).mean(0)
    assert norm.running_mean is not None and norm.running_var is not None
    assert torch.allclose(norm.running_mean, means, atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack([v.var(1) for v in outputs]).mean(0), rtol=1e-4)


@pytest.fixture(scope="module")
def second(whole, tmp_path_factory):
    """The second point of a sweep."""
    return point(tmp_path_factory.mktemp("second"), whole)


def point(folder: Path, previous, show=None, goal=None) -> TrainingFiles:
    run = TrainingFiles(folder)
    made = recipe(budget={"macs": [0.5, 0.3]}, distill={"weight": 0.3})
    train(made, run, show or Kept(), previous=previous, goal=goal)
    return run


def test_a_sweep_goes_on_from_the_point_before(whole, second):
    assert same(whole.dense, second.dense) and same(whole.initial, second.initial)
    history = json.loads(second.history.read_text())
    assert [record["phase"] for record in history] == ["sparse", "sparse", "heal"]
    assert max(record["plan"] for record in history) < 0.5 and 0.297 <= history[-1]["cost"] <= 0.3  # of the dense model
    before, after = load_file(whole.masked), load_file(second.masked)
    for name, weight in before.items():
        if weight.dim() > 1:
            assert not after[name][weight == 0].any()


def test_a_point_resumes_bit_equal(whole, second, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        point(tmp_path, whole, StopsAfter(1))
    torch.manual_seed(98)
    assert same(second.masked, point(tmp_path, whole).masked)


def test_the_last_point_has_to_be_reachable_before_the_first_trains(whole, tmp_path):
    with pytest.raises(BudgetError, match=r"budget\.macs: 0\.0001 of the dense model cannot be reached; the least"):
        point(tmp_path, whole, goal=0.0001)
    assert list(tmp_path.iterdir()) == []


def large(num_classes: int = 10) -> nn.Module:
    return DigitsCNN(16, num_classes)


def test_another_model_teaches(whole, tmp_path):
    torch.manual_seed(5)
    save_file(large().state_dict(), tmp_path / "large.safetensors")
    short = {"dense": "2it", "sparse": "12it", "heal": "2it"}
    teacher = {"factory": f"{__file__}:large", "checkpoint": str(tmp_path / "large.safetensors")}
    runs = [
        trained(tmp_path / name, schedule=short, distill=distill)
        for name, distill in (("own", {"weight": 0.5}), ("other", {"weight": 0.5, "teacher": teacher}))
    ]
    assert same(runs[0].dense, runs[1].dense)  # it teaches from the sparse epochs on
    assert not same(runs[0].masked, runs[1].masked)


def test_a_teacher_is_asked_once_about_each_sample(tmp_path, monkeypatch):
    """Where no sample is augmented; what it said lasts over a resume, and changes nothing."""
    short = {"data": {"augment": []}, "distill": {}, "schedule": {"dense": "2it", "sparse": "50it", "heal": "5it"}}
    asked, learn = [], Recall._learn

    def noted(self, keys, output):
        asked.append(len(keys))
        learn(self, keys, output)

    monkeypatch.setattr(Recall, "_learn", noted)
    whole = trained(tmp_path / "whole", **short)
    assert 0 < sum(asked) <= len(build_data(recipe()).train) * 64 + 64  # three epochs and a bit
    for epochs in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / str(epochs), StopsAfter(epochs), **short)
        torch.manual_seed(97)
        assert same(whole.masked, trained(tmp_path / str(epochs), **short).masked)
    monkeypatch.setattr(recall, "LONGEST", 0)
    asked.clear()
    without = load_file(trained(tmp_path / "without", **short).masked)
    assert not asked
    assert all(torch.allclose(value, without[name], atol=1e-3) for name, value in load_file(whole.masked).items())


def test_a_run_teaches_with_its_dense_model(whole, tmp_path):
    run = RunDirectory(tmp_path / "finished")
    run.claim(recipe())
    shutil.copytree(whole.folder, run.training.folder)
    data = build_data(recipe())
    teacher = build_teacher(TeacherSection(run=str(run)), net(), data)
    weights = load_file(whole.dense)
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            {"factory": f"{__file__}:large", "arguments": {"num_classes": 7}},
            r"shape \(2, 7\) where the model gives \(2, 10\); it has",
        ),
        (
            {"factory": "sslprune.zoo:resnet_cifar", "arguments": {"depth": 20}},
            "cannot take .* inputs: .*channels",
        ),
        ({"factory": "sslprune.zoo:nets"}, "sslprune.zoo has no callable nets"),
        ({"factory": f"{__file__}:large", "checkpoint": "gone.pt"}, "gone.pt: no such checkpoint"),
        ("runs/gone", "runs/gone: not a run directory"),
    ],
)
def test_a_teacher_that_does_not_fit(tmp_path, teacher, message):
    with pytest.raises(RecipeError, match=rf"^distill\.teacher: .*{message}") as caught:
        trained(tmp_path, distill={"teacher": teacher})
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_distillation_adamw_and_the_rest(tmp_path):
    settings = {"optimizer": "adamw", "lr": 1e-3, "lr_schedule": "one-cycle", "clip_norm": 1.0, "label_smoothing": 0.1}
    settings |= {"recalibrate": "3it", "amp": "bf16"}
    parts = {
        "distill": {"weight": 0.5},
        "train": settings,
        "schedule": {"dense": "2it", "sparse": "12it", "heal": "2it"},
    }
    once = trained(tmp_path / "once", **parts)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "twice", StopsAfter(2), **parts)
    assert same(once.masked, trained(tmp_path / "twice", **parts).masked)


def test_a_processor_without_bfloat16_trains_in_float32(tmp_path, monkeypatch):
    for module in ("step", "training"):
        monkeypatch.setattr(f"sslprune.train.{module}.multiplies_bfloat16", lambda device: False)
    said = Kept()
    asked = trained(tmp_path / "asked", said, train={"amp": "bf16"})
    assert [line for line in said.lines if line.startswith("train.amp: this processor has no products in bfloat16")]
    assert same(asked.masked, trained(tmp_path / "off", train={"amp": "off"}).masked)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is nan by step 9; nothing was kept: lower train\.lr"):
        trained(tmp_path, model={"arguments": {"poison": True}})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrainingError, match=r"sparse 1/2: the loss is .*; the checkpoint of epoch 1 is kept"):
        trained(tmp_path, train={"lr": 1e30}, schedule={"dense": "1it"})
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]["stem.weight"].isfinite().all()
    assert not (tmp_path / "masked.safetensors").exists()


def test_mistakes_stop_before_training(tmp_path):
    for changes, error, message in (
        ({"budget": {"macs": 0.001}}, BudgetError, "the least reachable is"),
        (
            {"prune": [{"kind": "heads"}]},
            RecipeError,
            'prune.0.kind: no axis is of kind "heads"; the model has columns, filters',
        ),
        ({"prune": [{"kind": "filters", "include": ["encoder*"]}]}, RecipeError, "matches none of stem"),
        (
            {"model": {"factory": "sslprune.zoo:digits_cnn", "arguments": {"num_classes": 4}}},
            DataError,
            "has 4 classes",
        ),
        (
            {"train": {"warmup": "36it"}},
            RecipeError,
            "train.warmup: 36 steps do not fit into the 9 dense ones; shorten it, or lengthen",
        ),
        (
            {"train": {"warmup": "4ep"}, "schedule": {"dense": "0it"}},
            RecipeError,
            "train.warmup: 88 steps do not fit into the 35 sparse and healing ones",
        ),
        (
            {"train": {"warmup": "31it", "heal": "fresh"}, "schedule": {"dense": "0it"}},
            RecipeError,
            "train.warmup: 31 steps do not fit into the 30 sparse ones",
        ),
        ({"lasso": {"decay": 31}}, RecipeError, "lasso.decay: 31 steps do not fit into the 30 sparse ones"),
        ({"schedule": {"shrink": "9ep"}}, RecipeError, "schedule.shrink: 198 steps do not fit into the 35 sparse and"),
        ({"lasso": {"interval": 50}}, RecipeError, "lasso.interval: 50 steps do not fit into the 30 sparse ones"),
    ):
        with pytest.raises(error, match=message) as caught:
            trained(tmp_path, **changes)
        assert "\n" not in str(caught.value) and isinstance(caught.value, SslpruneError)
    assert list(tmp_path.iterdir()) == []


def test_select():
    axes = [
        Axis("a", "filters", 4, True, ()),
        Axis("b", "filters", 4, False, (), reason="softmax"),
        Axis("c", "filters", 4, False, (), reason="input", frozen=True),
        Axis("d", "layers", 1, True, ()),
    ]

    def names(*sections: PruneSection) -> list[str]:
        return [axis.name for axis in select(axes, sections)]

    assert names(PruneSection(kind="filters")) == ["a"]
    assert names(PruneSection(kind="layers"), PruneSection(kind="filters", allow_inexact=True)) == ["a", "b", "d"]
    assert names(PruneSection(kind="filters", exclude=["b"]), PruneSection(kind="filters", allow_inexact=True)) == [
        "a",
        "b",
    ]
    with pytest.raises(RecipeError, match=r"none of the 1 axes can be removed \(c is frozen: input\)"):
        names(PruneSection(kind="filters", include=["c"]))


def test_phases_are_cut_into_epochs():
    schedule = Schedule.of(recipe(schedule={"dense": "0ep", "sparse": "25it", "heal": "2ep"}), 10)
    assert [(epoch.phase, epoch.num_steps) for epoch in schedule.epochs] == [
        ("sparse", 10),
        ("sparse", 10),
        ("sparse", 5),
        ("heal", 10),
        ("heal", 10),
    ]


@pytest.mark.parametrize(
    ("heal", "expected"),
    [
        # a step schedule that falls tenfold half-way: over sparse + heal, over each alone, and the dense phase's last
        ("continue", {"dense": [1, 1, 0.1, 0.1], "sparse": [1, 1], "heal": [0.1, 0.1]}),
        ("fresh", {"dense": [1, 1, 0.1, 0.1], "sparse": [0.2, 0.02], "heal": [1, 0.1]}),
        ("rewind", {"dense": [1, 1, 0.1, 0.1], "sparse": [0.2, 0.02], "heal": [0.1, 0.1]}),
    ],
)
def test_rates_of_healing(heal, expected):
    settings = {"lr": 1.0, "lr_schedule": "step", "milestones": [0.5], "heal": heal}
    settings |= {} if heal == "continue" else {"sparse_lr": 0.2}
    made = recipe(train=settings, schedule={"dense": "4it", "sparse": "2it", "heal": "2it"})
    schedule = Schedule.of(made, 1)
    found: dict[str, list[float]] = {}
    for epoch in schedule.epochs:
        found.setdefault(epoch.phase, []).extend(schedule.learning_rates(made, epoch))
    assert found == {phase: pytest.approx(rates) for phase, rates in expected.items()}


def test_rates_of_healing_that_do_not_fit():
    with pytest.raises(RecipeError, match='"rewind" heals by the last steps of the dense phase, which has 0ep'):
        recipe(train={"heal": "rewind"}, schedule={"dense": "0ep", "heal": "2ep"})
    with pytest.raises(RecipeError, match="sparse_lr needs heal"):
        recipe(train={"sparse_lr": 0.1})


def rates(num_steps: int = 100, **settings) -> list[float]:
    section = parse_recipe(recipe().values() | {"train": {"lr": 1.0, **settings}}).train
    assert isinstance(section, TrainSection)
    return [learning_rate(section, step, num_steps, 10) for step in range(num_steps)]


def test_learning_rates():
    cosine = rates(lr_schedule="cosine")
    assert cosine[0] == 1 and cosine[50] == pytest.approx(0.5) and 0 < cosine[-1] < 0.001
    warm = rates(lr_schedule="constant", warmup="1ep")
    assert warm[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11]) and set(warm[10:]) == {1.0}
    linear = rates(lr_schedule="linear")
    assert linear[:2] == pytest.approx([1, 0.99]) and linear[-1] == pytest.approx(0.01)
    cycle = rates(lr_schedule="one-cycle")
    assert cycle[0] == pytest.approx(1 / 25) and max(cycle) == pytest.approx(1) == cycle[30] and cycle[-1] < 0.001
    steps = rates(lr_schedule="step", milestones=[0.5, 0.8], gamma=0.1)
    assert (steps[49], steps[50], steps[80]) == pytest.approx((1, 0.1, 0.01))
    assert min(rates(2, warmup="9ep")) > 0


def test_evaluate_counts_samples_not_batches():
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.eye(2)
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    zeros = torch.zeros(3, dtype=torch.int64)
    batches = [((right.repeat(3, 1),), zeros), ((wrong,), zeros[:1])]
    model.train()
    assert evaluate(model, batches) == {"accuracy": 75.0}
    assert model.training
    with pytest.raises(DataError, match="label 2 is out of range"):
        evaluate(model, [((right,), torch.tensor([2]))])
    with pytest.raises(DataError, match="empty"):
        evaluate(model, [])


@pytest.mark.parametrize("lasso", [{"strength": 0.2}, {"strength": 0.03, "method": "subgradient", "threshold": 0.1}])
def test_a_strength_in_place_of_a_budget(tmp_path, lasso):
    """Exact zeros without a plan, the cost that is left in the history, and a resume that changes nothing."""
    parts: dict[str, Any] = {"lasso": lasso, "budget": {"macs": None}, "schedule": {"dense": "0it"}}
    once = trained(tmp_path / "once", **parts)
    history = json.loads(once.history.read_text())
    assert all(record["plan"] is None for record in history) and 0 < history[-1]["cost"] < 1
    made = recipe(**parts)
    model, _ = build_model(made.model)
    model.load_state_dict(load_file(once.masked))
    program = trace(model.eval(), (torch.randn(2, 1, 8, 8),))
    axes = select(find_axes(program), made.prune)
    cost = Cost(program, axes)
    assert cost.macs(Selection.zeros(model, axes)) / cost.macs() == pytest.approx(history[-1]["cost"])
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "twice", StopsAfter(1), **parts)
    assert same(once.masked, trained(tmp_path / "twice", **parts).masked)
