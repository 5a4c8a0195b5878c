"""Pictures laid out in rows and columns on one pair of axes, with captions that cannot overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbsupport.plots.arrays import Floats
from nbsupport.plots.style import BLACK, WIDTH, Picture, broken, figure, house_style

LINE = 0.165  # inches, one line of text at FONT points
FONT = 9


@dataclass(frozen=True)
class Tile:
    """One picture (H, W) or (H, W, 3) with a caption above it; a `difference` has its zero in the middle."""

    picture: Floats
    caption: str = ""
    colour: str = BLACK
    difference: bool = False


def as_picture(image: Floats) -> Floats:
    """Return an image (C, H, W) in [0, 1] as matplotlib takes it: (H, W) grey or (H, W, 3)."""
    return np.asarray(image[0] if image.shape[0] == 1 else np.clip(np.moveaxis(image, 0, -1), 0, 1))


def difference_tile(x: Floats, x_adv: Floats, magnify: float, caption: str = "") -> Tile:
    """Return `magnify * (x_adv - x)`, clipped to [-1, 1], as a picture with no change in the middle of the scale."""
    return Tile(as_picture(0.5 + 0.5 * np.clip(magnify * (x_adv - x), -1, 1)), caption, difference=True)


def tile_figure(
    rows: Sequence[Sequence[Tile | None]],
    *,
    row_titles: Sequence[str],
    column_titles: Sequence[str] = (),
    title: str,
    margin: float = 1.0,
    gap_before: Sequence[int] = (),
) -> Picture:
    """Return a figure of tiles, `None` left empty; sizes follow from the number of columns.

    Parameters
    ----------
    rows
        The tiles, every row of the same length.
    row_titles, column_titles
        Text left of each row and above each column.
    margin
        Inches left of the tiles, for the row titles.
    gap_before
        Columns with half a tile of extra space before them.
    """
    count = len(rows[0])
    gap = 0.1
    extra = 0.35 * len(gap_before)
    side = min(1.35, (WIDTH - margin - 0.1 - extra) / count - gap)
    sample = next(tile.picture for row in rows for tile in row if tile is not None)
    height = side * sample.shape[0] / sample.shape[1]
    head = LINE * (1 + max(map(_lines, column_titles))) if column_titles else 0.05
    captions = [LINE * max(_lines(tile.caption) if tile else 0 for tile in row) + 0.03 for row in rows]
    width = max(margin + extra + count * (side + gap) + 0.1, 6.0)
    title = broken(title, width, 12)
    title_height = 0.12 + 0.18 * _lines(title)
    total = title_height + head + sum(captions) + len(rows) * (height + 0.08) + 0.05
    with house_style():
        fig = figure(total, width=width, layout="none")
        ax = fig.add_axes((0.0, 0.0, 1.0, 1.0))  # data coordinates are inches from the upper left corner
        ax.set(xlim=(0, width), ylim=(total, 0))
        ax.axis("off")
        ax.text(0.1, 0.08, title, va="top", fontsize=10.5)
        lefts = [margin + i * (side + gap) + 0.35 * sum(i >= column for column in gap_before) for i in range(count)]
        for left, text in zip(lefts, column_titles, strict=False):
            ax.text(left + side / 2, title_height + head - 0.06, text, ha="center", va="bottom", fontsize=FONT + 0.5)
        top = title_height + head
        for row, row_title, caption_height in zip(rows, row_titles, captions, strict=True):
            top += caption_height
            ax.text(
                margin - 0.12, top + height / 2, row_title, ha="right", va="center", fontsize=FONT, linespacing=1.25
            )
            for left, tile in zip(lefts, row, strict=True):
                if tile is not None:
                    centre = left + side / 2
                    ax.text(
                        centre, top - 0.02, tile.caption, ha="center", va="bottom", fontsize=FONT, color=tile.colour
                    )
                    _show(fig, tile, (left, left + side, top + height, top))
            top += height + 0.08
    return fig


def mosaic(pictures: Sequence[Sequence[Floats | None]], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return pictures of `shape` (H, W[, 3]) as one array, white between and where there is none."""
    pad = max(1, shape[0] // 10)
    step = (shape[0] + pad, shape[1] + pad)
    canvas = np.ones((step[0] * len(pictures) - pad, step[1] * max(map(len, pictures)) - pad, *shape[2:]))
    for i, row in enumerate(pictures):
        for j, picture in enumerate(row):
            if picture is not None:
                canvas[i * step[0] : i * step[0] + shape[0], j * step[1] : j * step[1] + shape[1]] = picture
    return canvas


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def _show(fig: Picture, tile: Tile, extent: tuple[float, float, float, float]) -> None:
    ax = fig.axes[0]
    limits = (ax.get_xlim(), ax.get_ylim())
    colours = "RdBu_r" if tile.difference else "gray"
    ax.imshow(tile.picture, cmap=colours, vmin=0, vmax=1, extent=extent, interpolation="nearest", aspect="auto")
    ax.plot(*_frame(extent), color="0.7", linewidth=0.6)
    ax.set(xlim=limits[0], ylim=limits[1])


def _frame(extent: tuple[float, float, float, float]) -> tuple[list[float], list[float]]:
    left, right, bottom, top = extent
    return [left, right, right, left, left], [bottom, bottom, top, top, bottom]
