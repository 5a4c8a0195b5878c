"""Images from one npz file.

`train_x, train_y, test_x, test_y`: images as uint8 (N, H, W, C), pixel_max 255, or as float32 (N, C, H, W) in
[0, 1], pixel_max 1; labels as whole numbers from 0. Pickled objects are never loaded.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nbsupport import checks
from nbsupport.data.image_set import ImageSet, unit_images

if TYPE_CHECKING:
    from torch import Tensor

_Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
_ARRAYS = ("train_x", "train_y", "test_x", "test_y")


def read(path: Path, *, train: bool, limit: int | None, name: str) -> ImageSet:
    """Return one part of the npz file at `path`.

    The classes are "0", "1", ... up to the largest label of both parts.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        Where the file is no npz file or is damaged, an array is missing, has another type or rank, or holds
        Python objects, images lie outside [0, 1], labels are negative, or lengths disagree.
    """
    import torch

    require_file(path)
    part = "train" if train else "test"
    with np.load(path, allow_pickle=False) as stored:
        missing = [array for array in _ARRAYS if array not in stored.files]
        if missing:
            raise ValueError(
                f"expected the arrays {', '.join(_ARRAYS)} in {path}, found no {', '.join(missing)} "
                f"among {', '.join(stored.files) or 'none'}"
            )
        labels = {array: _labels(_member(stored, array, path), array) for array in ("train_y", "test_y")}
        images = _member(stored, f"{part}_x", path)
    y = labels[f"{part}_y"]
    if images.ndim and len(images) != len(y):
        raise ValueError(
            f"expected one label an image, got {len(images)} in {part}_x and {len(y)} in {part}_y of {path}"
        )
    x, pixel_max = _images(images, limit, f"{part}_x")
    num_classes = 1 + max(int(array.max()) for array in labels.values())
    return ImageSet(x, torch.from_numpy(y[:limit]), tuple(map(str, range(num_classes))), pixel_max, name)


def require_file(path: Path) -> None:
    """Raise FileNotFoundError or ValueError, as `read` does, where `path` is no npz file at first sight."""
    if not path.is_file():
        raise FileNotFoundError(f"expected an npz file with {', '.join(_ARRAYS)}, found no file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"expected an npz file, got something else in {path}; write it with numpy.savez")


def _member(stored: Any, array: str, path: Path) -> _Array:
    try:
        member: _Array = stored[array]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"expected numbers in {array} of {path}, got Python objects, which are never loaded; "
                "store one array of one shape"
            ) from error
        raise ValueError(
            f"expected a readable array {array} in {path}, got a damaged one ({error}); write it again"
        ) from error
    return member


def _labels(y: _Array, array: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the labels `y` as int64."""
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"expected {array} as whole numbers of shape (N,), got {y.dtype} of shape {y.shape}")
    if len(y) == 0 or y.min() < 0:
        raise ValueError(
            f"expected labels from 0 in {array}, got {f'a minimum of {y.min()}' if len(y) else 'no label'}"
        )
    return y.astype(np.int64)


def _images(images: _Array, limit: int | None, array: str) -> tuple[Tensor, float]:
    """Return the first `limit` images as (N, C, H, W) float32 in [0, 1], and pixel_max."""
    import torch

    if images.dtype not in (np.uint8, np.float32) or images.ndim != 4:
        raise ValueError(
            f"expected {array} as uint8 (N, H, W, C) or float32 (N, C, H, W), got {images.dtype} of shape "
            f"{images.shape}; convert with .astype, add a missing channel axis with [..., None]"
        )
    pixels = torch.from_numpy(images[:limit])
    if images.dtype == np.uint8:
        return unit_images(pixels), 255.0
    checks.images(pixels, name=array)
    return (pixels if len(pixels) == len(images) else pixels.clone()), 1.0
