"""The figure of singular points: how often three classes meet around benign and adversarial images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from nbsupport import intervals
from nbsupport.plots import arrays
from nbsupport.plots.arrays import Values
from nbsupport.plots.style import BLACK, examples_colour, headline, house_style, in_order, panels


def triple_cells(cells: Mapping[str, Mapping[str, Values]]) -> Figure:
    """Return the triple cells of every image and their mean with Student's 95 % interval, a panel for each model.

    Where all images of a set have as many, nothing is known of the spread and no interval is drawn.

    Parameters
    ----------
    cells
        Model -> name of the examples -> (N, P) cells in which three or more classes meet, from
        `boundary.triple_points`; N may be 0.

    Raises
    ------
    ValueError
        For no model or another shape.
    """
    arrays.not_empty(cells, name="cells")
    names = in_order(dict.fromkeys(name for by_name in cells.values() for name in by_name))
    with house_style():
        fig, axes = panels([f"{model} model" for model in cells], 1.4 + 0.5 * len(names), sharex=True)
        for ax, by_name in zip(axes, cells.values(), strict=True):
            labels = []
            for row, name in enumerate(names):
                counts = arrays.floats(by_name.get(name, np.empty((0, 1))), name=f"cells of {name}", shape=("N", "P"))
                labels.append(f"{name}\nn={len(counts)}")
                if not counts.size:
                    continue
                values = counts.mean(1)
                # Golden-ratio jitter: even, and the same in every run.
                jitter = (np.arange(len(values)) * 0.618034) % 1.0 * 0.4 - 0.2
                ax.plot(values, row + jitter, ".", color=examples_colour(name), markersize=7, alpha=0.6, zorder=2)
                mean = intervals.mean(values)
                if np.isfinite([mean.low, mean.high]).all():
                    span = [max(mean.low, 0.0), mean.high]
                    ax.plot(span, [row, row], color=BLACK, linewidth=2.2, solid_capstyle="butt", zorder=3)
                ax.plot(mean.value, row, "o", color="white", markeredgecolor=BLACK, markersize=7, zorder=4)
            ax.set_yticks(range(len(names)), labels)
            ax.set(ylim=(len(names) - 0.45, -0.55), xlabel="triple cells in a plane")
        largest = axes[0].get_xlim()[1]
        axes[0].set_xlim(-0.02 * largest, largest)
        headline(fig, "Each point an image, the mean over its planes; circle: mean over images, bar: its 95 % interval")
    return fig
