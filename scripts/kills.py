"""SIGKILL at random moments, and ``--resume``: are the files those of a run that nothing disturbed?

    python scripts/kills.py --kills 30              the table

The roads are a run, a sweep of two budgets, and the three controls of a finished run. Each is first taken without a
kill; then, for each kill, it is begun in a new folder, killed after a random part of that time, and resumed. All files
have to be equal to the last bit, but for what tells times: reports, and the seconds of histories and checkpoints.

Before that, two fresh processes, whose hashes are seeded otherwise, run one recipe: their files have to be equal too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from scripts.fuzz import TEMPORARY, Outcome, be_sslprune, preload, run
from scripts.fuzz_material import SMALL

RUN = ["run", "small.toml", "--run", "new"]
SWEEP = [*RUN, "--set", "budget.macs=[0.8,0.6]", "--set", "export.quantize=int8-dynamic"]
ROADS = {"run": RUN, "sweep": SWEEP} | {
    f"control {name}": ["control", "new", "--from", name] for name in ("dense", "scratch", "ticket")
}
TIMES = ("report.json", "report.html", "junit.xml", "summary.md", "files.json")
PATIENCE = 300.0  # seconds


def digests(folder: Path) -> dict[str, str]:
    """What each file of a run holds, without the times that some tell."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TIMES)
    return {str(path.relative_to(folder)): hashlib.sha256(_timeless(path)).hexdigest() for path in files}


def _timeless(path: Path) -> bytes:
    if path.name == "log.jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return repr([{**line, "elapsed": 0, "seconds": 0} for line in lines]).encode()
    if path.name == "history.json":
        return repr(_without_seconds(json.loads(path.read_text(encoding="utf-8")))).encode()
    if path.name == "checkpoint.pt":
        import torch

        values = torch.load(path, weights_only=True)
        history = repr(_without_seconds(json.loads(values.pop("history")))).encode()
        return history + b"".join(_plain(values))
    return path.read_bytes()


def _without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]


def _plain(value: Any) -> list[bytes]:
    """Nested values as bytes, tensors by their numbers."""
    if isinstance(value, dict):
        return [part for key, inner in value.items() for part in (repr(key).encode(), *_plain(inner))]
    if isinstance(value, list | tuple):
        return [part for inner in value for part in _plain(inner)]
    return [value.contiguous().numpy().tobytes() if hasattr(value, "numpy") else repr(value).encode()]


def killed(words: list[str], folder: Path, after: float) -> tuple[bool, str]:
    """Begin ``words`` and kill it ``after`` seconds: whether it still ran, and the stage that it had said last."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            be_sslprune(words, folder, output.fileno())
        end, done = time.monotonic() + after, 0
        while time.monotonic() < end and not done:
            done, _ = os.waitpid(child, os.WNOHANG)
            time.sleep(0.002)
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        output.seek(0)
        lines = output.read().decode("utf-8", "replace").splitlines()
    stages = [line.split()[0] for line in lines if line.startswith(("train ", "repack ", "export ", "control "))]
    return not done, stages[-1] if stages else "reading"


def must(outcome: Outcome, words: list[str]) -> Outcome:
    if outcome.status not in (0, 3):
        raise SystemExit(f"{words} ended with {outcome.status}:\n{outcome.said[-2000:]}")
    return outcome


def same_twice(folder: Path) -> bool:
    """Whether two fresh processes, with other seeds of Python's hashes, write the same files."""
    found = []
    for seed in ("1", "2"):
        place = folder / f"fresh-{seed}"
        place.mkdir()
        (place / "small.toml").write_text(SMALL, encoding="utf-8")
        command = [sys.executable, "-m", "sslprune", *SWEEP]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True)
        found.append(digests(place / "new"))
    differ = sorted(name for name in {**found[0], **found[1]} if found[0].get(name) != found[1].get(name))
    print(f"two processes, one recipe: {len(found[0])} files, {len(differ)} differ {differ or ''}", flush=True)
    return not differ


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="SIGKILL at random moments, and --resume.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--roads", default=",".join(ROADS))
    parser.add_argument("--once", action="store_true", help="without the two fresh processes")
    given = parser.parse_args(arguments)
    roads, draws = given.roads.split(","), random.Random(given.seed)
    counts: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    preload()
    with tempfile.TemporaryDirectory() as root:
        os.environ["XDG_CACHE_HOME"] = f"{root}/cache"
        twice = given.once or same_twice(Path(root))
        wanted: dict[str, dict[str, str]] = {}
        seconds: dict[str, float] = {}
        finished = Path(root) / "run"  # of which controls are trained
        for road in ["run", *(road for road in roads if road != "run")]:
            place = _begin(Path(root) / f"whole {road}", road, finished)
            began = time.monotonic()
            must(run(ROADS[road], place, PATIENCE), ROADS[road])
            seconds[road], wanted[road] = time.monotonic() - began, digests(place / "new")
            if road == "run":
                shutil.move(place, finished)
        number = 0
        while counts["kills"] < given.kills:
            road = roads[number % len(roads)]
            place = _begin(Path(root) / f"{number}", road, finished)
            number += 1
            was_killed, stage = killed(ROADS[road], place, draws.uniform(0, seconds[road]))
            if not was_killed:
                continue  # it was done before
            counts["kills"] += 1
            stages[f"{road}: {stage}"] += 1
            left = sum(bool(TEMPORARY.fullmatch(path.name)) for path in (place / "new").rglob("*"))
            must(run([*ROADS[road], "--resume"], place, PATIENCE), ROADS[road])
            found = digests(place / "new")
            differ = sorted(name for name in {**found, **wanted[road]} if found.get(name) != wanted[road].get(name))
            rest = [path.name for path in (place / "new").rglob("*") if TEMPORARY.fullmatch(path.name)]
            counts.update(
                {"resumed": 1, "bit-equal": not differ, "left by the kill": left > 0, "left at the end": len(rest)}
            )
            print(f"{number} {road}, killed in {stage}: {differ or 'equal'} {rest or ''}", flush=True)
            shutil.rmtree(place)
    columns = ("kills", "resumed", "bit-equal", "left by the kill", "left at the end")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n| {' | '.join(str(counts[c]) for c in columns)} |")
    print("killed in", ", ".join(f"{stage} {count}" for stage, count in sorted(stages.items())))
    return int(not twice or counts["bit-equal"] < counts["kills"] or counts["left at the end"] > 0)


def _begin(place: Path, road: str, finished: Path) -> Path:
    """A folder in which ``road`` can be taken: a control's holds a copy of the finished run."""
    if road.startswith("control"):
        shutil.copytree(finished, place)
    else:
        place.mkdir()
        (place / "small.toml").write_text(SMALL, encoding="utf-8")
    return place


if __name__ == "__main__":
    sys.exit(main())
