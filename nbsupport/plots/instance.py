"""The figures of one image: its rays, all that is known of it and of its attacked version, and its rays while found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from nbsupport import checks
from nbsupport.boundary import Profile
from nbsupport.plots import arrays, style
from nbsupport.plots.arrays import Floats, Names, Values
from nbsupport.plots.images import Tile, as_picture, difference_tile, magnification

_CLASSES = 12  # shown in the vote, at most
_COLUMNS = 6  # of the legend of the rays
_ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 0.98), "frameon": False, "borderaxespad": 0.0}
_ABOVE |= {"ncols": 2, "columnspacing": 1.0, "handlelength": 1.4, "handletextpad": 0.5}


@dataclass(frozen=True, eq=False)
class Version:
    """One version of an image, with what is known of it; None is not known, such as not stored by a run.

    Attributes
    ----------
    image : Tensor (C, H, W)
        In [0, 1].
    label : int or None
        The model's class.
    counts : Tensor (L,) int64 or None
        Votes of each class.
    vote : int or None
        The class that won the vote.
    share : (float, float) or None
        Clopper-Pearson interval of the winner's share of the votes.
    profile : Profile or None
        The rays of this one image.
    purity : Tensor (top,) or None
        Of the rays.
    score : float or None
        The detector's, a probability of being adversarial.
    """

    image: Tensor
    label: int | None = None
    counts: Tensor | None = None
    vote: int | None = None
    share: tuple[float, float] | None = None
    profile: Profile | None = None
    purity: Tensor | None = None
    score: float | None = None


@style.house_style()
def instance_boundary(
    instances: Mapping[str, Profile],
    *,
    classes: Names,
    radius: float,
    last: float,
    images: Mapping[str, Values] | None = None,
    true: int | None = None,
    index: int | None = None,
    clipped_rms: Mapping[str, float] | None = None,
    pixel_max: float = 1.0,
) -> Figure:
    """Return one image's rays sorted by distance, a bar each in the colour of its class, its versions side by side.

    The black line is at radius / sqrt(3), the expected RMS of a sample of region classification before clipping.
    Rays that meet no boundary are pale bars up to the last magnitude.

    Parameters
    ----------
    instances
        Title (usually the name of the examples) -> profile of one image.
    classes
        The L names.
    radius
        Half-width of the hypercube, in [0, 1] units.
    last
        The last magnitude searched, in [0, 1] units.
    images
        Title -> (C, H, W) in [0, 1], drawn beside the rays.
    true
        The image's class, whose rays are black.
    index
        Which test image it is, for the title.
    clipped_rms
        Title -> mean RMS of the region samples after clipping, in [0, 1] units, for the caption.
    pixel_max
        The axes are in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For no instance, a profile of more than one image, or `radius` or `last` not above 0.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018.
    """
    arrays.not_empty(instances, name="instances")
    _check(radius, last)
    fig = style.panels(instances, 4.9, sharey=True)
    for ax, (title, profile) in zip(fig.axes, instances.items(), strict=True):
        _rays(ax, profile, title, classes, radius, last, pixel_max, true)
        says = f"the model says {classes[int(profile.center[0])]}"
        ax.set_title(f"{title}:\n{says}" if len(instances) > 2 else f"{title}: {says}")  # narrow panels
        if clipped_rms is not None and title in clipped_rms:
            after = f"clipped region sample: RMS {clipped_rms[title] * pixel_max:.3g}"
            ax.set_xlabel(f"{ax.get_xlabel()}\n{after}")
        if images is not None:
            beside = ax.inset_axes((0.03, 0.62, 0.3, 0.35))
            _picture(beside, Tile(as_picture(arrays.images(images[title], name=title, shape=("C", "H", "W")))))
    fig.axes[0].set_ylabel(_distance(pixel_max))
    _rays_legend(fig, fig.axes, loc="outside lower center", ncols=int(fig.get_size_inches()[0] / 1.5))
    which = "one image" if index is None else f"test image {index}"
    which += "" if true is None else f" of class {classes[true]} (black)"
    return style.headline(fig, f"Which class lies how far away in each direction? A bar a ray, {which}")


@style.house_style()
def instance_panels(
    original: Version,
    adversarial: Version,
    *,
    name: str,
    title: str,
    classes: Names,
    radius: float,
    last: float,
    threshold: float | None = 0.5,
    band: Values | None = None,
    true: int | None = None,
    pixel_max: float = 1.0,
    absent: Mapping[str, str] | None = None,
) -> Figure:
    """Return an image and its adversarial version: difference, votes, rays, purity and detector score.

    The sorted distances are drawn over what is usual for benign images of the model. A panel of which nothing is known
    takes no room; a line below all panels says what is not shown, and why.

    Parameters
    ----------
    original, adversarial
        The two versions.
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
    band
        (3, K) the 10, 50 and 90 % quantiles over benign images at each rank of the sorted distances, [0, 1] units.
    true
        The image's class, whose rays are black.
    pixel_max
        Lengths are drawn in units of [0, pixel_max].
    absent
        "votes", "profiles" or "detectors" -> why they are not known.

    Raises
    ------
    ValueError
        For images of different shapes, or `radius`, `last` or `threshold` out of range.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018.
    """
    _check(radius, last)
    if threshold is not None:
        checks.number(threshold, name="threshold")
    versions = {"benign": original, name: adversarial}
    counts, profiles, purities, scores = (_known(versions, what) for what in ("counts", "profile", "purity", "score"))
    title, note = style.broken(title, style.WIDTH, 12), style.broken(_note(versions, absent or {}), style.WIDTH, 12.5)
    seen = {label for profile in profiles.values() for label in profile.adjacent.unique().tolist()}
    heights = [0.15 + 0.17 * len(title.splitlines()), 2.25]
    heights += [2.7, 0.35 + 0.19 * -(-(len(seen) + 1) // _COLUMNS)] if profiles else [0, 0]
    heights += [2.55 if profiles or purities or scores else 0, 0.1 + 0.17 * len(note.splitlines())]
    # Inches, and fixed places in each row: solving a layout takes a fifth of a redraw, and would move the panels.
    fig = style.figure(sum(heights), layout="none")
    rows = fig.subfigures(6, 1, squeeze=False, height_ratios=heights)[:, 0]
    top, first, second, legend, third, bottom = rows
    top.text(0.015, 0.5, title, va="center", fontsize=10.5)
    bottom.text(0.015, 0.5, note, va="center", color="0.3")
    *pictures, votes = _row(first, (1.3, 1.3, 1.3, 3.4), left=0.015, bottom=0.25, top=0.82, wspace=0.26)
    _images(pictures, versions, classes, pixel_max)
    _votes(votes, counts, versions, classes)
    if profiles:
        rays = _row(second, [1] * len(profiles), left=0.095, bottom=0.22, top=0.9, wspace=0.03)
        for ax, (version, profile) in zip(rays, profiles.items(), strict=True):
            _rays(ax, profile, version, classes, radius, last, pixel_max, true)
            ax.set(title=f"rays, {version}", ylabel=_distance(pixel_max))
            ax.label_outer(remove_inner_ticks=True)
        _rays_legend(legend, rays, loc="center", ncols=_COLUMNS)
    numbers = _row(third, (3.35, 1.7, 1.7), left=0.095, right=0.955, bottom=0.26, top=0.75, wspace=0.28)
    _sorted(numbers[0], profiles, band, last, pixel_max)
    _purity(numbers[1], purities)
    _score(numbers[2], scores, threshold)
    for ax, known in zip([votes, *numbers], [counts, profiles, purities, scores], strict=True):
        if not known:
            ax.remove()
    return fig


@style.house_style()
def live_panels(
    version: Version,
    logits: Values,
    *,
    title: str,
    classes: Names,
    radius: float,
    last: float,
    true: int | None = None,
    pixel_max: float = 1.0,
) -> Figure:
    """Return one image with its prediction, its vote and its rays, as far as they are known.

    Parameters
    ----------
    version
        The image, the votes counted and the rays found so far.
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
    true
        The image's class, whose rays are black.
    pixel_max
        Lengths are drawn in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For shapes that do not agree, or `radius` or `last` not above 0.
    """
    _check(radius, last)
    shown = arrays.images(version.image, name="image", shape=("C", "H", "W"))
    z = arrays.floats(logits, name="logits", shape=(len(classes),))
    likely = np.argsort(-z, kind="stable")[:2]
    fig = style.figure(3.4, layout="none")
    # Places are kept for what is still to come, so that nothing jumps.
    image, votes, rays = _row(fig, (1.6, 2.4, 2.7), left=0.015, bottom=0.35, top=0.82, wspace=0.45)
    _picture(image, Tile(as_picture(shown), title))
    image.set_xlabel("\n".join(f"{_short(classes[i])}: {100 * softmax(z)[i]:.1f} %" for i in likely))
    if version.counts is None:
        _wait(votes, "vote", "not counted yet")
    else:
        _votes(votes, {"live": version.counts}, {"live": version}, classes)
    if version.profile is None or not version.profile.distance.numel():
        _wait(rays, "rays", "no ray yet")
    else:
        _rays(rays, version.profile, "live", classes, radius, last, pixel_max, true)
        rays.set(title="rays", ylabel=_distance(pixel_max))
        _rays_legend(fig, [rays], loc="lower right", ncols=_COLUMNS)
    return fig


def _check(radius: float, last: float) -> None:
    checks.number(radius, name="radius", open_low=True)
    checks.number(last, name="last", open_low=True)


def _distance(pixel_max: float) -> str:
    return f"distance\n(RMS, {style.unit(pixel_max)})"


def _rays(
    ax: Axes,
    profile: Profile,
    name: str,
    classes: Names,
    radius: float,
    last: float,
    pixel_max: float,
    true: int | None = None,
) -> None:
    """Draw a bar for each of one image's rays into `ax`, by distance; `name` names the profile in errors."""
    line, end = radius / np.sqrt(3) * pixel_max, last * pixel_max
    distance = arrays.floats(profile.distance, name=f"distance of {name}", shape=(1, "K"))[0]
    count = len(distance)
    adjacent = arrays.labels(profile.adjacent, name=f"adjacent of {name}", shape=(1, count), classes=classes, low=-1)[0]
    arrays.labels(profile.center, name=f"center of {name}", shape=(1,), classes=classes)
    order = np.argsort(distance, kind="stable")
    height, beyond = np.minimum(distance, last)[order] * pixel_max, adjacent[order]
    colours = style.class_colours(len(classes), true)
    for label in np.unique(beyond):
        look: dict[str, Any] = {"color": "0.87", "label": f"none within {end:.4g}", "gid": "none"}
        if label >= 0:
            look = {"color": colours[label], "label": classes[label], "gid": f"{label:09}"}
        ax.stairs(np.where(beyond == label, height, 0), np.arange(count + 1) + 0.5, fill=True, **look)
    text = f"radius {radius * pixel_max:.3g} / sqrt(3) = {line:.3g}"
    rim = [patheffects.withStroke(linewidth=3, foreground="white")]
    ax.axhline(line, color="black", linewidth=1.5, zorder=3, label=text, gid="radius", path_effects=rim)
    share = f"{np.mean(distance < radius / np.sqrt(3)):.0%} end\nbelow the line"
    look = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    ax.text(0.03, 0.59, share, transform=ax.transAxes, va="top", fontsize=9, bbox=look)
    ax.set(ylim=(0, 1.05 * end), xlim=(0.5 - 0.02 * count, 0.5 + 1.02 * count))
    ax.set_xlabel(f"rank of the ray (1: the nearest)\n{np.isfinite(distance).sum()} of {count} reach a boundary")


