"""The figure of region classification: its accuracy beside the point classifier's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from nbsupport import intervals
from nbsupport.plots import arrays
from nbsupport.plots.style import BLACK, blend, examples_colour, headline, house_style, in_order, panels, unit


def region_accuracy(table: pd.DataFrame, *, pixel_max: float = 1.0) -> Figure:
    """Return the accuracy of the point classifier and of the region classifier with Wilson's 95 % intervals.

    Parameters
    ----------
    table
        Rows of region.csv: model, examples, n, point_accuracy, region_accuracy, region_low, region_high, radius
        (in units of [0, pixel_max]) and samples.
    pixel_max
        The unit of the radius in the title.

    Raises
    ------
    ValueError
        For an empty table or a missing column.
    """
    needed = ["model", "examples", "n", "point_accuracy", "region_accuracy", "region_low", "region_high"]
    arrays.columns(table, [*needed, "radius", "samples"], name="the region table")
    models = list(dict.fromkeys(table["model"]))
    with house_style():
        fig, axes = panels(
            [f"{model} model" for model in models], 1.5 + 0.42 * table["examples"].nunique(), sharex=True
        )
        for ax, model in zip(axes, models, strict=True):
            part = table[table["model"] == model].set_index("examples")
            names = in_order(part.index)
            part = part.loc[names]
            count = part["n"].to_numpy(int)
            point = part["point_accuracy"].to_numpy(float)
            region = part["region_accuracy"].to_numpy(float)
            wilson = [intervals.wilson(round(p * n) if n else 0, n) for p, n in zip(point, count, strict=True)]
            spans = (
                (point, np.array([rate.low for rate in wilson]), np.array([rate.high for rate in wilson])),
                (region, part["region_low"].to_numpy(float), part["region_high"].to_numpy(float)),
            )
            for shift, (value, low, high), label in zip((-0.2, 0.2), spans, ("point", "region"), strict=True):
                colours = [examples_colour(name) for name in names]
                face: list[Any] = [blend(c, 1.0, 0.4) if label == "region" else "white" for c in colours]
                rows = np.arange(len(names)) + shift
                ax.barh(rows, value, height=0.36, color=face, edgecolor=colours, linewidth=1.2)
                error = np.clip([value - low, high - value], 0, None)
                ax.errorbar(value, rows, xerr=error, fmt="none", color=BLACK, capsize=2.5, linewidth=1.3)
            ax.set_yticks(range(len(names)), [f"{name}\nn={n}" for name, n in zip(names, count, strict=True)])
            ax.set_ylim(len(names) - 0.45, -0.55)
            ax.grid(axis="y", visible=False)
            ax.set(xlim=(0, 1.02), xlabel="accuracy (true label)")
            ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        handles = [
            Patch(facecolor="white", edgecolor=BLACK, label="point classifier (above)"),
            Patch(facecolor=blend(BLACK, 1.0, 0.4), edgecolor=BLACK, label="region classifier (below)"),
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
        radius = " and ".join(f"{value:g}" for value in dict.fromkeys(table["radius"]))
        samples = " and ".join(f"{value:g}" for value in dict.fromkeys(table["samples"]))
        headline(fig, f"Radius {radius} ({unit(pixel_max)}), {samples} samples; Wilson 95 % intervals")
    return fig
