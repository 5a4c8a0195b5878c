"""Measurements in, tables out: the columns of every results table, in the data set's own units.

An empty cell (NaN) means not measured. Lengths (RMS, distance, eps, radius) come in [0, 1] units and are multiplied
by `pixel_max`, the white of the data set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from nbsupport.attacks import Attack, Stability
from nbsupport.boundary import Profile, purity
from nbsupport.detector import Rates
from nbsupport.intervals import Rate, wilson


def _with_interval(*names: str) -> tuple[str, ...]:
    return tuple(name + end for name in names for end in ("", "_low", "_high"))


ATTACKS = (
    *("model", "attack", "solver", "variant", "eps_or_confidence", "n", "n_misclassified"),
    *_with_interval("success_rate"),
    *("mean_rms", "median_rms", "forwards_per_image", "backwards_per_image", "seconds"),
)
REGION = (
    *("model", "examples", "n", "point_accuracy", "region_accuracy", "region_low", "region_high"),
    *("radius", "samples"),
)
BOUNDARY = ("model", "examples", "n", "median_distance", "reached_share", "purity_1", "purity_2", "purity_3")
DETECTOR = (
    *("model", "trained_on", "tested_on", "n_benign", "n_adversarial"),
    *_with_interval("false_positive_rate", "false_negative_rate", "auc"),
)
STABILITY = ("model", "examples", "n", "flips_alone", "flips_batch", "flips_float64", "flips_8bit")


@dataclass(frozen=True)
class AttackRow:
    """An attack on all images it was given, also the misclassified ones. Give `eps` ([0, 1] units) or `confidence`."""

    model: str
    attack: str
    result: Attack
    solver: str | None = None
    variant: str | None = None
    eps: float | None = None
    confidence: float | None = None
    seconds: float = math.nan


@dataclass(frozen=True)
class RegionRow:
    """Labels (N,) int64 of one set of examples: the truth, the classifier's and the vote's.

    `counted` (N,) bool says which images the row is about; None: all. Benign images all count, whether they were
    classified correctly or not. Of an attack's images those count that were attacked (`Attack.correct`), with the
    image that the attack returned, so that the point accuracy is one minus the success rate.
    """

    model: str
    examples: str
    y: Tensor
    point: Tensor
    vote: Tensor
    radius: float
    samples: int
    counted: Tensor | None = None


@dataclass(frozen=True)
class BoundaryRow:
    """The boundary around the images the row is about: correctly classified benign, or successful adversarial ones."""

    model: str
    examples: str
    profile: Profile


@dataclass(frozen=True)
class DetectorRow:
    """The rates of a detector trained on the benign images and one attack, tested with another (or the same)."""

    model: str
    trained_on: str
    tested_on: str
    rates: Rates


@dataclass(frozen=True)
class StabilityRow:
    """Which of an attack's successful examples were undone by scoring them again."""

    model: str
    examples: str
    flips: Stability


def attacks(rows: Iterable[AttackRow], *, pixel_max: float) -> pd.DataFrame:
    """Return one row an attack, columns `ATTACKS`.

    `n` counts the attacked, that is correctly classified, images; rates and passes are over them, `mean_rms` and
    `median_rms` over the successful ones.
    """
    return _frame((_attack(row, pixel_max) for row in rows), ATTACKS)


def region(rows: Iterable[RegionRow], *, pixel_max: float) -> pd.DataFrame:
    """Return one row a set of examples, columns `REGION`: shares of the counted images with the true label."""
    return _frame((_region(row, pixel_max) for row in rows), REGION)


def boundary(rows: Iterable[BoundaryRow], *, num_classes: int, pixel_max: float) -> pd.DataFrame:
    """Return one row a set of examples, columns `BOUNDARY`.

    `median_distance` is the median over images and rays, rays without a boundary being infinitely long; the cell is
    empty where that median is infinite. Purities are means over images.
    """
    return _frame((_boundary(row, num_classes, pixel_max) for row in rows), BOUNDARY)


def detector(rows: Iterable[DetectorRow]) -> pd.DataFrame:
    """Return one row a pair of training and test examples, columns `DETECTOR`."""
    return _frame((_detector(row) for row in rows), DETECTOR)


