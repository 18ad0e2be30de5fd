"""Calibration of what people bring: their keywords, their batches, their models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslprune
from sslprune.calibration.calibrate import Calibration, state_of
from sslprune.calibration.lockstep import Lockstep
from sslprune.calibration.samples import collect
from sslprune.choose.blocks import Goal
from sslprune.choose.constraints import Constraints
from sslprune.cost.counts import Cost
from sslprune.errors import CalibrationError, RecipeError
from sslprune.recipe import CalibrateSection
from sslprune.values.tasks import Task


def perceptron(hidden: int = 24) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 5))


def batches(*shape: int, count: int = 4, rows: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, *shape, generator=generator) for _ in range(count)]


def calibrated(model: nn.Module, samples: Any, args: tuple[Any, ...] = (torch.ones(2, 6),), **fields: Any) -> nn.Module:
    settings = {"prune": "neurons", "macs": 0.6, "round_to": 1, **fields}
    return sslprune.calibrate(model, args, samples, **settings)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sampels": 3}, "calibrate.sampels: unknown key"),
        ({"candidates": 0}, "calibrate.candidates: input should be greater"),
        ({"damping": -1}, 'calibrate.damping: expected "auto", or a number from 0; got -1'),
        ({"damping": float("nan")}, 'calibrate.damping: expected "auto"'),
        ({"fraction": 0.5}, "calibrate.fraction: nothing is trained after it"),
        ({"macs": None}, "give macs or parameters"),
        ({"seed": 1.5}, "seed: input should be a valid integer"),
        ({"seed": -1}, "seed: input should be greater"),
        ({"task": "classification"}, "task: str; expected"),
        ({"prune": 3}, "prune.0: "),
    ],
)
def test_a_mistaken_keyword_is_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        calibrated(perceptron(), batches(6), **fields)
    assert said in str(error.value) and "\n" not in str(error.value)


class Named(nn.Module):
    """As Hugging Face's: inputs by name, a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.up, self.down = nn.Embedding(30, 16), nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids) * attention_mask[..., None]
        return {"logits": self.down(F.relu(self.up(x)).mean(1))}


def tokens(rows: int = 32, most: int = 30) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(most, (rows, 7)), "attention_mask": torch.ones(rows, 7, dtype=torch.long)}


def test_named_inputs_are_matched_by_their_names() -> None:
    torch.manual_seed(2)
    model, ordered = Named(), [tokens() for _ in range(4)]
    found = [
        calibrated(model, given, (), kwargs=tokens(2))
        for given in (ordered, [dict(reversed(batch.items())) for batch in ordered])
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in found), strict=True))


@pytest.mark.parametrize(
    ("batch", "by_name", "said"),
    [
        (
            lambda: {"ids": tokens()["input_ids"], "attention_mask": tokens()["attention_mask"]},
            True,
            "a batch names ids",
        ),
        (lambda: {**tokens(), "labels": torch.zeros(32)}, True, "labels; the model was traced with the inputs by name"),
        (tokens, False, "traced with inputs without names"),
        (lambda: {"input_ids": tokens()["input_ids"]}, True, r"a batch of int64 \(32, 7\)"),
        (lambda: {**tokens(), "attention_mask": tokens(16)["attention_mask"]}, True, "as many rows in each"),
        (
            lambda: {**tokens(), "input_ids": torch.full((32, 7), 99)},
            True,
            "embedding cannot be computed of them: index",
        ),
        (lambda: {**tokens(), "input_ids": tokens()["input_ids"].int()}, True, "int32"),
    ],
)
def test_batches_of_other_inputs_are_refused(batch: Callable[[], Any], by_name: bool, said: str) -> None:
    example = tokens(2)
    args, kwargs = ((), example) if by_name else (tuple(example.values()), {})
    with pytest.raises(CalibrationError, match=said):
        calibrated(Named(), [batch() for _ in range(4)], args, kwargs=kwargs)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (None, "samples: NoneType; expected batches"),
        (7, "samples: int; expected batches"),
        ([torch.ones(8, 6, device="meta")] * 4, "on meta"),
        ([torch.eye(6).to_sparse()] * 4, "sparse_coo"),
        ([batch.double() for batch in batches(6)], "float64"),
        ([1e30 * batch for batch in batches(6)], "overflow; scale the inputs"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(samples: Any, said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        calibrated(perceptron(), samples)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor, by: float) -> Tensor:
        return self.inner(x) * by


def test_a_number_that_the_graph_holds_has_to_be_the_same() -> None:
    args = (torch.ones(2, 6), 2.0)
    calibrated(Scaled(), [(batch, 2.0) for batch in batches(6)], args)
    with pytest.raises(CalibrationError, match=r"\(32, 6\), 3\.0; the model was traced with .* 2\.0"):
        calibrated(Scaled(), [(batch, 3.0) for batch in batches(6)], args)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.view(4, 6)) + x.new_zeros(4, 5)


