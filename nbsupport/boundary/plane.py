"""A 2-D slice through an image and its adversarial version: the classes on a grid of the plane."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.boundary.directions import check_directions, directions
from nbsupport.labels import Labeller

THIRDS = ("random", "gradient")
_PARALLEL = 1e-4  # of a direction's length, left over beside another: they span no plane


@dataclass(frozen=True, eq=False)
class Slice:
    """The classes around one image in a plane, and where its versions lie.

    Attributes
    ----------
    labels : Tensor (S, S) int64
        The model's class at image + across[column] * u + up[row] * v, clipped to [0, 1].
    across, up : Tensor (S,) float64
        Offsets in RMS, [0, 1] units.
    u, v : Tensor (C*H*W,) float32
        Orthogonal directions of RMS 1.
    points : dict
        Name of the version -> its place (2,).
    """

    labels: Tensor
    across: Tensor
    up: Tensor
    u: Tensor
    v: Tensor
    points: dict[str, Tensor]


def plane(
    model: nn.Module,
    x: Tensor,
    x_adv: Tensor,
    *,
    reach: float,
    third: str | Tensor = "random",
    size: int = 81,
    generator: torch.Generator | None = None,
) -> Slice:
    """Return the classes in the plane through `x`, `x_adv` and a third point.

    `u` points from `x` to `x_adv`; where they are equal it is random. `v` is the part of the third direction that is
    orthogonal to `u`. The slice ends `reach` before `x` and `reach` beyond `x_adv`, and is as high as wide.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x, x_adv : Tensor (C, H, W) float32
        In [0, 1], of at least two pixels.
    reach : float
        Width of the margin on each side, in RMS, [0, 1] units, > 0.
    third : {"random", "gradient"} or Tensor (C*H*W,) float32
        "gradient": that of the runner-up's logit minus the logit of the class of `x`, at `x`: the steepest way out
        of the class. A tensor is taken as it is, of any length.
    size : int
        Places along each side, S, at least 2.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one. Two directions are drawn, whatever `third` is.

    Returns
    -------
    Slice
        On the CPU; `points` holds "x" and, where it differs, "x_adv".

    Raises
    ------
    ValueError
        For images out of range or of different shapes, a `reach` that is not above 0, an unknown `third`, one that
        spans no plane with `u`, and for logits that are not finite or of wrong shape.
    """
    pair = _checked(x, x_adv)
    checks.number(reach, name="reach", open_low=True)
    checks.count(size, name="size", low=2)
    if isinstance(third, Tensor):
        check_directions(third[None], x.numel(), name="third")
    else:
        checks.choice(third, THIRDS, name="third")
    drawn = directions(x.numel(), 2, negate=False, generator=generator)
    change = (pair[1] - pair[0]).flatten()
    length = float(change.square().mean().sqrt())
    u = change / length if length else drawn[0]
    with runtime.frozen(model):
        ways = {"random": lambda: drawn[1], "gradient": lambda: _way_out(model, pair[:1])}
        v = _beside(u, third.detach().cpu() if isinstance(third, Tensor) else ways[third]())
        across = torch.linspace(-reach, length + reach, size, dtype=torch.float64)
        up = across - length / 2
        label = Labeller(model, pair[:1], torch.stack((u, v)))
        labels = grid_labels(label, torch.tensor([[0, 0, 1]]), across.float(), up.float())
    points = {"x": torch.zeros(2), **({"x_adv": torch.tensor([length, 0.0])} if length else {})}
    return Slice(labels[0].cpu(), across, up, u, v, points)


def grid_labels(label: Labeller, planes: Tensor, across: Tensor, up: Tensor) -> Tensor:
    """Return the classes (P, B, A) int64 on the grids of P planes, each through an image along two offsets.

    `planes` (P, 3) int64: the image of `label`, the offset along the columns at `across` (A,) float32, and the offset
    along the rows at `up` (B,) float32.
    """
    rows, columns = len(up), len(across)
    planes, across, up = planes.to(label.device), across.to(label.device), up.to(label.device)
    place = torch.stack((across.repeat(rows), up.repeat_interleave(columns)), 1)  # (B*A, 2)
    each = planes.repeat_interleave(len(place), 0)  # (P*B*A, 3)
    return label(each[:, 0], each[:, 1:], place.repeat(len(planes), 1)).view(-1, rows, columns)


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


def _checked(x: Tensor, x_adv: Tensor) -> Tensor:
    """Return both images as (2, C, H, W) on the CPU."""
    for image, name in ((x, "x"), (x_adv, "x_adv")):
        if isinstance(image, Tensor) and image.ndim != 3:
            raise ValueError(
                f"expected {name} as one image (C, H, W), got {tuple(image.shape)}; take one, such as {name}[0]"
            )
        checks.images(image[None] if isinstance(image, Tensor) else image, name=name)
    if x.shape != x_adv.shape:
        raise ValueError(f"expected x and x_adv of one shape, got {tuple(x.shape)} and {tuple(x_adv.shape)}")
    if x.numel() < 2:
        raise ValueError("expected images of at least two pixels, which a plane needs, got one")
    return torch.stack((x.detach().cpu(), x_adv.detach().cpu()))


def _way_out(model: nn.Module, x: Tensor) -> Tensor:
    """Return the gradient (D,) of the runner-up's logit minus the winner's at `x` (1, C, H, W)."""
    x = x.to(runtime.device_of(model, x))
    with torch.no_grad():
        z = model(runtime.laid_out(model, x))
    checks.logits(z, count=1)
    winner, runner_up = z.topk(2).indices[0]
    return margin_gradient(model, x, runner_up[None], winner[None])[0].cpu()


def _beside(u: Tensor, third: Tensor) -> Tensor:
    """Return the part of `third` (D,) that is orthogonal to `u` (D,) of RMS 1, scaled to RMS 1."""
    v = third - (third @ u) / u.numel() * u
    size = v.square().mean().sqrt()
    if float(size) <= _PARALLEL * float(third.square().mean().sqrt()):
        raise ValueError(
            "expected a third direction that spans a plane with x and x_adv, got zero or one parallel to x_adv - x; "
            'pass third="random"'
        )
    return v / size
