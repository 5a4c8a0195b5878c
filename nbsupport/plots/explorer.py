"""The figure of the explorer: everything that is stored about one attacked image, on one page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from nbsupport import checks
from nbsupport.plots import arrays
from nbsupport.plots.arrays import Floats, VersionLike
from nbsupport.plots.instance import draw_rays, legend_handles
from nbsupport.plots.style import Picture, broken, examples_colour, examples_style, figure, house_style, unit
from nbsupport.plots.tiles import as_picture, difference_tile

WIDTH, HEIGHT = 10.0, 7.5  # inches
_CLASSES = 12  # shown in the vote, at most
_BAR = 0.36


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
    pixel_max: float = 1.0,
    absent: Mapping[str, str] | None = None,
) -> Figure:
    """Return an image and its adversarial version: difference, votes, rays, purity and detector score.

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
    with house_style():
        fig = figure(HEIGHT, width=WIDTH, layout="none")  # places are in inches: no layout to solve at every redraw
        fig.text(0.015, 1 - 0.1 / HEIGHT, broken(title, WIDTH, 12), va="top", fontsize=10.5)
        _images(fig, versions, classes, pixel_max)
        _votes(_axes(fig, 6.0, 5.05, 3.8, 1.35), versions, classes, why.get("votes", "no vote on this image"))
        _rays(fig, versions, classes, radius, last, pixel_max, why.get("profiles", "this image was not probed"))
        _purity(_axes(fig, 7.35, 2.9, 2.45, 1.2), versions, why.get("profiles", "this image was not probed"))
        _score(_axes(fig, 7.35, 1.5, 2.45, 0.5), versions, threshold, why.get("detectors", "no score of this image"))
    return fig


def _axes(fig: Picture, left: float, bottom: float, width: float, height: float) -> Axes:
    """Return a panel at a place in inches from the lower left corner."""
    return fig.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))


def _images(fig: Picture, versions: Mapping[str, VersionLike], classes: Sequence[str], pixel_max: float) -> None:
    pictures: list[Floats] = []
    drawn = []
    for name, version in versions.items():
        pictures.append(arrays.images(version.image, name=f"the image of {name}", shape=_like(pictures)))
        says = "" if version.label is None else f"\nsays {_short(classes[version.label])}"
        drawn.append((as_picture(pictures[-1]), f"{name}{says}", "gray"))
    x, x_adv = pictures
    magnify = _magnification(float(np.abs(x_adv - x).max()))
    caption = f"difference x {magnify:g}\nRMS {float(arrays.rms(x_adv, x)) * pixel_max:.4g}"
    drawn.append((difference_tile(x, x_adv, magnify).picture, caption, "RdBu_r"))
    for i, (picture, caption, colours) in enumerate(drawn):
        ax = _axes(fig, 0.15 + 1.75 * i, 4.9, 1.6, 1.55)
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


