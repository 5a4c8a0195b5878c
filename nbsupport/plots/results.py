"""Figures of results: accuracy, error rates, ROC, evasion, claims."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator

from nbsupport import checks, claims, intervals, suite, tables
from nbsupport.plots import arrays, style

_CLASSIFIERS = {"point classifier (above)": (-0.2, 1.0), "region classifier (below)": (0.2, 0.4)}  # place, paleness
_ENDS = ("", "_low", "_high")
_NO_ATTACK = "benign, all\nor minimum"
_REGION = ["region_accuracy", "region_low", "region_high"]
_DEFENCES, _AS_POINTS = ("vote", "detector"), ("PGD", "OPTSTRONG")  # of `evasion_curves`
_KINDS: dict[str, Any] = {"transferred": "-", "adaptive": (0, (4, 1))}
# All are OPTMARGIN, with one part of its demand growing.
_DEMANDS: dict[str, dict[str, Any]] = {
    "number of views": {"color": style.BLUE, "marker": "o", "linestyle": "-"},
    "size of the views": {"color": style.BLUE, "marker": "s", "linestyle": "--", "markerfacecolor": "white"},
    "confidence": {"color": style.BLUE, "marker": "^", "linestyle": ":", "markerfacecolor": style.SKY},
}


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
    text = f"radius {radius} ({style.unit(pixel_max)}), {samples} samples; Wilson 95 % intervals"
    return style.headline(fig, f"Does the vote restore the true class? Hypercubes of {text}")


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
        sizes = {label: style.span(list(part.loc[part["label"] == label, "n"])) for label in places}
        style.rows(ax, [f"{label!s}, n={size}" for label, size in sizes.items()])
        ax.set(
            xlim=(-0.04, 1.04),
            xlabel="error rate: above the line benign images\ncalled adversarial, below it adversarial missed",
        )
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.axvline(
            table["target_fpr"].iloc[0], ymin=1 - benign / len(places), color="0.5", linestyle=":", linewidth=1.2
        )
    handles = fig.axes[0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    target = " and ".join(f"{value:.0%}" for value in table["target_fpr"].unique())
    text = f"Threshold for {target} of the benign images; 95 % intervals, n images"
    return style.headline(fig, f"Which images does the detector get wrong? {text}")


def _error_lines(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a mark of `error_rates`: model, trained_on, label, benign, n, and the rate."""
    attack = table["n_adversarial"].gt(0) & table["tested_on"].ne("matched")
    parts = []
    for rate, rows, benign in (("false_positive_rate", ~attack, True), ("false_negative_rate", attack, False)):
        part = table.loc[rows, ["model", "trained_on", "tested_on"]].assign(benign=benign)
        part["n"] = table.loc[rows, "n_benign" if benign else "n_adversarial"]
        for name, end in zip(("value", "low", "high"), _ENDS, strict=True):
            part[name] = table.loc[rows, rate + end]
        parts.append(part.rename(columns={"tested_on": "label"}))
    own = table[attack].drop_duplicates(["model", "trained_on"])  # their false positive rate is the same in every row
    first = own[["model", "trained_on"]].assign(label="benign", benign=True, n=own["n_benign"])
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
    ax.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
        title="How many attacks are caught at each false alarm rate?",
    )
    ax.set(xlabel="false positive rate", ylabel="true positive rate")
    title = "n: benign + adversarial images,\nAUC with 95 % interval"
    fig.legend(loc="outside right center", frameon=False, title=title)
    return fig


