"""Figures of how values are spread: images per class, pixel values, the distortion of each attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from nbsupport.plots import arrays
from nbsupport.plots.arrays import Values
from nbsupport.plots.style import (
    BLACK,
    PALETTE,
    examples_colour,
    figure,
    headline,
    house_style,
    in_order,
    legend_below,
    panels,
    unit,
)

_PARTS = {"training": PALETTE[0], "test": PALETTE[1]}


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
    parts = {"training": train_labels, "test": test_labels}
    with house_style():
        fig = figure(0.9 + 0.27 * len(classes))
        axes = fig.subplots(1, 2, sharey=True)
        for ax, (part, values) in zip(axes, parts.items(), strict=True):
            y = arrays.labels(values, name=f"{part} labels", shape=("N",), classes=classes)
            counts = np.bincount(y, minlength=len(classes))
            bars = ax.barh(range(len(classes)), counts, color=_PARTS[part], height=0.7)
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
    with house_style():
        fig, axes = panels(names, 3.8, sharey=True)
        for channel, ax in enumerate(axes):
            for part, x in sets.items():
                values = x[:, channel].ravel() * pixel_max
                share = np.histogram(values, edges)[0] / max(values.size, 1)
                low, mean, high = values.min(), values.mean(), values.max()
                text = f"{part}: n={len(x)} images\n{low:.3g} to {high:.3g}, mean {mean:.3g}"
                filled = part == "training"
                ax.stairs(
                    share,
                    edges,
                    label=text,
                    color=_PARTS[part],
                    fill=filled,
                    alpha=0.6 if filled else 1.0,
                    linewidth=1.4,
                )
            ax.set(xlabel=f"value ({unit(pixel_max)})", yscale="log")
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_minor_locator(NullLocator())
            legend_below(ax, ncols=1 if len(names) > 1 else 2)
        axes[0].set_ylabel(f"share of pixels in each of {bins} bins")
    return fig


def distortion_distribution(rms: Mapping[str, Mapping[str, Values]], *, pixel_max: float = 1.0) -> Figure:
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
    names = in_order(dict.fromkeys(name for by_name in rms.values() for name in by_name))
    with house_style():
        fig, axes = panels([f"{model} model" for model in rms], 0.9 + 0.42 * len(names), sharex=True)
        for ax, by_name in zip(axes, rms.values(), strict=True):
            labels = []
            for row, name in enumerate(names):
                values = arrays.floats(by_name.get(name, []), name=f"rms of {name}", shape=("n",)) * pixel_max
                labels.append(f"{name}\nn={len(values)}")
                if not len(values):
                    continue
                # Golden-ratio jitter: even, and the same in every run.
                jitter = (np.arange(len(values)) * 0.618034) % 1.0 * 0.5 - 0.25
                ax.plot(values, row + jitter, ".", color=examples_colour(name), markersize=5, alpha=0.55, zorder=2)
                low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
                ax.plot([low, high], [row, row], color=BLACK, linewidth=4, alpha=0.75, solid_capstyle="butt", zorder=3)
                ax.plot(median, row, "o", color="white", markeredgecolor=BLACK, markersize=6, zorder=4)
            ax.set_yticks(range(len(names)), labels)
            ax.set(ylim=(len(names) - 0.45, -0.55), xlabel=f"RMS distortion ({unit(pixel_max)})")
        axes[0].set_xlim(left=-0.01 * axes[0].get_xlim()[1])
        headline(fig, "Each point an image; bar: the quartiles, circle: the median")
    return fig
