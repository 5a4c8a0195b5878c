"""The tables of what the boundary looks like beyond its distance, and of the probe's audit of itself."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from nbsupport import intervals
from nbsupport.boundary import Audit

GEOMETRY = (
    *("model", "examples", "n", "triple_cells", "triple_cells_low", "triple_cells_high", "triple_share"),
    *("crossings", "reentry_share", "reentry_low", "reentry_high", "mean_angle"),
)
AUDIT = ("model", "examples", "rays", "differing", "low", "high")


@dataclass(frozen=True, eq=False)
class GeometryRow:
    """The boundary around N images of one set of examples, in P planes and along K rays of each.

    Attributes
    ----------
    model, examples : str
        Which images these are.
    triple : Tensor (N, P) int64
        Cells in which three or more classes meet, as `boundary.triple_points` counts them.
    reached, returned : Tensor (N, K) bool
        The rays that meet a boundary, and those that come back to the class of their image beyond it.
    angle : Tensor (N, K) float64
        Between ray and normal of the boundary, in degrees; NaN where there is none.
    """

    model: str
    examples: str
    triple: Tensor
    reached: Tensor
    returned: Tensor
    angle: Tensor


def geometry(rows: Iterable[GeometryRow]) -> pd.DataFrame:
    """Return one row a set of examples, columns `GEOMETRY`.

    `triple_cells` is the mean number of cells in a plane, averaged over the planes of an image and then over images,
    with Student's interval over images (infinite where all have as many); `triple_share` the share of images with
    any. `reentry_share`, of the `crossings` (rays that meet a boundary), comes with Wilson's interval, which takes all
    rays for independent. `mean_angle` is over the rays that have one, in degrees.
    """
    return pd.DataFrame([_geometry(row) for row in rows], columns=list(GEOMETRY))


def audit(found: Iterable[tuple[str, str, Audit]]) -> pd.DataFrame:
    """Return one row for each (model, examples, audit), columns `AUDIT`.

    `differing` is the share of the audited rays of which the profile states another distance or another class, with
    Wilson's 95 % interval.
    """
    rows = []
    for model, examples, one in found:
        rate = intervals.wilson(int(one.differs.sum()), len(one.differs))
        rows.append((model, examples, rate.n, rate.value, rate.low, rate.high))
    return pd.DataFrame(rows, columns=list(AUDIT))


def _geometry(row: GeometryRow) -> dict[str, str | float]:
    of_image = row.triple.double().mean(1)
    cells = intervals.mean(of_image.numpy(), bounds=(0, math.inf))
    crossings = int(row.reached.sum())
    again = intervals.wilson(int(row.returned.sum()), crossings)
    return {
        "model": row.model,
        "examples": row.examples,
        "n": cells.n,
        "triple_cells": cells.value,
        "triple_cells_low": max(cells.low, 0.0),
        "triple_cells_high": cells.high,
        "triple_share": float((of_image > 0).double().mean()),
        "crossings": crossings,
        "reentry_share": again.value,
        "reentry_low": again.low,
        "reentry_high": again.high,
        "mean_angle": float(row.angle.nanmean()),
    }
