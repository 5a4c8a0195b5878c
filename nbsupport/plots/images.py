"""Figures of images: classes, the RMS unit, and every attack beside its original."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from nbsupport import checks, intervals
from nbsupport.intervals import Rate
from nbsupport.plots import arrays, style
from nbsupport.plots.arrays import Floats, Values
from nbsupport.plots.style import BLACK, WIDTH, Picture, broken, figure, house_style, in_order, percent, unit

_PARTS = {"training": style.BLUE, "test": style.ORANGE}
_LINE = 0.165  # inches, one line of text at _FONT points
_FONT = 9


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


def difference_tile(x: Floats, x_adv: Floats, magnify: float) -> Tile:
    """Return `magnify * (x_adv - x)`, clipped to [-1, 1], as a picture with no change in the middle of the scale."""
    return Tile(as_picture(0.5 + 0.5 * np.clip(magnify * (x_adv - x), -1, 1)), difference=True)


def montage(images: Values, labels: Values, classes: Sequence[str], *, per_class: int = 16) -> Figure:
    """Return the first `per_class` images of every class, a row for each class.

    Parameters
    ----------
    images
        (N, C, H, W) in [0, 1], C 1 (grey) or 3 (RGB).
    labels
        (N,) whole numbers, the index of a class.
    classes
        The L names.
    per_class
        Images in a row; a class that has fewer leaves the rest white.

    Raises
    ------
    ValueError
        For other shapes, or labels that are not the index of a class.
    """
    x = arrays.images(images, name="images")
    y = arrays.labels(labels, name="labels", shape=(len(x),), classes=classes)
    checks.count(per_class, name="per_class")
    chosen = [np.flatnonzero(y == label) for label in range(len(classes))]
    height, width = x.shape[2:]
    step = height + max(1, height // 10)
    canvas = np.ones((len(classes), step, per_class, width + step - height, *as_picture(x[0]).shape[2:]))
    for row, index in enumerate(chosen):
        for column, image in enumerate(x[index[:per_class]]):
            canvas[row, :height, column, :width] = as_picture(image)
    mosaic = canvas.reshape(len(classes) * step, -1, *canvas.shape[4:])[: height - step, : height - step]
    with house_style():
        tile = min((WIDTH - 1.4) / per_class, 0.8)
        fig = figure(0.6 + tile * len(classes) * height / width)
        ax = fig.subplots()
        ax.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        names = [f"{name}  (n={len(index)})" for name, index in zip(classes, chosen, strict=True)]
        ax.set_yticks([row * step + height / 2 for row in range(len(classes))], names)
        ax.set_xticks([])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(left=False)
        ax.set_title(f"The first {per_class} images of each class; n: images of the class in the set")
    return fig


@style.house_style()
def class_counts(train_labels: Values, test_labels: Values, classes: Sequence[str]) -> Figure:
    """Return the number of images of each class in the training set and in the test set.

    Parameters
    ----------
    train_labels, test_labels
        (N,) whole numbers, the index of a class.
    classes
        The L names.

    Raises
    ------
    ValueError
        For labels of another shape or that are not the index of a class.
    """
    fig = style.figure(0.9 + 0.27 * len(classes))
    axes = fig.subplots(1, 2, sharey=True)
    for ax, (part, colour), values in zip(axes, _PARTS.items(), (train_labels, test_labels), strict=True):
        y = arrays.labels(values, name=f"{part} labels", shape=("N",), classes=classes)
        counts = np.bincount(y, minlength=len(classes))
        bars = ax.barh(range(len(classes)), counts, color=colour, height=0.7)
        ax.bar_label(bars, [f"{count}" for count in counts], padding=3, fontsize=9)
        ax.set(title=f"{part} set, n={len(y)}", xlabel="images", xlim=(0, max(1, counts.max()) * 1.18))
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(classes)), classes)
    axes[0].set_ylabel("class")
    axes[0].invert_yaxis()
    return fig


@style.house_style()
def pixel_values(train: Values, test: Values, *, pixel_max: float = 1.0, bins: int = 64) -> Figure:
    """Return the histogram of the pixel values of both sets, with minimum, mean and maximum.

    Parameters
    ----------
    train, test
        (N, C, H, W) in [0, 1], C 1 (grey) or 3 (RGB, a panel for each channel).
    pixel_max
        The axis is in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For other shapes, or sets whose channels differ in number.
    """
    sets = {"training": arrays.images(train, name="train"), "test": arrays.images(test, name="test")}
    channels = {part: x.shape[1] for part, x in sets.items()}
    if len(set(channels.values())) > 1:
        raise ValueError(f"expected training and test images with as many channels, got {channels}")
    names = ["all pixels"] if channels["test"] == 1 else ["red", "green", "blue"]
    edges = np.linspace(0, pixel_max, bins + 1)
    fig, axes = style.panels(names, 3.8, sharey=True)
    for channel, ax in enumerate(axes):
        for part, x in sets.items():
            values = x[:, channel].ravel() * pixel_max
            share = np.histogram(values, edges)[0] / max(values.size, 1)
            low, mean, high = values.min(), values.mean(), values.max()
            text = f"{part}: n={len(x)} images\n{low:.3g} to {high:.3g}, mean {mean:.3g}"
            look: dict[str, Any] = {"fill": True, "alpha": 0.6} if part == "training" else {}
            ax.stairs(share, edges, label=text, color=_PARTS[part], linewidth=1.4, **look)
        ax.set(xlabel=f"value ({style.unit(pixel_max)})", yscale="log")
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        style.legend_below(ax, ncols=1 if len(names) > 1 else 2)
    axes[0].set_ylabel(f"share of pixels in each of {bins} bins")
    return fig


def rms_examples(x: Values, versions: Mapping[str, Values], *, pixel_max: float = 1.0) -> Figure:
    """Return what the unit RMS looks like: a row for each kind of distortion, the measured RMS above each image.

    Parameters
    ----------
    x
        (C, H, W) in [0, 1], the original.
    versions
        Kind of distortion -> (M, C, H, W), the same image distorted M times, weakest first.
    pixel_max
        The RMS is written in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For no version, or shapes that do not agree.
    """
    original = arrays.images(x, name="x", shape=("C", "H", "W"))
    arrays.not_empty(versions, name="versions")
    rows: list[list[Tile | None]] = []
    for kind, batch in versions.items():
        distorted = arrays.images(batch, name=f"versions[{kind!r}]", shape=("M", *original.shape))
        measured = arrays.rms(distorted, original) * pixel_max
        tiles = [Tile(as_picture(image), f"{value:.3g}") for image, value in zip(distorted, measured, strict=True)]
        rows.append([Tile(as_picture(original), "original"), *tiles])
    longest = max(map(len, rows))
    return _tile_figure(
        [row + [None] * (longest - len(row)) for row in rows],
        row_titles=[kind.replace(" ", "\n", 1) for kind in versions],
        title=f"The same RMS looks different for each kind of distortion (above each image: RMS, {unit(pixel_max)})",
        margin=1.35,
    )


def attack_grid(
    x: Values,
    adversarial: Mapping[str, Values],
    *,
    before: Values | None = None,
    after: Mapping[str, Values] | None = None,
    classes: Sequence[str] | None = None,
    pixel_max: float = 1.0,
    magnify: float | None = None,
) -> Figure:
    """Return the originals (first column) beside every attack's result: a row for each image.

    Parameters
    ----------
    x
        (N, C, H, W) in [0, 1], the originals, a handful.
    adversarial
        Name of the examples -> (N, C, H, W).
    before
        (N,) the model's label of each original; None: not written.
    after
        Name of the examples -> (N,) the model's label of each result; None: not written.
    classes
        The L names; None: a label is written as its number.
    pixel_max
        The RMS above each image is in units of [0, pixel_max].
    magnify
        If given, a second row below each image shows this multiple of the difference, clipped to [-1, 1].

    Raises
    ------
    ValueError
        For shapes that do not agree, or labels in `after` for some of the examples only.
    """
    arrays.not_empty(adversarial, name="adversarial")
    originals = arrays.images(x, name="x")
    first = _names(before, "before", len(originals), classes)
    results = _results(originals, adversarial, after, classes)
    rows: list[list[Tile | None]] = []
    titles = []
    for i, original in enumerate(originals):
        row: list[Tile | None] = [_tile(original, first[i], "original")]
        differences: list[Tile | None] = [None]
        for x_adv, found in results.values():
            value = float(arrays.rms(x_adv[i], original)) * pixel_max
            row.append(_result(x_adv[i], found[i], first[i], f"RMS {value:.3g}"))
            differences.append(difference_tile(original, x_adv[i], magnify or 1.0))
        rows.append(row)
        titles.append(f"image {i + 1}")
        if magnify is not None:
            checks.number(magnify, name="magnify", open_low=True)
            rows.append(differences)
            titles.append(f"difference\nx {magnify:g}")
    labels = "" if after is None else "the model's label (grey: unchanged)\nand "
    return _tile_figure(
        rows,
        row_titles=titles,
        column_titles=["benign", *(name.replace("-", "-\n") for name in results)],
        title=f"n={len(originals)}; above each image: {labels}the RMS ({unit(pixel_max)})",
        margin=0.85,
    )


def variants_side_by_side(
    x: Values,
    variants: Mapping[str, Values],
    *,
    before: Values,
    after: Mapping[str, Values],
    classes: Sequence[str],
    region_accuracy: Mapping[str, Rate] | None = None,
    pixel_max: float = 1.0,
    shown: int = 4,
    magnify: float = 3.0,
) -> Figure:
    """Return the variants of one attack under the same originals: images on the left, differences on the right.

    Parameters
    ----------
    x
        (N, C, H, W) in [0, 1]; the mean RMS beside each variant is over all N, with a 95 % interval.
    variants
        Name of the examples -> (N, C, H, W).
    before, after, classes, pixel_max
        As in `attack_grid`.
    region_accuracy
        Name of the examples -> accuracy of the region classifier, if measured.
    shown
        Number of images drawn, the first.
    magnify
        The right half shows this multiple of the difference, clipped to [-1, 1].

    Raises
    ------
    ValueError
        For shapes that do not agree, or a variant without labels.
    """
    arrays.not_empty(variants, name="variants")
    checks.count(shown, name="shown")
    checks.number(magnify, name="magnify", open_low=True)
    originals = arrays.images(x, name="x")
    first = _names(before, "before", len(originals), classes)
    some = range(min(shown, len(originals)))
    rows: list[list[Tile | None]] = [[*(_tile(originals[i], first[i]) for i in some), *([None] * len(some))]]
    titles = ["original"]
    for name, (x_adv, found) in _results(originals, variants, after, classes).items():
        tiles = [_result(x_adv[i], found[i], first[i]) for i in some]
        rows.append([*tiles, *(difference_tile(originals[i], x_adv[i], magnify) for i in some)])
        mean = intervals.mean(arrays.rms(x_adv, originals) * pixel_max, bounds=(0, pixel_max))
        lines = [name, f"mean RMS {mean.value:.3g}", f"[{mean.low:.3g}, {mean.high:.3g}], n={mean.n}"]
        if region_accuracy is not None and name in region_accuracy:
            rate = region_accuracy[name]
            lines += ["region accuracy", f"{percent(rate)}, n={rate.n}"]
        titles.append("\n".join(lines))
    colours = " (red: brighter)" if originals.shape[1] == 1 else ""
    return _tile_figure(
        rows,
        row_titles=titles,
        title=f"Above each image: the model's label (grey: unchanged); right: the difference x {magnify:g}{colours}\n"
        f"RMS ({unit(pixel_max)}) and accuracy with 95 % intervals",
        margin=1.75,
        split=len(some),
    )


def _results(
    x: Floats, adversarial: Mapping[str, Values], after: Mapping[str, Values] | None, classes: Sequence[str] | None
) -> dict[str, tuple[Floats, list[str]]]:
    """Return the images of each kind of example and the names of their labels, in the suite's order."""
    missing = [name for name in adversarial if after is not None and name not in after]
    if missing:
        raise ValueError(f"expected labels in after for every attack; missing: {', '.join(missing)}")
    return {
        name: (
            arrays.images(adversarial[name], name=f"images of {name}", shape=x.shape),
            _names(None if after is None else after[name], f"after[{name!r}]", len(x), classes),
        )
        for name in in_order(adversarial)
    }


