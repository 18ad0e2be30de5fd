"""Zero a random half of every exact axis, and send the run through the commands: over published architectures.

    pip install -c constraints.txt '.[coverage]'
    python scripts/coverage.py                       # the whole list; --only NAME (repeatable) for some of it
    python scripts/coverage.py --peer                # Torch-Pruning on the same list, see scripts/peer.py

Each architecture gets a run directory as training leaves it (scripts/coverage_run.py), weights zeroed by hand, and goes
through ``sslprune repack RUN`` and ``sslprune export RUN`` as a person types them. It passes when both end with exit
status 0, and what they wrote says so: something was removed; plan.json, read back, is the plan; the counts are those of
``Cost``; and (relative to the largest output) masked and repacked model differ by at most 1e-4, model.pt2 in a fresh
process without sslprune by 1e-4, model.onnx in ONNX Runtime by 1e-3, and model.pt2 with one wrong slice by more than
the first of these. Each runs in a process of its own under a time limit.

Columns: seconds of processors that repack and export took; share of the weights on exact axes other than
layers and kernels; share of the parameters that is left, first with axes of kind width whole, then with them halved
too; whether plan.json is the plan; differences.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(
    ROOT
)  # so that scripts/ and tests/ can be imported, and this file does not hide the package "coverage"

import sslprune  # noqa: E402
from scripts.architectures import BUILDERS, FAMILY, SHIM  # noqa: E402
from scripts.coverage_run import command, write_run  # noqa: E402
from sslprune.bench import timing  # noqa: E402
from sslprune.export.onnx import ONNX_TOLERANCE  # noqa: E402
from sslprune.models.build import count_parameters  # noqa: E402
from sslprune.removal.plan import read_plan  # noqa: E402
from sslprune.report import Report  # noqa: E402
from sslprune.run.directory import RunDirectory  # noqa: E402
from sslprune.train.checkpoint import weights_of  # noqa: E402
from sslprune.values.axes import Axis, tensors_of  # noqa: E402
from sslprune.values.compare import difference  # noqa: E402
from sslprune.values.selection import Selection  # noqa: E402
from tests.laws import lively_, reload_without_sslprune, save_expected, settle_, wrong_slices, zero_random_  # noqa: E402

TOLERANCE = 1e-4


@dataclass
class Result:
    """One row of the table; what was not reached stays None."""

    name: str
    passed: bool = False
    failure: str = ""
    seconds: float | None = None  # of processors, for `sslprune repack` ...
    export_seconds: float | None = None  # ... and `sslprune export`
    kinds: dict[str, int] = field(default_factory=dict)  # number of exact axes of each kind
    share: float | None = None  # of the weights, on exact axes other than layers and kernels
    left: float | None = None  # share of the parameters that is left ...
    left_whole: float | None = None  # ... and that would be left if axes of kind width stayed whole
    counted: float | None = None  # what Cost says is left, before anything is cut
    masked: float | None = None  # relative differences ...
    program: float | None = None
    onnx: float | None = None
    plan: bool | None = None  # whether plan.json, read back, is the plan
    control: float | None = None  # ... and the smallest that a wrong slice made
    frozen: list[str] = field(default_factory=list)  # what keeps most of the rest


def check(name: str, seed: int = 0, keep: Path | None = None) -> Result:
    """All checks on one architecture, in this process; its run directory is made in ``keep``, where it then stays."""
    with tempfile.TemporaryDirectory() as folder:
        return check_in(keep or Path(folder), name, seed)


def check_in(folder: Path, name: str, seed: int) -> Result:
    """``check``, with the run directory ``folder/name``; its timings are short, as nobody reads them."""
    timing.WARM_UP, timing.ENOUGH = 0.005, 0.01
    result = Result(name)
    torch.manual_seed(seed)
    model, args = BUILDERS[name]()
    lively_(model, seed).eval()
    try:
        settle_(model, args, seed)
        dense_weights = weights_of(model)
        program = sslprune.trace(model, args)
        axes = sslprune.find_axes(program)
        exact = [axis for axis in axes if axis.exact]
        result.kinds = dict(Counter(axis.kind for axis in exact))
        result.share, result.frozen = shares(model, axes)
        zero_random_(model, program, exact, np.random.default_rng(seed))
        settle_(model, args, seed)
        section = {"factory": "scripts.coverage_run:model", "arguments": {"name": name, "seed": seed}}
        run = write_run(folder / name, section, dense_weights, model, exact, args)
        result.seconds = command("repack", run)
        result.export_seconds = command("export", run)
        small, report = sslprune.load(run.path), Report.load(run.report)
        assert report.repacked.onnx is not None
        result.masked, result.onnx = report.equivalence.max_relative, report.repacked.onnx.max_relative
        result.program = saved(model, args, run)
        result.plan = read_plan(run.plan) == sslprune.make_plan(model, program, exact)
        cost, gone = sslprune.Cost(program, exact), Selection.zeros(model, exact)
        narrow = [mask & (axis.kind != "width") for axis, mask in zip(exact, gone, strict=True)]
        whole = Selection.of(exact, narrow)
        dense = cost.parameters()  # of the evaluation graph: GoogLeNet has heads that only train
        result.left, result.left_whole = count_parameters(small) / dense, cost.parameters(whole) / dense
        result.counted = cost.parameters(gone) / dense
        shuffled = [exact[i] for i in np.random.default_rng(seed).permutation(len(exact))]
        wrong = wrong_slices(model, small, shuffled, args, limit=3)
        result.control = min((relative(model, small, args) for _ in wrong), default=None)
    except Exception as error:  # a row of the table, whatever it is
        result.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return result
    failures = {
        "nothing removed": result.left == 1 or result.control is None,
        "masked differs": not result.masked <= TOLERANCE,
        ".pt2 differs": not result.program <= TOLERANCE,
        "ONNX differs": not result.onnx <= ONNX_TOLERANCE,
        "plan.json is another": not result.plan,
        f"Cost counts {result.counted:.1%} for {result.left:.1%}": abs(result.counted - result.left) > 1e-3,
        "wrong slice not seen": result.control is not None and result.control <= TOLERANCE,
    }
    result.failure = ", ".join(failure for failure, there in failures.items() if there)
    result.passed = not result.failure
    return result


def saved(model: nn.Module, args: tuple[Any, ...], run: RunDirectory) -> float:
    """The relative difference of the run's ``model.pt2``, loaded in a fresh process that cannot import sslprune."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(run.program, folder)
        save_expected(run.program.stem, model, args, Path(folder))
        return reload_without_sslprune(Path(folder))[run.program.stem]


