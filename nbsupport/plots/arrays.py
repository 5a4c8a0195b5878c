"""Tensors, arrays and tables turned into what matplotlib draws, each checked once."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbsupport.intervals import Rate

Values: TypeAlias = ArrayLike | Tensor
ByName: TypeAlias = Mapping[str, Values]  # name of the examples -> what belongs to them
ByModel: TypeAlias = Mapping[str, ByName]
Names: TypeAlias = Sequence[str]
Shape: TypeAlias = Sequence[int | str]  # in which a string is a free length
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


def numbers(values: Values, *, name: str, shape: Shape) -> NDArray[Any]:
    """Return `values` as an array of `shape`, in which a string is a free length; ValueError if it has another one."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    sizes = zip(shape, array.shape, strict=False)
    if array.ndim != len(shape) or any(want != have for want, have in sizes if not isinstance(want, str)):
        wanted = str(tuple(shape)).replace("'", "")
        raise ValueError(f"expected {name} of shape {wanted}, got {array.shape}")
    return array


def floats(values: Values, *, name: str, shape: Shape) -> Floats:
    """Return `values` as float64 of `shape`."""
    return numbers(values, name=name, shape=shape).astype(np.float64)


def labels(values: Values, *, name: str, shape: Shape, classes: Names | None, low: int = 0) -> Integers:
    """Return `values` as int64 labels of `shape`; ValueError if one is not in [low, len(classes))."""
    array = numbers(values, name=name, shape=shape)
    if array.dtype.kind not in "iu":
        raise ValueError(f"expected {name} as whole numbers, got {array.dtype}")
    if classes is not None and array.size and (array.min() < low or array.max() >= len(classes)):
        raise ValueError(
            f"expected {name} from {low} to {len(classes) - 1}, the index of one of {len(classes)} classes, "
            f"got labels from {array.min()} to {array.max()}"
        )
    return array.astype(np.int64)


def images(values: Values, *, name: str, shape: Shape = ("N", "C", "H", "W")) -> Floats:
    """Return images of one or three channels as float64 of `shape`, whose last three axes are C, H, W."""
    array = floats(values, name=name, shape=shape)
    if array.shape[-3] not in (1, 3):
        raise ValueError(f"expected {name} with one channel (grey) or three (RGB), got {array.shape[-3]}")
    return array


def columns(frame: pd.DataFrame, needed: Sequence[str], *, name: str) -> None:
    """Raise ValueError unless `frame` has rows and all of the columns `needed`."""
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise ValueError(f"expected {name} with the columns {', '.join(needed)}; missing: {', '.join(missing)}")
    if frame.empty:
        raise ValueError(f"expected {name} with at least one row, got an empty table")


def not_empty(mapping: Mapping[str, object], *, name: str) -> None:
    """Raise ValueError if there is nothing to draw."""
    if not mapping:
        raise ValueError(f"expected at least one entry in {name}, got none")


def rms(a: Floats, b: Floats) -> Floats:
    """Return the RMS of `a - b` over the last three axes (C, H, W)."""
    return np.asarray(np.sqrt(np.mean((a - b) ** 2, axis=(-3, -2, -1))))


def spread(rates: Sequence[Rate]) -> Floats:
    """Return (3, M): the values of M rates, their lower and their upper ends."""
    return np.array([(rate.value, rate.low, rate.high) for rate in rates]).reshape(-1, 3).T
