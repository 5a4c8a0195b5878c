"""Figures of results: accuracy, error rates, ROC, evasion, claims."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from nbsupport import checks, claims, intervals, suite, tables
from nbsupport.plots import arrays, style

_CLASSIFIERS = {"point classifier (above)": (-0.2, 1.0), "region classifier (below)": (0.2, 0.4)}  # place, paleness
_ENDS = ("", "_low", "_high")
_NO_ATTACK = "benign, all\nor minimum"
_REGION = ["region_accuracy", "region_low", "region_high"]
SHOWN = {  # the quantities of `runs_side_by_side`, in the words of its panels
    **dict.fromkeys(("benign_accuracy", "success_rate"), "success"),
    "mean_rms": "mean RMS",
    "region_accuracy": "vote's accuracy",
    "median_distance": "median distance",
    "auc": "AUC",
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
        sizes = {label: style.span(list(part.loc[part["label"] == label, "n"])) for label in places}
        style.rows(ax, [f"{label!s}, n={size}" for label, size in sizes.items()])
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
    return style.headline(fig, f"Threshold for {target} of the benign images; 95 % intervals, n images")


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
    cells = 100 * within.set_index(["attack", "column"])[["success_rate" + end for end in _ENDS]]
    value, low, high = (cells[name].unstack().reindex(rows, columns=columns) for name in cells)
    text = value.map("{:.0f}".format) + low.map("\n{:.0f}-".format) + high.map("{:.0f}".format)
    look: dict[str, Any] = {"cmap": "mako_r", "vmin": 0, "vmax": 100, "cbar": False}
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
    said = f"{models[0]} model: success in per cent within the image's budget (mean RMS {budget:.3g}), n={n}, below it "
    return style.headline(fig, said + "the 95 % interval; above the line attacks that knew nothing of the defence")


@style.house_style()
def evasion_curves(
    attempts: Sequence[suite.Attempt],
    *,
    images: int,
    defences: Sequence[str] = ("vote", "detector"),
    points: Sequence[str] = ("PGD", "OPTSTRONG"),
    pixel_max: float = 1.0,
) -> Figure:
    """Return what share of the images each defence holds at every RMS, transferred and adaptive attacks apart.

    Parameters
    ----------
    attempts
        The attacks on one model.
    images
        How many images they were given.
    defences
        Those shown, a panel for each threshold of their detector.
    points
        Attacks that also stand as stars, at their mean RMS, with the share that the defence holds against them.
    pixel_max
        The axis is in units of [0, pixel_max].

    Raises
    ------
    ValueError
        Where no defence was attacked.
    """
    least = {key: kinds for key, kinds in suite.least_rms(attempts, images).items() if key[0] in defences}
    if not least:
        raise ValueError(f"expected an attack on one of {', '.join(defences)}, got none; pass attempts on one model")
    last = 1.05 * pixel_max * max(float(one.rms.max()) for one in attempts)
    fig = style.panels(map(_defence, least), 4.0, sharex=True, sharey=True)
    for ax, (key, kinds) in zip(fig.axes, least.items(), strict=True):
        for colour, kind in zip(style.PALETTE, [kind for kind in kinds if kind != "all"], strict=False):
            rms = np.sort(pixel_max * kinds[kind].double().numpy())
            at = np.concatenate([[0.0], rms[np.isfinite(rms)], [last]])
            counts = [images - k for k in range(len(at) - 1)]
            held, low, high = arrays.spread([intervals.wilson(k, images) for k in (*counts, counts[-1])])
            ax.step(at, held, where="post", color=colour, label=kind)
            ax.fill_between(at, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
        for one in [one for one in attempts if one.attack in points and key in one.evaded]:
            rate, colour = tables.share(~one.evaded[key]), style.examples_colour(one.attack)
            error = style.whiskers([rate.value], [rate.low], [rate.high])
            look: dict[str, Any] = {"marker": "*", "markersize": 12, "linestyle": "none", "color": colour}
            ax.errorbar([pixel_max * float(one.rms.mean())], [rate.value], error, label=one.attack, **look)
        ax.set(ylim=(-0.03, 1.05), xlabel=f"RMS allowed ({style.unit(pixel_max)})")
        ax.yaxis.set_major_formatter("{x:.0%}")
    fig.axes[0].set_ylabel("images that the defence holds")
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return style.headline(fig, f"The nearest version of each of {images} images that evades; bands: 95 % intervals")


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
    return style.headline(fig, "Statistic (n). Pale: by construction. *: undecided with Holm's correction")


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
    needed = [
        "table",
        "quantity",
        "model",
        "examples",
        "about",
        *(f"{n}_{run}" for n in ("value", "verdict") for run in runs),
    ]
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
    n = f"{row['n']}" if row["n"] < 1000 else f"{row['n'] / 1000:.2g}k"
    mark = "*" * (row["verdict_holm"] != row["verdict"])
    text = f"{row['statistic']:z.2f}{mark} ({n})" if np.isfinite(row["statistic"]) else f"n={n}"
    dark = len(deciding) > 0 and verdict in ("holds", "fails")
    ax.text(*place, text, ha="center", va="center", color="white" if dark else "black", fontsize=9.5)
