"""What the steps share: the page's components, the running of jobs, and redrawing after the recipe changed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import torch

from numprune.errors import CancelEvent, Cancelled, NumpruneError
from numprune.ui.downloads import Downloads
from numprune.ui.session import Session
from numprune.ui.workbench import Jobs, Loaded, Workbench

if TYPE_CHECKING:
    from numprune.ui.steps.compare import CompareStep
    from numprune.ui.steps.export import ExportStep
    from numprune.ui.steps.inspect import InspectStep
    from numprune.ui.steps.load import LoadStep
    from numprune.ui.steps.prune import PruneStep
    from numprune.ui.steps.report import ReportStep
    from numprune.ui.steps.tune import TuneStep

logger = logging.getLogger("numprune")

Updates = dict[Any, Any]
"""New values by component, as gradio handlers return them; also the values a handler is given."""

ACCELERATOR: dict[str, Any] = {"concurrency_id": "accelerator", "concurrency_limit": 1}
"""For every handler that computes with a model: one at a time, in one queue."""

OWN_SCORES = "method"
"""Value of the control that shows the scores of the method instead of those of the load."""

LIVE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}
"""For handlers that answer a control at once; while one runs, only the newest event waits."""


@dataclass
class Page:
    """The dashboard: its state and its steps; `stoppable` are the events of long handlers, `openings` of those that
    open a model."""

    workbench: Workbench
    jobs: Jobs
    session: gr.State
    example: gr.Button
    stop: gr.Button
    download: gr.DownloadButton
    load: LoadStep
    inspect: InspectStep
    tune: TuneStep
    prune: PruneStep
    compare: CompareStep
    export: ExportStep
    report: ReportStep
    stoppable: list[Any] = field(default_factory=list)
    openings: list[Any] = field(default_factory=list)
    downloads: Downloads = field(default_factory=Downloads)

    @property
    def look(self) -> set[Any]:
        """Inputs of every handler that redraws the plan: the session and how it is shown."""
        return {self.session, *self.inspect.look}

    @property
    def plan_outputs(self) -> set[Any]:
        return {self.session, *self.inspect.outputs, *self.tune.outputs}

    @property
    def settled_outputs(self) -> set[Any]:
        return {*self.plan_outputs, *self.tune.inputs, *self.prune.inputs}

    @property
    def all_outputs(self) -> set[Any]:
        steps = (self.load, self.inspect, self.tune, self.prune, self.compare, self.export)
        settings = {*self.tune.inputs, *self.prune.inputs, self.tune.curves, self.inspect.sentence}
        return {self.session, *settings, *(part for step in steps for part in step.outputs)}

    @property
    def kept_outputs(self) -> set[Any]:
        return {*self.prune.outputs, self.compare.shown, *self.export.choices}

    def planned(self, session: Session, given: Updates) -> Updates:
        """Everything that follows from the session's model and recipe; `given` holds the values of `look`."""
        loaded, plan, rival = (
            part(session) for part in (self.workbench.dense, self.workbench.plan, self.workbench.rival)
        )
        compared = {} if rival is None else self.inspect.rivals.show(loaded, plan, rival, session)
        return {
            self.session: session,
            **self.inspect.show(self.seen(session, given), plan, session, given),
            **compared,
            **self.tune.show(loaded, plan),
        }

    def seen(self, session: Session, given: Updates) -> Loaded:
        """The session's dense model, with the scores step 2 shows."""
        by_method = given.get(self.inspect.scores) == OWN_SCORES
        return self.workbench.dense(session) if by_method else self.workbench.opened(session)

    def settled(self, session: Session, given: Updates) -> Updates:
        """The same as `planned`, and the controls set to a recipe that did not come from them."""
        settings = {**self.tune.settings(session.recipe), **self.prune.settings(session.recipe)}
        return {**self.planned(session, given), **settings}

    def opened(self, session: Session, given: Updates) -> Updates:
        """Everything that follows from a newly loaded model."""
        model = self.workbench.dense(session).model
        return {
            **self.planned(session, given),
            **self.inspect.suit(model),
            **self.inspect.rivals.clear(),
            **self.load.show(self.workbench.dense(session)),
            **self.tune.settings(session.recipe),
            **self.prune.settings(session.recipe),
            **self.prune.show({}),
            **self.compare.clear(model),
            **self.export.clear(model),
            self.tune.curves: gr.Plot(None, visible=False),
        }

    def kept(self, session: Session, owner: str) -> Updates:
        """The tab's pruned models, wherever one can be chosen."""
        variants = self.workbench.variants(owner)
        dense = self.workbench.dense(session).model
        return {**self.prune.show(variants), **self.compare.offer(variants), **self.export.offer(dense, variants)}

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

    @contextmanager
    def job(self, request: gr.Request) -> Iterator[CancelEvent]:
        """Run a long step: yields its stop event; what goes wrong becomes a toast and leaves the page as it was."""
        owner = owner_of(request)
        event = self.jobs.begin(owner)
        try:
            with toasts():
                yield event
        finally:
            self.jobs.end(owner, event)


def file_name(name: str) -> str:
    """A name without anything a file system or a shell minds."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "file"


CLICK_DOWNLOAD = """() => new Promise((done) => setTimeout(() => {
  document.querySelector("#np-download a, a#np-download, #np-download")?.click();
  done();
}, 150))"""


@contextmanager
def toasts() -> Iterator[None]:
    """Turn errors into toasts."""
    try:
        yield
    except Cancelled as error:
        raise gr.Error(str(error), title="Stopped", print_exception=False) from error
    except NumpruneError as error:
        raise gr.Error(str(error), title="That did not work", print_exception=False) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise gr.Error(
            "The device ran out of memory; load the model in bfloat16, use a shorter sequence length, or use the CPU.",
            title="Out of memory",
            print_exception=False,
        ) from error
    except gr.Error:
        raise
    except Exception as error:
        logger.exception("A dashboard step failed")
        raise gr.Error(
            f"{type(error).__name__}: {error}. The program's log has the details; the page is as it was before.",
            title="Unexpected error",
            print_exception=False,
        ) from error


def owner_of(request: gr.Request) -> str:
    """The browser tab a request came from."""
    return request.session_hash or "unknown"
