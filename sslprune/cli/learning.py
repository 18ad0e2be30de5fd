"""What the commands do that train: learn a recipe, in one process or several, or rehearse it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sslprune.cli.parts import directory_of, print_json, show_of
from sslprune.cli.together import agreed, joined, launched, restarted

if TYPE_CHECKING:
    from sslprune.recipe import Recipe


def learn(
    read: Callable[[], Recipe], run: Path | None, resume: bool, force: bool, processes: int | None, as_json: bool
) -> None:
    """Train what ``read`` gives, into ``run``, and say where it lies; ``processes``: in so many."""
    if launched(read, processes):
        return
    with joined(processes) as team:
        recipe = agreed(read(), team)
        show, directory = show_of(quiet=not team.first), directory_of(recipe, run)
        from sslprune.run.learn import train as train_model

        resume, force = resume or restarted(), force and not restarted()
        train_model(recipe, directory, show, resume=resume, force=force, team=team)
    if not team.first:
        return
    if as_json:
        print_json({"run": str(directory), "masked": str(directory.masked), "history": str(directory.history)})
    else:
        print(directory.masked)
        show.say(f"next: sslprune repack {shlex.quote(str(directory))}")


def rehearsed(recipe: Recipe, force: bool, as_json: bool) -> None:
    """A few steps, in one process."""
    show = show_of()
    from sslprune.run.rehearse import rehearse
    from sslprune.show.rehearsal import rehearsal

    plan = rehearse(recipe, show, force=force)
    print_json(plan.model_dump()) if as_json else show.result(rehearsal(plan))
