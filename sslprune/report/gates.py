"""The gates that judge a report, and what has changed since an earlier one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

from sslprune.recipe import GateSection, GatesSection, Recipe
from sslprune.report.figures import Figures, Variant
from sslprune.report.judgement import Baseline, Change, Gate
from sslprune.report.values import Equivalence, Report
from sslprune.report.words import setting_text
from sslprune.values.measure import Absent, Speedup
from sslprune.values.tasks import LOWER_IS_BETTER

SAME = 0.005  # relative: a change in size below this is none


def judge(
    recipe: Recipe,
    dense: Figures,
    repacked: Figures,
    speedup: Sequence[Speedup | Absent],
    equivalence: Equivalence,
    variants: Sequence[Variant] = (),
    lower_is_better: Collection[str] = LOWER_IS_BETTER,
) -> list[Gate]:
    """Hold what was measured against the recipe's gates; gates that the recipe does not set are left out.

    ``max_metric_drop`` is the largest loss in any metric, in its own points; ``min_metric`` and ``max_metric`` bound
    the first metric. ``min_speedup`` is the smallest ratio over the timings that the gate's section names. A value that
    could not be measured (NaN) fails.
    """
    own, difference = GateSection(**recipe.gates.model_dump()), equivalence.max_relative
    found = _judged(own, dense, repacked, speedup, difference, recipe, lower_is_better)
    by_name = {variant.name: variant for variant in variants}
    for section in recipe.gate:
        if section.variant == "repacked":
            found += _judged(section, dense, repacked, speedup, difference, recipe, lower_is_better)
        elif section.variant in by_name:
            other = by_name[section.variant]
            found += _judged(section, dense, other, other.speedup, other.max_relative, recipe, lower_is_better)
        else:  # the recipe is checked before training; a run directory may still be older than its recipe
            limits = [(name, limit) for name, limit in _limits(section)]
            found += [Gate(name=n, limit=v, value=None, passed=False, variant=section.variant) for n, v in limits]
    return found


def _limits(section: GateSection) -> Iterator[tuple[str, float]]:
    for name in GatesSection.model_fields:
        limit = getattr(section, name)
        if limit is not None:
            yield name, limit


def _judged(
    section: GateSection,
    dense: Figures,
    model: Figures | Variant,
    speedup: Sequence[Speedup | Absent],
    difference: float | None,
    recipe: Recipe,
    lower_is_better: Collection[str],
) -> list[Gate]:
    missing = float("nan")
    drops = [
        (after - before) if name in lower_is_better else (before - after)
        for name, before, after in ((n, dense.metrics[n], model.metrics.get(n, missing)) for n in dense.metrics)
    ]
    batch_size = section.batch_size or recipe.data.batch_size
    most = max((s.threads for s in speedup if isinstance(s, Speedup)), default=0)
    threads = most if section.threads == 0 else section.threads
    timings = [
        s
        for s in speedup
        if isinstance(s, Speedup)
        and (s.device, s.runtime, s.batch_size) == (section.device, section.runtime, batch_size)
        and threads in (None, s.threads)
    ]
    slowest = min(timings, key=lambda s: s.ratio, default=None)
    first = next(iter(model.metrics.values()), missing)
    values: dict[str, float] = {
        "max_metric_drop": max(drops, key=lambda d: (math.isnan(d), d), default=missing),
        "min_metric": first,
        "max_metric": first,
        "min_speedup": missing if slowest is None else slowest.ratio,
        "max_macs": missing if model.macs is None else model.macs / dense.macs,
        "max_parameters": missing if model.parameters is None else model.parameters,
        "max_file_bytes": model.file_bytes,
        "max_output_difference": missing if difference is None else difference,
    }
    where = f"{section.device}, batch {batch_size}"
    if section.runtime != "onnxruntime":
        where = f"{section.runtime} on {where}"
    if threads is not None:
        where += f", {threads} thread{'s' * (threads != 1)}"
    plain = section.device == "cpu" and section.batch_size is section.threads is None
    return [
        Gate(
            name=name,
            limit=limit,
            value=None if math.isnan(values[name]) else values[name],
            passed=values[name] >= limit if name.startswith("min_") else values[name] <= limit,
            variant=section.variant,
            where=where if name == "min_speedup" and not plain else "",
            judged=setting_text(slowest) if name == "min_speedup" and slowest is not None else "",
        )
        for name, limit in _limits(section)
    ]


def compare_reports(before: Report, after: Report, file: str | Path) -> Baseline:
    """What has changed since an earlier report, model by model.

    A speed-up has changed when the two intervals do not overlap. Ratios are compared and not milliseconds: those are
    another machine's, or another day's.
    """
    changes: list[Change] = []
    less_is_better = {*after.lower_is_better, *before.lower_is_better, *LOWER_IS_BETTER}
    pairs: list[tuple[str, Figures | Variant, Figures | Variant, Sequence, Sequence]] = [
        ("dense", before.dense, after.dense, (), ()),
        ("repacked", before.repacked, after.repacked, before.speedup, after.speedup),
    ]
    earlier = {variant.name: variant for variant in before.variants}
    for variant in after.variants:
        if variant.name in earlier:
            last = earlier[variant.name]
            pairs.append((variant.name, last, variant, last.speedup, variant.speedup))
    for name, old, new, old_speedup, new_speedup in pairs:
        for key in ("parameters", "macs", "file_bytes"):
            one, other = getattr(old, key), getattr(new, key)
            if one is not None and other is not None:
                changes.append(_change(name, key, one, other, less=True, tolerance=SAME * one))
        for key, value in new.metrics.items():
            if key in old.metrics:
                changes.append(_change(name, key, old.metrics[key], value, less=key in less_is_better, tolerance=0.0))
        known = {_setting(s): s for s in old_speedup if isinstance(s, Speedup)}
        for speedup in new_speedup:
            if isinstance(speedup, Speedup) and _setting(speedup) in known:
                changes.append(_faster(name, known[_setting(speedup)], speedup))
    same = all(before.environment.get(key) == after.environment.get(key) for key in ("processor", "cores"))
    return Baseline(file=str(file), recipe=before.recipe, same_machine=same, changes=changes)


def _change(variant: str, name: str, before: float, after: float, *, less: bool, tolerance: float) -> Change:
    verdict: Literal["better", "worse", "same"] = "same"
    if abs(after - before) > tolerance:
        verdict = "better" if (after < before) == less else "worse"
    return Change(variant=variant, name=name, before=before, after=after, verdict=verdict)


def _faster(variant: str, before: Speedup, after: Speedup) -> Change:
    verdict: Literal["better", "worse", "same"] = "same"
    if after.low > before.high or after.high < before.low:
        verdict = "better" if after.ratio > before.ratio else "worse"
    return Change(
        variant=variant,
        name=f"speed-up, {setting_text(after)}",
        before=before.ratio,
        after=after.ratio,
        verdict=verdict,
    )


def _setting(speedup: Speedup) -> tuple[str, str, int, int, int | None]:
    return speedup.device, speedup.runtime, speedup.batch_size, speedup.threads, speedup.length
