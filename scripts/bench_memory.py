"""Peak memory and seconds of each step from a sharded checkpoint to a Hugging Face directory, as multiples of its size.

    python scripts/bench_memory.py                     # a Qwen3 of 281 M parameters in float32
    python scripts/bench_memory.py --layers 26         # 1.0 G parameters: 4 GB of weights
    python scripts/bench_memory.py --layers 4 --onnx   # ONNX too, which takes the most

The steps run in one process, one after the other. The peak of each is that of the resident memory while it ran, less
what the process held before there was a model, divided by the bytes of the dense weights. A third of the neurons of
each layer go, so the smaller model's own weights are some three quarters of the dense one's.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sslprune


def resident(name: str) -> float:
    """Bytes by Linux's own name for them: VmRSS now, VmHWM at most since `begin`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * float(line.split()[1])
    raise SystemExit("this Linux does not say")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--vocabulary", type=int, default=50_000)
    parser.add_argument("--shards", default="200MB", help="the size of a file of the checkpoint")
    parser.add_argument("--release", action="store_true", help="repack gives the model up, tensor by tensor")
    parser.add_argument("--onnx", action="store_true")
    options = parser.parse_args()
    import transformers

    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if not sys.platform.startswith("linux"):
            raise SystemExit("it reads /proc")
        _write(library, options, folder / "dense")
        _measure(library, options, folder)


def _write(library: Any, options: argparse.Namespace, folder: Path) -> None:
    config = library.Qwen3Config(
        vocab_size=options.vocabulary, hidden_size=options.width, intermediate_size=4 * options.width,
        num_hidden_layers=options.layers, num_attention_heads=options.width // 128,
        num_key_value_heads=options.width // 256, head_dim=128, tie_word_embeddings=True, use_cache=False,
        max_position_embeddings=256,
    )  # fmt: skip
    library.Qwen3ForCausalLM(config).save_pretrained(folder, max_shard_size=options.shards)
    gc.collect()


def _measure(library: Any, options: argparse.Namespace, folder: Path) -> None:
    held: dict[str, Any] = {}
    torch.randn(64, 64) @ torch.randn(64, 64)
    gc.collect()
    base = resident("VmRSS")
    weights = 0.0

    def step(name: str, work: Callable[[], Any]) -> Any:
        nonlocal weights
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        began = time.perf_counter()
        found = work()
        seconds, peak = time.perf_counter() - began, resident("VmHWM") - base
        weights = weights or float(sum(p.numel() * p.element_size() for p in found.parameters()))
        after = (resident("VmRSS") - base) / weights
        row = {"step": name, "seconds": round(seconds, 1), "peak_gb": round(peak / 1e9, 2),
               "of_weights": round(peak / weights, 2), "after": round(after, 2)}  # fmt: skip
        print(json.dumps(row), flush=True)
        return found

    def load() -> Any:
        return library.Qwen3ForCausalLM.from_pretrained(folder / "dense", dtype=torch.float32).eval()

    ids = torch.randint(0, options.vocabulary, (2, 8))
    model = held["model"] = step("load", load)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {weights / 1e9:.2f} GB")
    program = step("trace", lambda: sslprune.trace(model, (ids,)))
    axes = step("find_axes", lambda: sslprune.find_axes(program))
    chosen = [axis for axis in axes if axis.kind == "neurons" and axis.exact]
    for axis in chosen:
        sslprune.zero_groups(model, axis, range(axis.size // 3))
    small = step("repack", lambda: sslprune.repack(model, program, chosen, release=options.release))
    if options.release:  # what an export asks of the model as it was: its class and its sizes, once more from the files
        model = load()
        for axis in chosen:
            sslprune.zero_groups(model, axis, range(axis.size // 3))
    step("huggingface", lambda: sslprune.export_huggingface(model, small, folder / "out", (ids,)))
    if options.onnx:
        del model, held["model"]
        step("onnx", lambda: sslprune.export_onnx(small, (ids,), folder / "model.onnx"))


if __name__ == "__main__":
    main()
