"""What the steps share: the page's components, the running of jobs, and redrawing after the recipe changed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import torch

from numprune.errors import CancelEvent, Cancelled, NumpruneError
from numprune.ui.workbench import Jobs, Session, Workbench

if TYPE_CHECKING:
    from numprune.ui.steps.compare import CompareStep
    from numprune.ui.steps.inspect import InspectStep
    from numprune.ui.steps.load import LoadStep
    from numprune.ui.steps.prune import PruneStep
    from numprune.ui.steps.tune import TuneStep

logger = logging.getLogger("numprune")

Updates = dict[Any, Any]
"""New values by component, as gradio handlers return them."""

ACCELERATOR: dict[str, Any] = {"concurrency_id": "accelerator", "concurrency_limit": 1}
"""For every handler that computes with a model: one at a time, in one queue."""


@dataclass
class Page:
    """The dashboard: its state and its steps."""

    workbench: Workbench
    jobs: Jobs
    session: gr.State
    example: gr.Button
    stop: gr.Button
    load: LoadStep
    inspect: InspectStep
    tune: TuneStep
    prune: PruneStep
    compare: CompareStep

    def planned(self, session: Session) -> Updates:
        """Everything that follows from the session's model and recipe."""
        loaded, plan = self.workbench.dense(session), self.workbench.plan(session)
        return {self.session: session, **self.inspect.show(loaded, plan), **self.tune.show(loaded, plan)}

    def opened(self, session: Session) -> Updates:
        """Everything that follows from a newly loaded model."""
        loaded = self.workbench.dense(session)
        return {
            **self.planned(session),
            **self.load.show(loaded),
            **self.tune.reset(session),
            **self.prune.clear(),
            **self.compare.clear(),
        }

    @property
    def plan_outputs(self) -> set[Any]:
        return {self.session, *self.inspect.outputs, *self.tune.outputs}

    @property
    def all_outputs(self) -> set[Any]:
        everything = (self.load, self.inspect, self.tune, self.prune, self.compare)
        return {self.session, *self.tune.inputs, *(part for step in everything for part in step.outputs)}

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
