"""The selected unit: everything known about it, and what it does."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from numprune.errors import InputError
from numprune.plan.plan import PruningPlan
from numprune.ui import engine, html, numbers
from numprune.ui.edits import parse_unit
from numprune.ui.map import ring, selecting
from numprune.ui.map_data import unit_name
from numprune.ui.records import Loaded
from numprune.ui.score_figures import attention_pattern, layer_row
from numprune.ui.session import Session, Unit
from numprune.ui.shared import QUICK, Shared, Updates, View, owner_of, toasts

SENTENCE = "Once upon a time, a little girl named Lily had a red ball."
SELECTED = "The selected unit"
PICK = "Click a head or channel of the map, walk there with the arrow keys, or name one: 3.mlp.120."
IMAGE_TOKENS = 64
"""Tokens of an image on which attention is shown: the class and its first rows of codes."""
FORCE = """(how) => {
  const [layer, kind, unit] = document.querySelector("#np-unit-name :is(input, textarea)").value.split(".");
  document.dispatchEvent(new CustomEvent("np-edit", {
    detail: { kind: "force", key: `${layer}.${kind}`, unit: Number(unit), how },
  }));
}"""


@dataclass
class UnitPart:
    """Components of the part."""

    name: gr.Textbox
    forced: gr.Radio
    card: gr.HTML
    sentence: gr.Textbox
    pattern: gr.Plot


def build(shared: Shared, map_: gr.HTML) -> UnitPart:
    with gr.Row():
        name = gr.Textbox("", label="Unit", placeholder="3.mlp.120", elem_id="np-unit-name", min_width=120, scale=1)
        forced = gr.Radio(
            [("by its score", "auto"), ("keep it", "keep"), ("prune it", "prune")],
            label="This unit",
            interactive=False,
            min_width=260,
            scale=2,
        )
        sentence = gr.Textbox(SENTENCE, label="Sentence for its attention", min_width=260, scale=3)
    numbers.build(shared, {SELECTED: numbers.found(SELECTED, "choose one on the map")})
    with gr.Row(equal_height=False):
        card = gr.HTML(html.empty(PICK), elem_id="np-unit", min_width=260)
        pattern = gr.Plot(show_label=False, label="The selected unit", visible=False, min_width=320)
    part = UnitPart(name, forced, card, sentence, pattern)
    details = {name, forced, card}
    for moment in ("opened", "planned", "selected"):
        shared.redraw(moment, details, lambda view: shown(part, view))
    opened = {sentence, pattern}
    shared.redraw(
        "opened",
        opened,
        lambda view: {
            sentence: gr.Textbox(visible=view.loaded.outline.reads_text and view.loaded.weights.elsewhere is None),
            pattern: gr.Plot(None, visible=False),
        },
    )
    shared.later(lambda: _wire(shared, part, map_), last=True)
    return part


def shown(part: UnitPart, view: View) -> Updates:
    """The selected unit by the plan; nothing while nothing is selected and nothing was."""
    unit = view.session.selected
    if unit is None:
        return {part.card: html.empty(PICK), part.forced: gr.Radio(value=None, interactive=False), part.name: ""}
    return {
        part.card: unit_card(view.loaded, view.plan, unit),
        part.forced: gr.Radio(value=how_forced(view.session, unit), interactive=True),
        part.name: f"{unit.key}.{unit.index}",
    }


def how_forced(session: Session, unit: Unit) -> str:
    """ "keep", "prune" or "auto"."""
    for how in ("keep", "prune"):
        if unit.index in getattr(session.recipe, how).get(unit.key, ()):
            return how
    return "auto"


def unit_card(loaded: Loaded, plan: PruningPlan, unit: Unit) -> str:
    """Everything known about one unit; of its weights where they are, of its activation once the model was
    calibrated."""
    key, index = unit
    module = loaded.scores.modules[key]
    score = float(module.units[index])
    everything = [scores.units for scores in loaded.scores.modules.values()]
    total = sum(len(scores) for scores in everything)
    rank = sum(int((scores < score).sum()) for scores in everything) + 1
    name = unit_name(loaded) if key.kind == "attention" else "channel"
    how = "pruned" if plan.removed(key)[index] else "kept"
    forced = {"keep": "forced to stay", "prune": "forced to go"}.get(
        next((way for way in ("keep", "prune") if index in getattr(plan.recipe, way).get(key, ())), ""), "by the plan"
    )
    items = [
        (f"Layer {key.layer}, {name} {index}", f"of {len(module.units)}; {how} {forced}"),
        (f"{score:.4g}", f"score by {loaded.scores.scorer}"),
        (f"{int((module.units < score).sum()) + 1} of {len(module.units)}", "rank in its layer, 1 is the lowest"),
        (f"{rank:,} of {total:,}", "rank in the whole model"),
        (f"{module.cost:,}", "parameters go with it"),
    ]
    if loaded.weights.elsewhere is not None:
        return html.cards(items)
    block = next(block for block in loaded.model.blocks if block.key == key)
    channels = block.channels([index])
    weight = float(block.last.weight.detach()[:, channels.to(block.last.weight.device)].float().norm())
    items.append((f"{weight:.3g}", f"norm of its weights in {'o_proj' if key.kind == 'attention' else 'down_proj'}"))
    if loaded.stats is not None:
        rms = loaded.stats.modules[key].rms
        activation = float(rms[channels.to(rms.device)].square().mean().sqrt())
        items.append((f"{activation:.3g}", "root mean square activation"))
    return html.cards(items)


def _wire(shared: Shared, part: UnitPart, map_: gr.HTML) -> None:
    def named(text: str, request: gr.Request) -> Updates:
        with toasts():
            unit = parse_unit(text, shared.view(request).loaded.scores)
            view = shared.change(request, selecting(unit))
            return shared.updates(view, "selected") | {map_: gr.HTML(selected=ring(view))}

    def picture(sentence: str, request: gr.Request) -> Updates:
        with shared.job(request) as job:
            view = shared.view(request)
            unit = view.session.selected
            if unit is None or (unit.key.kind == "attention" and view.loaded.weights.elsewhere is not None):
                return {part.pattern: gr.Plot(visible=False)}
            figure, label, table = unit_picture(shared, view, unit, sentence, job)
            shared.workbench.find(owner_of(request), SELECTED, table, f"<p>{escape(label)}</p>", figure)
            return {part.pattern: gr.Plot(figure, label=label, visible=True)}

    part.forced.input(None, part.forced, None, js=FORCE, api_visibility="private", queue=False)
    event = part.name.submit(named, part.name, shared.outputs("selected") | {map_}, **QUICK)
    for chosen in (*(each.success for each in (*shared.selections, event)), part.sentence.submit):
        shared.long(chosen, picture, part.sentence, {part.pattern})


def unit_picture(shared: Shared, view: View, unit: Unit, sentence: str, job: Any) -> tuple[Any, str, pd.DataFrame]:
    """What one unit does, as a picture, a label and a table: the attention of a head on a sentence (of an image
    model, on the first image it was calibrated on), or a channel among all of its layer."""
    (key, index), loaded = unit, view.loaded
    if key.kind == "mlp":
        scores, pruned = loaded.scores.modules[key].units, view.plan.removed(key)
        table = pd.DataFrame({"channel": np.arange(len(scores)), "score": scores, "kept": ~pruned})
        return layer_row(scores, pruned, index, "channel"), f"All channels of layer {key.layer}", table
    if loaded.model.adapter.reads_text:
        if not sentence.strip():
            raise InputError("There is no sentence; write one to see the attention on it.")
        patterns = engine.attention_patterns(loaded.model, sentence, key.layer)
    else:
        stats = shared.workbench.stats(view.session, progress=job.progress, cancel=job.cancel)
        patterns = engine.attention_patterns(loaded.model, stats.rows[0], key.layer, limit=IMAGE_TOKENS)
    heads = list(patterns.heads_of_unit(index))
    weights = patterns.weights[heads].numpy()
    figure = attention_pattern(patterns.tokens, weights, [f"Query head {head}" for head in heads])
    score = loaded.scores.modules[key].units[index]
    label = f"Attention of layer {key.layer}, {unit_name(loaded)} {index}, score {score:.4g}"
    rows = [
        {"head": head, "token": token, **dict(zip(names_of(patterns.tokens), row.tolist(), strict=True))}
        for head, grid in zip(heads, weights, strict=True)
        for token, row in zip(patterns.tokens, grid, strict=True)
    ]
    return figure, label, pd.DataFrame(rows)


def names_of(tokens: list[str]) -> list[str]:
    """Column names, one a token."""
    return [f"{place} {token.strip()}" for place, token in enumerate(tokens)]
