"""The page of a report: whole, self-contained, and readable at two widths in a real browser where there is one."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sslprune.report import (
    AxisChange,
    Baseline,
    Budget,
    Change,
    Control,
    OnnxCheck,
    OperatorTime,
    Profile,
    Report,
    Staircase,
)
from sslprune.report.charts import Series, _Scale, chart, matrix_png
from sslprune.report.inspection import Sensitivity
from sslprune.report.page import render, write_page
from tests.test_report import COURSE, figures, report, speedup, variant

VOID = {"meta", "link", "img", "br", "hr", "input"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Strict(HTMLParser):
    """Every tag is closed in its turn; collects the text, the tags and what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def full() -> Report:
    """A report with everything that a page can show, and names that would break one."""
    profiles = [
        Profile(
            model=name,
            batch_size=1,
            threads=1,
            operators=[OperatorTime(operator=f"Conv{i}", calls=3, ms=scale / (i + 1)) for i in range(12)],
        )
        for name, scale in (("dense", 2.0), ("repacked", 1.0))
    ]
    small = figures(2, 97.5, 1.0).model_copy(
        update={"onnx": OnnxCheck(metrics={"accuracy": 97.5}, max_relative=1e-6, samples=360), "load_ms": 12.0}
    )
    last = report(
        recipe="<script>alert(1)</script>",
        course=COURSE,
        repacked=small,
        speedup=[speedup(2.0).model_copy(update={"realised": 0.8}), speedup(1.01, batch_size=1)],
        variants=[variant(), variant(name="a & b", kind="control", macs=None, parameters=None)],
        axes=[AxisChange(name=f"layer{i}.conv", kind="filters", before=64, after=i) for i in range(60)]
        + [AxisChange(name="layer1", kind="layers", before=1, after=0)],
        profiles=profiles,
        controls=[Control(name="scratch", epochs="3ep", parameters=2000, macs=10_000_000, metrics={"accuracy": 91.0})],
        staircase=Staircase(round_to=16, step=16, seconds={32: 0.3, 47: 0.9, 48: 0.6, 64: 1.0}, gain=1.4),
        baseline=Baseline(
            file="old.json",
            recipe="digits",
            same_machine=False,
            changes=[Change(variant="repacked", name="accuracy", before=98, after=97.5, verdict="worse")],
        ),
    )
    first = last.as_point("points/0.5").model_copy(
        update={"budget": Budget(measure="macs", fraction=0.5, reached=0.499), "macs": 12_000_000, "controls": []}
    )
    return last.model_copy(update={"curve": [first, last.as_point(".")]})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    history = [
        {
            "epoch": e,
            "phase": "dense" if e < 3 else "sparse",
            "cost": 1 - 0.1 * max(0, e - 2),
            "plan": 1 - 0.11 * max(0, e - 2),
            "norms": {"filters conv1": 2.0 / e, "layers block1": 3.0 / e},
            "test": {"accuracy": 90.0 + e},
        }
        for e in range(1, 7)
    ]
    (folder / "history.json").write_text(json.dumps(history))
    random = np.random.default_rng(0)
    weights = {f"conv{i}.weight": random.standard_normal((16, 8, 3, 3)).astype(np.float32) for i in range(30)}
    for weight in weights.values():
        weight[4:9] = 0
        weight[:, :2] = 0
    save_file({**weights, "untouched.weight": np.ones((8, 8), np.float32)}, folder / "masked.safetensors")
    return write_page(
        full(), folder / "report.html", history=folder / "history.json", weights=folder / "masked.safetensors"
    )


def parsed(text: str) -> Strict:
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_is_whole_and_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = parsed(text)
    links = [value for value in found.loads if not value.startswith("data:image/png;base64,")]
    assert links == ["points/0.5/report.html"] and len(found.loads) > 1  # a link, which loads nothing
    assert not re.search(r"https?://|@import|url\(|<script|<link", text)
    assert "<script>alert(1)</script>" not in text and "&lt;script&gt;" in text and "a &amp; b" in text
    said = " ".join(found.text)
    for expected in (
        "2.50x smaller", "2.00x faster", "98.00 % → 97.50 %", "2e-07", "proven equal", "All 2 gates passed",
        "at 0.5: min_speedup", "12,000,000", "small, from scratch",
        "no measurable difference (0.91–1.11)", "4.00x faster (3.90–4.10)", "80 % (batch 64, 1 thread)",
        "layer59.conv", "64 → 59", "11 of 16 rows, 6 of 8 columns", "measured on another machine", "no VNNI",
        "step is 16", "On 9 March 2026", "22 batches of 64 an epoch, 67 min", "factory = 'nets:net'",
        "onnxruntime", "scratch", "91.00 %", "CUDA: absent",
    ):  # fmt: skip
        assert expected in said, expected
    assert found.tags.count("img") == 12 and "untouched" not in said
    assert found.tags.count("svg") >= 5  # latency needs two batch sizes, and has one here


