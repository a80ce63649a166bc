"""Where another scorer disagrees with the one the plan goes by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gradio as gr
import numpy as np
import pandas as pd

from numprune.allocation.threshold import allocate
from numprune.errors import InputError
from numprune.plan.keys import KINDS, Kind, ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.scoring.comparison import agreement
from numprune.scoring.registry import BUILT_IN, SCORERS
from numprune.scoring.table import ScoreTable
from numprune.ui import heatmap, html, numbers
from numprune.ui.edits import UNREADABLE, checked_unit
from numprune.ui.heatmap import Rows, difference_heatmap, most_apart
from numprune.ui.map import ring, selecting
from numprune.ui.map_data import unit_name
from numprune.ui.records import Loaded
from numprune.ui.session import Unit
from numprune.ui.shared import QUICK, Shared, Updates, View, owner_of, toasts

COMPARED = "Scorers compared"
LISTED = 200
"""Units that are listed."""


@dataclass(frozen=True)
class Rivalry:
    """Two methods at the sizes of one plan: every module loses as many units by either of them, what is forced
    included, so that only the order of the units inside a module counts, not how a method's scores are scaled."""

    loaded: Loaded
    plan: PruningPlan
    rival: ScoreTable
    rival_plan: PruningPlan

    @classmethod
    def at(cls, loaded: Loaded, plan: PruningPlan, rival: ScoreTable) -> Rivalry:
        ratios = {key: plan.ratio(key) for key in plan.keep}
        recipe = plan.recipe.replace(scorer=rival.scorer, ratios=ratios, uniform=False)
        return cls(loaded, plan, rival, allocate(rival, recipe))

    @property
    def names(self) -> tuple[str, str]:
        return self.loaded.scores.scorer, self.rival.scorer

    def rows(self, kind: Kind) -> tuple[Rows, Rows]:
        """What each of them says of the units of one kind of module."""
        name = unit_name(self.loaded) if kind == "attention" else "channel"
        keys = [ModuleKey(layer, kind) for layer in range(self.loaded.outline.layers)]
        return tuple(
            Rows(
                [table.modules[key].units if key in table.modules else None for key in keys],
                [plan.removed(key) if key in table.modules else None for key in keys],
                name,
            )
            for table, plan in ((self.loaded.scores, self.plan), (self.rival, self.rival_plan))
        )

    def table(self) -> pd.DataFrame:
        """One row per unit: both scores, both ranks in the module (1 is the lowest) and who would remove it."""
        first, second = self.names
        found = []
        for key, module in self.loaded.scores.modules.items():
            scores, others = module.units, self.rival.modules[key].units
            ranks, other_ranks = (pd.Series(values).rank(method="first").astype(int) for values in (scores, others))
            found.append(
                pd.DataFrame(
                    {
                        "layer": key.layer,
                        "module": key.kind,
                        "unit": np.arange(len(scores)),
                        f"score_{first}": scores,
                        f"score_{second}": others,
                        f"rank_{first}": ranks,
                        f"rank_{second}": other_ranks,
                        f"removed_by_{first}": self.plan.removed(key),
                        f"removed_by_{second}": self.rival_plan.removed(key),
                    }
                )
            )
        return pd.concat(found, ignore_index=True)

    def disputed(self) -> pd.DataFrame:
        """The units only one of them removes, the most disputed first."""
        first, second = self.names
        table = self.table()
        table = table[table[f"removed_by_{first}"] != table[f"removed_by_{second}"]]
        apart = (table[f"rank_{first}"] - table[f"rank_{second}"]).abs()
        table = table.loc[apart.sort_values(ascending=False, kind="stable").index]
        by = np.where(table[f"removed_by_{first}"], first, second)
        names = ["layer", "module", "unit", f"rank_{first}", f"rank_{second}"]
        return table[names].rename(columns=lambda name: name.replace("_", " ", 1)).assign(**{"removed by": by})

    def pictures(self, selected: Unit | None = None) -> dict[Kind, str]:
        """The differences of the ranks as heatmaps, of heads and of channels."""
        pairs = {kind: self.rows(kind) for kind in KINDS}
        most = most_apart(list(pairs.values()))
        titles = {"attention": f"Attention: layer x {pairs['attention'][0].name}", "mlp": "MLP: layer x channel"}
        return {
            kind: difference_heatmap(
                *pair,
                self.names,
                most=most,
                title=f"{titles[kind]}, {' or '.join(self.names)}",
                selected=None
                if selected is None or selected.key.kind != kind
                else (selected.key.layer, selected.index),
            )
            for kind, pair in pairs.items()
        }

    def figures(self) -> str:
        """Rank correlation and common choices of every layer's modules, as a table."""
        first, second = self.names
        spearman = agreement(self.loaded.scores, self.rival).set_index(["layer", "module"])["spearman"]
        rows = []
        gone = common = 0
        for layer in range(self.loaded.outline.layers):
            cells: list[str] = []
            for kind in KINDS:
                key = ModuleKey(layer, kind)
                if key not in self.plan.keep:
                    cells += ["none", ""]
                    continue
                ours, theirs = self.plan.removed(key), self.rival_plan.removed(key)
                gone, common = gone + int(ours.sum()), common + int((ours & theirs).sum())
                value = spearman[layer, kind]
                cells += ["" if np.isnan(value) else f"{value:.2f}", f"{(ours & theirs).sum()} of {ours.sum()}"]
            rows.append((str(layer), *cells))
        header = ["Layer", "Attention: rank correlation", "removed by both", "MLP: rank correlation", "removed by both"]
        small_print = (
            f"Of the {gone:,} units the plan removes {common:,} would also go by {second}, were every module to keep as"
            f" many; {gone - common:,} go by {first} alone and as many by {second} alone. Rank correlation: Spearman's,"
            " over all units of the module."
        )
        return html.table(header, rows) + html.notes([small_print])


