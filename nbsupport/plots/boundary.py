"""Figures of the decision boundary around many images: sorted distances and purity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nbsupport import checks, intervals
from nbsupport.plots import arrays
from nbsupport.plots.arrays import Floats, Values
from nbsupport.plots.style import examples_style, headline, house_style, in_order, legend_below, panels, unit


def distance_curves(
    distances: Mapping[str, Mapping[str, Values]],
    *,
    last: float,
    pixel_max: float = 1.0,
    bootstrap: int = 0,
    seed: int = 0,
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
    with house_style():
        fig, axes = panels([f"{model} model" for model in distances], 4.8, sharey=True)
        for ax, by_name in zip(axes, distances.values(), strict=True):
            for name in in_order(by_name):
                distance = arrays.floats(by_name[name], name=f"distances of {name}", shape=("N", "K"))
                _sorted_curve(ax, name, distance, last, pixel_max, bootstrap, seed)
            ax.axhline(last * pixel_max, color="0.5", linewidth=0.8, zorder=1)
            ax.set_xlabel("rank of the ray (1: the nearest boundary)")
            ax.set_ylim(0, 1.04 * last * pixel_max)
            ax.margins(x=0.01)
            legend_below(ax)
        axes[0].set_ylabel(f"mean distance (RMS, {unit(pixel_max)})")
        band = f"; band: 95 % bootstrap ({bootstrap})" if bootstrap else ""
        headline(
            fig,
            f"Distance to the decision boundary; grey line: the last magnitude, {last * pixel_max:.4g}\n"
            f"dashed: fewer than half of the images reach a boundary at that rank{band}",
        )
    return fig


def purity_curves(purities: Mapping[str, Mapping[str, Values]], *, bootstrap: int = 0, seed: int = 0) -> Figure:
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
    with house_style():
        fig, axes = panels([f"{model} model" for model in purities], 4.6, sharey=True)
        for ax, by_name in zip(axes, purities.values(), strict=True):
            names = in_order(by_name)
            top = 1
            for i, name in enumerate(names):
                values = arrays.floats(by_name[name], name=f"purity of {name}", shape=("N", "top"))
                label = f"{name}, n={len(values)}"
                style = examples_style(name) | {"markersize": 5}
                if not len(values):
                    ax.errorbar([], [], [], label=label, capsize=2, **style)
                    continue
                top = max(top, values.shape[1])
                j = np.arange(1, values.shape[1] + 1)
                if bootstrap:
                    ax.plot(j, values.mean(0), label=label, linewidth=1.3, **style)
                    ax.fill_between(
                        j, *_resampled(values, bootstrap, seed), color=style["color"], alpha=0.18, linewidth=0
                    )
                    continue
                means = [intervals.mean(column, bounds=(0, 1)) for column in values.T]
                value = np.array([m.value for m in means])
                low = np.clip([m.low for m in means], 0, 1)
                high = np.clip([m.high for m in means], 0, 1)
                apart = j + 0.05 * (i - (len(names) - 1) / 2)  # so that all bars stay visible
                ax.errorbar(apart, value, [value - low, high - value], label=label, capsize=2, linewidth=1.3, **style)
            ax.set(xlabel="j, number of adjacent classes", ylim=(0, 1.04))
            ax.set_xticks(range(1, top + 1))
            legend_below(ax)
        axes[0].set_ylabel("mean purity of the top j classes")
        spread = f"95 % bootstrap bands ({bootstrap})" if bootstrap else "95 % intervals"
        headline(fig, f"Share of the reached rays whose boundary belongs to the j most frequent classes, {spread}")
    return fig


def _sorted_curve(
    ax: Axes, name: str, distance: Floats, last: float, pixel_max: float, bootstrap: int, seed: int
) -> None:
    """Draw the curve of one kind of example: solid up to the first rank reached by less than half, dashed from it."""
    n, rays = distance.shape
    style = examples_style(name) | {"markersize": 4.5}
    if n == 0:
        ax.plot([], [], label=f"{name}, n=0", **style)
        return
    ordered = np.sort(distance, axis=1)
    capped = np.minimum(ordered, last) * pixel_max
    curve = capped.mean(0)
    rank = np.arange(1, rays + 1)
    rare = np.isfinite(ordered).mean(0) < 0.5
    first = int(rare.argmax()) if rare.any() else rays
    every = max(1, rays // 8)
    solid, dashed = slice(0, first + 1), slice(first, rays)
    # A curve that is dashed from the start still has a solid line of one point, which carries the legend.
    ax.plot(rank[solid], curve[solid], label=f"{name}, n={n}", markevery=(0, every), **style)
    if first < rays:
        ax.plot(rank[dashed], curve[dashed], linestyle=(0, (4, 2)), label="_dashed", color=style["color"])
    if bootstrap:
        low, high = _resampled(capped, bootstrap, seed)
        ax.fill_between(rank, low, high, color=style["color"], alpha=0.18, linewidth=0)


def _resampled(values: Floats, bootstrap: int, seed: int) -> tuple[Floats, Floats]:
    """Return the percentile bootstrap's 95 % interval of the means (M,) of `values` (N, M) over images."""
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=bootstrap) / n
    low, high = np.quantile(weights @ values, [0.025, 0.975], axis=0)
    return low, high
