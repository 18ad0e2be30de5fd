"""Each task: its loss, its metrics beside another library's, what its targets must look like, and what it says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset
from typer.testing import CliRunner, Result

from sslprune.cli import app
from sslprune.data import Data, build_data
from sslprune.data.own import BatchReader, LoaderBatches
from sslprune.errors import DataError, RecipeError
from sslprune.models.build import find_callable
from sslprune.recipe import Recipe, parse_recipe
from sslprune.train.evaluate import evaluate
from sslprune.values.inputs import tensors_in
from sslprune.values.metrics import CLASSES, LABELS, NUMBERS, Metric, figure, signed
from sslprune.values.outputs import loss_in
from sslprune.values.task_table import TASKS, Named, task_of, with_loss
from sslprune.values.tasks import Task

CPU = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def choice(most: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(seed))


def figures(task: Task, outputs: Tensor, targets: Tensor, parts: int = 3) -> dict[str, float]:
    """The metrics over several batches of different sizes."""
    scores = task.scores()
    for given, wanted in zip(outputs.tensor_split(parts), targets.tensor_split(parts), strict=True):
        scores.add(given, wanted)
    return scores.figures()


FOUR, FIVE = (drawn(50, 4), choice(4, 50)), (drawn(50, 5), choice(2, 50, 5))
# fmt: off
BESIDE = [  # a task, a metric, the same of torchmetrics with its arguments, outputs, targets, and by what ours is more
    ("classification", "accuracy", "MulticlassAccuracy", {"num_classes": 4, "average": "micro"}, *FOUR, 100),
    ("classification", "f1", "MulticlassF1Score", {"num_classes": 4}, *FOUR, 100),
    ("classification", "matthews", "MulticlassMatthewsCorrCoef", {"num_classes": 4}, *FOUR, 100),
    ("segmentation", "miou", "MulticlassJaccardIndex", {"num_classes": 4}, drawn(7, 4, 5, 6), choice(4, 7, 5, 6), 100),
    ("multi-label", "map", "MultilabelAveragePrecision", {"num_labels": 5}, FIVE[0].round(decimals=1), FIVE[1], 100),
    ("multi-label", "f1", "MultilabelF1Score", {"num_labels": 5}, *FIVE, 100),
    ("multi-label", "f1-micro", "MultilabelF1Score", {"num_labels": 5, "average": "micro"}, *FIVE, 100),
    ("multi-label", "accuracy", "MultilabelAccuracy", {"num_labels": 5, "average": "micro"}, *FIVE, 100),
    ("multi-label", "exact", "MultilabelExactMatch", {"num_labels": 5}, *FIVE, 100),
    ("regression", "mae", "MeanAbsoluteError", {}, drawn(50, 1), drawn(50, seed=2), 1),
    ("regression", "mse", "MeanSquaredError", {}, drawn(50), drawn(50, seed=2), 1),
    ("regression", "rmse", "MeanSquaredError", {"squared": False}, drawn(50), drawn(50, 1, seed=2), 1),
    ("regression", "r2", "R2Score", {}, drawn(50, 3), drawn(50, 3, seed=2), 1),
]
# fmt: on


@pytest.mark.parametrize(("name", "metric", "other", "arguments", "outputs", "targets", "scale"), BESIDE)
def test_metrics_are_those_of_torchmetrics(name, metric, other, arguments, outputs, targets, scale) -> None:
    pytest.importorskip("torchmetrics")
    places = {m: f"torchmetrics.{m}" for m in ("classification", "regression")}
    place = places["regression" if name == "regression" else "classification"]
    found = task_of(name, [metric, Named(f"{place}:{other}", arguments)], own=_find)
    ours, theirs = figures(found, outputs, targets).values()
    assert ours == pytest.approx(scale * theirs, rel=1e-5)
    assert found.lower_is_better == ({metric, other} if metric in ("mae", "mse", "rmse") else set())


def _find(name: str) -> Any:
    return find_callable(name, "data.metrics")


def test_loss_metrics_are_the_mean_of_the_loss() -> None:
    for name, outputs, targets in (
        ("multi-label", drawn(12, 5), choice(2, 12, 5)),
        ("regression", drawn(12, 2), drawn(12, 2, seed=3)),
        ("segmentation", drawn(6, 3, 4, 4), choice(3, 6, 4, 4)),
    ):
        task = with_loss(task_of(name, ["loss"]), None, 0.0, _find)
        assert figures(task, outputs, targets)["loss"] == pytest.approx(float(task.loss(outputs, targets)), rel=1e-5)
        assert task.lower_is_better == {"loss"}


def test_what_is_unknown_or_void_counts_for_nothing() -> None:
    labels = task_of("multi-label")
    outputs, targets = drawn(20, 3), choice(2, 20, 3)
    part = targets.clone()
    part[::2, 1] = -100
    known = part != -100
    expected = F.binary_cross_entropy_with_logits(outputs[known], targets[known].float())
    assert float(labels.loss(outputs, part)) == pytest.approx(float(expected))
    pixels, classes = drawn(2, 3, 4, 4), choice(3, 2, 4, 4)
    void = classes.clone()
    void[:, :2] = 255
    for task, target in ((task_of("segmentation"), void), (task_of("segmentation", void=7), void.where(void < 9, 7))):
        task.check(pixels, target)
        assert float(task.loss(pixels, target)) == pytest.approx(
            float(F.cross_entropy(pixels[:, :, 2:], classes[:, 2:]))
        )
        assert figures(task, pixels, target, 2)["accuracy"] == pytest.approx(
            100 * float((pixels.argmax(1) == classes)[:, 2:].float().mean())
        )


def test_logits_of_another_size_are_brought_to_the_masks() -> None:
    task = task_of("segmentation")
    outputs, targets = drawn(2, 3, 4, 4), choice(3, 2, 8, 8)
    task.check(outputs, targets)
    grown = F.interpolate(outputs, (8, 8), mode="bilinear")
    assert float(task.loss(outputs, targets)) == pytest.approx(float(F.cross_entropy(grown, targets)))


def test_shares_of_classes() -> None:
    task, outputs = Task(), drawn(4, 3)
    shares = drawn(4, 3, seed=5).softmax(1)
    task.check(outputs, shares)
    assert float(task.loss(outputs, shares)) == pytest.approx(float(F.cross_entropy(outputs, shares)))
    assert figures(task, shares.log(), shares, 1) == {"accuracy": 100.0}
    with pytest.raises(DataError, match=r'do not sum to 1; several classes at once are data.task = "multi-label"'):
        task.check(outputs, torch.ones(4, 3))


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "said"),
    [
        ("multi-label", drawn(4, 3), choice(2, 4), r"gives \(4, 3\) for targets \(4,\); expected \(batch, labels\)"),
        ("multi-label", drawn(4, 3), choice(4, 4, 3) + 2, "a target is [2-5]; expected 1 or 0 for each label, or -100"),
        ("regression", drawn(4, 3), drawn(4), r"gives \(4, 3\) for targets \(4,\); expected a target for each number"),
        ("regression", drawn(4), torch.tensor([0, 1, math.nan, 1]), "a target is not finite; leave its sample out"),
        ("regression", choice(3, 4), drawn(4), "the model gives int64; expected floating-point numbers"),
        (
            "segmentation",
            drawn(2, 3, 4, 4),
            choice(3, 2),
            r"expected \(batch, classes, height, width\) and \(batch, hei",
        ),
        ("segmentation", drawn(2, 3, 4, 4), choice(2, 2, 4, 4) + 20, "label 2[01] is out of range: .* data.void = 2"),
        ("classification", drawn(4, 3), drawn(4), 'the targets are float32; .* data.task = "regression"'),
        (
            "classification",
            drawn(4, 3),
            {"a": drawn(4)},
            "the targets are a dict; .* expects a tensor: give train.loss",
        ),
        ("embedding", drawn(4, 3), drawn(4, 2), r"gives \[\(4, 3\)\], the dense model \[\(4, 2\)\]"),
        ("distill", choice(2, 4), choice(2, 4), "without a floating-point tensor to imitate"),
    ],
)
def test_targets_that_do_not_fit(name, outputs, targets, said) -> None:
    with pytest.raises(DataError, match=said):
        task_of(name).check(outputs, targets)


def test_distances_to_the_dense_outputs() -> None:
    given: Any
    wanted: Any
    given, wanted = (
        {"a": drawn(4, 3), "b": (drawn(4, 2, 5), choice(3, 4))},
        {"a": drawn(4, 3, seed=8), "b": (drawn(4, 2, 5, seed=9), None)},
    )
    for loss, expected in (
        ("cosine", lambda a, b: 1 - F.cosine_similarity(a, b, dim=-1).mean()),
        ("mse", lambda a, b: (a - b).square().mean() / b.square().mean()),
        ("kl", lambda a, b: (b.softmax(-1) * (b.log_softmax(-1) - a.log_softmax(-1))).sum(-1).mean()),
    ):
        task = with_loss(task_of("distill"), loss, 0.0, _find)
        mean = (expected(given["a"], wanted["a"]) + expected(given["b"][0], wanted["b"][0])) / 2
        assert float(task.loss(given, wanted)) == pytest.approx(float(mean), rel=1e-5)
        assert float(task.loss(wanted, wanted)) == pytest.approx(0.0, abs=1e-6)
    one = task_of("distill", output="a")
    assert float(one.loss(given, wanted)) == pytest.approx(
        float((given["a"] - wanted["a"]).square().mean() / wanted["a"].square().mean())
    )
    scores = task_of("distill", ["cosine", "difference", "mse", "kl"]).scores()
    scores.add(wanted, wanted)
    assert scores.figures() == pytest.approx({"cosine": 100.0, "difference": 0.0, "mse": 0.0, "kl": 0.0}, abs=1e-4)


def test_teachers_of_labels_and_numbers() -> None:
    labels, student, teacher = task_of("multi-label"), drawn(4, 3), drawn(4, 3, seed=4)
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert float(labels.distillation(student, teacher, None, 2.0)) == pytest.approx(4 * float(kl.mean()), rel=1e-4)
    numbers = task_of("regression").distillation(student, teacher, None, 2.0)
    assert float(numbers) == pytest.approx(float((student - teacher).square().mean()))


@pytest.mark.parametrize(
    ("name", "metrics", "said"),
    [
        ("counting", (), 'data.task: "counting" is not known; known are classification, multi-label, regression, segm'),
        (
            "regression",
            ["accuracy"],
            'data.metrics: "accuracy" is not known to data.task = "regression"; known are mae',
        ),
        ("classification", ["torchmetrics:ConfusionMatrix"], "refuses {}: .*arguments = {"),
        (
            "regression",
            ["torchmetrics:MeanMetric"],
            "does not say whether more of it is better; .* lower_is_better = true",
        ),
    ],
)
def test_tasks_and_metrics_that_are_none(name, metrics, said) -> None:
    pytest.importorskip("torchmetrics")
    with pytest.raises(RecipeError, match=said):
        task_of(name, metrics, own=_find)
    if "MeanMetric" in str(metrics):
        known = task_of(name, [Named(metrics[0], None, True)], own=_find)
        assert known.lower_is_better == {"MeanMetric"}


def test_a_metric_that_computes_many_numbers() -> None:
    pytest.importorskip("torchmetrics")
    named = Named("torchmetrics.classification:MulticlassF1Score", {"num_classes": 3, "average": "none"})
    with pytest.raises(RecipeError, match=r"it computes \(3,\) numbers; expected one number"):
        figures(task_of("classification", [named], own=_find), drawn(9, 3), choice(3, 9))


@pytest.mark.parametrize(
    ("task", "loss", "smoothing", "said"),
    [
        ("classification", "huber", 0.0, 'has no loss "huber"; it has cross-entropy; others are "module:callable"'),
        ("regression", "model", 0.1, "train.label_smoothing: train.loss = 'model' does not read it"),
        ("regression", None, 0.1, "train.label_smoothing: data.task = 'regression' does not read it"),
    ],
)
def test_losses_that_a_task_has_not(task, loss, smoothing, said) -> None:
    with pytest.raises(RecipeError, match=said):
        with_loss(task_of(task), loss, smoothing, _find)


def test_the_loss_that_a_model_returns() -> None:
    two = torch.tensor(2.0)
    for outputs in (two, {"loss": two, "logits": drawn(2, 3)}, {"box": two / 2, "class": two / 2}, (two, drawn(2))):
        assert float(loss_in(outputs)) == 2.0
    with pytest.raises(DataError, match=r"train.loss: the model returns output \(2, 3\), and no loss; expected"):
        loss_in(drawn(2, 3))


def test_what_a_sample_is_said_to_be() -> None:
    said = task_of("multi-label").answer(torch.tensor([[3.0, -2.0, 1.0]]), ("cat", "dog", "owl"))
    assert said is not None and list(said.values) == ["cat", "owl"] and said.shares
    assert list(task_of("multi-label").answer(torch.tensor([[-3.0, -2.0]]), ()).values) == ["1"]  # type: ignore[union-attr]
    assert task_of("regression").answer(torch.tensor([[1.5]]), ()).values == {"": 1.5}  # type: ignore[union-attr]
    mask = task_of("segmentation").answer(torch.stack([torch.eye(2), 1 - torch.eye(2)])[None], ("paper", "ink"))
    assert mask is not None and mask.mask is not None and mask.mask.tolist() == [[0, 1], [1, 0]]
    assert mask.values == {"paper": 0.5, "ink": 0.5} and Task().answer(drawn(1, 3), ()) is None


def test_every_task_names_its_metrics_and_their_directions() -> None:
    for name in TASKS:
        task = task_of(name)
        assert task.name == name and task.metrics
    lower = {name for table in (CLASSES, LABELS, NUMBERS) for name, m in table.items() if m.lower_is_better}
    assert lower == {"loss", "perplexity", "mae", "rmse", "mse"}


def test_figures_for_people() -> None:
    assert [figure(v) for v in (98.061, 1.0, 0.0, 0.91624, 0.00031234)] == [
        "98.06",
        "1.00",
        "0.00",
        "0.9162",
        "0.0003123",
    ]
    assert [signed(v) for v in (-0.4732, 0.0, 0.0412)] == ["-0.47", "+0.00", "+0.0412"]


# batches of a person's own


@pytest.mark.parametrize(
    ("item", "inputs", "targets"),
    [
        ((1, 2), (1,), 2),
        ([1, 2, 3], (1, 2), 3),
        (((1, 2), 3), (1, 2), 3),
        ({"x": 1, "labels": 2}, {"x": 1}, 2),
        ({"x": 1, "target": 2}, {"x": 1}, 2),
        ((1, {"boxes": [2, 3]}), (1,), {"boxes": [2, 3]}),
    ],
)
def test_batches_of_any_form(item, inputs, targets) -> None:
    def as_tensors(value):
        return pytree.tree_map(lambda number: torch.tensor([float(number)]), value)

    given, wanted = BatchReader()(as_tensors(item), CPU)
    assert pytree.tree_map(float, given) == inputs and pytree.tree_map(float, wanted) == targets
    given, wanted = BatchReader(taught=True)(as_tensors(item), CPU)
    assert pytree.tree_map(float, given) == inputs and wanted is None


def test_batches_without_targets() -> None:
    read = BatchReader(taught=True)
    for item in (drawn(2, 3), (drawn(2, 3),), {"x": drawn(2, 3)}):
        inputs, targets = read(item, CPU)
        assert targets is None and len(inputs) == 1
    with pytest.raises(DataError, match="a batch has 1 parts"):
        BatchReader()((drawn(2),), CPU)


class Stream(IterableDataset):
    """Numbers from 0 to 6, one a sample."""

    def __iter__(self):
        return iter((torch.tensor([float(i)]), torch.tensor(0)) for i in range(7))


def test_streams_go_on_from_epoch_to_epoch() -> None:
    def made() -> LoaderBatches:
        return LoaderBatches(DataLoader(Stream(), batch_size=2), CPU, 0, steps=3)

    def numbers(batches: LoaderBatches, epoch: int) -> list[float]:
        return [value for inputs, _ in batches.epoch(epoch) for value in tensors_in(inputs)[0].flatten().tolist()]

    stream = made()
    whole = [numbers(stream, epoch) for epoch in range(3)]
    assert len(stream) == 3 and whole == [[0, 1, 2, 3, 4, 5], [6, 0, 1, 2, 3], [4, 5, 6, 0, 1]]
    assert [numbers(made(), epoch) for epoch in (2, 1)] == [whole[2], whole[1]]  # as after a resume
    assert numbers(stream, 0) == whole[0]
    assert len(LoaderBatches(DataLoader(Stream(), batch_size=2), CPU, None)) == 4  # test data are counted
    with pytest.raises(DataError, match=r"has no length; say how many batches are an epoch: data.steps_per_epoch"):
        LoaderBatches(DataLoader(Stream(), batch_size=2), CPU, 0)
    with pytest.raises(DataError, match="can be read once; return what can be iterated over anew"):
        LoaderBatches(iter([1]), CPU, 0)


# runs


OWN = """
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import TensorDataset
from neighbour import WIDTH
from sslprune import Metric, Task
from sslprune.data import digits

