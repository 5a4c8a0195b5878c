"""The published data sets: scikit-learn's digits, and MNIST and CIFAR-10 through torchvision."""

from __future__ import annotations

import contextlib
import functools
import http.client
import importlib
import os
import pickle
import socket
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from nbsupport.data.image_set import ImageSet, unit_images

if TYPE_CHECKING:
    import torch

NETWORK_TIMEOUT = 10.0  # seconds without an answer until a download counts as impossible

_DIGIT_NAMES = tuple(map(str, range(10)))
_UNREADABLE = (
    RuntimeError,  # torchvision: not found, or not the published checksum
    OSError,  # no network, no permission, a truncated gzip
    EOFError,
    AssertionError,  # torchvision's reader of MNIST's files
    ValueError,
    LookupError,
    http.client.HTTPException,
    pickle.UnpicklingError,
    tarfile.TarError,
    zlib.error,
)


def data_root(root: str | Path | None) -> Path:
    """Return the folder of torchvision's files: `root`, else $NBSUPPORT_DATA, else `./data`."""
    return Path(root or os.environ.get("NBSUPPORT_DATA") or "data").expanduser().absolute()


def digits(*, train: bool, root: Path, limit: int | None) -> ImageSet:
    """Return scikit-learn's handwritten digits: 1297 (train) or 500 (test) of 1x8x8; `root` is not used.

    The split is stratified and fixed; the order is the one that the split returns.
    """
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    every = np.arange(len(source.target))
    parts = train_test_split(every, test_size=500, stratify=source.target, random_state=0)  # training, test
    index = parts[0 if train else 1][:limit]
    x = torch.from_numpy(source.images[index] / 16).float().unsqueeze(1)
    return ImageSet(x, torch.from_numpy(source.target[index]).long(), _DIGIT_NAMES, 1.0, "digits")


def mnist(*, train: bool, root: Path, limit: int | None) -> ImageSet:
    """Return torchvision's MNIST: 60000 (train) or 10000 (test) of 1x28x28."""
    source = _source("MNIST", train=train, root=root)
    x = unit_images(source.data[:limit].unsqueeze(-1))
    return ImageSet(x, source.targets[:limit].long(), _DIGIT_NAMES, 1.0, "mnist")


def cifar10(*, train: bool, root: Path, limit: int | None) -> ImageSet:
    """Return torchvision's CIFAR-10: 50000 (train) or 10000 (test) of 3x32x32."""
    import torch

    source = _source("CIFAR10", train=train, root=root)
    x = unit_images(torch.from_numpy(source.data[:limit]))
    return ImageSet(x, torch.tensor(source.targets[:limit]), tuple(source.classes), 255.0, "cifar10")


def files_of(name: str, *, train: bool, root: Path) -> list[Path]:
    """Return the files that one part of `mnist` or `cifar10` is read from, without torchvision, which loads for 2 s."""
    if name == "mnist":
        stem = "train" if train else "t10k"
        return [root / "MNIST" / "raw" / f"{stem}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    batches = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]
    return [root / "cifar-10-batches-py" / file for file in (*batches, "batches.meta")]


def torchvision_datasets() -> ModuleType:
    """Return `torchvision.datasets`, imported (1 to 2 s) on the first call.

    A torchvision built for CUDA cannot load its own library beside a CPU-only torch. It then stumbles over two
    operators that nothing here uses, so they are declared, without an implementation, and the import repeated.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if not ("operator torchvision::" in str(error) and "does not exist" in str(error)):
            raise
    _declare_operators()
    return importlib.import_module("torchvision.datasets")


@functools.cache
def _declare_operators() -> torch.library.Library:
    """Declare torchvision's operators that are absent; they last as long as the library, which the cache keeps."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _source(kind: str, *, train: bool, root: Path) -> Any:
    """Return torchvision's data set `kind`, downloaded where it is absent, or say which files to put where."""
    datasets = torchvision_datasets()
    published = getattr(datasets, kind)
    try:
        with _impatient(), warnings.catch_warnings():
            # CIFAR-10's pickles are from Python 2: some releases of numpy 2.4 deprecate what they hold. Python 3.12
            # and 3.13 deprecate how torchvision unpacks them.
            for category in (np.exceptions.VisibleDeprecationWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            return published(root, train=train, download=True)
    except _UNREADABLE as error:
        files, archives = _files(published, root)
        check = datasets.utils.check_integrity
        absent = [path for path, md5 in files.items() if not check(path, md5)]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if not absent:
            raise ValueError(
                f"{kind} in {root} cannot be read: one of {', '.join(map(str, files))} is damaged; "
                f"delete these files, so that they are downloaded again ({reason})"
            ) from error
        raise FileNotFoundError(
            f"{kind} is not in {root} and could not be downloaded.\n"
            f"Missing or damaged: {', '.join(path.name for path in absent)}, expected in {absent[0].parent}.\n"
            f"Put these there, or {' '.join(path.name for path in archives)} in {archives[0].parent} "
            f"(then unpacked by the next call), or name the folder that holds {absent[0].relative_to(root).parts[0]} "
            "by `root` or the environment variable NBSUPPORT_DATA. "
            "The data set `digits` needs no file and no network.\n"
            f"The download ended with {reason}"
        ) from error


def _files(published: Any, root: Path) -> tuple[dict[Path, str | None], list[Path]]:
    """Return the files that torchvision reads, with their md5 where it checks one, and the archives they come in."""
    if published.__name__ == "MNIST":
        folder = root / "MNIST" / "raw"
        archives = [folder / name for name, _ in published.resources]
        return {archive.with_suffix(""): None for archive in archives}, archives
    folder = root / published.base_folder
    listed = [*published.train_list, *published.test_list, (published.meta["filename"], published.meta["md5"])]
    return {folder / name: md5 for name, md5 in listed}, [root / published.filename]


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Give up on a silent server after NETWORK_TIMEOUT: torchvision sets no timeout and would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
