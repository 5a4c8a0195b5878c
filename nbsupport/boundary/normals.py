"""The unit normals of the boundary where rays cross it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.boundary.given import check_probed
from nbsupport.boundary.profile import Profile


@dataclass(frozen=True, eq=False)
class Normals:
    """How the boundary stands at the crossings of R rays.

    Attributes
    ----------
    normal : Tensor (R, C*H*W) float32
        Of unit L2 norm, pointing into the adjacent class; zero where the gradient vanishes.
    angle : Tensor (R,) float64
        Between normal and direction, in degrees: 0 where the ray crosses the boundary at a right angle, 90 where it
        grazes it; NaN where the gradient vanishes.
    """

    normal: Tensor
    angle: Tensor


def normals(
    model: nn.Module, x: Tensor, directions: Tensor, profile: Profile, *, rays: Tensor | None = None
) -> Normals:
    """Return the normals of the boundary at the crossings that `probe` found.

    The normal is the gradient of Z_adjacent - Z_center at the crossing clip(x + t d), t being the distance in the
    profile. Found by "refine" the point lies on the boundary up to the tolerance, by the other searches up to one
    step of the grid beyond it: the normal is then that of the level set through that point.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L); differentiable.
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    directions : Tensor (K, C*H*W) float32
        As given to `probe`; of any length.
    profile : Profile
        What `probe` found there.
    rays : Tensor (R, 2) int64, optional
        The rays as (image, direction), each of which meets a boundary. None: all that do, in order; the result then
        holds C*H*W numbers for each of them.

    Returns
    -------
    Normals
        On the model's device, one row a ray.

    Raises
    ------
    ValueError
        As `probe`, for a profile of another number of images or directions, for rays that do not exist or meet no
        boundary, and for logits that are not finite or of wrong shape.
    """
    check_probed(x, directions, profile)
    image, direction = _crossings(profile, rays)
    device = runtime.device_of(model, x)
    rows = runtime.rows_per_batch(model, tuple(x.shape[1:]), device)
    normal = torch.empty(len(image), directions.shape[1], device=device)
    angle = torch.empty(len(image), dtype=torch.float64, device=device)
    with runtime.frozen(model):
        for start in range(0, len(image), rows):
            part = slice(start, start + rows)
            i, k = image[part], direction[part]
            d = _taken(directions, k, device)
            step = profile.distance[i, k].to(device, torch.float32)[:, None] * d
            points = (_taken(x, i, device) + step.view(-1, *x.shape[1:])).clamp(0, 1)
            gradient = margin_gradient(model, points, profile.adjacent[i, k].to(device), profile.center[i].to(device))
            normal[part], angle[part] = _unit(gradient), _degrees(gradient, d)
    return Normals(normal, angle)


def margin_gradient(model: nn.Module, points: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """Return the gradients (R, C*H*W) of Z_upper - Z_lower at `points` (R, C, H, W), for classes (R,) each.

    One batch, on the model's device; the caller keeps the model frozen.
    """
    batch = runtime.laid_out(model, points.detach()).requires_grad_()
    with torch.enable_grad():
        z = model(batch)
        checks.logits(z, count=len(points))
        difference = z.gather(1, upper[:, None]) - z.gather(1, lower[:, None])
        (gradient,) = torch.autograd.grad(difference.sum(), batch)
    return gradient.flatten(1)


def _taken(values: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Return the rows `index` of `values` on `device`, wherever each of them lies."""
    return values.detach()[index.to(values.device)].to(device)


def _crossings(profile: Profile, rays: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the images and directions (R,) of `rays`, on the profile's device."""
    if rays is None:
        image, direction = profile.reached.nonzero().T
        return image, direction
    if not isinstance(rays, Tensor) or rays.dtype != torch.int64 or rays.ndim != 2 or rays.shape[1] != 2:
        got = f"{rays.dtype} of shape {tuple(rays.shape)}" if isinstance(rays, Tensor) else type(rays).__name__
        raise ValueError(f"expected rays as int64 pairs (image, direction) of shape (R, 2), got {got}")
    image, direction = rays.to(profile.reached.device).T
    for index, count, name in zip((image, direction), profile.reached.shape, ("images", "directions"), strict=True):
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= count):
            raise ValueError(
                f"expected rays of {count} {name}, from 0 to {count - 1}, got {int(index.min())} to {int(index.max())}"
            )
    if not bool(profile.reached[image, direction].all()):
        raise ValueError(
            "expected rays that meet a boundary, got some that do not; choose from profile.reached.nonzero()"
        )
    return image, direction


def _unit(gradient: Tensor) -> Tensor:
    """Return `gradient` (R, D) with rows of L2 norm 1, zeros where they are zero."""
    largest = gradient.abs().amax(1, keepdim=True)  # first, so that squares of small gradients do not underflow
    scaled = torch.where(largest > 0, gradient / largest, 0.0)
    return torch.nn.functional.normalize(scaled, dim=1)


def _degrees(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles (R,) float64 between the rows of `a` and `b` (R, D); NaN where one is zero."""
    a, b = (v.double() / v.double().norm(dim=1, keepdim=True) for v in (a, b))
    # Exact near 0 and 180 degrees, where the arc cosine loses half of the digits.
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))
