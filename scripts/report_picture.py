"""Take a picture of a run's report.html, the sections that fit on one screen, for README.md: docs/report.png.

    sslprune run recipes/digits.toml && python scripts/report_picture.py runs/digits

Needs chromium (Debian's package has that name) and the extra `images`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

from sslprune.files import write_atomic
from sslprune.run.directory import RunDirectory

PICTURE = Path(__file__).parents[1] / "docs" / "report.png"
SHOWN = ("Widths, before and after", "Training", "Weight matrices")  # below the tiles, which have no heading
SIZE = (1100, 4000)  # pixels; what is empty below is cut away
MARGIN = 24
COLOURS = 128
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def sections_shown(page: str) -> str:
    """The page without the sections that are not ``SHOWN``."""

    def chosen(section: re.Match[str]) -> str:
        heading = re.search(r"<h2>(.*?)</h2>", section[0])
        return section[0] if heading is None or heading[1] in SHOWN else ""

    return re.sub(r"<section.*?</section>", chosen, page, flags=re.DOTALL)


def photograph(page: Path, picture: Path, browser: str) -> None:
    """Write ``page`` as a browser shows it to ``picture``, cut to what is on it."""
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                   "--hide-scrollbars", f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}",
                   f"--screenshot={picture}", page.as_uri()]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    whole = Image.open(picture).convert("RGB")
    paper = Image.new("RGB", whole.size, whole.getpixel((0, 0)))
    box = ImageChops.difference(whole, paper).getbbox()
    assert box is not None, f"{page} shows nothing"
    cut = whole.crop((0, 0, whole.width, min(whole.height, box[3] + MARGIN)))
    cut.quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed; on Debian: apt-get install chromium")
    report = RunDirectory(options.run).page
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(sections_shown(report.read_text(encoding="utf-8")), encoding="utf-8")
        write_atomic(options.out, lambda picture: photograph(page, picture, browser))
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
