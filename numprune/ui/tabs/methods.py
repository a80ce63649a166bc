"""Methods side by side: loss against ratio, a table of cells."""

from __future__ import annotations

import gradio as gr

from numprune.ui import html
from numprune.ui.shared import Shared


def build(shared: Shared) -> None:
    gr.HTML(html.empty("Choose methods and ratios; every one is pruned and measured."))
