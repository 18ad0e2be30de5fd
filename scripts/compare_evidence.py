"""What groups are ranked by, compared: one recipe with each `choose.evidence`, over seeds, at the cut and at the end.

    python scripts/compare_evidence.py recipes/resnet56-cifar10.toml --seeds 0 1 2 --work runs/evidence \\
        --set model.arguments.depth=20 --set model.checkpoint=resnet20-cifar10.th ...
    python scripts/compare_evidence.py recipes/resnet56-cifar10.toml --table --work runs/evidence

All arms have the same checkpoint, batches, schedule and budget. At the cut: the masked model when sparse training ends,
which is exactly the repacked one; at the end: after healing. Both are the last epoch's of the phase, on the recipe's
test data or on what it holds out. A run that is there already is taken up, or read.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

from sslprune.recipe import ChooseSection, load_recipe
from sslprune.run.directory import RunDirectory
from sslprune.run.learn import train
from sslprune.show.terminal import Show

EVIDENCE = get_args(ChooseSection.model_fields["evidence"].annotation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="folder of the runs")
    parser.add_argument("--evidence", nargs="+", choices=EVIDENCE, default=list(EVIDENCE))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--table", action="store_true", help="of the runs that are there")
    options = parser.parse_args()
    if not options.table:
        for seed, evidence in product(options.seeds, options.evidence):
            run(options, evidence, seed)
    print("\n".join(table(options.work)))


def run(options: argparse.Namespace, evidence: str, seed: int) -> None:
    folder = options.work / f"{evidence}-{seed}"
    overrides = [*options.set, f"choose.evidence={evidence}", f"run.seed={seed}", f"name={evidence}-{seed}"]
    directory = RunDirectory(folder)
    if directory.masked.is_file():
        return
    began = time.process_time()
    train(load_recipe(options.recipe, overrides), directory, Show(), resume=directory.checkpoint.is_file())
    with (options.work / "seconds.txt").open("a") as file:
        file.write(f"{folder.name}\t{time.process_time() - began:.0f}\n")


def table(work: Path) -> list[str]:
    """Markdown: means over the seeds, and the sample standard deviation of several."""
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for path in sorted(work.glob("*/train/history.json")):
        directory = RunDirectory(path.parents[1])
        if directory.masked.is_file():
            evidence = directory.path.name.rpartition("-")[0]
            found.setdefault(evidence, []).append(json.loads(path.read_text()))
    lines = ["| evidence | of the MACs | at the cut | at the end | seeds |", "|---|---|---|---|---|"]
    for evidence in (name for name in EVIDENCE if name in found):
        cut, end = ([score(last(history, phase)) for history in found[evidence]] for phase in ("sparse", "heal"))
        left = mean(last(history, "sparse")["cost"] for history in found[evidence])
        lines.append(f"| {evidence} | {left:.3f} | {spread(cut)} | {spread(end)} | {len(cut)} |")
    return lines


def last(history: list[dict[str, Any]], phase: str) -> dict[str, Any]:
    return [record for record in history if record["phase"] == phase][-1]


def score(record: dict[str, Any]) -> float:
    """The first of the metrics."""
    return float(next(iter(record["valid" if "valid" in record else "test"].values())))


def spread(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
