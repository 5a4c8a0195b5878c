"""Every claim's statistic against a count by hand, its verdict, and what must never pass for one."""

import functools
import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nbsupport import claims, intervals, presets, suite, tables
from nbsupport.intervals import Rate

N = 40
SAMPLE = np.random.default_rng(5).normal(0.3, 1.0, 50)


def measured(
    examples, *, model="normal", n=N, success=1.0, voted=1.0, median=0.1, below=0.2, purity=0.9, rms=0.2, **changes
):
    """Return a set of `n` correctly classified images of label 0; `success` and `voted` are shares of label 0 lost/won.

    The first images succeed, the first ones win the vote.
    """
    order = np.arange(n)
    won = order < round(voted * n)
    fooled = order < round(success * n) if examples != "benign" else np.zeros(n, bool)
    columns = {
        "model": model,
        "examples": examples,
        "index": 3 * order,
        "y": np.zeros(n, int),
        "correct": np.ones(n, bool),
        "success": fooled,
        "converged": pd.NA,
        "rms": np.full(n, rms) + 1e-3 * (order % 7),
        "point": fooled.astype(int),
        "vote": (~won).astype(int),
        "median_distance": np.full(n, median),
        "share_below_region_line": np.full(n, below) + 1e-3 * (order % 3),
        "purity_1": np.full(n, purity) + 1e-3 * (order % 5),
    }
    return pd.DataFrame({**columns, **changes})


def table(*sets, detectors=None, adaptive=None, pixel_max=1.0):
    return claims.table(pd.concat(sets, ignore_index=True), detectors, adaptive, pixel_max=pixel_max)


def row(claim, *sets, model="normal", examples, says="", **others):
    """The one row of a claim whose statement contains `says`."""
    frame = table(*sets, **others)
    chosen = frame[(frame.claim == claim) & (frame.model == model) & (frame.examples == examples)]
    chosen = chosen[chosen.statement.str.contains(says)]
    assert len(chosen) == 1, frame[["claim", "model", "examples", "statement"]]
    return chosen.iloc[0]


def detection(model, trained_on, tested_on, area, sizes, *, kind="network", target=0.05, rate=math.nan):
    """A row of detector.csv with `area` (auc, its low and high end) on `sizes` benign and adversarial images."""
    found = {"model": model, "detector": kind, "trained_on": trained_on, "tested_on": tested_on, "target_fpr": target}
    found |= dict(zip(("n_benign", "n_adversarial"), sizes, strict=True))
    found |= dict(zip(("auc", "auc_low", "auc_high"), area, strict=True))
    return pd.DataFrame([found | {"false_positive_rate": rate}])


def defence(name, success, *, attack="minimum", model="normal", n=N, budget=0.06, rate=math.nan):
    """A row of adaptive.csv: the share `success` of `n` images evades the defence `name`."""
    found = {"model": model, "defence": name, "attack": attack, "source_model": model, "transfer": False}
    return pd.DataFrame([found | {"n": n, "success_rate": success, "budget_rms": budget, "fpr": rate}])


def agrees(got, rate, threshold):
    assert (got.statistic, got.low, got.high, got.n) == pytest.approx((rate.value, rate.low, rate.high, rate.n))
    assert got.threshold == threshold
    return True