def _rays_legend(fig: FigureBase, axes: Sequence[Axes], **place: Any) -> None:
    """Put one legend of the rays in all `axes` into `fig`: classes in order, no class, line."""
    handles: dict[str, Artist] = {str(drawn.get_gid()): drawn for ax in axes for drawn in (*ax.patches, *ax.lines)}
    look: dict[str, Any] = {"frameon": False, "columnspacing": 1.2, "handletextpad": 0.4, "handlelength": 1.3, **place}
    fig.legend(handles=[handles[key] for key in sorted(handles)], title="class beyond the boundary", **look)


def _known(versions: Mapping[str, Version], what: str) -> dict[str, Any]:
    """Return the attribute `what` of the versions that have it."""
    return {name: getattr(version, what) for name, version in versions.items() if getattr(version, what) is not None}


def _note(versions: Mapping[str, Version], absent: Mapping[str, str]) -> str:
    """Return what is not known of the versions and why; empty where nothing is missing."""
    rays = absent.get("profiles", "this image was not probed")
    reasons = {"counts": absent.get("votes", "no vote on this image"), "profile": rays, "purity": rays}
    reasons["score"] = absent.get("detectors", "no score of this image")
    words = {"counts": "votes", "profile": "rays", "purity": "purity", "score": "detector score"}
    missing: dict[str, list[str]] = {}
    for what, why in reasons.items():
        lacking = [name for name in versions if name not in _known(versions, what)]
        if lacking:
            of = "" if len(lacking) == len(versions) else f" of {lacking[0]}"
            missing.setdefault(why, []).append(words[what] + of)
    shown = "; ".join(f"{', '.join(lacks)} ({why})" for why, lacks in missing.items())
    return f"Not shown: {shown}" if missing else ""


