"""The figure of `nbsupport compare`: the numbers of several runs side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nbsupport import claims
from nbsupport.plots import arrays, style

SHOWN = {  # the quantities of `runs_side_by_side`, in the words of its panels
    **dict.fromkeys(("benign_accuracy", "success_rate"), "success"),
    "mean_rms": "mean RMS",
    "region_accuracy": "vote's accuracy",
    "median_distance": "median distance",
    "auc": "AUC",
}


@style.house_style()
def runs_side_by_side(table: pd.DataFrame, runs: Sequence[str]) -> Figure:
    """Return the numbers of several runs, a row of panels a model, and below how many verdicts they agree on.

    Each run has its own mark; a grey line joins the runs. A number that a run did not measure has no mark. Of benign
    images the first panel has the accuracy.

    Parameters
    ----------
    table
        Rows of compared.csv: table, quantity, model, examples, about, and value_NAME, verdict_NAME of each run.
    runs
        The names of the runs, in the order of the legend.

    Raises
    ------
    ValueError
        For an empty table or a missing column.
    """
    needed = ["table", "quantity", "model", "examples", "about"]
    needed += [f"{kind}_{run}" for kind in ("value", "verdict") for run in runs]
    arrays.columns(table, needed, name="the comparison")
    numbers = table[table["quantity"].isin(SHOWN)]
    numbers = numbers.assign(what=numbers["quantity"].map(SHOWN), label=of_defence(numbers))
    shown = [what for what in dict.fromkeys(SHOWN.values()) if what in set(numbers["what"])]
    models = {
        str(model): style.in_order(part["label"].unique()) for model, part in numbers.groupby("model", sort=False)
    }
    heights = [0.5 + 0.2 * len(names) for names in models.values()]
    fig = style.figure(2.2 + sum(heights) + 0.2 * len(claims.CLAIMS))
    grid = fig.add_gridspec(len(models) + 1, len(shown), height_ratios=[*heights, 0.7 + 0.2 * len(claims.CLAIMS)])
    above: dict[str, Axes] = {}  # the first panel of each quantity, whose axis the others share
    for i, (model, names) in enumerate(models.items()):
        for j, what in enumerate(shown):
            ax = fig.add_subplot(grid[i, j], sharex=above.get(what))
            if above.setdefault(what, ax) is ax:
                ax.set_title(what + "\n(benign: accuracy)" * (what == "success"))
            rows = numbers[(numbers["model"] == model) & (numbers["what"] == what)]
            _marks(ax, [names.index(label) for label in rows["label"]], rows[[f"value_{run}" for run in runs]])
            style.rows(ax, names)
            ax.set_ylabel(f"{model} model" if j == 0 else "")
            ax.tick_params(labelleft=j == 0)
    _agreement(fig.add_subplot(grid[-1, :]), table[table["table"] == "claims"], [f"verdict_{run}" for run in runs])
    handles = [Line2D([], [], **look, label=run) for run, look in zip(runs, _looks(len(runs)), strict=True)]
    fig.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return fig


def of_defence(numbers: pd.DataFrame) -> pd.Series:
    """Return the examples of each row of compared.csv, with the defence where there is one, such as "minimum: vote"."""
    return numbers["examples"].where(numbers["about"] == "", numbers["examples"] + ": " + numbers["about"])


def _looks(count: int) -> list[dict[str, Any]]:
    """Return the mark of each of `count` runs."""
    marks = [(style.PALETTE[k % len(style.PALETTE)], style.MARKERS[k % len(style.MARKERS)]) for k in range(count)]
    return [
        {"color": colour, "marker": marker, "markerfacecolor": "none", "markeredgewidth": 1.4, "linestyle": "none"}
        for colour, marker in marks
    ]


def _marks(ax: Axes, places: Sequence[int], values: pd.DataFrame) -> None:
    """Draw the `values` of all runs, a column each, at the heights `places`."""
    ax.hlines(places, values.min(axis=1), values.max(axis=1), color="0.75", linewidth=2.5)
    for (_, column), look in zip(values.items(), _looks(values.shape[1]), strict=True):
        ax.plot(column.to_numpy(float), places, **look)
    ax.margins(x=0.12)


def _agreement(ax: Axes, rows: pd.DataFrame, verdicts: Sequence[str]) -> None:
    """Draw for each claim how many rows have one verdict in all runs, by verdict, and how many differ."""
    known = rows.dropna(subset=list(verdicts))
    same = known[verdicts].nunique(axis=1) == 1
    counts = pd.crosstab(known["about"].str.split(" ").str[0].astype(int), known[verdicts[0]].where(same, "differs"))
    left = np.zeros(len(counts))
    for name, colour in {**style.VERDICTS, "differs": style.YELLOW}.items():
        if name in counts:
            ax.barh(range(len(counts)), counts[name], 0.7, left=left, color=colour, label=name)
            left += counts[name].to_numpy()
    style.rows(ax, [f"{number}  {claims.CLAIMS.get(number, '')}" for number in counts.index])
    ax.set(xlabel="rows of claims.csv with this verdict in all runs, or with one that differs")
    style.legend_below(ax, ncols=4)
