"""A model that works for three passes and then returns NaN."""

import math

import torch
from torch import Tensor, nn


class BreaksLate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.batch_rows = {"cpu": 8}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.full((len(x), 3), 0.0 if self.calls < 4 else math.nan)