def _names(labels: Values | None, name: str, count: int, classes: Sequence[str] | None) -> list[str]:
    """Return the names of `count` labels, empty where there are none."""
    if labels is None:
        return [""] * count
    found = arrays.labels(labels, name=name, shape=(count,), classes=classes)
    return [str(label) if classes is None else classes[label] for label in found]


def _tile(image: Floats, *lines: str, colour: str = BLACK) -> Tile:
    return Tile(as_picture(image), "\n".join(filter(None, lines)), colour)


def _result(image: Floats, label: str, before: str, *lines: str) -> Tile:
    """Return an attack's result below its label, which is grey where it is still the one of `before`."""
    says = f"\N{RIGHTWARDS ARROW} {label}" if label else ""
    return _tile(image, says, *lines, colour="0.5" if label and label == before else BLACK)


def _tile_figure(
    rows: Sequence[Sequence[Tile | None]],
    *,
    row_titles: Sequence[str],
    column_titles: Sequence[str] = (),
    title: str,
    margin: float = 1.0,
    split: int | None = None,
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
    split
        The column with extra space before it.
    """
    count, gap = len(rows[0]), 0.1
    extra = 0.0 if split is None else 0.35
    side = min(1.35, (WIDTH - margin - 0.1 - extra) / count - gap)
    sample = next(tile.picture for row in rows for tile in row if tile is not None)
    height = side * sample.shape[0] / sample.shape[1]
    head = _LINE * (1 + max(map(_lines, column_titles))) if column_titles else 0.05
    captions = [_LINE * max(_lines(tile.caption) if tile else 0 for tile in row) + 0.03 for row in rows]
    width = max(margin + extra + count * (side + gap) + 0.1, 6.0)
    title = broken(title, width, 12)
    title_height = 0.12 + 0.18 * _lines(title)
    total = title_height + head + sum(captions) + len(rows) * (height + 0.08) + 0.05
    lefts = [margin + i * (side + gap) + (extra if split is not None and i >= split else 0.0) for i in range(count)]
    text: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": _FONT}
    with house_style():
        fig = figure(total, width=width, layout="none")
        ax = fig.add_axes((0.0, 0.0, 1.0, 1.0))  # data coordinates are inches from the upper left corner
        ax.axis("off")
        ax.text(0.1, 0.08, title, va="top", fontsize=10.5)
        top = title_height + head
        for left, name in zip(lefts, column_titles, strict=False):
            ax.text(left + side / 2, top - 0.06, name, **text)
        for row, row_title, above in zip(rows, row_titles, captions, strict=True):
            top += above
            beside = (margin - 0.12, top + height / 2)
            ax.text(*beside, row_title, ha="right", va="center", fontsize=_FONT, linespacing=1.25)
            for left, tile in zip(lefts, row, strict=True):
                if tile is not None:
                    ax.text(left + side / 2, top - 0.02, tile.caption, color=tile.colour, **text)
                    look: dict[str, Any] = {"cmap": "RdBu_r" if tile.difference else "gray", "interpolation": "nearest"}
                    place = (left, left + side, top + height, top)
                    ax.imshow(tile.picture, vmin=0, vmax=1, extent=place, aspect="auto", **look)
                    ax.add_patch(Rectangle((left, top), side, height, fill=False, edgecolor="0.7", linewidth=0.6))
            top += height + 0.08
        ax.set(xlim=(0, width), ylim=(total, 0))
    return fig


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0
