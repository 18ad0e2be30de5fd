"""The documentation: runnable blocks run and print what they say, links lead somewhere, sentences are short."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from sslprune.cli import app
from sslprune.data import digits
from sslprune.recipe import parse_recipe
from sslprune.zoo import digits_cnn
from tests.test_imports import ROOMS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
WRITTEN = [page for page in PAGES if page.name not in ("recipe.md", "coverage.md")]  # by people, not by a script
MOST_LINES = 150  # of README.md
MOST_NUMBERS = 2  # in a sentence
BLOCK = re.compile(
    r"^(?P<mark><!-- runnable -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$"
    r"(?:\n\n<!-- prints -->\n```text\n(?P<prints>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
QUICK = {  # the digits' recipe, but short, and with no gate that so short a run could miss
    "arguments = { width = 48 }": "arguments = { width = 32 }",
    'dense  = "15ep"': 'dense  = "2ep"',
    'sparse = "15ep"': 'sparse = "60it"',
    'heal   = "25ep"': 'heal   = "20it"',
    "max_metric_drop = 1.0": "max_metric_drop = 100.0",
    "min_speedup     = 1.3": "min_speedup     = 0.01",
}
FILLED = {  # a recipe that `init` wrote, by its reader
    'checkpoint = "weights': '# checkpoint = "weights',
    '# dense = "10ep"': 'dense = "10ep"',
    'factory = "my_data.py:loaders"': 'train = "train.parquet"\ntest = "test.parquet"',
}
MY_MODELS = """
from torch import nn

def build_net():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and what stands below it as what it prints."""

    language: str
    text: str
    runnable: bool
    prints: str | None


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["language"], m["text"], m["mark"] is not None, m["prints"]) for m in found]


def runnable(language: str) -> list[Any]:
    """The pages with runnable blocks of a language, each with them."""
    chosen = [(page, [b for b in blocks(page) if b.runnable and b.language == language]) for page in PAGES]
    return [pytest.param(found, id=page.stem) for page, found in chosen if found]


def invoke(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    assert program == "sslprune", line
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"{line}\n{result.output}"


def write_pictures(path: Path, count: int) -> None:
    """Red and green pictures in the Hugging Face image layout."""
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = []
    for label in np.arange(count) % 2:
        pixels = np.random.default_rng(len(rows)).integers(0, 60, (8, 8, 3), np.uint8)
        pixels[..., label] += 180
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "PNG")
        rows.append({"image": {"bytes": encoded.getvalue(), "path": None}, "label": int(label)})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a reader of the pages stands: recipes, a model and data of their own, and the digits' run, finished."""
    place = tmp_path_factory.mktemp("reader")
    recipe = (ROOT / "recipes/digits.toml").read_text(encoding="utf-8")
    for long, short in QUICK.items():
        assert long in recipe
        recipe = recipe.replace(long, short)
    (place / "recipes").mkdir()
    (place / "recipes/digits.toml").write_text(recipe)
    (place / "my_models.py").write_text(MY_MODELS)
    write_pictures(place / "train.parquet", 64)
    write_pictures(place / "test.parquet", 32)
    Image.fromarray(digits()[1].pixels[7, 0].numpy()).save(place / "seven.png")
    first = next(block for block in blocks(README) if block.language == "sh").text
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
        patch.setattr("sslprune.bench.timing.ENOUGH", 0.01)
        invoke(first.rpartition("&& ")[2])
        yield place


@pytest.mark.parametrize("found", runnable("sh"))
def test_commands_run(folder: Path, found: list[Block]) -> None:
    for line in "".join(block.text for block in found).splitlines():
        invoke(line)
        if line.startswith("sslprune init"):  # what a reader does next: the model is a new one, to be trained first
            mine = folder / "my.toml"
            text = mine.read_text()
            for old, new in FILLED.items():
                assert old in text
                text = text.replace(old, new, 1)
            mine.write_text(text)


