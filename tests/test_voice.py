"""Who speaks to a person: the terminal and the silent voice are the same to whoever speaks through them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sslprune.show.terminal import Show
from sslprune.values.voice import SILENT, Voice


def work(voice: Voice) -> list[int]:
    voice.stage("train", "two steps")
    with voice.progress("counting", 3) as bar:
        bar.advance(loss=0.5)
        done = list(bar.over([7, 8]))
    voice.say("done", "yellow")
    return done


def test_the_silent_voice_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert work(SILENT) == [7, 8]
    assert capsys.readouterr() == ("", "")


def test_the_terminal_is_a_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslprune.show.terminal.PLAIN_EVERY", 0.0)
    said = io.StringIO()
    assert work(Show(console=Console(file=said, width=80))) == [7, 8]
    lines = [line.rstrip() for line in said.getvalue().splitlines()]
    assert lines == [
        "",
        "train  two steps",
        "  counting  1/3  loss 0.5",
        "  counting  2/3  loss 0.5",
        "  counting  3/3  loss 0.5",
        "done",
    ]
