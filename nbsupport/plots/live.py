"""The figure of one image between two others: the image, its vote, and the rays found so far."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from nbsupport import checks
from nbsupport.plots import arrays
from nbsupport.plots.arrays import ProfileLike, Values
from nbsupport.plots.instance import draw_rays, legend_handles
from nbsupport.plots.style import figure, house_style, unit
from nbsupport.plots.tiles import as_picture
from nbsupport.plots.version_panels import draw_votes, leave_empty, short

_SHAPE = (9.0, 3.3)  # inches
_NAME = "live"


def live_panels(
    image: Values,
    logits: Values,
    *,
    title: str,
    classes: Sequence[str],
    radius: float,
    last: float,
    counts: Values | None = None,
    share: tuple[float, float] | None = None,
    profile: ProfileLike | None = None,
    pixel_max: float = 1.0,
) -> Figure:
    """Return one image with its prediction, its vote and its rays, as far as they are known.

    Parameters
    ----------
    image
        (C, H, W) in [0, 1].
    logits
        (L,) the model's, of which the two largest softmax values are written below the image.
    title
        Above the image.
    classes
        The L names.
    radius
        Half-width of the hypercube of the vote, in [0, 1] units.
    last
        The last magnitude searched along a ray, in [0, 1] units.
    counts
        (L,) votes of each class; None: not counted yet.
    share
        The interval of the winner's share of the votes.
    profile
        The rays of this one image found so far; None: none yet.
    pixel_max
        Lengths are drawn in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For shapes that do not agree, or `radius` or `last` not above 0.
    """
    checks.number(radius, name="radius", open_low=True)
    checks.number(last, name="last", open_low=True)
    shown = arrays.images(image, name="image", shape=("C", "H", "W"))
    z = arrays.floats(logits, name="logits", shape=(len(classes),))
    softmax = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    best = np.argsort(-softmax, kind="stable")[:2]
    with house_style(), matplotlib.rc_context({"axes.titley": 1.0}):
        fig = figure(_SHAPE[1], width=_SHAPE[0], layout="none")

        def place(left: float, bottom: float, width: float, height: float) -> matplotlib.axes.Axes:
            return fig.add_axes((left / _SHAPE[0], bottom / _SHAPE[1], width / _SHAPE[0], height / _SHAPE[1]))

        ax = place(0.15, 1.1, 1.6, 1.6)
        ax.imshow(as_picture(shown), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=9.5)
        ax.set_xlabel("\n".join(f"{short(classes[i])}: {100 * softmax[i]:.1f} %" for i in best))
        version = SimpleNamespace(counts=counts, share=share)
        draw_votes(place(2.35, 1.1, 2.4, 1.35), {_NAME: version}, classes, "not counted yet")
        ax = place(6.15, 1.1, 2.7, 1.6)
        if profile is None or not len(np.atleast_2d(profile.distance)[0]):
            leave_empty(ax, "rays", "no ray yet")
            return fig
        line = radius / np.sqrt(3) * pixel_max
        found = draw_rays(ax, profile, title=_NAME, classes=classes, line=line, last=last, pixel_max=pixel_max)
        ax.set_title(f"rays: {found.reached} of {found.rays} reach a boundary")
        ax.set_xlabel("rank of the ray")
        ax.set_ylabel(f"distance\n(RMS, {unit(pixel_max)})")
        handles = legend_handles(
            found.seen,
            censored=found.reached < found.rays,
            classes=classes,
            radius=radius,
            last=last,
            pixel_max=pixel_max,
        )
        fig.legend(
            handles=handles,
            loc="lower right",
            ncols=6,
            frameon=False,
            columnspacing=1.2,
            handletextpad=0.4,
            title="class beyond the boundary",
        )
    return fig
