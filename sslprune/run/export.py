"""The last stage: ONNX files and their variants, measured on the test data and against the clock, judged and told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sslprune.bench import Comparison, Contender, compare, footprint, once_absent, operator_times, platforms_for
from sslprune.bench.contenders import feeds_for
from sslprune.capture.program import Program
from sslprune.cost.grain import staircase
from sslprune.data import Data, build_data
from sslprune.errors import ExportError
from sslprune.export.file import OnnxModule, feeds_of, write_metadata
from sslprune.export.onnx import ONNX_TOLERANCE
from sslprune.export.quantize import notes
from sslprune.export.session import open_session
from sslprune.models.build import device_of, load_trained
from sslprune.recipe import Recipe
from sslprune.removal.factors import fold_
from sslprune.report import (
    Absent,
    Budget,
    Figures,
    OnnxCheck,
    Profile,
    RepackResult,
    Report,
    Size,
    Speedup,
    Staircase,
    Variant,
    compare_reports,
    environment,
    judge,
)
from sslprune.report.ci import write_ci
from sslprune.run.build import Built, build
from sslprune.run.check import compares_metrics
from sslprune.run.course import course_of
from sslprune.run.decoder import write_decoders
from sslprune.run.directory import RunDirectory
from sslprune.run.written import beside, tell_sweep, write_alone
from sslprune.show.terminal import Show
from sslprune.train.chance import at_chance
from sslprune.train.evaluate import evaluate, full_precision
from sslprune.values.carry import with_state
from sslprune.values.compare import Beside
from sslprune.values.inputs import arguments, each


def export(
    directory: RunDirectory, show: Show, program: Program | None = None, *, baseline: Path | None = None
) -> Report:
    """Write every model as ONNX, measure each on the test data, time them in turns, judge the gates, and report.

    ``program``: of the run's model, where this process has traced it. Of a sweep, the earlier points first, where their
    reports are missing or of another recipe.
    """
    directory.require("repack")
    earlier = Report.load(baseline) if baseline is not None else None  # before it may be written over
    with directory.writing():
        earlier_points = directory.each_point(directory.recipe())[:-1] if directory.sweep is directory else []
        for point, folder in earlier_points:
            folder.claim(point)  # gates and timings are those of the sweep
            if not folder.finished("export") or Report.load(folder.report).recipe_sha256 != _digest(folder):
                export(folder, show, program)
        with directory.stage("export") as target:
            report = _export(target, show, program)
            if earlier is not None and baseline is not None:
                report = report.model_copy(update={"baseline": compare_reports(earlier, report, baseline)})
            new, there = str(target.export_dir), str(directory.export_dir)
            variants = [v.model_copy(update={"file": v.file.replace(new, there)}) for v in report.variants]
            report = beside(report.model_copy(update={"variants": variants}), directory)
            write_ci(report, target.junit, target.summary)
            write_alone(report, target)
        tell_sweep(directory)
    return report


def _export(directory: RunDirectory, show: Show, program: Program | None) -> Report:
    """The report, without what lies beside it; the models' files are written."""
    recipe, result = directory.recipe(), RepackResult.load(directory.result)
    show.stage("export", f"{recipe.name}: ONNX, checked against torch on the test data, and timed in turns with dense")
    data = build_data(recipe, show)
    dense = fold_(load_trained(recipe.model, directory.dense))
    data = data.taught_by(dense)
    built = build(recipe, directory, result, dense, data, show, program)
    checks = measure_metrics(recipe, built, data, show)
    digest = _digest(directory)
    for model in built:
        if model.path.is_relative_to(directory.export_dir):
            write_metadata(model.path, _metadata(recipe, model, checks[model.name], digest))
    example = _rows(built[0], data)
    times = measure_speed(recipe, built, data, example, show)
    report = assemble(recipe, result, built, checks, times, example, data.task.lower_is_better, show)
    course = course_of(recipe, directory, data, result.equivalence.samples)
    if recipe.export.decoder:
        report = report.model_copy(update={"decoding": write_decoders(directory, recipe, dense, show)})
    untrained = compares_metrics(recipe) and at_chance(dense, data.train, data.task)
    gates = [gate.without_gain() for gate in report.gates] if untrained else report.gates
    return report.model_copy(update={"recipe_sha256": digest, "gates": gates, "course": course})


def _digest(directory: RunDirectory) -> str:
    return hashlib.sha256(directory.recipe_file.read_bytes()).hexdigest()


