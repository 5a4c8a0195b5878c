"""A small network with a rugged boundary, in which rays leave a class and come back to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IN_SHAPE = (3, 4, 5)
DIM = 60


class Rugged(nn.Module):
    """Maps images (N, 3, 4, 5) to 5 logits; counts its rows, and the largest batch."""

    def __init__(self, *, rows: int = 16, channels_last: bool = False) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(1.2 * torch.randn(DIM, 12, generator=g))
        self.second = nn.Parameter(torch.randn(12, 5, generator=g))
        self.batch_rows = {"cpu": rows, "cuda": rows}
        self.channels_last = channels_last
        self.largest = self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest, self.forwards = max(self.largest, len(x)), self.forwards + len(x)
        logits: Tensor = torch.sin((x.flatten(1) - 0.5) @ self.first) @ self.second
        return logits


def images(count: int) -> Tensor:
    """Images (count, 3, 4, 5) with pixels all over [0, 1]."""
    return torch.rand(count, *IN_SHAPE, generator=torch.Generator().manual_seed(0))
