"""Does the verdict hold? Compare `sslprune bench` of two ONNX files with timing each of them alone, in fresh processes.

    python scripts/verify_verdict.py dense.onnx model.onnx --batch 1 --threads 1

The check shares no code with sslprune: each process opens one file, warms up, and times it for a while; processes of
the two files take turns. They agree where the separate ratio lies within the interval that `sslprune bench` states, or
the stated ratio within the separate interval. Exit status 1 where they do not. On a busy machine, both are noisy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import numpy as np

ALONE = """
import os, sys, time, json
import numpy as np, onnxruntime
path, batch, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seconds, dims = float(sys.argv[4]), json.loads(sys.argv[5])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-threads:]))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
feeds = {}
for node in session.get_inputs():
    shape = [s if isinstance(s, int) else dims.get(s, batch) for s in node.shape]
    integer = "int" in node.type
    noise = np.random.default_rng(0).standard_normal(shape).astype("f4")
    feeds[node.name] = np.ones(shape, np.int64) if integer else noise
start = time.perf_counter()
while time.perf_counter() - start < 0.3:
    session.run(None, feeds)
times = []
start = time.perf_counter()
while time.perf_counter() - start < seconds or len(times) < 10:
    before = time.perf_counter()
    session.run(None, feeds)
    times.append(time.perf_counter() - before)
print(np.median(times))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dense")
    parser.add_argument("other")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=15, help="of each file")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing in each process")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=SIZE")
    options = parser.parse_args()

    dims = [word for dim in options.dim for word in ("--dim", dim)]
    command = [
        sys.executable,
        "-m",
        "sslprune.cli.app",
        "bench",
        options.dense,
        options.other,
        "--json",
        "--device",
        "cpu",
    ]
    command += ["--batch", str(options.batch), "--threads", str(options.threads), *dims]
    stated = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    speedup = stated["models"][1]["speedup"][0]

    sizes = json.dumps({name: int(size) for name, _, size in (dim.partition("=") for dim in options.dim)})
    pairs = []
    for turn in range(options.processes):
        both = [0.0, 0.0]
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            words = [(options.dense, options.other)[index], options.batch, options.threads, options.seconds, sizes]
            child = [sys.executable, "-c", ALONE, *(str(word) for word in words)]
            both[index] = float(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
        pairs.append(both)
    medians = np.array(pairs)
    ratios = medians[:, 0] / medians[:, 1]
    draws = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    ratio, (low, high) = float(np.median(ratios)), np.quantile(draws, [0.025, 0.975])
    within = speedup["low"] <= ratio <= speedup["high"]
    agree = within or low <= speedup["ratio"] <= high
    print(f"{options.dense} / {options.other}, batch {options.batch}, {options.threads} thread(s)")
    print(f"  stated    {speedup['ratio']:.3f}x ({speedup['low']:.3f} to {speedup['high']:.3f})")
    print(f"  separate  {ratio:.3f}x ({low:.3f} to {high:.3f}), {options.processes} processes of each file")
    print(f"  medians   {1e3 * np.median(medians[:, 0]):.4f} and {1e3 * np.median(medians[:, 1]):.4f} ms")
    print(f"  {'within the stated interval' if within else 'agree' if agree else 'DISAGREE'}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
