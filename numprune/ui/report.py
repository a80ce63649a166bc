"""One HTML page that holds a whole session and asks no server for anything."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from numprune import __version__
from numprune.ui import heatmap, html, pictures, race, texts
from numprune.ui.theme import PIECES

CSS = """
:root { color-scheme: light dark; --body-text-color: #1f2937; --body-text-color-subdued: #5b6472;
  --border-color-primary: #dfe3e9; --background-fill-primary: #ffffff; --background-fill-secondary: #f6f7f9;
  --color-accent: #2a6f97; --link: #1d5f87; }
@media screen and (prefers-color-scheme: dark) {
  :root { --body-text-color: #e6e9ee; --body-text-color-subdued: #a0a8b5; --border-color-primary: #353c48;
    --background-fill-primary: #14181f; --background-fill-secondary: #1c222c; --color-accent: #5fa8d3;
    --link: #7cbce2; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--background-fill-primary); color: var(--body-text-color);
  font: 16px/1.5 ui-sans-serif, system-ui, sans-serif; }
body > * { max-width: 60rem; margin: 0 auto; padding: 0 1rem; }
a { color: var(--link); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1.5rem 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .5rem 1.25rem;
  margin: 0 0 1rem; }
dt { font-size: .8rem; color: var(--body-text-color-subdued); }
dd { margin: 0; overflow-wrap: anywhere; }
nav ol { display: flex; flex-wrap: wrap; gap: .15rem 1.25rem; margin: 0; padding: .6rem 0; list-style: none;
  border: solid var(--border-color-primary); border-width: 1px 0; counter-reset: entry; }
nav li { counter-increment: entry; }
nav li::before { content: counter(entry) ". "; color: var(--body-text-color-subdued); }
main section { padding: 1.5rem 0; border-bottom: 1px solid var(--border-color-primary); }
main section > * + * { margin-top: 1rem !important; }
pre { max-height: 24rem; overflow: auto; padding: .75rem; border-radius: 8px; font-size: .82rem; white-space: pre-wrap;
  overflow-wrap: anywhere; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); }
.np-chart .infolayer text, .np-chart .cartesianlayer text { fill: var(--body-text-color-subdued) !important; }
@media print {
  body { font-size: 11pt; }
  main section > *, .np-text { break-inside: avoid; }
  h2 { break-after: avoid; }
  pre { max-height: none; break-inside: auto !important; }
  .np-heat-save, .modebar-container { display: none; }
  .np-scroll { overflow: visible; }
  /* Charts keep the width they have on the screen. */
  .np-chart { zoom: .7; }
}
"""
# The scripts of what can be used in a report too, with nobody to tell what was selected.
SCRIPTS = {
    kind: f"((element, trigger, watch) => {{\n{script}\n}})(document.body, () => {{}}, () => {{}});"
    for kind, script in (("class='np-heat'", heatmap.JS), ("class='np-race'", race.JS))
}


@dataclass(frozen=True)
class Section:
    """A part of the report: pieces of HTML (their makers escaped what is in them), charts and tables."""

    title: str
    body: Sequence[str | go.Figure | pd.DataFrame]


def report_html(sections: Sequence[Section], *, title: str, facts: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        facts: shown at the top, such as the model's name, the date and `environment()`.
    """
    entries, bodies, charts = "", "", 0
    for number, section in enumerate(sections, 1):
        entries += f"<li><a href='#section-{number}'>{escape(section.title)}</a></li>"
        parts = ""
        for part in section.body:
            if isinstance(part, go.Figure):
                charts += 1
                parts += _chart(part, charts)
            else:
                parts += _table(part) if isinstance(part, pd.DataFrame) else part
        bodies += f"<section id='section-{number}'><h2>{escape(section.title)}</h2>{parts}</section>\n"
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    script = "".join(f"<script>{script}</script>" for kind, script in SCRIPTS.items() if kind in bodies)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        # Without an icon of its own a browser asks for one.
        f"<link rel='icon' href='data:,'><title>{escape(title)}</title>\n"
        f"<style>{CSS}{PIECES}{heatmap.CSS}{texts.CSS}{pictures.CSS}{race.CSS}</style></head>\n<body>"
        f"<header><h1>{escape(title)}</h1><dl>{shown}</dl></header>\n"
        f"<nav aria-label='Contents'><ol>{entries}</ol></nav>\n<main>{bodies}</main>{script}</body></html>\n"
    )


def environment() -> dict[str, str]:
    """Versions and machine, for the facts of a report."""
    import torch
    import transformers

    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "numprune": __version__,
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "Transformers": transformers.__version__,
        "Platform": platform.platform(),
        "CPU": _cpu(),
        **gpu,
        "Threads": str(torch.get_num_threads()),
    }


def _cpu() -> str:
    """The processor's name; Linux keeps it in a file, and Python does not look there."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf8", errors="replace").splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _chart(figure: go.Figure, number: int) -> str:
    """A chart; the first one brings the library along for all."""
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=number == 1,
        config={"responsive": True, "displaylogo": False},
        default_height=f"{figure.layout.height or 450}px",
        div_id=f"chart-{number}",
    )
    return f"<div class='np-chart'>{drawn}</div>"


def _table(table: pd.DataFrame) -> str:
    rows = ([_cell(value) for value in row] for row in table.itertuples(index=False))
    return html.table([str(name) for name in table.columns], rows)


def _cell(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