@dataclass
class RivalsPart:
    """Components of the comparison with another scorer."""

    against: gr.Dropdown
    compare: gr.Button
    result: gr.Column
    heads: gr.HTML
    channels: gr.HTML
    figures: gr.HTML
    units: gr.Dataframe

    @property
    def outputs(self) -> set[gr.components.Component]:
        return {self.result, self.heads, self.channels, self.figures, self.units}

    def show(self, view: View) -> Updates:
        """The comparison by the plan as it is; nothing while the part is not open."""
        rival = view.workbench.rival(view.session)
        if rival is None:
            return {self.result: gr.Column(visible=False)}
        if view.workbench.look(view.owner).dock != "rivals":
            return {}
        found = Rivalry.at(view.loaded, view.plan, rival)
        pictures, disputed = found.pictures(view.session.selected), found.disputed()
        shown = f"the {LISTED} farthest apart" if len(disputed) > LISTED else "all"
        return {
            self.result: gr.Column(visible=True),
            self.heads: pictures["attention"],
            self.channels: pictures["mlp"],
            self.figures: found.figures(),
            self.units: gr.Dataframe(
                disputed.head(LISTED),
                label=f"Units that only one of them removes: {len(disputed):,}, {shown} are listed",
            ),
        }


def compared(view: View) -> pd.DataFrame:
    """Both scores and ranks of every unit.

    Raises:
        InputError: no other scorer is compared.
    """
    rival = view.workbench.rival(view.session)
    if rival is None:
        raise InputError("No other scorer is compared; press Compare scores.")
    return Rivalry.at(view.loaded, view.plan, rival).table()


def build(shared: Shared, map_: gr.HTML) -> RivalsPart:
    with gr.Row(equal_height=False, elem_classes="np-line"):
        scorers = list(dict.fromkeys([*BUILT_IN, *SCORERS]))
        against = gr.Dropdown(scorers, value="wanda_sp", label="Other scorer", min_width=160, scale=1)
        compare = gr.Button("Compare scores", variant="secondary", scale=0, min_width=140)
        gr.HTML(
            "<p class='np-notes'>Ranks run from 0 to 1 in every layer. A cross, or white in the strip under a layer,"
            " marks what only one of the two would remove at the sizes of the plan. Click a cell or a row to see that"
            " unit.</p>",
            js_on_load=None,
            scale=4,
        )
    with gr.Column(visible=False, elem_id="np-rivals") as result:
        with gr.Row():
            with gr.Column(min_width=320):
                heads = gr.HTML("", js_on_load=heatmap.JS)
            with gr.Column(min_width=320):
                channels = gr.HTML("", js_on_load=heatmap.JS)
        numbers.build(shared, {COMPARED: compared})
        with gr.Row():
            with gr.Column(min_width=320):
                figures = gr.HTML("")
            with gr.Column(min_width=320):
                units = gr.Dataframe(
                    interactive=False,
                    label="Units that only one of them removes",
                    max_height=320,
                    elem_classes="np-grid",
                )
    part = RivalsPart(against, compare, result, heads, channels, figures, units)
    for moment in ("opened", "planned", "docked"):
        shared.redraw(moment, part.outputs, part.show)
    shared.later(lambda: _wire(shared, part, map_))
    return part


def _wire(shared: Shared, part: RivalsPart, map_: gr.HTML) -> None:
    def compare_scores(against: str, request: gr.Request) -> Updates:
        """Score by the other method and show where both part."""
        owner, workbench = owner_of(request), shared.workbench
        with shared.job(request) as job:
            session = workbench.session(owner)
            if against == session.recipe.scorer:
                raise InputError(f"The plan goes by {against} itself; choose another scorer to compare it with.")
            workbench.score_by(session, against, progress=job.progress, cancel=job.cancel)
            view = shared.change(request, lambda now: replace(now, against=against))
            return part.show(view)

    def chosen(view: View, unit: Unit, request: gr.Request) -> Updates:
        view = shared.change(request, selecting(unit))
        return shared.updates(view, "selected") | {map_: gr.HTML(selected=ring(view))}

    def clicked(kind: Kind):
        def select(request: gr.Request, event: gr.EventData) -> Updates:
            with toasts():
                view = shared.view(request)
                rival = view.workbench.rival(view.session)
                data = event._data if isinstance(event._data, dict) else {}
                row, column = data.get("row"), data.get("column")
                if rival is None or not (isinstance(row, int) and isinstance(column, int)):
                    raise InputError(UNREADABLE)
                rows = Rivalry.at(view.loaded, view.plan, rival).rows(kind)[0]
                inside = 0 <= row < len(rows.scores) and 0 <= column < rows.bins and rows.scores[row] is not None
                index = rows.unit_at(row, column, "index") if inside else None
                if index is None:
                    raise InputError("There is nothing in that cell; choose another one.")
                return chosen(view, Unit(ModuleKey(row, kind), index), request)

        return select

    def listed(request: gr.Request, event: gr.SelectData) -> Updates:
        with toasts():
            view, row = shared.view(request), event.row_value
            if not isinstance(row, list) or len(row) < 3:
                raise InputError(UNREADABLE)
            return chosen(view, checked_unit(view.loaded.scores, f"{row[0]}.{row[1]}", int(row[2])), request)

    shared.long(part.compare.click, compare_scores, part.against, part.outputs, show_on=part.against)
    outputs = shared.outputs("selected") | {map_}
    shared.selections += [
        part.heads.select(clicked("attention"), None, outputs, **QUICK),
        part.channels.select(clicked("mlp"), None, outputs, **QUICK),
        part.units.select(listed, None, outputs, **QUICK),
    ]