def measure_metrics(recipe: Recipe, built: list[Built], data: Data, show: Show) -> dict[str, OnnxCheck]:
    """Each file's metrics on the test data in ONNX Runtime, beside the model that it has to agree with.

    Dense and repacked are held against torch, and raise ExportError where they differ by more than 1e-3 (relative); a
    quantized variant is held against the repacked file; a control has nobody to agree with.
    """
    device = device_of(recipe.run)
    checks: dict[str, OnnxCheck] = {}
    runners: dict[str, OnnxModule] = {}
    with full_precision(), torch.inference_mode(), show.progress("evaluating ONNX", len(built) * len(data.test)) as bar:
        for model in built:
            source = built[1] if model.kind == "quantized" else model if model.module is not None else built[0]
            assert source.module is not None
            runners[model.name] = runner = _runner(model.path, source.module("cpu"), data)
            batches = bar.over(data.test)
            if model.kind == "control":
                metrics = evaluate(runner, batches, data.task)
                checks[model.name] = OnnxCheck(metrics=metrics, max_relative=0.0, samples=0)
                continue
            reference = model.module(str(device)) if model.module is not None else runners["repacked"]
            watched = Beside(reference, runner)
            metrics = evaluate(watched, batches, data.task)
            checks[model.name] = OnnxCheck(metrics=metrics, max_relative=watched.max_relative, samples=watched.samples)
            if model.module is not None and not watched.max_relative <= ONNX_TOLERANCE:
                raise ExportError(
                    f"{model.path}: on the test data ONNX Runtime differs from torch by {watched.max_relative:.1e}"
                    f" (relative); {ONNX_TOLERANCE} is allowed"
                )
    return checks


def _runner(path: Path, like: nn.Module, data: Data) -> OnnxModule:
    """The file, to be called as the module ``like`` is."""
    args, kwargs = data.example_for(like)
    return OnnxModule(open_session(path), like(*args, **kwargs), getattr(like, "initial_state", None))


def timed_batches(recipe: Recipe) -> list[int]:
    """The batch sizes that the recipe asks for, and those at which a gate wants to be so much faster."""
    usual = recipe.data.batch_size
    gates = [usual] if recipe.gates.min_speedup is not None else []
    gates += [gate.batch_size or usual for gate in recipe.gate if gate.min_speedup is not None]
    return [*(recipe.bench.batch_sizes or [1, usual]), *gates]


def measure_speed(
    recipe: Recipe, built: list[Built], data: Data, example: Mapping[str, np.ndarray], show: Show
) -> Comparison:
    """All models timed in turns, at the recipe's batch sizes and threads and those that its gates name."""
    bench = recipe.bench
    batch_sizes = timed_batches(recipe)
    threads = [*bench.threads, *(gate.threads for gate in recipe.gate if gate.threads is not None)]
    if recipe.budget.measure == "latency":
        threads.append(1)
    runtimes = list(dict.fromkeys([*bench.runtimes, *(gate.runtime for gate in recipe.gate)]))
    if recipe.budget.measure == "latency" and "onnxruntime" not in runtimes:
        runtimes.append("onnxruntime")
    platforms = platforms_for(runtimes)
    if "torch" not in runtimes:
        platforms += [platform for platform in platforms_for(["torch"], ["cuda"]) if platform.absent is None]
    platforms = once_absent(platforms)
    assert built[0].module is not None
    args, kwargs = data.example_for(built[0].module("cpu"))
    pack = packer([node.name for node in open_session(built[0].path, 1).get_inputs()], args, kwargs)
    models = [Contender(model.name, onnx=model.path, module=model.module, pack=pack) for model in built]
    steps = len(dict.fromkeys(batch_sizes)) * max(1, len(set(bench.lengths)))
    steps *= len(dict.fromkeys(threads)) * sum(p.absent is None for p in platforms)
    with show.progress("timing", steps) as bar:
        return compare(
            models,
            platforms,
            batch_sizes=batch_sizes,
            lengths=bench.lengths,
            threads=threads,
            repetitions=bench.repetitions,
            example=example,
            also_against="repacked",
            progress=bar,
        )


