"""The figure of the decision boundary around a single image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nbsupport import checks
from nbsupport.plots import arrays
from nbsupport.plots.arrays import ProfileLike
from nbsupport.plots.style import BLACK, GREY, MARKERS, class_colours, house_style, panels, unit

_CROSS: dict[str, Any] = {"linestyle": "none", "marker": "x", "color": GREY, "markersize": 4.5}


def _dots(label: int, colours: list[tuple[float, float, float]], rays: int = 0) -> dict[str, Any]:
    marker = MARKERS[label % len(MARKERS)]
    size = 6.0 if rays == 0 else 5.0 if rays <= 300 else 3.5
    edge = {"markeredgecolor": BLACK, "markeredgewidth": 0.3 if rays <= 300 else 0.0}
    return {"linestyle": "none", "marker": marker, "color": colours[label], "markersize": size, **edge}


def instance_boundary(
    instances: Mapping[str, ProfileLike],
    *,
    classes: Sequence[str],
    radius: float,
    last: float,
    clipped_rms: Mapping[str, float] | None = None,
    pixel_max: float = 1.0,
) -> Figure:
    """Return one image's rays sorted by distance, coloured by adjacent class, its versions side by side.

    The black line is at radius / sqrt(3), the expected RMS of a sample of region classification before clipping.
    Rays that meet no boundary stand as crosses at the last magnitude.

    Parameters
    ----------
    instances
        Title (usually the name of the examples) -> profile of one image: center (1,), distance and adjacent (1,
        K).
    classes
        The L names.
    radius
        Half-width of the hypercube, in [0, 1] units.
    last
        The last magnitude searched, in [0, 1] units.
    clipped_rms
        Title -> mean RMS of the region samples after clipping, in [0, 1] units, for the caption.
    pixel_max
        The axes are in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For no instance, a profile of more than one image, or `radius` or `last` not above 0.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018.
    """
    arrays.not_empty(instances, name="instances")
    checks.number(radius, name="radius", open_low=True)
    checks.number(last, name="last", open_low=True)
    line = radius / np.sqrt(3) * pixel_max
    seen: set[int] = set()
    censored = False
    with house_style():
        fig, axes = panels(instances, 4.6, sharey=True)
        for ax, (title, profile) in zip(axes, instances.items(), strict=True):
            found = draw_rays(ax, profile, title=title, classes=classes, line=line, last=last, pixel_max=pixel_max)
            seen |= found.seen
            censored |= found.reached < found.rays
            after = ""
            if clipped_rms is not None and title in clipped_rms:
                after = f"\nclipped region sample: RMS {clipped_rms[title] * pixel_max:.3g}"
            says = f"the model says {classes[found.center]}"
            ax.set_title(f"{title}:\n{says}" if len(instances) > 2 else f"{title}: {says}")  # narrow panels
            rays = f"{found.reached} of {found.rays} reach a boundary"
            ax.set_xlabel(f"rank of the ray (1: the nearest)\n{rays}{after}")
        axes[0].set_ylabel(f"distance (RMS, {unit(pixel_max)})")
        fig.legend(
            handles=legend_handles(
                seen, censored=censored, classes=classes, radius=radius, last=last, pixel_max=pixel_max
            ),
            loc="outside lower center",
            ncols=int(fig.get_size_inches()[0] / 1.5),
            frameon=False,
            title="class beyond the boundary",
        )
    return fig


@dataclass(frozen=True)
class Drawn:
    """What `draw_rays` drew: the image's class, the classes `seen` beyond the boundary, rays reached and in all."""

    center: int
    seen: frozenset[int]
    reached: int
    rays: int


def draw_rays(
    ax: Axes,
    profile: ProfileLike,
    *,
    title: str,
    classes: Sequence[str],
    line: float,
    last: float,
    pixel_max: float,
) -> Drawn:
    """Draw one image's rays into `ax`, sorted by distance, with a black line at `line` (in units of the axis).

    `title` names the profile in errors; the other parameters are those of `instance_boundary`.
    """
    colours = class_colours(len(classes))
    distance = arrays.floats(profile.distance, name=f"distance of {title}", shape=(1, "K"))[0]
    shape = (1, len(distance))
    adjacent = arrays.labels(profile.adjacent, name=f"adjacent of {title}", shape=shape, classes=classes, low=-1)[0]
    center = arrays.labels(profile.center, name=f"center of {title}", shape=(1,), classes=classes)[0]
    reached = np.isfinite(distance)
    order = np.argsort(distance, kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(1, len(order) + 1)
    seen = np.unique(adjacent[reached])
    for label in seen:
        those = reached & (adjacent == label)
        ax.plot(rank[those], distance[those] * pixel_max, **_dots(label, colours, len(distance)), label=classes[label])
    ax.plot(rank[~reached], np.full((~reached).sum(), last * pixel_max), **_CROSS, label="no boundary met")
    ax.axhline(line, color="black", linewidth=1.5, zorder=3, label="radius / sqrt(3)")
    ax.set_ylim(0, 1.05 * last * pixel_max)
    ax.set_xlim(1 - 0.02 * len(distance), 1.02 * len(distance))
    return Drawn(int(center), frozenset(map(int, seen)), int(reached.sum()), len(distance))


def legend_handles(
    seen: Iterable[int], *, censored: bool, classes: Sequence[str], radius: float, last: float, pixel_max: float
) -> list[Line2D]:
    """Return the legend of `draw_rays`: the classes `seen`, the crosses if rays are `censored`, the black line."""
    colours = class_colours(len(classes))
    handles = [Line2D([], [], **_dots(label, colours), label=classes[label]) for label in sorted(seen)]
    if censored:
        handles.append(Line2D([], [], **_CROSS, label=f"none within {last * pixel_max:.4g}"))
    line = radius / np.sqrt(3) * pixel_max
    name = f"radius {radius * pixel_max:.3g} / sqrt(3) = {line:.3g}"
    return [*handles, Line2D([], [], color="black", linewidth=1.5, label=name)]
