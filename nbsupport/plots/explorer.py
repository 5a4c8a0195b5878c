"""The figure of the explorer: everything that is stored about one attacked image, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nbsupport import checks
from nbsupport.plots import arrays
from nbsupport.plots.arrays import Floats, Values, VersionLike
from nbsupport.plots.instance import draw_rays, legend_handles
from nbsupport.plots.style import Picture, broken, figure, house_style, unit
from nbsupport.plots.tiles import as_picture, difference_tile
from nbsupport.plots.version_panels import draw_purity, draw_score, draw_sorted, draw_votes, leave_empty, short

WIDTH, HEIGHT = 9.0, 8.5  # inches


def instance_panels(
    original: VersionLike,
    adversarial: VersionLike,
    *,
    name: str,
    title: str,
    classes: Sequence[str],
    radius: float,
    last: float,
    threshold: float = 0.5,
    band: Values | None = None,
    pixel_max: float = 1.0,
    absent: Mapping[str, str] | None = None,
) -> Figure:
    """Return an image and its adversarial version: difference, votes, rays, purity and detector score.

    The sorted distances are drawn over what is usual for benign images of the model.

    Parameters
    ----------
    original, adversarial
        The two versions; a panel without results says so.
    name
        Of the attack.
    title
        Above all panels.
    classes
        The L names.
    radius
        Half-width of the hypercube of the vote, in [0, 1] units.
    last
        The last magnitude searched along a ray, in [0, 1] units.
    threshold
        From which score on the detector calls an image adversarial.
    band
        (3, K) the 10, 50 and 90 % quantiles over benign images at each rank of the sorted distances, [0, 1] units.
    pixel_max
        Lengths are drawn in units of [0, pixel_max].
    absent
        "votes", "profiles" or "detectors" -> why that panel is empty.

    Raises
    ------
    ValueError
        For images of different shapes, or `radius`, `last` or `threshold` out of range.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018.
    """
    checks.number(radius, name="radius", open_low=True)
    checks.number(last, name="last", open_low=True)
    checks.number(threshold, name="threshold", high=1.0)
    why, versions = absent or {}, {"benign": original, name: adversarial}
    # Titles at fixed places: looking for room above every panel takes a fifth of a redraw.
    with house_style(), matplotlib.rc_context({"axes.titley": 1.0}):
        fig = figure(HEIGHT, width=WIDTH, layout="none")  # places are in inches: no layout to solve at every redraw
        fig.text(0.015, 1 - 0.1 / HEIGHT, broken(title, WIDTH, 12), va="top", fontsize=10.5)
        _images(fig, versions, classes, pixel_max)
        votes, rays = why.get("votes", "no vote on this image"), why.get("profiles", "this image was not probed")
        draw_votes(_axes(fig, 5.4, 6.2, 3.4, 1.25), versions, classes, votes)
        _rays(fig, versions, classes, radius, last, pixel_max, rays)
        draw_sorted(_axes(fig, 0.85, 0.5, 3.6, 1.3), versions, band, last, pixel_max, rays)
        draw_purity(_axes(fig, 4.95, 0.5, 1.7, 1.6), versions, rays)
        draw_score(
            _axes(fig, 7.05, 0.7, 1.75, 1.2), versions, threshold, why.get("detectors", "no score of this image")
        )
    return fig


def _axes(fig: Picture, left: float, bottom: float, width: float, height: float) -> Axes:
    """Return a panel at a place in inches from the lower left corner."""
    return fig.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))


def _images(fig: Picture, versions: Mapping[str, VersionLike], classes: Sequence[str], pixel_max: float) -> None:
    pictures: list[Floats] = []
    drawn = []
    for name, version in versions.items():
        pictures.append(arrays.images(version.image, name=f"the image of {name}", shape=_like(pictures)))
        says = "" if version.label is None else f"\nsays {short(classes[version.label])}"
        drawn.append((as_picture(pictures[-1]), f"{name}{says}", "gray"))
    x, x_adv = pictures
    magnify = _magnification(float(np.abs(x_adv - x).max()))
    caption = f"difference x {magnify:g}\nRMS {float(arrays.rms(x_adv, x)) * pixel_max:.4g}"
    drawn.append((difference_tile(x, x_adv, magnify).picture, caption, "RdBu_r"))
    for i, (picture, caption, colours) in enumerate(drawn):
        ax = _axes(fig, 0.15 + 1.6 * i, 6.1, 1.45, 1.45)
        ax.imshow(picture, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(caption, fontsize=9.5)


def _like(pictures: Sequence[Floats]) -> Sequence[int | str]:
    """Return the shape that the next picture must have."""
    return pictures[0].shape if pictures else ("C", "H", "W")


def _magnification(largest: float) -> float:
    """Return the largest of 1, 2, 5, 10, ... that keeps a change of `largest` in the scale; 1 where nothing changed."""
    if largest <= 0:
        return 1.0
    steps = [m * 10.0**e for e in range(4) for m in (1, 2, 5)]
    return max((step for step in steps if step * largest <= 1), default=1.0)


def _rays(
    fig: Picture,
    versions: Mapping[str, VersionLike],
    classes: Sequence[str],
    radius: float,
    last: float,
    pixel_max: float,
    why: str,
) -> None:
    line = radius / np.sqrt(3) * pixel_max
    seen: set[int] = set()
    censored = False
    for i, (name, version) in enumerate(versions.items()):
        ax = _axes(fig, 0.85 + 4.1 * i, 3.75, 3.9, 1.9)
        if version.profile is None:
            leave_empty(ax, f"rays, {name}", why)
            continue
        found = draw_rays(ax, version.profile, title=name, classes=classes, line=line, last=last, pixel_max=pixel_max)
        seen |= found.seen
        censored |= found.reached < found.rays
        ax.set_title(f"rays, {name}")
        ax.set_xlabel(f"rank of the ray\n{found.reached} of {found.rays} reach a boundary")
        if i == 0:
            ax.set_ylabel(f"distance\n(RMS, {unit(pixel_max)})")
        elif versions["benign"].profile is not None:
            ax.tick_params(labelleft=False)
    if seen or censored:
        fig.legend(
            handles=legend_handles(
                seen, censored=censored, classes=classes, radius=radius, last=last, pixel_max=pixel_max
            ),
            loc="upper center",
            bbox_to_anchor=(0.5, 3.14 / HEIGHT),
            ncols=6,
            frameon=False,
            title="class beyond the boundary",
            columnspacing=1.2,
            handletextpad=0.4,
        )
