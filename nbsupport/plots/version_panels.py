"""Panels that compare the versions of one image: votes, sorted distances, purity, detector score."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from nbsupport.plots import arrays
from nbsupport.plots.arrays import Values, VersionLike
from nbsupport.plots.style import GREY, examples_colour, examples_style, unit

_CLASSES = 12  # shown in the vote, at most
_BAR = 0.36
_ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 0.98), "frameon": False, "borderaxespad": 0.0}
_ABOVE |= {"ncols": 2, "columnspacing": 1.0, "handlelength": 1.4, "handletextpad": 0.5}


def draw_votes(ax: Axes, versions: Mapping[str, VersionLike], classes: Sequence[str], why: str) -> None:
    """Draw each class's share of the votes into `ax`, with the interval of the winner; `why` there are none."""
    found = {}
    for name, version in versions.items():
        if version.counts is not None:
            found[name] = arrays.floats(version.counts, name=f"counts of {name}", shape=(len(classes),))
    if not found:
        return leave_empty(ax, "vote", why)
    order = np.argsort(-np.sum([counts / counts.sum() for counts in found.values()], axis=0), kind="stable")
    shown = np.sort(order[:_CLASSES])
    for i, (name, counts) in enumerate(found.items()):
        place = np.arange(len(shown)) + _BAR * (i - (len(found) - 1) / 2)
        share = counts / counts.sum()
        ax.bar(place, share[shown], _BAR, **_bar(name))
        interval = versions[name].share
        if interval is not None:
            winner = int(np.flatnonzero(shown == counts.argmax())[0])
            value = share.max()
            error = np.clip([[value - interval[0]], [interval[1] - value]], 0, None)
            ax.errorbar(place[winner], value, error, fmt="none", color="#d55e00", capsize=3, linewidth=1.5)
    names = [short(classes[label]) for label in shown]
    slanted: dict[str, Any] = {"rotation": 35, "ha": "right"} if max(map(len, names)) > 3 else {}
    ax.set_xticks(range(len(shown)), names, **slanted)
    ax.grid(axis="x", visible=False)
    ax.set_ylim(0, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_title("share of the votes, interval of the winner", loc="left", pad=22)
    handles = [Patch(**_bar(name), label=f"{name}, n={counts.sum():.0f}") for name, counts in found.items()]
    ax.legend(handles=handles, **_ABOVE)
    return None


def draw_sorted(
    ax: Axes, versions: Mapping[str, VersionLike], band: Values | None, last: float, pixel_max: float, why: str
) -> None:
    """Draw each version's sorted distances into `ax`, over the `band` (3, K) of low, median and high quantiles.

    Rays that meet no boundary count as `last` long; `why` there are no rays.
    """
    found = {name: version.profile for name, version in versions.items() if version.profile is not None}
    if not found:
        return leave_empty(ax, "sorted distances", why)
    handles: list[Line2D | Patch] = []
    for name, profile in found.items():
        distance = arrays.floats(profile.distance, name=f"distance of {name}", shape=(1, "K"))[0]
        curve = np.minimum(np.sort(distance), last) * pixel_max
        rank = np.arange(1, len(curve) + 1)
        style: Any = "-" if name == "benign" else (0, (5, 1.5))
        handles += ax.plot(rank, curve, label=name, color=examples_colour(name), linestyle=style)
        if band is not None:
            rays: Sequence[int | str] = (3, len(curve))
            low, middle, high = np.minimum(arrays.floats(band, name="band", shape=rays), last) * pixel_max
    if band is not None:
        ax.fill_between(rank, low, high, color="0.86", linewidth=0, zorder=1)
        ax.plot(rank, middle, color=GREY, linestyle=":", zorder=1.5)
        handles.append(Patch(facecolor="0.86", label="10-90 % of benign"))
        handles.append(Line2D([], [], color=GREY, linestyle=":", label="their median"))
    ax.set_ylim(0, 1.05 * last * pixel_max)
    ax.margins(x=0.01)
    ax.set_xlabel("rank of the ray")
    ax.set_ylabel(f"distance\n(RMS, {unit(pixel_max)})")
    ax.set_title("sorted distances", loc="left", pad=34)
    ax.legend(handles=handles, **_ABOVE)
    return None


def draw_purity(ax: Axes, versions: Mapping[str, VersionLike], why: str) -> None:
    """Draw each version's purity of the top classes into `ax`; `why` there is none."""
    found = {}
    for name, version in versions.items():
        if version.purity is not None:
            found[name] = arrays.floats(version.purity, name=f"purity of {name}", shape=("top",))
    if not found:
        return leave_empty(ax, "purity", why)
    for name, values in found.items():
        place = np.arange(len(values)) + _BAR * (list(versions).index(name) - 0.5)
        ax.bar(place, values, _BAR, **_bar(name))
    top = max(map(len, found.values()))
    ax.set_xticks(range(top), [f"top {j + 1}" for j in range(top)])
    ax.grid(axis="x", visible=False)
    ax.set_ylim(0, 1.03)
    ax.set_title("purity")
    return None


def draw_score(ax: Axes, versions: Mapping[str, VersionLike], threshold: float, why: str) -> None:
    """Draw each version's detector score into `ax`, against the threshold; `why` there is none."""
    found = {name: version.score for name, version in versions.items() if version.score is not None}
    if not found:
        return leave_empty(ax, "detector", why)
    for i, (name, score) in enumerate(found.items()):
        ax.plot(
            [score], [len(found) - i], linestyle="none", markersize=8, clip_on=False, zorder=3, **examples_style(name)
        )
    ax.axvline(threshold, color="black", linestyle="--", linewidth=1.2)
    ax.set(xlim=(0, 1), ylim=(0.4, len(found) + 0.6), yticks=[])
    ax.set_xlabel(f"score; adversarial\nfrom {threshold:g} on")
    ax.set_title("detector\n" + ", ".join(f"{_version(name)} {score:.2f}" for name, score in found.items()))
    return None


def leave_empty(ax: Axes, title: str, why: str) -> None:
    """Leave `ax` empty but for the reason."""
    inches = ax.get_position().width * float(ax.get_figure(root=True).get_size_inches()[0])  # type: ignore[union-attr]
    ax.set_title(title)
    ax.set(xticks=[], yticks=[])
    ax.text(
        0.5, 0.5, textwrap.fill(why, int(11 * inches)), transform=ax.transAxes, ha="center", va="center", color="0.3"
    )


def short(name: str) -> str:
    """Return the name of a class, cut where it is long."""
    return name if len(name) <= 10 else f"{name[:9]}."


def _version(name: str) -> str:
    return "benign" if name == "benign" else "attacked"


def _bar(name: str) -> dict[str, Any]:
    colour = examples_colour(name)
    return {"facecolor": "white" if name == "benign" else colour, "edgecolor": colour, "linewidth": 1.1}
