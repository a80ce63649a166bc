"""What runs for each browser tab: how far it is, and the event that stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from numprune.waiting import Estimate


@dataclass
class Job:
    """A long step.

    Attributes:
        cancel: set to stop it.
        what: it is doing, as the engine says.
        done, total: steps of what it is doing; a total of 0 means that nobody knows.
        began: when what it is doing began, in seconds of `time.monotonic`.
        say: called with a sentence, once for every long stage, when its time is known.
    """

    cancel: threading.Event = field(default_factory=threading.Event)
    what: str = "starting"
    done: int = 0
    total: int = 0
    began: float = field(default_factory=time.monotonic)
    say: Callable[[str], Any] | None = None
    _estimate: Estimate = field(default_factory=Estimate)

    def progress(self, done: int, total: int, what: str) -> None:
        """The engine's progress callback."""
        if what != self.what or done < self.done:
            self.began = time.monotonic()
        self.what, self.done, self.total = what, done, total
        sentence = self._estimate(done, total, what)
        if sentence is not None and self.say is not None:
            self.say(sentence)

    @property
    def seconds_left(self) -> float | None:
        """Of what it is doing, judged by its steps so far; None while nobody can tell."""
        took = time.monotonic() - self.began
        if not 0 < self.done < self.total or took < 1:
            return None
        return took * (self.total - self.done) / self.done

    def to_dict(self) -> dict[str, Any]:
        """As the header shows it."""
        left = self.seconds_left
        return {
            "what": self.what,
            "done": self.done,
            "total": self.total,
            "left": None if left is None else round(left),
        }


class Jobs:
    """The running jobs, by tab."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, list[Job]] = {}

    def begin(self, owner: str, say: Callable[[str], Any] | None = None) -> Job:
        job = Job(say=say)
        with self._lock:
            self._running.setdefault(owner, []).append(job)
        return job

    def end(self, owner: str, job: Job) -> None:
        with self._lock:
            running = self._running.get(owner, [])
            if job in running:
                running.remove(job)
            if not running:
                self._running.pop(owner, None)

    def running(self, owner: str) -> list[Job]:
        """The tab's jobs, oldest first."""
        with self._lock:
            return list(self._running.get(owner, ()))

    def stop(self, owner: str) -> int:
        """Ask the tab's jobs to stop; returns how many were running."""
        running = self.running(owner)
        for job in running:
            job.cancel.set()
        return len(running)
