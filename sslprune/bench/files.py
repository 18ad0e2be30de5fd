"""``sslprune bench``: the speed of model files alone, without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslprune.bench.compare import Comparison, compare, once_absent, platforms_for
from sslprune.bench.contenders import feeds_for, from_file
from sslprune.bench.footprint import Footprint, footprint
from sslprune.bench.operators import operator_times
from sslprune.errors import ExportError
from sslprune.values.measure import Profile
from sslprune.values.voice import SILENT_BAR, Bar


@dataclass(frozen=True)
class Bench:
    """What ``bench`` found; ``sizes``: of each file its bytes, and what loading it takes."""

    files: tuple[Path, ...]
    comparison: Comparison
    sizes: Mapping[str, tuple[int, Footprint | None]]
    profiles: tuple[Profile, ...]

    def plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        models = []
        for file, timed in zip(self.files, self.comparison.models, strict=True):
            size, load = self.sizes[timed.name]
            models.append(
                {
                    "name": timed.name,
                    "file": str(file),
                    "file_bytes": size,
                    "load_ms": load.load_ms if load else None,
                    "peak_bytes": load.peak_bytes if load else None,
                    "latency": [value.model_dump() for value in timed.latency],
                    "speedup": [value.model_dump() for value in timed.speedup],
                }
            )
        return {"models": models, "profiles": [profile.model_dump() for profile in self.profiles]}


def bench_files(
    files: Sequence[Path],
    *,
    devices: Sequence[str] = (),
    runtimes: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1, 0),
    repetitions: int = 30,
    dims: Mapping[str, int] | None = None,
    profile: bool = False,
    progress: Bar = SILENT_BAR,
) -> Bench:
    """Compare model files, the first with each of the others; see ``compare``.

    Without ``devices``, a CUDA device is used where there is one, and said to be absent elsewhere; without
    ``runtimes``, the first file decides: ONNX Runtime (and TensorRT) for ONNX, torch for a ``.pt2``. A device or a
    runtime that is asked for by name and is not there is an ExportError.
    """
    models = [from_file(path, name) for path, name in zip(files, _names(files), strict=True)]
    natural = ("onnxruntime", "tensorrt") if models[0].onnx else ("torch", "torch.compile")
    for runtime in runtimes:
        if runtime not in models[0].runtimes:
            raise ExportError(f"{files[0]}: {runtime} cannot run it; it is for {' and '.join(models[0].runtimes)}")
    platforms = platforms_for(runtimes or natural, devices or ("cpu", "cuda"))
    if not runtimes and not devices:
        platforms = once_absent(platforms)
    for platform in platforms:
        if platform.absent and (platform.device in devices or platform.runtime in runtimes):
            raise ExportError(f"{platform.runtime} on {platform.device}: {platform.absent.reason}")
    comparison = compare(
        models,
        platforms,
        batch_sizes=batch_sizes,
        threads=threads,
        repetitions=repetitions,
        dims=dims,
        mixed=True,
        progress=progress,
    )
    sizes, profiles = {}, []
    for model in models:
        feeds = feeds_for(model, batch_sizes[0], None, dims)
        assert model.file is not None
        beside = model.file.with_name(f"{model.file.name}.data")
        size = model.file.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
        sizes[model.name] = (size, footprint(model.file, feeds))
        if profile and model.onnx is not None:
            found = operator_times(model.onnx, feeds)
            profiles.append(Profile(model=model.name, batch_size=batch_sizes[0], threads=1, operators=found))
    return Bench(tuple(Path(file) for file in files), comparison, sizes, tuple(profiles))


def _names(files: Sequence[Path]) -> list[str]:
    """File names where they differ, else the paths."""
    names = [Path(file).name for file in files]
    if len(set(names)) == len(names):
        return names
    paths = [str(file) for file in files]
    if len(set(paths)) < len(paths):
        raise ExportError(f"{next(p for p in paths if paths.count(p) > 1)}: given twice; give each file once")
    return paths
