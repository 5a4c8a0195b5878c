"""Every cell of the tables against numbers worked out by hand; columns, units and empty cells."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from nbsupport import tables
from nbsupport.attacks import Attack, Stability
from nbsupport.boundary import Profile
from nbsupport.detector import Rates
from nbsupport.intervals import Rate, wilson
from nbsupport.tables import AttackRow, BoundaryRow, DetectorRow, RegionRow, StabilityRow

INF = math.inf


def bools(*values):
    return torch.tensor(values, dtype=torch.bool)


def attacked(success, correct, rms=(0.0, 0.1, 0.2, 0.6, 0.9)):
    n = len(success)
    return Attack(
        x_adv=torch.zeros(n, 1, 2, 2),
        success=bools(*success),
        correct=bools(*correct),
        rms=torch.tensor(rms[:n]),
        forwards=10 * torch.arange(1, n + 1),
        backwards=torch.arange(1, n + 1),
    )


def profile(distance, adjacent):
    distance, adjacent = torch.tensor(distance), torch.tensor(adjacent)
    return Profile(torch.zeros(len(distance), dtype=torch.int64), distance, adjacent, distance.isfinite())


def cells(frame):
    assert len(frame) == 1
    return frame.iloc[0].to_dict()


@pytest.mark.parametrize(
    ("frame", "columns"),
    [
        (
            tables.attacks([], pixel_max=1),
            "model, attack, solver, variant, eps_or_confidence, n, n_misclassified, success_rate, success_rate_low, "
            "success_rate_high, mean_rms, median_rms, forwards_per_image, backwards_per_image, seconds",
        ),
        (
            tables.region([], pixel_max=1),
            "model, examples, n, point_accuracy, region_accuracy, region_low, region_high, radius, samples",
        ),
        (
            tables.boundary([], num_classes=10, pixel_max=1),
            "model, examples, n, median_distance, reached_share, purity_1, purity_2, purity_3",
        ),
        (
            tables.detector([]),
            "model, trained_on, tested_on, n_benign, n_adversarial, false_positive_rate, false_positive_rate_low, "
            "false_positive_rate_high, false_negative_rate, false_negative_rate_low, false_negative_rate_high, "
            "auc, auc_low, auc_high",
        ),
        (tables.stability([]), "model, examples, n, flips_alone, flips_batch, flips_float64, flips_8bit"),
    ],
)
def test_columns_are_those_of_the_method(frame, columns):
    assert ", ".join(frame) == columns


@pytest.mark.parametrize("pixel_max", [1.0, 255.0])
def test_an_attack_is_counted_over_correctly_classified_images(pixel_max):
    # Image 0 is misclassified; 1, 2 and 3 succeed; 4 fails.
    result = attacked([False, True, True, True, False], [False, True, True, True, True])
    row = AttackRow("pgd", "OPTMARGIN", result, solver="ddn", variant="equations", eps=0.25, seconds=1.5)
    got = cells(tables.attacks([row], pixel_max=pixel_max))
    rate = wilson(3, 4)
    assert (got["model"], got["attack"], got["solver"], got["variant"]) == ("pgd", "OPTMARGIN", "ddn", "equations")
    assert (got["n"], got["n_misclassified"], got["seconds"]) == (4, 1, 1.5)
    assert (got["success_rate"], got["success_rate_low"], got["success_rate_high"]) == (0.75, rate.low, rate.high)
    assert got["eps_or_confidence"] == 0.25 * pixel_max
    assert got["mean_rms"] == pytest.approx(0.3 * pixel_max)
    assert got["median_rms"] == pytest.approx(0.2 * pixel_max)
    assert (got["forwards_per_image"], got["backwards_per_image"]) == (35, 3.5)


def test_a_success_on_a_misclassified_image_never_counts():
    got = cells(tables.attacks([AttackRow("pgd", "PGD", attacked([True, False], [False, True]), eps=1.0)], pixel_max=1))
    assert (got["n"], got["success_rate"]) == (1, 0)


def test_a_confidence_is_no_length():
    row = AttackRow("normal", "OPTSTRONG", attacked([True], [True]), confidence=40.0)
    assert cells(tables.attacks([row], pixel_max=255.0))["eps_or_confidence"] == 40


@pytest.mark.parametrize(("success", "correct", "empty_rate"), [([False], [True], False), ([False], [False], True)])
def test_what_no_attack_achieved_is_an_empty_cell(success, correct, empty_rate):
    got = cells(tables.attacks([AttackRow("normal", "FGSM", attacked(success, correct), eps=0.1)], pixel_max=1))
    assert math.isnan(got["mean_rms"])
    assert math.isnan(got["median_rms"])
    assert math.isnan(got["success_rate"]) == math.isnan(got["forwards_per_image"]) == empty_rate
    for column in ("solver", "variant", "seconds"):
        assert pd.isna(got[column])


@pytest.mark.parametrize("setting", [{}, {"eps": 0.1, "confidence": 1.0}])
def test_an_attack_has_either_eps_or_confidence(setting):
    with pytest.raises(ValueError, match="expected eps or confidence for FGSM, got"):
        tables.attacks([AttackRow("normal", "FGSM", attacked([True], [True]), **setting)], pixel_max=1)


@pytest.mark.parametrize(
    ("counted", "n", "point", "hits"), [(None, 4, 0.25, 3), ((True, True, True, False), 3, 1 / 3, 2)]
)
def test_region_accuracy_is_over_the_counted_images(counted, n, point, hits):
    labels = [torch.tensor(values) for values in ([0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 0, 3])]
    row = RegionRow("normal", "PGD", *labels, 0.02, 100, None if counted is None else bools(*counted))
    got = cells(tables.region([row], pixel_max=255.0))
    rate = wilson(hits, n)
    assert (got["n"], got["samples"]) == (n, 100)
    assert got["point_accuracy"] == pytest.approx(point)
    assert (got["region_accuracy"], got["region_low"], got["region_high"]) == (rate.value, rate.low, rate.high)
    assert got["radius"] == pytest.approx(5.1)


def test_point_accuracy_of_an_attack_is_one_minus_its_success_rate():
    y = torch.arange(5)
    result = attacked([False, True, True, False, False], [False, True, True, True, True])
    point = torch.where(result.success | ~result.correct, (y + 1) % 5, y)
    attack = cells(tables.attacks([AttackRow("normal", "PGD", result, eps=0.1)], pixel_max=1))
    vote = cells(tables.region([RegionRow("normal", "PGD", y, point, y, 0.1, 100, result.correct)], pixel_max=1))
    assert vote["point_accuracy"] == 1 - attack["success_rate"]
    assert vote["n"] == attack["n"]


def test_a_region_row_of_no_image_is_empty():
    labels = torch.zeros(2, dtype=torch.int64)
    got = cells(tables.region([RegionRow("normal", "PGD", labels, labels, labels, 0.1, 9, bools(0, 0))], pixel_max=1))
    assert got["n"] == 0
    assert math.isnan(got["point_accuracy"])
    assert math.isnan(got["region_accuracy"])


@pytest.mark.parametrize(
    ("distance", "median"),
    [
        ([[0.1, 0.2, 0.3], [0.4, 0.5, INF]], 0.35),
        ([[0.1, 0.2, INF], [0.3, INF, 0.4]], 0.35),
        ([[0.1, 0.2, INF], [0.3, INF, INF]], None),  # the upper of the two middle values is infinite
        ([[INF, INF, INF]], None),
    ],
)
def test_the_median_keeps_infinite_rays(distance, median):
    adjacent = [[1 if math.isfinite(t) else -1 for t in row] for row in distance]
    row = BoundaryRow("normal", "benign", profile(distance, adjacent))
    got = cells(tables.boundary([row], num_classes=3, pixel_max=255.0))
    assert got["n"] == len(distance)
    assert got["reached_share"] == pytest.approx(np.isfinite(distance).mean())
    if median is None:
        assert math.isnan(got["median_distance"])
    else:
        assert got["median_distance"] == pytest.approx(255 * median)


def test_purities_are_means_over_images():
    ones = [[0.1] * 4] * 2
    row = BoundaryRow("normal", "FGSM", profile(ones, [[1, 1, 1, 1], [1, 2, 3, 4]]))
    got = cells(tables.boundary([row], num_classes=5, pixel_max=1))
    assert [got[f"purity_{j}"] for j in (1, 2, 3)] == [0.625, 0.75, 0.875]


def test_a_boundary_row_of_no_image_is_empty():
    row = BoundaryRow("normal", "FGSM", profile([[0.1]], [[1]]).take(bools(False)))
    got = cells(tables.boundary([row], num_classes=3, pixel_max=1))
    assert got["n"] == 0
    assert all(math.isnan(got[name]) for name in tables.BOUNDARY[3:])


def test_ray_medians_are_per_image():
    medians = tables.ray_medians(profile([[0.1, 0.3], [0.1, INF], [INF, INF]], [[1, 1], [1, -1], [-1, -1]]))
    assert medians == pytest.approx([0.2, INF, INF])
    assert tables.ray_medians(profile([[0.1]], [[1]]).take(bools(False))).shape == (0,)


def test_detector_rows_show_both_sizes_and_all_intervals():
    rates = Rates(Rate(0.1, 0.05, 0.2, 40), Rate(0.2, 0.15, 0.3, 35), Rate(0.9, 0.8, 0.95, 75))
    got = cells(tables.detector([DetectorRow("pgd", "all", "FGSM", rates)]))
    assert [got[name] for name in tables.DETECTOR] == (
        ["pgd", "all", "FGSM", 40, 35, 0.1, 0.05, 0.2, 0.2, 0.15, 0.3, 0.9, 0.8, 0.95]
    )


def test_flips_are_shares_of_the_successful_examples():
    flips = Stability(bools(0, 0, 0, 0), bools(1, 0, 0, 0), bools(1, 1, 0, 0), bools(1, 1, 1, 0))
    got = cells(tables.stability([StabilityRow("pgd", "PGD", flips)]))
    assert [got[name] for name in tables.STABILITY] == ["pgd", "PGD", 4, 0, 0.25, 0.5, 0.75]


def test_the_flips_of_no_example_are_empty_cells():
    got = cells(tables.stability([StabilityRow("pgd", "PGD", Stability(*[bools()] * 4))]))
    assert got["n"] == 0
    assert all(math.isnan(got[name]) for name in tables.STABILITY[3:])


def test_tables_survive_a_csv_file(tmp_path):
    rows = [
        AttackRow("normal", "FGSM", attacked([False], [True]), eps=0.15),
        AttackRow("normal", "OPTSTRONG", attacked([True], [True]), solver="ddn", confidence=10.0),
    ]
    frame = tables.attacks(rows, pixel_max=1)
    frame.to_csv(tmp_path / "attacks.csv", index=False)
    again = pd.read_csv(tmp_path / "attacks.csv")
    assert list(again) == list(frame)
    assert again["mean_rms"].isna().tolist() == [True, False]
    assert again["n"].tolist() == frame["n"].tolist() == [1, 1]