@pytest.mark.parametrize("found", runnable("python"))
def test_code_runs_and_prints_what_it_says(folder: Path, found: list[Block]) -> None:
    """The blocks of a page share their names, as in one session; those of README find a reader's own there."""
    from sslprune.analysis.rules import RULES
    from sslprune.kinds.table import KINDS

    names: dict[str, Any] = {"__name__": "page", **of_a_reader()}
    with mock.patch.dict(RULES), mock.patch.dict(KINDS):  # a page may add one
        for block in found:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text, "page", "exec"), names)
            assert block.prints is None or printed.getvalue() == block.prints


def of_a_reader() -> dict[str, Any]:
    """A model, batches and a training step."""
    torch.manual_seed(0)
    model, lr = digits_cnn(width=8), 0.05
    batches = [(torch.randn(4, 1, 8, 8), torch.randint(10, (4,))) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr)

    def train_step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    import sslprune

    return {
        "sslprune": sslprune,
        "model": model,
        "batches": batches,
        "images": batches[0][0],
        "train_step": train_step,
        "lr": lr,
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_recipes_have_fields_that_there_are(page: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            values = tomllib.loads(block.text)
            values.setdefault("model", {"factory": "sslprune.zoo:lenet"})
            values.setdefault("data", {"factory": "sslprune.data:digits"})
            values.setdefault("prune", [{"kind": "filters"}])
            values.setdefault("schedule", {"sparse": "1ep", "heal": "1ep"})
            if "strength" not in values.get("lasso", {}):
                values.setdefault("budget", {"macs": 0.5})
            parse_recipe(values)


def test_the_run_has_the_files_that_readme_lists(folder: Path) -> None:
    table = README.read_text(encoding="utf-8").partition("## What lands in RUN")[2].partition("\n## ")[0]
    files = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)]
    assert len(files) > 8
    for name in files:
        assert (folder / "runs/digits" / name).exists(), name


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_readme_lists_the_rooms() -> None:
    rooms = re.findall(r"^(\w+)/ ", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert rooms == [room for room in ROOMS if room not in ("errors", "files")]


def plain(page: Path) -> str:
    """The text of a page without fenced blocks (a dash in place of each), comments and inline code."""
    text = re.sub(r"^```.*?^```$", "-", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->|`[^`]*`", "", text)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", plain(page)):
        if not link.startswith(("http://", "https://")):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def sentences(page: Path) -> Iterator[str]:
    """Sentences of paragraphs and of list items; no headings, no tables."""
    text = re.sub(r"\]\([^)]*\)", "]", plain(page))
    text = "\n".join("" if line.startswith(("|", "#")) else line for line in text.splitlines())
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:-|\d+\.) )", text):
        yield from re.split(r"(?<=[.!?])[*)]*\s+", " ".join(paragraph.split()))


DIGITS = r"\d(?:[\d,.]*\d)?"
NUMBER = re.compile(rf"(?<![\w./-]){DIGITS}(?:(?:[-–/x]| [±+] ){DIGITS})*")  # a range is one, ResNet-56 is none


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_a_sentence_has_few_numbers(page: Path) -> None:
    for sentence in sentences(page):
        found = NUMBER.findall(re.sub(r"^\d+\. ", "", sentence))
        assert len(found) <= MOST_NUMBERS, f"{page.name}: {found} in: {sentence}"


def test_what_counts_as_a_number() -> None:
    assert NUMBER.findall("ResNet-56 at 0.39 of 125.5 M in 2-3 steps of 5 + 10, 1/2.11, 87.4 ± 0.1 %") == [
        "0.39",
        "125.5",
        "2-3",
        "5 + 10",
        "1/2.11",
        "87.4 ± 0.1",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_stand_alone(page: Path) -> None:
    """Without an empty line before it the site shows a table as text."""
    lines = plain(page).splitlines()
    assert not [b for a, b in itertools.pairwise(lines) if b.startswith("|") and a and not a.startswith("|")]


def test_the_site_has_every_page() -> None:
    nav = re.findall(r"^  - .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(nav) == [page.name for page in DOCS]
