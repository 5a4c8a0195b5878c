"""Pictures drawn by code: hypercubes against class regions, and the detector's architecture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle

from nbsupport import checks
from nbsupport.plots.arrays import Floats, Integers
from nbsupport.plots.style import BLACK, PALETTE, blend, examples_colour, examples_marker, figure, headline, house_style

_CLASSES = ("true class", "second class", "third class")
_SHADES = tuple(blend(PALETTE[i], 1.0, 0.5) for i in (0, 1, 2))
_RADIUS = 0.3
_PLACES = {
    "benign": (-0.42, -0.1),
    "FGSM": (0.13, 0.45),
    "OPTBRITTLE": (0.08, -0.1),
    "OPTMARGIN": (0.6, 0.16),
}
# The corner of each square, right and up, that no arrow or other square crosses.
_CORNERS = {"benign": (-1, -1), "FGSM": (-1, 1), "OPTBRITTLE": (1, -1), "OPTMARGIN": (1, 1)}


def decision_regions() -> Figure:
    """Return the idea of region classification and of OPTMARGIN in three panels, a sketch in two dimensions.

    A square stands for the hypercube around each point; the per cent are the true class's share of its area, the
    votes it would get. The regions are made up for the drawing.

    References
    ----------
    Figures 1-3 of the talk; Cao & Gong, "Mitigating Evasion Attacks to Deep Neural Networks via Region-based
    Classification", 2017.
    """
    titles = (
        ("benign",),
        "The hypercube around a benign image\nlies in its own class",
        ("benign", "FGSM", "OPTBRITTLE"),
        "Barely across the boundary: most of the\nhypercube votes for the true class",
        ("benign", "OPTMARGIN"),
        "OPTMARGIN moves on until the\nhypercube votes for the wrong class",
    )
    with house_style():
        fig = figure(4.1)
        axes = fig.subplots(1, 3)
        for ax, names, title in zip(axes, titles[::2], titles[1::2], strict=True):
            _regions(ax)
            ax.set_title(str(title), fontsize=9.5)
            for name in names:
                _point(ax, name, arrow=name != "benign")
        handles: list[Line2D | Patch] = [
            Patch(facecolor=shade, edgecolor="0.5", label=name) for shade, name in zip(_SHADES, _CLASSES, strict=True)
        ]
        handles += [
            Line2D([], [], linestyle="none", marker=examples_marker(name), color=examples_colour(name), label=name)
            for name in _PLACES
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=7, frameon=False, columnspacing=1.0)
        headline(fig, "A sketch, not data; per cent: the true class's share of the square")
    return fig


def share_of_true_class(centre: tuple[float, float]) -> float:
    """Return the true class's share of the square around `centre` in the sketch of `decision_regions`."""
    offsets = (np.arange(200) + 0.5) / 200 * 2 * _RADIUS - _RADIUS
    a, b = np.meshgrid(centre[0] + offsets, centre[1] + offsets)
    return float((_label(a, b) == 0).mean())


