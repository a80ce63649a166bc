"""What follows when a model is opened: the plan goes over to the default method once its scores are there.

The Newton scores are there at once, while those of the default method need backward passes through the model. So a page
opens with the paper's method, can be used meanwhile, and keeps it where the model cannot be scored the other way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import gradio as gr

from numprune.plan.presets import DEFAULT_PRESET, PRESETS, method_of
from numprune.plan.recipe import Recipe
from numprune.ui.page import ACCELERATOR, LIVE, Updates, toasts
from numprune.ui.session import Session
from numprune.ui.workbench import Workbench, reporter

if TYPE_CHECKING:
    from numprune.ui.page import Page

DEFAULT = PRESETS[DEFAULT_PRESET]


def waits(workbench: Workbench, session: Session) -> bool:
    """Whether the session is still at the method every model opens with; a scorer or method chosen by hand stays."""
    loaded = workbench.opened(session)
    chosen = loaded.request.scorer != Recipe().scorer or session.recipe.scorer != Recipe().scorer
    return not chosen and method_of(session.recipe) == "paper"


def adopted(workbench: Workbench, session: Session) -> Session:
    """The session with the default method in the place of the one it opened with."""
    if not waits(workbench, session):
        return session
    return replace(session, recipe=workbench.by_default(session, session.recipe))


def wire(page: Page) -> None:
    def prepare(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> None:
        session = given[page.session]
        with page.job(request) as cancel:
            if waits(page.workbench, session):
                scorer = DEFAULT.applied(session.recipe).scorer
                page.workbench.score_by(session, scorer, progress=reporter(bar), cancel=cancel)

    def adopt(given: Updates) -> Updates:
        with toasts():
            return page.settled(adopted(page.workbench, given[page.session]), given)

    for opening in page.openings:
        event = opening.success(
            prepare,
            {page.session},
            None,
            api_visibility="private",
            show_progress_on=page.tune.prediction,
            **ACCELERATOR,
        )
        page.stoppable.append(event)
        event.success(adopt, page.look, page.settled_outputs, **LIVE)
