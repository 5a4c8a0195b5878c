"""The look of every figure: seaborn's white grid, colour-blind-safe colours, one colour for each kind of example."""

import contextlib
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from nbsupport import files
from nbsupport.intervals import Rate, per_cent

WIDTH = 9.0  # inches, a notebook's column
BLACK, DARK, VIOLET, TEAL = "#1a1a1a", "#5a5a5a", "#5d3a9b", "#44aa99"
PAIR = OLIVE, WINE = "#999933", "#882255"  # of two things that are not examples, such as two models

# seaborn's "colorblind" palette, written out so that a figure does not change with seaborn's version.
PALETTE = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9")
BLUE, ORANGE, GREEN, VERMILLION, PINK, BROWN, LIGHT_PINK, GREY, YELLOW, SKY = PALETTE
# Of classes: nothing that was not found is taken for a class.
CLASSES = tuple(VIOLET if colour == GREY else colour for colour in PALETTE)
# One more than the colours: class i's pair (colour, marker) is unique up to 110 classes.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")

EXAMPLES = {
    "benign": BLACK,
    "FGSM": ORANGE,
    "PGD": VERMILLION,
    "OPTBRITTLE": GREEN,
    "OPTSTRONG": BROWN,
    "OPTMARGIN": BLUE,
    "OPTMARGIN-adam": SKY,
    "OPTMARGIN-authors": PINK,
    "noise": GREY,
    "errors": VIOLET,
    "all": DARK,
    "mimic": TEAL,
    "EOT": WINE,
}
VERDICTS = {"holds": BLUE, "fails": VERMILLION, "undecided": "#cacaca", "mixed": YELLOW}


class Picture(Figure):
    """A matplotlib figure that is drawn in the house style and shown by Jupyter.

    A bare `Figure` shows in a notebook only after pyplot's inline backend was loaded; `_repr_png_` shows this one
    always. Part of a figure's style (ticks, grid) is read while it is drawn, so that drawing enters the style again.
    """

    _png = b""

    def draw(self, renderer: Any) -> None:
        """Draw the figure in the house style, whatever the reader's own settings are."""
        with house_style():
            super().draw(renderer)

    def png(self) -> bytes:
        """Return the picture as a PNG of `files.DPI`: one drawing for the notebook and the file, until it changes."""
        if self.stale or not self._png:
            self._png = files.rendered(self, "png")
            self.stale = False  # saving set the size, for a moment
        return self._png

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        data = self.png()
        width = int.from_bytes(data[16:20], "big")  # of the header: the tight box is not as wide as the figure
        return data, {"width": round(width * self.dpi / files.DPI)}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Apply seaborn's white grid with the suite's font sizes; restore every setting on exit."""
    settings = {
        **seaborn.axes_style("whitegrid"),
        **seaborn.plotting_context("paper", font_scale=1.03),  # 9.9 points, ticks and legends 9.1
        "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same widths on every machine
        "axes.titlesize": 10.5,
        "figure.titlesize": 11,
        "axes.edgecolor": "0.6",
        "grid.color": "0.9",
        "lines.linewidth": 1.7,
        "savefig.facecolor": "white",
        "figure.dpi": 100,
        **dict.fromkeys(("figure.constrained_layout.w_pad", "figure.constrained_layout.h_pad"), 0.08),
    }
    with matplotlib.rc_context(settings):
        yield


def figure(height: float, *, width: float = WIDTH, layout: Any = "constrained") -> Picture:
    """Return an empty figure, known to no global list of figures (nothing to close)."""
    return Picture(figsize=(width, height), layout=layout)


def headline(fig: Figure, text: str) -> Figure:
    """Return `fig` with `text` above all panels, its lines broken to fit the figure's width."""
    fig.suptitle(broken(text, fig.get_size_inches()[0], 12))
    return fig


