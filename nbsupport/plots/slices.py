"""The figure of a 2-D slice through an image: class regions, and the outlines of hypercubes in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import ConvexHull

from nbsupport import checks
from nbsupport.plots import arrays
from nbsupport.plots.arrays import Floats, Integers, Values
from nbsupport.plots.style import BLACK, blend, class_colours, examples_style, figure, house_style, unit


def hypercube_outline(direction_a: Values, direction_b: Values, radius: float) -> Floats:
    """Return the corners of the slice a u + b v through a hypercube: all (a, b) with max_i |a u_i + b v_i| <= radius.

    It is exact: each pixel i allows a strip, and the intersection of the strips is `radius` times the polar of the
    convex hull of the points +-(u_i, v_i). Spanned by the axes of two pixels it is a square of half-width `radius`.

    Parameters
    ----------
    direction_a, direction_b
        (D,) the directions u and v.
    radius
        Half-width of the hypercube, in the units of the directions.

    Returns
    -------
    (V, 2) the corners in order around the polygon, V even

    Raises
    ------
    ValueError
        For directions of different length, parallel ones (they span no plane), or `radius` not above 0.
    """
    u = arrays.floats(direction_a, name="direction_a", shape=("D",))
    v = arrays.floats(direction_b, name="direction_b", shape=(len(u),))
    checks.number(radius, name="radius", open_low=True)
    lengths = np.linalg.norm(u) * np.linalg.norm(v)
    if lengths == 0 or lengths**2 - (u @ v) ** 2 < 1e-12 * lengths**2:
        raise ValueError("expected two directions that span a plane, got parallel ones or a zero")
    pixels = np.stack([u, v], axis=1)
    hull = ConvexHull(np.concatenate([pixels, -pixels]))
    normals, offsets = hull.equations[:, :2], -hull.equations[:, 2:]  # normal . p <= offset inside, offset > 0
    corners = radius * normals / offsets
    corners = corners[np.argsort(np.arctan2(corners[:, 1], corners[:, 0]))]
    apart = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1) > 1e-9 * np.abs(corners).max()
    return np.asarray(corners[apart])


def slice_with_hypercube(
    labels: Values,
    offsets_a: Values,
    offsets_b: Values,
    direction_a: Values,
    direction_b: Values,
    *,
    radius: float,
    classes: Sequence[str],
    points: Mapping[str, Values] | None = None,
    around: Sequence[str] = (),
    axes: tuple[str, str] = ("first direction", "second direction"),
    pixel_max: float = 1.0,
    title: str = "class regions in a slice",
) -> Figure:
    """Return a 2-D slice through an image: the class regions, outlines of hypercubes, and marked points.

    The legend gives each class's share of the slice inside an outline: of this slice, not of the hypercube's volume.

    Parameters
    ----------
    labels
        (B, A) the model's class at image + offsets_a[column] * u + offsets_b[row] * v, clipped to [0, 1].
    offsets_a, offsets_b
        (A,) and (B,), evenly spaced and ascending.
    direction_a, direction_b
        (D,) the directions u and v; orthogonal and of equal size they show true angles.
    radius
        Half-width of the hypercube, in [0, 1] units.
    classes
        The L names.
    points
        Name of the examples -> (2,) or (P, 2), places (a, b) to mark; drawn in the colour of those examples.
    around
        Names in `points`, each of one place, to draw a hypercube around; none: around the image itself, (0, 0).
    axes
        What the two directions are; the unit (RMS, or the value of the one pixel that changes) is added.
    pixel_max
        The axes are in units of [0, pixel_max].
    title
        Above the slice.

    Raises
    ------
    ValueError
        For shapes that do not agree, labels out of range, offsets that do not ascend, or a name in `around` that is
        not one place in `points`.
    """
    a, b = _ascending(offsets_a, "offsets_a"), _ascending(offsets_b, "offsets_b")
    grid = arrays.labels(labels, name="labels", shape=(len(b), len(a)), classes=classes)
    outline = hypercube_outline(direction_a, direction_b, radius)
    places = {name: _places(name, place) for name, place in (points or {}).items()}
    for name in around:
        if len(places.get(name, ())) != 1:
            raise ValueError(f"expected every name in around as one place in points, got {name!r}")
    centres = {name: places[name][0] for name in around} or {"": np.zeros(2)}
    sizes = [_size(arrays.floats(d, name="direction", shape=("D",))) for d in (direction_a, direction_b)]
    scale = pixel_max * np.array([size for size, _ in sizes])
    names = [f"{text}, {what} ({unit(pixel_max)})" for text, (_, what) in zip(axes, sizes, strict=True)]
    pale = [blend(colour, 1.0, 0.45) for colour in class_colours(len(classes))]
    with house_style():
        fig = figure(5.4, width=8.2, layout="compressed")
        ax = fig.subplots()
        draw_regions(ax, grid, a * scale[0], b * scale[1], pale, classes, equal=bool(np.isclose(*scale)))
        handles: list[Line2D | Patch] = [
            Patch(facecolor=pale[label], edgecolor="0.5", label=classes[label]) for label in np.unique(grid)
        ]
        for name, place in places.items():
            dots = examples_style(name) | {"linestyle": "none", "markersize": 8, "markeredgecolor": "white"}
            handles += ax.plot(*(place * scale).T, zorder=4, label=name, **dots)
        for name, centre in centres.items():
            colour = examples_style(name)["color"] if name else BLACK
            corners = (outline + centre) * scale
            ax.add_patch(Polygon(corners, closed=True, fill=False, edgecolor=colour, linewidth=2, zorder=3))
            text = _shares(grid, a - centre[0], b - centre[1], direction_a, direction_b, radius, classes)
            handles.append(Line2D([], [], color=colour, linewidth=2, label=f"around {name or 'the image'}: {text}"))
        ax.set(xlabel=names[0], ylabel=names[1], title=title)
        heading = (
            f"outlines: hypercubes,\nradius {radius * pixel_max:.3g}; per cent: share\nof the slice inside (n points)"
        )
        fig.legend(
            handles=handles,
            loc="outside right upper",
            title=heading,
        )
    return fig


def _ascending(values: Values, name: str) -> Floats:
    offsets = arrays.floats(values, name=name, shape=("n",))
    if len(offsets) < 2 or (np.diff(offsets) <= 0).any():
        raise ValueError(f"expected {name} as two or more ascending values, got {len(offsets)} that do not ascend")
    return offsets


def _places(name: str, values: Values) -> Floats:
    """Return places (2,) or (P, 2) as (P, 2)."""
    place = np.atleast_2d(arrays.numbers(values, name=f"points of {name}", shape=np.shape(values)).astype(np.float64))
    if place.shape[1:] != (2,):
        raise ValueError(f"expected points of {name} of shape (2,) or (P, 2), got {np.shape(values)}")
    return place


def _size(direction: Floats) -> tuple[float, str]:
    """Return the length of one offset and what it is: a pixel's change along the axis of a pixel, RMS elsewhere."""
    if np.count_nonzero(direction) == 1:
        return float(np.abs(direction).max()), "change"
    return float(np.sqrt(np.mean(direction**2))), "RMS"


