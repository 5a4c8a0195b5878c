"""Networks of another make than the package's own: what holds on these was not tuned on them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from nbsupport import models, train
from nbsupport.data import ImageSet


def plain(in_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return 3x3 convolutions of 12 and 20 channels without batch-norm, leaky, pooled by averages."""
    return nn.Sequential(
        nn.Conv2d(in_shape[0], 12, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2),
        nn.Conv2d(12, 20, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(20 * (in_shape[1] // 2) * (in_shape[2] // 2), num_classes),
    )


def normed(in_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return 3x3 convolutions of 16 and 24 channels with batch-norm, and a mean over all places."""
    return nn.Sequential(
        nn.Conv2d(in_shape[0], 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 4, num_classes),
    )


def tinted(images: ImageSet) -> ImageSet:
    """Return grey `images` as RGB: each of another tint, on a ground of the complementary one."""
    generator = torch.Generator().manual_seed(2)
    tint = torch.rand(len(images), 3, 1, 1, generator=generator)
    return replace(images, x=(images.x * tint + (1 - images.x) * (1 - tint) * 0.5).contiguous())


def trained(name: str, images: ImageSet, *, epochs: int) -> nn.Module:
    """Return the network `name` of this module, trained on `images`; the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = models.build(f"makes:{name}", in_shape=images.in_shape, num_classes=images.num_classes)
    train.fit(model, images, epochs=epochs, lr=0.05, generator=torch.Generator().manual_seed(6))
    return model.eval()


def right(model: nn.Module, images: ImageSet, count: int) -> tuple[Tensor, Tensor]:
    """Return the first `count` images that `model` classifies correctly, and their labels."""
    with torch.no_grad():
        keep = (model(images.x).argmax(1) == images.y).nonzero().squeeze(1)[:count]
    return images.x[keep], images.y[keep]
