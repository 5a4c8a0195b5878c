"""Figures of what was measured: training, accuracy, distances, purity, and how distortion and triple cells spread."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nbsupport import checks, intervals
from nbsupport.boundary import Trace
from nbsupport.intervals import Rate
from nbsupport.plots import arrays, style
from nbsupport.plots.arrays import ByModel, Floats, Values

_ACCURACIES = {"benign_accuracy": ("benign", "benign"), "pgd_accuracy": ("under PGD", "PGD")}


@style.house_style()
def training_curves(histories: Mapping[str, pd.DataFrame], *, n_validation: int, best: Mapping[str, int]) -> Figure:
    """Return accuracy (above) and loss (below) against the epoch, a column for each model.

    Parameters
    ----------
    histories
        Model -> table with the columns epoch, loss, benign_accuracy, pgd_accuracy (NaN: not measured).
    n_validation
        Size of the validation part, for Wilson's 95 % interval of each accuracy.
    best
        Model -> the epoch whose weights were kept, drawn as a vertical line.

    Raises
    ------
    ValueError
        For no model, an empty history or a missing column.
    """
    arrays.not_empty(histories, name="histories")
    checks.count(n_validation, name="n_validation")
    fig = style.figure(5.2)
    axes = fig.subplots(2, len(histories), sharex="col", sharey="row", squeeze=False, height_ratios=[3, 2])
    for (upper, lower), (model, history) in zip(axes.T, histories.items(), strict=True):
        arrays.columns(history, ["epoch", "loss", *_ACCURACIES], name=f"the history of {model}")
        for name, (label, examples) in _ACCURACIES.items():
            epoch, value = history.loc[history[name].notna(), ["epoch", name]].to_numpy(float).T
            last = f"last {100 * value[-1]:.1f} %" if len(value) else "not measured"
            upper.plot(epoch, value, markersize=3.5, label=f"{label} ({last})", **style.examples_style(examples))
            rates = [intervals.wilson(round(each * n_validation), n_validation) for each in value]
            _band(upper, epoch, arrays.spread(rates)[1:], style.examples_colour(examples))
        lower.plot(history["epoch"], history["loss"], color=style.BLACK, marker=".", label="training loss")
        for ax in (upper, lower):
            ax.axvline(best[model], color="0.4", linestyle=":", label=f"epoch {best[model]}, kept")
        upper.set(title=f"{model} model", ylim=(-0.02, 1.02))
        upper.yaxis.set_major_formatter("{x:.0%}")
        upper.legend(loc="best", framealpha=0.9)
        lower.set(xlabel="epoch")
        lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes[0, 0].set_ylabel(f"validation accuracy\n(n={n_validation}, 95 % interval)")
    axes[1, 0].set_ylim(0, 1.08 * max(float(history["loss"].max()) for history in histories.values()))
    axes[1, 0].set_ylabel("training loss (nats)")
    return style.headline(fig, "Does training against PGD keep accuracy under PGD?")


@style.house_style()
def detector_training(histories: Mapping[str, Values]) -> Figure:
    """Return the training loss of the detector, a line for each set of examples that it is trained on.

    The pale line is every step; the line is the mean over a fiftieth of its history's steps.

    Parameters
    ----------
    histories
        Trained_on -> (steps,) the loss at every step.

    Raises
    ------
    ValueError
        For no history, an empty one, or one of another shape.
    """
    arrays.not_empty(histories, name="histories")
    fig = style.figure(4.0)
    ax = fig.subplots()
    widths = []
    for name in style.in_order(histories):
        loss = arrays.floats(histories[name], name=f"the history of {name}", shape=("steps",))
        checks.count(len(loss), name=f"the steps in the history of {name}")
        width = max(1, len(loss) // 50)
        widths.append(width)
        smooth = np.convolve(loss, np.full(width, 1 / width), mode="valid")
        every = (len(smooth) // 20, max(1, len(smooth) // 8))
        look = style.examples_style(name) | {"markersize": 4.5, "markevery": every, "linewidth": 1.5}
        ax.plot(np.arange(1, len(loss) + 1), loss, color=look["color"], alpha=0.2, linewidth=0.8, label="_steps")
        ax.plot(np.arange(width, len(loss) + 1), smooth, label=name, **look)
    mean = "" if max(widths) == 1 else f", mean of {style.span(widths)} steps"
    ax.axhline(np.log(2), color="0.4", linestyle=":", linewidth=1.2, label="chance, ln 2")
    ax.set(xlabel="optimiser step", ylabel=f"training loss (nats){mean}", ylim=(0, None))
    ax.set_title("Does the detector learn more than to guess?")
    _legend_beside(ax, "trained on")
    return fig


@style.house_style()
def accuracy_curve(
    x: Values, rates: Mapping[str, Sequence[Rate]], *, xlabel: str, title: str, marks: Mapping[str, float] | None = None
) -> Figure:
    """Return rates in per cent against a number such as eps, radius or threshold, each curve with its 95 % intervals.

    Parameters
    ----------
    x
        (M,) the numbers, ascending.
    rates
        Name of the curve -> M rates, such as `intervals.wilson` returns; where n is 0 the curve has a gap.
    xlabel
        What the numbers are, with their unit.
    title
        Above the curves.
    marks
        Name -> a number on the x axis to mark with a vertical line.

    Raises
    ------
    ValueError
        For no curve, `x` of another shape, or a curve that has not a rate for each number.
    """
    at = arrays.floats(x, name="x", shape=("M",))
    arrays.not_empty(rates, name="rates")
    fig = style.figure(4.0)
    ax = fig.subplots()
    for i, (name, curve) in enumerate(rates.items()):
        if len(curve) != len(at):
            raise ValueError(f"expected a rate of {name!r} for each of the {len(at)} numbers x, got {len(curve)}")
        own = {"color": (*style.PAIR, *style.PALETTE)[i % 12], "marker": style.MARKERS[i % len(style.MARKERS)]}
        look = style.examples_style(name) if set(rates) <= set(style.EXAMPLES) else own
        value, *ends = arrays.spread(curve)
        ax.plot(at, value, label=f"{name}, n={style.span([rate.n for rate in curve])}", markersize=4.5, **look)
        _band(ax, at, np.stack(ends), look["color"])
    for name, place in (marks or {}).items():
        ax.axvline(place, color="0.4", linestyle=":", linewidth=1.2, label=name)
    ax.set(xlabel=xlabel, ylabel="rate, 95 % interval", title=title, ylim=(-0.02, 1.02))
    ax.yaxis.set_major_formatter("{x:.0%}")
    _legend_beside(ax)
    return fig


@style.house_style()
def distance_curves(distances: ByModel, *, last: float, pixel_max: float = 1.0, bootstrap: int = 0) -> Figure:
    """Return the mean sorted boundary distance of each kind of example, a panel for each model.

    The rays of an image are sorted by distance; the curve is, at each rank, the mean over images of
    min(distance, last). It is dashed from the first rank at which fewer than half of the images reach a boundary.

    Parameters
    ----------
    distances
        Model -> name of the examples -> (N, K) in [0, 1] units, inf where no boundary was met; N may be 0.
    last
        The last magnitude searched, in [0, 1] units.
    pixel_max
        The axis is in units of [0, pixel_max].
    bootstrap
        Number of resamples of the images for a 95 % band; 0 draws none.

    Raises
    ------
    ValueError
        For no model, another shape, or `last` not above 0.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018; Fig. 4 of the talk.
    """
    arrays.not_empty(distances, name="distances")
    checks.number(last, name="last", open_low=True)
    checks.count(bootstrap, name="bootstrap", low=0)
    fig, sets = _by_model(distances, 4.8, "distances", ("N", "K"), sharey=True)
    for ax, name, unsorted in sets:
        distance = np.sort(unsorted, axis=1).astype(np.float64)
        n, rays = distance.shape
        capped = np.minimum(distance, last) * pixel_max
        rank, curve = np.arange(1, rays + 1), capped.mean(0) if n else np.full(rays, np.nan)
        first = np.count_nonzero(2 * np.isfinite(distance).sum(0) >= max(n, 1))
        look = style.examples_style(name) | {"markersize": 4.5, "markevery": (0, max(1, rays // 8))}
        # A curve that is dashed from the start still has a solid line of one point, which carries the legend.
        ax.plot(rank[: first + 1], curve[: first + 1], label=f"{name}, n={n}", **look)
        if first < rays:
            ax.plot(rank[first:], curve[first:], linestyle=(0, (4, 2)), label="_dashed", color=look["color"])
        _bootstrap_band(ax, name, capped, bootstrap)
    for ax in fig.axes:
        ax.axhline(last * pixel_max, color="0.5", linewidth=0.8, zorder=1)
        ax.set(xlabel="rank of the ray (1: the nearest boundary)", ylim=(0, 1.04 * last * pixel_max))
        ax.margins(x=0.01)
        style.legend_below(ax)
    fig.axes[0].set_ylabel(f"mean distance (RMS, {style.unit(pixel_max)})")
    band = f"; band: 95 % bootstrap ({bootstrap})" if bootstrap else ""
    text = f"How far is the boundary in random directions? Grey line: the last magnitude, {last * pixel_max:.4g}\n"
    text += f"dashed: fewer than half of the images reach a boundary at that rank{band}"
    return style.headline(fig, text)


@style.house_style()
def margins(traces: Mapping[str, Trace], *, pixel_max: float = 1.0) -> Figure:
    """Return the margin along one ray of each of several images, and where the search looked.

    Parameters
    ----------
    traces
        Name of the image -> what `boundary.trace` found.
    pixel_max
        The axis is in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For no trace.
    """
    arrays.not_empty(traces, name="traces")
    fig = style.panels([f"{name}: {len(trace.looked) - 1} looks" for name, trace in traces.items()], 4.2)
    for ax, (name, trace) in zip(fig.axes, traces.items(), strict=True):
        t, margin, looked = trace.magnitude.cpu() * pixel_max, trace.margin.cpu(), trace.looked.cpu()
        colour = style.examples_colour(name)
        ax.axhline(0, color=style.BLACK, linewidth=0.8, zorder=1)
        ax.plot(t, margin, color="0.6", linewidth=1.2, marker=".", markersize=3, label="every magnitude")
        ax.plot(
            t[looked], margin[looked], "o", color=colour, markersize=5, label="where the search looked, in this order"
        )
        for order, at in [each for each in enumerate(looked.tolist()) if each[0] % (1 + len(looked) // 8) == 0]:
            place: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "va": "bottom"}
            ax.annotate(str(order), (float(t[at]), float(margin[at])), fontsize=9, color=colour, **place)
        ax.set_xlabel(f"distance from the image (RMS, {style.unit(pixel_max)})")
        ax.margins(y=0.12)
        style.legend_below(ax, ncols=1)
    fig.axes[0].set_ylabel("margin of the image's own class")
    return style.headline(fig, "How far is it safe to go along a ray? Steps follow the margin; below 0: another class")


@style.house_style()
def purity_curves(purities: ByModel, positions: ByModel) -> Figure:
    """Return the purity of adjacent classes, a row of three panels for each model, with 95 % intervals.

    Left: the mean purity of the most frequent class. Middle: its mean difference to the benign version of the same
    image. Right: the mean purity of the top j classes, without interval. Images without a reached ray are left out.

    Parameters
    ----------
    purities
        Model -> name of the examples -> (N, top) from `boundary.purity`; N may be 0.
    positions
        Model -> name of the examples -> (N,) which image each row is about.

    Raises
    ------
    ValueError
        For no model or another shape.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018; Fig. 5 of the talk.
    """
    arrays.not_empty(purities, name="purities")
    names = _names(purities)
    fig = style.figure(0.9 + len(purities) * (1.0 + 0.26 * len(names)))
    grid = fig.subplots(len(purities), 3, squeeze=False, sharex="col", width_ratios=[3, 3, 3.4])
    for (dots, paired, curve), (model, by_name) in zip(grid, purities.items(), strict=True):
        first, sizes = {}, dict.fromkeys(names, 0)
        for name in [name for name in names if name in by_name]:
            each = arrays.floats(by_name[name], name=f"purity of {name}", shape=("N", "top"))
            at = arrays.numbers(positions[model][name], name=f"positions of {name}", shape=(len(each),))
            known, look = each[:, 0] > 0, style.examples_style(name)
            first[name], sizes[name] = pd.Series(each[known, 0], at[known]), int(known.sum())
            _dot(dots, names.index(name), intervals.mean(each[known, 0], bounds=(0, 1)), look)
            if name not in ("benign", "errors") and "benign" in first:  # errors have no other version
                change = (first[name] - first["benign"]).dropna()
                _dot(paired, names.index(name), intervals.mean(change, bounds=(-1, 1)), look, f" n={len(change)}")
            if known.any():
                curve.plot(range(1, each.shape[1] + 1), each[known].mean(0), markersize=4, linewidth=1.2, **look)
        for ax in (dots, paired):
            style.rows(ax, [f"{name}, n={size}" for name, size in sizes.items()])
        paired.tick_params(labelleft=False)
        paired.axvline(0, color=style.BLACK, linewidth=0.8)
        dots.set_title(f"{model} model, j=1")
        paired.set_title("j=1, less the benign version")
        curve.set(title="every j, mean", ylim=(0, 1.04))
        curve.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[-1, 0].set(xlabel="mean purity", xlim=(0, 1.02))
    grid[-1, 1].set_xlabel("mean paired difference")
    left, right = grid[-1, 1].get_xlim()
    grid[-1, 1].set_xlim(left, right + 0.35 * (right - left))  # room for the numbers
    grid[-1, 2].set_xlabel("j, number of adjacent classes")
    text = (
        "Do most directions lead to one class? Purity: the share of the reached rays that end at the j most frequent "
    )
    return style.headline(fig, text + "classes; 95 % intervals, n images with a reached ray, colours as on the left")


def _dot(ax: Axes, row: int, rate: Rate, look: Mapping[str, Any], text: str = "") -> None:
    """Draw a mean with its interval in a row, and `text` beside it; nothing where there is none."""
    if np.isfinite(rate.value):
        ends = np.clip([rate.low, rate.high], -1, 1)
        ax.plot(ends, [row] * 2, color=look["color"], linewidth=1.6)
        ax.plot(rate.value, row, markersize=6, linestyle="none", **look)
        ax.annotate(text, (ends[1], row), (3, 0), textcoords="offset points", va="center", fontsize=9, color="0.3")


@style.house_style()
def distortion_distribution(rms: ByModel, *, pixel_max: float = 1.0) -> Figure:
    """Return the RMS of every adversarial example: points, quartiles and median, a panel for each model.

    Parameters
    ----------
    rms
        Model -> name of the examples -> (n,) RMS in [0, 1] units, usually of the successful ones.
    pixel_max
        The axis is in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For no model or values of another shape.
    """
    arrays.not_empty(rms, name="rms")
    xlabel = f"RMS distortion ({style.unit(pixel_max)})"
    fig = _strips(rms, "rms", ("n",), lambda values: np.quantile(values, [0.25, 0.5, 0.75]), xlabel, pixel_max)
    text = "How far does each attack move an image? Points: successes; bar: the quartiles, circle: the median"
    return style.headline(fig, text)


@style.house_style()
def triple_cells(cells: ByModel) -> Figure:
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

    def interval(values: Floats) -> Floats:
        mean = intervals.mean(values)
        return np.array([max(mean.low, 0.0) if np.isfinite(mean.low) else np.nan, mean.value, mean.high])

    fig = _strips(cells, "cells", ("N", "P"), interval, "triple cells in a plane")
    text = "Do three classes meet more often around adversarial images?\n"
    text += "Each point an image, the mean over its planes; circle: mean over images, bar: its 95 % interval"
    return style.headline(fig, text)


def _names(values: ByModel) -> list[str]:
    """Return the names of all examples of any model, in the suite's order."""
    return style.in_order(dict.fromkeys(name for by_name in values.values() for name in by_name))