def assemble(
    recipe: Recipe,
    result: RepackResult,
    built: list[Built],
    checks: Mapping[str, OnnxCheck],
    times: Comparison,
    example: Mapping[str, np.ndarray],
    lower_is_better: Collection[str],
    show: Show,
) -> Report:
    """The report of what was measured; loads each file once more, in processes of their own and in the profiler."""
    figures: dict[str, dict[str, Any]] = {}
    profiles = []
    with show.progress("profiling", len(built)) as bar:
        for model in built:
            one = feeds_for(Contender(model.name, onnx=model.path), 1, example)
            load = footprint(model.path, one)
            figures[model.name] = {
                "file_bytes": file_bytes(model.path),
                "latency": times[model.name].latency,
                "load_ms": load.load_ms if load else None,
                "peak_bytes": load.peak_bytes if load else None,
            }
            operators = operator_times(model.path, one)
            profiles.append(Profile(model=model.name, batch_size=1, threads=1, operators=operators))
            bar.advance()
    sizes: dict[str, Size] = {"dense": result.dense, "repacked": result.repacked}
    dense, repacked = (
        Figures(**sizes[name].model_dump(), **figures[name], onnx=checks[name]) for name in ("dense", "repacked")
    )
    variants = [
        Variant(
            name=model.name,
            kind="quantized" if model.kind == "quantized" else "control",
            file=model.path.name if model.kind == "quantized" else str(model.path),
            parameters=model.parameters,
            macs=model.macs,
            metrics=checks[model.name].metrics,
            max_relative=checks[model.name].max_relative if model.kind == "quantized" else None,
            speedup=times[model.name].speedup,
            over_repacked=times[model.name].against["repacked"],
            notes=notes(model.name, built[1].path) if model.kind == "quantized" else [],
            **figures[model.name],
        )
        for model in built[2:]
    ]
    gain = dense.macs / repacked.macs
    speedup = [
        s.model_copy(update={"realised": s.ratio / gain}) if isinstance(s, Speedup) else s
        for s in times["repacked"].speedup
    ]
    return Report(
        recipe=recipe.name,
        budget=_measured(result.budget, (recipe.bench.batch_sizes or [1])[0], speedup),
        dense=dense,
        repacked=repacked,
        whole=result.whole,
        speedup=speedup,
        equivalence=result.equivalence,
        axes=result.axes,
        environment=environment(),
        lower_is_better=sorted(lower_is_better),
        gates=judge(recipe, dense, repacked, speedup, result.equivalence, variants, lower_is_better),
        variants=variants,
        profiles=profiles,
        staircase=_staircase(recipe) if any("Conv" in o.operator for p in profiles for o in p.operators) else None,
    )


def _measured(budget: Budget, batch_size: int, speedup: Sequence[Speedup | Absent]) -> Budget:
    """The budget with what was measured of it, where it is one in latency: the whole models, in turns."""
    if budget.measure != "latency":
        return budget
    setting = ("cpu", "onnxruntime", batch_size, 1)
    found = next(
        s for s in speedup if isinstance(s, Speedup) and (s.device, s.runtime, s.batch_size, s.threads) == setting
    )
    return budget.model_copy(update={"reached": 1 / found.ratio, "low": 1 / found.high, "high": 1 / found.low})


def file_bytes(path: Path) -> int:
    """The size of an ONNX file, with its weights where those lie in a file of their own."""
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def packer(
    names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[list[Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Turns tensors in the order of ``names`` into (args, kwargs) nested as the example's: what ``feeds_of`` undoes."""

    def pack(values: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(names, values, strict=True))
        keywords = {key: given.pop(key, value) for key, value in kwargs.items()}
        rest = iter(given.values())
        filled = pytree.tree_map(lambda leaf: next(rest) if isinstance(leaf, Tensor) else leaf, args)
        return filled, keywords

    return pack


def _staircase(recipe: Recipe) -> Staircase:
    step, seconds = staircase()
    round_to = step if recipe.budget.round_to == "auto" else recipe.budget.round_to
    widest = max(seconds)
    per_mac = {width: taken / width**2 for width, taken in seconds.items()}
    on, off = ([per_mac[w] for w in per_mac if (w % step == 0) == wanted] for wanted in (True, False))
    return Staircase(
        round_to=round_to,
        step=step,
        seconds={width: taken / seconds[widest] for width, taken in sorted(seconds.items())},
        gain=float(np.mean(off) / np.mean(on)) if step > 1 and off else None,
    )


def _rows(model: Built, data: Data) -> dict[str, np.ndarray]:
    """The inputs of one test batch, by their names in the ONNX file."""
    assert model.module is not None
    args, kwargs = arguments(each(next(iter(data.test))[0], Tensor.cpu))
    return feeds_of(open_session(model.path, 1), with_state(model.module("cpu"), args), kwargs)


def _metadata(recipe: Recipe, model: Built, found: OnnxCheck, digest: str) -> dict[str, str]:
    versions = environment()
    return {
        "sslprune.recipe": recipe.name,
        "sslprune.recipe_sha256": digest,
        "sslprune.model": model.name,
        "sslprune.metrics": json.dumps(found.metrics),
        **{f"{package}.version": str(versions[package]) for package in ("sslprune", "torch", "onnxruntime")},
    }
