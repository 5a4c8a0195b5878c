"""Labelled images: the published data sets, a folder of images, an npz file. Importing it does not load torch."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
from pathlib import Path

from nbsupport import checks
from nbsupport.data import folder, npz, published
from nbsupport.data.image_set import ImageSet
from nbsupport.files import file_digest
from nbsupport.presets import DATASETS

_PUBLISHED = {"digits": published.digits, "mnist": published.mnist, "cifar10": published.cifar10}
_OWN = {"folder": folder.read, "npz": npz.read}


def load(name: str, *, train: bool, root: str | Path | None = None, limit: int | None = None) -> ImageSet:
    """Return one part of the data set `name`, read into memory.

    Parameters
    ----------
    name : {"digits", "mnist", "cifar10", "folder:PATH", "npz:PATH"}
        `digits` ships inside scikit-learn; `mnist` and `cifar10` are torchvision's and are downloaded, with a
        progress bar, when they are not in `root`. `folder:PATH` is a tree `PATH/train/<class>/<image>` and
        `PATH/test/<class>/<image>` (see `nbsupport.data.folder`); `npz:PATH` is a file of the arrays `train_x`,
        `train_y`, `test_x`, `test_y` (see `nbsupport.data.npz`).
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
    return _PUBLISHED[kind](train=train, root=published.data_root(root), limit=limit)


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
        files = published.files_of(kind, train=train, root=published.data_root(root))
        present = all(file.is_file() for file in files)
        seen += [f"{file.name} {_digest(str(file))}" for file in files] if present else ["absent"]
    elif kind == "npz":
        npz.require_file(path)
        seen += [_digest(str(path))]
    else:
        parts, mode = folder.tree(path)
        ordered, _ = folder.in_turn(parts[part].values(), None)
        seen += [mode, *(f"{Path(file).relative_to(path).as_posix()} {_digest(file)}" for file in ordered)]
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


def _digest(file: str) -> str:
    status = os.stat(file)  # noqa: PTH116
    return _stored_digest(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2**18)
def _stored_digest(file: str, size: int, changed: int) -> str:
    return file_digest(Path(file))
