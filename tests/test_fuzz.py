"""The small forms of ``scripts/fuzz.py`` and ``scripts/kills.py``; the large ones are in docs/ci.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.fuzz import FAULTS, Outcome, judged
from scripts.fuzz_case import Case

ROOT = Path(__file__).parents[1]


def script(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )


def test_a_few_inputs_of_each_family() -> None:
    pytest.importorskip("transformers")
    done = script("scripts/fuzz.py", "--inputs", "21", "--seed", "11")
    assert done.returncode == 0, done.stdout + done.stderr
    total = next(line for line in done.stdout.splitlines() if line.startswith("| **all** | 21 |"))
    assert total.endswith(" | 0" * len(FAULTS) + " |")


def test_a_few_kills() -> None:
    done = script("scripts/kills.py", "--kills", "2", "--once", "--roads", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 2 | 2 | 2 |" in done.stdout


@pytest.mark.parametrize(
    ("status", "said", "found"),
    [
        (1, "error: model.toml: wrong", ["clean", "nameless"]),
        (1, "error: own.py: wrong", ["clean"]),
        (1, "error: unexpected KeyError: 3; --debug shows where", ["unexpected"]),
        (1, "Traceback (most recent call last):\n  ...\nerror: wrong", ["traceback"]),
        (1, "nothing of use", ["silent"]),
        (2, "Usage: sslprune", ["usage"]),
        (3, "gate missed: x", ["accepted", "wrong"]),
        (-11, "", ["crash"]),
        (None, "reading", ["hang"]),
        (None, "dense 1/3: loss 0.1", ["long"]),
    ],
)
def test_what_an_input_counts_as(status: int | None, said: str, found: list[str], tmp_path: Path) -> None:
    case = Case(["run"], "", refuse=True, names="own.py")
    assert judged(case, Outcome(status, said, 0.0), {}, tmp_path) == found


def test_what_is_lost_left_and_run(tmp_path: Path) -> None:
    case, wrong = Case(["run"], "", touched={"b"}), Outcome(1, "error: x", 0.0)
    before = {"a": "0", "b": "0"}
    assert judged(case, wrong, before, tmp_path) == ["clean", "lost"]
    assert judged(case, Outcome(0, "", 0.0), before, tmp_path) == ["accepted"]
    (tmp_path / "train").mkdir()
    (tmp_path / "train/.dense.12.safetensors").write_text("")
    (tmp_path / "marker").mkdir()
    assert judged(case, wrong, {}, tmp_path) == ["clean", "left", "marker"]
