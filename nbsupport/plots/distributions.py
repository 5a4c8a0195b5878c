"""Figures of how values are spread: images per class, pixel values, distortion, triple cells."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from nbsupport import intervals
from nbsupport.plots import arrays, style
from nbsupport.plots.arrays import ByModel, Floats, Values

_PARTS = {"training": style.BLUE, "test": style.ORANGE}


def class_counts(train_labels: Values, test_labels: Values, classes: Sequence[str]) -> Figure:
    """Return the number of images of each class in the training set and in the test set.

    Parameters
    ----------
    train_labels, test_labels
        (N,) whole numbers, the index of a class.
    classes
        The L names.

    Raises
    ------
    ValueError
        For labels of another shape or that are not the index of a class.
    """
    with style.house_style():
        fig = style.figure(0.9 + 0.27 * len(classes))
        axes = fig.subplots(1, 2, sharey=True)
        for ax, (part, colour), values in zip(axes, _PARTS.items(), (train_labels, test_labels), strict=True):
            y = arrays.labels(values, name=f"{part} labels", shape=("N",), classes=classes)
            counts = np.bincount(y, minlength=len(classes))
            bars = ax.barh(range(len(classes)), counts, color=colour, height=0.7)
            ax.bar_label(bars, [f"{count}" for count in counts], padding=3, fontsize=9)
            ax.set(title=f"{part} set, n={len(y)}", xlabel="images", xlim=(0, max(1, counts.max()) * 1.18))
            ax.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(classes)), classes)
        axes[0].set_ylabel("class")
        axes[0].invert_yaxis()
    return fig


def pixel_values(train: Values, test: Values, *, pixel_max: float = 1.0, bins: int = 64) -> Figure:
    """Return the histogram of the pixel values of both sets, with minimum, mean and maximum.

    Parameters
    ----------
    train, test
        (N, C, H, W) in [0, 1], C 1 (grey) or 3 (RGB, a panel for each channel).
    pixel_max
        The axis is in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For other shapes, or sets whose channels differ in number.
    """
    sets = {"training": arrays.images(train, name="train"), "test": arrays.images(test, name="test")}
    channels = {part: x.shape[1] for part, x in sets.items()}
    if len(set(channels.values())) > 1:
        raise ValueError(f"expected training and test images with as many channels, got {channels}")
    names = ["all pixels"] if channels["test"] == 1 else ["red", "green", "blue"]
    edges = np.linspace(0, pixel_max, bins + 1)
    with style.house_style():
        fig, axes = style.panels(names, 3.8, sharey=True)
        for channel, ax in enumerate(axes):
            for part, x in sets.items():
                values = x[:, channel].ravel() * pixel_max
                share = np.histogram(values, edges)[0] / max(values.size, 1)
                low, mean, high = values.min(), values.mean(), values.max()
                text = f"{part}: n={len(x)} images\n{low:.3g} to {high:.3g}, mean {mean:.3g}"
                look: dict[str, Any] = {"fill": True, "alpha": 0.6} if part == "training" else {}
                ax.stairs(share, edges, label=text, color=_PARTS[part], linewidth=1.4, **look)
            ax.set(xlabel=f"value ({style.unit(pixel_max)})", yscale="log")
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_minor_locator(NullLocator())
            style.legend_below(ax, ncols=1 if len(names) > 1 else 2)
        axes[0].set_ylabel(f"share of pixels in each of {bins} bins")
    return fig


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

    def quartiles(values: Floats) -> tuple[float, float, float]:
        return tuple(np.quantile(values, [0.25, 0.5, 0.75]))

    with style.house_style():
        fig = _strips(rms, "rms", ("n",), quartiles, f"RMS distortion ({style.unit(pixel_max)})", pixel_max)
        style.headline(fig, "Each point an image; bar: the quartiles, circle: the median")
    return fig


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

    def interval(values: Floats) -> tuple[float, float, float]:
        mean = intervals.mean(values)
        return max(mean.low, 0.0) if np.isfinite(mean.low) else np.nan, mean.value, mean.high

    with style.house_style():
        fig = _strips(cells, "cells", ("N", "P"), interval, "triple cells in a plane")
        style.headline(
            fig, "Each point an image, the mean over its planes; circle: mean over images, bar: its 95 % interval"
        )
    return fig


def _strips(
    values: ByModel,
    what: str,
    shape: Sequence[str],
    summary: Callable[[Floats], tuple[float, float, float]],
    xlabel: str,
    scale: float = 1.0,
) -> style.Picture:
    """Return a panel a model, a row a kind of example: a point an image, and the low, middle and high of `summary`.

    Values of `shape` with a second axis are averaged over it. No bar is drawn to an end that is not finite.
    """
    names = style.in_order(dict.fromkeys(name for by_name in values.values() for name in by_name))
    fig, axes = style.panels([f"{model} model" for model in values], 1.4 + 0.43 * len(names), sharex=True)
    for ax, by_name in zip(axes, values.values(), strict=True):
        given = [by_name.get(name, np.empty((0, 1)[: len(shape)])) for name in names]
        rows = [arrays.floats(v, name=f"{what} of {name}", shape=shape) for v, name in zip(given, names, strict=True)]
        for row, (name, each) in enumerate(zip(names, rows, strict=True)):
            if not len(each):
                continue
            points = each.reshape(len(each), -1).mean(1) * scale
            # Golden-ratio jitter: even, and the same in every run.
            jitter = (np.arange(len(points)) * 0.618034) % 1.0 * 0.5 - 0.25
            ax.plot(points, row + jitter, ".", color=style.examples_colour(name), markersize=5.5, alpha=0.55, zorder=2)
            low, middle, high = summary(points)
            if np.isfinite([low, high]).all():
                bar: dict[str, Any] = {"linewidth": 3, "alpha": 0.8, "solid_capstyle": "butt", "zorder": 3}
                ax.plot([low, high], [row, row], color=style.BLACK, **bar)
            ax.plot(middle, row, "o", color="white", markeredgecolor=style.BLACK, markersize=6.5, zorder=4)
        ax.set_yticks(range(len(names)), [f"{name}\nn={len(each)}" for name, each in zip(names, rows, strict=True)])
        ax.set(ylim=(len(names) - 0.45, -0.55), xlabel=xlabel)
    largest = axes[0].get_xlim()[1]
    axes[0].set_xlim(-0.015 * largest, largest)
    return fig
