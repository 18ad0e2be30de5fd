"""The verdict for a CI job: JUnit XML, and a summary in Markdown for the page of a GitHub job."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree as XML

from sslprune.errors import SslpruneError, printable
from sslprune.files import write_text
from sslprune.report.curve import curve_rows
from sslprune.report.figures import Figures, Variant
from sslprune.report.lead import lead
from sslprune.report.values import Report
from sslprune.report.words import realised, setting_text, verdict_text, why_not_faster
from sslprune.values.amounts import size_text
from sslprune.values.measure import Absent, Speedup
from sslprune.values.metrics import figure


def write_ci(report: Report, junit_file: Path, summary_file: Path) -> None:
    """Write both files, and append the summary to ``$GITHUB_STEP_SUMMARY`` where a GitHub job gives one."""
    write_text(junit_file, junit(report))
    text = markdown(report)
    write_text(summary_file, text)
    step = os.environ.get("GITHUB_STEP_SUMMARY")
    if step:
        try:
            with open(step, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise SslpruneError(f"GITHUB_STEP_SUMMARY={step}: cannot be written: {error.strerror}") from error


def junit(report: Report) -> str:
    """One test case for each gate, in the suite of its model; a gate that was missed is a failure.

    The models of a sweep's points have suites of their own. What XML has no letter for stands as Python writes it.
    """
    recipe = printable(report.recipe)
    root = XML.Element("testsuites", name=f"sslprune {recipe}")
    points = [(f"at {point.budget.fraction:g}: ", point.gates) for point in report.curve] or [("", report.gates)]
    suites = [(at, gates, name) for at, gates in points for name in dict.fromkeys(gate.variant for gate in gates)]
    for at, everything, variant in suites:
        gates = [gate for gate in everything if gate.variant == variant]
        suite = XML.SubElement(
            root,
            "testsuite",
            name=printable(f"{at}{variant}"),
            tests=str(len(gates)),
            failures=str(sum(not gate.passed for gate in gates)),
            errors="0",
            skipped="0",
        )
        for gate in gates:
            name, told = printable(f"{gate.name} ({gate.where})" if gate.where else gate.name), printable(str(gate))
            classname = printable(f"{recipe}.{at}{variant}")
            case = XML.SubElement(suite, "testcase", classname=classname, name=name, time="0")
            if not gate.passed:
                XML.SubElement(case, "failure", message=told, type="gate").text = told
            else:
                XML.SubElement(case, "system-out").text = told
    XML.indent(root)
    return XML.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(report: Report) -> str:
    """The story, the gates, every model's figures and, where there is one, the comparison with an earlier report."""
    dense, small = report.dense, report.repacked
    mark = "✅" if report.passed else "❌"
    lines = [f"## {mark} sslprune: {escaped(report.recipe)}", "", escaped(lead(report)), ""]
    lines += [
        f"{dense.macs / small.macs:.2f}x fewer MACs, {dense.parameters / small.parameters:.2f}x fewer parameters; "
        f"masked = repacked to {report.equivalence.max_relative:.1e} (relative) on"
        f" {report.equivalence.samples:,} test samples.",
        "",
    ]
    if report.whole is not None:
        lines += [f"The whole model: {report.whole_text}.", ""]
    if report.zeros_text:
        lines += [f"{report.zeros_text[0].upper()}{report.zeros_text[1:]}.", ""]
    if report.curve:
        headings, rows = curve_rows(report)
        lines += ["### The curve", "", *_table(headings, [cells for _, cells in rows])]
    if report.every_gate:
        lines += _table(
            ("", "gate", "value", "limit", "judged at"),
            [
                (
                    "✅" if gate.passed else "❌",
                    title,
                    "not measured" if gate.value is None else f"{gate.value:.4g}",
                    f"{gate.limit:g}",
                    gate.judged,
                )
                for title, gate in report.every_gate
            ],
        )
    names = list(dense.metrics)
    models: list[tuple[str, Figures | Variant, Sequence[Speedup | Absent]]] = [
        ("dense", dense, ()),
        ("repacked", small, report.speedup),
        *((variant.name, variant, variant.speedup) for variant in report.variants),
    ]
    settings = [s for s in report.speedup if isinstance(s, Speedup)]
    table = []
    for name, figures, speedup in models:
        known = {setting_text(s): s for s in speedup if isinstance(s, Speedup)}
        table.append(
            (
                name,
                "" if figures.parameters is None else f"{figures.parameters:,}",
                "" if figures.macs is None else f"{figures.macs:,}",
                size_text(figures.file_bytes),
                *(figure(figures.metrics[key]) if key in figures.metrics else "" for key in names),
                *(verdict_text(known[setting_text(s)]) if setting_text(s) in known else "" for s in settings),
            )
        )
    lines += _table(
        ("model", "parameters", "MACs", "ONNX file", *names, *(f"speed-up, {setting_text(s)}" for s in settings)),
        table,
    )
    lines += [f"{escaped(line)}.\n" for line in realised(report)]
    for variant in report.variants:
        lines += [f"{escaped(note)}.\n" for note in [*variant.notes, *why_not_faster(report, variant)]]
    if report.baseline is not None:
        changed = [change for change in report.baseline.changes if change.verdict != "same"]
        where = "" if report.baseline.same_machine else " (measured on another machine)"
        lines += [f"### Since {escaped(report.baseline.file)}{where}", ""]
        if changed:
            lines += _table(
                ("model", "figure", "before", "now", ""),
                [(c.variant, c.name, f"{c.before:.6g}", f"{c.after:.6g}", c.verdict) for c in changed],
            )
        else:
            lines += ["No measurable change.", ""]
    machine = {key: escaped(str(value)) for key, value in report.environment.items()}
    lines += [
        f"<sub>{machine.get('processor', '')}, {machine.get('cores', '?')} cores, onnxruntime"
        f" {machine.get('onnxruntime', '?')}, torch {machine.get('torch', '?')}</sub>",
        "",
    ]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """``text`` as Markdown shows it letter by letter: no markup, no HTML, no link, no mention, on one line."""
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "&#64;"), ("://", "&#58;//")):
        text = text.replace(letter, entity)
    marks = r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])|^[#+-]"  # an underscore within a word is one
    return printable(re.sub(marks, lambda mark: f"\\{mark[0]}", text))


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return [line(map(escaped, heading)), line(["---"] * len(heading)), *(line(map(escaped, row)) for row in rows), ""]
