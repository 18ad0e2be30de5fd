"""Whole experts of a mixture: a router that counts them is exact without those on which a gate has closed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

import sslprune
from recipes.digit_experts import Mixture, mixture
from sslprune.cli import app
from sslprune.data import build_data
from sslprune.errors import ExportError, RepackError
from sslprune.recipe import parse_recipe
from sslprune.report import Report
from sslprune.run.directory import RunDirectory
from sslprune.train.prepare import prepare
from sslprune.values.axes import Axis
from sslprune.values.compare import difference
from tests.laws import lively_


class LookedUp(nn.Module):
    """Each row's experts are looked up by their numbers, and the router's shares are sigmoids, counted besides."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 8)
        self.up, self.down = nn.Parameter(torch.randn(8, 6, 5)), nn.Parameter(torch.randn(8, 5, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        every = self.router(x).sigmoid()
        names = every.topk(3, -1).indices
        shares = every.gather(-1, names)
        inside = torch.einsum("bw,bkwh->bkh", x, self.up[names]).relu()
        made = torch.einsum("bkh,bkhw->bkw", inside, self.down[names])
        used = torch.nn.functional.one_hot(names, 8).sum(1).to(x.dtype)
        return (made * shares[..., None]).sum(1), (used @ self.up.sum((1, 2)))[:, None]


class Counted(Mixture):
    """Reads the numbers of the experts themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.router(x).topk(2, -1).indices.sum(-1, keepdim=True)


class Marked(Mixture):
    """One expert is another's by its number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.router(x).topk(2, -1).indices == 3).any(-1, keepdim=True)


def gated(model: nn.Module, *args: Any) -> nn.Module:
    """A copy of ``model`` with the gates that its experts need."""
    names = sslprune.gates_for(sslprune.trace(model, args))
    assert names
    return sslprune.gate_(copy.deepcopy(model), names)


def experts_in(model: nn.Module, *args: Any) -> list[Axis]:
    return [axis for axis in sslprune.find_axes(sslprune.trace(model, args)) if axis.kind == "experts"]


MODELS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "scattered": (lambda: Mixture(6, 5, 8, 2), (3, 6), 2),
    "looked up": (LookedUp, (3, 6), 3),
    "digits": (lambda: mixture(16, 6), (3, 1, 8, 8), 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_masked_is_repacked_is_onnx_with_neurons_in_them(name: str, tmp_path: Path) -> None:
    make, shape, chosen = MODELS[name]
    torch.manual_seed(0)
    whole, x = lively_(make()), torch.randn(shape)
    model = gated(whole, x)
    torch.testing.assert_close(model(x), whole(x), rtol=0, atol=0)
    program = sslprune.trace(model, (x,))
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind in ("experts", "neurons")]
    found = [axis for axis in axes if axis.kind == "experts"]
    assert found and all(axis.least == chosen for axis in found)
    for axis in axes:
        sslprune.zero_groups(model, axis, np.random.default_rng(1).permutation(axis.size)[: axis.size // 2])
    small = sslprune.repack(model, program, axes)
    assert {len(p) for n, p in small.named_parameters() if n.endswith("router.weight")} == {4}
    more = torch.randn(40, *shape[1:])
    for training in (False, True):
        model.train(training), small.train(training)
        assert difference(model(more), small(more))[1] < 1e-5
    assert difference(whole(more), model(more))[1] > 1e-3  # what went was not nothing
    sslprune.export_onnx(small.eval(), (x,), tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    given = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    assert difference(small(more), [torch.from_numpy(part) for part in given])[1] < 1e-4


def test_as_many_stay_as_the_router_picks() -> None:
    model, x = gated(Mixture(6, 5, 8, 3), torch.randn(2, 6)), torch.randn(2, 6)
    program = sslprune.trace(model, (x,))
    (axis,) = (axis for axis in sslprune.find_axes(program) if axis.kind == "experts")
    sslprune.zero_groups(model, axis, range(6))
    small = sslprune.repack(model, program, [axis], verify=False)
    assert len(small.state_dict()["router.weight"]) == 3


def test_without_a_gate_a_choice_is_inexact_and_goes_where_that_is_allowed() -> None:
    model, x = Mixture(6, 5, 8, 2), torch.randn(4, 6)
    program = sslprune.trace(model, (x,))
    (axis,) = (axis for axis in sslprune.find_axes(program) if axis.kind == "experts")
    assert not axis.exact and not axis.frozen and "softmax" in axis.reason
    sslprune.zero_groups(model, axis, [0, 5])
    assert len(sslprune.repack(model, program, [axis]).state_dict()["router.weight"]) == 8
    assert len(sslprune.repack(model, program, [axis], allow_inexact=True).state_dict()["router.weight"]) == 6


@pytest.mark.parametrize("model", [Counted(6, 5, 8, 2), Marked(6, 5, 8, 2)])
def test_who_reads_the_numbers_of_experts_keeps_them(model: nn.Module) -> None:
    (axis,) = experts_in(model, torch.randn(2, 6))
    assert axis.frozen and "it reads which entries were chosen" in axis.reason


def test_a_gate_that_closes_has_finite_gradients_and_a_softer_share() -> None:
    model, x = gated(Mixture(6, 5, 4, 4), torch.randn(2, 6)), torch.randn(9, 6)
    gate = model.get_parameter("router.weight_gate")
    with torch.no_grad():
        gate.copy_(torch.tensor([0.0, 1e-12, 0.5, 1.0]))
    model(x).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert gate.grad is not None and gate.grad[2] != 0


def test_a_weight_that_is_not_there_gets_no_gate() -> None:
    with pytest.raises(RepackError, match=r"router.weights: no such weight"):
        sslprune.gate_(Mixture(6, 5, 8, 2), ["router.weights"])


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Mixtral", {"num_local_experts": 6, "intermediate_size": 24}),
        ("Qwen3Moe", {"num_experts": 6, "moe_intermediate_size": 24, "norm_topk_prob": True, "head_dim": 8}),
    ],
)
def test_published_mixtures(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    try:
        config, factory = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}ForCausalLM")
    except (AttributeError, ImportError, RuntimeError) as error:
        pytest.skip(f"this transformers has no {kind}: {error}")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 64, "use_cache": False}
    torch.manual_seed(0)
    whole = lively_(factory(config(**sizes, **heads, **fields))).eval()
    ids = torch.randint(50, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    names = sslprune.gates_for(sslprune.trace(whole, (), inputs, sequence=64))
    assert list(names) == [f"model.layers.{i}.mlp.gate.weight" for i in range(2)]
    model = sslprune.gate_(whole, names)
    program = sslprune.trace(model, (), inputs, sequence=64)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind in ("experts", "neurons", "heads")]
    assert sum(axis.kind == "experts" and axis.least == 2 for axis in axes) == 2
    for axis in axes:
        sslprune.zero_groups(model, axis, range(axis.size // 2))
    small = sslprune.repack(model, program, axes)
    more = torch.randint(50, (3, 11))
    given = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    assert difference(model(**given), small(**given))[1] < 1e-4
    assert small.state_dict()["model.layers.1.mlp.gate.weight"].shape == (3, 16)
    changed = sslprune.export_huggingface(model, small, tmp_path / "written", (), inputs)
    again = factory.from_pretrained(tmp_path / "written", attn_implementation="eager").eval()
    assert 3 in changed.values() and difference(model(**given).logits, again(**given, use_cache=False).logits)[1] < 1e-5
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.gate.weight_gate")[5] = 0.5
    ajar = sslprune.repack(model, program, axes)
    with pytest.raises(ExportError, match=r"model.layers.1.mlp.gate.weight_gate: .* not all open; let the model heal"):
        sslprune.export_huggingface(model, ajar, tmp_path / "not written", (), inputs)


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"factory": "recipes.digit_experts:mixture", "arguments": {"width": 16, "hidden": 8, "experts": 6}},
        "data": {"factory": "sslprune.data:digits", "batch_size": 64},
        "prune": [{"kind": "experts"}],
        "budget": {"parameters": 0.6},
        "schedule": {"sparse": "2ep", "heal": "1ep"},
        "run": {"device": "cpu"},
        **changes,
    }


def test_a_run_from_the_first_step_to_the_report(tmp_path: Path) -> None:
    file, run = tmp_path / "experts.toml", RunDirectory(tmp_path / "run")
    file.write_text(parse_recipe(recipe(), "x").to_toml())
    told = CliRunner().invoke(app, ["run", str(file), "--run", str(run), "--force"])
    assert told.exit_code == 0, told.output
    report = Report.load(run.report)
    left = {axis.name: axis.after for axis in report.axes}
    assert set(left) == {"blocks.0.router", "blocks.1.router"} and 4 <= sum(left.values()) < 12
    assert report.repacked.onnx is not None and report.repacked.onnx.max_relative < 1e-4
    own = sslprune.apply_plan(mixture(16, 8, 6), run.path).eval()
    gates = [tensor for name, tensor in load_file(run.masked).items() if name.endswith("_gate")]
    assert len(gates) == 2 and all(set(gate.unique().tolist()) == {0.0, 1.0} for gate in gates)
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(own(x), sslprune.load(run.program)(x))
    told = CliRunner().invoke(app, ["inspect", str(file)])
    assert "experts" in told.output and "inexact" not in told.output
    run.training.prepared.write_text('{"x')
    told = CliRunner().invoke(app, ["repack", str(run.path)])
    assert told.exit_code == 1 and "prepared.json: not a plan" in told.output and "--resume" in told.output


def test_a_kind_that_the_model_lacks_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "none.toml"
    file.write_text(parse_recipe(recipe(model={"factory": "sslprune.zoo:digits_cnn"}), "x").to_toml())
    told = CliRunner().invoke(app, ["train", str(file), "--run", str(tmp_path / "run"), "--force"])
    assert told.exit_code == 1
    assert 'no axis is of kind "experts"' in told.output


def test_a_recipe_that_allows_it_to_be_inexact_needs_no_gate() -> None:
    parsed = parse_recipe(recipe(), "x")
    model, data = mixture(16, 8, 6), build_data(parsed)
    assert prepare(model, data, parsed.prune).plan is not None
    allowed = parse_recipe(recipe(prune=[{"kind": "experts", "allow_inexact": True}]), "x")
    assert prepare(model, data, allowed.prune).model is model
