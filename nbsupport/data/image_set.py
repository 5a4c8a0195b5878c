"""A set of labelled images, held as one tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nbsupport import checks

if TYPE_CHECKING:  # torch is loaded where images are: a fingerprint needs none
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled images and what a table or figure needs to know of them.

    Attributes
    ----------
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    y : Tensor (N,) int64
        Labels, indices into `classes`.
    classes : tuple of str
        The names of the classes.
    pixel_max : float
        The data set's own unit: a length in [0, 1] units times `pixel_max` is what tables and figures state.
    name : str
        The name that `load` was given.

    Raises
    ------
    ValueError
        Unless the images, the labels and `pixel_max` are as described.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    pixel_max: float
    name: str

    def __post_init__(self) -> None:
        checks.images(self.x)
        checks.labels(self.y, count=len(self.x), num_classes=len(self.classes))
        checks.number(self.pixel_max, name="pixel_max", open_low=True)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.in_shape))
        return (
            f"ImageSet({self.name!r}: {len(self)} of {size}, {self.num_classes} classes, pixel_max {self.pixel_max:g})"
        )

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        _, channels, height, width = self.x.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the set with its two tensors on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def first(self, n: int) -> ImageSet:
        """Return the first `n` images (all, where there are fewer), sharing memory with this set."""
        checks.count(n, name="n")
        return replace(self, x=self.x[:n], y=self.y[:n])

    def split(self, n_last: int) -> tuple[ImageSet, ImageSet]:
        """Return all but the last `n_last` images, and the last `n_last`: a training and a validation part.

        Raises ValueError unless both parts get an image.
        """
        checks.count(n_last, name="n_last")
        if n_last >= len(self):
            raise ValueError(
                f"expected n_last below the {len(self)} images of {self.name}, got {n_last}; keep some apart"
            )
        cut = len(self) - n_last
        return replace(self, x=self.x[:cut], y=self.y[:cut]), replace(self, x=self.x[cut:], y=self.y[cut:])


def unit_images(pixels: Tensor) -> Tensor:
    """Return bytes (N, H, W, C) uint8 as float32 images (N, C, H, W) in [0, 1], with a single float copy."""
    return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
