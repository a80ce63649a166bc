"""The first moment of a visit: the recipe of a link, of an earlier visit, or of the default method."""

from __future__ import annotations

from typing import Any

import gradio as gr

from numprune.errors import InputError, NumpruneError
from numprune.plan.recipe import Recipe
from numprune.ui.channel import situation
from numprune.ui.edits import adopted
from numprune.ui.jobs import Job
from numprune.ui.model_form import say_refusal, texts_folder
from numprune.ui.session import LoadRequest, Session
from numprune.ui.share import unpacked
from numprune.ui.shared import Shared, Updates, as_text, owner_of

MOMENTS = ("opened", "planned")
# The browser's state is one for all its tabs; a tab that is reloaded wants its own plan back. What the state says
# before the page shows a plan is that of whichever tab was last.
REMEMBER = """(recipe) => {
  if (recipe && document.querySelector(".np-budget td")) sessionStorage.setItem("numprune-recipe", recipe);
}"""
RESUME = """(last) => {
  document.dispatchEvent(new CustomEvent("np-started"));
  return [sessionStorage.getItem("numprune-recipe") ?? last];
}"""
VIEWS = ("plan", "compare", "speed", "methods", "export")


def first_visit(shared: Shared, blocks: gr.Blocks, kept: gr.BrowserState) -> None:
    """Connect the page's loading."""
    workbench = shared.workbench

    def visit(last: Any, request: gr.Request) -> Updates:
        owner = owner_of(request)
        with shared.job(request) as job:
            asked = dict(request.query_params)
            session = None
            for text, why in ((asked.get("recipe"), "link"), (last, "last visit")):
                if text and session is None:
                    session = resumed(shared, owner, text, why, job)
            if session is None:
                loaded = workbench.load(workbench.start, owner, progress=job.progress, cancel=job.cancel)
                session = workbench.fresh(loaded)
            workbench.enter(owner, session)
            view = shared.view(request)
            say_refusal(workbench.refusal(session))
            goes = {shared.tabs: gr.Tabs(selected=asked["view"])} if asked.get("view") in VIEWS else {}
            answer = {**shared.updates(view, *MOMENTS), **goes}
            workbench.visited.set()
            return answer

    outputs = shared.outputs(*MOMENTS) | {shared.tabs}
    kept.change(None, kept, None, js=REMEMBER, api_visibility="private", queue=False, trigger_mode="multiple")
    shared.long(blocks.load, visit, kept, outputs, js=RESUME)


def resumed(shared: Shared, owner: str, text: str, why: str, job: Job) -> Session | None:
    """The session of a recipe that a link or an earlier visit holds; None, with a word on the page, where it cannot be
    opened here."""
    workbench = shared.workbench
    try:
        recipe = unpacked(text) if why == "link" else Recipe.from_json(text)
        request = workbench.scores_of(recipe) or request_of(workbench.start, recipe)
        steps = {"progress": job.progress, "cancel": job.cancel}
        loaded = workbench.load(request, owner, own_texts=str(texts_folder()), **steps)
        session = workbench.fresh(loaded)
        if recipe.removal == "units":
            workbench.score_by(session, recipe.scorer, **steps)
        return adopted(session, loaded.weights.adopt(recipe), situation(workbench, session))
    except InputError as error:
        gr.Warning(f"The recipe of the {why} was not opened: {as_text(error)}", title="Another recipe")
    except NumpruneError as error:
        gr.Warning(f"The model of the {why} was not opened: {as_text(error)}", title="Another model")
    return None


def request_of(start: LoadRequest, recipe: Recipe) -> LoadRequest:
    """What to open for a recipe: what the program starts with where that is meant.

    Raises:
        InputError: the recipe names no model, or its calibration text only its author has.
    """
    if recipe.model is None or recipe.calibration.data is None:
        raise InputError("it names no model or no calibration text")
    asked = start.calibration
    same = (recipe.model, recipe.calibration.data, recipe.calibration.seed, recipe.calibration.samples) == (
        start.model,
        asked.data,
        asked.seed,
        asked.samples,
    )
    if same and recipe.calibration.sequence_length <= asked.sequence_length:
        return start
    return LoadRequest(recipe.model, calibration=recipe.calibration)
