"""Ties: as many groups of each layer, the same ones, or whole layers; chosen so by training and by calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sslprune
from sslprune.choose.blocks import Goal, goal_of
from sslprune.choose.constraints import constraints_of
from sslprune.choose.landing import choose
from sslprune.choose.sections import select_with_sections
from sslprune.choose.stacks import blocks_of_stacks
from sslprune.cost.counts import Cost
from sslprune.errors import RecipeError
from sslprune.recipe import BudgetSection, PruneSection
from sslprune.values.selection import Selection


class Layer(nn.Module):
    """Attention in one head, then a feed-forward part of ``inner`` neurons."""

    def __init__(self, inner: int = 24) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(8, 6), nn.Linear(6, 8)
        self.fc1, self.fc2 = nn.Linear(8, inner), nn.Linear(inner, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.out(torch.tanh(self.mix(x)))
        return x + self.fc2(torch.tanh(self.fc1(x)))


class Stack(nn.Module):
    def __init__(self, inner: tuple[int, ...] = (24, 24, 24), pooled: int = 10) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(n) for n in inner)
        self.pooler, self.head = nn.Linear(8, pooled), nn.Linear(pooled, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(torch.tanh(self.pooler(x)))


@pytest.fixture(scope="module")
def stack() -> tuple[nn.Module, Any, list[Any]]:
    torch.manual_seed(0)
    model = Stack()
    program = sslprune.trace(model, (torch.randn(4, 8),))
    return model, program, sslprune.find_axes(program)


def goal(stack, fraction: float, *sections: dict[str, Any]) -> tuple[Goal, list[np.ndarray]]:
    _, program, axes = stack
    chosen = select_with_sections(axes, [PruneSection(**section) for section in sections])
    made = goal_of(chosen, Cost(program, [a for a, _ in chosen]), BudgetSection(macs=(fraction,), round_to=1), 0.0)
    random = np.random.default_rng(3)
    return made, [random.random(axis.size) * (1 + 4 * i) for i, (axis, _) in enumerate(chosen)]


INNER = {"kind": "neurons", "include": ["*fc1"]}


@pytest.mark.parametrize("fraction", [0.8, 0.5])
def test_layers_lose_as_many_each_and_their_own(stack, fraction):
    made, evidence = goal(stack, fraction, {**INNER, "tie": "layers"})
    selection = choose(made, evidence)
    assert len({selection.left(i) for i in range(3)}) == 1
    assert made.limit - 3 * 16 < made.of(selection) <= made.limit  # a neuron of each layer is 48 MACs
    for mask, carried in zip(selection, evidence, strict=True):  # what carries least, in each by itself
        assert set(np.flatnonzero(mask)) == set(np.argsort(carried)[: mask.sum()])
    free, _ = goal(stack, fraction, INNER)
    assert len({choose(free, evidence).left(i) for i in range(3)}) > 1


def test_indices_are_the_same_in_each_by_the_sum_of_what_they_carry(stack):
    made, evidence = goal(stack, 0.7, {**INNER, "tie": "indices"})
    one, two, three = choose(made, evidence)
    assert (one == two).all() and (two == three).all() and one.any()
    assert set(np.flatnonzero(one)) == set(np.argsort(sum(evidence))[: one.sum()])


def test_blocks_go_whole_and_take_their_neurons_along(stack):
    made, evidence = goal(stack, 0.4, {"kind": "layers", "tie": "block"}, {**INNER, "tie": "layers"})
    axes = made.constraints.axes
    evidence = [values / 50 if axis.size == 1 and "layers.1" in axis.name else values for axis, values in
                zip(axes, evidence, strict=True)]  # fmt: skip
    selection = choose(made, evidence)
    branches = {axis.name: bool(selection[axis].all()) for axis in axes if axis.size == 1}
    assert branches["layers.1/layers"] and branches["layers.1/layers.2"]
    assert all(branches[f"layers.{i}/layers"] == branches[f"layers.{i}/layers.2"] for i in range(3))
    assert len({selection.left(axis) for axis in axes if axis.size > 1}) == 1
    assert made.of(selection) <= made.limit


def test_what_begins_uneven_is_brought_to_the_tie(stack):
    made, evidence = goal(stack, 0.6, {**INNER, "tie": "layers"})
    start = Selection.none(made.constraints.axes).plus({0: np.arange(5), 1: np.arange(3), 2: np.arange(2)})
    kept = made.constraints.kept_to(start, start.plus({}))
    assert [kept.left(i) for i in range(3)] == [22, 22, 22] and kept <= start
    assert len({choose(made, evidence, start).left(i) for i in range(3)}) == 1
    zeros = Selection.none(start.axes).plus({0: np.arange(9)})
    chosen = Selection.none(start.axes).plus({0: np.array([20]), 1: np.array([4]), 2: np.array([6])})
    assert made.constraints.kept_to(chosen | zeros, chosen) == chosen
    same, _ = goal(stack, 0.6, {**INNER, "tie": "indices"})
    assert [mask.nonzero()[0].tolist() for mask in same.constraints.kept_to(start)] == [[0, 1]] * 3


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"kind": "neurons", "tie": "layers"},
            r"prune\.0\.tie: layers.0.mix has 6 groups, layers.0.fc1 24 .*exclude",
        ),
        ({"kind": "neurons", "include": ["*fc1", "pooler"], "tie": "indices"}, r"fc1 has 24 groups, pooler 10 "),
        ({"kind": "layers", "tie": "layers"}, r'prune\.0\.tie: "layers" is for axes of several .* take "block"'),
        ({**INNER, "tie": "block"}, r'"block" is for whole branches, which kind "neurons" has none'),
    ],
)
def test_what_cannot_be_tied_is_refused_in_words(stack, section, said):
    with pytest.raises(RecipeError, match=said):
        select_with_sections(stack[2], [PruneSection(**section)])


def test_a_sum_keeps_an_operand():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}) for _ in range(2))

        def forward(self, x):
            for one, two in map(nn.Module.children, self.blocks):
                x = one(torch.relu(x)) + two(x)
            return x

    axes = sslprune.find_axes(sslprune.trace(Two(), (torch.randn(2, 6),)))
    with pytest.raises(RecipeError, match=r"blocks\.0\.a/layers and blocks\.0\.b cannot go together: .*exclude"):
        select_with_sections(axes, [PruneSection(kind="layers", tie="block")])


def test_lambda_knows_no_ties(stack):
    with pytest.raises(RecipeError, match=r"prune\.0\.tie: a given lasso\.strength"):
        sslprune.Sparsity(stack[0], (torch.randn(4, 8),), prune={**INNER, "tie": "layers"}, steps=9, strength=1e-3)


@pytest.mark.parametrize("fraction", [0.75, 0.45])
def test_sections_of_several_kinds_are_uniform_each_in_itself(fraction):
    """Heads, neurons and whole layers, each tied by a section of its own: a recipe for `from_pretrained`."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MistralConfig(vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                        num_key_value_heads=4, intermediate_size=24, use_cache=False)  # fmt: skip
    program = sslprune.trace(transformers.MistralForCausalLM(config), (torch.arange(10).view(2, 5),))
    ties = {"heads": "layers", "neurons": "layers", "layers": "block"}
    sections = [PruneSection.model_validate({"kind": kind, "tie": tie}) for kind, tie in ties.items()]
    chosen = select_with_sections(sslprune.find_axes(program), sections)
    axes = [axis for axis, _ in chosen]
    made = goal_of(chosen, Cost(program, axes), BudgetSection(macs=(fraction,), round_to=1), 0.0)
    random = np.random.default_rng(1)
    evidence = [random.random(axis.size) * (1 + i) for i, axis in enumerate(axes)]
    selection = choose(made, evidence)
    assert 0 < made.of(selection) <= made.limit
    left = {kind: [selection.left(axis) for axis in axes if axis.kind == kind] for kind in ties}
    assert len(set(left["heads"])) == len(set(left["neurons"])) == 1 and len(left["heads"]) == 3
    layers = dict(zip([axis.name for axis in axes if axis.kind == "layers"], left["layers"], strict=True))
    assert len(layers) == 6 and all(
        len({count for name, count in layers.items() if f"layers.{i}/" in name}) == 1 for i in range(3)
    )
    assert min(left["heads"] + left["neurons"]) < 24


