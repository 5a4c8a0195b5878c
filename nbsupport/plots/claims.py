"""The figure of the claims: each statistic with its interval against the claim's threshold."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nbsupport import checks
from nbsupport.plots import arrays
from nbsupport.plots.style import VERDICT_MARKERS, VERDICTS, WIDTH, figure, headline, house_style

_COLUMNS = ["claim", "model", "examples", "statement", "statistic", "threshold", "low", "high", "n", "verdict"]
_SHADE = "#e8f1e4"


def claims_overview(table: pd.DataFrame) -> Figure:
    """Return every claim's statistic with its 95 % interval: a panel for each threshold, a row for model and examples.

    Above a panel stand the words that its statements share; their differing words are the examples, at each row.

    Parameters
    ----------
    table
        Rows of claims.csv: claim, model, examples, statement, statistic, threshold, low, high, n, verdict
        (holds, fails or undecided); a statistic that is not a number was not measured.

    Raises
    ------
    ValueError
        For an empty table, a missing column or an unknown verdict.
    """
    arrays.columns(table, _COLUMNS, name="the claims table")
    for verdict in table["verdict"].dropna():
        checks.choice(verdict, VERDICTS, name="verdict")
    groups = [part for _, part in table.groupby(["claim", "threshold"], sort=False)]
    titles = [textwrap.fill(f"{part['claim'].iloc[0]}  {_shared(part['statement'])}", 105) for part in groups]
    heights = [0.22 * len(part) + 0.12 for part in groups]
    heads = sum(0.17 * (title.count("\n") + 1) + 0.36 for title in titles)
    with house_style():
        fig = figure(sum(heights) + heads + 0.9, width=WIDTH)
        axes = fig.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, part, title in zip(axes, groups, titles, strict=True):
            _statement(ax, part)
            ax.set_title(title, loc="left", fontsize=9.5)
        handles: list[Line2D | Patch] = [
            Line2D([], [], color=colour, marker=VERDICT_MARKERS[verdict], linestyle="none", label=verdict)
            for verdict, colour in VERDICTS.items()
        ]
        handles += [
            Line2D([], [], color="black", linestyle="--", linewidth=1.2, label="threshold"),
            Patch(facecolor=_SHADE, edgecolor="0.7", label="the claimed side"),
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
        headline(fig, "The talk's claims against what was measured here: statistic with 95 % interval")
    return fig


def _shared(statements: Iterable[str]) -> str:
    """Return `statements` as one, with an ellipsis for words that differ; all of them where they differ in length."""
    words = [statement.split() for statement in dict.fromkeys(statements)]
    if len({len(each) for each in words}) > 1:
        return "; ".join(map(" ".join, words))
    return " ".join(column[0] if len(set(column)) == 1 else "..." for column in zip(*words, strict=True))


def _statement(ax: Axes, part: pd.DataFrame) -> None:
    """Draw the rows of one threshold; an interval that is not bounded runs to the edge of the panel."""
    threshold = float(part["threshold"].iloc[0])
    bounds = part[["statistic", "low", "high"]].to_numpy(float)
    known = np.append(bounds[np.isfinite(bounds)], threshold)
    room = max(0.08 * (known.max() - known.min()), 0.02 * max(1.0, abs(threshold)), 1e-9)
    left, right = known.min() - room, known.max() + room
    ax.axvspan(threshold, right, color=_SHADE, zorder=0)
    ax.axvline(threshold, color="black", linestyle="--", linewidth=1.2, zorder=1)
    labels = []
    for i, (row, (value, low, high)) in enumerate(zip(part.to_dict("records"), bounds, strict=True)):
        labels.append(f"{row['model']}, {row['examples']}")
        text = f"n={row['n']:.0f}" if np.isfinite(value) else f"n={row['n']:.0f}, not measured"
        ax.text(1.01, i, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
        if not np.isfinite(value):
            continue
        colour = VERDICTS.get(row["verdict"], "0.6")
        ax.plot(np.clip([low, high], left, right), [i, i], color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
        ax.plot(value, i, marker=VERDICT_MARKERS.get(row["verdict"], "o"), color=colour, markersize=6, zorder=3)
    ax.set_yticks(range(len(labels)), labels)
    ax.set(ylim=(len(labels) - 0.45, -0.55), xlim=(left, right))
    ax.grid(axis="y", visible=False)