def _row(fig: FigureBase, widths: Sequence[float], **place: float) -> list[Axes]:
    """Return panels side by side at a fixed `place`, in shares of `fig`; `wspace` is in shares of a panel."""
    panels = fig.subplots(1, len(widths), squeeze=False, width_ratios=widths, gridspec_kw={"right": 0.98, **place})
    return list(panels[0])


def _picture(ax: Axes, tile: Tile) -> None:
    tile.draw(ax)
    ax.set(xticks=[], yticks=[])
    ax.set_title(tile.caption, fontsize=9.5)


def _images(axes: Sequence[Axes], versions: Mapping[str, Version], classes: Names, pixel_max: float) -> None:
    """Draw both versions and their difference."""
    shape: Sequence[int | str] = ("C", "H", "W")
    pictures: list[Floats] = []
    for ax, (name, version) in zip(axes, versions.items(), strict=False):
        pictures.append(arrays.images(version.image, name=f"the image of {name}", shape=shape))
        shape = pictures[0].shape
        says = "" if version.label is None else f"\nsays {_short(classes[version.label])}"
        _picture(ax, Tile(as_picture(pictures[-1]), f"{name}{says}"))
    x, x_adv = pictures
    magnify = magnification(float(np.abs(x_adv - x).max()))
    caption = f"difference x {magnify:g}\nRMS {float(arrays.rms(x_adv, x)) * pixel_max:.4g}"
    _picture(axes[2], difference_tile(x, x_adv, magnify, caption))


