"""Figures of results: accuracy, error rates, ROC, evasion, claims."""

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

from nbsupport import checks, claims, intervals, tables
from nbsupport.plots import arrays, style

_CLASSIFIERS = {"point classifier (above)": (-0.2, 1.0), "region classifier (below)": (0.2, 0.4)}  # place, paleness
_ENDS = ("", "_low", "_high")
_REGION = ["region_accuracy", "region_low", "region_high"]
_SHADE = "#e8f1e4"


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
    """Return the detector's error rates with their 95 % intervals: a panel a model, a row for each set of examples.

    The upper rows are benign images and the share of them called adversarial, the lower ones adversarial images and the
    share called benign. Each mark in a row is a detector with other training.

    Parameters
    ----------
    table
        Rows of detector.csv, of one detector and one target_fpr; an empty cell means not measured.

    Raises
    ------
    ValueError
        For an empty table, a missing column, or two rows of one model, trained_on and tested_on.
    """
    pair = ["model", "trained_on", "tested_on"]
    rates = [rate + end for rate in ("false_positive_rate", "false_negative_rate") for end in _ENDS]
    arrays.columns(table, [*pair, "target_fpr", "n_benign", "n_adversarial", *rates], name="the detector table")
    for row in table.loc[table.duplicated(pair), pair].astype(str).itertuples(index=False):
        raise ValueError(f"expected one row for each model, trained_on and tested_on, got two for {', '.join(row)}")
    lines = _error_lines(table)
    sets, judges = list(lines.groupby("label", sort=False)), style.in_order(table["trained_on"].unique())
    benign = lines.loc[lines["benign"], "label"].nunique()
    models = {f"{model} model": part for model, part in lines.groupby("model", sort=False)}
    fig = style.panels(models, 1.9 + (0.16 + 0.1 * len(judges)) * len(sets), sharex=True)
    places = {label: i for i, (label, _) in enumerate(sets)}
    for ax, part in zip(fig.axes, models.values(), strict=True):
        for k, name in enumerate(judges):
            own = part[part["trained_on"] == name]
            height = [places[label] + 0.7 * ((k + 0.5) / len(judges) - 0.5) for label in own["label"]]
            value, low, high = own[["value", "low", "high"]].to_numpy(float).T
            look: dict[str, Any] = {"linestyle": "none", "markersize": 6, "elinewidth": 1.3}
            look |= {**style.examples_style(name), "label": f"trained on {name}"}
            ax.errorbar(value, height, xerr=style.whiskers(value, low, high), **look)
        ax.axhline(benign - 0.5, color="0.3", linewidth=0.8)
        style.rows(ax, [str(label) for label in places])
        ax.set(
            xlim=(-0.02, 1.02),
            xlabel="error rate: above the line benign images\ncalled adversarial, below it adversarial missed",
        )
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.axvline(
            table["target_fpr"].iloc[0], ymin=1 - benign / len(places), color="0.5", linestyle=":", linewidth=1.2
        )
    handles = fig.axes[0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    target = " and ".join(f"{value:.0%}" for value in table["target_fpr"].unique())
    sizes = ", ".join(f"{what} {style.span(list(table[f'n_{what}']))}" for what in ("benign", "adversarial"))
    return style.headline(fig, f"Threshold for {target} of the benign images; 95 % intervals (images: {sizes})")


def _error_lines(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a mark of `error_rates`: model, trained_on, label, benign, value, low, high; benign sets first."""
    attack = table["n_adversarial"].gt(0) & table["tested_on"].ne("matched")
    parts = []
    for rate, rows, benign in (("false_positive_rate", ~attack, True), ("false_negative_rate", attack, False)):
        part = table.loc[rows, ["model", "trained_on", "tested_on"]].assign(benign=benign)
        for name, end in zip(("value", "low", "high"), _ENDS, strict=True):
            part[name] = table.loc[rows, rate + end]
        parts.append(part.rename(columns={"tested_on": "label"}))
    own = table[attack].drop_duplicates(["model", "trained_on"])  # their false positive rate is the same in every row
    first = own[["model", "trained_on"]].assign(label="benign", benign=True)
    for name, end in zip(("value", "low", "high"), _ENDS, strict=True):
        first[name] = own["false_positive_rate" + end]
    return pd.concat([first, *parts], ignore_index=True)


@style.house_style()
def roc(tested: Mapping[str, intervals.Folds]) -> Figure:
    """Return the detector's ROC curve for each kind of example, with the area under it and its 95 % interval.

    Curves are means over folds, bands 95 % intervals of a bootstrap over images, point by point.

    Parameters
    ----------
    tested
        Name of the examples -> the held-out scores of benign and adversarial images.

    Raises
    ------
    ValueError
        For nothing to draw.
    """
    arrays.not_empty(tested, name="tested")
    fig = style.figure(4.6, width=8.2, layout="compressed")
    ax = fig.subplots()
    ax.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1.2, label="chance")
    at = np.linspace(0, 1, 201)
    for name in style.in_order(tested):
        one = tested[name]
        area = intervals.roc_auc_of_folds(one)
        sides = [len(np.unique(one.images[side])) for side in (~one.adversarial, one.adversarial)]
        colour, size = style.examples_colour(name), f"n={sides[0]}+{sides[1]}"
        if np.isnan(area.value):
            ax.plot([], [], color=colour, label=f"{name}: not measured ({size})")
            continue
        mean, low, high = intervals.roc_of_folds(one, at)
        label = f"{name}: AUC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]\n{size}"
        ax.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(at, mean, color=colour, label=label, linewidth=1.5)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", title="ROC of the detector, held-out images")
    ax.set(xlabel="false positive rate", ylabel="true positive rate")
    title = "n: benign + adversarial images,\nAUC with 95 % interval"
    fig.legend(loc="outside right center", frameon=False, title=title)
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
def attack_matrix(table: pd.DataFrame) -> Figure:
    """Return how often each attack (rows) evades each defence (columns) within the budget, a panel for each model.

    Each cell holds the success rate in per cent with its 95 % interval below. Attacks that knew nothing of the defence
    stand above the line, the minimum over all attacks is the last row.

    Parameters
    ----------
    table
        Rows of adaptive.csv: model, defence, attack, source_model, transfer, n, success_rate with _low and _high,
        budget_rms, fpr; rows without a budget are left out.

    Raises
    ------
    ValueError
        For an empty table or a missing column, and where no row has a budget.
    """
    arrays.columns(table, tables.ADAPTIVE, name="the adaptive table")
    within = table[table["budget_rms"].notna()].copy()
    if within.empty:
        raise ValueError("expected a row with a budget in the adaptive table, got none; give the attacks some images")
    flagged = within["fpr"].map(lambda rate: "" if np.isnan(rate) else f"\n{100 * rate:g} % false alarms")
    within["column"] = within["defence"].str.replace(", ", ",\n") + flagged
    foreign = within["source_model"] != within["model"]
    within["row"] = within["attack"].where(~foreign, within["attack"] + " of " + within["source_model"])
    order = within.assign(last=within["attack"] == "minimum").sort_values(
        ["last", "transfer", "source_model"], ascending=[True, False, True], kind="stable"
    )
    models = list(dict.fromkeys(within["model"]))
    parts = [order[order["model"] == model] for model in models]
    heights = [1.1 + 0.36 * part["row"].nunique() for part in parts]
    fig = style.figure(sum(heights) + 0.8)
    axes = fig.subplots(len(models), 1, squeeze=False, height_ratios=heights)[:, 0]
    columns = list(dict.fromkeys(within["column"]))
    for ax, model, part in zip(axes, models, parts, strict=True):
        rows = list(dict.fromkeys(part["row"]))
        cells = 100 * part.set_index(["row", "column"])[["success_rate" + end for end in _ENDS]]
        value, low, high = (cells[name].unstack().reindex(rows, columns=columns) for name in cells)
        text = value.map("{:.0f}".format) + low.map("\n{:.0f}-".format) + high.map("{:.0f}".format)
        look: dict[str, Any] = {"cmap": "mako_r", "vmin": 0, "vmax": 100, "cbar": False}
        seaborn.heatmap(value, annot=text, fmt="", annot_kws={"fontsize": 9, "linespacing": 1.0}, ax=ax, **look)
        for row, column in np.argwhere(value.isna()):
            ax.text(column + 0.5, row + 0.5, "-", ha="center", va="center", color="0.4")
        known = part.drop_duplicates("row").set_index("row").loc[rows]
        for edge in (int(known["transfer"].sum()), len(rows) - 1):
            ax.axhline(edge, color=style.BLACK, linewidth=1.5)
        budget, n = known["budget_rms"].iloc[0], style.span(list(part["n"]))
        ax.set(title=f"{model} model, mean budget {budget:.3g} RMS, n={n}", xlabel="", ylabel="")
        ax.tick_params(axis="y", rotation=0)
        ax.tick_params(axis="x", rotation=0)
        ax.grid(False)
    text = "Success within the budget in per cent, below it the 95 % interval. Above the first line: attacks that knew "
    return style.headline(fig, text + "nothing of the defence; last row: the minimum over all attacks, image by image")


@style.house_style()
def evasion_curves(
    least: Mapping[str, Mapping[str, arrays.Values]],
    *,
    points: Mapping[str, Mapping[str, tuple[float, intervals.Rate]]] | None = None,
    pixel_max: float = 1.0,
    title: str = "",
) -> Figure:
    """Return what share of the images each defence still holds at every RMS, a panel for each defence.

    Parameters
    ----------
    least
        Defence -> kind of attack -> (N,) RMS of the nearest version of each image that evaded it, [0, 1] units, inf
        where none did.
    points
        Defence -> name of an attack -> its mean RMS and the share of the images that the defence holds against it.
    pixel_max
        The axis is in units of [0, pixel_max].
    title
        Above all panels.

    Raises
    ------
    ValueError
        For no defence, or values of another shape.
    """
    arrays.not_empty(least, name="least")
    fig = style.panels(least, 3.9, sharex=True, sharey=True)
    for ax, (defence, kinds) in zip(fig.axes, least.items(), strict=True):
        for i, (kind, values) in enumerate(kinds.items()):
            rms = np.sort(arrays.floats(values, name=f"{kind} of {defence}", shape=("N",))) * pixel_max
            finite = rms[np.isfinite(rms)]
            rates = [intervals.wilson(len(rms) - k, len(rms)) for k in range(len(finite) + 1)]
            at = np.concatenate([[0.0], finite])
            held, *ends = arrays.spread(rates)
            ax.step(at, held, where="post", color=style.PALETTE[i], label=f"{kind}, n={len(rms)}")
            ax.fill_between(at, ends[0], ends[1], step="post", color=style.PALETTE[i], alpha=0.15, linewidth=0)
        for name, (place, rate) in (points or {}).get(defence, {}).items():
            look: dict[str, Any] = {"marker": "*", "markersize": 12, "linestyle": "none"}
            error = style.whiskers([rate.value], [rate.low], [rate.high])
            ax.errorbar([place * pixel_max], [rate.value], error, label=name, color=style.examples_colour(name), **look)
        ax.set(ylim=(-0.03, 1.05), xlabel=f"RMS allowed ({style.unit(pixel_max)})")
        ax.yaxis.set_major_formatter("{x:.0%}")
    fig.axes[0].set_ylabel("images that the defence holds")
    handles = {label: handle for ax in fig.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return style.headline(fig, title + ("; " if title else "") + "bands: Wilson 95 % intervals")


@style.house_style()
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
    arrays.columns(table, claims.COLUMNS, name="the claims table")
    for verdict in table["verdict"].dropna():
        checks.choice(verdict, style.VERDICTS, name="verdict")
    parts = [part for _, part in table.groupby(["claim", "threshold"], sort=False)]
    titles = [textwrap.fill(f"{part['claim'].iloc[0]}  {_shared(part['statement'])}", 105) for part in parts]
    heights = [0.22 * len(part) + 0.12 for part in parts]
    fig = style.figure(sum(heights) + sum(0.17 * (title.count("\n") + 1) + 0.36 for title in titles) + 0.9)
    axes = fig.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, part, title in zip(axes, parts, titles, strict=True):
        _statement(ax, part)
        ax.set_title(title, loc="left", fontsize=9.5)
    handles: list[Line2D | Patch] = [Patch(facecolor=_SHADE, edgecolor="0.7", label="the claimed side")]
    handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1.2, label="threshold"))
    for verdict, (colour, marker) in style.VERDICTS.items():
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=verdict))
    fig.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    return style.headline(fig, "The talk's claims against what was measured here: statistic with 95 % interval")


def _points(ax: Axes, rows: pd.DataFrame, **look: Any) -> None:
    """Draw region accuracy with its interval against mean RMS."""
    at, *rates = rows[["mean_rms", *_REGION]].to_numpy(float).T
    ax.errorbar(at, rates[0], yerr=style.whiskers(*rates), capsize=2.5, elinewidth=0.9, **look)


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
    style.rows(ax, list(part["model"] + ", " + part["examples"]))
    ax.set_xlim(left, right)
