"""Labelled images by name: the published data sets, a folder of images, an npz file. Importing it does not load torch.

The published ones are scikit-learn's digits, and MNIST and CIFAR-10 through torchvision.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import re
import socket
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from nbsupport import checks
from nbsupport.data import own
from nbsupport.data.image_set import ImageSet, unit_images
from nbsupport.files import file_digest
from nbsupport.presets import DATASETS

NETWORK_TIMEOUT = 10.0  # seconds without an answer until a download counts as impossible

_DECLARED: dict[str, Any] = {}  # operators of torchvision; each lasts as long as the library that is kept here
_OWN = {"folder": own.read_folder, "npz": own.read_npz}
_STEMS = {"train": "train", "test": "t10k"}  # of MNIST's files
_BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}  # CIFAR-10's files
_DIGIT_NAMES = tuple(map(str, range(10)))


def load(name: str, *, train: bool, root: str | Path | None = None, limit: int | None = None) -> ImageSet:
    """Return one part of the data set `name`, read into memory.

    Parameters
    ----------
    name : {"digits", "mnist", "cifar10", "folder:PATH", "npz:PATH"}
        `digits` ships inside scikit-learn; `mnist` and `cifar10` are torchvision's and are downloaded, with a
        progress bar, when they are not in `root`. `folder:PATH` is a tree `PATH/train/<class>/<image>` and
        `PATH/test/<class>/<image>` (see `own.read_folder`); `npz:PATH` is a file of the arrays `train_x`, `train_y`,
        `test_x`, `test_y` (see `own.read_npz`).
    train : bool
        True: the training part, False: the test part.
    root : path, optional
        The folder of torchvision's files. None: the environment variable NBSUPPORT_DATA, else `./data`.
    limit : int, optional
        At most so many images, the first in stored order. None: all.

    Returns
    -------
    ImageSet
        x (N, C, H, W) float32 in [0, 1], y (N,) int64, the names of the classes, and `pixel_max`, the data set's
        own unit in which tables and figures state lengths: 1 for `digits` and `mnist`, 255 for `cifar10` and
        image files.

    Raises
    ------
    ValueError
        For an unknown name (with the closest one) and for files whose contents are not as described.
    FileNotFoundError
        Where a file or folder is missing, or a data set can be neither found nor downloaded.
    """
    if limit is not None:
        checks.count(limit, name="limit")
    kind, path = _source(name)
    if path is not None:
        return _OWN[kind](path, train=train, limit=limit, name=name)
    if kind == "digits":
        return _digits(train=train, limit=limit)
    import torch

    source = _downloaded(kind, train=train, root=data_root(root))
    pixels, y = torch.as_tensor(source.data[:limit]), torch.as_tensor(source.targets[:limit])
    if kind == "mnist":
        return ImageSet(unit_images(pixels.unsqueeze(-1)), y, _DIGIT_NAMES, 1.0, name)
    return ImageSet(unit_images(pixels), y, tuple(source.classes), 255.0, name)


def fingerprint(name: str, *, train: bool, root: str | Path | None = None) -> str:
    """Return a SHA-256, in hex, of what `load` would read for one part of the data set `name`.

    It changes with any byte of the files that are read, and with their names and order below a folder. `digits`, which
    has no files of its own, has the version of scikit-learn instead. No image is decoded and nothing downloaded:
    `mnist` and `cifar10` have a fingerprint of their own while their files are absent. A file is read once in a
    process, and again where its size or time of change differs.

    Parameters
    ----------
    name, train, root
        As given to `load`.

    Raises
    ------
    ValueError, FileNotFoundError
        As `load`, as far as names and headers of files show it.
    """
    kind, path = _source(name)
    part = "train" if train else "test"
    seen = [kind, part]
    if kind == "digits":
        seen += [importlib.metadata.version("scikit-learn")]
    elif path is None:
        files = files_of(kind, [part], data_root(root))
        present = all(file.is_file() for file in files)
        seen += [f"{file.name} {file_digest(file)}" for file in files] if present else ["absent"]
    elif kind == "npz":
        own.require_file(path)
        seen += [file_digest(path)]
    else:
        parts, mode = own.tree(path)
        ordered, _ = own.in_turn(parts[part].values(), None)
        names = [Path(file).relative_to(path).as_posix() for file in ordered]
        seen += [mode, *(f"{name} {file_digest(Path(file))}" for name, file in zip(names, ordered, strict=True))]
    return hashlib.sha256("\0".join(seen).encode()).hexdigest()


def _source(name: str) -> tuple[str, Path | None]:
    """Return the kind of the data set `name`, and its path where it is the user's own."""
    kind, separator, path = name.partition(":")
    if separator and kind in _OWN:
        if not path:
            raise ValueError(f"expected a path after {name!r}, as in {kind}:/path/to/images")
        return kind, Path(path).expanduser()
    checks.choice(f"{kind}:PATH" if separator else name, DATASETS, name="data set")
    return kind, None


