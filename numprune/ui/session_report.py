"""The report of one tab: what it has open, plans, pruned and found, as one page to hand around."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

from numprune.plan.keys import KINDS, Kind, ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.scoring import ScoreTable
from numprune.ui import html
from numprune.ui.command_line import command_line
from numprune.ui.dock.distribution import together
from numprune.ui.dock.result import small_print, touched, variants_table
from numprune.ui.dock.rivals import COMPARED, LISTED, Rivalry
from numprune.ui.facts import facts
from numprune.ui.figures import error_bars
from numprune.ui.heatmap import Scale, score_heatmap
from numprune.ui.map_data import CONTEXT, rows_of
from numprune.ui.records import Finding, Loaded
from numprune.ui.report import Section, environment, report_html
from numprune.ui.score_figures import layer_profile, ratio_bars, score_distribution

if TYPE_CHECKING:
    from numprune.models import Model


def session_report(
    loaded: Loaded,
    plan: PruningPlan,
    variants: Mapping[str, Model],
    findings: Mapping[str, Finding],
    rival: ScoreTable | None = None,
) -> str:
    """The page, asking no server for anything."""
    by_layer = [ratios_by_layer(plan, loaded.outline.layers, kind) for kind in KINDS]
    recipe = plan.recipe
    body: list[Any]
    sections = [
        Section("Model", [facts(loaded, recipe.calibration)]),
        Section(f"Scores ({loaded.scores.scorer})", score_pictures(loaded, plan)),
        Section(
            "Plan",
            [budget_cards(loaded, plan), ratio_bars(*(part[0] for part in by_layer), *(part[1] for part in by_layer))],
        ),
    ]
    if rival is not None:
        found = Rivalry.at(loaded, plan, rival)
        title = f"{COMPARED}: {' and '.join(found.names)}"
        body = [*found.pictures().values(), found.figures(), found.disputed().head(LISTED)]
        sections.append(Section(title, body))
    if variants:
        newest = next(reversed(variants))
        body = [variants_table(variants), small_print(newest, variants[newest])]
        if touched(variants[newest]):
            body += [
                f"<p>Output error of every module of '{escape(newest)}':</p>",
                error_bars(variants[newest].report.to_pandas()),
            ]
        sections.append(Section("Pruned models", body))
    sections += [Section(title, list(finding.parts)) for title, finding in findings.items() if finding.parts]
    sections.append(
        Section(
            "Recipe",
            [
                f"<p>The same from the command line:</p><pre>{escape(command_line(recipe))}</pre>",
                f"<pre>{escape(recipe.to_json())}</pre>",
                *(
                    f"<p>Recipe of '{escape(n)}':</p><pre>{escape(m.recipe.to_json())}</pre>"
                    for n, m in variants.items()
                ),
            ],
        )
    )
    shown = {"Model": loaded.outline.name, "Made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")}
    return report_html(sections, title=f"numprune: {loaded.outline.name}", facts={**shown, **environment()})


def score_pictures(loaded: Loaded, plan: PruningPlan) -> list[Any]:
    """Heatmaps, distribution and profile of the scores the plan goes by."""
    heads, channels = rows_of(loaded, plan, "attention"), rows_of(loaded, plan, "mlp")
    scale = Scale.of([heads, channels], "log", plan.threshold)
    return [
        score_heatmap(heads, scale, order="index", title=f"Attention: layer x {heads.name}, {loaded.scores.scorer}"),
        score_heatmap(channels, scale, order="sorted", title=f"MLP: layer x channel, {loaded.scores.scorer}"),
        score_distribution(together(heads.scores), together(channels.scores), plan.threshold),
        layer_profile(heads.scores, channels.scores),
    ]


def budget_cards(loaded: Loaded, plan: PruningPlan) -> str:
    """What would be left, exact to the parameter."""
    before, after = (loaded.outline.sizes(each, context=CONTEXT) for each in (None, plan))
    items = [
        (
            f"{after.parameters:,}",
            f"parameters of {before.parameters:,} ({change(after.parameters, before.parameters)})",
        ),
        (f"{plan.ratio_reached:.1%}", f"of the prunable parameters go ({plan.ratio_asked:.0%} asked for)"),
        (html.memory(after.bytes), f"weights, now {html.memory(before.bytes)}"),
        (
            html.memory(after.kv_bytes * 1000),
            f"KV cache per 1,000 tokens, now {html.memory(before.kv_bytes * 1000)}",
        ),
        (
            f"{html.count(after.flops)}FLOP",
            f"per token after {CONTEXT:,} tokens ({change(after.flops, before.flops)})",
        ),
    ]
    return html.cards(items) + html.notes(plan.remarks)


def change(after: int, before: int) -> str:
    return f"{after / before - 1:+.1%}"


def ratios_by_layer(plan: PruningPlan, layers: int, kind: Kind) -> tuple[list[float | None], list[bool]]:
    """The ratio of each layer's module (None where it has none) and whether it is locked."""
    keys = [ModuleKey(layer, kind) for layer in range(layers)]
    ratios = [plan.ratio(key) if key in plan.keep else None for key in keys]
    return ratios, [key in plan.recipe.ratios for key in keys]
