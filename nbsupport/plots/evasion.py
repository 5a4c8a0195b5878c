"""The figure of what evading the vote costs: region accuracy against distortion as OPTMARGIN's demand grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nbsupport.plots import arrays
from nbsupport.plots.style import BLACK, PALETTE, examples_colour, headline, house_style, panels, unit

_MARKERS = ("o", "s", "^")
_PUBLISHED = "published"


def evasion_cost(table: pd.DataFrame, *, pixel_max: float = 1.0) -> Figure:
    """Return one panel a curve: region accuracy, with its Wilson 95 % interval, against mean RMS.

    Parameters
    ----------
    table
        Rows of evasion.csv: curve, demand, n, mean_rms (in units of [0, pixel_max]), region_accuracy, region_low,
        region_high. The rows of the curve "published" are drawn as stars in every panel, named by their demand.
    pixel_max
        The unit of the distortion and of the size of views.

    Raises
    ------
    ValueError
        For an empty table or a missing column.
    """
    needed = ["curve", "demand", "n", "mean_rms", "region_accuracy", "region_low", "region_high"]
    arrays.columns(table, needed, name="the evasion table")
    published = table[table["curve"] == _PUBLISHED]
    curves = [name for name in dict.fromkeys(table["curve"]) if name != _PUBLISHED]
    with house_style():
        fig, axes = panels(curves, 4.1, sharex=True, sharey=True)
        for i, (ax, name) in enumerate(zip(axes, curves, strict=True)):
            part = table[table["curve"] == name]
            _points(ax, part, color=PALETTE[i], marker=_MARKERS[i % len(_MARKERS)], markersize=5)
            for at, height, demand in zip(part["mean_rms"], part["region_accuracy"], part["demand"], strict=True):
                if np.isfinite(at):
                    ax.annotate(f"{float(demand):.3g}", (at, height), (5, 5), textcoords="offset points", fontsize=8.5)
            for _, row in published.iterrows():
                label = str(row["demand"])
                star = {"marker": "*", "markersize": 13, "markeredgecolor": BLACK, "markeredgewidth": 0.6}
                colour = examples_colour(label.split(" ")[0])
                _points(ax, row.to_frame().T, label=f"{label}, n={row['n']}", color=colour, linestyle="none", **star)
            ax.margins(x=0.12)  # room for the number beside the last point
            ax.set(ylim=(-0.06, 1.08), xlabel=f"mean RMS ({unit(pixel_max)})")
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes[0].set_ylabel("region accuracy (0: the vote is evaded)")
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        count = " or ".join(f"{n:g}" for n in dict.fromkeys(table[table["curve"] != _PUBLISHED]["n"]))
        headline(fig, f"One part of the demand grows along each curve (n={count}); Wilson 95 % intervals")
    return fig


def _points(ax: Axes, rows: pd.DataFrame, **style: Any) -> None:
    """Draw region accuracy with its interval against mean RMS."""
    x, y, low, high = (
        rows[name].to_numpy(float) for name in ("mean_rms", "region_accuracy", "region_low", "region_high")
    )
    ax.errorbar(x, y, yerr=np.clip([y - low, high - y], 0, None), capsize=2.5, elinewidth=0.9, **style)
