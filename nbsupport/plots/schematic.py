"""Pictures drawn by code: hypercubes against class regions, and the detector's architecture."""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle

from nbsupport import checks, detector
from nbsupport.plots import arrays, style

_SHADES = {
    name: style.blend(colour, 1.0, weight)
    for name, colour, weight in (
        ("true class", style.BLACK, 0.8),
        ("second class", style.ORANGE, 0.5),
        ("third class", style.SKY, 0.5),
    )
}
_RADIUS = 0.3
_PLACES = {"benign": (-0.42, -0.1), "OPTBRITTLE": (0.08, -0.1), "OPTMARGIN": (0.6, 0.16)}
# The corner of each square, right and up, that no arrow or other square crosses.
_CORNERS = {"benign": (-1, -1), "OPTBRITTLE": (1, -1), "OPTMARGIN": (1, 1)}
_PANELS = {
    "The hypercube around a benign image\nlies in its own class": ("benign",),
    "Barely across the boundary: most of the\nhypercube votes for the true class": ("benign", "OPTBRITTLE"),
    "OPTMARGIN moves on until the\nhypercube votes for the wrong class": ("benign", "OPTMARGIN"),
}


@style.house_style()
def decision_regions() -> Figure:
    """Return the idea of region classification and of OPTMARGIN in three panels, a sketch in two dimensions.

    A square stands for the hypercube around each point; the per cent are the true class's share of its area, the
    votes it would get. The regions are made up for the drawing.

    References
    ----------
    Figure 3 of the talk; Cao & Gong, "Mitigating Evasion Attacks to Deep Neural Networks via Region-based
    Classification", 2017.
    """
    fig = style.figure(4.1)
    for ax, (title, names) in zip(fig.subplots(1, 3), _PANELS.items(), strict=True):
        _regions(ax)
        ax.set_title(title, fontsize=9.5)
        for name in names:
            _point(ax, name)
    handles: list[Line2D | Patch] = [Patch(facecolor=c, edgecolor="0.5", label=name) for name, c in _SHADES.items()]
    handles += [Line2D([], [], linestyle="none", label=name, **style.examples_style(name)) for name in _PLACES]
    fig.legend(handles=handles, loc="outside lower center", ncols=7, frameon=False, columnspacing=1.0)
    text = "Why might a vote help? A sketch, not data; per cent: the true class's share of the square"
    return style.headline(fig, text)


def share_of_true_class(centre: tuple[float, float]) -> float:
    """Return the true class's share of the square around `centre` in the sketch of `decision_regions`."""
    offsets = (np.arange(200) + 0.5) / 200 * 2 * _RADIUS - _RADIUS
    a, b = np.meshgrid(centre[0] + offsets, centre[1] + offsets)
    return float((_label(a, b) == 0).mean())


