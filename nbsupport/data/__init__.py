"""Labelled images: the published data sets, a folder of images, an npz file."""

from __future__ import annotations

from pathlib import Path

from nbsupport import checks
from nbsupport.data import arrays, folder, published
from nbsupport.data.image_set import ImageSet
from nbsupport.presets import DATASETS

__all__ = ["ImageSet", "load"]

_PUBLISHED = {"digits": published.digits, "mnist": published.mnist, "cifar10": published.cifar10}
_OWN = {"folder": folder.read, "npz": arrays.read}


def load(name: str, *, train: bool, root: str | Path | None = None, limit: int | None = None) -> ImageSet:
    """Return one part of the data set `name`, read into memory.

    Parameters
    ----------
    name : {"digits", "mnist", "cifar10", "folder:PATH", "npz:PATH"}
        `digits` ships inside scikit-learn; `mnist` and `cifar10` are torchvision's and are downloaded, with a
        progress bar, when they are not in `root`. `folder:PATH` is a tree `PATH/train/<class>/<image>` and
        `PATH/test/<class>/<image>` (see `nbsupport.data.folder`); `npz:PATH` is a file of the arrays `train_x`,
        `train_y`, `test_x`, `test_y` (see `nbsupport.data.arrays`).
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
    kind, separator, path = name.partition(":")
    if separator and kind in _OWN:
        if not path:
            raise ValueError(f"expected a path after {name!r}, as in {kind}:/path/to/images")
        return _OWN[kind](Path(path).expanduser(), train=train, limit=limit, name=name)
    checks.choice(f"{kind}:PATH" if separator else name, DATASETS, name="data set")
    return _PUBLISHED[name](train=train, root=published.data_root(root), limit=limit)
