"""The map: a row a layer, heads and channels side by side, with what the plan removes drawn over the scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from numprune.errors import InputError
from numprune.files import from_json
from numprune.plan.keys import ModuleKey
from numprune.ui.edits import UNREADABLE
from numprune.ui.heatmap import SAVE_JS
from numprune.ui.map_data import place_of, scores_data, unit_at
from numprune.ui.session import Session, Unit
from numprune.ui.shared import QUICK, Shared, Updates, View, owner_of, toasts

HERE = Path(__file__).parent
DEPTH_JS, OWN_JS, HTML, CSS = (
    (HERE / name).read_text(encoding="utf8") for name in ("map_depth.js", "map.js", "map.html", "map.css")
)
JS = SAVE_JS + DEPTH_JS + OWN_JS
VIEWS, ORDERS = ("log", "raw", "rank"), ("sorted", "index")


def build(shared: Shared) -> gr.HTML:
    """The component. Its props are `scores`, from `map_data.scores_data`, and `selected`, the unit with the ring."""
    part = gr.HTML("", html_template=HTML, js_on_load=JS, scores=None, selected=None, elem_id="np-map")

    def picture(view: View) -> Updates:
        look = shared.workbench.look(view.owner)
        return {part: gr.HTML(scores=scores_data(view.loaded, look), selected=ring(view))}

    drawn: dict[str, str] = {}

    def follow(view: View) -> Updates:
        """Another method's scores, when the recipe goes by another scorer than the map shows."""
        scorer = view.loaded.scores.scorer
        if drawn.get(view.owner) == scorer:
            return {}
        return opened(view)

    def opened(view: View) -> Updates:
        drawn[view.owner] = view.loaded.scores.scorer
        return picture(view)

    shared.redraw("opened", {part}, opened)
    shared.redraw("planned", {part}, follow)
    shared.leave(lambda owner: drawn.pop(owner, None))
    shared.later(lambda: _wire(shared, part, picture))
    return part


def ring(view: View) -> dict[str, Any] | None:
    """The selected unit, as the map marks it."""
    unit = view.session.selected
    if unit is None:
        return None
    place = place_of(view.loaded, unit.key, unit.index, view.workbench.look(view.owner).order)
    return {"key": str(unit.key), "unit": unit.index, "place": place}


def message(text: Any, kind: type) -> Any:
    """What the map sent.

    Raises:
        InputError: it is something else.
    """
    try:
        data = from_json(text)
    except (TypeError, ValueError):
        raise InputError(UNREADABLE) from None
    if not isinstance(data, kind):
        raise InputError(UNREADABLE)
    return data


def picked(view: View, data: dict[str, Any]) -> Unit:
    """The unit at the place that was clicked.

    Raises:
        InputError: there is none.
    """
    key, place = data.get("key"), data.get("place")
    if not isinstance(key, str) or isinstance(place, bool) or not isinstance(place, int | float):
        raise InputError(UNREADABLE)
    module = ModuleKey.parse(key)
    index = unit_at(view.loaded, module.kind, module.layer, float(place), view.workbench.look(view.owner).order)
    if index is None:
        raise InputError("There is no unit at that place; choose another one.")
    return Unit(module, index)


def selecting(unit: Unit) -> Any:
    """A change of a session: another unit is selected."""

    def how(session: Session) -> Session:
        return replace(session, selected=unit)

    return how


def table_of(view: View, which: str) -> pd.DataFrame:
    """The numbers behind the map, one row a layer's module or a unit.

    Raises:
        InputError: there is no such table.
    """
    if which not in ("layers", "units"):
        raise InputError(UNREADABLE)
    loaded, plan = view.loaded, view.plan
    units = loaded.scores.to_pandas()
    units["kept"] = ~np.concatenate([plan.removed(key) for key in loaded.scores.modules])
    if which == "units":
        return units
    scores = units.groupby(["layer", "module"], sort=False)["score"].describe(percentiles=[0.05, 0.5, 0.95])
    scores = scores.drop(columns=["count", "std"]).add_prefix("score_").reset_index()
    return plan.to_pandas().merge(scores)


def _wire(shared: Shared, part: gr.HTML, picture: Any) -> None:
    def look(text: str, request: gr.Request) -> Updates:
        with toasts():
            data = message(text, dict)
            allowed = {"view": VIEWS, "order": ORDERS}
            if not data or not all(value in allowed.get(name, ()) for name, value in data.items()):
                raise InputError(UNREADABLE)
            shared.workbench.look_by(owner_of(request), **data)
            view = shared.view(request)
            return shared.updates(view, "planned") | picture(view)

    def pick(text: str, request: gr.Request) -> Updates:
        with toasts():
            unit = picked(shared.view(request), message(text, dict))
            view = shared.change(request, selecting(unit))
            return shared.updates(view, "selected") | {part: gr.HTML(selected=ring(view))}

    def table(text: str, request: gr.Request) -> Updates:
        with toasts():
            which = message(text, str)
            view = shared.view(request)
            name = f"{view.session.recipe.model}-{which}.csv"
            return shared.offer(view.owner, name, table_of(view, which).to_csv(index=False))

    part.look(look, part, shared.outputs("planned") | {part}, **QUICK)
    shared.selections.append(part.pick(pick, part, shared.outputs("selected") | {part}, **QUICK))
    shared.save_with(part.table(table, part, {shared.download}, **QUICK))
