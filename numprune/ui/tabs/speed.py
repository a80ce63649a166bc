"""Speed: both models measured in turn, every token's time replayed."""

from __future__ import annotations

import gradio as gr

from numprune.ui import html
from numprune.ui.shared import Shared


def build(shared: Shared) -> None:
    gr.HTML(html.empty("Prune a model, then measure both in turn here."))