def stability(rows: Iterable[StabilityRow]) -> pd.DataFrame:
    """Return one row an attack, columns `STABILITY`: the shares of its `n` successful examples that were undone."""
    return _frame((_stability(row) for row in rows), STABILITY)


def ray_medians(profile: Profile) -> NDArray[np.float64]:
    """Return the median distance (N,) of each image's rays, [0, 1] units; inf where half of them meet no boundary."""
    if len(profile.distance) == 0:
        return np.empty(0)
    medians: NDArray[np.float64] = np.median(_array(profile.distance).astype(np.float64), axis=1)
    return medians


def _attack(row: AttackRow, pixel_max: float) -> dict[str, Any]:
    if (row.eps is None) == (row.confidence is None):
        raise ValueError(f"expected eps or confidence for {row.attack}, got {row.eps!r} and {row.confidence!r}")
    correct = _array(row.result.correct)
    success = _array(row.result.success) & correct
    rms = pixel_max * _array(row.result.rms)[success].astype(np.float64)
    n = int(correct.sum())
    return {
        "model": row.model,
        "attack": row.attack,
        "solver": row.solver,
        "variant": row.variant,
        "eps_or_confidence": row.confidence if row.eps is None else pixel_max * row.eps,
        "n": n,
        "n_misclassified": correct.size - n,
        **_cells("success_rate", wilson(int(success.sum()), n)),
        "mean_rms": _mean(rms),
        "median_rms": float(np.median(rms)) if rms.size else math.nan,
        "forwards_per_image": _mean(_array(row.result.forwards)[correct]),
        "backwards_per_image": _mean(_array(row.result.backwards)[correct]),
        "seconds": row.seconds,
    }


def _region(row: RegionRow, pixel_max: float) -> dict[str, Any]:
    y, point, vote = (_array(labels) for labels in (row.y, row.point, row.vote))
    counted = np.full(y.shape, True) if row.counted is None else _array(row.counted)
    accuracy = wilson(int((vote == y)[counted].sum()), int(counted.sum()))
    return {
        "model": row.model,
        "examples": row.examples,
        "n": accuracy.n,
        "point_accuracy": _mean((point == y)[counted]),
        "region_accuracy": accuracy.value,
        "region_low": accuracy.low,
        "region_high": accuracy.high,
        "radius": pixel_max * row.radius,
        "samples": row.samples,
    }


def _boundary(row: BoundaryRow, num_classes: int, pixel_max: float) -> dict[str, Any]:
    distance = _array(row.profile.distance)
    median = float(np.median(distance)) if distance.size else math.nan
    purities = _array(purity(row.profile, num_classes=num_classes, top=3))
    return {
        "model": row.model,
        "examples": row.examples,
        "n": len(distance),
        "median_distance": pixel_max * median if math.isfinite(median) else math.nan,
        "reached_share": _mean(_array(row.profile.reached)),
        **{f"purity_{j + 1}": _mean(purities[:, j]) for j in range(3)},
    }


def _detector(row: DetectorRow) -> dict[str, Any]:
    rates = row.rates
    return {
        "model": row.model,
        "trained_on": row.trained_on,
        "tested_on": row.tested_on,
        "n_benign": rates.false_positive_rate.n,
        "n_adversarial": rates.false_negative_rate.n,
        **_cells("false_positive_rate", rates.false_positive_rate),
        **_cells("false_negative_rate", rates.false_negative_rate),
        **_cells("auc", rates.auc),
    }


def _stability(row: StabilityRow) -> dict[str, Any]:
    flips = row.flips
    return {
        "model": row.model,
        "examples": row.examples,
        "n": len(flips.alone),
        "flips_alone": _mean(_array(flips.alone)),
        "flips_batch": _mean(_array(flips.batch)),
        "flips_float64": _mean(_array(flips.float64)),
        "flips_8bit": _mean(_array(flips.eight_bit)),
    }


def _frame(rows: Iterable[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(columns))


def _cells(name: str, rate: Rate) -> dict[str, float]:
    return dict(zip(_with_interval(name), (rate.value, rate.low, rate.high), strict=True))


def _array(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.detach().cpu().numpy()
    return array


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan
