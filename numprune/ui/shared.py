"""What every part of the page is given: the tab's session, how long work runs, and who is redrawn when."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr

from numprune.errors import Cancelled, NumpruneError, memory_ran_out
from numprune.heap import GiveBack
from numprune.plan.plan import PruningPlan
from numprune.ui.downloads import Downloads
from numprune.ui.jobs import Job, Jobs
from numprune.ui.making import Making
from numprune.ui.records import Finding, Loaded, Point
from numprune.ui.session import Session
from numprune.ui.workbench import Workbench

if TYPE_CHECKING:
    from numprune.models import Model


logger = logging.getLogger("numprune")

Updates = dict[Any, Any]
"""New values by component, as gradio handlers return them; also the values a handler is given."""

Moment = Literal["opened", "planned", "kept", "measured", "sensed", "selected", "compared", "docked"]

ACCELERATOR: dict[str, Any] = {"concurrency_id": "accelerator", "concurrency_limit": 1}
"""For every handler that computes with a model: one at a time, in one queue."""

QUICK: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"}
"""For handlers that answer a control at once."""

STARTED = "(...inputs) => { document.dispatchEvent(new CustomEvent('np-started')); return inputs; }"
"""Run in the browser when long work is asked for, so that the header looks what becomes of it."""
FINISHED = "() => { document.dispatchEvent(new CustomEvent('np-finished')); }"


@dataclass(frozen=True)
class View:
    """The tab as it is now: its session and everything that follows from it."""

    workbench: Workbench
    owner: str
    session: Session

    @cached_property
    def loaded(self) -> Loaded:
        """The dense model, with the scores the recipe goes by."""
        return self.workbench.dense(self.session)

    @cached_property
    def plan(self) -> PruningPlan:
        return self.workbench.plan(self.session)

    @property
    def variants(self) -> Mapping[str, Model]:
        """The tab's pruned models by name, oldest first."""
        return self.workbench.variants(self.owner)

    @property
    def findings(self) -> Mapping[str, Finding]:
        """The tab's results by title."""
        return self.workbench.findings(self.owner)

    @property
    def points(self) -> Sequence[Point]:
        """The losses that were measured of this model."""
        return self.workbench.points(self.owner)


Show = Callable[[View], Updates]


@dataclass
class Shared:
    """See `numprune.ui.tabs`.

    Attributes:
        download: a hidden button that gives files to the browser.
        tabs: the row of tabs, to open another one.
        making: what models are asked to write or draw, and what is measured; `making.text` is the text perplexity and
            distributions are measured on, empty for the held-out stories.
        stoppable: events that Stop ends.
        selections: events that select a unit.
        answer: takes a tab and a message of edits, and returns what changes on the page and what could not be done;
            set by `numprune.ui.channel`.
    """

    workbench: Workbench
    jobs: Jobs
    downloads: Downloads
    download: gr.DownloadButton
    tabs: gr.Tabs
    making: Making
    stoppable: list[Any] = field(default_factory=list)
    selections: list[Any] = field(default_factory=list)
    answer: Callable[[str, Any], tuple[Updates, list[str]]] | None = None
    _parts: list[tuple[Moment, frozenset[Any], Show]] = field(default_factory=list)
    _wires: list[Callable[[], None]] = field(default_factory=list)
    _last: list[Callable[[], None]] = field(default_factory=list)
    _leaving: list[Callable[[str], Any]] = field(default_factory=list)
    _give_back: GiveBack = field(default_factory=GiveBack)

    # Who is redrawn when.

    def redraw(self, moment: Moment, outputs: Collection[Any], show: Show) -> None:
        """Call `show` at a moment; it returns new values of some of `outputs`."""
        self._parts.append((moment, frozenset(outputs), show))

    def outputs(self, *moments: Moment) -> set[Any]:
        """Everything that is redrawn at these moments."""
        return set().union(*(outputs for moment, outputs, _ in self._parts if moment in moments))

    def updates(self, view: View, *moments: Moment) -> Updates:
        """The new values of `outputs`, moment by moment."""
        return {
            part: value
            for moment in moments
            for registered, _, show in self._parts
            if registered == moment
            for part, value in show(view).items()
        }

    def later(self, wire: Callable[[], None], *, last: bool = False) -> None:
        """Connect events once every part is built; `last` when all other events are connected."""
        (self._last if last else self._wires).append(wire)

    def wire(self) -> None:
        """Connect all events."""
        for wire in [*self._wires, *self._last]:
            wire()

    def leave(self, forget: Callable[[str], Any]) -> None:
        """Call `forget` with the tab's name when it has closed."""
        self._leaving.append(forget)

    def left(self, owner: str) -> None:
        """A tab has closed: what it used is freed."""
        self.jobs.stop(owner)
        self.workbench.release(owner)
        self.downloads.free(owner)
        for forget in self._leaving:
            forget(owner)
        self._give_back()

    # The session.

    def view(self, request: gr.Request) -> View:
        """The tab a request came from.

        Raises:
            InputError: nothing is open in it.
        """
        owner = owner_of(request)
        return View(self.workbench, owner, self.workbench.session(owner))

    def change(self, request: gr.Request, how: Callable[[Session], Session]) -> View:
        """The tab after a change of its session; when `how` raises, it stays as it was."""
        owner = owner_of(request)
        return View(self.workbench, owner, self.workbench.change(owner, how))

    # Long work.

    @contextmanager
    def job(self, request: gr.Request) -> Iterator[Job]:
        """Run a long step: yields its progress and its stop event; what goes wrong becomes a toast."""
        owner = owner_of(request)
        job = self.jobs.begin(owner, tell_time)
        try:
            with toasts():
                yield job
        finally:
            self.jobs.end(owner, job)

    def long(
        self,
        trigger: Callable[..., Any],
        handler: Callable[..., Any],
        inputs: Any,
        outputs: Any,
        *,
        show_on: Any = None,
        js: str = STARTED,
    ) -> Any:
        """Connect a long handler: one at a time, shown in the header, ended by Stop; returns the event.

        Args:
            trigger: such as `button.click`, or `event.success`.
            show_on: where the wait is shown beside the header, if anywhere.
            js: runs in the browser first; it says "np-started", as `STARTED` does.
        """
        event = trigger(
            handler,
            inputs,
            outputs,
            api_visibility="private",
            show_progress="hidden" if show_on is None else "minimal",
            show_progress_on=show_on,
            js=js,
            **ACCELERATOR,
        )
        self.stoppable.append(event)
        event.then(None, None, None, js=FINISHED, api_visibility="private", queue=False)
        return event

    # Files.

    def offer(self, owner: str, name: str, text: str) -> Updates:
        """A file for the browser to download at once, made by a handler that `save_with` follows."""
        file = self.downloads.folder(owner) / file_name(name)
        file.write_text(text, encoding="utf-8")
        return self.hand(file)

    def hand(self, file: Path) -> Updates:
        """The same for a file that lies in one of the tab's folders."""
        return {self.download: gr.DownloadButton(value=str(file))}

    def save_with(self, event: Any) -> None:
        """Let the browser save what the handler of `event` offered."""
        event.success(None, None, None, js=CLICK_DOWNLOAD, api_visibility="private")


def file_name(name: str) -> str:
    """A name without anything a file system or a shell minds."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "file"


CLICK_DOWNLOAD = """() => new Promise((done) => setTimeout(() => {
  document.querySelector("#np-download a, a#np-download, #np-download")?.click();
  done();
}, 150))"""


def tell_time(sentence: str) -> None:
    """A word on the page about how long a person will wait."""
    gr.Info(f"{sentence} Stop, at the top, ends it.", title="This takes a while")


def as_text(sentence: object) -> str:
    """A sentence as a toast shows it word for word: Gradio takes what it is given for HTML, with pictures and links in
    it, and sentences name what visitors and models are called."""
    return escape(str(sentence), quote=False)


@contextmanager
def toasts() -> Iterator[None]:
    """Turn errors into toasts."""
    try:
        yield
    except Cancelled as error:
        raise gr.Error(as_text(error), title="Stopped", print_exception=False) from error
    except NumpruneError as error:
        raise gr.Error(as_text(error), title="That did not work", print_exception=False) from error
    except gr.Error:
        raise
    except Exception as error:
        if memory_ran_out(error):
            raise gr.Error(
                "The device ran out of memory; load the model in bfloat16, use a shorter sequence length, or use the"
                " CPU.",
                title="Out of memory",
                print_exception=False,
            ) from error
        logger.exception("A dashboard step failed")
        raise gr.Error(
            f"{type(error).__name__}: {as_text(error)}. The program's log has the details; the page is as it was"
            " before.",
            title="Unexpected error",
            print_exception=False,
        ) from error


def owner_of(request: gr.Request) -> str:
    """The browser tab a request came from."""
    return request.session_hash or "unknown"
