"""How the scores are distributed, over all units and over the layers."""

from __future__ import annotations

import gradio as gr
import numpy as np

from numprune.plan.keys import KINDS
from numprune.ui.map_data import rows_of
from numprune.ui.score_figures import layer_profile, score_distribution
from numprune.ui.shared import Shared, Updates, View


def build(shared: Shared) -> None:
    with gr.Row():
        distribution = gr.Plot(label="Share of units by score", min_width=320)
        profile = gr.Plot(label="Scores by layer", min_width=320)

    def show(view: View) -> Updates:
        if view.workbench.look(view.owner).dock != "distribution":
            return {}
        heads, channels = (rows_of(view.loaded, view.plan, kind).scores for kind in KINDS)
        return {
            distribution: score_distribution(together(heads), together(channels), view.plan.threshold),
            profile: layer_profile(heads, channels),
        }

    for moment in ("opened", "planned", "docked"):
        shared.redraw(moment, {distribution, profile}, show)


def together(rows: list[np.ndarray | None]) -> np.ndarray:
    """All scores of one kind of module."""
    present = [row for row in rows if row is not None]
    return np.concatenate(present) if present else np.empty(0)
