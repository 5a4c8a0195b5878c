"""Figures of results: accuracy, error rates, ROC, evasion, claims."""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from nbsupport import checks, claims, intervals, tables
from nbsupport.plots import arrays, style

_CLASSIFIERS = {"point classifier (above)": (-0.2, 1.0), "region classifier (below)": (0.2, 0.4)}  # place, paleness
_RATES = {
    "false_positive_rate": "False positives: benign called adversarial",
    "false_negative_rate": "False negatives: adversarial called benign",
}
_ENDS = ("", "_low", "_high")
_NO_ATTACK = "benign, all\nor minimum"
_REGION = ["region_accuracy", "region_low", "region_high"]


@style.house_style()
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
    arrays.columns(table, tables.REGION, name="the region table")
    models = {f"{model} model": part for model, part in table.groupby("model", sort=False)}
    fig = style.panels(models, 1.5 + 0.42 * table["examples"].nunique(), sharex=True)
    for ax, part in zip(fig.axes, models.values(), strict=True):
        part = part.set_index("examples").loc[style.in_order(part["examples"])]
        right = (part["point_accuracy"] * part["n"]).fillna(0).round().astype(int)
        point = arrays.spread([intervals.wilson(*counts) for counts in zip(right, part["n"], strict=True)])
        colours = [style.examples_colour(name) for name in part.index]
        for (place, pale), rates in zip(_CLASSIFIERS.values(), (point, part[_REGION].to_numpy(float).T), strict=True):
            look: dict[str, Any] = {"edgecolor": colours, "color": [style.blend(c, 1.0, pale) for c in colours]}
            look |= {"capsize": 2.5, "error_kw": {"linewidth": 1.3}, "ecolor": style.BLACK, "linewidth": 1.2}
            ax.barh(np.arange(len(part)) + place, rates[0], 0.36, xerr=style.whiskers(*rates), **look)
        style.rows(ax, [f"{name}\nn={n}" for name, n in part["n"].items()])
        ax.set(xlim=(0, 1.02), xlabel="accuracy (true label)")
        ax.xaxis.set_major_formatter("{x:.0%}")
    fills = {name: style.blend(style.BLACK, 1.0, pale) for name, (_, pale) in _CLASSIFIERS.items()}
    handles = [Patch(facecolor=fill, edgecolor=style.BLACK, label=name) for name, fill in fills.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    radius, samples = (" and ".join(f"{value:g}" for value in table[name].unique()) for name in ("radius", "samples"))
    return style.headline(fig, f"Radius {radius} ({style.unit(pixel_max)}), {samples} samples; Wilson 95 % intervals")


@style.house_style()
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
    pair = ["model", "trained_on", "tested_on"]
    rates = [rate + end for rate in _RATES for end in _ENDS]
    arrays.columns(table, [*pair, "n_benign", "n_adversarial", *rates], name="the detector table")
    for row in table.loc[table.duplicated(pair), pair].astype(str).itertuples(index=False):
        raise ValueError(f"expected one row for each model, trained_on and tested_on, got two for {', '.join(row)}")
    models = table["model"].unique()
    rows, columns = style.in_order(table["trained_on"].unique()), style.in_order(table["tested_on"].unique())
    fig = style.figure(len(models) * (1.0 + 0.42 * len(rows)) + 1.4)
    axes = fig.subplots(len(models), 2, sharex=True, sharey=True, squeeze=False)
    for line, model in zip(axes, models, strict=True):
        part = 100 * table[table["model"] == model].set_index(pair[1:])[rates]
        for ax, (rate, title) in zip(line, _RATES.items(), strict=True):
            value, low, high = (part[rate + end].unstack().reindex(rows, columns=columns) for end in _ENDS)
            text = value.map("{:.0f}\n".format) + low.map("{:.0f}-".format) + high.map("{:.0f}".format)
            look: dict[str, Any] = {"cmap": "mako_r", "vmin": 0, "vmax": 100, "cbar": False}
            seaborn.heatmap(value, annot=text, fmt="", annot_kws={"fontsize": 9, "linespacing": 1.05}, ax=ax, **look)
            for row, column in np.argwhere(value.isna()):
                ax.text(column + 0.5, row + 0.5, "-", ha="center", va="center", color="0.4")
            ax.set(title=f"{model} model\n{title}", xlabel="tested on", ylabel="trained on")
            ax.tick_params(axis="y", rotation=0)
            ax.grid(False)
            ax.label_outer()
    sizes = ", ".join(f"{what} {style.span(list(table[f'n_{what}']))}" for what in ("benign", "adversarial"))
    return style.headline(fig, f"Error rate in per cent, below it the 95 % interval (n: {sizes})")


@style.house_style()
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
    fig = style.figure(4.6, width=8.2, layout="compressed")
    ax = fig.subplots()
    ax.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1.2, label="chance")
    for name in style.in_order(scores):
        benign = arrays.floats(scores[name][0], name=f"benign scores of {name}", shape=("m",))
        adversarial = arrays.floats(scores[name][1], name=f"adversarial scores of {name}", shape=("n",))
        area = intervals.roc_auc(benign, adversarial)
        colour, size = style.examples_colour(name), f"n={len(benign)}+{len(adversarial)}"
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
    fig.legend(loc="outside right center", frameon=False, title="n: benign + adversarial,\nAUC with 95 % interval")
    return fig