@style.house_style()
def detector_architecture(rays: int = 128) -> Figure:
    """Return the layers of the detector's network with the size of what flows between them.

    Parameters
    ----------
    rays
        K, the number of sorted distances; the two unpadded convolutions need at least 36.

    Raises
    ------
    ValueError
        For a number of rays that leaves a convolution without output.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018; Fig. 6 of the talk.
    """
    checks.count(rays, name="rays", low=detector.FEWEST_RAYS)
    with torch.device("meta"):  # which has sizes, and no numbers
        network = detector.BoundaryNet(rays)
    length, purities, hidden = rays, detector.PURITIES, network.linear1.out_features
    boxes = [("sorted distances", f"1 x {rays}", style.BLUE)]
    for i, conv in enumerate((network.conv1, network.conv2), 1):
        (kernel,), (stride,) = conv.kernel_size, conv.stride
        length = (length - kernel) // stride + 1
        text = f"conv1d {i}\n{conv.out_channels} channels\nkernel {kernel}, stride {stride}\nReLU, dropout .5"
        boxes.append((text, f"{conv.out_channels} x {length}", style.ORANGE))
    flat = network.linear1.in_features - purities
    boxes.append(("flatten,\nappend the\npurities", f"{flat} + {purities}", style.GREY))
    boxes.append((f"linear {hidden}\nReLU\ndropout .5", f"{hidden}", style.GREEN))
    boxes.append(("linear 2\nsoftmax", "benign |\nadversarial", style.GREEN))
    fig = style.figure(2.9, layout="none")
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 9), ylim=(0, 2.9))  # data coordinates are inches
    ax.axis("off")
    for i, (text, size, colour) in enumerate(boxes):
        middle = 0.75 + 1.5 * i
        _box(ax, (middle, 1.825), 1.15, text, colour)
        ax.text(middle, 1.1, size, ha="center", va="top", fontsize=9.5, weight="bold")
        if i:
            _arrow(ax, (middle - 0.89, 1.825), (middle - 0.61, 1.825))
    _box(ax, (5.25, 0.31), 0.42, f"{purities} purities", style.BLUE)
    _arrow(ax, (5.25, 0.52), (5.25, 0.86))
    text = f"What does the detector see? K={rays} rays of one image; below each layer: the size of its output"
    ax.text(0.15, 2.7, text, va="top", fontsize=10.5)
    return fig


def _label(a: arrays.Floats, b: arrays.Floats) -> arrays.Integers:
    """Return the class of the sketch: the second class has thin fingers into the first, the third lies below."""
    fingers = 0.26 * np.exp(-(((b + 0.1) / 0.08) ** 2)) + 0.2 * np.exp(-(((b - 0.45) / 0.08) ** 2))
    edge = 0.3 - fingers - 0.1 * np.sin(2.2 * b)
    third = b < -0.72 + 0.3 * np.tanh(2 * a)
    return np.where(third, 2, np.where(a > edge, 1, 0)).astype(np.int64)


def _regions(ax: Axes) -> None:
    grid = np.linspace(-1, 1, 500)
    labels = _label(*np.meshgrid(grid, grid))
    ax.imshow(labels, cmap=ListedColormap(list(_SHADES.values())), extent=(-1, 1, -1, 1), origin="lower")
    ax.contour(grid, grid, labels, levels=[0.5, 1.5], colors="0.45", linewidths=0.8)
    ax.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(-1, 1))


def _point(ax: Axes, name: str) -> None:
    """Draw a point with its square, the true class's share of it, and an arrow from the benign image."""
    a, b = _PLACES[name]
    colour = style.examples_colour(name)
    square = Rectangle((a - _RADIUS, b - _RADIUS), 2 * _RADIUS, 2 * _RADIUS, fill=False)
    ax.add_patch(square).set(edgecolor=colour, linewidth=1.8, zorder=3)
    if name != "benign":
        _arrow(ax, _PLACES["benign"], (a, b))
    ax.plot(a, b, markersize=8, markeredgecolor="white", zorder=5, **style.examples_style(name))
    right, up = _CORNERS[name]
    corner = (a + right * (_RADIUS - 0.05), b + up * (_RADIUS - 0.05))
    share = ax.text(*corner, f"{100 * share_of_true_class((a, b)):.0f} %", fontsize=9, zorder=6)
    share.set(ha="right" if right > 0 else "left", va="top" if up > 0 else "bottom")
    share.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5})


def _box(ax: Axes, middle: tuple[float, float], height: float, text: str, colour: str) -> None:
    look: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.06", "facecolor": style.blend(colour, 1.0, 0.75)}
    corner = (middle[0] - 0.61, middle[1] - height / 2)
    ax.add_patch(FancyBboxPatch(corner, 1.22, height, edgecolor=colour, **look))
    ax.text(*middle, text, ha="center", va="center", fontsize=9, linespacing=1.3)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    look = {"arrowstyle": "-|>", "color": style.BLACK, "linewidth": 1.1, "shrinkA": 3, "shrinkB": 4}
    ax.annotate("", end, start, arrowprops=look, zorder=4)
