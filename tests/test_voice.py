"""Who speaks to a person: the terminal and the silent voice are the same to whoever speaks through them."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from sslprune.show.terminal import Show
from sslprune.train.pace import Pace
from sslprune.train.schedule import Epoch, Schedule
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


def test_the_rest_of_the_run_stands_beside_the_bar() -> None:
    epochs = (Epoch("sparse", 0, 10, "sparse 1/2"), Epoch("sparse", 1, 10, "sparse 2/2"))
    clock = iter([0.0, 5.0, 10.0, 13.0, 17.0])
    pace = Pace(cast(Schedule, SimpleNamespace(epochs=epochs)), lambda: next(clock))
    pace.begin()
    assert pace.left(epochs[0], 5) == {"run": "15 s left"}  # a step is a second, and fifteen are left
    pace.end()
    pace.begin()  # three seconds were between
    assert pace.left(epochs[1], 4) == {}  # the last epoch's own bar says it
    again = (*epochs, Epoch("heal", 2, 10, "heal 1/1"))
    pace = Pace(cast(Schedule, SimpleNamespace(epochs=again)), iter([0.0, 10.0, 13.0, 17.0]).__next__)
    pace.begin()
    pace.end()
    pace.begin()
    assert pace.left(again[1], 4) == {"run": "22 s left"}  # sixteen steps, and twice what was between