def test_an_axis_goes_by_the_first_section_that_names_it(stack):
    """Two sections of one kind tie each their own, and what the first has taken is not in the second's tie."""
    made, evidence = goal(
        stack, 0.6, {**INNER, "tie": "layers"}, {"kind": "neurons", "exclude": ["pooler"], "tie": "indices"}
    )
    names = [axis.name for axis in made.constraints.axes]
    tied = [({names[i] for i in tie.axes}, tie.alike) for tie in made.constraints.ties]
    assert tied == [({f"layers.{i}.mix" for i in range(3)}, True), ({f"layers.{i}.fc1" for i in range(3)}, False)]
    selection = choose(made, evidence)
    mix = [selection[i].tolist() for i, name in enumerate(names) if name.endswith("mix")]
    assert mix[0] == mix[1] == mix[2]
    assert len({selection.left(i) for i, name in enumerate(names) if name.endswith("fc1")}) == 1


def test_grouped_queries_are_tied_each_with_their_like():
    transformers = pytest.importorskip("transformers")
    config = transformers.PhiConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                    num_key_value_heads=2, intermediate_size=16, use_cache=False)  # fmt: skip
    program = sslprune.trace(transformers.PhiForCausalLM(config), (torch.arange(10).view(2, 5),))
    axes = sslprune.find_axes(program)

    def ties(kind: str) -> list[set[str]]:
        chosen = select_with_sections(axes, [PruneSection(kind=kind, tie="layers")])
        return [{chosen[i][0].name for i in made.axes} for made in constraints_of(chosen, 0, 1).ties]

    query = "model.layers.{}.self_attn.q_proj/heads"
    assert ties("heads") == [{query.format(i) + end for i in (0, 1)} for end in ("", ".2")]
    assert [len(names) for names in ties("head_dim")] == [2]  # the rotated part is one axis anyway
    chosen = select_with_sections(axes, [PruneSection(kind="layers", tie="block")])  # attention and mlp side by side
    assert [axis.name for axis, _ in chosen] == ["model.layers.0", "model.layers.1"]


