"""The figure of a 2-D slice through an image and its adversarial version, with OPTMARGIN's views in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon

from nbsupport import checks
from nbsupport.plots import arrays
from nbsupport.plots.arrays import Values
from nbsupport.plots.slices import draw_regions, hypercube_outline
from nbsupport.plots.style import BLACK, MARKERS, blend, class_colours, examples_style, figure, house_style, unit


def slice_with_views(
    labels: Values,
    across: Values,
    up: Values,
    directions: tuple[Values, Values],
    *,
    points: Mapping[str, Values],
    views: Values,
    view_labels: Values,
    radius: float,
    classes: Sequence[str],
    second: str = "random direction",
    pixel_max: float = 1.0,
) -> Figure:
    """Return the class regions in a plane, the two versions of the image, the views and the hypercube of the vote.

    Each view has the colour and the mark of its own class, which is not that of the plane where it is drawn: what is
    drawn is its projection. The outline is the slice of the hypercube around the last of `points`.

    Parameters
    ----------
    labels
        (B, A) the model's class at image + across[column] * u + up[row] * v, clipped to [0, 1].
    across, up
        (A,) and (B,) offsets, evenly spaced and ascending, in RMS, [0, 1] units.
    directions
        u and v, (D,) each, orthogonal and of RMS 1.
    points
        Name of a version -> its place (2,).
    views
        (V, 2) places of the projected views.
    view_labels
        (V,) the model's class at each view.
    radius
        Half-width of the hypercube, in [0, 1] units.
    classes
        The L names.
    second
        What the second direction is.
    pixel_max
        The axes are in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For shapes that do not agree, labels out of range, and no points.
    """
    arrays.not_empty(points, name="points")
    checks.number(radius, name="radius", open_low=True)
    a, b = (arrays.floats(values, name="offsets", shape=("n",)) * pixel_max for values in (across, up))
    grid = arrays.labels(labels, name="labels", shape=(len(b), len(a)), classes=classes)
    places = arrays.floats(views, name="views", shape=("V", 2)) * pixel_max
    found = arrays.labels(view_labels, name="view_labels", shape=(len(places),), classes=classes)
    versions = {name: arrays.floats(place, name=name, shape=(2,)) * pixel_max for name, place in points.items()}
    strong = class_colours(len(classes))
    pale = [blend(colour, 1.0, 0.45) for colour in strong]
    with house_style():
        fig = figure(4.6, layout="none")
        ax = fig.add_axes((0.85 / 9, 0.6 / 4.6, 4.0 / 9, 3.55 / 4.6))
        draw_regions(ax, grid, a, b, pale, classes, equal=True)
        handles: list[Line2D | Patch] = [
            Patch(facecolor=pale[label], edgecolor="0.5", label=classes[label]) for label in np.unique(grid)
        ]
        outline = hypercube_outline(*directions, radius) * pixel_max + list(versions.values())[-1]
        ax.add_patch(Polygon(outline, closed=True, fill=False, edgecolor=BLACK, linewidth=1.5, zorder=3))
        handles.append(Line2D([], [], color=BLACK, label=f"hypercube, radius {radius * pixel_max:.3g}"))
        for label, count in zip(*np.unique(found, return_counts=True), strict=True):
            mark = {"linestyle": "none", "marker": MARKERS[label % len(MARKERS)], "color": strong[label]}
            mark |= {"markersize": 5, "markeredgecolor": BLACK, "markeredgewidth": 0.5}
            name = f"views of class {classes[label]}: {count}"
            handles += ax.plot(*places[found == label].T, zorder=4, label=name, **mark)
        for name, place in versions.items():
            dot = examples_style(name) | {"linestyle": "none", "markersize": 9, "markeredgecolor": "white"}
            handles += ax.plot(*place, zorder=5, label=name, **dot)
        length = f"RMS, {unit(pixel_max)}"
        ax.set(xlabel=f"change by the attack ({length})", ylabel=f"{second}\n({length})")
        ax.set_title("class regions in a slice", loc="left")
        fig.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(5.1 / 9, 4.25 / 4.6),
            frameon=False,
            ncols=2 if len(handles) > 9 else 1,
        )
    return fig
