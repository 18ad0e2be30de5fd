"""Figures in words: the same ones on the terminal, in the step summary and on the page."""

from __future__ import annotations

from sslprune.errors import few
from sslprune.report.figures import Decoding, Variant
from sslprune.report.values import Budget, Report
from sslprune.values.measure import Latency, Speedup

INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QAttention", "QuantizeLinear")

CONTROL_WORDS = {"dense": "dense, trained on", "scratch": "small, from scratch", "ticket": "small, winning ticket"}


MEASURE_WORDS = {"macs": "MACs", "parameters": "parameters", "latency": "latency"}


def budget_text(budget: Budget) -> str:
    """What of the budget was reached: "39.8 % of the MACs remain, 40 % were allowed: met"."""
    remain = f"{100 * budget.reached:.1f} % of the {MEASURE_WORDS.get(budget.measure, budget.measure)} remain"
    if budget.low is not None and budget.high is not None:
        remain += f", measured ({100 * budget.low:.1f} to {100 * budget.high:.1f})"
    if budget.fraction is None:
        return f"{remain}, at strength {budget.strength:g}"
    allowed = f"{100 * budget.fraction:g} % were allowed"
    if budget.met:
        return f"{remain}, {allowed}: met within 1 %"
    if budget.reached > budget.fraction:
        return f"{remain}, {allowed}: missed"
    if budget.measure == "latency":
        return f"{remain}, {allowed}: faster than asked for"
    return f"{remain}, {allowed}: what could go is too coarse to come nearer from below"


def prediction_text(budget: Budget) -> str | None:
    """How a budget in latency was steered: what the table of layers said of both models."""
    if budget.predicted is None or budget.table_ms is None or budget.whole_ms is None:
        return None
    return (
        f"the table of layers predicted {100 * budget.predicted:.1f} %; for the dense model it sums to"
        f" {budget.table_ms:.3f} ms, and {budget.whole_ms:.3f} ms were measured"
    )


def decoding_text(row: Decoding) -> str:
    """What a decoder's time is of: "a prompt of 128 tokens, 1 thread"."""
    threads = f"{row.speedup.threads} thread{'s' * (row.speedup.threads != 1)}"
    what = f"a prompt of {row.prompt} tokens" if row.part == "prompt" else f"each token after {row.prompt}"
    return f"{what}, {threads}"


def setting_text(setting: Speedup | object) -> str:
    """A timing's setting in words: "batch 64, 1 thread", with device and runtime where they are not the usual ones."""
    device, runtime = getattr(setting, "device", "cpu"), getattr(setting, "runtime", "onnxruntime")
    batch_size, threads = getattr(setting, "batch_size", 1), getattr(setting, "threads", 1)
    length = getattr(setting, "length", None)
    text = f"batch {batch_size}" + (f", length {length}" if length else "")
    if device == "cpu":
        text += f", {threads} thread{'s' * (threads != 1)}"
    else:
        text = f"{device.upper()}, {text}"
    return text if runtime == "onnxruntime" else f"{runtime}, {text}"


def verdict_text(speedup: Speedup) -> str:
    """A speed-up in words, with its interval."""
    interval = f"({speedup.low:.2f}–{speedup.high:.2f})"
    if not speedup.clear:
        return f"no measurable difference {interval}"
    return f"{speedup.ratio:.2f}x {'faster' if speedup.ratio > 1 else 'as fast: slower'} {interval}"


def why_not_faster(report: Report, variant: Variant) -> list[str]:
    """Where an 8-bit variant is not faster than the repacked model, and what its time goes to there; [] if it is."""
    held = [s for s in variant.over_repacked if isinstance(s, Speedup) and s.device == "cpu"]
    slow = [setting_text(s) for s in held if s.low <= 1]
    if not variant.name.startswith("int8") or not slow:
        return []
    profile = next((profile for profile in report.profiles if profile.model == variant.name), None)
    said = f"{variant.name} is not faster than repacked at {'; '.join(slow)}"
    if profile is None or not profile.operators:
        return [said]
    total = sum(operator.ms for operator in profile.operators)
    first = [f"{o.operator} {100 * o.ms / total:.0f} %" for o in profile.operators[:3]]
    whole = sum(
        o.ms
        for o in profile.operators
        if o.operator.removeprefix("Dynamic").startswith(INTEGER) or o.operator.startswith(INTEGER)
    )
    return [f"{said}: {100 * whole / total:.0f} % of its time is in 8-bit operators ({', '.join(first)})"]


def realised(report: Report) -> list[str]:
    """The share of the theoretical gain that the clock shows, and what widths on the machine's steps are worth."""
    shares = [s for s in report.speedup if isinstance(s, Speedup) and s.realised is not None]
    told = ", ".join(f"{100 * (s.realised or 0):.0f} % ({setting_text(s)})" for s in shares)
    lines = [f"of {report.macs_ratio:.2f}x fewer MACs, the clock shows {told}"] if shares else []
    return [*lines, *medians_apart(report), *widths_text(report)]


def widths_text(report: Report) -> list[str]:
    """What the widths that changed are: how many lie on their grain, and a warning that names those that do not."""
    changed = [axis for axis in report.axes if axis.grain is not None and axis.grain > 1 and axis.after != axis.before]
    if not changed:
        return []
    off = [f"{axis.name} {axis.after} (grain {axis.grain})" for axis in changed if axis.off_grain]
    said = f"{len(changed) - len(off)} of {len(changed)} widths that changed are multiples of their grain"
    if not off:
        return [said]
    stairs = report.staircase
    costs = f"; off it a lone convolution costs {stairs.gain:.2f}x per MAC here" if stairs and stairs.gain else ""
    return [f"{said}; not so {few(off, 6)}, for want of another way to the budget{costs}"]


def medians_apart(report: Report) -> list[str]:
    """Timings whose medians, divided, are not what the paired ratio says, with the reason."""
    told = []
    for dense, small, ratio in zip(report.dense.latency, report.repacked.latency, report.speedup, strict=False):
        if isinstance(dense, Latency) and isinstance(small, Latency) and isinstance(ratio, Speedup):
            alone = dense.median_ms / small.median_ms
            if not 0.95 * ratio.low <= alone <= 1.05 * ratio.high:
                told.append(f"{alone:.2f}x for {ratio.ratio:.2f}x at {setting_text(ratio)}")
    if not told:
        return []
    return [
        f"medians divided say {', '.join(told)}: something else ran beside some of the calls; the ratio is of calls "
        "next to each other, which it touched alike"
    ]
