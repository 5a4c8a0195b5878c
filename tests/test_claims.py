"""Every claim's statistic against a count by hand, its verdict, and what must never pass for one."""

import math

import numpy as np
import pandas as pd
import pytest

from nbsupport import claims, intervals, suite, tables
from nbsupport.intervals import Rate

N = 40


def measured(examples, *, model="normal", n=N, success=1.0, voted=1.0, median=0.1, purity=0.9, rms=0.2, **changes):
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
        "rms": np.full(n, rms) + 1e-3 * (order % 7),
        "point": fooled.astype(int),
        "vote": (~won).astype(int),
        "median_distance": np.full(n, median),
        "purity_1": np.full(n, purity) + 1e-3 * (order % 5),
    }
    return pd.DataFrame({**columns, **changes})


def table(*sets, detectors=None, pixel_max=1.0):
    return claims.table(pd.concat(sets, ignore_index=True), detectors, pixel_max=pixel_max)


def row(claim, *sets, model="normal", examples, **others):
    frame = table(*sets, **others)
    chosen = frame[(frame.claim == claim) & (frame.model == model) & (frame.examples == examples)]
    assert len(chosen) == 1, frame[["claim", "model", "examples"]]
    return chosen.iloc[0]


def detection(model, trained_on, tested_on, area, sizes):
    """A row of detector.csv with `area` (auc, its low and high end) on `sizes` benign and adversarial images."""
    found = {"model": model, "trained_on": trained_on, "tested_on": tested_on}
    found |= dict(zip(("n_benign", "n_adversarial"), sizes, strict=True))
    found |= dict(zip(("auc", "auc_low", "auc_high"), area, strict=True))
    return pd.DataFrame([found], columns=list(tables.DETECTOR))


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


@pytest.mark.parametrize("other", ["FGSM", "PGD", "OPTBRITTLE"])
@pytest.mark.parametrize("margin", suite.OPTMARGINS)
def test_claim_5_is_of_common_images(other, margin):
    half = measured(margin, n=32, voted=0.25)  # the slow attack was given fewer images
    got = row(5, measured(other, voted=1.0), half, examples=f"{other} - {margin}")
    assert agrees(got, intervals.paired_difference_of_rates(np.ones(32), np.arange(32) < 8), 0.0)
    assert got.verdict == "holds"
    got = row(5, measured(other, voted=0.25), measured(margin, voted=1.0), examples=f"{other} - {margin}")
    assert got.verdict == "fails"


@pytest.mark.parametrize(
    ("adversarial", "benign", "share", "verdict"),
    [
        (0.1, 0.2, 1.0, "holds"),
        (0.2, 0.1, 0.0, "fails"),
        (0.1, math.inf, 1.0, "holds"),
        (math.inf, 0.1, 0.0, "fails"),
        (math.inf, math.inf, 0.0, "fails"),
    ],
)
def test_claim_6_compares_medians(adversarial, benign, share, verdict):
    got = row(6, measured("PGD", median=adversarial), measured("benign", median=benign), examples="PGD")
    assert agrees(got, intervals.wilson(round(N * share), N), 0.5)
    assert got.verdict == verdict


def test_claim_6_is_of_successful_examples_that_were_probed():
    medians = np.where(np.arange(N) < 35, 0.1, math.nan)
    pgd = measured("PGD", success=0.8, median_distance=medians)  # successes are 0-31
    benign = measured("benign", median=0.2, correct=np.arange(N) >= 2)
    assert row(6, pgd, benign, examples="PGD").n == 30


@pytest.mark.parametrize(("purity", "verdict"), [(0.9, "holds"), (0.5, "fails")])
def test_claim_7_is_a_paired_difference(purity, verdict):
    generator = np.random.default_rng(1)
    first, second = purity + 0.05 * generator.random(N), 0.7 + 0.05 * generator.random(N)
    got = row(7, measured("FGSM", purity_1=first), measured("benign", purity_1=second), examples="FGSM")
    assert agrees(got, intervals.mean(first - second), 0.0)
    assert got.verdict == verdict


