"""How long a person will wait: told once for every long stage of a step, from what was timed of it."""

from __future__ import annotations

import time

TIMED = 1.0
"""Seconds of a stage, at least one batch, from which its whole time is told."""
LONG = 20.0
"""Seconds of a stage from which on a person is told how long it will take."""


class Estimate:
    """What to say of a step's stages while it runs.

    Attributes:
        began: whether the last call began a stage.
    """

    def __init__(self) -> None:
        self.began = False
        self._stage: tuple[int, str] | None = None
        self._last = 0
        self._first = (0, 0.0, "")
        self._told = False

    def __call__(self, done: int, total: int, what: str, /) -> str | None:
        """Take a call of a `numprune.errors.Progress`; returns a sentence once a stage is known to be long."""
        now = time.monotonic()
        stage = (total, what.split(" ")[0])
        self.began = stage != self._stage or done < self._last
        self._last = done
        if self.began:
            # The first batch also takes what is only done once, so time is taken from its end.
            self._stage, self._told, self._first = stage, False, (done, now, what)
            return None
        if self._told or done <= self._first[0] or now - self._first[1] < TIMED:
            return None
        self._told = True
        left = (now - self._first[1]) / (done - self._first[0]) * (total - done)
        if left < LONG:
            return None
        # What changes in a description is the part that is being done.
        name = what if what == self._first[2] else what.split(" ")[0]
        return f"{name[0].upper()}{name[1:]} will take about {duration(left)} on this device."


def duration(seconds: float) -> str:
    """A time as people say it, such as "3 minutes"."""
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}s"
    return f"{seconds:.0f} seconds"


def bound_hub() -> None:
    """Let no question to the hub wait for ever: its client bounds some and leaves the others unbounded.

    The bound is the client's own, HF_HUB_DOWNLOAD_TIMEOUT, 10 seconds without a word unless it is set.
    """
    from huggingface_hub import constants, get_session

    get_session().timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