@pytest.mark.parametrize(
    ("low", "high", "n", "expected"),
    [
        (0.6, 0.8, 30, "holds"),
        (0.6, 0.8, 29, "undecided"),  # too few
        (0.2, 0.4, 30, "fails"),
        (0.2, 0.4, 29, "undecided"),
        (0.4, 0.6, 1000, "undecided"),
        (0.5, 0.8, 1000, "undecided"),  # touching the threshold is not wholly on one side
        (0.2, 0.5, 1000, "undecided"),
        (math.nan, 0.8, 1000, "undecided"),
        (0.6, math.nan, 1000, "undecided"),
        (math.nan, 0.2, 1000, "undecided"),
        (-math.inf, math.inf, 1000, "undecided"),
        (0.6, math.inf, 1000, "holds"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(low, high, n, expected):
    assert claims.verdict(Rate(0.5 * (low + high) if high < math.inf else 1.0, low, high, n), 0.5) == expected


def test_a_missing_statistic_is_undecided():
    assert claims.verdict(Rate(math.nan, 0.6, 0.8, 100), 0.5) == "undecided"


@pytest.mark.parametrize(("n", "share", "verdict"), [(200, 1.0, "holds"), (40, 1.0, "undecided"), (40, 0.5, "fails")])
@pytest.mark.parametrize("name", suite.OPTMARGINS)
def test_claim_1_is_a_success_rate(name, n, share, verdict):
    got = row(1, measured(name, n=n, success=share), examples=name)
    assert agrees(got, intervals.wilson(round(n * share), n), 0.95)
    assert got.verdict == verdict
    assert name in got.statement


def test_claim_1_ignores_misclassified_images():
    correct = np.arange(N) < 30
    got = row(1, measured("OPTMARGIN", correct=correct), examples="OPTMARGIN")
    assert agrees(got, intervals.wilson(30, 30), 0.95)


@pytest.mark.parametrize(("margin", "verdict"), [(0.3, "holds"), (0.1, "fails")])
@pytest.mark.parametrize("pixel_max", [1.0, 255.0])
def test_claim_2_pairs_images_that_both_attacks_changed(margin, verdict, pixel_max):
    generator = np.random.default_rng(0)
    first, second = margin + 0.02 * generator.random(N), 0.2 + 0.02 * generator.random(N)
    margins = measured("OPTMARGIN", success=0.9).assign(rms=pixel_max * first)
    brittle = measured("OPTBRITTLE").assign(rms=pixel_max * second)
    got = row(2, margins, brittle, examples="OPTMARGIN", pixel_max=pixel_max)
    assert agrees(got, intervals.mean(pixel_max * (first - second)[:36]), 0.0)
    assert got.verdict == verdict


@pytest.mark.parametrize(
    ("shares", "verdict"), [((0.9, 0.3), "holds"), ((0.3, 0.9), "fails"), ((0.5, 0.5), "undecided")]
)
def test_claim_3_compares_the_models(shares, verdict):
    sets = [measured("FGSM", model=m, success=s) for m, s in zip(("normal", "pgd"), shares, strict=True)]
    got = row(3, *sets, model="pgd", examples="FGSM")
    rates = [intervals.wilson(round(N * share), N) for share in shares]
    assert agrees(got, intervals.difference_of_rates(*rates), 0.0)
    assert got.verdict == verdict


def test_claim_3_needs_both_models():
    frame = table(measured("FGSM"))
    assert 3 not in set(frame.claim)


@pytest.mark.parametrize(("n", "voted", "verdict"), [(300, 1.0, "holds"), (40, 1.0, "undecided"), (200, 0.9, "fails")])
def test_claim_4_on_benign_images_keeps_the_width_of_equal_answers(n, voted, verdict):
    got = row(4, measured("benign", n=n, voted=voted), examples="benign")
    won = np.arange(n) < voted * n
    assert agrees(got, intervals.paired_difference_of_rates(won, np.ones(n)), -0.02)
    assert got.high > got.statistic > got.low
    assert got.verdict == verdict


def test_claim_4_counts_benign_images_that_were_misclassified():
    wrong = np.arange(N) < 8
    got = row(4, measured("benign", correct=~wrong, point=wrong.astype(int), voted=1.0), examples="benign")
    assert got.statistic == pytest.approx(8 / N)  # the vote corrects them
    assert got.n == N


@pytest.mark.parametrize(("voted", "verdict"), [(1.0, "holds"), (0.1, "fails")])
def test_claim_4_on_optbrittle_counts_attacked_images(voted, verdict):
    correct = np.arange(N) < 36
    got = row(4, measured("OPTBRITTLE", voted=voted, correct=correct), examples="OPTBRITTLE")
    assert got.statistic == pytest.approx(min(round(voted * N), 36) / 36)
    assert (got.n, got.threshold, got.verdict) == (36, 0.5, verdict)


FOOLED, ATTACKED = "over the images that both fooled", "over the images attacked"


@pytest.mark.parametrize("other", ["FGSM", "PGD", "OPTBRITTLE", "OPTSTRONG"])
@pytest.mark.parametrize("margin", suite.OPTMARGINS)
@pytest.mark.parametrize("says", [FOOLED, ATTACKED])
def test_claim_5_is_of_common_images(other, margin, says):
    half = measured(margin, n=32, voted=0.25)  # the slow attack was given fewer images
    got = row(5, measured(other, voted=1.0), half, examples=f"{other} - {margin}", says=says)
    assert agrees(got, intervals.paired_difference_of_rates(np.ones(32), np.arange(32) < 8), 0.0)
    assert (got.verdict, got.decides) == ("holds", says == FOOLED)
    got = row(5, measured(other, voted=0.25), measured(margin, voted=1.0), examples=f"{other} - {margin}", says=says)
    assert got.verdict == "fails"


def test_images_on_which_an_attack_failed_do_not_decide_claim_5():
    # FGSM fails on the last 60 images, where the vote is right of course; where it succeeds OPTMARGIN evades no better.
    order = np.arange(100)
    fgsm = measured("FGSM", n=100, success=0.4, vote=((order < 40) & (order % 2 == 0)).astype(int))
    margin = measured("OPTMARGIN", n=100, vote=(order % 2 == 0).astype(int))
    beside, decisive = (row(5, fgsm, margin, examples="FGSM - OPTMARGIN", says=says) for says in (ATTACKED, FOOLED))
    assert (beside.verdict, beside.decides) == ("holds", False)
    assert (decisive.statistic, decisive.n, decisive.verdict, decisive.decides) == (0, 40, "undecided", True)


@pytest.mark.parametrize(("kept", "rows"), [(0.0, 1), (0.05, 1), (0.07, 0), (0.3, 0)])
def test_the_distortion_is_compared_with_attacks_that_evade_the_vote_as_well(kept, rows):
    strong = measured("OPTSTRONG", n=200, voted=kept, rms=0.3, success=0.9)  # upper ends: .02, .09, .11, .37
    frame = table(strong, measured("OPTMARGIN", n=50, rms=0.2))
    found = frame[(frame.claim == 5) & frame.statement.str.contains("distorts less")]
    assert len(found) == rows
    for got in found.itertuples():
        assert (got.statistic, got.n, got.verdict, got.decides) == (pytest.approx(0.1), 50, "holds", False)
        assert "OPTMARGIN distorts less than OPTSTRONG" in got.statement


NEARER, BELOW = "the median ray is shorter", "more rays end within"


@pytest.mark.parametrize(
    ("adversarial", "benign", "share", "verdict"),
    [(0.1, 0.2, 1.0, "holds"), (0.2, 0.1, 0.0, "fails"), (0.1, math.inf, 1.0, "holds"), (math.inf, 0.1, 0.0, "fails")],
)
def test_claim_6_compares_medians(adversarial, benign, share, verdict):
    sets = measured("PGD", median=adversarial), measured("benign", median=benign)
    got = row(6, *sets, examples="PGD", says=NEARER)
    assert agrees(got, intervals.wilson(round(N * share), N), 0.5)
    assert (got.verdict, got.verdict_if_all_for, got.verdict_if_all_against) == (verdict,) * 3


def test_pairs_whose_medians_are_both_infinite_leave_claim_6_open():
    sets = measured("PGD", median=math.inf), measured("benign", median=math.inf)
    got = row(6, *sets, examples="PGD", says=NEARER)
    assert (got.n, got.verdict) == (0, "undecided")
    assert (got.verdict_if_all_for, got.verdict_if_all_against) == ("holds", "fails")
    assert math.isnan(got.statistic)
    assert pd.isna(got.n_needed)  # no number of such images decides it


@pytest.mark.parametrize(
    ("nearer", "unknown", "expected"),  # of 100 images
    [
        (60, 0, ("holds", "holds", "holds")),
        (95, 4, ("holds", "holds", "holds")),
        (70, 30, ("holds", "holds", "holds")),  # the others are unknown, and 70 of 100 are enough
        (45, 40, ("undecided", "holds", "undecided")),  # 45 of the 60 known ones would hold
        (5, 20, ("fails", "fails", "fails")),
        (5, 60, ("undecided", "holds", "fails")),
        (29, 71, ("undecided", "holds", "fails")),  # 29 known ones are too few
    ],
)
def test_claim_6_is_decided_where_both_bounds_agree(nearer, unknown, expected):
    order = np.arange(100)
    own = np.select([order < nearer, order < nearer + unknown], [0.1, math.inf], 0.3)
    benign = np.where((order >= nearer) & (order < nearer + unknown), math.inf, 0.2)
    sets = measured("PGD", n=100, median_distance=own), measured("benign", n=100, median_distance=benign)
    got = row(6, *sets, examples="PGD", says=NEARER)
    assert agrees(got, intervals.wilson(nearer, 100 - unknown), 0.5)
    assert (got.verdict, got.verdict_if_all_for, got.verdict_if_all_against) == expected


def test_claim_6_is_of_successful_examples_that_were_probed():
    medians = np.where(np.arange(N) < 35, 0.1, math.nan)
    pgd = measured("PGD", success=0.8, median_distance=medians)  # successes are 0-31
    benign = measured("benign", median=0.2, correct=np.arange(N) >= 2)
    assert row(6, pgd, benign, examples="PGD", says=NEARER).n == 30


@pytest.mark.parametrize(("below", "verdict"), [(0.4, "holds"), (0.1, "fails")])
def test_rays_below_the_line_of_the_region_need_no_median(below, verdict):
    generator = np.random.default_rng(2)
    first, second = below + 0.05 * generator.random(N), 0.2 + 0.05 * generator.random(N)
    sets = [measured("PGD", median=math.inf, share_below_region_line=first)]
    sets += [measured("benign", median=math.inf, share_below_region_line=second)]
    got = row(6, *sets, examples="PGD", says=BELOW)
    assert agrees(got, intervals.mean(first - second), 0.0)
    assert got.verdict == verdict


PURER, ONE_CLASS = "is purer than", "lead to one class"


@pytest.mark.parametrize(("purity", "verdict"), [(0.9, "holds"), (0.5, "fails")])
def test_claim_7_is_a_paired_difference(purity, verdict):
    generator = np.random.default_rng(1)
    first, second = purity + 0.05 * generator.random(N), 0.7 + 0.05 * generator.random(N)
    sets = measured("FGSM", purity_1=first), measured("benign", purity_1=second)
    got = row(7, *sets, examples="FGSM", says=PURER)
    assert agrees(got, intervals.mean(first - second), 0.0)
    assert got.verdict == verdict


def test_pairs_without_a_reached_ray_are_no_difference():
    order = np.arange(N)
    first = np.where(order < 4, 0.0, 0.9 + 1e-3 * order)
    second = np.where((order >= 2) & (order < 7), 0.0, 0.5)
    got = row(7, measured("FGSM", purity_1=first), measured("benign", purity_1=second), examples="FGSM", says=PURER)
    assert agrees(got, intervals.mean((first - second)[7:]), 0.0)


@pytest.mark.parametrize(
    ("pure", "unknown", "expected"),
    [
        (80, 0, ("holds", "holds", "holds")),
        (20, 0, ("fails", "fails", "fails")),
        (65, 30, ("holds", "holds", "holds")),
        (45, 40, ("undecided", "holds", "undecided")),
        (0, 100, ("undecided", "holds", "fails")),
    ],
)
def test_most_rays_lead_to_one_class(pure, unknown, expected):
    order = np.arange(100)
    purity = np.select([order < pure, order < pure + unknown], [0.51, 0.0], 0.5)  # .5 is not most
    got = row(7, measured("FGSM", n=100, purity_1=purity), examples="FGSM", says=ONE_CLASS)
    assert agrees(got, intervals.wilson(pure, 100 - unknown), 0.5) if unknown < 100 else got.n == 0
    assert (got.verdict, got.verdict_if_all_for, got.verdict_if_all_against) == expected


def test_a_difference_that_never_varies_must_be_large_for_a_verdict():
    tiny = {"purity_1": np.full(N, 0.701)}, {"purity_1": np.full(N, 0.7)}
    got = row(7, measured("FGSM", **tiny[0]), measured("benign", **tiny[1]), examples="FGSM", says=PURER)
    assert got.low < 0 < got.statistic
    assert got.verdict == "undecided"
    large = {"purity_1": np.full(N, 1.0)}, {"purity_1": np.full(N, 0.5)}
    got = row(7, measured("FGSM", **large[0]), measured("benign", **large[1]), examples="FGSM", says=PURER)
    assert got.verdict == "holds"


@pytest.mark.parametrize("name", ["noise", "errors", "benign", "mimic"])
def test_controls_are_no_adversarial_examples(name):
    frame = table(measured("benign"), measured("FGSM"), *[measured(name)] * (name != "benign"))
    assert set(frame[frame.claim.isin([6, 7, 9])].examples) == {"FGSM"}


@pytest.mark.parametrize(
    ("area", "sizes", "verdict"),
    [
        ((0.98, 0.93, 0.99), (40, 30), "holds"),
        ((0.98, 0.93, 0.99), (40, 29), "undecided"),
        ((0.98, 0.93, 0.99), (29, 40), "undecided"),
        ((0.95, 0.85, 0.99), (40, 40), "undecided"),
        ((0.7, 0.6, 0.8), (40, 40), "fails"),
        ((math.nan, math.nan, math.nan), (40, 0), "undecided"),
    ],
)
def test_claim_8_reads_the_detectors_tested_on_their_own_attack(area, sizes, verdict):
    pairs = [(a, b) for a in ("FGSM", "all") for b in ("FGSM", "all")]
    detectors = pd.concat(detection("pgd", *pair, area, sizes) for pair in pairs)
    assert table(measured("noise"), detectors=detectors).examples.tolist() == ["FGSM", "all"]
    got = row(8, measured("noise"), model="pgd", examples="all", detectors=detectors)
    assert (got.n, got.threshold, got.verdict) == (min(sizes), 0.9, verdict)
    assert (got.statistic, got.low, got.high) == pytest.approx(area, nan_ok=True)


def test_claim_8_is_of_the_network_at_one_rate_with_the_baselines_beside_it():
    area = (0.98, 0.93, 0.99)
    kinds = ("network", "one-ray", "boosting", "no-purity")
    detectors = [
        detection("pgd", "all", "all", area, (N, N), kind=kind, target=t) for kind in kinds for t in (0.05, 0.5)
    ]
    frame = table(measured("noise"), detectors=pd.concat(detectors))
    assert frame.decides.tolist() == [True, False, False, False]
    assert [text.split(" separates")[0].split()[-1] for text in frame.statement] == ["information", *kinds[1:]]


@pytest.mark.parametrize(("rate", "verdict"), [(0.1, "holds"), (0.9, "fails"), (0.5, "undecided")])
@pytest.mark.parametrize("control", ["noise", "errors", "matched"])
def test_controls_that_the_detector_lets_pass_stand_beside_claim_8(control, rate, verdict):
    none = (math.nan,) * 3
    detectors = [detection("pgd", name, control, none, (N, 0), rate=rate) for name in ("all", "OPTMARGIN")]
    detectors += [detection("pgd", "all", control, none, (N, 0), rate=rate, kind="boosting")]
    got = row(8, measured("FGSM"), model="pgd", examples=control, says=" pass$", detectors=pd.concat(detectors))
    assert agrees(got, intervals.wilson(round((1 - rate) * N), N), 0.5)
    assert (got.verdict, got.decides) == (verdict, False)


@pytest.mark.parametrize(("area", "verdict"), [((0.98, 0.93, 0.99), "holds"), ((0.6, 0.5, 0.7), "fails")])
def test_images_of_like_distance_are_separated_beside_claim_8(area, verdict):
    detectors = detection("pgd", "all", "matched", area, (N, 35), rate=0.5)
    got = row(8, measured("FGSM"), model="pgd", examples="matched", says="like median distance", detectors=detectors)
    assert (got.statistic, got.n, got.threshold, got.verdict) == (area[0], 35, 0.9, verdict)
    assert not got.decides


def test_a_control_without_images_is_not_measured():
    none = (math.nan,) * 3
    got = row(8, measured("FGSM"), examples="errors", detectors=detection("normal", "all", "errors", none, (0, 0)))
    assert (got.n, got.verdict) == (0, "undecided")


@pytest.mark.parametrize(("scores", "verdict"), [("perfect", "holds"), ("blind", "fails"), ("few", "undecided")])
def test_a_perfect_and_a_blind_detector_come_out_as_what_they_are(scores, verdict):
    generator = np.random.default_rng(3)
    benign, adversarial = generator.random((2, 12 if scores == "few" else N))
    area = intervals.roc_auc(benign, adversarial + (scores != "blind"))
    sizes, ends = (len(benign), len(adversarial)), (area.value, area.low, area.high)
    got = row(8, measured("FGSM"), examples="all", detectors=detection("normal", "all", "all", ends, sizes))
    assert got.verdict == verdict
    assert (got.statistic == 1) == (scores != "blind")


def test_an_area_whose_interval_is_newcombe_s_has_the_p_of_its_score_test():
    area, m, n, threshold = intervals.area(0.97, 60, 80), 60, 80, 0.9
    row_of = detection("normal", "all", "all", (area.value, area.low, area.high), (m, n)).iloc[0]
    spread = 1 + ((m + n) / 2 - 1) * ((1 - threshold) / (2 - threshold) + threshold / (1 + threshold))
    z = (0.97 - threshold) / math.sqrt(threshold * (1 - threshold) * spread / (m * n))
    assert claims.p_value(claims._area(row_of), threshold) == pytest.approx(2 * stats.norm.sf(z), rel=1e-6)


@pytest.mark.parametrize("wider", [1.0, 1.5, 3.0])
def test_a_wider_interval_of_an_area_has_a_larger_p(wider):
    area, found = intervals.area(0.97, 60, 80), []
    for width in (1.0, wider):
        ends = (0.97, 0.97 - width * (0.97 - area.low), min(1.0, 0.97 + width * (area.high - 0.97)))
        row_of = detection("normal", "all", "all", ends, (60, 80)).iloc[0]
        found.append(claims.p_value(claims._area(row_of), 0.9))
        assert (found[-1] < 0.05) == (ends[1] > 0.9)
    assert found[1] >= found[0]


@pytest.mark.parametrize("name", ["FGSM", "OPTBRITTLE", "OPTSTRONG", "OPTMARGIN", "mine"])
@pytest.mark.parametrize(("voted", "verdict"), [(1.0, "holds"), (0.0, "fails"), (0.5, "undecided")])
def test_claim_9_is_of_successful_examples_of_every_attack(name, voted, verdict):
    got = row(9, measured(name, voted=voted, success=0.9), examples=name)
    assert agrees(got, intervals.wilson(min(round(voted * N), 36), 36), 0.5)
    assert got.verdict == verdict


@pytest.mark.parametrize(("claim", "name", "rate"), [(10, "detector", 0.05), (11, "vote", math.nan)])
@pytest.mark.parametrize(("success", "verdict"), [(0.1, "holds"), (0.9, "fails"), (0.5, "undecided")])
def test_claims_10_and_11_are_about_the_best_attack_for_each_image(claim, name, rate, success, verdict):
    rows = [defence(name, success, rate=rate), defence(name, 0.0, attack="EOT", rate=rate)]
    rows += [defence(name, 1.0, rate=rate, budget=math.nan), defence("detector", 1.0, rate=0.5)]
    rows += [defence(other, 1.0) for other in ("point", "vote + detector")]
    got = row(claim, measured("FGSM"), examples="minimum", adaptive=pd.concat(rows))
    assert agrees(got, intervals.wilson(round((1 - success) * N), N), 0.5)
    assert (got.verdict, got.decides) == (verdict, True)
    assert "within an RMS of 0.06" in got.statement


def test_an_attack_that_was_given_no_image_leaves_claim_11_open():
    got = row(11, measured("FGSM"), examples="minimum", adaptive=defence("vote", math.nan, n=0))
    assert (got.n, got.verdict) == (0, "undecided")


# Beside the plain verdict


@pytest.mark.parametrize(
    ("interval", "threshold", "expected"),
    [
        (partial(intervals.wilson, 45, 60), 0.5, 2 * stats.norm.sf(0.25 / math.sqrt(0.25 / 60))),  # the score test's
        (partial(intervals.wilson, 60, 60), 0.95, 2 * stats.norm.sf(0.05 / math.sqrt(0.95 * 0.05 / 60))),
        (partial(intervals.mean, SAMPLE), 0.0, stats.ttest_1samp(SAMPLE, 0).pvalue),
        (partial(intervals.mean, SAMPLE), 0.4, stats.ttest_1samp(SAMPLE, 0.4).pvalue),
        (partial(intervals.wilson, 30, 60), 0.5, 1.0),
        (partial(intervals.wilson, 60, 60), 0.01, 1e-12),  # the least that is told apart
        (partial(intervals.mean, [0.2] * 30), 0.0, 1.0),  # an interval without bounds excludes nothing
    ],
)
def test_p_is_the_smallest_alpha_whose_interval_excludes_the_threshold(interval, threshold, expected):
    assert claims.p_value(interval, threshold) == pytest.approx(expected, rel=1e-6)


def test_what_was_not_measured_has_no_p():
    assert math.isnan(claims.p_value(partial(intervals.wilson, 0, 0), 0.5))


def test_holm_by_hand():
    # Ordered: .01 x 4, .02 x 3, .03 x 2 which is not above the .06 before it, .5 x 1.
    np.testing.assert_allclose(claims.holm([0.03, 0.5, 0.01, 0.02]), [0.06, 0.5, 0.04, 0.06])
    np.testing.assert_allclose(claims.holm([0.9, 0.8]), [1.0, 1.0])
    assert claims.holm([]).shape == (0,)


def test_holm_keeps_the_chance_of_any_error():
    p = np.random.default_rng(4).random((2000, 20))  # 20 true nulls
    errors = sum(claims.holm(each).min() < 0.05 for each in p)
    assert errors <= stats.binom.ppf(0.9999, 2000, 0.05)


def plenty(**changes):
    """Two true claims, one of them narrowly, among claims that were all left open."""
    open_ones = [measured(f"attack {i}", n=100, voted=0.5, success=1.0, purity=0.5, **changes) for i in range(20)]
    return [measured("clear", n=100, voted=0.9), measured("narrow", n=100, voted=0.61), *open_ones]


def test_the_family_of_holm_s_correction_is_what_could_have_come_out_otherwise():
    frame = table(*plenty())
    ninth = frame[frame.claim == 9].set_index("examples")
    assert ninth.verdict[["clear", "narrow"]].tolist() == ["holds", "holds"]
    assert ninth.verdict_holm[["clear", "narrow"]].tolist() == ["holds", "undecided"]
    # By hand: claims 7 and 9 of 22 attacks are the family; a row of a known outcome or of few images would not join it.
    p = [claims.p_value(partial(intervals.wilson, 61, 100), 0.5)] * 2
    assert p[0] < 0.05 < 40 * p[1]
    more = table(*plenty(), measured("OPTBRITTLE", n=29), measured("few", n=29))
    both = more[more.examples.isin(frame.examples)].reset_index(drop=True)
    pd.testing.assert_frame_equal(both, frame)


def test_rows_outside_the_family_do_not_weigh():
    sets = [measured("narrow", n=100, voted=0.60, purity_1=math.nan)]  # p = .0455
    assert table(*sets).verdict_holm.tolist()[-1] == "holds"
    brittle = measured("OPTBRITTLE", n=100, point=math.nan, vote=math.nan)  # whose purity is so by construction
    frame = table(*sets, brittle)
    assert frame[frame.examples == "narrow"].verdict_holm.tolist()[-1] == "holds"
    frame = table(*sets, measured("other", n=100, voted=0.5))
    assert frame[(frame.examples == "narrow") & (frame.claim == 9)].verdict_holm.tolist() == ["undecided"]


def test_rows_that_are_so_by_construction_say_why_and_decide_nothing():
    frame = whole_table()
    known = frame[frame.by_construction.notna()]
    of_brittle = known[known.claim != 2]
    assert set(known[known.claim == 2].examples) == set(suite.OPTMARGINS)
    assert known[known.claim == 2].shape[0] == 6
    assert set(of_brittle.examples) == {"OPTBRITTLE"}
    assert of_brittle.groupby("claim").size().to_dict() == {6: 4, 7: 2}
    assert set(of_brittle[of_brittle.claim == 7].threshold) == {0.5}
    assert not known.decides.any()
    assert (known.verdict_holm == known.verdict).all()


@pytest.mark.parametrize(
    ("n", "success", "needed"),
    [(36, 1.0, 73), (24, 1.0, 73), (100, 1.0, 73), (40, 0.5, 30), (20, 0.95, None), (0, 1.0, None)],
)
def test_how_many_images_would_decide_claim_1(n, success, needed):
    got = row(1, measured("OPTMARGIN", n=n or 3, success=success, correct=n > 0), examples="OPTMARGIN").n_needed
    assert pd.isna(got) if needed is None else got == needed


@pytest.mark.parametrize("share", [0.55, 0.6, 0.75, 0.3])
def test_the_number_that_is_needed_is_the_least_that_decides(share):
    needed = claims._needed(20, claims.p_value(partial(intervals.wilson, round(20 * share), 20), 0.5))
    above, least = [], max(30, needed)
    for n in (least, least - 1):
        half = stats.norm.isf(0.025) * math.sqrt(0.25 / n)  # of the score test at the threshold
        above.append(abs(share - 0.5) > half)
    assert above[0]
    assert least == 30 or not above[1]


def test_a_row_says_how_many_searches_it_rests_on_had_not_converged():
    stopped = measured("OPTMARGIN").assign(converged=np.arange(N) >= 8)
    sets = stopped, measured("OPTBRITTLE").assign(converged=True), measured("FGSM").assign(converged=np.arange(N) >= 2)
    frame = table(*sets, measured("PGD"))
    share = frame.set_index(["claim", "examples"]).converged
    assert share[1, "OPTMARGIN"] == share[2, "OPTMARGIN"] == share[9, "OPTMARGIN"] == 1 - 8 / N
    assert (share[5, "FGSM - OPTMARGIN"] == 1 - 8 / N).all()  # the least of the two
    assert share[9, "OPTBRITTLE"] == 1
    assert math.isnan(share[9, "PGD"])  # not known
    said = claims.in_words(frame).set_index(["claim", "examples"]).verdict
    assert said[9, "OPTMARGIN"].endswith("20% of the searches not converged)")
    assert "converged" not in said[9, "FGSM"] + said[9, "PGD"]  # 5 % may


def test_verdicts_in_words():
    sets = [measured("OPTMARGIN", n=36), measured("OPTBRITTLE", n=36)]
    said = claims.in_words(table(*sets)).set_index(["claim", "examples", "threshold"]).verdict
    assert said[1, "OPTMARGIN", 0.95] == "undecided (n=36, about 73 would decide)"
    assert said[2, "OPTMARGIN", 0.0] == "undecided (n=36, by construction)"
    frame = claims.in_words(table(*plenty()))
    assert frame[frame.examples == "narrow"].verdict.tolist()[-1] == "holds (n=100, undecided with Holm's correction)"
    assert claims.in_words(table(measured("FGSM", success=0.0))).verdict.tolist() == ["undecided (n=0)"] * 2
    many = table(measured("PGD", n=200, voted=0.51, purity_1=math.nan))
    assert claims.in_words(many).verdict.tolist()[-1] == "undecided (n=200, about 9600 would decide)"


@pytest.mark.parametrize(
    ("verdicts", "together", "decisive"),
    [
        ("hhh", "holds", 0),
        ("uuu", "undecided", 0),
        ("fff", "fails", 0),
        ("hhu", "holds", 0),
        ("hu", "undecided", 1),
        ("fu", "fails", 0),
        ("uuf", "undecided", 2),
        ("hhf", "mixed", 2),
        ("huuff", "mixed", 3),
    ],
)
def test_the_verdict_of_several_rows_together(verdicts, together, decisive):
    names = {"h": "holds", "u": "undecided", "f": "fails"}
    rows = pd.DataFrame({"verdict": [names[v] for v in verdicts], "statistic": 0.99, "threshold": 0.95})
    rows.index += 7
    verdict, chosen = claims.overall(rows)
    assert (verdict, chosen.name) == (together, 7 + decisive)


def test_the_row_closest_to_its_threshold_decides():
    rows = pd.DataFrame({"verdict": "holds", "statistic": [math.nan, 1.0, 0.2, 0.5], "threshold": [0, 0.9, 0, 0]})
    assert claims.overall(rows)[1].name == 1


# Before a run


def undecidable(**changes):
    return claims.undecidable(presets.settings("digits", overrides={"strong_n": 50, **changes}))


def test_what_cannot_be_decided_is_known_before_a_run():
    assert undecidable(adam_n=73) == []
    assert undecidable(adam_n=72) == [
        "claim 1 cannot hold for OPTMARGIN-adam: 72 images, 73 are needed",
        "claim 1 cannot hold for OPTMARGIN-authors: 72 images, 73 are needed",
    ]
    assert undecidable(adam_n=29, strong_n=29, region_n=10, adaptive_n=29, boundary_n=29) == [
        "no verdict on OPTSTRONG, OPTMARGIN-adam, OPTMARGIN-authors, adaptive attacks: 29 images, 30 are needed",
        "no verdict on benign images: 10 images, 30 are needed",
        "no verdict of claims 6 to 8: 29 images are probed, 30 are needed",
    ]
    few = undecidable(n=29, boundary_n=29)
    assert few[0].startswith("no verdict on FGSM, PGD, OPTBRITTLE, OPTSTRONG, OPTMARGIN, ")
    assert len(few) == 1  # that too few are probed follows


def test_what_stays_open_for_one_model_is_said_of_that_model():
    assert undecidable(adam_n=73, pgd_adam_n=29) == [
        "pgd model: no verdict on OPTMARGIN-adam, OPTMARGIN-authors: 29 images, 30 are needed"
    ]


def test_what_is_said_to_stay_open_does_stay_open():
    frame = table(*everything(n=29), *[measured("mine", n=29)])
    assert frame.verdict.eq("undecided").all()
    assert row(1, measured("OPTMARGIN", n=72), examples="OPTMARGIN").verdict == "undecided"
    assert row(1, measured("OPTMARGIN", n=73), examples="OPTMARGIN").verdict == "holds"


def everything(**changes):
    names = ("benign", "FGSM", "PGD", "OPTBRITTLE", "OPTSTRONG", *suite.OPTMARGINS, "noise")
    return [measured(name, model=model, **changes) for model in ("normal", "pgd") for name in names]


@functools.cache
def whole_table():
    return table(*everything())


def test_the_table_has_a_row_for_everything_claimed():
    detectors = pd.concat(detection(model, "all", "all", (0.98, 0.95, 0.99), (N, N)) for model in ("normal", "pgd"))
    rows = [("detector", 0.05), ("vote", math.nan)]
    adaptive = pd.concat(defence(name, 0.5, model=m, rate=rate) for m in ("normal", "pgd") for name, rate in rows)
    frame = table(*everything(), detectors=detectors, adaptive=adaptive)
    assert tuple(frame) == claims.COLUMNS
    assert not frame.duplicated(["claim", "model", "examples", "statement"]).any()
    assert frame.claim.is_monotonic_increasing
    assert set(frame.claim) == set(claims.CLAIMS)
    per_model = {1: 3, 2: 3, 4: 2, 5: 24, 6: 14, 7: 14, 8: 1, 9: 7, 10: 1, 11: 1}
    counts = frame.groupby(["claim", "model"]).size()
    for claim, rows in per_model.items():
        assert counts[claim, "normal"] == counts[claim, "pgd"] == rows
    assert counts[3, "pgd"] == 1
    assert frame.decides.groupby(frame.claim).sum()[[2, 5, 6, 7]].tolist() == [0, 24, 24, 26]
    for column in ("verdict", "verdict_holm", "verdict_if_all_for", "verdict_if_all_against"):
        assert frame[column].isin(["holds", "fails", "undecided"]).all()
    assert (frame.n >= 30).all()
    assert (frame.n_needed.dropna() >= 30).all()


def claimed_in_prose():
    """The claims of the table in the notebooks: number -> its thresholds."""
    folder, found = Path(__file__).parents[1] / "notebooks", {}
    for path in sorted(folder.glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            lines = "".join(cell["source"]).splitlines()
            for line in lines if "| # | claim | statistic, threshold |" in lines else []:
                if number := re.match(r"\| (\d+) \|", line):
                    values = {float(value) for value in re.findall(r"(?:>|and) (-?\.?\d+)(?![.\d])", line)}
                    found.setdefault(int(number[1]), []).append(values)
    return found


def test_the_notebooks_tell_every_claim_and_threshold():
    detectors = detection("pgd", "all", "all", (0.98, 0.95, 0.99), (N, N))
    adaptive = pd.concat([defence("detector", 0.5, rate=0.05), defence("vote", 0.5)])
    frame = table(*everything(), detectors=detectors, adaptive=adaptive)
    thresholds = frame.groupby("claim").threshold.agg(set).to_dict()
    told = claimed_in_prose()
    assert told.keys() == thresholds.keys()
    for claim, tables_of_it in told.items():
        assert all(values == thresholds[claim] for values in tables_of_it), claim


def test_p_and_the_verdict_agree():
    frame = table(*everything(voted=0.65), *everything(voted=0.3, n=31))
    decided = frame.verdict.ne("undecided")
    assert (decided == (frame.n >= frame.n_needed.fillna(10**9).astype(int))).all()
    assert decided.any()
    assert not decided.all()


def test_the_order_of_the_images_does_not_matter():
    shuffled = [one.sample(frac=1, random_state=i) for i, one in enumerate(everything())]
    pd.testing.assert_frame_equal(table(*shuffled), whole_table())


def test_a_table_of_images_does_as_well(tmp_path):
    images = tables.images(pd.concat(everything(), ignore_index=True))  # whole numbers and answers that may be missing
    expected = whole_table()
    pd.testing.assert_frame_equal(table(images), expected)
    images.to_csv(tmp_path / "images.csv", index=False)
    pd.testing.assert_frame_equal(table(pd.read_csv(tmp_path / "images.csv", engine="python")), expected)


@pytest.mark.parametrize("missing", [math.nan, pd.NA, None])
@pytest.mark.parametrize(
    ("column", "affected"),
    [
        ("rms", {2: ""}),
        ("median_distance", {6: NEARER}),
        ("share_below_region_line", {6: BELOW}),
        ("purity_1", {7: ""}),
        ("point", {4: ""}),
        ("vote", {4: "", 5: "", 9: ""}),
    ],
)
def test_what_was_not_measured_never_holds(column, affected, missing):
    frame, full = table(*(one.assign(**{column: missing}) for one in everything())), whole_table()
    about = sum((frame.claim == claim) & frame.statement.str.contains(says) for claim, says in affected.items()) > 0
    rows = frame[about]
    assert len(rows) > 0
    assert rows.verdict.eq("undecided").all()
    assert rows.verdict_holm.eq("undecided").all()
    assert rows.statistic.isna().all()
    others = [one[~about].drop(columns="verdict_holm") for one in (frame, full)]  # whose family is another
    pd.testing.assert_frame_equal(*others)


@pytest.mark.parametrize(
    ("column", "affected"),
    [("vote", ""), ("median_distance", NEARER), ("share_below_region_line", BELOW), ("purity_1", "")],
)
def test_images_that_were_not_measured_do_not_count(column, affected):
    def some(one):
        return one.assign(**{column: one[column].where(one["index"] < 3 * 35)})

    frame = table(*map(some, everything()))
    of_column = {"vote": [4, 5, 9], "purity_1": [7]}.get(column, [6])
    rows = frame[frame.claim.isin(of_column) & frame.statement.str.contains(affected)]
    assert rows.n.eq(35).all()
    assert rows.statistic.notna().all()


def test_nothing_measured_is_an_empty_table():
    frame = table(measured("FGSM", n=0))
    assert tuple(frame) == claims.COLUMNS
    assert len(frame) == 0


def test_images_that_were_never_classified_correctly_give_no_verdict():
    frame = table(*everything(correct=False))
    frame = frame[frame.examples != "benign"]  # whose accuracy is of all images
    assert set(frame.claim) == {1, 2, 3, 4, 5, 6, 7, 9}
    assert frame.verdict.eq("undecided").all()
    assert frame.n.eq(0).all()
