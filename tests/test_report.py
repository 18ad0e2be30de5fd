"""The report keeps its schema, judges its gates, and is shown as it is."""

from __future__ import annotations

import io
import json
import tomllib
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from sslprune.errors import RecipeError, RunError, SslpruneError, printable
from sslprune.recipe import GatesSection, Recipe, parse_recipe
from sslprune.report import (
    SCHEMA_FILE,
    Absent,
    AxisChange,
    Budget,
    Equivalence,
    Figures,
    Gate,
    Latency,
    OperatorTime,
    Profile,
    Report,
    Speedup,
    Variant,
    compare_reports,
    environment,
    judge,
    report_schema,
)
from sslprune.report.ci import escaped, markdown, write_ci
from sslprune.report.course import Course
from sslprune.report.lead import lead
from sslprune.report.words import medians_apart, widths_text
from sslprune.run.export import timed_batches
from sslprune.show.summary import Written, grouped, summary
from sslprune.show.terminal import Show

PROOF = Equivalence(max_abs=1e-6, max_relative=2e-7, samples=360, metrics={"accuracy": 97.5})


def latency(median: float, threads: int = 1) -> Latency:
    setting: dict[str, Any] = {"device": "cpu", "runtime": "onnxruntime", "batch_size": 64, "threads": threads}
    return Latency(**setting, median_ms=median, p95_ms=2 * median, repetitions=30)


def speedup(ratio: float, batch_size: int = 64, device: str = "cpu", spread: float = 0.1) -> Speedup:
    setting: dict[str, Any] = {"device": device, "runtime": "onnxruntime", "batch_size": batch_size, "threads": 1}
    return Speedup(**setting, ratio=ratio, low=ratio - spread, high=ratio + spread)


def figures(scale: int, accuracy: float, median: float) -> Figures:
    return Figures(
        parameters=1000 * scale,
        macs=5_000_000 * scale,
        file_bytes=4000 * scale,
        metrics={"accuracy": accuracy},
        latency=[latency(median), Absent(device="cuda")],
    )


def report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "recipe": "digits",
        "budget": Budget(measure="macs", fraction=0.4, reached=0.4),
        "dense": figures(5, 98.0, 2.0),
        "repacked": figures(2, 97.5, 1.0),
        "speedup": [speedup(2.0), Absent(device="cuda")],
        "equivalence": PROOF,
        "axes": [AxisChange(name="conv1", kind="filters", before=16, after=9)],
        "environment": environment(),
        "gates": [Gate(name="min_speedup", limit=1.3, value=2.0, passed=True)],
    }
    return Report(**{**values, **changes})


RUN = Path("runs/digits")
WRITTEN = Written(
    RUN,
    onnx=RUN / "export/model.onnx",
    program=RUN / "repacked/model.pt2",
    weights=RUN / "repacked/weights.safetensors",
    page=RUN / "report.html",
    report=RUN / "report.json",
)


def shown(value: Report, width: int = 80) -> str:
    out = Console(file=io.StringIO(), width=width)
    Show(out=out).result(summary(value, WRITTEN))
    return out.file.getvalue()  # type: ignore[attr-defined]


