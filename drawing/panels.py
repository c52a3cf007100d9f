"""A panel: a question, what healthy and unhealthy look like, and the figures that answer it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go


@dataclass(frozen=True)
class Panel:
    """One part of a page.

    Attributes:
        title: what it shows.
        caption: how to read it, in words: what healthy and unhealthy look like.
        figures: by the choice that shows them; the first is shown at once.
        choice: what is chosen among, such as "attack"; empty where there is one figure.
        height: of a figure, in pixels.
    """

    title: str
    caption: str
    figures: Mapping[str, go.Figure]
    choice: str = ""
    height: int = 380


def figure(*traces: Any, x: str = "", y: str = "") -> go.Figure:
    """Traces on two labelled axes; each label names the unit."""
    made = go.Figure(traces)
    made.update_layout(template="none", xaxis_title=x, yaxis_title=y)
    return made
