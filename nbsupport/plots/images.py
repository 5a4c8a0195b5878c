"""Figures of images: classes, the RMS unit, and every attack beside its original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from nbsupport import checks, intervals
from nbsupport.intervals import Rate
from nbsupport.plots import arrays
from nbsupport.plots.arrays import Floats, Integers, Values
from nbsupport.plots.style import EXAMPLES, WIDTH, figure, house_style, in_order, percent, unit
from nbsupport.plots.tiles import Tile, as_picture, difference_tile, mosaic, tile_figure


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
    rows = [[as_picture(x[index[i]]) if i < len(index) else None for i in range(per_class)] for index in chosen]
    canvas = mosaic(rows, as_picture(x[0]).shape)
    with house_style():
        tile = min((WIDTH - 1.4) / per_class, 0.8)
        fig = figure(0.6 + tile * len(classes) * x.shape[2] / x.shape[3])
        ax = fig.subplots()
        ax.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        step = (canvas.shape[0] - x.shape[2]) / max(len(classes) - 1, 1)
        names = [f"{name}  (n={len(index)})" for name, index in zip(classes, chosen, strict=True)]
        ax.set_yticks([i * step + x.shape[2] / 2 for i in range(len(classes))], names)
        ax.set_xticks([])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(left=False)
        ax.set_title(f"The first {per_class} images of each class; n: images of the class in the set")
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
    return tile_figure(
        [row + [None] * (longest - len(row)) for row in rows],
        row_titles=[kind.replace(" ", "\n", 1) for kind in versions],
        title=f"The same RMS looks different for each kind of distortion (above each image: RMS, {unit(pixel_max)})",
        margin=1.35,
    )


def attack_grid(
    x: Values,
    adversarial: Mapping[str, Values],
    *,
    before: Values,
    after: Mapping[str, Values],
    classes: Sequence[str],
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
        (N,) the model's label of each original.
    after
        Name of the examples -> (N,) the model's label of each result.
    classes
        The L names.
    pixel_max
        The RMS above each image is in units of [0, pixel_max].
    magnify
        If given, a second row below each image shows this multiple of the difference, clipped to [-1, 1].

    Raises
    ------
    ValueError
        For shapes that do not agree, or examples without labels.
    """
    originals = arrays.images(x, name="x")
    arrays.not_empty(adversarial, name="adversarial")
    first = arrays.labels(before, name="before", shape=(len(originals),), classes=classes)
    results = _results(originals, adversarial, after, classes)
    rows: list[list[Tile | None]] = []
    titles = []
    for i, (original, label) in enumerate(zip(originals, first, strict=True)):
        row: list[Tile | None] = [Tile(as_picture(original), f"{classes[label]}\noriginal")]
        differences: list[Tile | None] = [None]
        for x_adv, found in results.values():
            value = float(arrays.rms(x_adv[i], original)) * pixel_max
            row.append(_result_tile(x_adv[i], classes[found[i]], f"\nRMS {value:.3g}", changed=bool(found[i] != label)))
            differences.append(difference_tile(original, x_adv[i], magnify or 1.0))
        rows.append(row)
        titles.append(f"image {i + 1}")
        if magnify is not None:
            checks.number(magnify, name="magnify", open_low=True)
            rows.append(differences)
            titles.append(f"difference\nx {magnify:g}")
    return tile_figure(
        rows,
        row_titles=titles,
        column_titles=["benign", *(name.replace("-", "-\n") for name in results)],
        title=f"n={len(originals)}; above each image: the model's label (grey: unchanged)\n"
        f"and the RMS ({unit(pixel_max)})",
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
    originals = arrays.images(x, name="x")
    arrays.not_empty(variants, name="variants")
    first = arrays.labels(before, name="before", shape=(len(originals),), classes=classes)
    checks.count(shown, name="shown")
    checks.number(magnify, name="magnify", open_low=True)
    results = _results(originals, variants, after, classes)
    some = range(min(shown, len(originals)))
    rows: list[list[Tile | None]] = [
        [*(Tile(as_picture(originals[i]), classes[first[i]]) for i in some), *([None] * len(some))]
    ]
    titles = ["original"]
    for name, (x_adv, found) in results.items():
        images = [_result_tile(x_adv[i], classes[found[i]], "", changed=bool(found[i] != first[i])) for i in some]
        rows.append([*images, *(difference_tile(originals[i], x_adv[i], magnify) for i in some)])
        mean = intervals.mean(arrays.rms(x_adv, originals) * pixel_max, bounds=(0, pixel_max))
        lines = [name, f"mean RMS {mean.value:.3g}", f"[{mean.low:.3g}, {mean.high:.3g}], n={mean.n}"]
        if region_accuracy is not None and name in region_accuracy:
            rate = region_accuracy[name]
            lines += ["region accuracy", f"{percent(rate)}, n={rate.n}"]
        titles.append("\n".join(lines))
    colours = " (red: brighter)" if originals.shape[1] == 1 else ""
    return tile_figure(
        rows,
        row_titles=titles,
        title=f"Above each image: the model's label (grey: unchanged); right: the difference x {magnify:g}{colours}\n"
        f"RMS ({unit(pixel_max)}) and accuracy with 95 % intervals",
        margin=1.75,
        gap_before=[len(some)],
    )


def _results(
    x: Floats, adversarial: Mapping[str, Values], after: Mapping[str, Values], classes: Sequence[str]
) -> dict[str, tuple[Floats, Integers]]:
    """Return the images and labels of each kind of example, in the suite's order, checked against `x`."""
    missing = [name for name in adversarial if name not in after]
    if missing:
        raise ValueError(f"expected labels in after for every attack; missing: {', '.join(missing)}")
    return {
        name: (
            arrays.images(adversarial[name], name=f"images of {name}", shape=x.shape),
            arrays.labels(after[name], name=f"after[{name!r}]", shape=(len(x),), classes=classes),
        )
        for name in in_order(adversarial)
    }


def _result_tile(image: Floats, label: str, more: str, *, changed: bool) -> Tile:
    return Tile(as_picture(image), f"\N{RIGHTWARDS ARROW} {label}{more}", EXAMPLES["benign"] if changed else "0.5")
