"""Figures of data sets and images: classes, pixel values, the RMS unit, and every attack beside its original."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from nbsupport import intervals
from nbsupport.intervals import Rate
from nbsupport.plots import arrays, style
from nbsupport.plots.arrays import ByName, Floats, Names, Values

_PER_CLASS = 16  # images in a row of `montage`
_SHOWN = 4  # images of a variant
_PARTS = dict(zip(("training", "test"), style.PAIR, strict=True))


@dataclass(frozen=True)
class Tile:
    """One picture (H, W) or (H, W, 3), if any, with a caption above it; a `difference` has its zero in the middle."""

    picture: Floats | None = None
    caption: str = ""
    colour: str = style.BLACK
    difference: bool = False

    def draw(self, ax: Axes, **place: Any) -> None:
        """Draw the picture into `ax`."""
        colours = "RdBu_r" if self.difference else "gray"
        if self.picture is not None:
            ax.imshow(self.picture, cmap=colours, vmin=0, vmax=1, interpolation="nearest", **place)


def as_picture(image: Floats) -> Floats:
    """Return an image (C, H, W) in [0, 1] as matplotlib takes it: (H, W) grey or (H, W, 3)."""
    return np.asarray(image[0] if image.shape[0] == 1 else np.clip(np.moveaxis(image, 0, -1), 0, 1))


def difference_tile(x: Floats, x_adv: Floats, magnify: float, caption: str = "") -> Tile:
    """Return `magnify * (x_adv - x)`, clipped to [-1, 1], as a picture with no change in the middle of the scale."""
    return Tile(as_picture(0.5 + 0.5 * np.clip(magnify * (x_adv - x), -1, 1)), caption, difference=True)


def magnification(largest: float) -> float:
    """Return the largest of 1, 2, 5, 10, ... that keeps a change of `largest` in the scale; 1 where nothing changed."""
    steps = [m * 10.0**e for e in range(4) for m in (1, 2, 5)]
    return max((step for step in steps if 0 < step * largest <= 1), default=1.0)


@style.house_style()
def montage(images: Values, labels: Values, classes: Names) -> Figure:
    """Return the first 16 images of every class, a row for each class; a class that has fewer leaves the rest white.

    Parameters
    ----------
    images
        (N, C, H, W) in [0, 1], C 1 (grey) or 3 (RGB).
    labels
        (N,) whole numbers, the index of a class.
    classes
        The L names.

    Raises
    ------
    ValueError
        For other shapes, or labels that are not the index of a class.
    """
    x = arrays.images(images, name="images")
    y = arrays.labels(labels, name="labels", shape=(len(x),), classes=classes)
    chosen = [np.flatnonzero(y == label) for label in range(len(classes))]
    height, width = x.shape[2:]
    gap = max(1, height // 10)
    step = height + gap
    canvas = np.ones((len(classes), step, _PER_CLASS, width + gap, *as_picture(x[0]).shape[2:]))
    for row, index in enumerate(chosen):
        for column, image in enumerate(x[index[:_PER_CLASS]]):
            canvas[row, :height, column, :width] = as_picture(image)
    mosaic = canvas.reshape(len(classes) * step, -1, *canvas.shape[4:])[:-gap, :-gap]
    tile = min((style.WIDTH - 1.4) / _PER_CLASS, 0.8)
    fig = style.figure(0.6 + tile * len(classes) * height / width)
    ax = fig.subplots()
    Tile(mosaic).draw(ax)
    names = [f"{name}  (n={len(index)})" for name, index in zip(classes, chosen, strict=True)]
    ax.set_yticks([row * step + height / 2 for row in range(len(classes))], names)
    title = f"The first {_PER_CLASS} images of each class; n: images of the class in the set"
    ax.set(xticks=[], frame_on=False, title=title)
    ax.tick_params(left=False, grid_alpha=0)
    return fig


@style.house_style()
def class_counts(train_labels: Values, test_labels: Values, classes: Names) -> Figure:
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
        style.rows(ax, classes)
        ax.set(title=f"{part} set, n={len(y)}", xlabel="images", xlim=(0, max(1, counts.max()) * 1.18))
    axes[0].set_ylabel("class")
    return style.headline(fig, "Are the classes equally frequent, and in both sets alike?")


@style.house_style()
def pixel_values(train: Values, test: Values, *, pixel_max: float = 1.0) -> Figure:
    """Return which share of the pixels of both sets has at most a value; a jump is a value that many pixels have.

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
    at = np.linspace(0, 1, 256)
    fig = style.panels(names, 3.8, sharey=True)
    for channel, ax in enumerate(fig.axes):
        for (part, x), dashes in zip(sets.items(), ("-", (0, (3, 1.5))), strict=True):
            values = x[:, channel].ravel()
            share = np.searchsorted(np.sort(values), at + 1e-6, side="right") / max(values.size, 1)
            low, high = (values <= 1e-6).mean(), (values >= 1 - 1e-6).mean()
            text = f"{part}, n={len(x)} images, mean {pixel_max * values.mean():.3g}\n"
            text += f"{low:.0%} are 0, {high:.0%} are {pixel_max:g}"
            x_y = np.insert(at, 0, 0) * pixel_max, np.insert(share, 0, 0)
            ax.step(*x_y, where="post", label=text, color=_PARTS[part], linestyle=dashes)
        ax.set(xlabel=f"value ({style.unit(pixel_max)})", ylim=(-0.02, 1.02))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        style.legend_below(ax, ncols=1 if len(names) > 1 else 2)
    fig.axes[0].set_ylabel("pixels of at most this value")
    return style.headline(fig, "How many pixels sit at the ends of the range?")


