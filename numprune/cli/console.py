"""What a command writes: its result to stdout; progress, notes and errors to stderr."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from numprune.errors import InputError, Progress
from numprune.files import to_json
from numprune.waiting import Estimate

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass
class Console:
    """Where results and progress go.

    Attributes:
        json: whether the result is printed as JSON.
        quiet: no progress and no notes.
        out: standard output as it was when the command began.
        processes: that work together, of which only the first one has a console to write to.
        writes: whether this process writes files and says what it does.
    """

    json: bool = False
    quiet: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout)
    processes: int = 1
    writes: bool = True

    @property
    def shows_progress(self) -> bool:
        return not self.quiet and sys.stderr.isatty()

    def result(self, value: Any, text: str) -> None:
        """Print the result: `value` as JSON, or `text` for people."""
        if not self.writes:
            return
        self.out.write(to_json(value) if self.json else text + "\n")
        self.out.flush()

    def notes(self, notes: Iterable[str]) -> None:
        """Print sentences a person should read, each once."""
        if not self.quiet and self.writes:
            for note in dict.fromkeys(notes):
                print(f"Note: {note}", file=sys.stderr)

    def error(self, sentence: str) -> None:
        if self.writes:
            print(sentence, file=sys.stderr)

    def alone(self, what: str) -> None:
        """Raise InputError where several processes work together, for something that one does."""
        if self.processes > 1:
            raise InputError(f"{what} in one process; start it without torchrun.")

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """A callback for `progress` arguments that tells how long a stage will take, and draws a bar with the time left
        where a person watches; None when nothing is to be said."""
        if self.quiet or not self.writes:
            yield None
            return
        stages = Stages(self.shows_progress)
        try:
            yield stages
        finally:
            stages.close()


class Stages:
    """The stages of a step, as a `Progress`: a line for a long one once a batch of it was timed, and a bar a stage.

    Args:
        bars: whether bars are drawn.
    """

    def __init__(self, bars: bool):
        self.bars = bars
        self._bar: Any = None
        self._estimate = Estimate()

    def __call__(self, done: int, total: int, what: str, /) -> None:
        sentence = self._estimate(done, total, what)
        if self._estimate.began:
            self.close()
            if self.bars:
                from tqdm import tqdm

                # Named from the start: a short stage is over before its bar is drawn a second time.
                self._bar = tqdm(total=total, desc=what, leave=False, file=sys.stderr)
        if sentence is not None:
            self._say(sentence)
        if self._bar is not None:
            self._bar.set_description(what, refresh=False)
            self._bar.update(done - self._bar.n)

    def _say(self, sentence: str) -> None:
        if self._bar is None:
            print(sentence, file=sys.stderr, flush=True)
        else:
            self._bar.write(sentence, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def json_rows(table: DataFrame) -> list[dict[str, Any]]:
    """The rows of a table for JSON, which knows neither NaN nor infinity."""
    table = table.replace([math.inf, -math.inf], math.nan)
    return table.astype(object).where(table.notna(), None).to_dict("records")


def labelled(rows: dict[str, str]) -> str:
    """Aligned `name  value` lines."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())
