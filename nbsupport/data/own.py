"""Images of one's own: a class-per-folder tree, or an npz file. Torch is imported where images are read."""

import functools
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nbsupport import checks
from nbsupport.data.image_set import ImageSet, unit_images

_Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
_GREY = ("1", "L", "LA", "La")
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_ARRAYS = ("train_x", "train_y", "test_x", "test_y")
_CHANNELS = (1, 3)
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises


def read_folder(path: Path, *, train: bool, limit: int | None, name: str) -> ImageSet:
    """Return one part of the tree under `path`; pixel_max is 255.

    `path/train/<class>/<image>` and `path/test/<class>/<image>`, the same classes in both; every kind of image with
    8 bits a channel that Pillow reads. The images are grey (C = 1) where every file of the tree is, else RGB
    (C = 3); transparency is dropped.

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
    """Return the sorted files of every class, by part, and Pillow's mode of all images; raises as `read_folder`."""
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
            for where, files in _walk(part / folder)
            for file in files
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in suffixes  # noqa: PTH122
        )
        if not found[folder]:
            raise ValueError(f"expected images in every class folder, found none in {part / folder}")
    return found


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder below `top`, and the files in it; a link back to a folder that holds it is not followed."""
    for where, folders, files in os.walk(top, followlinks=True):
        above = {os.path.realpath(where)}
        above |= {os.path.realpath(path) for path in (top, *Path(where).parents) if path.is_relative_to(top)}
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(where, name)) not in above]  # noqa: PTH118
        yield where, files


def in_turn(by_class: Iterable[list[str]], limit: int | None) -> tuple[list[str], list[int]]:
    """Return the first `limit` files and their labels, one file of each class at a time."""
    places = sorted((place, label, file) for label, files in enumerate(by_class) for place, file in enumerate(files))
    chosen = places[:limit]
    return [file for _, _, file in chosen], [label for _, label, _ in chosen]


def version(file: str) -> tuple[str, int, int]:
    """Return `file`, its size and its time of change: what is known of it holds while these are the same."""
    status = os.stat(file)  # noqa: PTH116
    return file, status.st_size, status.st_mtime_ns


def _is_grey(file: str) -> bool:
    """Return whether `file` is stored as grey; reads its header only, 50 us, and once."""
    try:
        return _stored_grey(*version(file))
    except _UNREADABLE as error:
        raise _damaged(file, error) from error


@functools.lru_cache(maxsize=2**18)
def _stored_grey(file: str, size: int, changed: int) -> bool:
    with _opened(file) as image:
        if image.mode != "P":
            return image.mode in _GREY
        palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())


def _opened(file: str) -> Image.Image:
    if not os.path.isfile(file):  # noqa: PTH113  # a pipe would be waited for
        raise ValueError("it is no regular file")
    return Image.open(file)


def _decode(files: list[str], mode: str, *, like: str) -> _Array:
    """Return the pixels (N, H, W, C) uint8 of `files`, all of the size of `like`.

    One thread, 0.1 ms an image of 32x32: Pillow holds the interpreter for most of it, and with two or eight
    threads 20,000 images took 1.1 to 2 times as long.
    """
    with _opened(like) as image:
        size = image.size
    pixels = np.empty((len(files), size[1], size[0], len(mode)), np.uint8)
    for row, file in enumerate(files):
        try:
            with _opened(file) as image:
                found, depth = image.size, image.mode
                if found == size and depth not in _DEEP:
                    pixels[row] = _bytes(image, mode)
        except _UNREADABLE as error:
            raise _damaged(file, error) from error
        if found != size:
            raise ValueError(
                f"expected images of one size, got {size[0]}x{size[1]} in {like} and {found[0]}x{found[1]} in {file}; "
                "resize them to one size first"
            )
        if depth in _DEEP:
            raise ValueError(
                f"expected 8 bits a channel, got Pillow's mode {depth} in {file}; convert it to 8 bits first"
            )
    return pixels


def _bytes(image: Image.Image, mode: str) -> _Array:
    """Return `image` as (H, W, C) uint8 in `mode`."""
    if image.mode != mode:
        if "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns where a palette's transparency is dropped in one go
        image = image.convert(mode)
    return np.asarray(image).reshape(image.height, image.width, len(mode))


def _damaged(file: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"expected an image that Pillow reads in {file}: {reason}; repair or remove the file")


def read_npz(path: Path, *, train: bool, limit: int | None, name: str) -> ImageSet:
    """Return one part of the npz file at `path`.

    It holds `train_x, train_y, test_x, test_y`: images as uint8 (N, H, W, C), pixel_max 255, or as float32
    (N, C, H, W) in [0, 1], pixel_max 1; labels as whole numbers from 0. Pickled objects are never loaded. The classes
    are "0", "1", ... up to the largest label of both parts.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        Where the file is no npz file or is damaged, an array is missing, has another type, rank or order of axes, or
        holds Python objects, images lie outside [0, 1], lengths disagree, labels are negative or name more classes
        than there are images, or there is one class only.
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
    if images.dtype not in (np.uint8, np.float32) or images.ndim != 4:
        raise ValueError(
            f"expected {part}_x as uint8 (N, H, W, C) or float32 (N, C, H, W), got {images.dtype} of shape "
            f"{images.shape}; convert with .astype, add a missing channel axis with [..., None]"
        )
    here, there = (-1, 1) if images.dtype == np.uint8 else (1, -1)
    if images.shape[here] not in _CHANNELS and images.shape[there] in _CHANNELS:
        order = "uint8 as (N, H, W, C)" if here == -1 else "float32 as (N, C, H, W)"
        raise ValueError(
            f"expected {part}_x of {order}, got the shape {images.shape}, whose channels seem to be elsewhere; "
            f"move them with numpy.moveaxis({part}_x, {there}, {here})"
        )
    x, pixel_max = torch.from_numpy(images[:limit]), 1.0
    if images.dtype == np.uint8:
        x, pixel_max = unit_images(x), 255.0
    else:
        checks.images(x, name=f"{part}_x")
        x = x if len(x) == len(images) else x.clone()
    num_classes = 1 + max(int(array.max()) for array in labels.values())
    count = sum(map(len, labels.values()))
    if not 2 <= num_classes <= count:
        raise ValueError(
            f"expected labels of at least two classes, numbered from 0, in {path}, got labels up to {num_classes - 1} "
            f"of {count} images; number the classes 0, 1, 2, ..."
        )
    return ImageSet(x, torch.from_numpy(y[:limit]), tuple(map(str, range(num_classes))), pixel_max, name)


def require_file(path: Path) -> None:
    """Raise FileNotFoundError or ValueError, as `read_npz` does, where `path` is no npz file at first sight."""
    if not path.is_file():
        raise FileNotFoundError(f"expected an npz file with {', '.join(_ARRAYS)}, found no file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"expected an npz file, got something else in {path}; write it with numpy.savez")


def _member(stored: Any, array: str, path: Path) -> Any:
    try:
        return stored[array]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"expected numbers in {array} of {path}, got Python objects, which are never loaded; "
                "store one array of one shape"
            ) from error
        raise ValueError(
            f"expected a readable array {array} in {path}, got a damaged one ({error}); write it again"
        ) from error


def _labels(y: _Array, array: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the labels `y` as int64."""
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"expected {array} as whole numbers of shape (N,), got {y.dtype} of shape {y.shape}")
    if len(y) == 0 or y.min() < 0:
        raise ValueError(
            f"expected labels from 0 in {array}, got {f'a minimum of {y.min()}' if len(y) else 'no label'}"
        )
    if y.max() > np.iinfo(np.int64).max:
        raise ValueError(f"expected labels from 0 in {array}, got {y.max()}; number the classes 0, 1, 2, ...")
    return y.astype(np.int64)
