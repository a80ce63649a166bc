"""Colours, type and the CSS of the page."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from numprune.ui import heatmap, pictures, ratios, texts

THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.blue,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_md,
    # System fonts: the page must not ask another server for anything.
    font=["ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)

PIECES = (Path(__file__).parent / "pieces.css").read_text(encoding="utf8")
"""Cards, tables and notes, as `html` makes them; the report uses them too."""

PAGE = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
/* In reach however far down the step is that runs. */
#np-stop { position: fixed; right: 1rem; bottom: 1rem; width: 5rem; min-width: 0; z-index: 40;
  box-shadow: 0 1px 6px rgba(0, 0, 0, .35); }
.np-title h1 { margin-bottom: 0; }
.np-title p { color: var(--body-text-color-subdued); margin-top: .25rem; }
.np-step h2 { border-top: 1px solid var(--border-color-primary); padding-top: 1rem; margin-top: .5rem; }
.np-help p { font-size: .85rem; color: var(--body-text-color-subdued); }
#np-download { display: none; }
/* Scrolls inside itself; without this a wide one widens the whole page. */
.np-grid { contain: inline-size; }
.np-step .html-container { padding: 0; }
"""

CSS = "\n".join([PAGE, PIECES, heatmap.CSS, ratios.CSS, texts.CSS, pictures.CSS])
