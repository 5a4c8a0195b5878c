"""The figure of a 2-D slice through an image: class regions, and in them points, hypercubes and projected views."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon
from scipy.ndimage import distance_transform_edt
from scipy.spatial import ConvexHull

from nbsupport import checks
from nbsupport.boundary import Slice
from nbsupport.intervals import Rate
from nbsupport.plots import arrays, style
from nbsupport.plots.arrays import Floats, Integers, Names, Values


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
    (V, 2) the corners in order around the polygon, counter-clockwise, V even

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


@style.house_style()
def slice_figure(
    plane: Slice,
    *,
    radius: float,
    classes: Names,
    around: Names | None = None,
    views: Values | None = None,
    view_labels: Values | None = None,
    true: int | None = None,
    votes: Mapping[str, Rate] | None = None,
    axes: tuple[str, str] = ("change by the attack", "random direction"),
    pixel_max: float = 1.0,
) -> Figure:
    """Return a 2-D slice through an image: the class regions, marked points, outlines of hypercubes, and views.

    Each view has the colour and the mark of its own class, which is not that of the plane where it is drawn: what is
    drawn is its projection.

    Parameters
    ----------
    plane
        From `boundary.plane`. Its `points` are drawn in the colour of the examples that they are named after.
    radius
        Half-width of the hypercubes, in [0, 1] units.
    classes
        The L names.
    around
        Names in `points` to draw a hypercube around; None: all of them.
    views
        (V, 2) places of projected views, in the units of `points`.
    view_labels
        (V,) the model's class at each view.
    true
        The class of the image, whose region is grey.
    votes
        Names in `around` -> the share of the votes in the hypercube that went to the class of the image, written
        beside the outline's name. It is of the hypercube's volume, of which the slice is a vanishing part.
    axes
        What the two directions are; the unit is added.
    pixel_max
        The axes are in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For shapes that do not agree, labels out of range, a name in `around` that is not in `points`, or views
        without labels.
    """
    across, up = (arrays.floats(each, name="offsets", shape=("S",)) for each in (plane.across, plane.up))
    grid = arrays.labels(plane.labels, name="labels", shape=(len(up), len(across)), classes=classes)
    outline = hypercube_outline(plane.u, plane.v, radius)
    points = {name: arrays.floats(place, name=f"point {name}", shape=(2,)) for name, place in plane.points.items()}
    for name in around or ():
        if name not in points:
            raise ValueError(f"expected every name in around among the points {', '.join(points)}, got {name!r}")
    centres = {name: points[name] for name in (points if around is None else around)}
    if (views is None) != (view_labels is None):
        raise ValueError("expected views and view_labels, got one without the other")
    projected = arrays.floats(np.empty((0, 2)) if views is None else views, name="views", shape=("V", 2))
    own = np.empty(0, int) if view_labels is None else view_labels
    found = arrays.labels(own, name="view_labels", shape=(len(projected),), classes=classes)
    colours = style.class_colours(len(classes), true)
    fig = style.figure(5.0, layout="none")
    ax = fig.add_axes((0.095, 0.12, 0.45, 0.81), anchor="NW")
    pale = [style.blend(colour, 1.0, 0.8 if label == true else 0.45) for label, colour in enumerate(colours)]
    handles = _regions(ax, grid, across * pixel_max, up * pixel_max, classes, pale)
    for label in np.unique(found):
        mark = {"marker": style.MARKERS[label % len(style.MARKERS)], "color": colours[label], "linestyle": "none"}
        mark |= {"markersize": 5, "markeredgecolor": style.BLACK, "markeredgewidth": 0.5, "zorder": 4}
        each = projected[found == label] * pixel_max
        handles += ax.plot(*each.T, label=f"views of class {classes[label]}: {len(each)}", **mark)
    for name, place in points.items():
        dot = style.examples_style(name) | {"linestyle": "none", "markersize": 8.5, "markeredgecolor": "white"}
        handles += ax.plot(*(place * pixel_max), zorder=5, label=name, **dot)
    for name, centre in centres.items():
        colour = style.examples_colour(name)
        ax.add_patch(Polygon((outline + centre) * pixel_max, fill=False, edgecolor=colour, linewidth=2, zorder=3))
        label = f"around {name}"
        if votes is not None and name in votes:
            label += f"\ntrue class: {style.percent(votes[name])} of n={votes[name].n} votes"
        handles.append(Line2D([], [], color=colour, linewidth=2, label=label))
    names = [f"{text}, RMS ({style.unit(pixel_max)})" for text in axes]
    ax.set(xlabel=names[0], ylabel=names[1], title="Which class fills the hypercubes?", aspect="equal")
    text = f"outlines: the slice through hypercubes\nof radius {radius * pixel_max:.3g}"
    look: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.555, 0.95), "frameon": False, "title": text}
    look |= {"alignment": "left", "columnspacing": 1.0, "handlelength": 1.6}
    fig.legend(handles=handles, ncols=2 if len(handles) > 12 else 1, **look)
    return fig


def _regions(
    ax: Axes, grid: Integers, a: Floats, b: Floats, classes: Names, pale: Sequence[Any]
) -> list[Line2D | Patch]:
    """Draw the class regions and their boundary, each with its name where there is most room; return their legend."""
    half_a, half_b = (a[1] - a[0]) / 2, (b[1] - b[0]) / 2
    extent = (a[0] - half_a, a[-1] + half_a, b[0] - half_b, b[-1] + half_b)
    look: dict[str, Any] = {"vmin": -0.5, "vmax": len(classes) - 0.5, "interpolation": "nearest", "origin": "lower"}
    ax.imshow(grid, cmap=ListedColormap(pale), extent=extent, **look)
    ax.autoscale(False)
    ax.grid(False)
    name: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9.5, "color": "0.25"}
    name |= {"bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 1.5}}
    for label in np.unique(grid):
        if np.unique(grid).size > 1:
            ax.contour(a, b, grid == label, levels=[0.5], colors="0.35", linewidths=0.9)
        depth = distance_transform_edt(np.pad(grid == label, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        if depth.max() > 0.035 * max(grid.shape):
            ax.text(a[column], b[row], classes[label], zorder=6, **name)
    return [Patch(facecolor=pale[label], edgecolor="0.5", label=classes[label]) for label in np.unique(grid)]
