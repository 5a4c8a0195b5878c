"""Figures of the detector: error rates trained on each attack and tested on each, and ROC curves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nbsupport import intervals
from nbsupport.plots import arrays
from nbsupport.plots.style import examples_colour, figure, headline, house_style, in_order

_RATES = {
    "false_positive_rate": ("False positives: benign called adversarial", "n_benign"),
    "false_negative_rate": ("False negatives: adversarial called benign", "n_adversarial"),
}


def error_rates(table: pd.DataFrame) -> Figure:
    """Return the detector's error rates, trained on (rows) times tested on (columns), for each model.

    Each cell holds the rate in per cent with its 95 % interval below.

    Parameters
    ----------
    table
        Rows of detector.csv: model, trained_on, tested_on, n_benign, n_adversarial, false_positive_rate and
        false_negative_rate, each also with _low and _high; an empty cell means not measured.

    Raises
    ------
    ValueError
        For an empty table, a missing column, or two rows of one model, trained_on and tested_on.
    """
    bounds = [f"{rate}{end}" for rate in _RATES for end in ("", "_low", "_high")]
    arrays.columns(table, ["model", "trained_on", "tested_on", "n_benign", "n_adversarial", *bounds], name="the table")
    twice = table.duplicated(["model", "trained_on", "tested_on"])
    if twice.any():
        row = table[twice].iloc[0]
        raise ValueError(
            "expected one row for each model, trained_on and tested_on, "
            f"got two for {row['model']}, {row['trained_on']}, {row['tested_on']}"
        )
    models = list(dict.fromkeys(table["model"]))
    rows = in_order(dict.fromkeys(table["trained_on"]))
    columns = in_order(dict.fromkeys(table["tested_on"]))
    with house_style():
        fig = figure(len(models) * (1.0 + 0.42 * len(rows)) + 1.4)
        axes = fig.subplots(len(models), 2, sharex=True, sharey=True, squeeze=False)
        for line, model in zip(axes, models, strict=True):
            part = table[table["model"] == model].set_index(["trained_on", "tested_on"])
            for ax, (rate, (title, _)) in zip(line, _RATES.items(), strict=True):
                _matrix(ax, part, rate, rows, columns)
                ax.set_title(f"{model} model\n{title}")
            line[0].set_ylabel("trained on")
        for ax in axes[-1]:
            ax.set_xticks(range(len(columns)), columns, rotation=90)
            ax.set_xlabel("tested on")
        sizes = ", ".join(f"{what} {_span(table[f'n_{what}'])}" for what in ("benign", "adversarial"))
        headline(fig, f"Error rate in per cent, below it the 95 % interval (n: {sizes})")
    return fig


def roc(scores: Mapping[str, tuple[arrays.Values, arrays.Values]], *, threshold: float = 0.5) -> Figure:
    """Return the detector's ROC curve for each kind of example, with the area under it and its 95 % interval.

    Parameters
    ----------
    scores
        Name of the examples -> (scores of the benign images (m,), scores of the adversarial ones (n,)), higher
        meaning adversarial.
    threshold
        The dot on each curve is the detector's decision at this score.

    Raises
    ------
    ValueError
        For nothing to draw, or scores of another shape.
    """
    arrays.not_empty(scores, name="scores")
    with house_style():
        fig = figure(4.6, width=8.2, layout="compressed")
        ax = fig.subplots()
        ax.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1.2, label="chance")
        for name in in_order(scores):
            benign = arrays.floats(scores[name][0], name=f"benign scores of {name}", shape=("m",))
            adversarial = arrays.floats(scores[name][1], name=f"adversarial scores of {name}", shape=("n",))
            area = intervals.roc_auc(benign, adversarial)
            colour = examples_colour(name)
            size = f"n={len(benign)}+{len(adversarial)}"
            if np.isnan(area.value):
                ax.plot([], [], color=colour, label=f"{name}: not measured ({size})")
                continue
            # One step down a list of all scores: from (0, 0), above every score, to (1, 1).
            cuts = np.concatenate([[np.inf], np.unique([*benign, *adversarial])[::-1]])
            false = 1 - np.searchsorted(np.sort(benign), cuts, side="left") / len(benign)
            true = 1 - np.searchsorted(np.sort(adversarial), cuts, side="left") / len(adversarial)
            label = f"{name}: AUC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]\n{size}"
            ax.plot(false, true, color=colour, label=label, linewidth=1.5)
            ax.plot((benign >= threshold).mean(), (adversarial >= threshold).mean(), "o", color=colour, markersize=6)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        ax.set(
            title="ROC of the detector",
            xlabel=f"false positive rate (dot: threshold {threshold:g})",
            ylabel="true positive rate",
        )
        fig.legend(
            loc="outside right center",
            frameon=False,
            title="n: benign + adversarial,\nAUC with 95 % interval",
        )
    return fig


def _matrix(ax: Axes, part: pd.DataFrame, rate: str, rows: list[str], columns: list[str]) -> None:
    """Draw one matrix of rates; a pair that was not measured stays white with a dash."""
    value = part[rate].unstack().reindex(index=rows, columns=columns).to_numpy(float)
    low = part[f"{rate}_low"].unstack().reindex(index=rows, columns=columns).to_numpy(float)
    high = part[f"{rate}_high"].unstack().reindex(index=rows, columns=columns).to_numpy(float)
    colours = seaborn.color_palette("mako_r", as_cmap=True)
    ax.imshow(np.ma.masked_invalid(value), cmap=colours, vmin=0, vmax=1, aspect="auto")
    for i in range(len(rows)):
        for j in range(len(columns)):
            if np.isnan(value[i, j]):
                ax.text(j, i, "-", ha="center", va="center", color="0.4")
                continue
            text = f"{100 * value[i, j]:.0f}\n{100 * low[i, j]:.0f}-{100 * high[i, j]:.0f}"
            ink = "white" if value[i, j] > 0.4 else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=9, linespacing=1.05, color=ink)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_yticks(range(len(rows)), rows)


def _span(counts: pd.Series[int]) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"