def _shares(grid: Integers, a: Floats, b: Floats, u: Values, v: Values, radius: float, classes: Sequence[str]) -> str:
    """Return in words how much of the slice inside the hypercube around (0, 0) belongs to each class, largest first."""
    pixels = np.stack([arrays.floats(u, name="u", shape=("D",)), arrays.floats(v, name="v", shape=("D",))], axis=1)
    binding = pixels[np.unique(ConvexHull(np.concatenate([pixels, -pixels])).vertices % len(pixels))]
    reach = np.abs(a[None, :, None] * binding[:, 0] + b[:, None, None] * binding[:, 1]).max(2)  # (B, A)
    votes = np.bincount(grid[reach <= radius * (1 + 1e-9)], minlength=len(classes))
    order = np.argsort(-votes, kind="stable")[: max(1, min(3, np.count_nonzero(votes)))]
    largest = "\n".join(f"{classes[label]}: {100 * votes[label] / max(votes.sum(), 1):.0f} %" for label in order)
    return f"n={votes.sum()}\n{largest}"


def draw_regions(
    ax: Axes,
    grid: Integers,
    a: Floats,
    b: Floats,
    colours: list[tuple[float, float, float]],
    classes: Sequence[str],
    *,
    equal: bool,
) -> None:
    """Draw the class regions, each with its name where there is most room for it."""
    half_a, half_b = (a[1] - a[0]) / 2, (b[1] - b[0]) / 2
    ax.imshow(
        grid,
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(classes) - 0.5,
        extent=(a[0] - half_a, a[-1] + half_a, b[0] - half_b, b[-1] + half_b),
        origin="lower",
        interpolation="nearest",
        aspect="equal" if equal else "auto",
    )
    ax.autoscale(False)
    ax.grid(False)
    for label in np.unique(grid):
        inside: NDArray[np.bool_] = grid == label
        depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        if depth.max() > 0.035 * max(grid.shape):
            ax.text(a[column], b[row], classes[label], ha="center", va="center", fontsize=9.5, color="0.25")