def _votes(ax: Axes, versions: Mapping[str, VersionLike], classes: Sequence[str], why: str) -> None:
    found = {}
    for name, version in versions.items():
        if version.counts is not None:
            found[name] = arrays.floats(version.counts, name=f"counts of {name}", shape=(len(classes),))
    if not found:
        return _empty(ax, "vote", why)
    order = np.argsort(-np.sum([counts / counts.sum() for counts in found.values()], axis=0), kind="stable")
    shown = np.sort(order[:_CLASSES])
    for i, (name, counts) in enumerate(found.items()):
        place = np.arange(len(shown)) + _BAR * (i - 0.5)
        share = counts / counts.sum()
        ax.bar(place, share[shown], _BAR, **_bar(name))
        interval = versions[name].share
        if interval is not None:
            winner = int(np.flatnonzero(shown == counts.argmax())[0])
            value = share.max()
            error = np.clip([[value - interval[0]], [interval[1] - value]], 0, None)
            ax.errorbar(place[winner], value, error, fmt="none", color="#d55e00", capsize=3, linewidth=1.5)
    names = [_short(classes[label]) for label in shown]
    slanted: dict[str, Any] = {"rotation": 35, "ha": "right"} if max(map(len, names)) > 3 else {}
    ax.set_xticks(range(len(shown)), names, **slanted)
    ax.grid(axis="x", visible=False)
    ax.set_ylim(0, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_title("share of the votes, interval of the winner", loc="left", pad=22)
    handles = [Patch(**_bar(name), label=f"{name}, n={counts.sum():.0f}") for name, counts in found.items()]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, frameon=False, borderaxespad=0.0)
    return None


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
        ax = _axes(fig, 0.75 + 2.95 * i, 1.5, 2.75, 2.6)
        if version.profile is None:
            _empty(ax, f"rays, {name}", why)
            continue
        found = draw_rays(ax, version.profile, title=name, classes=classes, line=line, last=last, pixel_max=pixel_max)
        seen |= found.seen
        censored |= found.reached < found.rays
        ax.set_title(f"rays, {name}")
        ax.set_xlabel(f"rank of the ray\n{found.reached} of {found.rays} reach a boundary")
        if i == 0:
            ax.set_ylabel(f"distance (RMS, {unit(pixel_max)})")
        elif versions["benign"].profile is not None:
            ax.tick_params(labelleft=False)
    if seen or censored:
        fig.legend(
            handles=legend_handles(
                seen, censored=censored, classes=classes, radius=radius, last=last, pixel_max=pixel_max
            ),
            loc="lower center",
            ncols=7,
            frameon=False,
            title="class beyond the boundary",
            columnspacing=1.2,
            handletextpad=0.4,
        )


def _purity(ax: Axes, versions: Mapping[str, VersionLike], why: str) -> None:
    found = {}
    for name, version in versions.items():
        if version.purity is not None:
            found[name] = arrays.floats(version.purity, name=f"purity of {name}", shape=("top",))
    if not found:
        return _empty(ax, "purity", why)
    for name, values in found.items():
        place = np.arange(len(values)) + _BAR * (list(versions).index(name) - 0.5)
        ax.bar(place, values, _BAR, **_bar(name))
    top = max(map(len, found.values()))
    ax.set_xticks(range(top), [f"top {j + 1}" for j in range(top)])
    ax.grid(axis="x", visible=False)
    ax.set_ylim(0, 1.03)
    ax.set_title("purity")
    return None


def _score(ax: Axes, versions: Mapping[str, VersionLike], threshold: float, why: str) -> None:
    found = {name: version.score for name, version in versions.items() if version.score is not None}
    if not found:
        return _empty(ax, "detector", why)
    for i, (name, score) in enumerate(found.items()):
        ax.plot(
            [score], [len(found) - i], linestyle="none", markersize=8, clip_on=False, zorder=3, **examples_style(name)
        )
    ax.axvline(threshold, color="black", linestyle="--", linewidth=1.2)
    ax.set(xlim=(0, 1), ylim=(0.4, len(found) + 0.6), yticks=[])
    ax.set_xlabel(f"score; adversarial from {threshold:g} on")
    ax.set_title("detector: " + ", ".join(f"{_version(name)} {score:.2f}" for name, score in found.items()))
    return None


def _version(name: str) -> str:
    return "benign" if name == "benign" else "attacked"


def _bar(name: str) -> dict[str, Any]:
    colour = examples_colour(name)
    return {"facecolor": "white" if name == "benign" else colour, "edgecolor": colour, "linewidth": 1.1}


def _empty(ax: Axes, title: str, why: str) -> None:
    """Leave `ax` empty but for the reason."""
    inches = ax.get_position().width * WIDTH
    ax.set_title(title)
    ax.set(xticks=[], yticks=[])
    ax.text(
        0.5, 0.5, textwrap.fill(why, int(11 * inches)), transform=ax.transAxes, ha="center", va="center", color="0.3"
    )


def _short(name: str) -> str:
    return name if len(name) <= 10 else f"{name[:9]}."
