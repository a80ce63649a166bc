"""The numbers behind a picture, as CSV: a small menu beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape

import gradio as gr
import pandas as pd

from numprune.errors import InputError
from numprune.ui.shared import QUICK, Shared, Updates, View, toasts

Numbers = Callable[[View], pd.DataFrame]
JS = """element.addEventListener("click", (event) => {
  const { table } = event.target.dataset ?? {};
  if (!table) return;
  element.querySelector("details").open = false;
  trigger("table", table);
});"""


def build(shared: Shared, tables: Mapping[str, Numbers]) -> gr.HTML:
    """The menu of these tables, by what they are called."""
    items = "".join(
        f"<button type='button' data-table='{escape(name, quote=True)}'>{escape(name)}, CSV</button>" for name in tables
    )
    menu = gr.HTML(
        "",
        html_template=f"<details class='np-save'><summary aria-label='Download the numbers' title='Download the"
        f" numbers'>⤓</summary><div>{items}</div></details>",
        js_on_load=JS,
        elem_classes="np-numbers",
    )

    def save(request: gr.Request, event: gr.EventData) -> Updates:
        with toasts():
            view, name = shared.view(request), event._data
            if name not in tables:
                raise InputError("There is no such table; reload the page.")
            text = tables[name](view).to_csv(index=False)
            return shared.offer(view.owner, f"{view.session.recipe.model}-{name}.csv", text)

    shared.later(lambda: shared.save_with(menu.table(save, None, {shared.download}, **QUICK)))
    return menu


def found(title: str, what_to_do: str) -> Numbers:
    """The table of a result by its title; where there is none yet, what to do."""

    def table(view: View) -> pd.DataFrame:
        if title not in view.findings:
            raise InputError(f"There are no numbers of '{title}' yet; {what_to_do}.")
        return view.findings[title].table

    return table


def errors(view: View) -> pd.DataFrame:
    """Every module's output error, of every pruned model."""
    variants = view.variants
    if not variants:
        raise InputError("There is no pruned model yet; press Prune and compare.")
    reports = [model.report.to_pandas().assign(model=name) for name, model in variants.items()]
    return pd.concat(reports, ignore_index=True)