@style.house_style()
def evasion_cost(table: pd.DataFrame, *, pixel_max: float = 1.0) -> Figure:
    """Return region accuracy, with its Wilson 95 % interval, against mean RMS on a logarithmic axis.

    What reaches 0 % stands below the line at 0, spread apart: a row for each series.

    Parameters
    ----------
    table
        Rows of evasion.csv: curve, demand, n, mean_rms (in units of [0, pixel_max]), region_accuracy, region_low,
        region_high. Marks grow along a curve. The rows of the curve "published" are single points, named by their
        demand.
    pixel_max
        The unit of the distortion and of the size of views.

    Raises
    ------
    ValueError
        For an empty table or a missing column.
    """
    arrays.columns(table, ["curve", "demand", "n", "mean_rms", *_REGION], name="the evasion table")
    names = table["curve"].where(table["curve"] != "published", table["demand"])
    fig = style.figure(5.2)
    ax = fig.subplots()
    for row, (name, part) in enumerate(table.groupby(names, sort=False)):
        n = style.span(list(part["n"]))
        look: dict[str, Any] = {"linestyle": "none", **style.examples_style(str(name).split(" ")[0].strip(","))}
        if part["curve"].iloc[0] == "published":
            look |= {"label": f"{name}, n={n}", "sizes": [11.0], "markeredgecolor": style.BLACK}
        else:
            grown = ", ".join(f"{float(demand):.3g}" for demand in part["demand"])
            look |= {"label": f"{name}: {grown} (n={n})", "sizes": np.linspace(4, 9, len(part))}
            look |= _DEMANDS.get(str(name), {})
        _points(ax, part, lift=-0.026 * (row + 1), **look)
    ax.axhline(0, color="0.5", linewidth=0.8, zorder=1)
    ax.set(xscale="log", ylim=(-0.026 * (names.nunique() + 1.5), 1.05), ylabel="images whose true class wins the vote")
    ax.set_xlabel(f"mean RMS ({style.unit(pixel_max)}, logarithmic)")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    ax.xaxis.set(major_formatter="{x:g}", minor_formatter="")
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.yaxis.set_major_formatter("{x:.0%}")
    title = "a demand that grows, with its values"
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, title=title, alignment="left")
    text = "What does it cost to evade the vote? Lower left: more evasion for less distortion\n"
    return style.headline(fig, text + "Larger marks: a larger demand; below the line: 0 %, spread apart; bars: 95 %")


@style.house_style()
def attack_matrix(table: pd.DataFrame) -> Figure:
    """Return how often each attack (rows) evades each defence (columns) of one model within the budget.

    Each cell holds the success rate in per cent with its 95 % interval below. Attacks that knew nothing of the defence
    stand above the line; the last row is the minimum over all attacks. Attacks on another model are left out.

    Parameters
    ----------
    table
        Rows of adaptive.csv about one model; rows without a budget are not shown.

    Raises
    ------
    ValueError
        For an empty table or a missing column, more than one model, and where no row has a budget.
    """
    arrays.columns(table, tables.ADAPTIVE, name="the adaptive table")
    if len(models := list(dict.fromkeys(table["model"]))) > 1:
        raise ValueError(f"expected the adaptive table of one model, got {', '.join(models)}; draw them one by one")
    within = table[table["budget_rms"].notna() & (table["source_model"] == table["model"])]
    if within.empty:
        raise ValueError("expected a row with a budget in the adaptive table, got none; give the attacks some images")
    flags = within["fpr"].map(lambda rate: "" if np.isnan(rate) else f"\nfpr {100 * rate:g} %")
    within = within.assign(column=within["defence"].str.replace(", ", ",\n").str.replace(" + ", "\n+ ") + flags)
    rows, columns = (list(dict.fromkeys(within[name])) for name in ("attack", "column"))
    fig = style.figure(1.3 + 0.33 * len(rows))
    ax = fig.subplots()
    cells = within.set_index(["attack", "column"])[["success_rate" + end for end in _ENDS]]
    value, low, high = (cells[name].unstack().reindex(rows, columns=columns) for name in cells)
    text = value.map(intervals.per_cent) + "\n" + low.map(intervals.per_cent) + "-" + high.map(intervals.per_cent)
    look: dict[str, Any] = {"cmap": "mako_r", "vmin": 0, "vmax": 1, "cbar": False}
    seaborn.heatmap(value, annot=text, fmt="", annot_kws={"fontsize": 9, "linespacing": 1.0}, ax=ax, **look)
    for row, column in np.argwhere(value.isna()):
        ax.text(column + 0.5, row + 0.5, "-", ha="center", va="center", color="0.4")
    first = within.drop_duplicates("attack")
    for edge in (int(first["transfer"].sum()), len(rows) - 1):
        ax.axhline(edge, color=style.BLACK, linewidth=1.5)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(rotation=0)
    ax.grid(False)
    budget, n = within["budget_rms"].iloc[0], style.span(list(within["n"]))
    said = f"Which attack evades which defence? {models[0]} model: success in per cent within the image's budget "
    said += f"(mean RMS {budget:.3g}), n={n}, below it "
    return style.headline(fig, said + "the 95 % interval; above the line attacks that knew nothing of the defence")