def test_the_file_has_the_documented_keys(tmp_path: Path) -> None:
    written = json.loads(report().save(tmp_path / "report.json").read_text())
    assert written["schema"] == 1
    documented = {"dense", "repacked", "speedup", "equivalence", "axes", "environment", "gates"}
    assert documented <= set(written)
    for model in ("dense", "repacked"):
        assert {"parameters", "macs", "file_bytes", "metrics", "latency"} <= set(written[model])
        assert {"device": "cuda", "absent": True}.items() <= written[model]["latency"][1].items()
    keys = {"device", "runtime", "batch_size", "threads"}
    assert set(written["dense"]["latency"][0]) >= keys | {"median_ms", "p95_ms", "repetitions"}
    assert keys | {"ratio"} <= set(written["speedup"][0])
    assert {"max_abs", "max_relative", "samples"} <= set(written["equivalence"])
    assert set(written["axes"][0]) == {"name", "kind", "before", "after", "grain"}
    assert {"name", "limit", "value", "passed"} <= set(written["gates"][0])
    assert Report.load(tmp_path / "report.json") == report()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "recipe: "),
        ('{"schema": 2}', "schema 2, written by a newer sslprune"),
        ("no", "the file: "),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_report(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    with pytest.raises(RunError, match=said) as caught:
        Report.load(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def recipe(**sections: Any) -> Recipe:
    plain: dict[str, Any] = {
        "model": {"factory": "a:b"},
        "data": {"factory": "a:b", "batch_size": 64},
        "prune": [{"kind": "filters"}],
        "budget": {"macs": 0.4},
        "schedule": {"sparse": "1ep", "heal": "1ep"},
    }
    return parse_recipe({**plain, **sections})


def variant(**changes: Any) -> Variant:
    values: dict[str, Any] = {
        "name": "int8-static", "kind": "quantized", "file": "int8-static.onnx", "parameters": 2000, "macs": 10_000_000,
        "metrics": {"accuracy": 97.0}, "file_bytes": 3000, "latency": [latency(0.5)], "max_relative": 0.02,
        "speedup": [speedup(4.0), speedup(6.0, batch_size=1)], "over_repacked": [speedup(1.0)],
        "notes": ["no VNNI"],
    }  # fmt: skip
    return Variant(**{**values, **changes})


def test_gates() -> None:
    gates = dict(
        max_metric_drop=0.5, min_metric=97.5, min_speedup=1.5, max_macs=0.4, max_parameters=1999, max_file_bytes=8000,
        max_output_difference=1e-7,
    )  # fmt: skip
    ratios: list[Speedup | Absent] = [
        speedup(1.6),
        speedup(1.4),
        speedup(1.0, batch_size=1),
        speedup(1.0, device="cuda"),
        Absent(device="cuda"),
    ]
    judged = judge(recipe(gates=gates), figures(5, 98.0, 2.0), figures(2, 97.5, 1.0), ratios, PROOF)
    assert {gate.name: (gate.value, gate.passed) for gate in judged} == {
        "max_metric_drop": (0.5, True),
        "min_metric": (97.5, True),
        "min_speedup": (1.4, False),
        "max_macs": (0.4, True),
        "max_parameters": (2000, False),
        "max_file_bytes": (8000, True),
        "max_output_difference": (2e-7, False),
    }
    assert not report(gates=judged).passed and report().passed


@pytest.mark.parametrize(
    ("sections", "batches"),
    [
        ({}, [1, 64]),
        ({"bench": {"batch_sizes": [2]}}, [2]),  # a batch of training may be far too large to be timed
        ({"bench": {"batch_sizes": [2]}, "gates": {"min_speedup": 1.5}}, [2, 64]),
        ({"bench": {"batch_sizes": [2]}, "gate": [{"min_speedup": 2.0, "batch_size": 8}, {"max_macs": 0.5}]}, [2, 8]),
    ],
)
def test_what_the_recipe_and_its_gates_name_is_timed(sections: dict[str, Any], batches: list[int]) -> None:
    assert timed_batches(recipe(**sections)) == batches


def test_gates_of_a_variant_and_of_one_timing() -> None:
    wanted = recipe(
        export={"quantize": "int8-static"},
        gates={},
        gate=[
            {"variant": "int8-static", "min_speedup": 5.0, "max_metric_drop": 0.5, "max_output_difference": 0.05},
            {"variant": "int8-static", "min_speedup": 5.0, "batch_size": 1, "threads": 0},
            {"variant": "int8-static", "min_speedup": 5.0, "device": "cuda"},
        ],
    )
    dense, small = figures(5, 98.0, 2.0), figures(2, 97.5, 1.0)
    judged = judge(wanted, dense, small, [speedup(2.0)], PROOF, [variant()])
    assert [(gate.title, gate.value, gate.passed) for gate in judged] == [
        ("max_output_difference", 2e-7, True),  # the one that every recipe has
        ("int8-static: max_metric_drop", 1.0, False),
        ("int8-static: min_speedup", 4.0, False),
        ("int8-static: max_output_difference", 0.02, True),
        ("int8-static: min_speedup (cpu, batch 1, 1 thread)", 6.0, True),
        ("int8-static: min_speedup (cuda, batch 64)", None, False),
    ]


def test_a_gate_on_what_is_not_built_is_one_line() -> None:
    with pytest.raises(RecipeError, match='no variant "int8-static" is built; there are repacked, fp16, small: add'):
        recipe(
            export={"quantize": ["fp16"]},
            control=[{"name": "small", "factory": "a:b"}],
            gate=[{"variant": "int8-static", "min_speedup": 1.0}],
        )
    with pytest.raises(RecipeError, match='"fp16" names two models'):
        recipe(export={"quantize": ["fp16"]}, control=[{"name": "fp16", "factory": "a:b"}])
    with pytest.raises(RecipeError, match="either a factory or an onnx file"):
        recipe(control=[{"name": "small"}])


def test_the_documented_gates_are_a_recipe() -> None:
    text = (Path(__file__).parent.parent / "docs/ci.md").read_text(encoding="utf-8")
    found = recipe(**tomllib.loads(text.partition("```toml\n")[2].partition("```")[0]))
    assert [gate.variant for gate in found.gate] == ["int8-static"] and found.control[0].name == "resnet20"
    for name in GatesSection.model_fields:
        assert f"`{name}`" in text, name


def test_what_was_not_measured_fails() -> None:
    gates = dict(min_speedup=1.5)
    judged = judge(recipe(gates=gates), figures(5, 98.0, 2.0), figures(2, 97.5, 1.0), [Absent(device="cuda")], PROOF)
    assert [(gate.value, gate.passed) for gate in judged] == [(None, False), (2e-7, True)]


def test_junit_and_the_step_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missed = Gate(name="min_speedup", limit=5, value=4.0, passed=False, variant="int8-static", where="cpu, batch 64")
    value = report(variants=[variant()], gates=[*report().gates, missed])
    (tmp_path / "step.md").write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    write_ci(value, tmp_path / "junit.xml", tmp_path / "summary.md")
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in suites] == [
        ("repacked", "1", "0"),
        ("int8-static", "1", "1"),
    ]
    failure = suites.find("testsuite/testcase/failure")
    assert failure is not None
    assert failure.get("message") == "int8-static: min_speedup (cpu, batch 64) is 4, limit 5"
    text = (tmp_path / "summary.md").read_text()
    assert (tmp_path / "step.md").read_text() == "before\n" + text
    assert "| ❌ | int8-static: min_speedup (cpu, batch 64) | 4 | 5 |" in text
    assert "4.00x faster (3.90–4.10)" in text
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no/step.md"))
    with pytest.raises(SslpruneError, match=r"GITHUB_STEP_SUMMARY=.*cannot be written"):
        write_ci(value, tmp_path / "junit.xml", tmp_path / "summary.md")


def test_names_stay_text_in_both_files(tmp_path: Path) -> None:
    odd = "a\x00\x1b[31m\nb <img src=x onerror=alert(1)> | [x](http://evil) `c` *d* _e_ @f ]]> \ud800"
    gate = Gate(name="min_speedup", limit=5, value=4.0, passed=False, variant=odd, where=odd)
    value = report(recipe=odd, variants=[variant(name=odd, notes=[odd])], gates=[*report().gates, gate])
    value = value.model_copy(update={"environment": {"processor": odd}, "baseline": compare_reports(value, value, odd)})
    write_ci(value, tmp_path / "junit.xml", tmp_path / "summary.md")
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suites.get("name") == f"sslprune {printable(odd)}"
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    for markup in ("<img", "[x](", "http://", "`c`", " *d*", " _e_", "@f", "\x1b", "\x00"):
        assert markup not in text, markup
    assert all(line.count(" | ") == 4 for line in text.splitlines() if line.startswith("| ❌"))
    assert escaped("max_metric_drop of int8-static") == "max_metric_drop of int8-static"
    assert escaped("# a - b") == "\\# a - b"


def test_what_changed_since_an_earlier_report(tmp_path: Path) -> None:
    now = report(repacked=figures(2, 97.0, 1.0), speedup=[speedup(1.7), Absent(device="cuda")], variants=[variant()])
    found = compare_reports(report(variants=[variant(file_bytes=2000)]), now, "old.json")
    changed = {(c.variant, c.name): c.verdict for c in found.changes if c.verdict != "same"}
    assert changed == {
        ("repacked", "accuracy"): "worse",
        ("repacked", "speed-up, batch 64, 1 thread"): "worse",
        ("int8-static", "file_bytes"): "worse",
    }
    again = compare_reports(report(), report(speedup=[speedup(2.15), Absent(device="cuda")]), "old.json")
    assert again.same_machine and {c.verdict for c in again.changes} == {"same"}  # the intervals overlap
    assert "no measurable change" in shown(report(baseline=again))
    assert "worse" in shown(report(baseline=found))


COURSE = Course(
    model="nets:net", task="classification", day=date(2026, 3, 9), seconds=4000, data="a.csv, b.csv", train_batches=22,
    batch_size=64, test_samples=360, recipe="[model]\nfactory = 'nets:net'\n",
)  # fmt: skip


def test_the_first_sentence_says_who_when_how_long_what_and_at_what_loss() -> None:
    assert lead(report(course=COURSE)) == (
        "On 9 March 2026, digits made nets:net smaller in 67 min of training: 2.50x fewer MACs and 2.00x the speed "
        "(batch 64, 1 thread), with test accuracy from 98.00 % to 97.50 % (± 1.6 points, over 360 test samples)."
    )
    tagged = COURSE.model_copy(update={"task": "tagging", "seconds": 0.0})
    said = lead(report(course=tagged, speedup=[speedup(1.02)]))
    assert "without training: 2.50x fewer MACs and no measurable difference in speed" in said
    assert said.endswith("from 98.00 % to 97.50 % (over 360 test samples).")  # its places do not stand alone
    assert lead(report(speedup=[speedup(0.8)])).startswith(
        "digits has 2.50x fewer MACs and 0.80x the speed, slower (batch 64, 1 thread), with"
    )
    sure = report(course=COURSE, repacked=figures(2, 100.0, 1.0), dense=figures(5, 100.0, 2.0))
    assert "unchanged at 100.00 % (± 0.3 points" in lead(sure)  # of 360 that are right the next may be wrong


def test_widths_are_told_as_they_are() -> None:
    kept = AxisChange(name="conv2", kind="filters", before=64, after=32, grain=16)
    off, whole = (kept.model_copy(update={"name": n, "after": a}) for n, a in (("conv1", 13), ("conv3", 64)))
    branch = AxisChange(name="block", kind="layers", before=1, after=0)
    assert widths_text(report(axes=[kept, whole, branch])) == [
        "1 of 1 widths that changed are multiples of their grain"
    ]
    [said] = widths_text(report(axes=[kept, off, whole, branch]))
    assert said.startswith("1 of 2 widths") and "not so conv1 13 (grain 16)" in said and "convolution" not in said
    assert widths_text(report()) == [] and "multiples" not in shown(report())  # a report of an earlier version
    assert "conv1 13 (grain 16)" in " ".join(shown(report(axes=[off])).split())


def test_medians_that_say_something_else_are_explained() -> None:
    assert medians_apart(report()) == []
    [said] = medians_apart(report(dense=figures(5, 98.0, 5.0)))  # 5 ms over 1 ms, and pairs say twice
    assert said.startswith("medians divided say 5.00x for 2.00x at batch 64, 1 thread")
    for told in (shown(report(dense=figures(5, 98.0, 5.0))), markdown(report(dense=figures(5, 98.0, 5.0)))):
        assert "5.00x for 2.00x" in " ".join(told.split())


def test_a_summary_has_sizes_for_people() -> None:
    text = markdown(report(course=COURSE))
    assert "20.0 kB" in text and "20,000" not in text and "On 9 March 2026" in text


def test_the_published_schema_is_that_of_the_report() -> None:
    published = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert published == report_schema(), "run: python scripts/report_schema.py"
    assert {"dense", "repacked", "speedup", "equivalence", "axes"} <= set(published["required"])
    assert "schema" in published["properties"] and published["properties"]["schema"]["const"] == 1


def test_the_summary_fits_and_tells_all() -> None:
    text = shown(report())
    assert max(len(line) for line in text.splitlines()) <= 80
    for expected in (
        "2.50x fewer MACs", "accuracy -0.50 points", "25.00 M", "40.0 % left, budget 40 %", "98.00 %",
        "0.50 points lower",
        "2.00x faster (1.90\u20132.10)", "no such device here", "conv1", "16", "9", "2.0e-07", "360 test samples",
        "both score accuracy 97.50 %", "runs/digits/", "export/model.onnx", "min_speedup",
    ):  # fmt: skip
        assert expected in text, expected


def test_the_summary_does_not_flatter() -> None:
    slower = report(speedup=[speedup(0.8), Absent(device="cuda")], repacked=figures(2, 90.0, 2.5))
    assert "0.80x as fast: slower" in shown(slower)
    assert "masked scores accuracy 97.50 %" in shown(slower)
    assert "no measurable difference (0.95\u20131.15)" in shown(report(speedup=[speedup(1.05), Absent(device="cuda")]))


def test_the_summary_tells_of_variants_operators_and_the_realised_gain() -> None:
    profiles = [
        Profile(
            model=model,
            batch_size=1,
            threads=1,
            operators=[
                OperatorTime(operator="Conv", calls=9, ms=ms),
                OperatorTime(operator="Reshape", calls=1, ms=0.1),
            ],
        )
        for model, ms in (("dense", 4.0), ("repacked", 2.0))
    ]
    quantized = [OperatorTime(operator=o, calls=1, ms=t) for o, t in (("QLinearConv", 3.0), ("Transpose", 1.0))]
    profiles.append(Profile(model="int8-static", batch_size=1, threads=1, operators=quantized))
    realised = speedup(2.0).model_copy(update={"realised": 0.8})
    text = shown(report(variants=[variant()], profiles=profiles, speedup=[realised, Absent(device="cuda")]), width=110)
    why = "int8-static is not faster than repacked at batch 64, 1 thread: 75 % of its time is in"
    for expected in (why, "4.00x faster", "97.00 %", "9 x, 4.00 ms", "9 x, 2.00 ms", "2.10 ms", "no VNNI",
                     "of 2.50x fewer MACs, the clock shows 80 % (batch 64, 1 thread)"):  # fmt: skip
        assert expected in text, expected


def test_many_axes_stand_together() -> None:
    axes = [AxisChange(name="stem", kind="filters", before=16, after=16)]
    for stage in (1, 2):
        for block in range(20):
            axes.append(AxisChange(name=f"layer{stage}.{block}.conv1", kind="filters", before=8, after=stage))
            axes.append(AxisChange(name=f"layer{stage}.{block}", kind="layers", before=1, after=block % 2))
    assert grouped(axes) == [
        ("stem", "filters", 1, 16, 16),
        ("layer1.*.conv1", "filters", 20, 160, 20),
        ("layer1.*", "layers", 20, 20, 10),
        ("layer2.*.conv1", "filters", 20, 160, 40),
        ("layer2.*", "layers", 20, 20, 10),
    ]
    assert len(grouped(axes[:25])) == 25


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show(quiet=True)
    show.say("a")
    show.stage("b", "c")
    show.result("d")
    with show.progress("e", 3) as bar:
        bar.advance(loss=0.1)
    assert capsys.readouterr() == ("", "")


def test_plain_lines_when_not_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslprune.show.terminal.PLAIN_EVERY", 0.0)
    show = Show()
    with show.progress("sparse [1/2]", 2) as bar:
        bar.advance(loss=0.12345, cost=0.5)
    assert capsys.readouterr().err == "  sparse [1/2]  1/2  loss 0.1235  cost 0.5\n"


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslprune.show.terminal.FIRST_SEEN", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    show = Show(console=console)
    with show.progress("outer", 2) as bar, show.progress("inner"):
        bar.advance(1, loss=0.5)
        assert show._progress is not None
        show._progress.refresh()
        show.say("a line above")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "outer" in text and "1/2" in text and "a line above" in text
