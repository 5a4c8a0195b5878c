"""Figures of results: accuracy, error rates, ROC, evasion, claims; the columns of their tables stand here."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from nbsupport import checks, intervals
from nbsupport.plots import arrays, style
from nbsupport.plots.arrays import Floats, Values

_RATES = {
    "false_positive_rate": "False positives: benign called adversarial",
    "false_negative_rate": "False negatives: adversarial called benign",
}
_REGION = ("region_accuracy", "region_low", "region_high")
COLUMNS = {
    "region": ("model", "examples", "n", "point_accuracy", *_REGION, "radius", "samples"),
    "detector": (
        *("model", "trained_on", "tested_on", "n_benign", "n_adversarial"),
        *(f"{rate}{end}" for rate in _RATES for end in ("", "_low", "_high")),
    ),
    "evasion": ("curve", "demand", "n", "mean_rms", *_REGION),
    "claims": (*("claim", "model", "examples", "statement", "statistic", "threshold", "low", "high", "n", "verdict"),),
}
_PUBLISHED = "published"
_SHADE = "#e8f1e4"


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
    _check(table, "region")
    with style.house_style():
        groups = {str(model): part for model, part in table.groupby("model", sort=False)}
        height = 1.5 + 0.42 * table["examples"].nunique()
        fig, axes = style.panels([f"{model} model" for model in groups], height, sharex=True)
        for ax, part in zip(axes, groups.values(), strict=True):
            part = part.set_index("examples").loc[style.in_order(part["examples"])]
            point, count = part["point_accuracy"].to_numpy(float), part["n"].to_numpy(int)
            wilson = [intervals.wilson(round(p * n) if n else 0, n) for p, n in zip(point, count, strict=True)]
            low, high = [rate.low for rate in wilson], [rate.high for rate in wilson]
            colours = [style.examples_colour(name) for name in part.index]
            rows = np.arange(len(part))
            _bars(ax, rows - 0.2, np.stack([point, low, high]), edgecolor=colours, color="white")
            filled = [style.blend(colour, 1.0, 0.4) for colour in colours]
            _bars(ax, rows + 0.2, part[list(_REGION)].to_numpy(float).T, edgecolor=colours, color=filled)
            ax.set_yticks(rows, [f"{name}\nn={n}" for name, n in zip(part.index, count, strict=True)])
            ax.set(ylim=(len(part) - 0.45, -0.55), xlim=(0, 1.02), xlabel="accuracy (true label)")
            ax.grid(axis="y", visible=False)
            ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        handles = [
            Patch(facecolor="white", edgecolor=style.BLACK, label="point classifier (above)"),
            Patch(
                facecolor=style.blend(style.BLACK, 1.0, 0.4), edgecolor=style.BLACK, label="region classifier (below)"
            ),
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
        radius, samples = (
            " and ".join(f"{value:g}" for value in table[name].unique()) for name in ("radius", "samples")
        )
        style.headline(fig, f"Radius {radius} ({style.unit(pixel_max)}), {samples} samples; Wilson 95 % intervals")
    return fig


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
    _check(table, "detector")
    pair = ["model", "trained_on", "tested_on"]
    for model, trained, tested in table.loc[table.duplicated(pair), pair].itertuples(index=False):
        raise ValueError(
            f"expected one row for each model, trained_on and tested_on, got two for {model}, {trained}, {tested}"
        )
    models = table["model"].unique()
    rows, columns = style.in_order(table["trained_on"].unique()), style.in_order(table["tested_on"].unique())
    with style.house_style():
        fig = style.figure(len(models) * (1.0 + 0.42 * len(rows)) + 1.4)
        axes = fig.subplots(len(models), 2, sharex=True, sharey=True, squeeze=False)
        for line, model in zip(axes, models, strict=True):
            part = table[table["model"] == model].set_index(["trained_on", "tested_on"])
            for ax, (rate, title) in zip(line, _RATES.items(), strict=True):
                names = [rate, f"{rate}_low", f"{rate}_high"]
                cells = [part[name].unstack().reindex(index=rows, columns=columns).to_numpy(float) for name in names]
                _matrix(ax, np.stack(cells, axis=2))
                ax.set_title(f"{model} model\n{title}")
            line[0].set_yticks(range(len(rows)), rows)
            line[0].set_ylabel("trained on")
        for ax in axes[-1]:
            ax.set_xticks(range(len(columns)), columns, rotation=90)
            ax.set_xlabel("tested on")
        sizes = ", ".join(f"{what} {style.span(table[f'n_{what}'])}" for what in ("benign", "adversarial"))
        style.headline(fig, f"Error rate in per cent, below it the 95 % interval (n: {sizes})")
    return fig


def roc(scores: Mapping[str, tuple[Values, Values]], *, threshold: float = 0.5) -> Figure:
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
    with style.house_style():
        fig = style.figure(4.6, width=8.2, layout="compressed")
        ax = fig.subplots()
        ax.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1.2, label="chance")
        for name in style.in_order(scores):
            benign = arrays.floats(scores[name][0], name=f"benign scores of {name}", shape=("m",))
            adversarial = arrays.floats(scores[name][1], name=f"adversarial scores of {name}", shape=("n",))
            area = intervals.roc_auc(benign, adversarial)
            colour = style.examples_colour(name)
            size = f"n={len(benign)}+{len(adversarial)}"
            if np.isnan(area.value):
                ax.plot([], [], color=colour, label=f"{name}: not measured ({size})")
                continue
            # One step down a list of all scores: from (0, 0), above every score, to (1, 1).
            cuts = np.concatenate([[np.inf], np.unique([*benign, *adversarial])[::-1]])
            false, true = (1 - np.searchsorted(np.sort(s), cuts) / len(s) for s in (benign, adversarial))
            label = f"{name}: AUC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]\n{size}"
            ax.plot(false, true, color=colour, label=label, linewidth=1.5)
            ax.plot((benign >= threshold).mean(), (adversarial >= threshold).mean(), "o", color=colour, markersize=6)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", title="ROC of the detector")
        ax.set(xlabel=f"false positive rate (dot: threshold {threshold:g})", ylabel="true positive rate")
        heading = "n: benign + adversarial,\nAUC with 95 % interval"
        fig.legend(loc="outside right center", frameon=False, title=heading)
    return fig


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
    _check(table, "evasion")
    of_paper = table["curve"] == _PUBLISHED
    grown = {str(curve): part for curve, part in table[~of_paper].groupby("curve", sort=False)}
    with style.house_style():
        fig, axes = style.panels(grown, 4.1, sharex=True, sharey=True)
        for i, (ax, part) in enumerate(zip(axes, grown.values(), strict=True)):
            _points(ax, part, color=style.PALETTE[i], marker="os^"[i % 3], markersize=5)
            reached = part.loc[np.isfinite(part["mean_rms"]), ["mean_rms", "region_accuracy", "demand"]]
            for k, (at, height, demand) in enumerate(reached.itertuples(index=False)):
                above = (5, 5 + 11 * (k % 3))  # neighbours at different heights, since they may stand close together
                ax.annotate(f"{float(demand):.3g}", (at, height), above, textcoords="offset points", fontsize=9)
            for name, row in table[of_paper].groupby("demand", sort=False):
                label = str(name)
                star = {"marker": "*", "markersize": 13, "markeredgecolor": style.BLACK, "markeredgewidth": 0.6}
                star |= {"linestyle": "none", "color": style.examples_colour(label.split(" ")[0])}
                _points(ax, row, label=f"{label}, n={row['n'].iloc[0]}", **star)
            ax.margins(x=0.12)  # room for the number beside the last point
            ax.set(ylim=(-0.06, 1.08), xlabel=f"mean RMS ({style.unit(pixel_max)})")
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes[0].set_ylabel("region accuracy (0: the vote is evaded)")
        if of_paper.any():
            handles, labels = axes[0].get_legend_handles_labels()
            fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        count = " or ".join(f"{n:g}" for n in table.loc[~of_paper, "n"].unique())
        style.headline(fig, f"One part of the demand grows along each curve (n={count}); Wilson 95 % intervals")
    return fig


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
    _check(table, "claims")
    for verdict in table["verdict"].dropna():
        checks.choice(verdict, style.VERDICTS, name="verdict")
    groups = [part for _, part in table.groupby(["claim", "threshold"], sort=False)]
    titles = [textwrap.fill(f"{part['claim'].iloc[0]}  {_shared(part['statement'])}", 105) for part in groups]
    heights = [0.22 * len(part) + 0.12 for part in groups]
    heads = sum(0.17 * (title.count("\n") + 1) + 0.36 for title in titles)
    with style.house_style():
        fig = style.figure(sum(heights) + heads + 0.9)
        axes = fig.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, part, title in zip(axes, groups, titles, strict=True):
            _statement(ax, part)
            ax.set_title(title, loc="left", fontsize=9.5)
        handles: list[Line2D | Patch] = [
            Line2D([], [], color=colour, marker=marker, linestyle="none", label=verdict)
            for verdict, (colour, marker) in style.VERDICTS.items()
        ]
        handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1.2, label="threshold"))
        handles.append(Patch(facecolor=_SHADE, edgecolor="0.7", label="the claimed side"))
        fig.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
        style.headline(fig, "The talk's claims against what was measured here: statistic with 95 % interval")
    return fig


def _check(table: pd.DataFrame, name: str) -> None:
    arrays.columns(table, COLUMNS[name], name=f"the {name} table")


def _bars(ax: Axes, rows: ArrayLike, rates: ArrayLike, **look: Any) -> None:
    """Draw a bar with an interval at each of `rows`; `rates` are their values, lows and highs."""
    value, low, high = np.asarray(rates)
    ax.barh(rows, value, height=0.36, linewidth=1.2, **look)
    error = np.clip([value - low, high - value], 0, None)
    ax.errorbar(value, rows, xerr=error, fmt="none", color=style.BLACK, capsize=2.5, linewidth=1.3)


def _matrix(ax: Axes, cells: Floats) -> None:
    """Draw a matrix of rates (rows, columns, 3: value, low, high); a pair not measured stays white with a dash."""
    colours = seaborn.color_palette("mako_r", as_cmap=True)
    ax.imshow(np.ma.masked_invalid(cells[..., 0]), cmap=colours, vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(cells.shape[:2]):
        value, low, high = 100 * cells[i, j]
        known = np.isfinite(value)
        text = f"{value:.0f}\n{low:.0f}-{high:.0f}" if known else "-"
        ink = "0.4" if not known else "white" if value > 40 else "black"
        ax.text(j, i, text, ha="center", va="center", fontsize=9, linespacing=1.05, color=ink)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _points(ax: Axes, rows: pd.DataFrame, **look: Any) -> None:
    """Draw region accuracy with its interval against mean RMS."""
    x, y, low, high = rows[["mean_rms", *_REGION]].to_numpy(float).T
    ax.errorbar(x, y, yerr=np.clip([y - low, high - y], 0, None), capsize=2.5, elinewidth=0.9, **look)


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
    for i, (n, verdict, (value, low, high)) in enumerate(zip(part["n"], part["verdict"], bounds, strict=True)):
        text = f"n={n:.0f}" if np.isfinite(value) else f"n={n:.0f}, not measured"
        ax.text(1.01, i, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
        if np.isfinite(value):
            colour, marker = style.VERDICTS.get(verdict, ("0.6", "o"))
            ends = np.clip([low, high], left, right)
            ax.plot(ends, [i, i], color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
            ax.plot(value, i, marker=marker, color=colour, markersize=6, zorder=3)
    ax.set_yticks(range(len(part)), part["model"] + ", " + part["examples"])
    ax.set(ylim=(len(part) - 0.45, -0.55), xlim=(left, right))
    ax.grid(axis="y", visible=False)
