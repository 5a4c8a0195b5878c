"""The 20-layer residual network for images of 32x32."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Standardise(nn.Module):
    """Return (x - .5) / .25: pixels of natural images brought to about mean 0 and deviation 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) in [0, 1] to [-2, 2]."""
        return (x - 0.5) * 4


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; a shortcut that changes shape drops pixels and pads with zero channels."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, width - width_in
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, ceil(H / stride), ceil(W / stride))."""
        out = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        before = self.padding // 2
        shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.padding - before))
        return torch.relu(out + shortcut)


class ResNet20(nn.Sequential):
    """ResNet-20: three stages of three blocks, widths 16, 32, 64, shortcuts without parameters.

    269,722 parameters at 3x32x32 with ten classes. Maps (N, C, H, W) in [0, 1] to logits (N, num_classes).

    References
    ----------
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2 (option A).
    """

    channels_last = True

    def __init__(self, in_shape: tuple[int, int, int], num_classes: int) -> None:
        widths = [16] * 4 + [32] * 3 + [64] * 3
        blocks = [
            Block(width_in, width, 1 if width == width_in else 2) for width_in, width in itertools.pairwise(widths)
        ]
        super().__init__(
            Standardise(),
            nn.Conv2d(in_shape[0], 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