def _votes(ax: Axes, counts: Mapping[str, Tensor], versions: Mapping[str, Version], classes: Names) -> None:
    """Draw each class's share of the votes, with the interval of the winner."""
    votes = {name: arrays.floats(n, name=f"counts of {name}", shape=(len(classes),)) for name, n in counts.items()}
    total = sum((n / n.sum() for n in votes.values()), np.zeros(len(classes)))
    shown = np.sort(np.argsort(-total, kind="stable")[:_CLASSES])
    for i, (name, n) in enumerate(votes.items()):
        share, interval = n / n.sum(), versions[name].share
        place = _bars(ax, name, share[shown], i - (len(votes) - 1) / 2, label=f"{name}, n={n.sum():.0f}")
        if interval is not None:
            error = style.whiskers(share.max(), *interval)[:, None]
            look: dict[str, Any] = {"fmt": "none", "color": style.VERMILLION, "capsize": 3, "linewidth": 1.5}
            ax.errorbar(place[shown == n.argmax()], share.max(), error, **look)
    names = [_short(classes[label]) for label in shown]
    slanted: dict[str, Any] = {"rotation": 35, "ha": "right"} if max(map(len, names)) > 3 else {}
    ax.set_xticks(range(len(shown)), names, **slanted)
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.set_title("share of the votes, interval of the winner", loc="left", pad=22)
    ax.legend(*ax.get_legend_handles_labels(), **_ABOVE)


