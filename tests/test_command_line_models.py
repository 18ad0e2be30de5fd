"""`sslprune repack` and `sslprune export` on models that read sizes from their input: the library's own results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sslprune
from scripts.coverage_run import command, write_run
from sslprune.cost.counts import Cost
from sslprune.removal.plan import read_plan
from sslprune.report import Report
from sslprune.train.checkpoint import weights_of
from sslprune.values.selection import Selection
from tests.laws import lively_, settle_, wrong_slices, zero_random_
from tests.sized import SIZED
from tests.test_laws import relative

OPEN_LENGTH = {"grouped_query": 12, "merged_heads": 12, "frames": 9}  # whose sequences may have any length, up to that


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
    monkeypatch.setattr("sslprune.bench.timing.ENOUGH", 0.01)


@pytest.mark.parametrize("name", SIZED)
def test_repack_and_export(name: str, tmp_path: Path) -> None:
    model, args = SIZED[name]()
    settle_(lively_(model).eval(), args)
    dense = weights_of(model)
    longest = OPEN_LENGTH.get(name)
    program = sslprune.trace(model, args, sequence=longest)
    exact = [axis for axis in sslprune.find_axes(program) if axis.exact]
    zero_random_(model, program, exact, np.random.default_rng(0))
    settle_(model, args)
    section = {"factory": "tests.sized:model", "arguments": {"name": name}}
    data = {"max_length": longest} if longest else {}
    run = write_run(tmp_path / name, section, dense, model, exact, args, data)
    command("repack", run)
    command("export", run)
    report, plan, small = Report.load(run.report), read_plan(run.plan), sslprune.load(run.path)
    assert plan == sslprune.make_plan(model, program, exact)
    assert report.equivalence.max_relative < 1e-5 and relative(model, small, args) < 1e-5
    assert report.repacked.onnx is not None and report.repacked.onnx.max_relative < 1e-3
    gone = Selection.zeros(model, exact)
    assert report.repacked.parameters == Cost(program, exact).parameters(gone) < report.dense.parameters
    wrong = [relative(model, small, args) for _ in wrong_slices(model, small, exact, args, limit=2)]
    assert min(wrong) > 1e-4
