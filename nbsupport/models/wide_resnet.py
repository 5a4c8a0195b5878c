"""The wide residual network of Madry et al. for CIFAR-10."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 160, 320, 640)
UNITS = 5  # a stage
SLOPE = 0.1  # of the leaky ReLU


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
        active = F.leaky_relu(self.norm1(x), SLOPE)
        shortcut = active if self.activate_shortcut else x
        if self.stride > 1:
            shortcut = F.avg_pool2d(shortcut, self.stride, ceil_mode=True)
        before = self.padding // 2
        shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.padding - before))
        out: Tensor = self.conv2(F.leaky_relu(self.norm2(self.conv1(active)), SLOPE))
        return shortcut + out


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
        for stage, (width_in, width) in enumerate(pairwise(WIDTHS)):
            units += [Unit(width_in, width, 1 if stage == 0 else 2, activate_shortcut=stage == 0)]
            units += [Unit(width, width, 1) for _ in range(UNITS - 1)]
        super().__init__(
            StandardiseImage(),
            nn.Conv2d(in_shape[0], WIDTHS[0], 3, padding=1, bias=False),
            *units,
            nn.BatchNorm2d(WIDTHS[-1]),
            nn.LeakyReLU(SLOPE),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(WIDTHS[-1], num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
