"""The shape of the region that is sampled around an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHAPES = ("hypercube", "ball", "gaussian")


def draw(shape: str, samples: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return offsets (samples, D) float32 of radius 1 for images `x` (N, C, H, W), D = C*H*W, drawn on the CPU.

    "hypercube": uniform in [-1, 1)^D. "ball": uniform in the L2 ball of radius sqrt(D), the points of RMS at most 1: a
    Gaussian direction, at the D-th root of a uniform number of the way out. "gaussian": standard normal pixels.
    """
    dim = x[0].numel()
    if shape == "hypercube":
        return 2 * torch.rand(samples, dim, generator=generator) - 1
    if shape == "gaussian":
        return torch.randn(samples, dim, generator=generator)
    direction = torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    volume = torch.rand(samples, 1, generator=generator, dtype=torch.float64)
    direction /= direction.norm(dim=1, keepdim=True)
    return (math.sqrt(dim) * volume.pow(1 / dim) * direction).float()


def unit_rms(shape: str, dim: int) -> float:
    """Return the root mean square of the offsets of radius 1 in `dim` pixels, before clipping.

    Regions of different shape whose radius times this is the same move an image equally far.
    """
    return {"hypercube": math.sqrt(1 / 3), "ball": math.sqrt(dim / (dim + 2)), "gaussian": 1.0}[shape]
