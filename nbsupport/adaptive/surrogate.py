"""The rays of the detector as a function with gradients: where a ray first leaves its class, softly."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsupport.labels import margins
from nbsupport.runtime import forward

_TINY = 1e-12


def soft_rays(
    model: nn.Module,
    x: Tensor,
    directions: Tensor,
    magnitudes: Tensor,
    *,
    beyond: Tensor | float,
    temperature: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Return the expected first crossing of each ray, and the classes met, differentiable in the images.

    The distance of a ray is sum_m w_m t_m, with w_m the probability that it crosses first at magnitude t_m. A point is
    across with probability sigmoid(-margin / T); what is left after the last magnitude counts as `beyond`. As T goes
    to 0 this becomes the distance of `boundary.probe` on the same magnitudes.

    Parameters
    ----------
    model : nn.Module
        Frozen; maps images in [0, 1] to logits.
    x : Tensor (N, C, H, W)
        Images in [0, 1].
    directions : Tensor (R, C*H*W)
    magnitudes : Tensor (N, R, M)
        Ascending along a ray, [0, 1] units (RMS).
    beyond : Tensor (N, R) or float
        The distance of a ray that meets no boundary.
    temperature : float
        T of a ray is this times the mean change of its margin from one magnitude to the next, so that scaling the
        logits changes nothing.

    Returns
    -------
    distance : Tensor (N, R)
        [0, 1] units (RMS).
    shares : Tensor (N, L)
        The part of an image's crossings that belongs to each class; all 0 where no ray crosses.
    """
    n, rays, count = magnitudes.shape
    center, z = _looks(model, x, directions, magnitudes)
    own = center.repeat_interleave(rays * count)
    margin = margins(z, own).view(n, rays, count)
    fixed = margin.detach()
    slope = (torch.cat((fixed[..., :1], fixed), 2) if count == 1 else fixed).diff(dim=2).abs().mean(2)
    across = torch.sigmoid(-margin / (temperature * slope[..., None]).clamp(min=_TINY))
    still = torch.cat((torch.ones_like(across[..., :1]), (1 - across).cumprod(2)), 2)  # (N, R, M + 1)
    weight = across * still[..., :-1]
    distance = (weight * magnitudes).sum(2) + still[..., -1] * beyond
    rivals = z.scatter(1, own[:, None], -torch.inf).softmax(1).view(n, rays, count, -1)
    classes = (weight[..., None] * rivals).sum((1, 2))  # (N, L)
    return distance, classes / classes.sum(1, keepdim=True).clamp(min=_TINY)


@torch.no_grad()
def intervals(model: nn.Module, x: Tensor, directions: Tensor, magnitudes: Tensor) -> Tensor:
    """Return the ends (2, N, R) of the interval of `magnitudes` (M,) in which each ray first leaves its class.

    The first interval begins at 0. Where a ray stays in its class both ends are the last magnitude.
    """
    n, rays = len(x), len(directions)
    center, z = _looks(model, x, directions, magnitudes.expand(n, rays, -1))
    out = (z.argmax(1) != center.repeat_interleave(rays * len(magnitudes))).view(n, rays, -1)
    first = torch.where(out.any(2), out.byte().argmax(2), len(magnitudes))
    ends = torch.cat((magnitudes.new_zeros(1), magnitudes, magnitudes[-1:]))
    return torch.stack((ends[first], ends[first + 1]))


def _looks(model: nn.Module, x: Tensor, directions: Tensor, magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes of the images (N,) and the logits (N * R * M, L) of all points, clipped to [0, 1]."""
    moved = x.flatten(1)[:, None, None] + magnitudes[..., None] * directions[:, None]  # (N, R, M, D)
    z = forward(model, torch.cat((x, moved.clamp(0, 1).view(-1, *x.shape[1:])))).to(x.dtype)
    return z[: len(x)].argmax(1), z[len(x) :]


def spread(distance: Tensor, count: int) -> Tensor:
    """Return the distances (N, R) of a few rays as those of `count`, (N, count): sorted, interpolated between ranks."""
    ordered = distance.sort(1).values
    return F.interpolate(ordered[:, None], size=count, mode="linear", align_corners=False)[:, 0]


def soft_purity(shares: Tensor, top: int) -> Tensor:
    """Return the purities (N, top) of classes that hold `shares` (N, L) of the boundary: the sum of the j largest."""
    largest = shares.topk(min(top, shares.shape[1]), dim=1).values.cumsum(1)
    return torch.cat((largest, largest[:, -1:].expand(-1, top - largest.shape[1])), 1)
