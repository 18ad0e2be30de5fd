"""How long the rest of the training takes, by how long this much of it took."""

from __future__ import annotations

import time
from collections.abc import Callable

from sslprune.train.schedule import Epoch, Schedule
from sslprune.values.durations import duration


class Pace:
    """Looks at a clock as each epoch begins, goes on and ends; between epochs the model is evaluated and written."""

    def __init__(self, schedule: Schedule, clock: Callable[[], float] = time.perf_counter) -> None:
        self._schedule, self._clock = schedule, clock
        self._began = 0.0
        self._ended: float | None = None
        self._between = 0.0  # seconds from the end of an epoch's steps to the beginning of the next

    def begin(self) -> None:
        """The steps of an epoch begin."""
        self._began = self._clock()
        if self._ended is not None:
            self._between = self._began - self._ended

    def end(self) -> None:
        """The steps of an epoch are done."""
        self._ended = self._clock()

    def left(self, epoch: Epoch, step: int) -> dict[str, str]:
        """What stands beside the bar ``step`` steps into ``epoch``; nothing in the last one, whose bar says it."""
        after = self._schedule.epochs[epoch.number + 1 :]
        if not after:
            return {}
        steps = epoch.num_steps - step + sum(one.num_steps for one in after)
        seconds = (self._clock() - self._began) / step * steps + self._between * (1 + len(after))
        return {"run": f"{duration(seconds)} left"}