def _bars(ax: Axes, name: str, heights: Floats, shift: float, **look: Any) -> NDArray[Any]:
    """Draw one version's bars, `shift` bars right of 0, 1, 2, ..., and return where they stand."""
    place = np.arange(len(heights)) + 0.36 * shift
    colour = style.examples_colour(name)
    fill = "white" if name == "benign" else colour
    ax.bar(place, heights, 0.36, facecolor=fill, edgecolor=colour, linewidth=1.1, **look)
    ax.grid(axis="x", visible=False)
    ax.set_ylim(0, 1.03)
    return place


def _sorted(ax: Axes, profiles: Mapping[str, Profile], band: Values | None, last: float, pixel_max: float) -> None:
    """Draw each version's sorted distances, over the `band`; rays that meet no boundary count as `last` long."""
    for name, profile in profiles.items():
        curve = np.minimum(np.sort(profile.distance[0].detach().cpu()), last) * pixel_max
        rank = np.arange(1, len(curve) + 1)
        dashes: Any = "-" if name == "benign" else (0, (5, 1.5))
        ax.plot(rank, curve, label=name, color=style.examples_colour(name), linestyle=dashes)
    if profiles and band is not None:
        quantiles = arrays.floats(band, name="band", shape=(3, len(rank)))
        low, middle, high = np.minimum(quantiles, last) * pixel_max
        ax.fill_between(rank, low, high, color="0.86", linewidth=0, zorder=1, label="10-90 % of benign")
        ax.plot(rank, middle, color=style.GREY, linestyle=":", zorder=1.5, label="their median")
    ax.margins(x=0.01)
    ax.set(ylim=(0, 1.05 * last * pixel_max), xlabel="rank of the ray", ylabel=_distance(pixel_max))
    ax.set_title("sorted distances", loc="left", pad=34)
    ax.legend(*ax.get_legend_handles_labels(), **_ABOVE)


def _purity(ax: Axes, purities: Mapping[str, Tensor]) -> None:
    """Draw each version's purity of the top classes."""
    for i, (name, purity) in enumerate(purities.items()):
        values = arrays.floats(purity, name=f"purity of {name}", shape=("top",))
        _bars(ax, name, values, i - (len(purities) - 1) / 2)
        ax.set_xticks(range(len(values)), [f"top {j + 1}" for j in range(len(values))])
    ax.set_title("purity")


def _score(ax: Axes, scores: Mapping[str, float], threshold: float | None) -> None:
    """Draw each version's detector score against the threshold, if there is one."""
    for i, (name, score) in enumerate(scores.items()):
        dot = style.examples_style(name) | {"linestyle": "none", "markersize": 8}
        ax.plot([score], [len(scores) - i], clip_on=False, zorder=3, **dot)
    label = "score"
    if threshold is not None:
        ax.axvline(threshold, color="black", linestyle="--", linewidth=1.2)
        label = f"score; adversarial\nfrom {threshold:.3g} on"
    ax.set(xlim=(0, 1), ylim=(0.4, len(scores) + 0.6), yticks=[], xlabel=label)
    words = [f"{'benign' if name == 'benign' else 'attacked'} {score:.2f}" for name, score in scores.items()]
    ax.set_title("detector\n" + ", ".join(words))


def _wait(ax: Axes, title: str, text: str) -> None:
    """Leave `ax` empty but for `text`."""
    ax.set(title=title, xticks=[], yticks=[])
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.3")


def _short(name: str) -> str:
    return name if len(name) <= 10 else f"{name[:9]}."
