"""Colours, type and the CSS of the page."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from numprune.ui import heatmap, map, pictures, race, texts
from numprune.ui.dock import layers

HERE = Path(__file__).parent
THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.blue,
    neutral_hue=gr.themes.colors.slate,
    spacing_size=gr.themes.sizes.spacing_sm,
    text_size=gr.themes.sizes.text_sm,
    radius_size=gr.themes.sizes.radius_sm,
    # System fonts: the page must not ask another server for anything.
    font=["ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    # What the base theme has here is fainter than WCAG AA allows.
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_label_text_color="*neutral_600",
    block_label_text_color_dark="*neutral_300",
    block_title_text_color="*neutral_600",
    block_title_text_color_dark="*neutral_300",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_300",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_700",
)

PIECES = (HERE / "pieces.css").read_text(encoding="utf8")
"""Cards, tables and notes, as `html` makes them; the report uses them too."""
PAGE = (HERE / "page.css").read_text(encoding="utf8")
CSS = "\n".join([PAGE, PIECES, heatmap.CSS, map.CSS, layers.CSS, texts.CSS, pictures.CSS, race.CSS])
