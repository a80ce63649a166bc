"""Step 2: see what every head and channel is worth, and what the plan removes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import pandas as pd

from numprune.errors import InputError
from numprune.evaluation.attention import attention_patterns
from numprune.models import Model
from numprune.plan.keys import KINDS, Kind, ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.ui import heatmap, html
from numprune.ui.heatmap import Order, Rows, Scale, score_heatmap
from numprune.ui.page import ACCELERATOR, LIVE, OWN_SCORES, Updates, owner_of, toasts
from numprune.ui.score_figures import attention_pattern, layer_profile, layer_row, score_distribution
from numprune.ui.session import Session, Unit
from numprune.ui.steps import rivals
from numprune.ui.steps.load import unit_name
from numprune.ui.workbench import Loaded

if TYPE_CHECKING:
    from numprune.ui.page import Page

SENTENCE = "Once upon a time, a little girl named Lily had a red ball."
SELECTED = "The selected unit"
PICK = "Click a cell of a heatmap, or walk with the arrow keys, to see what that head or channel does."


IMAGE_TOKENS = 64
"""Tokens of an image on which attention is shown: the class and its first rows of codes."""


@dataclass
class InspectStep:
    """Components of step 2."""

    scores: gr.Radio
    view: gr.Radio
    order: gr.Radio
    heads: gr.HTML
    channels: gr.HTML
    unit: gr.HTML
    forced: gr.Radio
    kind: gr.Radio
    layer: gr.Number
    index: gr.Number
    sentence: gr.Textbox
    pattern: gr.Plot
    charts: gr.Accordion
    charts_open: gr.State
    distribution: gr.Plot
    profile: gr.Plot
    rivals: rivals.RivalsPart

    @property
    def look(self) -> set[Any]:
        return {self.scores, self.view, self.order, self.charts_open}

    @property
    def outputs(self) -> set[Any]:
        details = {self.unit, self.forced, self.kind, self.layer, self.index}
        return {self.heads, self.channels, self.distribution, self.profile, *details, *self.rivals.outputs}

    def suit(self, model: Model) -> Updates:
        """The controls that make sense for a model."""
        return {self.sentence: gr.Textbox(visible=model.adapter.reads_text)}

    def show(self, loaded: Loaded, plan: PruningPlan, session: Session, given: Updates) -> Updates:
        """The scores of `loaded`, which need not be those the plan goes by."""
        updates = {**self.pictures(loaded, plan, session, given), **self.details(loaded, plan, session)}
        return updates | self.draw_charts(loaded, plan) if given.get(self.charts_open) else updates

    def pictures(self, loaded: Loaded, plan: PruningPlan, session: Session, given: Updates) -> Updates:
        heads, channels = rows_of(loaded, plan, "attention"), rows_of(loaded, plan, "mlp")
        scale = Scale.of([heads, channels], given.get(self.view) or "raw", cut_of(loaded, plan))
        order = given.get(self.order) or "sorted"
        scorer = loaded.scores.scorer
        return {
            self.heads: score_heatmap(
                heads,
                scale,
                order="index",
                title=f"Attention: layer x {heads.name}, {scorer}",
                selected=place_of(session.selected, "attention"),
            ),
            self.channels: score_heatmap(
                channels,
                scale,
                order=order,
                title=f"MLP: layer x channel, {scorer}",
                selected=place_of(session.selected, "mlp"),
            ),
        }

    def details(self, loaded: Loaded, plan: PruningPlan, session: Session) -> Updates:
        unit = session.selected
        if unit is None:
            return {self.unit: html.empty(PICK), self.forced: gr.Radio(value=None, interactive=False)}
        return {
            self.unit: unit_card(loaded, plan, unit),
            self.forced: gr.Radio(value=how_forced(session, unit), interactive=True),
            self.kind: unit.key.kind,
            self.layer: unit.key.layer,
            self.index: unit.index,
        }

    def draw_charts(self, loaded: Loaded, plan: PruningPlan) -> Updates:
        heads, channels = (rows_of(loaded, plan, kind).scores for kind in KINDS)
        cut = cut_of(loaded, plan)
        return {
            self.distribution: score_distribution(*(together(rows) for rows in (heads, channels)), cut),
            self.profile: layer_profile(heads, channels),
        }


def together(rows: list[np.ndarray | None]) -> np.ndarray:
    present = [row for row in rows if row is not None]
    return np.concatenate(present) if present else np.empty(0)


def cut_of(loaded: Loaded, plan: PruningPlan) -> float | None:
    """The score the plan cuts at, where it goes by the scores of `loaded` at all."""
    return plan.threshold if loaded.scores.scorer == plan.recipe.scorer else None


def rows_of(loaded: Loaded, plan: PruningPlan, kind: Kind) -> Rows:
    """Scores, and whether the plan prunes them, layer by layer."""
    scores: list[np.ndarray | None] = []
    pruned: list[np.ndarray | None] = []
    for layer in range(loaded.model.layers):
        module = loaded.scores.modules.get(ModuleKey(layer, kind))
        scores.append(None if module is None else module.units)
        pruned.append(None if module is None else plan.removed(ModuleKey(layer, kind)))
    return Rows(scores, pruned, unit_name(loaded) if kind == "attention" else "channel")


def place_of(unit: Unit | None, kind: Kind) -> tuple[int, int] | None:
    return (unit.key.layer, unit.index) if unit is not None and unit.key.kind == kind else None


def how_forced(session: Session, unit: Unit) -> str:
    """ "keep", "prune" or "auto"."""
    for how in ("keep", "prune"):
        if unit.index in getattr(session.recipe, how).get(unit.key, ()):
            return how
    return "auto"


def checked_unit(loaded: Loaded, kind: Any, layer: Any, index: Any) -> Unit:
    """The unit a page names.

    Raises:
        InputError: the model has no such unit.
    """
    try:
        key = ModuleKey(int(layer), kind)
        index = int(index)
    except (TypeError, ValueError):
        raise InputError("Layer and unit must be whole numbers.") from None
    if key not in loaded.scores.modules:
        raise InputError(f"Layer {layer} has no {kind}; the model has layers 0 to {loaded.model.layers - 1}.")
    units = len(loaded.scores.modules[key].units)
    if not 0 <= index < units:
        raise InputError(f"{key} has units 0 to {units - 1}, not {index}.")
    return Unit(key, index)


def unit_card(loaded: Loaded, plan: PruningPlan, unit: Unit) -> str:
    """Everything known about one unit."""
    key, index = unit
    module, stats = loaded.scores.modules[key], loaded.stats.modules[key]
    block = next(block for block in loaded.model.blocks if block.key == key)
    channels = block.channels([index])
    score = float(module.units[index])
    scorer, other = loaded.scores.scorer, plan.recipe.scorer
    everything = [scores.units for scores in loaded.scores.modules.values()]
    total = sum(len(scores) for scores in everything)
    rank = sum(int((scores < score).sum()) for scores in everything) + 1
    weight = float(block.last.weight.detach()[:, channels.to(block.last.weight.device)].float().norm())
    activation = float(stats.rms[channels.to(stats.rms.device)].square().mean().sqrt())
    name = unit_name(loaded) if key.kind == "attention" else "channel"
    how = "pruned" if plan.removed(key)[index] else "kept"
    forced = {"keep": "forced to stay", "prune": "forced to go"}.get(
        next((way for way in ("keep", "prune") if index in getattr(plan.recipe, way).get(key, ())), ""), "by the plan"
    )
    items = [
        (f"Layer {key.layer}, {name} {index}", f"of {len(module.units)}; {how} {forced}"),
        (f"{score:.4g}", f"score ({scorer}{'' if scorer == other else f'; the plan goes by {other}'})"),
        (f"{int((module.units < score).sum()) + 1} of {len(module.units)}", "rank in its layer, 1 is the lowest"),
        (f"{rank:,} of {total:,}", "rank in the whole model"),
        (f"{module.cost:,}", "parameters go with it"),
        (f"{weight:.3g}", f"norm of its weights in {'o_proj' if key.kind == 'attention' else 'down_proj'}"),
        (f"{activation:.3g}", "root mean square activation"),
    ]
    return html.cards(items)


def build() -> InspectStep:
    with gr.Column(elem_classes="np-step"):
        gr.Markdown(
            "## 2 · Inspect\nEach cell is the score of a head or channel, the Newton numerical score unless step 1 says"
            " otherwise: how much the output misses it. Bright stays, dark can go; crosses and the white line show what"
            " the plan below removes, by these scores or by those of another method."
        )
        with gr.Row():
            scores = gr.Radio(
                [("of step 1", "loaded"), ("of the method", OWN_SCORES)],
                value="loaded",
                label="Scores",
                min_width=320,
                info="Step 1 scores by Newton unless told otherwise; crosses and line are the method's in both.",
            )
            view = gr.Radio(
                [("score", "raw"), ("rank in its layer", "rank"), ("log of the score", "log")],
                value="raw",
                label="Colour",
                min_width=320,
                info="Both pictures share one scale. Scores are clipped at the 5th percentile; the log shows them all.",
            )
            order = gr.Radio(
                [("by score", "sorted"), ("by index", "index")],
                value="sorted",
                label="Channels",
                min_width=320,
                info="By score: left of the white line is pruned. By index: the strip under a layer is white where.",
            )
        with gr.Row():
            with gr.Column(min_width=320):
                heads = gr.HTML(html.empty("The scores of the heads appear here."), js_on_load=heatmap.JS)
            with gr.Column(min_width=320):
                channels = gr.HTML(html.empty("The scores of the channels appear here."), js_on_load=heatmap.JS)
        unit = gr.HTML(html.empty(PICK), elem_id="np-unit")
        with gr.Row():
            with gr.Column(min_width=320):
                forced = gr.Radio(
                    [("by its score", "auto"), ("keep it", "keep"), ("prune it", "prune")],
                    label="This unit",
                    info="Overrides the plan for the selected head or channel.",
                    interactive=False,
                )
                with gr.Row():
                    kind = gr.Radio(
                        [("attention", "attention"), ("MLP", "mlp")],
                        value="attention",
                        label="Module",
                        info="Or name a unit by number.",
                        min_width=170,
                    )
                    layer = gr.Number(
                        0, precision=0, minimum=0, label="Layer", info="From 0; Enter selects.", min_width=90
                    )
                    index = gr.Number(
                        0, precision=0, minimum=0, label="Unit", info="From 0; Enter selects.", min_width=90
                    )
                sentence = gr.Textbox(
                    SENTENCE, label="Sentence", info="The attention pattern of a selected head is shown on it."
                )
            with gr.Column(min_width=320):
                pattern = gr.Plot(label="The selected unit", visible=False)
        with gr.Accordion("Distribution of the scores, and profile over the layers", open=False) as charts, gr.Row():
            distribution = gr.Plot(label="Share of units by score", min_width=320)
            profile = gr.Plot(label="Scores by layer", min_width=320)
        rivals_part = rivals.build()
    return InspectStep(
        scores=scores,
        view=view,
        order=order,
        heads=heads,
        channels=channels,
        unit=unit,
        forced=forced,
        kind=kind,
        layer=layer,
        index=index,
        sentence=sentence,
        pattern=pattern,
        charts=charts,
        charts_open=gr.State(False),
        distribution=distribution,
        profile=profile,
        rivals=rivals_part,
    )


def wire(page: Page) -> None:
    step = page.inspect

    def both(given: Updates) -> tuple[Loaded, PruningPlan]:
        """The model with the scores that are shown, and the plan."""
        session = given[page.session]
        return page.seen(session, given), page.workbench.plan(session)

    def redraw(given: Updates) -> Updates:
        with toasts():
            return step.pictures(*both(given), given[page.session], given)

    def switch(given: Updates) -> Updates:
        with toasts():
            return step.show(*both(given), given[page.session], given)

    def clicked(kind: Kind, order: Order | None = None) -> Any:
        """A handler of clicks in a heatmap; its channels stand in `order`, or else as the page says."""

        def select(given: Updates, event: gr.EventData) -> Updates:
            with toasts():
                session = given[page.session]
                loaded, plan = both(given)
                rows = rows_of(loaded, plan, kind)
                data = event._data if isinstance(event._data, dict) else {}
                row, column = data.get("row"), data.get("column")
                if not (isinstance(row, int) and isinstance(column, int)):
                    raise InputError("The heatmap sent no cell; reload the page.")
                if not (0 <= row < len(rows.scores) and 0 <= column < rows.bins) or rows.scores[row] is None:
                    raise InputError("There is nothing in that cell; choose another one.")
                index = rows.unit_at(row, column, order or given[step.order])
                if index is None:
                    raise InputError("There is nothing in that cell; choose another one.")
                session = replace(session, selected=Unit(ModuleKey(row, kind), index))
                return {page.session: session, **step.details(loaded, plan, session)}

        return select

    def chosen_by_name(given: Updates, kind: Any, layer: Any, index: Any) -> Updates:
        loaded, plan = both(given)
        session = replace(given[page.session], selected=checked_unit(loaded, kind, layer, index))
        return {
            page.session: session,
            **step.pictures(loaded, plan, session, given),
            **step.details(loaded, plan, session),
        }

    def named(given: Updates) -> Updates:
        with toasts():
            return chosen_by_name(given, given[step.kind], given[step.layer], given[step.index])

    def listed(given: Updates, event: gr.SelectData) -> Updates:
        with toasts():
            row = event.row_value
            if not isinstance(row, list) or len(row) < 3:
                raise InputError("The table sent no unit; reload the page.")
            return chosen_by_name(given, row[1], row[0], row[2])

    def force(given: Updates) -> Updates:
        session = given[page.session]
        try:
            if session.selected is None:
                raise InputError("No unit is selected; click a cell of a heatmap first.")
            return page.planned(session.forced(session.selected, given[step.forced]), given)
        except InputError as error:
            # Redrawn from the untouched session, so that the switch shows what holds.
            gr.Warning(str(error), title="That did not work")
            return page.planned(session, given)

    def picture(given: Updates, request: gr.Request) -> Updates:
        session = given[page.session]
        if session.selected is None:
            return {step.pattern: gr.Plot(visible=False)}
        with page.job(request):
            loaded, plan = both(given)
            figure, label, table = unit_picture(loaded, plan, session.selected, given[step.sentence])
            page.workbench.find(owner_of(request), SELECTED, table, f"<p>{escape(label)}</p>", figure)
            return {step.pattern: gr.Plot(figure, label=label, visible=True)}

    def expand_charts(given: Updates) -> Updates:
        with toasts():
            return {step.charts_open: True, **step.draw_charts(*both(given))}

    shown = {step.heads, step.channels, step.distribution, step.profile}
    details = {page.session, step.unit, step.forced, step.kind, step.layer, step.index}
    event = step.scores.input(switch, page.look, {*shown, *details} - {page.session}, **LIVE)
    gr.on([step.view.input, step.order.input], redraw, page.look, {step.heads, step.channels}, **LIVE)
    pictured = {*page.look, step.sentence}
    chosen = [
        event,
        step.heads.select(clicked("attention", "index"), page.look, details, **LIVE),
        step.channels.select(clicked("mlp"), page.look, details, **LIVE),
        step.rivals.heads.select(clicked("attention", "index"), page.look, details, **LIVE),
        step.rivals.channels.select(clicked("mlp", "index"), page.look, details, **LIVE),
        step.rivals.units.select(listed, page.look, {*details, step.heads, step.channels}, **LIVE),
        gr.on(
            [step.layer.submit, step.index.submit],
            named,
            {*page.look, step.kind, step.layer, step.index},
            {*details, step.heads, step.channels},
            **LIVE,
        ),
    ]
    for event in chosen:
        event.success(picture, pictured, {step.pattern}, **LIVE, **ACCELERATOR)
    step.sentence.submit(picture, pictured, {step.pattern}, **LIVE, **ACCELERATOR)
    step.forced.input(force, {*page.look, step.forced}, page.plan_outputs, **LIVE)
    step.charts.expand(expand_charts, page.look, {step.charts_open, step.distribution, step.profile}, **LIVE)
    step.charts.collapse(lambda: False, None, step.charts_open, **LIVE)
    rivals.wire(page)


def unit_picture(loaded: Loaded, plan: PruningPlan, unit: Unit, sentence: str) -> tuple[Any, str, pd.DataFrame]:
    """What one unit does, as a picture, a label and a table: the attention of a head on a sentence (of an image
    model, on the first image it was calibrated on), or a channel among all of its layer."""
    key, index = unit
    if key.kind == "mlp":
        scores, pruned = loaded.scores.modules[key].units, plan.removed(key)
        table = pd.DataFrame({"channel": np.arange(len(scores)), "score": scores, "kept": ~pruned})
        return layer_row(scores, pruned, index, "channel"), f"All channels of layer {key.layer}", table
    reads_text = loaded.model.adapter.reads_text
    if reads_text and not sentence.strip():
        raise InputError("There is no sentence; write one to see the attention on it.")
    if reads_text:
        patterns = attention_patterns(loaded.model, sentence, key.layer)
    else:
        patterns = attention_patterns(loaded.model, loaded.stats.rows[0], key.layer, limit=IMAGE_TOKENS)
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