@torch.no_grad()
def relative(one: nn.Module, other: nn.Module, args: tuple[Any, ...]) -> float:
    worst = difference(one(*args), other(*args))[1]
    return worst if worst == worst else float("inf")


def shares(model: nn.Module, axes: list[Axis]) -> tuple[float, list[str]]:
    """The share of the weights on exact axes other than layers, kernels, columns, and what holds most of the rest."""
    parameters = dict(model.named_parameters())
    first, tensors = {id(parameter): name for name, parameter in parameters.items()}, tensors_of(model)  # tied ones
    outside = {name: [np.ones(size, bool) for size in parameter.shape] for name, parameter in parameters.items()}
    for axis in axes:
        if axis.exact and axis.kind not in ("kernel", "layers", "columns"):
            for member in axis.members:
                name = first.get(id(tensors[member.name]))
                if name is not None:
                    outside[name][member.dim][member.positions.reshape(-1)] = False
    left = {name: int(np.prod([mask.sum() for mask in masks])) for name, masks in outside.items()}
    reasons: Counter[str] = Counter()
    for axis in axes:
        if not axis.exact:
            for name in {first.get(id(tensors[member.name]), "") for member in axis.members} & left.keys():
                reasons[axis.reason] += left[name]
    total = sum(parameter.numel() for parameter in parameters.values())
    frozen = [f"{reason} ({count / total:.0%})" for reason, count in reasons.most_common(3) if count > 0.005 * total]
    return 1 - sum(left.values()) / total, frozen