def test_a_difference_that_never_varies_must_be_large_for_a_verdict():
    tiny = {"purity_1": np.full(N, 0.701)}, {"purity_1": np.full(N, 0.7)}
    got = row(7, measured("FGSM", **tiny[0]), measured("benign", **tiny[1]), examples="FGSM")
    assert got.low < 0 < got.statistic
    assert got.verdict == "undecided"
    large = {"purity_1": np.full(N, 1.0)}, {"purity_1": np.full(N, 0.5)}
    assert row(7, measured("FGSM", **large[0]), measured("benign", **large[1]), examples="FGSM").verdict == "holds"


@pytest.mark.parametrize("name", ["noise", "errors", "benign"])
def test_controls_are_no_adversarial_examples(name):
    frame = table(measured("benign"), measured("FGSM"), *[measured(name)] * (name != "benign"))
    assert set(frame[frame.claim.isin([6, 7])].examples) == {"FGSM"}


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


@pytest.mark.parametrize(("voted", "verdict"), [(1.0, "holds"), (0.0, "fails"), (0.5, "undecided")])
def test_claim_9_is_of_successful_examples(voted, verdict):
    got = row(9, measured("OPTBRITTLE", voted=voted, success=0.9), examples="OPTBRITTLE")
    assert agrees(got, intervals.wilson(min(round(voted * N), 36), 36), 0.5)
    assert got.verdict == verdict


def everything(**changes):
    names = ("benign", "FGSM", "PGD", "OPTBRITTLE", "OPTSTRONG", *suite.OPTMARGINS, "noise")
    return [measured(name, model=model, **changes) for model in ("normal", "pgd") for name in names]


def test_the_table_has_a_row_for_everything_claimed():
    detectors = pd.concat(detection(model, "all", "all", (0.98, 0.95, 0.99), (N, N)) for model in ("normal", "pgd"))
    frame = table(*everything(), detectors=detectors)
    assert tuple(frame) == claims.COLUMNS
    assert not frame.duplicated(["claim", "model", "examples"]).any()
    assert frame.claim.is_monotonic_increasing
    per_model = {1: 3, 2: 3, 4: 2, 5: 9, 6: 7, 7: 7, 8: 1, 9: 1}
    counts = frame.groupby(["claim", "model"]).size()
    for claim, rows in per_model.items():
        assert counts[claim, "normal"] == counts[claim, "pgd"] == rows
    assert counts[3, "pgd"] == 1
    assert frame.verdict.isin(["holds", "fails", "undecided"]).all()


def test_the_order_of_the_images_does_not_matter():
    shuffled = [one.sample(frac=1, random_state=i) for i, one in enumerate(everything())]
    pd.testing.assert_frame_equal(table(*shuffled), table(*everything()))


def test_a_table_of_images_does_as_well(tmp_path):
    images = tables.images(pd.concat(everything(), ignore_index=True))  # whole numbers and answers that may be missing
    expected = table(*everything())
    pd.testing.assert_frame_equal(table(images), expected)
    images.to_csv(tmp_path / "images.csv", index=False)
    pd.testing.assert_frame_equal(table(pd.read_csv(tmp_path / "images.csv", engine="python")), expected)


@pytest.mark.parametrize("missing", [math.nan, pd.NA, None])
@pytest.mark.parametrize(
    ("column", "affected"),
    [("rms", [2]), ("median_distance", [6]), ("purity_1", [7]), ("point", [4]), ("vote", [4, 5, 9])],
)
def test_what_was_not_measured_never_holds(column, affected, missing):
    frame = table(*(one.assign(**{column: missing}) for one in everything()))
    rows = frame[frame.claim.isin(affected)]
    assert len(rows) > 0
    assert rows.verdict.eq("undecided").all()
    assert rows.statistic.isna().all()
    full = table(*everything())
    pd.testing.assert_frame_equal(frame[~frame.claim.isin(affected)], full[~full.claim.isin(affected)])


@pytest.mark.parametrize("column", ["vote", "median_distance", "purity_1"])
def test_images_that_were_not_measured_do_not_count(column):
    def some(one):
        return one.assign(**{column: one[column].where(one["index"] < 3 * 35)})

    frame = table(*map(some, everything()))
    rows = frame[frame.claim.isin({"vote": [4, 5, 9], "median_distance": [6], "purity_1": [7]}[column])]
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