def test_a_bare_report_makes_a_page_too(tmp_path: Path) -> None:
    found = parsed(render(report(gates=[], axes=[])))
    assert "img" not in found.tags and "Training" not in " ".join(found.text)
    write_page(report(), tmp_path / "r.html", history=tmp_path / "no.json", weights=tmp_path / "no.safetensors")


@pytest.mark.parametrize("history", ['[{"epoch": 1, "phase": "heal"}]', "[3]", '{"epoch": 1}'])
def test_a_history_that_another_hand_changed_is_not_drawn(history: str, tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(history)
    write_page(report(), tmp_path / "r.html", history=tmp_path / "history.json")
    assert "</html>" in (tmp_path / "r.html").read_text()


def test_what_the_outputs_feel_is_drawn() -> None:
    axes = [
        {"name": "conv<1>", "kind": "filters", "size": 16, "gone": [4, 8, 12], "divergence": [0.0, 0.02, 1.5]},
        {"name": "block", "kind": "layers", "size": 1, "gone": [1], "divergence": [3.25]},
    ]
    budgets = [{"fraction": f, "cut": 3 - f, "repaired": 0.1 / f, "metrics": {"accuracy": 90 * f}} for f in (0.8, 0.5)]
    felt = Sensitivity.model_validate(
        {"samples": 64, "measure": "macs", "dense": {"accuracy": 92.0}, "axes": axes, "budgets": budgets}
    )
    plain, mapped = (parsed(render(report(sensitivity=given))) for given in (None, felt))
    assert mapped.tags.count("svg") - plain.tags.count("svg") == 2
    said = " ".join(mapped.text)
    for expected in ("conv<1>", "0 (4 of 16)", "1.5 (12 of 16)", "3.2 (1 of 1)", "MACs that remain", "on 64 samples"):
        assert expected in said, expected
    assert "What the outputs feel" not in " ".join(plain.text)


def test_charts_and_pictures() -> None:
    drawn = chart([Series("a<b", [(1, 10), (10, 100), (100, float("nan"))], 1, marks=True)], "x", "y", log_x=True)
    assert parsed(drawn).tags.count("circle") == 2 and "a&lt;b" in drawn and "nan" not in drawn
    assert chart([Series("none", [])], "x", "y") == ""
    assert chart([Series("flat", [(0, 0), (1, 0)])], "x", "y").startswith("<svg")
    weight = np.zeros((3, 2, 2), np.float32)
    weight[1] = 1.0
    png = base64.b64decode(matrix_png(weight).partition(",")[2])
    assert png.startswith(b"\x89PNG") and png[16:24] == bytes([0, 0, 0, 4, 0, 0, 0, 3])  # width and height
    body = png[png.index(b"IDAT") + 4 :]
    pixels = np.frombuffer(zlib.decompressobj().decompress(body), np.uint8).reshape(3, 5)[:, 1:]
    assert (pixels[1] == 15).all() and not pixels[[0, 2]].any()
    assert len(matrix_png(np.random.default_rng(0).standard_normal((1000, 3000)))) < 100_000


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("ends", [(1, 3), (2.4, 6.0), (94.7, 98.3), (0.0, 1.0), (-3, 900), (1e-7, 3e-7), (5, 5)])
def test_scales_have_three_marks_at_least(ends: tuple[float, float], log: bool) -> None:
    scale = _Scale(ends, log, 0, 100)
    marks = scale.ticks()
    assert 3 <= len(marks) <= 12 and all(-0.01 <= scale(mark) <= 100.01 for mark in marks), marks


@pytest.mark.parametrize(("last", "marks"), [(1, [1]), (2, [1, 2]), (7, [2, 4, 6]), (40, [0, 20, 40])])
def test_epochs_are_whole(last: int, marks: list[float]) -> None:
    assert _Scale([1.0, float(last)], False, 0, 100).ticks(whole=True) == marks


MEASURE = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
    inner: innerWidth, scroll: document.documentElement.scrollWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, paper: getComputedStyle(document.body).backgroundColor,
    pictures: [...document.images].filter(i => i.naturalWidth > 0).length,
    charts: [...document.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().width > 200).length,
}), "*"));</script>"""
FRAME = """<!doctype html><script>addEventListener("message", (message) => {
  document.body.insertAdjacentHTML("beforeend", "<pre id=seen>" + message.data + "</pre>"); });</script>
<iframe src="copy.html" width="WIDTH" height="800" style="border: 0"></iframe>"""  # no window is as narrow as a phone


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1200, False)])
def test_a_browser_shows_it_at_two_widths(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    text = page.read_text(encoding="utf-8").replace("</body>", MEASURE + "</body>")
    (tmp_path / "copy.html").write_text(text, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", *scheme, "--window-size=1300,900"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    command.append((tmp_path / "frame.html").as_uri())
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search(r'<pre id="seen">(\{.*?\})</pre>', done.stdout)
    assert found is not None, done.stderr[-500:]
    seen = json.loads(found[1])
    assert seen["inner"] == width and seen["scroll"] <= width  # nothing sticks out to the side
    assert seen["dark"] is dark and seen["paper"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert seen["pictures"] == 12 and seen["charts"] >= 5