def check_in_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """``check`` in a process of its own, under the time limit."""
    words = [sys.executable, __file__, "--worker", name, "--seed", str(options.seed)]
    words += ["--peer"] if options.peer else ["--keep", str(options.keep)] if options.keep else []
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return asdict(Result(name, failure=f"not done in {options.limit} s"))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return asdict(Result(name, failure=f"exit {done.returncode}: {last[:300]}"))
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row(result: dict[str, Any]) -> str:
    def show(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    kinds = " ".join(f"{kind}:{number}" for kind, number in result["kinds"].items())
    cells = [
        f"{result['name']:28}", "pass" if result["passed"] else "FAIL",
        *(f"{show(result[key], '.1f'):>6}" for key in ("seconds", "export_seconds")),
        *(f"{show(result[key], '.0%'):>5}" for key in ("share", "left_whole", "left")),
        {None: "   -", True: "same", False: "else"}[result["plan"]],
        *(f"{show(result[key], '.0e'):>7}" for key in ("masked", "program", "onnx", "control")),
        result["failure"] or kinds,
    ]  # fmt: skip
    return " ".join(cells)


def into_table(file: Path, results: list[dict[str, Any]]) -> None:
    """Put the rows into the table that ``file`` has of them; its last column, the peer's, stays."""
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = {result["name"]: result for result in results if result["passed"]}
    for number, line in enumerate(lines):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name, last = cells[0], cells[-1]
        if line.startswith("|") and name in rows:
            seconds = (f"{rows[name][key]:.1f}" for key in ("seconds", "export_seconds"))
            shares = (f"{rows[name][key]:.0%}".replace("%", " %") for key in ("share", "left_whole", "left"))
            lines[number] = f"| {' | '.join([name, *seconds, *shares, 'same', last])} |"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="an architecture or a family; repeatable")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--peer", action="store_true", help="Torch-Pruning instead of sslprune")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the run directories there")
    parser.add_argument("--table", type=Path, metavar="FILE", help="put what passed into the table of docs/coverage.md")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each architecture (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="also print what keeps the rest of the weights")
    parser.add_argument("--shim", metavar="FILE", help=f"imported before torchvision; default ${SHIM}")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shim:
        os.environ[SHIM] = str(Path(options.shim).resolve())
    if options.worker:
        if options.peer:
            from scripts.peer import check_peer

            print(json.dumps(check_peer(options.worker, options.seed)))
        else:
            print(json.dumps(asdict(check(options.worker, options.seed, options.keep))))
        return
    chosen = [name for name in BUILDERS if not options.only or {name, FAMILY[name]} & set(options.only)]
    if unknown := set(options.only or ()) - set(BUILDERS) - set(FAMILY.values()):
        parser.error(f"no architecture or family {', '.join(sorted(unknown))}; --list prints the names")
    if options.list:
        print("\n".join(f"{FAMILY[name]:14} {name}" for name in chosen))
        return
    titles = ("masked", ".pt2", "ONNX", "wrong")
    print(f"{'architecture':33} repack export share whole  left plan {' '.join(f'{title:>7}' for title in titles)}")
    results = []
    for name in chosen:
        results.append(check_in_process(name, options))
        print(row(results[-1]), flush=True)
        if options.verbose:
            print("".join(f"{'':33} kept by {reason}\n" for reason in results[-1]["frozen"]), end="")
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.table:
        into_table(options.table, results)
    passed = sum(result["passed"] for result in results)
    print(f"{passed} of {len(results)} pass")
    sys.exit(passed < len(results))


if __name__ == "__main__":
    main()
