"""Random crops and flips of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

AUGMENTATIONS = ("none", "crop", "crop-flip")


def augmented(x: Tensor, generator: torch.Generator | None, *, flip: bool) -> Tensor:
    """Return `x` (N, C, H, W) cropped at random from a zero-padded frame and, if asked, flipped at random."""
    n, channels, height, width = x.shape
    pad = height // 8
    top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).to(x.device)
    flipped = (torch.rand(n, generator=generator) < 0.5 * flip).to(x.device)
    rows = top[:, None] + torch.arange(height, device=x.device)  # (N, H)
    columns = left[:, None] + torch.arange(width, device=x.device)  # (N, W)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    padded = F.pad(x, (pad, pad, pad, pad))
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
