"""Every cell of both tables against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from nbsupport import tables_geometry
from nbsupport.boundary import Audit
from nbsupport.intervals import wilson
from nbsupport.tables_geometry import GeometryRow

NAN = math.nan


def row(triple: list[list[int]], **changes: torch.Tensor) -> GeometryRow:
    entries = {
        "reached": torch.tensor([[True, True, False], [True, True, True], [False, False, False]]),
        "returned": torch.tensor([[True, False, False], [True, True, False], [False, False, False]]),
        "angle": torch.tensor([[60.0, 80, NAN], [70, NAN, 90], [NAN, NAN, NAN]], dtype=torch.float64),
    }
    return GeometryRow("pgd", "benign", triple=torch.tensor(triple), **{**entries, **changes})


def test_the_columns() -> None:
    assert ", ".join(tables_geometry.geometry([]).columns) == (
        "model, examples, n, triple_cells, triple_cells_low, triple_cells_high, triple_share, "
        "crossings, reentry_share, reentry_low, reentry_high, mean_angle"
    )
    assert ", ".join(tables_geometry.audit([]).columns) == "model, examples, rays, differing, low, high"


def test_a_row_of_geometry() -> None:
    (found,) = tables_geometry.geometry([row([[0, 4], [1, 1], [0, 0]])]).to_dict("records")
    of_image = np.array([2.0, 1.0, 0.0])
    half = stats.t.ppf(0.975, 2) * of_image.std(ddof=1) / math.sqrt(3)
    again = wilson(3, 5)
    assert found == {
        "model": "pgd",
        "examples": "benign",
        "n": 3,
        "triple_cells": 1.0,
        "triple_cells_low": 0.0,  # not below
        "triple_cells_high": pytest.approx(1 + half),
        "triple_share": pytest.approx(2 / 3),
        "crossings": 5,
        "reentry_share": 0.6,
        "reentry_low": again.low,
        "reentry_high": again.high,
        "mean_angle": pytest.approx(75),
    }


def test_a_low_end_above_zero_stays() -> None:
    (found,) = tables_geometry.geometry([row([[10], [11], [12]])]).to_dict("records")
    assert 0 < found["triple_cells_low"] < 11


def test_equal_images_say_nothing_of_the_spread() -> None:
    (found,) = tables_geometry.geometry([row([[0], [0], [0]])]).to_dict("records")
    assert (found["triple_cells_low"], found["triple_cells"], found["triple_cells_high"]) == (0, 0, math.inf)
    assert found["triple_share"] == 0


def test_without_crossings_cells_stay_empty() -> None:
    none = torch.zeros(3, 3, dtype=torch.bool)
    angle = torch.full((3, 3), NAN, dtype=torch.float64)
    table = tables_geometry.geometry([row([[0], [2], [1]], reached=none, returned=none, angle=angle)])
    (found,) = table.to_dict("records")
    assert found["crossings"] == 0
    assert all(math.isnan(found[name]) for name in ("reentry_share", "reentry_low", "reentry_high", "mean_angle"))


@pytest.mark.parametrize(("wrong", "rays"), [(0, 512), (3, 40), (7, 7)])
def test_a_row_of_the_audit(wrong: int, rays: int) -> None:
    index = torch.arange(rays)
    one = Audit(index, index, index.float(), index, index < wrong)
    (found,) = tables_geometry.audit([("normal", "FGSM", one)]).to_dict("records")
    expected = wilson(wrong, rays)
    assert found == {
        "model": "normal",
        "examples": "FGSM",
        "rays": rays,
        "differing": wrong / rays,
        "low": expected.low,
        "high": expected.high,
    }
    assert 0 <= found["low"] <= found["differing"] <= found["high"] <= 1