@style.house_style()
def evasion_curves(
    attempts: Sequence[suite.Attempt],
    *,
    images: int,
    pixel_max: float = 1.0,
) -> Figure:
    """Return what share of the images vote and detector hold at every RMS, transferred and adaptive attacks apart.

    There is a panel for each threshold of the detector. PGD and OPTSTRONG also stand as points, at their mean RMS, with
    the share that the defence holds against them.

    Parameters
    ----------
    attempts
        The attacks on one model.
    images
        How many images they were given.
    pixel_max
        The axis is in units of [0, pixel_max].

    Raises
    ------
    ValueError
        Where neither was attacked.
    """
    least = {key: kinds for key, kinds in suite.least_rms(attempts, images).items() if key[0] in _DEFENCES}
    if not least:
        raise ValueError(f"expected an attack on {' or '.join(_DEFENCES)}, got none; pass attempts on one model")
    every = np.concatenate([one.rms.double().numpy() for one in attempts]) * pixel_max
    first, last = 0.8 * every[every > 0].min(initial=pixel_max), 1.1 * every.max(initial=0)
    fig = style.panels(map(_defence, least), 4.0, sharex=True, sharey=True)
    for ax, (key, kinds) in zip(fig.axes, least.items(), strict=True):
        for (kind, dashes), colour in zip(_KINDS.items(), style.PAIR, strict=True):
            rms = np.sort(pixel_max * kinds.get(kind, torch.empty(0)).double().numpy())
            at = np.concatenate([[first], rms[np.isfinite(rms)], [last]])
            counts = [images - k for k in range(len(at) - 1)]
            held, low, high = arrays.spread([intervals.wilson(k, images) for k in (*counts, counts[-1])])
            ax.step(at, held, where="post", color=colour, label=f"{kind} attacks", linestyle=dashes)
            ax.fill_between(at, low, high, step="post", color=colour, alpha=0.2, linewidth=0)
        for one in [one for one in attempts if one.attack in _AS_POINTS and key in one.evaded]:
            rate, look = tables.share(~one.evaded[key]), style.examples_style(one.attack)
            look |= {"linestyle": "none", "markersize": 8, "markeredgecolor": style.BLACK, "zorder": 4}
            error = style.whiskers([rate.value], [rate.low], [rate.high])
            ax.errorbar([pixel_max * float(one.rms.mean())], [rate.value], error, label=one.attack, **look)
        ax.set(ylim=(-0.03, 1.05), xscale="log", xlabel=f"RMS allowed ({style.unit(pixel_max)}, log.)")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.xaxis.set(major_formatter="{x:g}", minor_formatter="")
        ax.yaxis.set_major_formatter("{x:.0%}")
    fig.axes[0].set_ylabel("images that the defence holds")
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    model = f"{attempts[0].model} model, n={images}; bands and bars: 95 % intervals"
    return style.headline(fig, f"How much distortion evades each defence? {model}")


def _defence(key: suite.Evasion) -> str:
    defence, rate = key
    return defence if np.isnan(rate) else f"{defence}, fpr {100 * rate:g} %"


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
    text = "Which claims hold? Statistic (n). Pale: by construction. *: undecided with Holm's correction"
    return style.headline(fig, text)


def _points(ax: Axes, rows: pd.DataFrame, *, lift: float, sizes: Any, label: str, **look: Any) -> None:
    """Draw region accuracy with its interval against mean RMS; a 0 stands at `lift`, the largest mark has the label."""
    at, *rates = rows[["mean_rms", *_REGION]].to_numpy(float).T
    height = np.where(rates[0] == 0, lift, rates[0])
    ax.plot(at, height, color=look["color"], linestyle=look.pop("linestyle"), linewidth=1.2)
    error = style.whiskers(height, np.where(rates[0] == 0, height, rates[1]), rates[2])
    for i, size in enumerate(sizes):
        name = label if i == len(sizes) - 1 else "_smaller"
        here: dict[str, Any] = {"markersize": size, "label": name, "capsize": 2, "elinewidth": 0.8, **look}
        ax.errorbar(at[i : i + 1], height[i : i + 1], error[:, i : i + 1], linestyle="none", **here)


def _verdict(ax: Axes, place: tuple[int, int], rows: pd.DataFrame) -> None:
    """Draw the cell of `rows` at `place`: column, line."""
    deciding = rows[rows["decides"]]
    verdict, row = claims.overall(deciding if len(deciding) else rows)
    verdict = verdict if verdict == "mixed" else row["verdict"]
    colour = style.blend(style.VERDICTS[verdict], 1.0, 0.0 if len(deciding) else 0.6)
    ax.add_patch(Rectangle((place[0] - 0.47, place[1] - 0.43), 0.94, 0.86, color=colour))
    n = f"{row['n']}" if row["n"] < 1000 else f"{row['n'] / 1000:.2g}k"
    mark = "*" * (row["verdict_holm"] != row["verdict"])
    text = f"{row['statistic']:z.2f}{mark} ({n})" if np.isfinite(row["statistic"]) else f"n={n}"
    dark = len(deciding) > 0 and verdict in ("holds", "fails")
    ax.text(*place, text, ha="center", va="center", color="white" if dark else "black", fontsize=9.5)
