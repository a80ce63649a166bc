"""Colours, type and the little CSS the page needs."""

from __future__ import annotations

import gradio as gr

THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.blue,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_md,
    # System fonts: the page must not ask another server for anything.
    font=["ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)

CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.np-title h1 { margin-bottom: 0; }
.np-title p { color: var(--body-text-color-subdued); margin-top: .25rem; }
.np-step h2 { border-top: 1px solid var(--border-color-primary); padding-top: 1rem; margin-top: .5rem; }
.np-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .5rem; }
.np-card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .5rem .7rem;
  background: var(--background-fill-secondary); }
.np-card b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; color: var(--body-text-color); }
.np-card span { font-size: .8rem; color: var(--body-text-color-subdued); }
.np-notes { font-size: .85rem; color: var(--body-text-color-subdued); margin: .5rem 0 0; }
.np-table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.np-table th, .np-table td { text-align: right; padding: .3rem .6rem;
  border-bottom: 1px solid var(--border-color-primary); }
.np-table th:first-child, .np-table td:first-child { text-align: left; }
.np-empty { color: var(--body-text-color-subdued); padding: .8rem; border: 1px dashed var(--border-color-primary);
  border-radius: 8px; }
@media (max-width: 640px) { .np-table th, .np-table td { padding: .25rem .3rem; font-size: .85rem; } }
"""
