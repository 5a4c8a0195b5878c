"""The figures of one image: its rays, all that is known of it and of its attacked version, and its rays while found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from nbsupport import checks
from nbsupport.boundary import Profile
from nbsupport.plots import arrays, style
from nbsupport.plots.arrays import Floats, Values
from nbsupport.plots.images import as_picture, difference_tile

_CLASSES = 12  # shown in the vote, at most
_BAR = 0.36
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


def instance_boundary(
    instances: Mapping[str, Profile],
    *,
    classes: Sequence[str],
    radius: float,
    last: float,
    clipped_rms: Mapping[str, float] | None = None,
    pixel_max: float = 1.0,
) -> Figure:
    """Return one image's rays sorted by distance, coloured by adjacent class, its versions side by side.

    The black line is at radius / sqrt(3), the expected RMS of a sample of region classification before clipping.
    Rays that meet no boundary stand as crosses at the last magnitude.

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
    scale = _Scale(classes, radius, last, pixel_max)
    with style.house_style():
        fig, axes = style.panels(instances, 4.6, sharey=True)
        for ax, (title, profile) in zip(axes, instances.items(), strict=True):
            _rays(ax, profile, title, scale)
            says = f"the model says {classes[int(profile.center[0])]}"
            ax.set_title(f"{title}:\n{says}" if len(instances) > 2 else f"{title}: {says}")  # narrow panels
            if clipped_rms is not None and title in clipped_rms:
                after = f"clipped region sample: RMS {clipped_rms[title] * pixel_max:.3g}"
                ax.set_xlabel(f"{ax.get_xlabel()}\n{after}")
        axes[0].set_ylabel(scale.distance)
        _rays_legend(axes, loc="outside lower center", ncols=int(fig.get_size_inches()[0] / 1.5))
    return fig


