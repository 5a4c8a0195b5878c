"""The choice of the radius: as large as the accuracy of the vote on a validation set allows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.labels import Labeller
from nbsupport.region.counting import SHAPES, count, draw, until_decided


def search_radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    step: float = 0.01,
    max_radius: float = 1.0,
    samples: int = 100,
    generator: torch.Generator | None = None,
    precision: str = "float32",
    shape: str = "hypercube",
) -> float:
    """Return the last radius before the first one at which the vote is less accurate than the point classifier.

    The radii are step, 2 step, ... up to `max_radius`; 0 when the first is already less accurate. All radii share
    the same offsets, scaled, so that the accuracies differ by the radius alone.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x : Tensor (N, C, H, W) float32
        Validation images in [0, 1].
    y : Tensor (N,) int64
        Their labels.
    step, max_radius : float
        [0, 1] units, > 0.
    samples : int
        Points of one image, as in `classify`.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one.
    precision : {"float32", "mixed"}
        As in `classify`.
    shape : {"hypercube", "ball", "gaussian"}
        As in `classify`, which also says what the radius is.

    Raises
    ------
    ValueError
        For images or labels out of range, `max_radius` below `step`, and as `classify`.

    References
    ----------
    Cao & Gong, "Mitigating Evasion Attacks to Deep Neural Networks via Region-based Classification", 2017, section 4.
    """
    checks.images(x)
    checks.labels(y, count=len(x))
    checks.number(step, name="step", open_low=True)
    checks.number(max_radius, name="max_radius", low=step)
    checks.count(samples, name="samples")
    checks.choice(precision, runtime.PRECISIONS, name="precision")
    checks.choice(shape, SHAPES, name="shape")
    offsets = draw(shape, samples, x, generator)
    with runtime.frozen(model):
        label = Labeller(model, x, offsets, precision=precision, reach=max_radius)
        y = y.to(label.device)
        correct = (label.centers() == y).sum()
        best = 0.0
        for i in range(int(max_radius / step + 1e-9)):
            radius = min((i + 1) * step, max_radius)
            counts = count(label, len(x), radius, lambda counts: until_decided(counts, samples))
            if bool((counts.argmax(1) == y).sum() < correct):
                break
            best = radius
    return best