def _by_model(
    values: ByModel, height: float, what: str, shape: Sequence[str], **share: Any
) -> tuple[style.Picture, list[tuple[Axes, str, NDArray[Any]]]]:
    """Return a figure with a panel for each model, and of each set its panel, its name and its array of `shape`.

    The arrays are no copies: those of all profiles of a run would fill a gigabyte.
    """
    fig = style.panels([f"{model} model" for model in values], height, **share)
    sets = [
        (ax, name, arrays.numbers(by_name[name], name=f"{what} of {name}", shape=shape))
        for ax, by_name in zip(fig.axes, values.values(), strict=True)
        for name in style.in_order(by_name)
    ]
    return fig, sets


def _strips(
    values: ByModel, what: str, shape: Sequence[str], summary: Callable[[Floats], Floats], xlabel: str, scale: float = 1
) -> style.Picture:
    """Return a panel a model, a row a kind of example: a point an image, and the low, middle and high of `summary`.

    Values of `shape` with a second axis are averaged over it. No bar is drawn to an end that is not finite.
    """
    names = _names(values)
    none = np.empty((0, 1)[: len(shape)])
    rows = {model: dict.fromkeys(names, none) | dict(by_name) for model, by_name in values.items()}
    fig, sets = _by_model(rows, 1.4 + 0.43 * len(names), what, shape, sharex=True)
    for ax, name, each in sets:
        if len(each):
            row, points = names.index(name), each.reshape(len(each), -1).mean(1, dtype=np.float64) * scale
            # Golden-ratio jitter: even, and the same in every run.
            jitter = (np.arange(len(points)) * 0.618034) % 1.0 * 0.5 - 0.25
            ax.plot(points, row + jitter, ".", color=style.examples_colour(name), markersize=5.5, alpha=0.55, zorder=2)
            low, middle, high = summary(points)
            if np.isfinite([low, high]).all():
                ax.plot([low, high], [row] * 2, color="0.25", linewidth=3, solid_capstyle="butt", zorder=3)
            ax.plot(middle, row, "o", color="white", markeredgecolor=style.BLACK, markersize=6.5, zorder=4)
    for ax in fig.axes:
        style.rows(ax, [f"{name}\nn={len(each)}" for at, name, each in sets if at is ax])
        ax.set_xlabel(xlabel)
    largest = fig.axes[0].get_xlim()[1]
    fig.axes[0].set_xlim(-0.015 * largest, largest)
    return fig


def _legend_beside(ax: Axes, title: str | None = None) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, title=title)


def _band(ax: Axes, x: Floats, ends: Floats, colour: str) -> None:
    ax.fill_between(x, *ends, color=colour, alpha=0.2, linewidth=0)


def _bootstrap_band(ax: Axes, name: str, values: Floats, bootstrap: int) -> None:
    """Draw the percentile bootstrap's 95 % interval of the means of `values` (N, M) over images."""
    n = len(values)
    if bootstrap and n:
        weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=bootstrap) / n
        ends = np.quantile(weights @ values, [0.025, 0.975], axis=0)
        _band(ax, np.arange(1, values.shape[1] + 1), ends, style.examples_colour(name))
