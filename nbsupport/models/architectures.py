"""The networks of the papers: two small ones for grey images, two residual ones for colour.

Each maps (N, C, H, W) in [0, 1] to logits (N, num_classes). Pooling comes before the ReLU: the largest of four is the
same either way, to the bit, and the ReLU has a quarter of the values to go through.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WIDTHS = (16, 160, 320, 640)  # of `WideResNet34`
_UNITS = 5  # a stage
_SLOPE = 0.1  # of the leaky ReLU


class DigitsCNN(nn.Sequential):
    """conv3x3(32)-conv3x3(32)-pool-conv3x3(64)-pool-fc64-fc, for images of about 8x8.

    1.8 MFLOP for a forward pass at 1x8x8. Maps (N, C, H, W) in [0, 1] to logits (N, num_classes).
    """

    batch_rows: ClassVar[dict[str, int]] = {"cpu": 1024}
    channels_last = True

    def __init__(self, in_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(in_shape[0], 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * _pooled_twice(in_shape), 64),
            nn.ReLU(),
            nn.Linear(64, num_classes),
        )


class MnistCNN(nn.Sequential):
    """conv5x5(32)-pool-conv5x5(64)-pool-fc1024-fc, the MNIST network of Madry et al.

    27.8 MFLOP for a forward pass at 1x28x28. Maps (N, C, H, W) in [0, 1] to logits (N, num_classes).

    References
    ----------
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, section 5.
    """

    batch_rows: ClassVar[dict[str, int]] = {"cpu": 128}
    channels_last = True

    def __init__(self, in_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(in_shape[0], 32, 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * _pooled_twice(in_shape), 1024),
            nn.ReLU(),
            nn.Linear(1024, num_classes),
        )


def _pooled_twice(in_shape: tuple[int, int, int]) -> int:
    """Return the number of pixels that two poolings by 2 leave."""
    _, height, width = in_shape
    if min(height, width) < 4:
        raise ValueError(f"expected images of at least 4x4 pixels, which are pooled twice, got {height}x{width}")
    return (height // 4) * (width // 4)


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
        return torch.relu(out + _widened(shortcut, self.padding))


class ResNet20(nn.Sequential):
    """ResNet-20: three stages of three blocks, widths 16, 32, 64, shortcuts without parameters.

    269,722 parameters at 3x32x32 with ten classes. Maps (N, C, H, W) in [0, 1] to logits (N, num_classes).

    References
    ----------
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2 (option A).
    """

    # Images a second in bfloat16, two threads with amx_bf16: 6,300 forward, 1,700 with a backward pass; in batches of
    # 32, 4,500 and 1,400. In float32 batches of 16 to 512 are alike.
    batch_rows: ClassVar[dict[str, int]] = {"cpu": 128}
    channels_last = True

    def __init__(self, in_shape: tuple[int, int, int], num_classes: int) -> None:
        widths = [16] * 4 + [32] * 3 + [64] * 3
        blocks = [Block(width_in, width, 1 if width == width_in else 2) for width_in, width in pairwise(widths)]
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
        _draw_convolutions(self)


class StandardiseImage(nn.Module):
    """Return each image with mean 0 and deviation 1 over its own D pixels; the deviation is at least 1 / sqrt(D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        centred = x - x.mean((1, 2, 3), keepdim=True)
        variance = centred.square().mean((1, 2, 3), keepdim=True)
        # Clamped before the root: the root's gradient at 0, for an image of one colour, is infinite.
        return centred * variance.clamp_min(1 / x[0].numel()).rsqrt()


class Unit(nn.Module):
    """A pre-activation residual unit; a shortcut that changes shape averages pixels and pads with zero channels."""

    def __init__(self, width_in: int, width: int, stride: int, *, activate_shortcut: bool = False) -> None:
        super().__init__()
        self.stride, self.padding, self.activate_shortcut = stride, width - width_in, activate_shortcut
        self.norm1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, ceil(H / stride), ceil(W / stride))."""
        active = F.leaky_relu(self.norm1(x), _SLOPE)
        shortcut = active if self.activate_shortcut else x
        if self.stride > 1:
            shortcut = F.avg_pool2d(shortcut, self.stride, ceil_mode=True)
        out: Tensor = self.conv2(F.leaky_relu(self.norm2(self.conv1(active)), _SLOPE))
        return _widened(shortcut, self.padding) + out


class WideResNet34(nn.Sequential):
    """Wide ResNet, three stages of five units, widths 16, 160, 320, 640, each image standardised, leaky ReLU 0.1.

    45.9 million parameters at 3x32x32 with ten classes. Maps (N, C, H, W) in [0, 1] to logits (N, num_classes).

    References
    ----------
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, section 5.
    """

    channels_last = True

    def __init__(self, in_shape: tuple[int, int, int], num_classes: int) -> None:
        units = []
        for stage, (width_in, width) in enumerate(pairwise(_WIDTHS)):
            units += [Unit(width_in, width, 1 if stage == 0 else 2, activate_shortcut=stage == 0)]
            units += [Unit(width, width, 1) for _ in range(_UNITS - 1)]
        super().__init__(
            StandardiseImage(),
            nn.Conv2d(in_shape[0], _WIDTHS[0], 3, padding=1, bias=False),
            *units,
            nn.BatchNorm2d(_WIDTHS[-1]),
            nn.LeakyReLU(_SLOPE),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(_WIDTHS[-1], num_classes),
        )
        _draw_convolutions(self)


def _widened(x: Tensor, padding: int) -> Tensor:
    """Return `x` (N, C, H, W) with `padding` more channels of zeros, half of them first."""
    before = padding // 2
    return F.pad(x, (0, 0, 0, 0, before, padding - before))


def _draw_convolutions(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
