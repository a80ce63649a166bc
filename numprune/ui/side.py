"""The models of a tab side by side, and the two images one looks at closely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.errors import InputError
from numprune.files import from_json
from numprune.ui.comparison import DENSE, columns
from numprune.ui.edits import UNREADABLE
from numprune.ui.image_columns import quality_columns, quality_line, quality_print
from numprune.ui.shared import QUICK, Shared, Updates, View, owner_of, toasts

if TYPE_CHECKING:
    from numprune.models import Model


PAIR = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-pair]");
  if (!button) return;
  const detail = { index: Number(button.dataset.pair), model: button.dataset.model };
  document.dispatchEvent(new CustomEvent("np-pair", { detail }));
});"""
LISTEN = """const close = () => element.closest("#np-close-up").classList.remove("np-open");
document.addEventListener("np-pair", (event) => { props.value = JSON.stringify(event.detail); trigger("pick"); });
element.querySelector("button").addEventListener("click", close);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
// Events: 'pick'."""
OPEN = "() => document.getElementById('np-close-up').classList.add('np-open')"


def models_of(view: View, names: Sequence[str]) -> dict[str, Model]:
    """The dense model and these pruned ones by name.

    Raises:
        InputError: there is no pruned model, or only the scores of the dense one are here.
    """
    dense, variants = view.loaded.model, view.variants
    if not variants:
        raise InputError("There is no pruned model yet; press Prune and compare.")
    chosen = [name for name in variants if name in names] or [next(reversed(variants))]
    return {DENSE: dense, **{name: variants[name] for name in chosen}}


def side_by_side(view: View, names: Sequence[str], *, figures: bool) -> str:
    """What the dense model and these pruned ones made and how they did, one column each; empty when there is nothing.

    Args:
        names: of the pruned models.
        figures: whether all figures stand below, and not only those in a line.
    """
    bench, owner = view.workbench, view.owner
    shown = [DENSE, *names]
    if view.loaded.outline.reads_text:
        found = bench.written(owner), bench.measured(owner)
        return columns(shown, *found, predicted=bench.predicted(owner), figures=figures)
    quality = bench.quality(owner)
    found = [name for name in shown if name in quality]
    fastest = quality[found[0]].images_per_second[0] if found else 1.0
    heads = {name: quality_line(quality[name], fastest, dense=name == DENSE) for name in found}
    try:
        pictures = bench.exhibition(owner).html(shown, pairs=True, heads=heads)
    except InputError:
        pictures = ""
    if figures:
        return pictures + quality_columns(shown, quality, parameters(view, quality))
    return pictures + (quality_print(quality[found[0]]) if found else "")


def parameters(view: View, names: Mapping[str, Any]) -> dict[str, int]:
    variants = view.variants
    return {name: (view.loaded.outline if name == DENSE else variants[name]).parameters for name in names}


@dataclass
class CloseUp:
    """The panel with a slider across two images."""

    choice: gr.HTML
    slider: gr.ImageSlider


def build_close_up(shared: Shared) -> CloseUp:
    with gr.Column(elem_id="np-close-up", elem_classes="np-panel"):
        choice = gr.HTML(
            "",
            html_template="<div class='np-close'><b>${title}</b><button type='button'>Close</button></div>",
            js_on_load=LISTEN,
            title="",
        )
        slider = gr.ImageSlider(label="Dense | pruned", interactive=False, height=416, elem_id="np-slider")
    shared.redraw("opened", {slider}, lambda view: {slider: None})
    part = CloseUp(choice, slider)
    shared.later(lambda: _wire(shared, part))
    return part


def _wire(shared: Shared, part: CloseUp) -> None:
    def look(message: str, request: gr.Request) -> Updates:
        with toasts():
            index, model = pair_of(message)
            shown = shared.workbench.exhibition(owner_of(request))
            others = [name for name in shown.drawn if name != DENSE]
            model = others[-1] if model == DENSE and others else model
            if model not in shown.drawn or not 0 <= index < len(shown.classes):
                raise InputError("There is no such image any more; draw them again.")
            title = f"{shown.titles[index]}: left {DENSE.lower()}, right {model}"
            return {part.slider: shown.pair(model, index), part.choice: gr.HTML(title=title)}

    event = part.choice.pick(look, part.choice, {part.slider, part.choice}, **QUICK)
    event.success(None, None, None, js=OPEN, api_visibility="private", queue=False)


def pair_of(message: Any) -> tuple[int, str]:
    """The image and the model a page names.

    Raises:
        InputError: it names none.
    """
    try:
        data = from_json(message)
        index, model = data["index"], data["model"]
    except (TypeError, ValueError, KeyError):
        raise InputError(UNREADABLE) from None
    if not isinstance(index, int) or not isinstance(model, str):
        raise InputError(UNREADABLE)
    return index, model
