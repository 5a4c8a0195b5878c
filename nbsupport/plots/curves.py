"""Figures of curves: training, accuracy against a setting, sorted distances and purity."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nbsupport import checks, intervals
from nbsupport.intervals import Rate
from nbsupport.plots import arrays, style
from nbsupport.plots.arrays import ByModel, Floats, Values

_ACCURACIES = {"benign_accuracy": ("benign", "benign"), "pgd_accuracy": ("under PGD", "PGD")}


def training_curves(
    histories: Mapping[str, pd.DataFrame], *, n_validation: int | None = None, best: Mapping[str, int] | None = None
) -> Figure:
    """Return accuracy (above) and loss (below) against the epoch, a column for each model.

    Parameters
    ----------
    histories
        Model -> table with the columns epoch, loss, benign_accuracy, pgd_accuracy (NaN: not measured).
    n_validation
        Size of the validation part; adds Wilson's 95 % interval of each accuracy.
    best
        Model -> the epoch whose weights were kept, drawn as a vertical line.

    Raises
    ------
    ValueError
        For no model, an empty history or a missing column.
    """
    arrays.not_empty(histories, name="histories")
    if n_validation is not None:
        checks.count(n_validation, name="n_validation")
    with style.house_style():
        fig = style.figure(5.2)
        axes = fig.subplots(2, len(histories), sharex="col", sharey="row", squeeze=False, height_ratios=[3, 2])
        for (upper, lower), (model, history) in zip(axes.T, histories.items(), strict=True):
            arrays.columns(history, ["epoch", "loss", *_ACCURACIES], name=f"the history of {model}")
            for name, (label, examples) in _ACCURACIES.items():
                measured = history[history[name].notna()]
                epoch, value = measured["epoch"].to_numpy(float), measured[name].to_numpy(float)
                last = f"last {100 * value[-1]:.1f} %" if len(value) else "not measured"
                upper.plot(epoch, value, markersize=3.5, label=f"{label} ({last})", **style.examples_style(examples))
                if n_validation is not None:
                    rates = [intervals.wilson(round(each * n_validation), n_validation) for each in value]
                    _band(upper, epoch, rates, style.examples_colour(examples))
            lower.plot(history["epoch"], history["loss"], color=style.BLACK, marker=".", label="training loss")
            for ax in (upper, lower):
                if best is not None and model in best:
                    ax.axvline(best[model], color="0.4", linestyle=":", label=f"epoch {best[model]}, kept")
            upper.set(title=f"{model} model", ylim=(-0.02, 1.02))
            upper.yaxis.set_major_formatter(PercentFormatter(1.0))
            lower.set(xlabel="epoch")
            lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            upper.legend(loc="best", framealpha=0.9)
        size = "" if n_validation is None else f"\n(n={n_validation}, 95 % interval)"
        axes[1, 0].set_ylim(0, 1.08 * max(float(history["loss"].max()) for history in histories.values()))
        axes[0, 0].set_ylabel(f"validation accuracy{size}")
        axes[1, 0].set_ylabel("training loss (nats)")
    return fig


def detector_training(histories: Mapping[str, Values], *, window: int | None = None) -> Figure:
    """Return the training loss of the detector, a line for each set of examples that it is trained on.

    Parameters
    ----------
    histories
        Trained_on -> (steps,) the loss at every step.
    window
        The line is the mean over this many steps, the pale one every step; None: a fiftieth of the steps.

    Raises
    ------
    ValueError
        For no history, an empty one, or one of another shape.
    """
    arrays.not_empty(histories, name="histories")
    with style.house_style():
        fig = style.figure(4.0)
        ax = fig.subplots()
        for name in style.in_order(histories):
            loss = arrays.floats(histories[name], name=f"the history of {name}", shape=("steps",))
            checks.count(len(loss), name=f"the steps in the history of {name}")
            window = max(1, len(loss) // 50) if window is None else window
            checks.count(window, name="window")
            width = min(window, len(loss))
            smooth = np.convolve(loss, np.full(width, 1 / width), mode="valid")
            every = (len(smooth) // 20, max(1, len(smooth) // 8))
            look = style.examples_style(name) | {"markersize": 4.5, "markevery": every, "linewidth": 1.5}
            ax.plot(np.arange(1, len(loss) + 1), loss, color=look["color"], alpha=0.2, linewidth=0.8, label="_steps")
            ax.plot(np.arange(width, len(loss) + 1), smooth, label=name, **look)
        mean = "" if window == 1 else f", mean of {window} steps"
        ax.axhline(np.log(2), color="0.4", linestyle=":", linewidth=1.2, label="chance, ln 2")
        ax.set(xlabel="optimiser step", ylabel=f"training loss (nats){mean}", ylim=(0, None))
        ax.set_title("Training of the detector")
        _legend_beside(ax, "trained on")
    return fig


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
    with style.house_style():
        fig = style.figure(4.0)
        ax = fig.subplots()
        for i, (name, curve) in enumerate(rates.items()):
            if len(curve) != len(at):
                raise ValueError(f"expected a rate of {name!r} for each of the {len(at)} numbers x, got {len(curve)}")
            own = {"color": style.PALETTE[i % len(style.PALETTE)], "marker": style.MARKERS[i % len(style.MARKERS)]}
            look = style.examples_style(name) if set(rates) <= set(style.EXAMPLES) else own
            label = f"{name}, n={style.span([rate.n for rate in curve])}"
            ax.plot(at, [rate.value for rate in curve], label=label, markersize=4.5, **look)
            _band(ax, at, curve, look["color"])
        for name, place in (marks or {}).items():
            ax.axvline(place, color="0.4", linestyle=":", linewidth=1.2, label=name)
        ax.set(xlabel=xlabel, ylabel="rate, 95 % interval", title=title, ylim=(-0.02, 1.02))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        _legend_beside(ax)
    return fig


def distance_curves(
    distances: ByModel, *, last: float, pixel_max: float = 1.0, bootstrap: int = 0, seed: int = 0
) -> Figure:
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
    seed
        Of the resamples.

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
    with style.house_style():
        fig, axes = style.panels([f"{model} model" for model in distances], 4.8, sharey=True)
        for ax, by_name in zip(axes, distances.values(), strict=True):
            for name in style.in_order(by_name):
                distance = np.sort(arrays.floats(by_name[name], name=f"distances of {name}", shape=("N", "K")), axis=1)
                capped = np.minimum(distance, last) * pixel_max
                _sorted_curve(ax, name, capped, np.isfinite(distance))
                _bootstrap_band(ax, name, capped, bootstrap, seed)
            ax.axhline(last * pixel_max, color="0.5", linewidth=0.8, zorder=1)
            ax.set_xlabel("rank of the ray (1: the nearest boundary)")
            ax.set_ylim(0, 1.04 * last * pixel_max)
            ax.margins(x=0.01)
            style.legend_below(ax)
        axes[0].set_ylabel(f"mean distance (RMS, {style.unit(pixel_max)})")
        band = f"; band: 95 % bootstrap ({bootstrap})" if bootstrap else ""
        style.headline(
            fig,
            f"Distance to the decision boundary; grey line: the last magnitude, {last * pixel_max:.4g}\n"
            f"dashed: fewer than half of the images reach a boundary at that rank{band}",
        )
    return fig


def purity_curves(purities: ByModel, *, bootstrap: int = 0, seed: int = 0) -> Figure:
    """Return the mean purity of the top j classes against j with its 95 % interval, a panel for each model.

    Parameters
    ----------
    purities
        Model -> name of the examples -> (N, top) from `boundary.purity`; N may be 0.
    bootstrap
        Number of resamples of the images, drawn as a 95 % band; 0 draws Student's intervals as bars.
    seed
        Of the resampling.

    Raises
    ------
    ValueError
        For no model or another shape.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018; Fig. 5 of the talk.
    """
    arrays.not_empty(purities, name="purities")
    checks.count(bootstrap, name="bootstrap", low=0)
    with style.house_style():
        fig, axes = style.panels([f"{model} model" for model in purities], 4.6, sharey=True)
        for ax, by_name in zip(axes, purities.values(), strict=True):
            top = 1
            for i, name in enumerate(style.in_order(by_name)):
                values = arrays.floats(by_name[name], name=f"purity of {name}", shape=("N", "top"))
                top = max(top, values.shape[1] if len(values) else 1)
                # Bars stand a little apart, so that all stay visible.
                shift = 0.0 if bootstrap else 0.05 * (i - (len(by_name) - 1) / 2)
                _purity_curve(ax, name, values, shift, bars=not bootstrap)
                _bootstrap_band(ax, name, values, bootstrap, seed)
            ax.set(xlabel="j, number of adjacent classes", ylim=(0, 1.04), xticks=range(1, top + 1))
            style.legend_below(ax)
        axes[0].set_ylabel("mean purity of the top j classes")
        spread = f"95 % bootstrap bands ({bootstrap})" if bootstrap else "95 % intervals"
        style.headline(
            fig, f"Share of the reached rays whose boundary belongs to the j most frequent classes, {spread}"
        )
    return fig


def _band(ax: Axes, x: Floats, rates: Sequence[Rate], colour: str) -> None:
    """Draw the intervals of `rates` at `x`."""
    low, high = [rate.low for rate in rates], [rate.high for rate in rates]
    ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _legend_beside(ax: Axes, title: str | None = None) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, title=title)


def _sorted_curve(ax: Axes, name: str, capped: Floats, reached: Floats) -> None:
    """Draw the mean of `capped` (N, K): solid up to the first rank `reached` by less than half, dashed from it."""
    n, rays = capped.shape
    look = style.examples_style(name) | {"markersize": 4.5}
    if n == 0:
        ax.plot([], [], label=f"{name}, n=0", **look)
        return
    curve, rank = capped.mean(0), np.arange(1, rays + 1)
    rare = reached.mean(0) < 0.5
    first = int(rare.argmax()) if rare.any() else rays
    # A curve that is dashed from the start still has a solid line of one point, which carries the legend.
    every = (0, max(1, rays // 8))
    ax.plot(rank[: first + 1], curve[: first + 1], label=f"{name}, n={n}", markevery=every, **look)
    if first < rays:
        ax.plot(rank[first:], curve[first:], linestyle=(0, (4, 2)), label="_dashed", color=look["color"])


def _purity_curve(ax: Axes, name: str, values: Floats, shift: float, *, bars: bool) -> None:
    """Draw the mean of `values` (N, top), with Student's intervals as `bars` or without."""
    means = [intervals.mean(column, bounds=(0, 1)) for column in values.T] if len(values) else []
    value = np.array([mean.value for mean in means])
    ends = np.clip([[mean.low for mean in means], [mean.high for mean in means]], 0, 1)
    error = np.abs(ends - value) if bars else None
    j = np.arange(1, len(means) + 1) + shift
    look = style.examples_style(name) | {"markersize": 5, "linewidth": 1.3}
    ax.errorbar(j, value, error, label=f"{name}, n={len(values)}", capsize=2, **look)


def _bootstrap_band(ax: Axes, name: str, values: Floats, bootstrap: int, seed: int) -> None:
    """Draw the percentile bootstrap's 95 % interval of the means of `values` (N, M) over images."""
    n = len(values)
    if not bootstrap or not n:
        return
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=bootstrap) / n
    low, high = np.quantile(weights @ values, [0.025, 0.975], axis=0)
    place = np.arange(1, values.shape[1] + 1)
    ax.fill_between(place, low, high, color=style.examples_style(name)["color"], alpha=0.18, linewidth=0)
