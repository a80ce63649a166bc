"""How charts look: colours, symbols and what every one of them shares."""

from __future__ import annotations

from html import escape
from typing import Any

import plotly.graph_objects as go

INK = "#7b8089"
"""Mid-grey for text and axes: readable on white and on black."""
FAINT = "rgba(123,128,137,0.25)"
CLEAR = "rgba(0,0,0,0)"
BLUE, ORANGE, GREEN, PURPLE = "#3b8bbd", "#c77328", "#3a9a78", "#ad6bb0"
"""Told apart by colour-blind eyes, and as far from white as from black."""
SERIES = (
    (BLUE, "solid", "circle"),
    (ORANGE, "dash", "diamond"),
    (GREEN, "dot", "square"),
    (PURPLE, "dashdot", "triangle-up"),
)
"""Colour, dash and symbol of curves that are compared."""


def finish(figure: go.Figure, height: int) -> None:
    """Give a chart what all share; the legend stands at the bottom of the picture."""
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 26, "t": 40, "b": 86},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": INK, "size": 12},
        hoverlabel={"font": {"color": "#ffffff"}, "bgcolor": "#222222"},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "bgcolor": CLEAR},
        showlegend=True,
    )
    axis: dict[str, Any] = {"gridcolor": FAINT, "linecolor": FAINT, "zerolinecolor": FAINT, "title_standoff": 8}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)


def token(token: str) -> str:
    """A token as a label: whitespace is visible where there is nothing else, and markup stays text."""
    shown = token.strip() or token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return escape(shown)


def tint(colour: str, opacity: float) -> str:
    """#rrggbb as rgba()."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