@house_style()
def nothing_to_show(reason: str) -> Figure:
    """Return a low, empty figure with `reason` written in it."""
    fig = figure(0.8, layout="none")
    fig.text(0.5, 0.5, broken(f"Nothing to show: {reason}.", WIDTH, 11), ha="center", va="center", color="0.3")
    return fig


def broken(text: str, width: float, rate: float) -> str:
    """Return `text` with its lines broken to fit `width` inches at `rate` characters an inch."""
    return "\n".join(textwrap.fill(line, int(rate * width)) for line in text.split("\n"))


def panels(titles: Iterable[str], height: float, **share: Any) -> Picture:
    """Return a figure with one titled panel for each of `titles`, in a row; a single panel is narrower."""
    names = list(titles)
    fig = figure(height, width=WIDTH if len(names) > 1 else 0.7 * WIDTH)
    for ax, name in zip(fig.subplots(1, len(names), squeeze=False, **share)[0], names, strict=True):
        ax.set_title(name)
    return fig


def rows(ax: Axes, labels: Sequence[str]) -> None:
    """Make the y axis of `ax` a list of `labels`, the first above."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.grid(axis="y", visible=False)


def examples_colour(name: str) -> str:
    """Return the colour of a kind of example, the same in every figure; an unknown name gets a fixed one of its own."""
    return EXAMPLES.get(name) or PALETTE[zlib.crc32(name.encode()) % len(PALETTE)]


def examples_style(name: str) -> dict[str, Any]:
    """Return colour and marker of a kind of example, the same in every figure, as keywords of `Axes.plot`."""
    place = list(EXAMPLES).index(name) if name in EXAMPLES else zlib.crc32(name.encode())
    return {"color": examples_colour(name), "marker": MARKERS[place % len(MARKERS)]}


def in_order(names: Iterable[str]) -> list[str]:
    """Return `names` in the suite's order of examples, unknown ones last in their own order."""
    order = list(EXAMPLES)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def blend(colour: Any, target: float, weight: float) -> tuple[float, float, float]:
    """Return `colour` moved by `weight` towards white (`target` 1) or black (0)."""
    red, green, blue = (part + weight * (target - part) for part in to_rgb(colour))
    return red, green, blue


def class_colours(count: int, true: int | None = None) -> list[tuple[float, float, float]]:
    """Return `count` colours for classes: the palette, then darker and lighter turns of it; the `true` one is black."""
    turns = ((0.0, 0.0), (0.0, 0.35), (1.0, 0.45), (0.0, 0.6), (1.0, 0.7))
    colours = [blend(CLASSES[i % len(CLASSES)], *turns[i // len(CLASSES) % len(turns)]) for i in range(count)]
    return [to_rgb(BLACK) if i == true else colour for i, colour in enumerate(colours)]


def unit(pixel_max: float) -> str:
    """Return the unit of a length in words, e.g. 'pixels in [0, 255]'."""
    return f"pixels in [0, {pixel_max:g}]"


def percent(rate: Rate) -> str:
    """Return a rate with its interval in per cent, e.g. '12 % [5, 22]'."""
    if rate.n == 0:
        return "not measured"
    return f"{per_cent(rate.value)} % [{per_cent(rate.low)}, {per_cent(rate.high)}]"


def span(counts: Sequence[int]) -> str:
    """Return the smallest and the largest of `counts`, e.g. '40' or '38 to 40'."""
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def legend_below(ax: Axes, ncols: int = 2) -> None:
    """Put the legend of `ax` under its x label, where no curve can hide behind it."""
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.19)}
    ax.legend(*ax.get_legend_handles_labels(), ncols=ncols, frameon=False, columnspacing=1.2, **place)


def whiskers(value: ArrayLike, low: ArrayLike, high: ArrayLike) -> NDArray[Any]:
    """Return how far an interval reaches below and above its value, as matplotlib takes it, never below 0."""
    return np.clip([np.subtract(value, low), np.subtract(high, value)], 0, None)
