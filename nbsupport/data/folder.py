"""A class-per-folder tree of images.

`PATH/train/<class>/<image>` and `PATH/test/<class>/<image>`, the same classes in both; every kind of image with
8 bits a channel that Pillow reads. The images are grey (C = 1) where every file of the tree is, else RGB
(C = 3); transparency is dropped.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from nbsupport.data.image_set import ImageSet, unit_images

_Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
_GREY = ("1", "L", "LA", "La")
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def read(path: Path, *, train: bool, limit: int | None, name: str) -> ImageSet:
    """Return one part of the tree under `path`; pixel_max is 255.

    The classes are the folders in alphabetical order, as torchvision's ImageFolder has them. The stored order
    takes the classes in turn (the first file of every class, then the second, ...), so that the first or last n
    images of a tree are about as many of each class.

    Raises
    ------
    FileNotFoundError
        Where `path`, `train/` or `test/` is missing.
    ValueError
        Where a class has no image, the classes of the two parts differ, there are fewer than two, two images
        have different sizes, or a file is damaged or has more than 8 bits a channel.
    """
    import torch

    parts, mode = tree(path)
    by_class = parts["train" if train else "test"]
    files, labels = in_turn(by_class.values(), limit)
    pixels = _decode(files, mode, like=next(iter(parts["train"].values()))[0])
    return ImageSet(unit_images(torch.from_numpy(pixels)), torch.tensor(labels), tuple(by_class), 255.0, name)


def tree(path: Path) -> tuple[dict[str, dict[str, list[str]]], str]:
    """Return the sorted files of every class, by part, and Pillow's mode of all images; raises as `read`."""
    if not path.is_dir():
        raise FileNotFoundError(f"expected a folder with train/ and test/, found no folder {path}")
    parts = {part: _files_by_class(path / part) for part in ("train", "test")}
    classes = tuple(parts["train"])
    if classes != tuple(parts["test"]):
        lone = sorted(set(classes) ^ set(parts["test"]))
        raise ValueError(
            f"expected the same classes in {path}/train and {path}/test, found {', '.join(lone)} in one only"
        )
    if len(classes) < 2:
        raise ValueError(f"expected at least two class folders in {path}/train, found {', '.join(classes) or 'none'}")
    everything = [file for part in parts.values() for files in part.values() for file in files]
    return parts, "L" if all(_is_grey(file) for file in everything) else "RGB"


def _files_by_class(part: Path) -> dict[str, list[str]]:
    """Return the sorted image files of every class folder in `part`; hidden files and other suffixes are left out."""
    if not part.is_dir():
        raise FileNotFoundError(
            f"expected class folders in {part}, found no such folder; "
            f"the tree is {part.name}/<class>/<image> in {part.parent}"
        )
    Image.preinit()  # JPEG and PNG are tried first: twice as fast
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: dict[str, list[str]] = {}
    for folder in sorted(entry.name for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        found[folder] = sorted(
            os.path.join(where, file)  # noqa: PTH118  # 60,000 Path objects take 0.6 s longer
            for where, _, files in os.walk(part / folder, followlinks=True)
            for file in files
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in suffixes  # noqa: PTH122
        )
        if not found[folder]:
            raise ValueError(f"expected images in every class folder, found none in {part / folder}")
    return found


def in_turn(by_class: Iterable[list[str]], limit: int | None) -> tuple[list[str], list[int]]:
    """Return the first `limit` files and their labels, one file of each class at a time."""
    places = sorted((place, label, file) for label, files in enumerate(by_class) for place, file in enumerate(files))
    chosen = places[:limit]
    return [file for _, _, file in chosen], [label for _, label, _ in chosen]


def _is_grey(file: str) -> bool:
    """Return whether `file` is stored as grey; reads its header only, 50 us, and once."""
    try:
        status = os.stat(file)  # noqa: PTH116
        return _stored_grey(file, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError, SyntaxError) as error:
        raise _damaged(file, error) from error


@functools.lru_cache(maxsize=2**18)
def _stored_grey(file: str, size: int, changed: int) -> bool:
    with Image.open(file) as image:
        if image.mode != "P":
            return image.mode in _GREY
        palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())


def _decode(files: list[str], mode: str, *, like: str) -> _Bytes:
    """Return the pixels (N, H, W, C) uint8 of `files`, all of the size of `like`.

    One thread, 0.1 ms an image of 32x32: Pillow holds the interpreter for most of it, and with two or eight
    threads 20,000 images took 1.1 to 2 times as long.
    """
    with Image.open(like) as image:
        size = image.size
    pixels = np.empty((len(files), size[1], size[0], len(mode)), np.uint8)
    for row, file in enumerate(files):
        try:
            with Image.open(file) as image:
                if image.size == size and image.mode not in _DEEP:
                    pixels[row] = _bytes(image, mode)
                    continue
                found, depth = image.size, image.mode
        except (OSError, ValueError, SyntaxError) as error:
            raise _damaged(file, error) from error
        if found != size:
            raise ValueError(
                f"expected images of one size, got {size[0]}x{size[1]} in {like} and {found[0]}x{found[1]} in {file}; "
                "resize them to one size first"
            )
        raise ValueError(f"expected 8 bits a channel, got Pillow's mode {depth} in {file}; convert it to 8 bits first")
    return pixels


def _bytes(image: Image.Image, mode: str) -> _Bytes:
    """Return `image` as (H, W, C) uint8 in `mode`."""
    if image.mode != mode:
        if "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns where a palette's transparency is dropped in one go
        image = image.convert(mode)
    return np.asarray(image).reshape(image.height, image.width, len(mode))


def _damaged(file: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"expected an image that Pillow reads in {file}: {reason}; repair or remove the file")
