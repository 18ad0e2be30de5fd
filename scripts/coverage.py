"""Trace, find the axes, zero a random half of every exact axis, repack, and compare: over published architectures.

    pip install -c constraints.txt '.[coverage]'
    python scripts/coverage.py                       # the whole list; --only NAME (repeatable) for some of it
    python scripts/coverage.py --peer                # Torch-Pruning on the same list, see scripts/peer.py

An architecture passes when something was removed and (relative to the largest output) the masked and the repacked model
differ by at most 1e-4, the ``.pt2`` in a fresh process without sslprune by 1e-4, ONNX Runtime by 1e-3, and a repacked
model with one wrong slice is caught by the first of these. Each runs in a process of its own under a time limit.

Columns: seconds to trace, find the axes and repack; share of the weights on exact axes other than layers and kernels;
share of the parameters that is left, first with axes of kind width whole, then with them halved too; differences.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
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
from sslprune.export.program import export_program  # noqa: E402
from sslprune.values.axes import Axis, tensors_of, zero_mask  # noqa: E402
from sslprune.values.compare import difference  # noqa: E402
from tests.laws import lively_, reload_without_sslprune, save_for_reload, settle_, wrong_slices, zero_random_  # noqa: E402

TOLERANCE = 1e-4


@dataclass
class Result:
    """One row of the table; what was not reached stays None."""

    name: str
    passed: bool = False
    failure: str = ""
    seconds: float | None = None  # trace, axes and repack
    kinds: dict[str, int] = field(default_factory=dict)  # number of exact axes of each kind
    share: float | None = None  # of the weights, on exact axes other than layers and kernels
    left: float | None = None  # share of the parameters that is left ...
    left_whole: float | None = None  # ... and that would be left if axes of kind width stayed whole
    counted: float | None = None  # what Cost says is left, before anything is cut
    masked: float | None = None  # relative differences ...
    program: float | None = None
    onnx: float | None = None
    control: float | None = None  # ... and the smallest that a wrong slice made
    frozen: list[str] = field(default_factory=list)  # what keeps most of the rest


def check(name: str, seed: int = 0) -> Result:
    """All checks on one architecture, in this process."""
    result = Result(name)
    torch.manual_seed(seed)
    model, args = BUILDERS[name]()
    lively_(model, seed).eval()
    try:
        started = time.perf_counter()
        program = sslprune.trace(model, args)
        axes = sslprune.find_axes(program)
        exact = [axis for axis in axes if axis.exact]
        result.seconds = time.perf_counter() - started
        result.kinds = dict(Counter(axis.kind for axis in exact))
        result.share, result.frozen = shares(model, axes)
        zero_random_(model, program, exact, np.random.default_rng(seed))
        settle_(model, args, seed)
        started = time.perf_counter()
        small = sslprune.repack(model, program, exact).eval()
        result.seconds += time.perf_counter() - started
        cost, kept = sslprune.Cost(program, exact), [~zero_mask(model, axis) for axis in exact]
        whole = [mask | (axis.kind == "width") for axis, mask in zip(exact, kept, strict=True)]
        dense = cost.parameters()  # of the evaluation graph: GoogLeNet has heads that only train
        result.left, result.left_whole = count_evaluated(small, args) / dense, cost.parameters(whole) / dense
        result.counted = cost.parameters(kept) / dense
        result.masked = relative(model, small, args)
        shuffled = [exact[i] for i in np.random.default_rng(seed).permutation(len(exact))]
        wrong = wrong_slices(model, small, shuffled, args, limit=3)
        result.control = min((relative(model, small, args) for _ in wrong), default=None)
        with tempfile.TemporaryDirectory() as folder:
            save_for_reload(name, model, small, args, Path(folder))
            result.program = reload_without_sslprune(Path(folder))[name]
            result.onnx = sslprune.export_onnx(small, args, Path(folder) / "model.onnx")
    except Exception as error:  # a row of the table, whatever it is
        result.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return result
    failures = {
        "nothing removed": result.left == 1 or result.control is None,
        "masked differs": not result.masked <= TOLERANCE,
        ".pt2 differs": not result.program <= TOLERANCE,
        f"Cost counts {result.counted:.1%} for {result.left:.1%}": abs(result.counted - result.left) > 1e-3,
        "wrong slice not seen": result.control is not None and result.control <= TOLERANCE,
    }
    result.failure = ", ".join(failure for failure, there in failures.items() if there)
    result.passed = not result.failure
    return result


@torch.no_grad()
def relative(one: nn.Module, other: nn.Module, args: tuple[Any, ...]) -> float:
    worst = difference(one(*args), other(*args))[1]
    return worst if worst == worst else float("inf")


def count_evaluated(model: nn.Module, args: tuple[Any, ...]) -> int:
    """The number of parameters that the evaluation graph reads."""
    program = export_program(model, args).program
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    names = {name for place, name in program.graph_signature.inputs_to_parameters.items() if place in read}
    return sum(parameter.numel() for name, parameter in program.named_parameters() if name in names)


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
    command = [sys.executable, __file__, "--worker", name, "--seed", str(options.seed)]
    try:
        done = subprocess.run(
            [*command, "--peer"] if options.peer else command, capture_output=True, text=True, timeout=options.limit
        )
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
        f"{result['name']:28}", "pass" if result["passed"] else "FAIL", f"{show(result['seconds'], '.1f'):>6}",
        *(f"{show(result[key], '.0%'):>5}" for key in ("share", "left_whole", "left")),
        *(f"{show(result[key], '.0e'):>7}" for key in ("masked", "program", "onnx", "control")),
        result["failure"] or kinds,
    ]  # fmt: skip
    return " ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="an architecture or a family; repeatable")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--peer", action="store_true", help="Torch-Pruning instead of sslprune")
    parser.add_argument("--limit", type=float, default=150, help="seconds for each architecture (%(default)s)")
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
            print(json.dumps(asdict(check(options.worker, options.seed))))
        return
    chosen = [name for name in BUILDERS if not options.only or {name, FAMILY[name]} & set(options.only)]
    if unknown := set(options.only or ()) - set(BUILDERS) - set(FAMILY.values()):
        parser.error(f"no architecture or family {', '.join(sorted(unknown))}; --list prints the names")
    if options.list:
        print("\n".join(f"{FAMILY[name]:14} {name}" for name in chosen))
        return
    titles = ("masked", ".pt2", "ONNX", "wrong")
    print(f"{'architecture':33} {'s':>6} share whole  left {' '.join(f'{title:>7}' for title in titles)}")
    results = []
    for name in chosen:
        results.append(check_in_process(name, options))
        print(row(results[-1]), flush=True)
        if options.verbose:
            print("".join(f"{'':33} kept by {reason}\n" for reason in results[-1]["frozen"]), end="")
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n")
    passed = sum(result["passed"] for result in results)
    print(f"{passed} of {len(results)} pass")
    sys.exit(passed < len(results))


if __name__ == "__main__":
    main()
