"""What a command writes: its result to stdout; progress, notes and errors to stderr."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from numprune.errors import Progress
from numprune.files import to_json

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass
class Console:
    """Where results and progress go.

    Attributes:
        json: whether the result is printed as JSON.
        quiet: no progress and no notes.
        out: standard output as it was when the command began.
    """

    json: bool = False
    quiet: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout)

    @property
    def shows_progress(self) -> bool:
        return not self.quiet and sys.stderr.isatty()

    def result(self, value: Any, text: str) -> None:
        """Print the result: `value` as JSON, or `text` for people."""
        self.out.write(to_json(value) if self.json else text + "\n")
        self.out.flush()

    def notes(self, notes: Iterable[str]) -> None:
        """Print sentences a person should read, each once."""
        if not self.quiet:
            for note in dict.fromkeys(notes):
                print(f"Note: {note}", file=sys.stderr)

    def error(self, sentence: str) -> None:
        print(sentence, file=sys.stderr)

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """A callback for `progress` arguments that draws one bar a stage; None when nobody watches."""
        if not self.shows_progress:
            yield None
            return
        from tqdm import tqdm

        bar = None

        def show(done: int, total: int, what: str, /) -> None:
            nonlocal bar
            if bar is None or bar.total != total or done < bar.n:
                if bar is not None:
                    bar.close()
                # Named from the start: a short stage is over before its bar is drawn a second time.
                bar = tqdm(total=total, desc=what, leave=False, file=sys.stderr)
            bar.set_description(what, refresh=False)
            bar.update(done - bar.n)

        try:
            yield show
        finally:
            if bar is not None:
                bar.close()


def json_rows(table: DataFrame) -> list[dict[str, Any]]:
    """The rows of a table for JSON, which knows neither NaN nor infinity."""
    table = table.replace([math.inf, -math.inf], math.nan)
    return table.astype(object).where(table.notna(), None).to_dict("records")


def labelled(rows: dict[str, str]) -> str:
    """Aligned `name  value` lines."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())
