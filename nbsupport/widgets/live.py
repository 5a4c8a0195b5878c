"""What a model says of a stored image while one looks on: the plane through it, and any image on the attack's way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from nbsupport import boundary, checks, files, region, runtime, suite
from nbsupport.boundary import Profile, Slice
from nbsupport.plots import Version
from nbsupport.presets import Settings
from nbsupport.store import Run
from nbsupport.widgets.stored import counted

RAYS = 32  # of the run's directions, evenly chosen
THIRDS = {
    "view": "a view of OPTMARGIN, nearest to the true class",
    "gradient": "the gradient, steepest way out of the class",
    "random": "a random direction",
}  # what spans a slice beside the attack's change
_CHUNK = 8  # rays between two looks at whether to go on
_OF_RAYS = ("distance", "adjacent", "reached")  # what a profile says of each ray


@dataclass(frozen=True, eq=False)
class Live:
    """What is known so far of one image between two others.

    Attributes
    ----------
    share : float
        How far it lies from the original (0) to the adversarial image (1).
    rms : float
        Its distance from the original, [0, 1] units.
    logits : Tensor (L,)
        The model's.
    directions : Tensor (R,) int64
        Which of the run's directions have been probed so far.
    version : Version
        The image clip(x + share * (x_adv - x)), its label, vote and rays as far as they are known.
    done, total : int
        Parts of the computation.
    """

    share: float
    rms: float
    logits: Tensor
    directions: Tensor
    version: Version
    done: int
    total: int

    @property
    def complete(self) -> bool:
        """Whether nothing is left to compute."""
        return self.done == self.total


def look_between(
    s: Settings, model: nn.Module, x: Tensor, x_adv: Tensor, share: float, *, rays: int = RAYS
) -> Iterator[Live]:
    """Yield what is known of the image at `share` of the way from `x` to `x_adv`, after every part of the work.

    The first comes after a single forward pass, the second with the vote, the others with more and more rays. Vote and
    rays use the run's own random points and directions: at shares 0 and 1 they repeat what the run has stored.

    Parameters
    ----------
    s : Settings
        Of the run.
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x, x_adv : Tensor (C, H, W) float32
        In [0, 1].
    share : float
        0 is `x`, 1 is `x_adv`; may lie beyond.
    rays : int
        Directions to probe, at least 1; all of the run's where there are no more.

    Raises
    ------
    ValueError
        For images of different shape or out of range, a `share` that is not finite, `rays` below 1.
    """
    checks.images(torch.stack((x, x_adv)))
    checks.number(share, name="share", low=-float(10**6), high=float(10**6))
    checks.count(rays, name="rays")
    image = x_adv if share == 1 else (x + share * (x_adv - x)).clamp(0, 1)  # exactly the adversarial image at its end
    with runtime.frozen(model), torch.no_grad():
        batch = image[None].to(runtime.device_of(model, image))
        logits = model(runtime.laid_out(model, batch))[0].cpu()
    every = suite.directions(s, tuple(x.shape))
    chosen = torch.linspace(0, len(every) - 1, min(rays, len(every))).round().long()
    parts = chosen.split(_CHUNK)
    rms, version = float((image - x).square().mean().sqrt()), Version(image, label=int(logits.argmax()))
    live = Live(share, rms, logits, chosen[:0], version, done=1, total=2 + len(parts))
    yield live
    generator = runtime.seeded(s.seed, "region")  # as notebook 4 draws them
    vote = region.classify(model, image[None], radius=s.radius, samples=s.samples, generator=generator)
    version = replace(version, **counted(vote.to("cpu")))
    yield replace(live, version=version, done=2)
    found: list[Profile] = []
    for part in parts:
        found.append(boundary.probe(model, image[None], every[part], s.magnitudes).to("cpu"))
        rays_of = {name: torch.cat([getattr(each, name) for each in found], 1) for name in _OF_RAYS}
        version = replace(version, profile=Profile(center=found[0].center, **rays_of))
        yield replace(live, directions=chosen[: len(found) * _CHUNK], version=version, done=2 + len(found))


def save_live(run: Run, model: str, attack: str, index: int, live: Live) -> Path:
    """Store a complete `live` as live/<model>/<attack>-<index>-<share>.safetensors in the run folder; return its path.

    Raises ValueError where it is not complete.
    """
    seen = live.version
    if not live.complete or seen.counts is None or seen.profile is None:
        raise ValueError(f"expected a complete look, got {live.done} of {live.total} parts; let it finish")
    tensors = {"image": seen.image, "logits": live.logits, "directions": live.directions, "counts": seen.counts}
    tensors |= {"rms": torch.tensor(live.rms), "index": torch.tensor(index), **seen.profile.tensors()}
    path = run.path("live", model, f"{attack}-{index}-{live.share:.4f}.safetensors")
    files.save_tensors(path, tensors, share=repr(live.share))
    return path


@dataclass(frozen=True, eq=False)
class ViewSlice:
    """A slice through one image and its adversarial version, with OPTMARGIN's views around the latter.

    Attributes
    ----------
    slice : Slice
        The classes in the plane; `points` holds "benign" and, where it differs, the attack's name.
    views : Tensor (V, 2) float64
        Where the views lie when they are projected onto the plane. Nearly all of a view points out of the plane.
    labels : Tensor (V,) int64
        The model's class at each view itself, clipped to [0, 1]; the last one is the adversarial image.
    """

    slice: Slice
    views: Tensor
    labels: Tensor


def slice_with_views(
    s: Settings, model: nn.Module, x: Tensor, x_adv: Tensor, y: int, name: str, *, third: str = "random", size: int = 49
) -> ViewSlice:
    """Return the plane through an image `x` and its adversarial version `x_adv` (C, H, W), with OPTMARGIN's views.

    Parameters
    ----------
    s : Settings
        Of the run.
    model : Module
        The model that was attacked; maps images in [0, 1] to logits (N, L).
    x, x_adv : Tensor (C, H, W) float32
        In [0, 1].
    y : int
        The true class.
    name : str
        Of the attack. The views are those that an OPTMARGIN attack of the run used; other attacks use none, and get
        OPTMARGIN's.
    third : {"random", "gradient", "view"}
        What spans the plane beside the attack's change: as in `boundary.plane`, or the view that comes nearest to the
        true class (by the margin of its logits).
    size : int
        Places along each side.

    Raises
    ------
    ValueError
        For an unknown `third`, and as `boundary.plane`.
    """
    checks.choice(third, THIRDS, name="third")
    offsets = suite.view_offsets(s, name if name in suite.OPTMARGINS else suite.OPTMARGINS[0], tuple(x.shape))
    with runtime.frozen(model), torch.no_grad():
        batch = (x_adv + offsets).clamp(0, 1).to(runtime.device_of(model, x))
        z = model(runtime.laid_out(model, batch)).cpu()  # (V, L)
    checks.logits(z, count=len(offsets))
    flat = offsets.flatten(1)
    way: str | Tensor = third
    if third == "view":
        margin = (z[:, y] - z.index_fill(1, torch.tensor([y]), -torch.inf).amax(1))[:-1]  # the last view is zero
        way = flat[margin.argmax()] if len(margin) else "random"
    seen = suite.plane(s, model, x, x_adv, name, third=way, size=size)
    around = list(seen.points.values())[-1].double()  # the adversarial image
    basis = torch.stack((seen.u, seen.v)).double()
    return ViewSlice(seen, around + flat.double() @ basis.T / x.numel(), z.argmax(1))
