"""A 2-D slice through a test image: the classes on a grid spanned by an attack's change and a random direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nbsupport import boundary, runtime
from nbsupport.stages.attacks import Examples
from nbsupport.stages.inputs import load_model
from nbsupport.store import Run

_SIZE = 81  # places along each side


@dataclass(frozen=True, eq=False)
class Slice:
    """The classes around one image in a plane, and where its versions lie.

    Attributes
    ----------
    labels : Tensor (S, S) int64
        The model's class at image + across[column] * u + up[row] * v, clipped to [0, 1].
    across, up : Tensor (S,) float64
        Offsets in RMS, [0, 1] units.
    u, v : Tensor (D,) float32
        Orthogonal directions of RMS 1: towards the adversarial example, and a random one.
    points : dict
        Name of the version -> its place (2,).
    """

    labels: Tensor
    across: Tensor
    up: Tensor
    u: Tensor
    v: Tensor
    points: dict[str, Tensor]


def slice_through(run: Run, found: Mapping[tuple[str, str], Examples], model: str, examples: str) -> Slice:
    """Return the plane through an image on which the attack `examples` succeeded, and its result.

    It is the image of the median distortion, a typical one. Where the attack never succeeded, both directions are
    random and the first test image is in the middle.
    """
    attacked = found[model, examples]
    success = attacked.result.success.nonzero().squeeze(1)
    by_rms = success[attacked.result.rms[success].argsort()]
    row = int(by_rms[(len(success) - 1) // 2]) if len(success) else 0
    x, x_adv = attacked.x[row], attacked.result.x_adv[row]
    random = boundary.directions(x.numel(), 2, negate=False, generator=runtime.seeded(run.settings.seed, "slice"))
    change = (x_adv - x).flatten()
    length = float(change.square().mean().sqrt()) if len(success) else 0.0
    u = change / length if length else random[0]
    v = random[1] - (random[1] @ u) / x.numel() * u
    v = v / v.square().mean().sqrt()
    reach = max(run.settings.radius, length)  # every point of a hypercube has an RMS of at most its radius
    across = torch.linspace(-reach, length + reach, _SIZE, dtype=torch.float64)
    up = across - length / 2
    places = x.flatten() + across.float().repeat(_SIZE)[:, None] * u + up.float().repeat_interleave(_SIZE)[:, None] * v
    labels = runtime.predict(load_model(run, model), places.clamp(0, 1).view(-1, *x.shape)).cpu()
    points = {"benign": torch.zeros(2), **({examples: torch.tensor([length, 0.0])} if length else {})}
    return Slice(labels.view(_SIZE, _SIZE), across, up, u, v, points)