class Net(nn.Module):
    def __init__(self, outputs=1, loss=False):
        super().__init__()
        self.a, self.b = nn.Linear(64, WIDTH), nn.Linear(WIDTH, outputs)
        self.loss = loss
    def forward(self, x, labels=None):
        y = self.b(self.a(x.flatten(1)).relu())
        if labels is None:
            return {"y": y, "z": y * 2}
        return {"loss": nn.functional.mse_loss(y[:, 0], labels.float())}

def data(kind="number"):
    def part(images, count):
        x, y = images.pixels[:count].float() / 255, images.labels[:count]
        wanted = {"number": y.float(), "none": y, "many": nn.functional.one_hot(y, 10)}[kind]
        return TensorDataset(x, wanted)
    train, test = digits()
    return part(train, 512), part(test, 100)

def squared(outputs, targets):
    return (outputs["y"][:, 0] - targets).square().mean()

def bad(outputs, targets):
    return outputs["y"]

class Twice(Task):
    def loss(self, outputs, targets, label_smoothing=0.0):
        return (outputs["z"][:, 0] - targets).square().mean()

def twice():
    def sums(outputs, targets):
        off = (outputs["z"][:, 0] - targets).abs()
        return torch.stack([off.sum(), off.new_tensor(len(off))])
    off = Metric(sums, lower_is_better=True, raw=True)
    return Twice("twice", {"off": off})
"""
RECIPE = """
model = { factory = "own.py:Net" }
prune = [{ kind = "neurons" }]
budget = { macs = 0.5 }
schedule = { sparse = "2ep", heal = "1ep" }
train = { lr = 0.01 }
bench = { threads = [1] }
lasso = { decay = 4, interval = 2 }
[data]
factory = "own.py:data"
output = "y"
batch_size = 64
eval_batch_size = 100
"""


@pytest.fixture()
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neighbour.py").write_text("WIDTH = 16\n")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own.toml").write_text(RECIPE)
    return tmp_path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def sets(**values: str) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


@pytest.mark.parametrize(
    ("values", "metrics", "lower"),
    [
        ({"data__task": "regression"}, {"mae", "rmse", "r2"}, ["mae", "rmse"]),
        ({"data__task": "own.py:twice"}, {"off"}, ["off"]),
        ({"data__task": "distill", "data__arguments": '{kind="none"}'}, {"difference", "cosine"}, ["difference"]),
    ],
    ids=["regression", "own", "distill"],
)
def test_runs_to_the_report(values, metrics, lower, place: Path) -> None:
    values = {**values} if values["data__task"] != "distill" else {**values, "data__output": '"z"'}
    result = invoke("run", "own.toml", *sets(**values))
    assert result.exit_code == 0, result.output
    report = json.loads((place / "runs/own/report.json").read_text())
    assert set(report["dense"]["metrics"]) == metrics and report["lower_is_better"] == lower
    if values["data__task"] == "regression":  # a sample of a factory's loaders, by its number
        said = invoke("predict", "runs/own", "3", "--json")
        assert said.exit_code == 0 and json.loads(said.stdout)[0]["repacked"]["values"], said.output
    assert report["repacked"]["onnx"]["metrics"] == pytest.approx(report["repacked"]["metrics"], rel=1e-3, abs=1e-3)
    if values["data__task"] == "distill":
        assert report["dense"]["metrics"] == pytest.approx({"difference": 0.0, "cosine": 100.0}, abs=1e-3)
        assert report["repacked"]["metrics"]["difference"] > 0.1


@pytest.mark.parametrize("loss", ["own.py:squared", "model"])
def test_losses_of_ones_own(loss: str, place: Path) -> None:
    result = invoke(
        "train", "own.toml", *sets(data__task="regression", train__loss=loss, data__metrics='["mae","loss"]')
    )
    assert result.exit_code == 0, result.output
    usual = invoke("train", "own.toml", "--force", *sets(data__task="regression", data__metrics='["mae","loss"]'))
    lines = [[line for line in given.output.splitlines() if "heal 1/1" in line] for given in (result, usual)]
    assert lines[0] and lines[0][0].rpartition(",")[0] == lines[1][0].rpartition(",")[0]  # but for the seconds


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"train__loss": "own.py:bad"},
            r"train.loss: .*own.py:bad returned \(64, 1\); expected a tensor of one number",
        ),
        (
            {"train__loss": "model", "model__factory": "sslprune.zoo:digits_cnn", "prune__0__kind": "filters"},
            'train.loss = "model": the model, given its targ',
        ),
        ({"train__loss": "own.py:none"}, r"train.loss: .*own.py has no callable none"),
        ({"data__task": "own.py:squared"}, "data.task: .*own.py:squared failed: TypeError: "),
        ({"data__task": "own.py:Net"}, "data.task: its callable returned Net; expected a sslprune.Task"),
        ({"data__task": "distill", "schedule__dense": "1ep"}, 'schedule.dense: data.task = "distill" learns from the'),
        (
            {"data__workers": "1", "data__mean": "[0.1]"},
            "data.mean: .*own.py:data returns datasets, which have their own",
        ),
        ({"train__loss": "model", "schedule__shrink": "1ep"}, "schedule.shrink: what has shrunk returns no loss"),
        ({"data__void": "3"}, 'data.void: data.task = "regression" has no classes; leave it out'),
        (
            {"data__metrics": '["acc"]'},
            'data.metrics: "acc" is not known to data.task = "regression"; known are mae, rm',
        ),
        ({"data__arguments": '{kind="many"}'}, r"the model gives \(64, 1\) for targets \(64, 10\); expected a target"),
    ],
)
def test_mistakes_in_one_line(values, said, place: Path) -> None:
    result = invoke("run", "own.toml", *sets(**{"data__task": "regression", **values}))
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and re.search(said, last), result.output
    assert "Traceback" not in result.output


def test_what_is_taught_is_left_alone_otherwise() -> None:
    recipe: Recipe = parse_recipe(
        {
            "model": {"factory": "sslprune.zoo:digits_cnn", "arguments": {"width": 4}},
            "prune": [{"kind": "filters"}],
            "data": {"factory": "sslprune.data:digits", "eval_batch_size": 360},
            "budget": {"macs": 0.5},
            "schedule": {"sparse": "1ep", "heal": "1ep"},
        }
    )
    data: Data = build_data(recipe)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert data.taught_by(net) is data
    taught = build_data(
        recipe.model_copy(update={"data": recipe.data.model_copy(update={"task": "distill"})})
    ).taught_by(net)
    assert evaluate(net, taught.test, taught.task)["cosine"] == pytest.approx(100.0)
    before = evaluate(net, taught.test, taught.task)
    with torch.no_grad():
        next(net.parameters()).mul_(-1)
    after = evaluate(net, taught.test, taught.task)
    assert before != after and after["cosine"] < 50


def test_a_metric_over_batches_is_no_mean_of_batches() -> None:
    kept = Metric(lambda given, targets: given.double(), lambda all_: float(all_.max()), whole=True)
    meter = kept.begin()
    for part in (torch.tensor([1.0, 5.0]), torch.tensor([2.0])):
        meter.update(part, None)
    assert meter.compute() == 5.0


def test_a_rehearsal_without_labels(place: Path) -> None:
    words = sets(data__task="distill", data__output='"z"', data__arguments='{kind="none"}')
    result = invoke("run", "own.toml", "--dry-run", *words)
    assert result.exit_code == 0 and "sparse" in result.output, result.output
