"""One image changed in four ways by the same RMS: what the unit of every distance looks like."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nbsupport import checks, runtime
from nbsupport.store import Run

_OF_EPS = (1 / 3, 2 / 3, 1.0, 2.0)
_SQUARE = 4  # the square's side is this part of the image's


def run_distortions(run: Run, x: Tensor) -> dict[str, Tensor]:
    """Return `distorted(x)` at a third, two thirds, once and twice the run's eps."""
    lengths = [share * run.settings.eps for share in _OF_EPS]
    return distorted(x, lengths, generator=runtime.seeded(run.settings.seed, "distortions"))


def distorted(x: Tensor, lengths: Sequence[float], *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Return the image `x` changed in four ways, each by the same lengths.

    Random noise and random signs (of which every pixel moves by the full length, as in one step of FGSM) are drawn
    once and scaled; a constant is added; and the pixels of a square in the middle move towards the other end of
    [0, 1].

    Parameters
    ----------
    x : Tensor (C, H, W) float32
        In [0, 1].
    lengths : sequence of M floats
        RMS before clipping, [0, 1] units, > 0; after clipping it is at most that.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one.

    Returns
    -------
    dict
        Kind of distortion -> (M, C, H, W), clipped to [0, 1].

    Raises
    ------
    ValueError
        For an image out of range or a length that is not above 0.
    """
    checks.images(x[None])
    for length in lengths:
        checks.number(length, name="length", open_low=True)
    x = x.cpu()
    noise = torch.randn(x.shape, generator=generator)
    signs = 2.0 * torch.randint(2, x.shape, generator=generator) - 1
    height, width = x.shape[1:]
    top, left = height // 2 - max(1, height // _SQUARE) // 2, width // 2 - max(1, width // _SQUARE) // 2
    square = torch.zeros_like(x)
    square[:, top : top + max(1, height // _SQUARE), left : left + max(1, width // _SQUARE)] = 1
    kinds = {
        "random noise": noise,
        "random signs": signs,
        "a constant": torch.ones_like(x),
        "a square": square * torch.where(x < 0.5, 1.0, -1.0),
    }
    scale = torch.tensor(list(lengths)).view(-1, 1, 1, 1)
    return {kind: (x + scale * change / change.square().mean().sqrt()).clamp(0, 1) for kind, change in kinds.items()}
