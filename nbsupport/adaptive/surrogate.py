"""The rays of the detector as a function with gradients: where a ray first leaves its class, softly."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsupport.attacks.engine import margins
from nbsupport.runtime import forward

_TINY = 1e-12


@dataclass(frozen=True)
class SoftRays:
    """What a network sees of the boundary around N images along R rays, differentiable in the images.

    Attributes
    ----------
    distance : Tensor (N, R) float32
        The expected first crossing, [0, 1] units (RMS), in the order of the rays.
    shares : Tensor (N, L) float32
        The part of the crossings that belongs to each class; sums to 1.
    crossing : Tensor (N, R) float32
        Where the margin was seen to cross zero, without a gradient: between two magnitudes, by a straight line; below
        the first one or above the last one where it did not.
    """

    distance: Tensor
    shares: Tensor
    crossing: Tensor


def soft_rays(
    model: nn.Module, x: Tensor, directions: Tensor, magnitudes: Tensor, *, temperature: float, beyond: Tensor
) -> SoftRays:
    """Return the soft distances along rays: sum_m w_m t_m, w_m the probability of crossing first at magnitude t_m.

    A point at t_m is across with probability sigmoid(-margin / T). What is left after the last magnitude counts as
    `beyond`. With T -> 0 the distance is that of `boundary.probe` on the same magnitudes.

    Parameters
    ----------
    model : nn.Module
        Frozen; maps images in [0, 1] to logits.
    x : Tensor (N, C, H, W)
        Images in [0, 1]; a gradient flows to them.
    directions : Tensor (R, C*H*W)
    magnitudes : Tensor (N, R, M)
        Ascending along a ray, [0, 1] units (RMS).
    temperature : float
        T of a ray is this times the mean change of its margin from one magnitude to the next, so that scaling the
        logits changes nothing.
    beyond : Tensor (N, R)
        The distance of a ray that meets no boundary.
    """
    n, rays, count = magnitudes.shape
    step = magnitudes[..., None] * directions[None, :, None]  # (N, R, M, D)
    points = (x.flatten(1)[:, None, None] + step).clamp(0, 1)
    z = forward(model, torch.cat((x, points.view(-1, *x.shape[1:]))))
    center, z = z[:n].argmax(1), z[n:]
    own = center.repeat_interleave(rays * count)
    margin = margins(z, own, targeted=False).view(n, rays, count)
    # Two points a ray at least, or the one margin itself.
    slope = margin.detach().diff(dim=2).abs().mean(2) if count > 1 else margin.detach().abs()[..., 0]
    across = torch.sigmoid(-margin / (temperature * slope + _TINY)[..., None])
    within = torch.cat((torch.ones_like(across[..., :1]), (1 - across).cumprod(2)), 2)  # (N, R, M + 1)
    weight = across * within[..., :-1]
    distance = (weight * magnitudes).sum(2) + within[..., -1] * beyond
    rivals = z.scatter(1, own[:, None], -torch.inf).softmax(1).view(n, rays, count, -1)
    classes = (weight[..., None] * rivals).sum((1, 2))  # (N, L)
    shares = classes / classes.sum(1, keepdim=True).clamp(min=_TINY)
    return SoftRays(distance, shares, _crossings(magnitudes, margin.detach()))


def _crossings(magnitudes: Tensor, margin: Tensor) -> Tensor:
    """Return where the margins (N, R, M) first cross zero: .6 of the first magnitude, or 1.5 of the last, if outside."""
    out = margin < 0
    first = out.byte().argmax(2, keepdim=True)
    before = (first - 1).clamp(min=0)
    ends = [values.gather(2, at).squeeze(2) for values in (magnitudes, margin) for at in (before, first)]
    low, high, above, below = ends
    between = low + (high - low) * above / (above - below).clamp(min=_TINY)
    at_first = torch.where(first.squeeze(2) > 0, between, 0.6 * magnitudes[..., 0])
    return torch.where(out.any(2), at_first, 1.5 * magnitudes[..., -1])


def soft_input(rays: SoftRays, count: int, *, purities: int = 3) -> tuple[Tensor, Tensor]:
    """Return what a detector of `count` rays is given: sorted distances (N, count), from R of them, and purities.

    The sorted distances are interpolated between ranks; the purities (N, 3) are cumulative shares of the classes.
    """
    ordered = rays.distance.sort(1).values
    distance = F.interpolate(ordered[:, None], size=count, mode="linear", align_corners=False)[:, 0]
    top = rays.shares.topk(min(purities, rays.shares.shape[1]), dim=1).values.cumsum(1)
    return distance, F.pad(top, (0, purities - top.shape[1]), value=1.0)
