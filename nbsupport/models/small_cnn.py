"""Two small convolutional networks without batch normalisation, for grey images."""

from __future__ import annotations

from typing import ClassVar

from torch import nn


class DigitsCNN(nn.Sequential):
    """conv3x3(32)-conv3x3(32)-pool-conv3x3(64)-pool-fc64-fc, for images of about 8x8.

    1.8 MFLOP for a forward pass at 1x8x8. Maps (N, C, H, W) in [0, 1] to logits (N, num_classes).
    """

    batch_rows: ClassVar[dict[str, int]] = {"cpu": 512}
    channels_last = True

    def __init__(self, in_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(in_shape[0], 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
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
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
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
