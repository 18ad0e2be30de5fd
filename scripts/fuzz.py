"""Malformed inputs through the command line, and what becomes of them: seeded, bounded, counted.

    python scripts/fuzz.py --inputs 1000            the table, with the inputs behind each fault
    python scripts/fuzz.py --only 137 --show        one input of it again, with all that it prints

Each input is a copy of a small folder (see ``fuzz_material``) in which one thing is damaged (``fuzz_mutations``), and a
command that meets it. It runs in a process that is forked from this one, which has everything imported: a hang or a
crash ends that process alone.

clean       status 1 and one line that says why      usage       status 2
accepted    status 0, or 3 for a gate                long        still training when its time was up
traceback, unexpected, silent (status 1 without a line), crash (by a signal), hang: faults
wrong       accepted, where the input is known to be one that must be refused
lost        a file of the folder is gone or another one after a command that failed
left        a temporary is left behind               marker      code of an input ran
nameless    the line does not name the person's own file, where that is what failed
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from scripts.fuzz_case import Case
from scripts.fuzz_material import make
from scripts.fuzz_mutations import FAMILIES, mutated

LIMIT = 20.0  # seconds of the processor; of the clock, on a machine that others use as well, three times as many
MEMORY = 16 << 30  # bytes, of data: an input may ask for more than there is
COUNTED = ("clean", "usage", "accepted", "long")
FAULTS = ("traceback", "unexpected", "silent", "crash", "hang", "wrong", "lost", "left", "nameless", "marker")
TRAINING = re.compile(r"^(dense|sparse|heal|control) \d+/\d+", re.MULTILINE)
TEMPORARY = re.compile(r"\.(lock|writer\.json|new-.*|done-.*|.+\.\d+(\.[^.]+)?)")


@dataclass(frozen=True)
class Outcome:
    """``status``: the exit status; negative, a signal's number; None, that its time was up."""

    status: int | None
    said: str
    seconds: float


def preload() -> None:
    """Import all that the commands import when they run; computes nothing, since threads do not outlive a fork."""
    import sslprune

    for module in pkgutil.walk_packages(sslprune.__path__, "sslprune."):
        if not module.name.endswith(("__main__", "callbacks.lightning")):
            importlib.import_module(module.name)
    for name in ("transformers", "datasets", "pyarrow.parquet", "PIL.Image", "onnxscript", "torch._dynamo"):
        importlib.import_module(name)


def run(words: list[str], folder: Path, limit: float = LIMIT) -> Outcome:
    """``sslprune`` with ``words`` in ``folder``, in a process of its own."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            be_sslprune(words, folder, output.fileno())
        status, seconds = _wait(child, limit)
        if status is None:
            os.kill(child, signal.SIGTERM)  # what trains ends at its next step; what hangs does not
            _wait(child, 5)
            _end(child)
        output.seek(0)
        said = output.read().decode("utf-8", "replace")
    return Outcome(status, said, seconds)


def _wait(child: int, limit: float) -> tuple[int | None, float]:
    """The status of the ended process, None where its time is up; and the processor's seconds that it took."""
    end, pause, used = time.monotonic() + 3 * limit, 0.001, 0.0
    while time.monotonic() < end and used < limit:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        times = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]
        used = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        time.sleep(pause)
        pause = min(0.02, 2 * pause)
    return None, used


def _end(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def be_sslprune(words: list[str], folder: Path, output: int) -> None:
    """Never returns."""
    status = 99
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        os.chdir(folder)
        sys.argv = ["sslprune", *words]
        from sslprune.bench import timing
        from sslprune.cli import app
        from sslprune.run import export

        timing.WARM_UP, timing.ENOUGH = 0.002, 0.005
        vars(export)["footprint"] = lambda *_: None  # which starts processes of its own
        app(words)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def contents(folder: Path) -> dict[str, str]:
    """The files below ``folder`` and what is in them."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def judged(case: Case, outcome: Outcome, before: dict[str, str], folder: Path) -> list[str]:
    """What an input counts as; the first is how the command ended."""
    status, said = outcome.status, outcome.said
    told = [line for line in said.splitlines() if line.strip()]
    if status is None:
        ended = "long" if TRAINING.search(said) else "hang"
    elif status < 0:
        ended = "crash"
    elif status in (0, 3):
        ended = "accepted"
    elif "Traceback (most recent call last)" in said:
        ended = "traceback"
    elif status == 2:
        ended = "usage"
    elif not told or not told[-1].startswith("error: "):
        ended = "silent"
    else:
        ended = "unexpected" if "unexpected" in told[-1] and "--debug shows where" in said else "clean"
    found = [ended]
    if ended == "accepted" and case.refuse:
        found.append("wrong")
    after = contents(folder)
    if status not in (0, 3) and any(
        after.get(name) != content for name, content in before.items() if name not in case.touched
    ):
        found.append("lost")
    if (
        status is not None
        and status >= 0
        and any(TEMPORARY.fullmatch(Path(name).name) for name in after.keys() - before.keys())
    ):
        found.append("left")
    if ended == "clean" and case.names not in told[-1]:
        found.append("nameless")
    if any("marker" in path.name for path in folder.rglob("*marker*")):
        found.append("marker")
    return found


def table(counts: dict[str, Counter[str]]) -> str:
    """Markdown: a line for each family of inputs, and their sum."""
    columns = ("inputs", *COUNTED, *FAULTS)
    lines = [f"| damaged | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    total: Counter[str] = sum(counts.values(), Counter())
    for name, found in [*counts.items(), ("**all**", total)]:
        lines.append(f"| {name} | {' | '.join(str(found[column]) for column in columns)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Malformed inputs through the command line, counted.")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--begin", type=int, default=0, help="the number of the first input: parts on several cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one input")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--show", action="store_true", help="print what each command printed")
    parser.add_argument("--keep", type=Path, help="a folder for the material, kept for the next time")
    given = parser.parse_args(arguments)
    preload()
    families = given.families.split(",")
    counts: dict[str, Counter[str]] = {name: Counter() for name in families}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as place:
        good = given.keep or Path(place) / "good"
        os.environ["XDG_CACHE_HOME"] = str(good / ".cache")  # the timings of widths, which are measured once
        if not good.exists():
            good.mkdir(parents=True)
            make(good, lambda words, folder: run(words, folder, 120).status == 0)
        for number in [given.only] if given.only is not None else range(given.begin, given.begin + given.inputs):
            family = families[number % len(families)]
            folder = Path(place) / str(number)
            shutil.copytree(good, folder, symlinks=True, ignore=shutil.ignore_patterns(".cache"))
            case = mutated(family, random.Random(f"{given.seed}/{number}"), folder)
            before = contents(folder)
            outcome = run(case.words, folder)
            found = judged(case, outcome, before, folder)
            counts[family].update(["inputs", *found])
            slowest = max(slowest, outcome.seconds if found[0] != "long" else 0)
            if given.show or set(found) & set(FAULTS):
                last = outcome.said if given.show else "\n".join(outcome.said.splitlines()[-1:])
                print(
                    f"{number} {family} {'+'.join(found)} {outcome.seconds:.1f} s: {case.told}\n  {case.words}",
                    f"\n  {last[-3000:]}",
                    flush=True,
                )
            shutil.rmtree(folder, ignore_errors=True)
    print(table(counts))
    print(f"\nThe slowest that ended took {slowest:.1f} s of the processor.")
    return int(any(found[fault] for found in counts.values() for fault in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