def test_a_batch_of_one_size_is_named() -> None:
    calibrated(FixedBatch(), batches(6, rows=9), (torch.ones(4, 6),))
    with pytest.raises(CalibrationError, match=r"samples: 0 came; .* of 4 rows each"):
        calibrated(FixedBatch(), batches(6, rows=3), (torch.ones(4, 6),))


class Beside(nn.Module):
    """An input that is no batch: as many numbers as a batch may have rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return self.inner(x) + table.mean()


def test_an_input_that_is_no_batch_stays_whole() -> None:
    table = torch.arange(100.0)
    program = sslprune.trace(Beside().eval(), (torch.ones(2, 6), table))
    found = collect(program, [(torch.ones(100, 6), table)] * 2, 150)
    assert [len(leaves[0]) for leaves in found.batches] == [64, 36, 50]
    pieces = [leaves for parts in found.pieces(16) for leaves in parts]
    assert all(torch.equal(leaves[1], table) for leaves in (*found.batches, *pieces))


def test_little_memory_is_kept_to() -> None:
    model = perceptron(300)
    cut, repaired = apart(model, (torch.ones(2, 6),), batches(6), memory=2e4)
    assert 0 < repaired < cut
    program = sslprune.trace(model.eval(), (torch.ones(2, 6),))
    found = collect(program, batches(6), 128, 2e4)
    assert {len(leaves[0]) for leaves in found.batches} == {1}  # 2 x 1,200 bytes alive
    assert {len(leaves[0]) for parts in found.pieces(16) for leaves in parts} == {1}
    wider = collect(program, batches(6), 128, 1e5)
    assert {len(leaves[0]) for leaves in wider.batches} == {2}
    assert {len(leaves[0]) for parts in wider.pieces(16) for leaves in parts} == {2}


class Padded(nn.Module):
    """What padding makes is left out of the output alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.up, self.down = nn.Embedding(30, 16), nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        made = self.down(F.relu(self.up(self.embed(input_ids)))) * attention_mask[..., None]
        return made.sum(1) / attention_mask.sum(1, keepdim=True)


@pytest.mark.parametrize("by_name", [False, True])
def test_padding_does_not_count(by_name: bool) -> None:
    torch.manual_seed(3)
    mask = (torch.arange(7) < torch.randint(2, 6, (32, 1))).long()
    ids = [tokens()["input_ids"] for _ in range(4)]

    def found(padding: int, mask: Tensor) -> list[Tensor]:
        torch.manual_seed(0)
        given = [{"input_ids": i.where(mask_of > 0, padding), "attention_mask": mask} for i in ids]
        example = {name: value[:2] for name, value in given[0].items()}
        samples = given if by_name else [tuple(batch.values()) for batch in given]
        args, kwargs = ((), example) if by_name else (tuple(example.values()), {})
        return list(calibrated(Padded(), samples, args, kwargs=kwargs, max_samples=128).parameters())

    mask_of = mask
    assert all(torch.equal(a, b) for a, b in zip(found(1, mask), found(2, mask), strict=True))
    whole = torch.ones_like(mask)
    assert not all(torch.equal(a, b) for a, b in zip(found(1, whole), found(2, whole), strict=True))


class Split(nn.Module):
    """Values of several tensors, of other strides, types and shapes, alive across a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.first(x).mT.chunk(2, 1)
        mask, few = other > 0, x.double()
        return self.second(one.mT) + (other * mask).sum(1, keepdim=True).mT + few.mean()


def test_values_in_files_are_the_values() -> None:
    model = Split().eval()
    samples = [(torch.randn(4, 300, 64, generator=torch.Generator().manual_seed(i)),) for i in range(3)]
    program = sslprune.trace(model, samples[0])
    dense = state_of(program, model)
    pruned = {n: t * 0.5 if n == "first.weight" else t for n, t in dense.items()}
    order = list(program.evaluation.nodes)
    stops = [node for node in order if node.op == "call_function"]
    expected = [model(*sample) for sample in samples]
    found = []
    for memory in (float("inf"), 0):
        step = Lockstep(order, dense, pruned, stops, memory)
        files: list[int] = []

        def visit(_: object, step: Lockstep = step, files: list[int] = files) -> None:
            files.append(len(step._shelf._files))

        outputs = [leaf for pair in step.run(samples, visit) for side in pair for leaf in side]
        assert all(torch.equal(a, b) for a, b in zip(outputs[::2], expected, strict=True))
        found.append(outputs)
        assert (max(files) >= 3 if memory == 0 else not any(files)) and not step._shelf._files
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_folder_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslprune.calibration.shelf.tempfile.tempdir", "/nowhere")
    monkeypatch.setattr("sslprune.calibration.shelf.SMALL", 0)
    with pytest.raises(CalibrationError, match=r"/nowhere cannot hold what the layers make .* No such file .* TMPDIR"):
        apart(perceptron(), (torch.ones(2, 6),), batches(6), memory=100)


class TwoConvolutionsMeet(nn.Module):
    """As a residual network's block that changes its width: what either branch adds, the other could make up for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.short = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1), nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.down(F.relu(self.up(x))) + self.short(x)).mean((2, 3)))


def test_two_branches_may_end_in_one_sum() -> None:
    cut, repaired = apart(TwoConvolutionsMeet(), (torch.randn(2, 3, 6, 6),), batches(3, 6, 6))
    assert 0 < repaired < cut


def apart(
    model: nn.Module, args: tuple[Any, ...], samples: Any, task: Task | None = None, memory: float = float("inf")
) -> tuple[float, float]:
    """The divergences of the model at 0.6 of its cost: as cut, and repaired."""
    program = sslprune.trace(model.eval(), args)
    axes = tuple(axis for axis in sslprune.find_axes(program) if axis.exact and not axis.frozen)
    goal = Goal(Cost(program, axes), Constraints(axes, tuple(1 for _ in axes)), "macs", 0.6)
    section = CalibrateSection(candidates=1)
    found = Calibration(program, state_of(program, model), collect(program, samples, 128, memory), section, task)
    found.memory = memory
    result = found.calibrated(goal)
    return result.cut, result.repaired


class Ends(nn.Module):
    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.end = perceptron(), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.inner(x))


ENDS: dict[str, Callable[[Tensor], Any]] = {
    "one number": lambda y: y.mean(),
    "a class ruled out": lambda y: y.masked_fill(torch.arange(5) == 4, -torch.inf),
    "complex numbers": torch.fft.fft,
    "a constant beside": lambda y: (y, torch.ones(3)),
}


@pytest.mark.parametrize("end", ENDS)
def test_outputs_of_any_kind_are_compared(end: str) -> None:
    cut, repaired = apart(Ends(ENDS[end]), (torch.ones(2, 6),), batches(6))
    assert 0 < repaired < cut < 100


def test_a_class_that_is_ruled_out_counts_for_nothing() -> None:
    cut, repaired = apart(Ends(ENDS["a class ruled out"]), (torch.ones(2, 6),), batches(6), Task())
    assert 0 < repaired < cut < 1


@pytest.mark.parametrize("fields", [{}, {"repair": "none"}, {"evidence": "magnitude", "repair": "none"}])
def test_outputs_that_are_not_finite_are_refused(fields: dict[str, Any]) -> None:
    model = perceptron()
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="not finite"):
        calibrated(model, batches(6), **fields)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_repair_works_in_any_precision(dtype: torch.dtype) -> None:
    cut, repaired = apart(perceptron().to(dtype), (torch.ones(2, 6, dtype=dtype),), [b.to(dtype) for b in batches(6)])
    assert 0 < repaired < 0.7 * cut


def test_samples_may_come_from_inference_mode_and_carry_gradients() -> None:
    model = perceptron()
    with torch.inference_mode():
        made = batches(6)
        inside = calibrated(model, made)
    pulled = [batch.requires_grad_() * 1 for batch in batches(6)]
    small = [calibrated(perceptron(), samples) for samples in (batches(6), made, pulled)]
    for other in (*small[1:], inside):
        assert all(torch.equal(a, b) for a, b in zip(small[0].parameters(), other.parameters(), strict=True))
    assert all(batch.grad is None for batch in pulled if batch.is_leaf)


def test_what_is_not_fitted_is_named() -> None:
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), norm(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 5)).eval()
    assert {name.split(".")[0] for name in skipped(model, torch.ones(2, 6))} == {"2"}
    projected = skipped(nn.LSTM(5, 4, proj_size=3, batch_first=True).eval(), torch.ones(2, 6, 5))
    assert projected == dict.fromkeys(("weight_ih_l0", "weight_hh_l0", "weight_hr_l0"), "no one product")


class Reads(nn.Module):
    """A recurrent model with a head."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_fitted(kind: Any, both: bool, layers: int) -> None:
    torch.manual_seed(0)
    model = Reads(kind(6, 16, layers, bidirectional=both, batch_first=True), 16 * (1 + both))
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            for weight in module.parameters():
                weight.data *= 2
    assert not skipped(model.eval(), torch.ones(2, 7, 6))
    samples = batches(7, 6)
    cut, repaired = apart(model, (torch.ones(2, 7, 6),), samples)
    assert 0 < repaired < 0.5 * cut


def test_a_transposed_convolution_is_fitted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 4, 3, stride=2)).eval()
    assert not skipped(model, torch.ones(2, 3, 8, 8))
    cut, repaired = apart(model, (torch.ones(2, 3, 8, 8),), batches(3, 8, 8))
    assert 0 < repaired < 0.9 * cut


class Einsums(nn.Module):
    """Weights that make several dimensions, have one for each head, or read two inputs at once."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        shapes = {"several": ((16, 4, 8), (4, 8, 16)), "batched": ((4, 4, 8), (4, 8, 4)), "bilinear": ((24, 16, 16),)}
        self.kind = kind
        self.weights = nn.ParameterList(0.2 * torch.randn(shape) for shape in shapes[kind])
        self.head = nn.Linear(24 if kind == "bilinear" else 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "bilinear":
            return self.head(F.relu(F.bilinear(x, x, self.weights[0])))
        x = x.view(x.shape[0], 4, 4) if self.kind == "batched" else x
        up, down = ("bhd,hde->bhe", "bhe,hed->bhd") if self.kind == "batched" else ("bd,dhe->bhe", "bhe,hed->bd")
        x = torch.einsum(down, F.relu(torch.einsum(up, x, self.weights[0])), self.weights[1])
        return self.head(x.reshape(x.shape[0], 16))


@pytest.mark.parametrize("kind", ["several", "batched", "bilinear"])
def test_a_weight_that_is_no_matrix_is_left_as_it_is(kind: str) -> None:
    cut, repaired = apart(Einsums(kind), (torch.randn(2, 16),), batches(16))
    assert 0 < repaired < cut


def skipped(model: nn.Module, example: Tensor) -> dict[str, str]:
    from sslprune.calibration.repair import Repair

    program = sslprune.trace(model, (example,))
    dense = state_of(program, model)
    return Repair(program, dense, dict(dense), {}, held=1).skipped


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 24)), nn.ReLU(), nn.Linear(24, 5))
    before = copy.copy(model.state_dict())
    with pytest.raises(CalibrationError, match=r"Sequential cannot be copied: .*weight_norm"):
        calibrated(model, batches(6))
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
