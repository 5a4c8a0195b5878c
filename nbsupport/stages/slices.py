"""2-D slices through a test image: the classes on a grid spanned by an attack's change and another direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nbsupport import boundary, checks, runtime
from nbsupport.attacks.optmargin import draw_views
from nbsupport.boundary import Slice
from nbsupport.presets import Settings
from nbsupport.stages.attacks import Examples
from nbsupport.stages.inputs import load_model
from nbsupport.store import Run

THIRDS = ("random", "gradient", "view")
_OPTMARGIN = "OPTMARGIN"


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


def slice_through(run: Run, found: Mapping[tuple[str, str], Examples], model: str, examples: str) -> Slice:
    """Return the plane through an image on which the attack `examples` succeeded, and its result.

    It is the image of the median distortion, a typical one; `points` holds "benign" and `examples`. Where the attack
    never succeeded, both directions are random and the first test image is in the middle.
    """
    attacked = found[model, examples]
    success = attacked.result.success.nonzero().squeeze(1)
    by_rms = success[attacked.result.rms[success].argsort()]
    row = int(by_rms[(len(success) - 1) // 2]) if len(success) else 0
    x = attacked.x[row]
    x_adv = attacked.result.x_adv[row] if len(success) else x
    return _plane(load_model(run, model), x, x_adv, run.settings, examples, third="random", size=81)


def slice_with_views(
    network: nn.Module, found: Examples, row: int, settings: Settings, *, third: str = "random", size: int = 49
) -> ViewSlice:
    """Return the plane through the image in `row` of `found` and its adversarial version, with OPTMARGIN's views.

    Parameters
    ----------
    network : Module
        The model that was attacked; maps images in [0, 1] to logits (N, L).
    found : Examples
        Of one attack. The views are those that an OPTMARGIN attack of the run used; other attacks use none, and get
        OPTMARGIN's.
    row : int
        Of the image.
    settings : Settings
        Of the run.
    third : {"random", "gradient", "view"}
        What spans the plane beside the attack's change: as in `boundary.plane`, or the view that comes nearest to the
        class of the image before the attack (by the margin of its logits).
    size : int
        Places along each side.

    Raises
    ------
    ValueError
        For an unknown `third`, and as `boundary.plane`.
    """
    checks.choice(third, THIRDS, name="third")
    x, x_adv = found.x[row], found.result.x_adv[row]
    name = found.name if found.name.startswith(_OPTMARGIN) else _OPTMARGIN
    generator = runtime.seeded(settings.seed, "attack", name)  # as the attack draws them
    offsets = draw_views(tuple(x.shape), eps=settings.view_eps, views=settings.views, generator=generator)
    device = runtime.device_of(network, x)
    with runtime.frozen(network), torch.no_grad():
        batch = (x_adv + offsets).clamp(0, 1).to(device)
        z = network(runtime.laid_out(network, batch)).cpu()  # (V, L)
    checks.logits(z, count=len(offsets))
    flat = offsets.flatten(1)
    way: str | Tensor = third
    if third == "view":
        nearest = _margin(z, int(found.y[row]))[:-1].argmax() if len(z) > 1 else None
        way = "random" if nearest is None else flat[nearest]
    seen = _plane(network, x, x_adv, settings, found.name, third=way, size=size)
    around = list(seen.points.values())[-1].double()  # the adversarial image
    basis = torch.stack((seen.u, seen.v)).double()
    return ViewSlice(seen, around + flat.double() @ basis.T / x.numel(), z.argmax(1))


def _margin(z: Tensor, y: int) -> Tensor:
    """Return by how much the logit of the class `y` exceeds the largest of the others, in each row of `z` (V, L)."""
    others = z.clone()
    others[:, y] = -torch.inf
    return z[:, y] - others.amax(1)


def _plane(
    network: nn.Module, x: Tensor, x_adv: Tensor, settings: Settings, name: str, *, third: str | Tensor, size: int
) -> Slice:
    length = float((x_adv - x).square().mean().sqrt())
    reach = max(settings.radius, length)  # every point of a hypercube has an RMS of at most its radius
    generator = runtime.seeded(settings.seed, "slice")
    seen = boundary.plane(network, x, x_adv, reach=reach, third=third, size=size, generator=generator)
    return replace(seen, points=dict(zip(("benign", name), seen.points.values(), strict=False)))
