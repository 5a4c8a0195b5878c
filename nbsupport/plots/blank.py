"""The figure that says why there is nothing to draw."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure

from nbsupport.plots.style import figure, house_style


def nothing_to_show(reason: str) -> Figure:
    """Return a low, empty figure with `reason` written in it."""
    with house_style():
        fig = figure(0.8, layout="none")
        fig.text(0.5, 0.5, textwrap.fill(f"Nothing to show: {reason}.", 100), ha="center", va="center", color="0.3")
    return fig
