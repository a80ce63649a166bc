"""Errors a person is meant to read: one sentence with what was given, what was expected and what to do next."""

from __future__ import annotations

from typing import Protocol


class NumpruneError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(NumpruneError, ValueError):
    """An argument, a file or a recipe that cannot be used as given."""


class LoadError(NumpruneError):
    """A model or tokenizer that cannot be loaded."""


class UnsupportedArchitecture(LoadError):
    """A model whose architecture has no adapter."""


class NumericalError(NumpruneError):
    """Non-finite activations or a system of equations that cannot be solved."""


class Cancelled(NumpruneError):
    """The caller's `cancel` event was set; nothing was changed."""


class CancelEvent(Protocol):
    """What `cancel` arguments need to offer; threading.Event does."""

    def is_set(self) -> bool: ...


class Progress(Protocol):
    """What `progress` arguments are called with: units of work done, units in all, what is being done."""

    def __call__(self, done: int, total: int, what: str, /) -> None: ...


def pip_install(extra: str) -> str:
    """The command that installs an optional extra, as it is typed with the package installed and in a clone of it."""
    return f"pip install 'numprune[{extra}]' (in a clone '.[{extra}]')"


def check_cancelled(cancel: CancelEvent | None) -> None:
    """Raise Cancelled when the caller asked to stop."""
    if cancel is not None and cancel.is_set():
        raise Cancelled("Stopped on request; the model and everything computed before are unchanged.")


def memory_ran_out(error: BaseException) -> bool:
    """Whether an error, in the words of torch, Python or the system, says that a device or the machine is out of
    memory. torch's allocator on a CPU has no error of its own."""
    said = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in said for words in ("out of memory", "allocate memory", "not enough memory", "bad_alloc"))
    )