@style.house_style()
def rms_examples(x: Values, versions: ByName, *, pixel_max: float = 1.0) -> Figure:
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
    rows = []
    for kind, batch in versions.items():
        distorted = arrays.images(batch, name=f"versions[{kind!r}]", shape=("M", *original.shape))
        measured = arrays.rms(distorted, original) * pixel_max
        tiles = [Tile(as_picture(image), f"{value:.3g}") for image, value in zip(distorted, measured, strict=True)]
        rows.append((kind.replace(" ", "\n", 1), [Tile(as_picture(original), "original"), *tiles]))
    title = f"How visible is the same RMS? (above each image: RMS, {style.unit(pixel_max)})"
    return _tile_figure(rows, title=title, margin=1.35)


@style.house_style()
def attack_grid(
    x: Values,
    adversarial: ByName,
    *,
    before: Values | None = None,
    after: ByName | None = None,
    classes: Names | None = None,
    pixel_max: float = 1.0,
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

    Raises
    ------
    ValueError
        For shapes that do not agree, or labels in `after` for some of the examples only.
    """
    arrays.not_empty(adversarial, name="adversarial")
    originals, first, results = _checked(x, adversarial, before, after, classes)
    rows = [("", [Tile(caption=name.replace("-", "-\n")) for name in ("benign", *results)])]
    for i, original in enumerate(originals):
        tiles = [_tile(original, first[i], "original")]
        for x_adv, found in results.values():
            rms = f"RMS {arrays.rms(x_adv[i], original) * pixel_max:.3g}"
            tiles.append(_result(x_adv[i], found[i], first[i], rms))
        rows.append((f"image {i + 1}", tiles))
    labels = "" if after is None else "the model's label (grey: unchanged)\nand "
    title = (
        f"Can you still see the class? n={len(originals)}; above each image: {labels}the RMS ({style.unit(pixel_max)})"
    )
    return _tile_figure(rows, title=title, margin=0.85)


@style.house_style()
def variants_side_by_side(
    x: Values,
    variants: ByName,
    *,
    before: Values,
    after: ByName,
    classes: Names,
    region_accuracy: Mapping[str, Rate] | None = None,
    pixel_max: float = 1.0,
) -> Figure:
    """Return the variants of one attack under the same originals: images on the left, differences on the right.

    The first four images are drawn, and their differences so many times that twice the largest RMS fits the scale.

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

    Raises
    ------
    ValueError
        For shapes that do not agree, or a variant without labels.
    """
    arrays.not_empty(variants, name="variants")
    originals, first, results = _checked(x, variants, before, after, classes)
    some = range(min(_SHOWN, len(originals)))
    rows = [("original", [_tile(originals[i], first[i]) for i in some])]
    lengths = {name: arrays.rms(x_adv, originals) for name, (x_adv, _) in results.items()}
    magnify = magnification(2 * max(float(rms[list(some)].max()) for rms in lengths.values()))
    for name, (x_adv, found) in results.items():
        mean = intervals.mean(lengths[name] * pixel_max, bounds=(0, pixel_max))
        text = f"{name}\nmean RMS {mean.value:.3g}\n[{max(mean.low, 0):.3g}, {mean.high:.3g}], n={mean.n}"
        if region_accuracy is not None and name in region_accuracy:
            rate = region_accuracy[name]
            text += f"\nregion accuracy\n{style.percent(rate)}, n={rate.n}"
        tiles = [_result(x_adv[i], found[i], first[i]) for i in some]
        rows.append((text, tiles + [difference_tile(originals[i], x_adv[i], magnify) for i in some]))
    colours = " (red: brighter)" if originals.shape[1] == 1 else ""
    title = "Does the variant of the authors go further than the equations, and is it harder to vote back?\n"
    title += f"Above each image: the model's label (grey: unchanged); right: the difference x {magnify:g}{colours}\n"
    title += f"RMS ({style.unit(pixel_max)}) and accuracy with 95 % intervals"
    return _tile_figure(rows, title=title, margin=1.75, split=len(some))


def _checked(
    x: Values, adversarial: ByName, before: Values | None, after: ByName | None, classes: Names | None
) -> tuple[Floats, list[str], dict[str, tuple[Floats, list[str]]]]:
    """Return the originals and their labels' names; for each kind of example, in order, its images and these names."""
    originals = arrays.images(x, name="x")
    missing = [name for name in adversarial if after is not None and name not in after]
    if missing:
        raise ValueError(f"expected labels in after for every attack; missing: {', '.join(missing)}")

    def names(labels: Values | None, name: str) -> list[str]:
        if labels is None:
            return [""] * len(originals)
        found = arrays.labels(labels, name=name, shape=(len(originals),), classes=classes)
        return [str(label) if classes is None else classes[label] for label in found]

    results = {}
    for name in style.in_order(adversarial):
        x_adv = arrays.images(adversarial[name], name=f"images of {name}", shape=originals.shape)
        results[name] = x_adv, names(None if after is None else after[name], f"after[{name!r}]")
    return originals, names(before, "before"), results


def _tile(image: Floats, *lines: str, colour: str = style.BLACK) -> Tile:
    return Tile(as_picture(image), "\n".join(filter(None, lines)), colour)


def _result(image: Floats, label: str, before: str, *lines: str) -> Tile:
    """Return an attack's result below its label, which is grey where it is still the one of `before`."""
    says = f"\N{RIGHTWARDS ARROW} {label}" if label else ""
    return _tile(image, says, *lines, colour="0.5" if label and label == before else style.BLACK)


def _tile_figure(
    rows: Sequence[tuple[str, Sequence[Tile]]], *, title: str, margin: float, split: int | None = None
) -> style.Picture:
    """Return a figure of tiles of one size, which follows from the longest row.

    Parameters
    ----------
    rows
        The text left of each row, and its tiles; a row without a picture is as high as its captions.
    margin
        Inches left of the tiles, for the text.
    split
        The column with extra space before it.
    """
    count = max(len(tiles) for _, tiles in rows)
    extra = 0.0 if split is None else 0.35
    side = min(1.35, (style.WIDTH - margin - 0.1 - extra) / count - 0.1)
    lefts = [margin + i * (side + 0.1) + (extra if split is not None and i >= split else 0.0) for i in range(count)]
    sample = next(tile.picture for _, tiles in rows for tile in tiles if tile.picture is not None)
    height = side * sample.shape[0] / sample.shape[1]
    width = max(lefts[-1] + side + 0.2, 6.0)
    title = style.broken(title, width, 12)
    fig = style.figure(1.0, width=width, layout="none")
    ax = fig.add_axes((0.0, 0.0, 1.0, 1.0))  # data coordinates are inches from the upper left corner
    ax.axis("off")
    ax.text(0.1, 0.08, title, va="top", fontsize=10.5)
    below = 0.12 + 0.18 * (title.count("\n") + 1)
    for text, tiles in rows:
        top = below + 0.165 * max(len(tile.caption.splitlines()) for tile in tiles) + 0.03  # inches a line of 9 points
        ax.text(margin - 0.12, top + height / 2, text, ha="right", va="center", fontsize=9, linespacing=1.25)
        for left, tile in zip(lefts, tiles, strict=False):
            caption = ax.text(left + side / 2, top - 0.02, tile.caption, ha="center", va="bottom", fontsize=9)
            caption.set_color(tile.colour)
            if tile.picture is not None:
                tile.draw(ax, extent=(left, left + side, top + height, top), aspect="auto")
                ax.add_patch(Rectangle((left, top), side, height, fill=False, edgecolor="0.7", linewidth=0.6))
        below = top + 0.08 + (height if any(tile.picture is not None for tile in tiles) else 0.0)
    fig.set_size_inches(width, below + 0.05)
    ax.set(xlim=(0, width), ylim=(below + 0.05, 0))
    return fig
