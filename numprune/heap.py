"""Memory that was freed goes back to the system.

glibc serves its threads from up to eight heaps for every processor, and each keeps what once was used of it: a server
whose requests run on many threads holds the sum of their peaks, in pieces between what is still in use.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
HEAPS = 2
LATER = 10.0
"""Seconds until memory is given back once more."""


def few_heaps() -> None:
    """Let all threads of the program share a few heaps; call it before there are any.

    How large a block the C library takes from the system for itself, and gives back at once, is left as it is: a lower
    limit makes every large tensor new memory, which costs a forward pass a seventh of its time.
    """
    with suppress(AttributeError):  # other C libraries share one, or have no such function
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, HEAPS)


def give_back() -> None:
    """Give memory that was freed back to the system."""
    gc.collect()
    with suppress(AttributeError):  # other C libraries keep none, and have no such function
        ctypes.CDLL(None).malloc_trim(0)


class GiveBack:
    """Gives memory back now and, once nobody has asked again for a while, once more: what answers nobody waits for any
    longer still hold is freed only when they end."""

    def __init__(self, later: float = LATER) -> None:
        self._later, self._lock = later, threading.Lock()
        self._due: threading.Timer | None = None

    def __call__(self) -> None:
        give_back()
        with self._lock:
            if self._due is not None:
                self._due.cancel()
            self._due = threading.Timer(self._later, give_back)
            self._due.daemon = True
            self._due.start()