def data_root(root: str | Path | None) -> Path:
    """Return the folder of torchvision's files: `root`, else $NBSUPPORT_DATA, else `./data`."""
    return Path(root or os.environ.get("NBSUPPORT_DATA") or "data").expanduser().absolute()


def _digits(*, train: bool, limit: int | None) -> ImageSet:
    """Return scikit-learn's handwritten digits: 1297 (train) or 500 (test) of 1x8x8.

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


def files_of(kind: str, parts: Iterable[str], root: Path) -> list[Path]:
    """Return the files that `parts` of `kind` are read from, without torchvision, which loads for 2 s."""
    if kind == "mnist":
        whats = "images-idx3", "labels-idx1"
        return [root / "MNIST" / "raw" / f"{_STEMS[part]}-{what}-ubyte" for part in parts for what in whats]
    batches = [batch for part in parts for batch in _BATCHES[part]]
    return [root / "cifar-10-batches-py" / file for file in (*batches, "batches.meta")]


def torchvision_datasets() -> ModuleType:
    """Return `torchvision.datasets`, imported (1 to 2 s) on the first call.

    A torchvision built for CUDA cannot load its own library beside a CPU-only torch. It then stumbles over two
    operators that nothing here uses, so what is missed is declared, without an implementation, and the import repeated.
    """
    import torch

    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        missed = re.search(r"operator torchvision::(\w+) does not exist", str(error))
        if missed is None or missed[1] in _DECLARED:
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(f"{missed[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED[missed[1]] = library
    return torchvision_datasets()


def _downloaded(kind: str, *, train: bool, root: Path) -> Any:
    """Return torchvision's data set `kind`, downloaded where it is absent, or say which files to put where."""
    datasets = torchvision_datasets()
    published = getattr(datasets, kind.upper())
    try:
        with contextlib.ExitStack() as restored, warnings.catch_warnings():
            # A silent server is given up: torchvision sets no timeout and would wait for minutes.
            restored.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
            socket.setdefaulttimeout(NETWORK_TIMEOUT)
            # CIFAR-10's pickles are from Python 2: some releases of numpy 2.4 deprecate what they hold. Python 3.12
            # and 3.13 deprecate how torchvision unpacks them.
            for category in (np.exceptions.VisibleDeprecationWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            return published(root, train=train, download=True)
    except Exception as error:  # of the network, of archives, of pickles: torchvision hands on what it stumbles over
        files, md5 = files_of(kind, ["train", "test"], root), {}
        archives = [file.with_name(f"{file.name}.gz") for file in files]
        if kind == "cifar10":
            archives = [root / published.filename]
            md5 = {published.meta["filename"]: published.meta["md5"]}
            md5 |= dict([*published.train_list, *published.test_list])
        absent = [file for file in files if not datasets.utils.check_integrity(file, md5.get(file.name))]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if not absent:
            raise ValueError(
                f"{kind.upper()} in {root} cannot be read: one of {', '.join(map(str, files))} is damaged; "
                f"delete these files, so that they are downloaded again ({reason})"
            ) from error
        raise FileNotFoundError(
            f"{kind.upper()} is not in {root} and could not be downloaded.\n"
            f"Missing or damaged: {', '.join(path.name for path in absent)}, expected in {absent[0].parent}.\n"
            f"Put these there, or {' '.join(path.name for path in archives)} in {archives[0].parent} "
            f"(then unpacked by the next call), or name the folder that holds {absent[0].relative_to(root).parts[0]} "
            "by `root` or the environment variable NBSUPPORT_DATA. "
            "The data set `digits` needs no file and no network.\n"
            f"The download ended with {reason}"
        ) from error