def instance_panels(
    original: Version,
    adversarial: Version,
    *,
    name: str,
    title: str,
    classes: Sequence[str],
    radius: float,
    last: float,
    threshold: float = 0.5,
    band: Values | None = None,
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
    scale = _Scale(classes, radius, last, pixel_max)
    checks.number(threshold, name="threshold", high=1.0)
    versions = {"benign": original, name: adversarial}
    counts, profiles, purities, scores = (_known(versions, what) for what in ("counts", "profile", "purity", "score"))
    title, note = style.broken(title, style.WIDTH, 12), style.broken(_note(versions, absent or {}), style.WIDTH, 12.5)
    # Inches from the upper edge. The places are fixed: solving a layout takes a fifth of a redraw.
    first = 0.72 + 0.17 * (title.count("\n") + 1)
    end = first + (1.8 if counts else 1.55)
    rays = end + 0.3
    if profiles:
        seen = {label for profile in profiles.values() for label in profile.adjacent.unique().tolist()}
        legend = rays + 2.5
        end = legend + 0.4 + 0.19 * -(-(len(seen) + 1) // _COLUMNS)
    last_row = end + 0.6
    below: list[tuple[float, Mapping[str, Any], Callable[[Axes], None]]] = [
        (3.35, profiles, lambda ax: _sorted(ax, profiles, band, scale)),
        (1.7, purities, lambda ax: _purity(ax, purities)),
        (1.6, scores, lambda ax: _score(ax, scores, threshold)),
    ]
    if profiles or purities or scores:
        end = last_row + 1.95
    height = end + 0.17 * len(note.split("\n")) + 0.1 if note else end
    with style.house_style(), matplotlib.rc_context({"axes.titley": 1.0}):
        fig = style.figure(height, layout="none")
        fig.text(0.015, 1 - 0.1 / height, title, va="top", fontsize=10.5)
        fig.text(0.015, 0.08 / height, note, va="bottom", color="0.3")
        _images(fig, first, versions, scale)
        if counts:
            _votes(_axes(fig, 5.4, first + 0.1, 3.4, 1.25), counts, versions, classes)
        width = 8.0 / max(1, len(profiles)) - 0.1
        drawn = [_axes(fig, 0.85 + i * (width + 0.2), rays, width - 0.05, 1.9) for i in range(len(profiles))]
        for ax, (version, profile) in zip(drawn, profiles.items(), strict=True):
            _rays(ax, profile, version, scale)
            ax.set_title(f"rays, {version}")
        for ax in drawn[1:]:
            ax.tick_params(labelleft=False)
        if drawn:
            drawn[0].set_ylabel(scale.distance)
            _rays_legend(drawn, loc="upper center", bbox_to_anchor=(0.5, 1 - legend / height), ncols=_COLUMNS)
        left = 0.85
        for width, known, draw in below:
            if known:
                draw(_axes(fig, left, last_row, width, 1.3))
                left += width + 0.6
    return fig


def live_panels(
    version: Version,
    logits: Values,
    *,
    title: str,
    classes: Sequence[str],
    radius: float,
    last: float,
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
    pixel_max
        Lengths are drawn in units of [0, pixel_max].

    Raises
    ------
    ValueError
        For shapes that do not agree, or `radius` or `last` not above 0.
    """
    scale = _Scale(classes, radius, last, pixel_max)
    shown = arrays.images(version.image, name="image", shape=("C", "H", "W"))
    z = arrays.floats(logits, name="logits", shape=(len(classes),))
    softmax = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    likely = np.argsort(-softmax, kind="stable")[:2]
    versions = {"live": version}
    with style.house_style(), matplotlib.rc_context({"axes.titley": 1.0}):
        fig = style.figure(3.4, layout="none")
        _picture(_axes(fig, 0.15, 0.6, 1.6, 1.6), as_picture(shown), title)
        fig.axes[0].set_xlabel("\n".join(f"{_short(classes[i])}: {100 * softmax[i]:.1f} %" for i in likely))
        # Places are kept for what is still to come, so that nothing jumps.
        votes, rays = _axes(fig, 2.35, 0.85, 2.4, 1.35), _axes(fig, 6.15, 0.6, 2.7, 1.6)
        if version.counts is None:
            _wait(votes, "vote", "not counted yet")
        else:
            _votes(votes, _known(versions, "counts"), versions, classes)
        if version.profile is None or not version.profile.distance.numel():
            _wait(rays, "rays", "no ray yet")
        else:
            _rays(rays, version.profile, "live", scale)
            rays.set(title="rays", ylabel=scale.distance)
            _rays_legend([rays], loc="lower right", ncols=_COLUMNS)
    return fig


@dataclass(frozen=True)
class _Scale:
    """What the rays of an image are drawn against: the parameters of these names of `instance_boundary`."""

    classes: Sequence[str]
    radius: float
    last: float
    pixel_max: float

    def __post_init__(self) -> None:
        checks.number(self.radius, name="radius", open_low=True)
        checks.number(self.last, name="last", open_low=True)

    @property
    def distance(self) -> str:
        """What the axis of distances shows."""
        return f"distance\n(RMS, {style.unit(self.pixel_max)})"


def _rays(ax: Axes, profile: Profile, name: str, scale: _Scale) -> None:
    """Draw one image's rays into `ax`, sorted by distance; `name` names the profile in errors."""
    classes, end = scale.classes, scale.last * scale.pixel_max
    distance = arrays.floats(profile.distance, name=f"distance of {name}", shape=(1, "K"))[0]
    shape = (1, len(distance))
    adjacent = arrays.labels(profile.adjacent, name=f"adjacent of {name}", shape=shape, classes=classes, low=-1)[0]
    arrays.labels(profile.center, name=f"center of {name}", shape=(1,), classes=classes)
    order = np.argsort(distance, kind="stable")
    distance, adjacent = distance[order], adjacent[order]
    rank = np.arange(1, len(order) + 1)
    reached = np.isfinite(distance)
    many = len(order) > 300
    look: dict[str, Any] = {"linestyle": "none", "markersize": 3.5 if many else 5.0, "markeredgecolor": style.BLACK}
    look["markeredgewidth"] = 0.0 if many else 0.3
    colours = style.class_colours(len(classes))
    for label in np.unique(adjacent[reached]):
        those = reached & (adjacent == label)
        look |= {"marker": style.MARKERS[label % len(style.MARKERS)], "color": colours[label]}
        ax.plot(rank[those], distance[those] * scale.pixel_max, label=classes[label], gid=f"{label:09}", **look)
    if not reached.all():
        cross: dict[str, Any] = {"linestyle": "none", "marker": "x", "color": style.GREY, "markersize": 4.5}
        ax.plot(rank[~reached], np.full((~reached).sum(), end), label=f"none within {end:.4g}", gid="none", **cross)
    line = scale.radius / np.sqrt(3) * scale.pixel_max
    label = f"radius {scale.radius * scale.pixel_max:.3g} / sqrt(3) = {line:.3g}"
    ax.axhline(line, color="black", linewidth=1.5, zorder=3, label=label, gid="radius")
    ax.set(ylim=(0, 1.05 * end), xlim=(1 - 0.02 * len(order), 1.02 * len(order)))
    ax.set_xlabel(f"rank of the ray (1: the nearest)\n{reached.sum()} of {len(order)} reach a boundary")


def _rays_legend(axes: Sequence[Axes], **place: Any) -> None:
    """Put one legend of the rays in all `axes` into their figure: classes in order, crosses, line."""
    handles = {str(line.get_gid()): line for ax in axes for line in ax.lines}
    look: dict[str, Any] = {"frameon": False, "markerscale": 1.2, "columnspacing": 1.2, "handletextpad": 0.4, **place}
    found = [handles[key] for key in sorted(handles)]
    axes[0].figure.legend(handles=found, title="class beyond the boundary", **look)


def _known(versions: Mapping[str, Version], what: str) -> dict[str, Any]:
    """Return the attribute `what` of the versions that have it."""
    return {name: getattr(version, what) for name, version in versions.items() if getattr(version, what) is not None}


def _note(versions: Mapping[str, Version], absent: Mapping[str, str]) -> str:
    """Return what is not known of the versions and why; empty where nothing is missing."""
    votes = absent.get("votes", "no vote on this image")
    rays = absent.get("profiles", "this image was not probed")
    score = absent.get("detectors", "no score of this image")
    kinds = {
        "counts": ("votes", votes),
        "profile": ("rays", rays),
        "purity": ("purity", rays),
        "score": ("detector score", score),
    }
    missing: dict[str, list[str]] = {}
    for what, (words, why) in kinds.items():
        known = _known(versions, what)
        lacking = [name for name in versions if name not in known]
        if lacking:
            missing.setdefault(why, []).append(f"{words} of {lacking[0]}" if known else words)
    shown = "; ".join(f"{', '.join(words)} ({why})" for why, words in missing.items())
    return f"Not shown: {shown}" if missing else ""


def _axes(fig: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return a panel at a place in inches from the upper left corner."""
    across, up = fig.get_size_inches()
    return fig.add_axes((left / across, 1 - (top + height) / up, width / across, height / up))


def _picture(ax: Axes, picture: Floats, title: str, colours: str = "gray") -> None:
    ax.imshow(picture, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=9.5)


def _images(fig: Figure, top: float, versions: Mapping[str, Version], scale: _Scale) -> None:
    """Draw both versions and their difference."""
    shape: Sequence[int | str] = ("C", "H", "W")
    pictures: list[Floats] = []
    for i, (name, version) in enumerate(versions.items()):
        pictures.append(arrays.images(version.image, name=f"the image of {name}", shape=shape))
        shape = pictures[0].shape
        says = "" if version.label is None else f"\nsays {_short(scale.classes[version.label])}"
        _picture(_axes(fig, 0.15 + 1.6 * i, top, 1.45, 1.45), as_picture(pictures[-1]), f"{name}{says}")
    x, x_adv = pictures
    magnify = _magnification(float(np.abs(x_adv - x).max()))
    caption = f"difference x {magnify:g}\nRMS {float(arrays.rms(x_adv, x)) * scale.pixel_max:.4g}"
    _picture(_axes(fig, 3.35, top, 1.45, 1.45), difference_tile(x, x_adv, magnify).picture, caption, "RdBu_r")


def _magnification(largest: float) -> float:
    """Return the largest of 1, 2, 5, 10, ... that keeps a change of `largest` in the scale; 1 where nothing changed."""
    steps = [m * 10.0**e for e in range(4) for m in (1, 2, 5)]
    return max((step for step in steps if 0 < step * largest <= 1), default=1.0)


def _votes(ax: Axes, counts: Mapping[str, Tensor], versions: Mapping[str, Version], classes: Sequence[str]) -> None:
    """Draw each class's share of the votes, with the interval of the winner."""
    votes = {name: arrays.floats(n, name=f"counts of {name}", shape=(len(classes),)) for name, n in counts.items()}
    total = np.sum([n / n.sum() for n in votes.values()], axis=0)
    shown = np.sort(np.argsort(-total, kind="stable")[:_CLASSES])
    for i, (name, n) in enumerate(votes.items()):
        place = np.arange(len(shown)) + _BAR * (i - (len(votes) - 1) / 2)
        share = n / n.sum()
        ax.bar(place, share[shown], _BAR, label=f"{name}, n={n.sum():.0f}", **_bar(name))
        interval = versions[name].share
        if interval is not None:
            winner = place[shown == n.argmax()]
            error = np.clip([[share.max() - interval[0]], [interval[1] - share.max()]], 0, None)
            ax.errorbar(winner, share.max(), error, fmt="none", color=style.VERMILLION, capsize=3, linewidth=1.5)
    names = [_short(classes[label]) for label in shown]
    slanted: dict[str, Any] = {"rotation": 35, "ha": "right"} if max(map(len, names)) > 3 else {}
    ax.set_xticks(range(len(shown)), names, **slanted)
    ax.grid(axis="x", visible=False)
    ax.set_ylim(0, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_title("share of the votes, interval of the winner", loc="left", pad=22)
    ax.legend(**_ABOVE)


def _sorted(ax: Axes, profiles: Mapping[str, Profile], band: Values | None, scale: _Scale) -> None:
    """Draw each version's sorted distances, over the `band`; rays that meet no boundary count as `last` long."""
    handles: list[Line2D | Patch] = []
    for name, profile in profiles.items():
        curve = np.minimum(np.sort(profile.distance[0].detach().cpu()), scale.last) * scale.pixel_max
        rank = np.arange(1, len(curve) + 1)
        dashes: Any = "-" if name == "benign" else (0, (5, 1.5))
        handles += ax.plot(rank, curve, label=name, color=style.examples_colour(name), linestyle=dashes)
    if band is not None:
        quantiles = arrays.floats(band, name="band", shape=(3, len(rank)))
        low, middle, high = np.minimum(quantiles, scale.last) * scale.pixel_max
        ax.fill_between(rank, low, high, color="0.86", linewidth=0, zorder=1)
        handles.append(Patch(facecolor="0.86", label="10-90 % of benign"))
        handles += ax.plot(rank, middle, color=style.GREY, linestyle=":", zorder=1.5, label="their median")
    ax.margins(x=0.01)
    ax.set(ylim=(0, 1.05 * scale.last * scale.pixel_max), xlabel="rank of the ray", ylabel=scale.distance)
    ax.set_title("sorted distances", loc="left", pad=34)
    ax.legend(handles=handles, **_ABOVE)


def _purity(ax: Axes, purities: Mapping[str, Tensor]) -> None:
    """Draw each version's purity of the top classes."""
    for i, (name, purity) in enumerate(purities.items()):
        values = arrays.floats(purity, name=f"purity of {name}", shape=("top",))
        place = np.arange(len(values))
        ax.bar(place + _BAR * (i - (len(purities) - 1) / 2), values, _BAR, **_bar(name))
    ax.set_xticks(place, [f"top {j + 1}" for j in place])
    ax.grid(axis="x", visible=False)
    ax.set(ylim=(0, 1.03), title="purity")


def _score(ax: Axes, scores: Mapping[str, float], threshold: float) -> None:
    """Draw each version's detector score against the threshold."""
    for i, (name, score) in enumerate(scores.items()):
        dot = style.examples_style(name) | {"linestyle": "none", "markersize": 8}
        ax.plot([score], [len(scores) - i], clip_on=False, zorder=3, **dot)
    ax.axvline(threshold, color="black", linestyle="--", linewidth=1.2)
    ax.set(xlim=(0, 1), ylim=(0.4, len(scores) + 0.6), yticks=[], xlabel=f"score; adversarial\nfrom {threshold:g} on")
    words = [f"{'benign' if name == 'benign' else 'attacked'} {score:.2f}" for name, score in scores.items()]
    ax.set_title("detector\n" + ", ".join(words))


def _wait(ax: Axes, title: str, text: str) -> None:
    """Leave `ax` empty but for `text`."""
    ax.set(title=title, xticks=[], yticks=[])
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.3")


def _short(name: str) -> str:
    return name if len(name) <= 10 else f"{name[:9]}."


def _bar(name: str) -> dict[str, Any]:
    colour = style.examples_colour(name)
    return {"facecolor": "white" if name == "benign" else colour, "edgecolor": colour, "linewidth": 1.1}
