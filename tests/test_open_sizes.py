"""Inputs with rows of their own: each number of rows stays open by itself, and what is fixed is said."""

from __future__ import annotations

import textwrap
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslprune
from sslprune.export.program import save_program
from sslprune.export.session import open_session
from sslprune.values.compare import difference
from sslprune.values.inputs import counts_rows, random_like, row_counts
from tests.laws import lively_
from tests.test_cli import invoke


class Molecule(nn.Module):
    """Atoms (N, 5), bonds (M, 3) with the two atoms of each, angles (K, 2) with the two bonds of each -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.atom, self.bond, self.angle = nn.Linear(5, 16), nn.Linear(3, 12), nn.Linear(2, 12)
        self.message, self.out = nn.Linear(28, 16), nn.Linear(16, 4)

    def forward(self, atoms: Tensor, bonds: Tensor, ends: Tensor, angles: Tensor, sides: Tensor) -> Tensor:
        bend = F.relu(self.angle(angles))
        edge = self.bond(bonds).index_add(0, sides[:, 0], bend).index_add(0, sides[:, 1], bend)
        node = F.relu(self.atom(atoms))
        sent = self.message(torch.cat([node[ends[:, 0]], F.relu(edge)], 1))
        return self.out(F.relu(torch.zeros_like(node).index_add(0, ends[:, 1], sent) + node))


def molecule(atoms: int, bonds: int, angles: int, seed: int = 0) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    of = lambda rows, below: torch.randint(below, (rows, 2), generator=random)  # noqa: E731
    noise = lambda rows, width: torch.randn(rows, width, generator=random)  # noqa: E731
    return noise(atoms, 5), noise(bonds, 3), of(bonds, atoms), noise(angles, 2), of(angles, bonds)


def shrunk() -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model, args = lively_(Molecule()).eval(), molecule(6, 9, 11)
    program = sslprune.trace(model, args)
    assert program.dynamic_batch and program.notes == () and program.training is not None
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    assert {axis.name for axis in axes} >= {"atom", "angle"}  # the bonds' is the angles'
    for axis in axes:
        sslprune.zero_groups(model, axis, range(axis.size // 2))
    return model, sslprune.repack(model, program, axes).eval(), args


def test_each_number_of_rows_is_open_by_itself(tmp_path: Path) -> None:
    model, small, args = shrunk()
    assert sslprune.export_onnx(small, args, tmp_path / "m.onnx", dynamic_axes={"rows_2": "bonds"}) < 1e-5
    save_program(small, args, tmp_path / "m.pt2")
    session, again = open_session(tmp_path / "m.onnx"), sslprune.load(tmp_path / "m.pt2")
    names = [node.name for node in session.get_inputs()]
    rows = ["batch", "bonds", "bonds", "rows_3", "rows_3"]
    assert [node.shape[0] for node in session.get_inputs()] == rows
    for sizes in ((2, 3, 5), (7, 4, 1), (5, 20, 8)):
        other = molecule(*sizes, seed=1)
        with torch.no_grad():
            expected = model(*other)
            assert difference(expected, small(*other))[1] < 1e-5
            assert difference(expected, again(*other))[1] < 1e-5
        found = session.run(None, {n: v.numpy() for n, v in zip(names, other, strict=True)})[0]
        assert difference(expected, torch.from_numpy(found))[1] < 1e-4
    assert onnx.load(str(tmp_path / "m.onnx")).graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


class Placed(nn.Module):
    """Rows beside the batch that the code fixes, and one row for all."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, table: Tensor, shift: Tensor) -> Tensor:
        first, second, third = table.unbind(0)
        return self.two(F.relu(self.one(x + first * second + third + shift)))


def test_rows_that_the_code_fixes_are_said_and_keep_their_number(tmp_path: Path) -> None:
    model, args = Placed().eval(), (torch.randn(5, 4), torch.randn(3, 4), torch.randn(1, 4))
    program = sslprune.trace(model, args)
    assert program.dynamic_batch and program.closed == {1, 2}
    assert program.notes == (
        "dimension 0 of table is fixed at 3: the model's own code turns it into a number",
        "dimension 0 of shift is fixed at 1: the example has one row there",
    )
    small = sslprune.repack(model, program, [])
    assert sslprune.export_onnx(small, args, tmp_path / "m.onnx") < 1e-5
    shapes = [node.shape[0] for node in open_session(tmp_path / "m.onnx").get_inputs()]
    assert shapes == ["batch", 3, 1]


def test_other_rows_grow_where_entries_may_count_them() -> None:
    args = molecule(6, 9, 11)
    assert row_counts(args) == [6, 9, 11] and counts_rows(args) and not counts_rows(args[:2])
    other = random_like(args, 4)
    atoms, bonds, _, angles, _ = (len(value) for value in other)
    assert [atoms - 6, bonds - 9, angles - 11] == [4, 5, 6]
    assert int(other[2].max()) < atoms and int(other[4].max()) < bonds
    assert [len(value) for value in random_like(args, 4, closed=(1, 2, 3, 4))] == [4, 9, 9, 11, 11]
    assert len(random_like(args[:1], 2)[0]) == 2


DATA = """
    import torch
    from tests.test_open_sizes import Molecule, molecule
    def loaders():
        batches = [molecule(6 + i, 9 + 2 * i, 11 + i, seed=i) for i in range(6)]
        made = [(batch, (batch[0].sum(1) > 0).long()) for batch in batches]
        return made[:4], made[4:]
    def build():
        return Molecule()
    """
RECIPE = """
[model]
factory = "{folder}/graphs.py:build"
[data]
factory = "{folder}/graphs.py:loaders"
[[prune]]
kind = "neurons"
[budget]
macs = 0.7
[schedule]
dense = "4ep"
sparse = "8ep"
heal = "2ep"
[train]
lr = 0.01
[export]
dynamic_axes = {{ rows_2 = "bonds" }}
[bench]
batch_sizes = [1]
repetitions = 30
"""


def test_a_run_of_graphs_goes_all_the_way(tmp_path: Path) -> None:
    (tmp_path / "graphs.py").write_text(textwrap.dedent(DATA))
    (tmp_path / "graphs.toml").write_text(RECIPE.format(folder=tmp_path))
    result = invoke("run", tmp_path / "graphs.toml", "--run", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for file in ("model.onnx", "dense.onnx"):
        shapes = [node.shape[0] for node in open_session(tmp_path / "run" / "export" / file).get_inputs()]
        assert shapes == ["batch", "bonds", "bonds", "rows_3", "rows_3"]