def detector_architecture(
    *,
    rays: int = 128,
    channels: Sequence[int] = (8, 16),
    kernel: int = 8,
    stride: int = 4,
    hidden: int = 32,
    purities: int = 3,
) -> Figure:
    """Return the detector's layers with the size of what flows between them.

    Parameters
    ----------
    rays
        K, the number of sorted distances; the two unpadded convolutions need at least 36.
    channels, kernel, stride, hidden, purities
        Of the network.

    Raises
    ------
    ValueError
        For a number of rays that leaves a convolution without output.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018; Fig. 6 of the talk.
    """
    checks.count(rays, name="rays", low=kernel + stride * (kernel - 1))
    lengths = [rays]
    for _ in channels:
        lengths.append((lengths[-1] - kernel) // stride + 1)
    flat = channels[-1] * lengths[-1]
    boxes = [("sorted distances", f"1 x {rays}", PALETTE[0])]
    for i, (filters, length) in enumerate(zip(channels, lengths[1:], strict=True), 1):
        boxes.append(
            (
                f"conv1d {i}\n{filters} channels\nkernel {kernel}, stride {stride}\nReLU, dropout .5",
                f"{filters} x {length}",
                PALETTE[1],
            )
        )
    boxes += [
        ("flatten,\nappend the\npurities", f"{flat} + {purities}", PALETTE[7]),
        (f"linear {hidden}\nReLU\ndropout .5", f"{hidden}", PALETTE[2]),
        ("linear 2\nsoftmax", "benign |\nadversarial", PALETTE[2]),
    ]
    gap, width, height = 0.28, 1.22, 1.15
    with house_style():
        fig = figure(2.9, layout="none")
        ax = fig.add_axes((0, 0, 1, 1))  # data coordinates are inches
        ax.set(xlim=(0, 9), ylim=(0, 2.9))
        ax.axis("off")
        first = (9 - len(boxes) * width - (len(boxes) - 1) * gap) / 2
        lefts = [first + i * (width + gap) for i in range(len(boxes))]
        for i, (left, (text, size, colour)) in enumerate(zip(lefts, boxes, strict=True)):
            _box(ax, left, 1.25, width, height, text, colour)
            ax.text(left + width / 2, 1.1, size, ha="center", va="top", fontsize=9.5, weight="bold")
            if i:
                _arrow(ax, (left - gap, 1.25 + height / 2), (left, 1.25 + height / 2))
        joint = lefts[len(channels) + 1]
        _box(ax, joint, 0.1, width, 0.42, f"{purities} purities", PALETTE[0])
        _arrow(ax, (joint + width / 2, 0.52), (joint + width / 2, 0.86))
        ax.text(
            0.15, 2.75, f"Detector for K={rays} rays; below each layer: the size of its output", va="top", fontsize=10.5
        )
    return fig


def _label(a: Floats, b: Floats) -> Integers:
    """Return the class of the sketch: the second class has thin fingers into the first, the third lies below."""
    fingers = 0.26 * np.exp(-(((b + 0.1) / 0.08) ** 2)) + 0.2 * np.exp(-(((b - 0.45) / 0.08) ** 2))
    edge = 0.3 - fingers - 0.1 * np.sin(2.2 * b)
    third = b < -0.72 + 0.3 * np.tanh(2 * a)
    return np.where(third, 2, np.where(a > edge, 1, 0)).astype(np.int64)


def _regions(ax: Axes) -> None:
    grid = np.linspace(-1, 1, 500)
    labels = _label(*np.meshgrid(grid, grid))
    ax.imshow(
        labels, cmap=ListedColormap(_SHADES), vmin=-0.5, vmax=2.5, extent=(-1, 1, -1, 1), origin="lower", aspect="equal"
    )
    ax.contour(grid, grid, labels, levels=[0.5, 1.5], colors="0.45", linewidths=0.8)
    ax.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(-1, 1))
    ax.grid(False)


def _point(ax: Axes, name: str, *, arrow: bool) -> None:
    a, b = _PLACES[name]
    colour = examples_colour(name)
    corner = (a - _RADIUS, b - _RADIUS)
    ax.add_patch(Rectangle(corner, 2 * _RADIUS, 2 * _RADIUS, fill=False, edgecolor=colour, linewidth=1.8, zorder=3))
    if arrow:
        _arrow(ax, _PLACES["benign"], (a, b), colour=BLACK)
    ax.plot(a, b, marker=examples_marker(name), color=colour, markersize=8, markeredgecolor="white", zorder=5)
    right, up = _CORNERS[name]
    ax.text(
        a + right * (_RADIUS - 0.05),
        b + up * (_RADIUS - 0.05),
        f"{100 * share_of_true_class((a, b)):.0f} %",
        ha="right" if right > 0 else "left",
        va="top" if up > 0 else "bottom",
        fontsize=9,
        zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5},
    )


def _box(ax: Axes, left: float, bottom: float, width: float, height: float, text: str, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.06"
    ax.add_patch(
        FancyBboxPatch(
            (left, bottom), width, height, boxstyle=style, facecolor=blend(colour, 1.0, 0.75), edgecolor=colour
        )
    )
    ax.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=9, linespacing=1.3)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], *, colour: str = BLACK) -> None:
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "shrinkA": 3, "shrinkB": 4}
    ax.annotate("", end, start, arrowprops=look, zorder=4)