@style.house_style()
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
    arrays.columns(table, ["curve", "demand", "n", "mean_rms", *_REGION], name="the evasion table")
    published = table[table["curve"] == "published"]
    grown = {str(curve): part for curve, part in table.drop(published.index).groupby("curve", sort=False)}
    fig = style.panels(grown, 4.1, sharex=True, sharey=True)
    for i, (ax, part) in enumerate(zip(fig.axes, grown.values(), strict=True)):
        _points(ax, part, color=style.PALETTE[i], marker="os^"[i % 3], markersize=5)
        reached = part.loc[np.isfinite(part["mean_rms"]), ["mean_rms", "region_accuracy", "demand"]]
        for k, (at, height, demand) in enumerate(reached.itertuples(index=False)):
            above = (5, 5 + 11 * (k % 3))  # neighbours at different heights, since they may stand close together
            ax.annotate(f"{float(demand):.3g}", (at, height), above, textcoords="offset points", fontsize=9)
        for name, row in published.groupby("demand", sort=False):
            look = {"marker": "*", "markersize": 13, "markeredgecolor": style.BLACK, "markeredgewidth": 0.6}
            look |= {"linestyle": "none", "color": style.examples_colour(str(name).split(" ")[0])}
            _points(ax, row, label=f"{name}, n={row['n'].iloc[0]}", **look)
        ax.margins(x=0.12)  # room for the number beside the last point
        ax.set(ylim=(-0.06, 1.08), xlabel=f"mean RMS ({style.unit(pixel_max)})")
        ax.yaxis.set_major_formatter("{x:.0%}")
    fig.axes[0].set_ylabel("region accuracy (0: the vote is evaded)")
    if len(published):
        shown = fig.axes[0].get_legend_handles_labels()
        fig.legend(*shown, loc="outside lower center", ncols=2, frameon=False)
    count = " or ".join(f"{n:g}" for n in table.drop(published.index)["n"].unique())
    return style.headline(fig, f"One part of the demand grows along each curve (n={count}); Wilson 95 % intervals")


@style.house_style()
def claims_overview(table: pd.DataFrame) -> Figure:
    """Return the verdicts as a matrix: a row for each claim, cut by model, and a column for each attack.

    A cell has the statistic, the n and the colour of the row that decides it (`claims.overall`), "mixed" where another
    row holds. Claim 5 stands at the attack that OPTMARGIN is compared with. The last column is about benign images
    (claim 4), all attacks together (8) or the best attack for each image (10, 11).

    Parameters
    ----------
    table
        Rows of claims.csv; those that stand beside a claim are not drawn.

    Raises
    ------
    ValueError
        For an empty table, a missing column or an unknown verdict.
    """
    arrays.columns(table, claims.COLUMNS, name="the claims table")
    for verdict in table["verdict"].dropna():
        checks.choice(verdict, style.VERDICTS, name="verdict")
    table = table[table["decides"] | table["by_construction"].notna()]
    column = table["examples"].str.split(" - ").str[0].replace(dict.fromkeys(("benign", "all", "minimum"), _NO_ATTACK))
    names, models = style.in_order(column.unique()), list(table["model"].unique())
    numbers = sorted(table["claim"].unique())
    fig = style.figure(1.4 + 0.26 * len(models) * len(numbers))
    ax = fig.subplots()
    for (claim, model, name), rows in table.groupby(["claim", "model", column]):
        _verdict(ax, (names.index(str(name)), len(models) * numbers.index(claim) + models.index(model)), rows)
    style.rows(ax, models * len(numbers))
    for i, number in enumerate(numbers):
        words = textwrap.fill(f"{number}  {claims.CLAIMS.get(number, '')}", 18, subsequent_indent="    ")
        ax.text(-0.28, len(models) * (i + 0.5) - 0.5, words, transform=ax.get_yaxis_transform(), va="center")
        ax.axhline(len(models) * (i + 1) - 0.5, color="0.6", linewidth=0.8)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_xticks(range(len(names)), [name.replace("-", "\n-") for name in names])
    ax.tick_params(labeltop=True, labelbottom=False)
    ax.grid(False)
    handles = [Patch(facecolor=colour, label=verdict) for verdict, colour in style.VERDICTS.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return style.headline(fig, "Statistic (n). Pale: by construction. *: undecided with Holm's correction")


def _points(ax: Axes, rows: pd.DataFrame, **look: Any) -> None:
    """Draw region accuracy with its interval against mean RMS."""
    at, *rates = rows[["mean_rms", *_REGION]].to_numpy(float).T
    ax.errorbar(at, rates[0], yerr=style.whiskers(*rates), capsize=2.5, elinewidth=0.9, **look)


def _verdict(ax: Axes, place: tuple[int, int], rows: pd.DataFrame) -> None:
    """Draw the cell of `rows` at `place`: column, line."""
    deciding = rows[rows["decides"]]
    verdict, row = claims.overall(deciding if len(deciding) else rows)
    verdict = verdict if verdict == "mixed" else row["verdict"]
    colour = style.blend(style.VERDICTS[verdict], 1.0, 0.0 if len(deciding) else 0.6)
    ax.add_patch(Rectangle((place[0] - 0.47, place[1] - 0.43), 0.94, 0.86, color=colour))
    mark = "*" * (row["verdict_holm"] != row["verdict"])
    text = f"{row['statistic']:z.2f}{mark} ({row['n']})" if np.isfinite(row["statistic"]) else f"n={row['n']}"
    dark = len(deciding) > 0 and verdict in ("holds", "fails")
    ax.text(*place, text, ha="center", va="center", color="white" if dark else "black", fontsize=9.5)
