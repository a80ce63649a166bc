"""The road of edits: a component without a face that takes edits in, and gives the plan that follows to the page."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import gradio as gr

from numprune.allocation.threshold import allocate
from numprune.errors import InputError, NumpruneError
from numprune.files import from_json
from numprune.plan.presets import METHODS
from numprune.plan.recipe import DEPTHS, Recipe
from numprune.ui import engine
from numprune.ui.edits import UNREADABLE, NeedsWork, Situation, adopted, applied, bare, decisions, numbered
from numprune.ui.figures import sensitivity_curves
from numprune.ui.given_numbers import number
from numprune.ui.map_data import plan_data
from numprune.ui.priced import prediction
from numprune.ui.session import Session
from numprune.ui.shared import QUICK, Shared, Updates, View, as_text, owner_of, toasts
from numprune.ui.workbench import Workbench

JS = (Path(__file__).parent / "channel.js").read_text(encoding="utf8")
SENSITIVITY = "What each module costs"


def build(workbench: Workbench) -> gr.HTML:
    """The component. Its value is what the page sends, its prop `plan` what the page draws."""

    def preview(data: Any) -> dict[str, Any] | None:
        return previewed(workbench, data)

    return gr.HTML(
        "",
        html_template="<span hidden></span>",
        js_on_load=JS,
        server_functions=[preview],
        elem_id="np-channel",
        plan=None,
    )


def situation(workbench: Workbench, session: Session) -> Situation:
    """What edits of a session are judged by."""
    loaded = workbench.dense(session)
    return Situation(
        scores=loaded.scores,
        plan=lambda: allocate(loaded.scores, session.recipe),
        scored=lambda scorer: workbench.scored(session, scorer),
        start=lambda: workbench.fresh(workbench.first(session)).recipe,
    )


def previewed(workbench: Workbench, data: Any) -> dict[str, Any] | None:
    """The plan as edits that are not made yet would leave it; None where they are refused.

    A page's script calls this beside the queue and without a session, so it must name its tab by the tab's token.
    """
    token, edits = (data.get("token"), data.get("edits")) if isinstance(data, dict) else (None, None)
    owner = workbench.owner_of_token(token)
    if owner is None or not isinstance(edits, list) or len(edits) > 1:
        return None
    try:
        session = workbench.session(owner)
        for edit in edits:
            session = applied(session, edit, situation(workbench, session))
        return drawn(View(workbench, owner, session))
    except NumpruneError:
        return None


def drawn(view: View) -> dict[str, Any]:
    """The plan of a view, as the page draws it."""
    loaded, plan = view.loaded, view.plan
    return plan_data(loaded, plan, view.workbench.look(view.owner)) | prediction(loaded.scores, plan.recipe)


def plan_of(view: View, *, seen: int | None = None, work: dict[str, Any] | None = None) -> dict[str, Any]:
    """The prop `plan`: what is drawn, the edits that are in it, and what is still to be done for it."""
    workbench, owner = view.workbench, view.owner
    return {
        **drawn(view),
        "revision": view.session.revision,
        "seen": workbench.seen(owner) if seen is None else seen,
        "token": workbench.token(owner),
        "tab": owner,
        "work": work,
    }


def wire(shared: Shared, channel: gr.HTML, echoes: Collection[Any]) -> None:
    """Connect the channel. `echoes` are controls that show a moved ratio already, and nothing else changed with it."""
    workbench = shared.workbench
    shared.redraw("planned", {channel}, lambda view: {channel: gr.HTML(plan=plan_of(view))})

    def answer(owner: str, message: Any) -> tuple[Updates, list[str]]:
        before, problems = workbench.session(owner), []
        kinds, work = apply_all(workbench, owner, message, problems)
        view = View(workbench, owner, workbench.session(owner))
        updates: Updates = {}
        if view.session != before or problems:
            updates = shared.updates(view, "planned")
        if kinds == {"ratio"} and not problems:
            updates = {part: value for part, value in updates.items() if part not in echoes}
        if channel not in updates or work is not None:
            updates[channel] = gr.HTML(plan=plan_of(view, work=work))
        return updates, problems

    def edit(message: str, request: gr.Request) -> Updates:
        """Apply what arrived, edit by edit, and answer once."""
        with toasts():
            updates, problems = answer(owner_of(request), message)
        for problem in dict.fromkeys(problems):
            gr.Warning(as_text(problem), title="That did not work")
        return updates

    def work(message: str, request: gr.Request) -> Updates:
        """What an edit needed that takes long, and then the edit."""
        try:
            with shared.job(request) as job:
                worked(shared, owner_of(request), message, job.progress, job.cancel)
        except gr.Error as error:
            gr.Warning(str(error.message), title=error.title)
        view = shared.view(request)
        return shared.updates(view, "planned", "sensed")

    def connect() -> None:
        channel.edit(edit, channel, shared.outputs("planned"), **QUICK)
        shared.long(channel.work, work, channel, shared.outputs("planned", "sensed"))

    shared.answer = answer
    shared.later(connect)


def apply_all(
    workbench: Workbench, owner: str, message: Any, problems: list[str]
) -> tuple[set[str], dict[str, Any] | None]:
    """Apply the edits of a message that are new to the tab; returns their kinds, and the one that needs long work.

    Edits that are refused leave the session as it was, and a sentence in `problems`.
    """
    kinds, work = set(), None
    try:
        edits = numbered(from_json(message), workbench.seen(owner))
    except (InputError, TypeError, ValueError):
        problems.append(UNREADABLE)
        return kinds, None
    for count, each in edits:
        workbench.saw(owner, count)
        kinds.add(str(each.get("kind")))
        try:
            workbench.change(owner, lambda session, each=each: applied(session, each, situation(workbench, session)))
        except NeedsWork:
            work = each
        except NumpruneError as error:
            problems.append(str(error))
    return kinds, work


def worked(shared: Shared, owner: str, message: Any, progress: Any, cancel: Any) -> None:
    """Carry out an edit that takes long: score, let the model say its ratios, then take everything over at once."""
    workbench = shared.workbench
    try:
        edit = from_json(message)
    except (TypeError, ValueError):
        raise InputError(UNREADABLE) from None
    if not isinstance(edit, dict) or not isinstance(edit.get("method", ""), str):
        raise InputError(UNREADABLE)
    kind, session = edit.get("kind"), workbench.session(owner)
    steps = {"progress": progress, "cancel": cancel}
    if kind == "recipe":
        recipe = Recipe.from_dict(edit.get("recipe"))
        workbench.score_by(session, recipe.scorer, **steps)
        workbench.change(owner, lambda now: adopted(now, recipe, situation(workbench, now)))
        return
    suggests = kind == "suggest"
    values: dict[str, Any] = {}
    if kind == "suggest":
        recipe = session.recipe.without_speedup()
    elif kind == "method" and edit.get("method") in METHODS:
        method = METHODS[edit["method"]]
        recipe, suggests = bare(session.recipe, method), method.suggests
        values = {name: value for name, value in decisions(recipe).items() if name != "ratio"}
        workbench.score_by(session, recipe.scorer, **steps)
    elif kind == "ratio":
        recipe = session.recipe.at(number(edit.get("ratio"), "The ratio"))
        values = {"ratio": recipe.ratio}
    elif kind == "speedup":
        recipe = session.recipe.for_speedup(number(edit.get("speedup"), "The speed-up"))
    elif kind == "settings" and edit.get("name") == "depth" and edit.get("value") in DEPTHS:
        recipe = session.recipe.without_speedup().replace(depth=edit["value"], depth_scorer="loss", drop=())
        values = {"depth": recipe.depth, "depth_scorer": recipe.depth_scorer}
    else:
        raise InputError(UNREADABLE)
    if suggests:
        values |= {"ratios": suggested(shared, owner, session, recipe, steps), "suggested": True}
    if recipe.speedup is not None:
        values = decisions(workbench.with_speedup(session, recipe, **steps))
    elif recipe.depth != "none" and not suggests:
        values["drop"] = workbench.with_depth(session, recipe, **steps).drop
    workbench.change(owner, lambda now: now.changed("", **values))


def suggested(shared: Shared, owner: str, session: Session, recipe: Recipe, steps: dict[str, Any]) -> Any:
    """The ratios the model's own loss suggests; the curves of all modules are kept as a finding where there are any."""
    workbench = shared.workbench
    stats = workbench.stats(session, **steps)
    loaded = workbench.scored_by(session, recipe.scorer)
    parts = (loaded.model, stats, loaded.scores, recipe)
    if not engine.uses_curves(loaded.scores, recipe):
        return engine.suggest(*parts, **steps).ratios
    found = engine.sensitivity(*parts, **steps)
    ratios = engine.suggest(*parts, curves=found, **steps).ratios
    table = found.to_pandas()
    workbench.find(owner, SENSITIVITY, table, sensitivity_curves(table))
    return ratios