def test_blocks_of_a_decoder_are_its_layers_and_not_their_numbered_parts():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3,
                                   use_cache=False)  # fmt: skip
    ids = torch.arange(10).view(2, 5)
    program = sslprune.trace(transformers.T5ForConditionalGeneration(config), (ids,), {"decoder_input_ids": ids})
    axes = [axis for axis in sslprune.find_axes(program) if axis.kind == "layers"]
    found = [{axes[i].name.rpartition(".layer")[0] for i in block} for block in blocks_of_stacks(axes)]
    assert found == [{f"{side}.block.{i}"} for side in ("encoder", "decoder") for i in (0, 1)]


def trained(tie: str, **settings: Any) -> sslprune.Sparsity:
    torch.manual_seed(1)
    model = Stack().train()
    x = torch.randn(256, 8)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    sparsity = sslprune.Sparsity(model, (x[:4],), steps=90, round_to=1, prune=[{**INNER, "tie": tie}], **settings)
    for step in range(90):
        loss = nn.functional.cross_entropy(sparsity.trained(x), y)
        optimizer.zero_grad()
        loss.backward()
        sparsity.observe(loss)
        optimizer.step()
        sparsity.step(1e-2)
        if step % 30 == 29:
            sparsity.shrink(optimizer)
    return sparsity


@pytest.mark.parametrize("tie", ["layers", "indices"])
def test_training_lands_on_a_uniform_width(tie):
    sparsity = trained(tie, macs=0.6)
    small = sparsity.repack()
    widths = {small.get_parameter(f"layers.{i}.fc1.weight").shape[0] for i in range(3)}
    assert len(widths) == 1 and widths.pop() < 24
    masks = [sparsity.selection[axis].tolist() for axis in sparsity.axes]
    assert (masks[0] == masks[1] == masks[2]) == (tie == "indices")


def test_calibration_keeps_to_ties():
    torch.manual_seed(2)
    x = torch.randn(64, 8)
    prune: list[dict[str, Any]] = [{**INNER, "tie": "layers"}, {"kind": "layers", "tie": "block"}]
    small = sslprune.calibrate(Stack().eval(), (x[:4],), [x], prune=prune, macs=0.55, round_to=1)
    layers = [{name for name in small.state_dict() if name.startswith(f"layers.{i}.")} for i in range(3)]
    assert all(len(names) in (0, 8) for names in layers)
    assert len({small.get_parameter(f"layers.{i}.fc1.weight").shape[0] for i in range(3) if layers[i]}) == 1
