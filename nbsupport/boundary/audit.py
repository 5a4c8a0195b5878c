"""A profile checked against the definition: some of its rays visited in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.boundary.probe import March, Rays, grid
from nbsupport.boundary.profile import Profile, check_probed
from nbsupport.labels import Labeller
from nbsupport.pool import drain
from nbsupport.record import Record


@dataclass(frozen=True, eq=False)
class Audit(Record):
    """R rays of a profile, visited magnitude by magnitude.

    Attributes
    ----------
    image, direction : Tensor (R,) int64
        Which rays these are, each at most once.
    distance : Tensor (R,), dtype of the magnitudes
        The first magnitude at which the class differs from the image's, [0, 1] units; inf where it never does.
    adjacent : Tensor (R,) int64
        Class found there, -1 where it never differs.
    differs : Tensor (R,) bool
        Whether the profile states another distance or another class.
    """

    image: Tensor
    direction: Tensor
    distance: Tensor
    adjacent: Tensor
    differs: Tensor


def audit(
    model: nn.Module,
    x: Tensor,
    directions: Tensor,
    magnitudes: Tensor | Sequence[float],
    profile: Profile,
    *,
    rays: int = 512,
    generator: torch.Generator | None = None,
    precision: str = "float32",
) -> Audit:
    """Return what a full scan finds along a random sample of the rays of `profile`.

    "bracket" misses a class that is entered and left within one stride; the share of `differs` says how often that
    happened. "scan" must agree with every ray, up to rounding where a magnitude lies on the boundary.

    Parameters
    ----------
    model, x, directions, magnitudes
        As given to `probe`.
    profile : Profile
        What `probe` found there by "bracket" or "scan"; its `center` is taken for the class of each image.
    rays : int
        Number of rays drawn, without replacement; all where there are fewer.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one.
    precision : {"float32", "mixed"}
        As in `probe`.

    Returns
    -------
    Audit
        On the model's device; R is `rays` or, where there are fewer, N*K.

    Raises
    ------
    ValueError
        As `probe`, for a profile of another number of images or directions, and for `rays` below 1.
    """
    check_probed(x, directions, profile, precision)
    checks.count(rays, name="rays")
    device = runtime.device_of(model, x)
    positions = grid(magnitudes).to(device)
    chosen = torch.randperm(profile.distance.numel(), generator=generator)[:rays].to(device)
    with runtime.frozen(model):
        label = Labeller(model, x, directions, precision=precision, reach=float(positions[-1]))
        sample = Rays(label, len(directions), profile.center.to(device), chosen)
        scan = March(sample, positions, stride=1)
        drain(scan, sample.count, slots=sample.slots, every=1, device=device)
    image, direction = chosen // len(directions), chosen % len(directions)
    distance = scan.values[scan.high]
    stated = profile.distance.to(device, distance.dtype)[image, direction]
    differs = (stated != distance) | (profile.adjacent.to(device)[image, direction] != scan.adjacent)
    return Audit(image, direction, distance, scan.adjacent, differs)
