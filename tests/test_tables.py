"""Every cell of the tables against numbers worked out by hand; columns, units, empty cells, and what a reader sees."""

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from nbsupport import detector, presets, store, suite, tables
from nbsupport.attacks import Attack, Stability
from nbsupport.boundary import Audit, Geometry, Profile
from nbsupport.data import ImageSet
from nbsupport.intervals import wilson
from nbsupport.region import Vote

INF, NAN = math.inf, math.nan
Y = torch.arange(5)
ABOUT = suite.about(presets.settings("digits"))


def bools(*values):
    return torch.tensor(values, dtype=torch.bool)


def attack(success, correct, rms=(0.0, 0.1, 0.2, 0.6, 0.9)):
    n = len(success)
    return Attack(
        x_adv=torch.zeros(n, 1, 2, 2),
        success=bools(*success),
        correct=bools(*correct),
        rms=torch.tensor(rms[:n]),
        forwards=10 * torch.arange(1, n + 1),
        backwards=torch.arange(1, n + 1),
        falling=bools(*[0] * n),
        at_bound=bools(*[0] * n),
    )


# Image 0 is misclassified; 1, 2 and 3 succeed; 4 fails.
ONE = attack([False, True, True, True, False], [False, True, True, True, True])
RIGHT = {"normal": bools(0, 1, 1, 1, 1)}


def profile(distance, adjacent=None):
    distance = torch.tensor(distance)
    reached = distance.isfinite()
    adjacent = torch.where(reached, 1, -1) if adjacent is None else torch.tensor(adjacent)
    return Profile(torch.zeros(len(distance), dtype=torch.int64), distance, adjacent, reached)


def vote(label, n_classes=5, *, most=7):
    """A vote of 10 points: `most` for the label, the rest for the class above it."""
    label = torch.tensor(label)
    counts = torch.nn.functional.one_hot(label, n_classes) * most
    counts += torch.nn.functional.one_hot((label + 1) % n_classes, n_classes) * (10 - most)
    share = torch.full((len(label),), most / 10, dtype=torch.float64)
    return Vote(label, counts, counts.sum(1), share - 0.2, share + 0.2, share < 0.6, share, share)


def only(frame):
    assert len(frame) == 1
    return frame.iloc[0].to_dict()


def attacks_row(result, name="OPTMARGIN", *, model="normal", about=ABOUT, pixel_max=1.0, seconds=1.5):
    images = tables.attacked({(model, name): result}, {model: result.correct}, Y, pixel_max=pixel_max)
    found = tables.attacks(images, {(model, name): result}, about, {(model, name): seconds}, pixel_max=pixel_max)
    return only(found)


def voted_images(result, point, label, name="PGD"):
    """The images of the normal model, those of the examples `name` with a vote."""
    key = ("normal", name)
    results = {key: result} if name != "benign" else {}
    images = tables.attacked(results, {"normal": result.correct}, Y, pixel_max=1)
    votes = tables.voted({key: vote(label)}, {key: torch.tensor(point)}, Y)
    return tables.images(images, votes)


def region_row(images, **settings):
    return only(tables.region(images, **{"radius": 0.02, "samples": 100, "pixel_max": 255.0, **settings}))


def probed_images(profiles, *, pixel_max=1.0, num_classes=5, radius=0.3):
    positions = {key: torch.arange(len(one)) for key, one in profiles.items()}
    scales = {"radius": radius, "num_classes": num_classes, "pixel_max": pixel_max}
    return tables.probed(profiles, positions, **scales), positions


def boundary_row(one, *, pixel_max=1.0, num_classes=5):
    profiles = {("normal", "benign"): one}
    measured, _ = probed_images(profiles, pixel_max=pixel_max, num_classes=num_classes)
    first = tables.attacked({}, {"normal": torch.ones(len(one), dtype=torch.bool)}, Y, pixel_max=pixel_max)
    return only(tables.boundary(tables.images(first, measured), profiles, pixel_max=pixel_max))


NO_SCORES = tables.scores({"network": {}}, {}, {}, {})
NO_RAYS = pd.DataFrame(columns=[*tables.KEY, "median_distance"])
NOTHING = tables.images(tables.attacked({}, {"normal": bools(1)}, Y, pixel_max=1)).iloc[:0]


@pytest.mark.parametrize(
    ("frame", "columns"),
    [
        (
            tables.attacks(NOTHING, {}, ABOUT, {}, pixel_max=1),
            "model, attack, solver, variant, eps_or_confidence, n, n_misclassified, success_rate, success_rate_low, "
            "success_rate_high, mean_rms, median_rms, forwards_per_image, backwards_per_image, seconds, converged",
        ),
        (
            tables.region(NOTHING, radius=1, samples=1, pixel_max=1),
            "model, examples, n, point_accuracy, region_accuracy, region_low, region_high, radius, samples",
        ),
        (
            tables.boundary(NOTHING, {}, pixel_max=1),
            "model, examples, n, median_distance, reached_share, purity_1, purity_2, purity_3",
        ),
        (
            tables.detector(NO_SCORES, tables.thresholds(NO_SCORES), NO_RAYS),
            "model, detector, trained_on, tested_on, target_fpr, threshold, n_benign, n_adversarial, "
            "false_positive_rate, false_positive_rate_low, false_positive_rate_high, false_negative_rate, "
            "false_negative_rate_low, false_negative_rate_high, auc, auc_low, auc_high, note",
        ),
        (NO_SCORES, "model, detector, trained_on, seed, fold, examples, index, score"),
        (
            tables.thresholds(NO_SCORES),
            "model, detector, trained_on, seed, fold, target_fpr, threshold, n_benign",
        ),
        (tables.stability({}), "model, examples, n, flips_alone, flips_batch, flips_float64, flips_8bit"),
        (
            tables.geometry({}),
            "model, examples, n, triple_cells, triple_cells_low, triple_cells_high, triple_share, crossings, "
            "reentry_share, reentry_low, reentry_high, mean_angle",
        ),
        (tables.audit({}), "model, examples, rays, differing, low, high"),
        (
            NOTHING,
            "model, examples, index, y, correct, success, rms, point, vote, votes_for_true, p_lower, abstain, "
            "median_distance, reached_share, share_below_region_line, purity_1, purity_2, purity_3, detector_part, "
            "detector_score, detector_threshold, converged",
        ),
        (
            tables.scored(NO_SCORES, tables.thresholds(NO_SCORES)),
            "model, examples, index, detector_part, detector_score, detector_threshold",
        ),
        (
            tables.beaten(NO_SCORES),
            "model, detector, trained_on, difference, difference_low, difference_high, n",
        ),
    ],
    ids=[
        "attacks",
        "region",
        "boundary",
        "detector",
        "scores",
        "thresholds",
        "stability",
        "geometry",
        "audit",
        "images",
        "scored",
        "beaten",
    ],
)
def test_columns_are_those_of_the_method_also_without_a_row(frame, columns):
    assert ", ".join(frame) == columns
    assert len(frame) == 0


# One row an image


def test_attacked_has_a_row_for_every_image_of_every_set():
    found = tables.attacked({("normal", "PGD"): ONE.take(slice(3))}, RIGHT, Y, pixel_max=255.0)
    assert found.examples.tolist() == ["benign"] * 5 + ["PGD"] * 3
    assert found["index"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert found.y.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert found.correct.tolist() == [False, True, True, True, True, False, True, True]
    benign, pgd = found[found.examples == "benign"], found[found.examples == "PGD"]
    assert benign.success.isna().all()
    assert benign.rms.isna().all()
    assert pgd.success.tolist() == [False, True, True]
    assert pgd.rms.tolist() == pytest.approx([0.0, 25.5, 51.0])


def test_voted_counts_the_votes_for_the_true_class():
    found = tables.voted({("pgd", "FGSM"): vote([0, 0, 2])}, {("pgd", "FGSM"): torch.tensor([0, 1, 1])}, Y)
    assert found.columns.tolist() == [*tables.KEY, "point", "vote", "votes_for_true", "p_lower", "abstain"]
    assert found.point.tolist() == [0, 1, 1]
    assert found.vote.tolist() == [0, 0, 2]
    assert found.votes_for_true.tolist() == [7, 3, 7]
    assert found.p_lower.tolist() == pytest.approx([0.5] * 3)
    assert found.abstain.tolist() == [False] * 3


def test_probed_keeps_rays_without_a_boundary_as_infinitely_long():
    one = profile([[0.1, 0.2, 0.4], [0.1, INF, INF]], [[1, 2, 1], [3, -1, -1]])
    positions = {("normal", "FGSM"): torch.tensor([7, 9])}
    radius = 0.25 * math.sqrt(3)  # a line at 0.25
    found = tables.probed(
        {("normal", "FGSM"): one}, positions, radius=radius, num_classes=4, pixel_max=255.0
    ).set_index("index")
    assert found.median_distance.to_dict() == pytest.approx({7: 51.0, 9: INF})
    assert found.reached_share.to_dict() == pytest.approx({7: 1.0, 9: 1 / 3})
    assert found.share_below_region_line.to_dict() == pytest.approx({7: 2 / 3, 9: 1 / 3})
    assert found.loc[7, ["purity_1", "purity_2", "purity_3"]].tolist() == pytest.approx([2 / 3, 1, 1])
    assert found.loc[9, ["purity_1", "purity_2", "purity_3"]].tolist() == [1, 1, 1]


def profiles_of(n, distance):
    return profile([[distance] * 40] * n)


def judged(examples, score, *, index=None, folds=3, **changes):
    """Rows of scores.csv for one set of examples; the fold of image i is i modulo `folds`."""
    at = np.arange(len(score)) if index is None else np.asarray(index)
    row = {"model": "normal", "detector": "network", "trained_on": "PGD", "seed": 0, **changes}
    return pd.DataFrame({**row, "fold": at % folds, "examples": examples, "index": at, "score": score})


def joined(*frames):
    return pd.concat(frames, ignore_index=True)[[*tables.SCORES]]


def test_scored_names_the_fold_the_held_out_score_and_the_threshold():
    sets = {"benign": [0.1] * 60, "PGD": [0.9, 0.05], "FGSM": [0.8, 0.7], "noise": [0.3]}
    named = [
        joined(*(judged(name, np.array(score) * scale, trained_on=trained) for name, score in sets.items()))
        for trained, scale in (("PGD", 1.0), ("all", 0.5))
    ]
    seconds = named[1].assign(seed=1, score=0.0)
    other = named[1].assign(detector="one-ray", score=0.0)
    scores = joined(*named, seconds, other)
    found = tables.scored(scores, tables.thresholds(scores))
    by = found.set_index(["examples", "index"])
    assert len(found) == 65  # nothing is there twice
    assert by.detector_part.loc["benign"].tolist() == [i % 3 for i in range(60)]
    assert by.detector_score["PGD", 0] == 0.9  # by the detector of its attack
    assert [by.detector_score[name, 0] for name in ("benign", "FGSM", "noise")] == [0.05, 0.4, 0.15]  # by that of all
    assert by.detector_threshold["PGD", 1] == np.nextafter(0.1, 1)
    assert by.detector_threshold["noise", 0] == np.nextafter(0.05, 1)


def test_without_a_threshold_no_image_has_one():
    scores = joined(judged("benign", [0.1] * 12), judged("PGD", [0.9]))
    found = tables.scored(scores.assign(trained_on="all"), tables.thresholds(scores.assign(trained_on="all")))
    assert found.detector_score.tolist() == [0.1] * 12 + [0.9]
    assert found.detector_threshold.isna().all()


def test_controls_have_rows_of_their_own(tmp_path):
    images = ImageSet(torch.full((6, 1, 2, 2), 0.5), torch.arange(6) % 3, tuple("abc"), 255.0, "few")
    x = images.x[[4, 1]].clone()
    x[0, 0, 0, 0] = 0.9  # an RMS of .4 / 2
    key = ("normal", "noise"), ("normal", "errors"), ("normal", "PGD")
    versions = {key[0]: (torch.tensor([4, 1]), x), key[1]: (torch.tensor([5]), images.x[[5]])}
    versions[key[2]] = torch.tensor([0]), images.x[[0]]
    found = tables.controls(versions, images)
    assert list(zip(found.examples, found["index"], found.y, found.correct, strict=True)) == [
        ("noise", 4, 1, True),
        ("noise", 1, 1, True),
        ("errors", 5, 2, False),
    ]
    assert found.success.isna().all()
    assert found.rms.tolist() == pytest.approx([51.0, 0.0, 0.0])
    first = tables.attacked({("normal", "PGD"): ONE}, RIGHT, Y, pixel_max=255)
    both = tables.images(first, controls=found)
    assert both.examples.tolist() == [*first.examples.tolist(), "noise", "noise", "errors"]
    run = store.open_run(tmp_path / "run", dataset="digits", preset="smoke")
    run.write_table("controls", found)
    pd.testing.assert_frame_equal(
        tables.images(first, controls=run.read_table("controls", made_by="05_boundary_analysis")), both
    )


def all_images():
    """Five benign images, of which three were probed, and five of PGD, of which two were."""
    keys = ("normal", "benign"), ("normal", "PGD")
    first = tables.attacked({keys[1]: ONE}, RIGHT, Y, pixel_max=1)
    points = {keys[0]: Y, keys[1]: torch.tensor([1, 2, 3, 4, 4])}
    votes = tables.voted({keys[0]: vote([0, 1, 2, 3, 4]), keys[1]: vote([0, 1, 3, 4, 4])}, points, Y)
    profiles = {keys[0]: profile([[0.5, INF, INF]] * 3), keys[1]: profile([[0.1, 0.1, 0.2]] * 2)}
    positions = {keys[0]: torch.tensor([1, 2, 4]), keys[1]: torch.tensor([3, 1])}
    rays = tables.probed(profiles, positions, radius=0.3, num_classes=5, pixel_max=1)
    return first, votes, rays


def test_images_joins_on_model_examples_and_index():
    found = tables.images(*all_images())
    assert tuple(found) == tuple(tables.IMAGES)
    assert len(found) == 10
    pgd = found[found.examples == "PGD"].set_index("index")
    assert pgd.median_distance.dropna().to_dict() == pytest.approx({1: 0.1, 3: 0.1})
    assert pgd.vote.tolist() == [0, 1, 3, 4, 4]
    benign = found[found.examples == "benign"].set_index("index")
    assert benign.median_distance.to_dict() == pytest.approx({0: NAN, 1: INF, 2: INF, 3: NAN, 4: INF}, nan_ok=True)
    assert found.detector_score.isna().all()
    assert found.detector_part.isna().all()


def test_a_file_of_images_is_read_as_it_was_written(tmp_path):
    run = store.open_run(tmp_path / "run", dataset="digits", preset="smoke")
    found = tables.images(*all_images())
    path = run.write_table("images", found)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    cells = dict(zip(lines[0], lines[2], strict=True))  # benign, image 1
    assert (cells["examples"], cells["index"], cells["median_distance"]) == ("benign", "1", "inf")
    assert (cells["success"], cells["rms"], cells["detector_score"]) == ("", "", "")
    again = tables.images(run.read_table("images", made_by="06_detector"))
    empty = ["detector_part", "detector_score", "detector_threshold"]
    pd.testing.assert_frame_equal(again.drop(columns=empty), found.drop(columns=empty), check_exact=True)
    assert again[empty].isna().all(axis=None)


def test_the_frames_that_notebooks_hand_over_join_again(tmp_path):
    run = store.open_run(tmp_path / "run", dataset="digits", preset="smoke")
    frames = all_images()
    for name, frame in zip(("first", "votes", "rays"), frames, strict=True):
        run.write_table(name, frame)
    read = [run.read_table(name, made_by="06_detector") for name in ("first", "votes", "rays")]
    pd.testing.assert_frame_equal(tables.images(*read), tables.images(*frames), check_exact=True)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_image_that_is_named_twice_is_refused(which):
    frames = list(all_images())
    row = frames[which][frames[which].examples == "PGD"].iloc[[0]]
    frames[which] = pd.concat([frames[which], row], ignore_index=True)
    message = f"expected every image once, got image {row['index'].item()} twice in PGD of normal"
    with pytest.raises(ValueError, match=message):
        tables.images(*frames)


# Attacks


@pytest.mark.parametrize("pixel_max", [1.0, 255.0])
def test_an_attack_is_counted_over_correctly_classified_images(pixel_max):
    got = attacks_row(ONE, model="pgd", pixel_max=pixel_max)
    rate = wilson(3, 4)
    assert (got["model"], got["attack"], got["solver"], got["variant"]) == ("pgd", "OPTMARGIN", "ddn", "equations")
    assert (got["n"], got["n_misclassified"], got["seconds"]) == (4, 1, 1.5)
    assert (got["success_rate"], got["success_rate_low"], got["success_rate_high"]) == (0.75, rate.low, rate.high)
    assert got["eps_or_confidence"] == 0.15 * pixel_max
    assert got["mean_rms"] == pytest.approx(0.3 * pixel_max)
    assert got["median_rms"] == pytest.approx(0.2 * pixel_max)
    assert (got["forwards_per_image"], got["backwards_per_image"]) == (35, 3.5)


def test_a_search_that_had_not_converged_is_flagged_in_its_row_and_on_its_image():
    found = attack([True] * 5, [True] * 4 + [False])
    found = dataclasses.replace(found, falling=bools(1, 0, 0, 0, 1), at_bound=bools(1, 1, 0, 0, 1))
    assert attacks_row(found)["converged"] == 0.5  # of the four that were attacked
    images = tables.images(tables.attacked({("normal", "PGD"): found}, {"normal": found.correct}, Y, pixel_max=1))
    assert images[images.examples == "PGD"].converged.tolist() == [False, False, True, True, False]
    assert images[images.examples == "benign"].converged.isna().all()


def test_a_success_on_a_misclassified_image_never_counts():
    got = attacks_row(attack([True, False], [False, True]), "PGD")
    assert (got["n"], got["success_rate"]) == (1, 0)
    assert math.isnan(got["mean_rms"])


def test_a_confidence_is_no_length():
    assert attacks_row(attack([True], [True]), "OPTSTRONG", pixel_max=255.0)["eps_or_confidence"] == 10


@pytest.mark.parametrize(("success", "correct", "empty_rate"), [([False], [True], False), ([False], [False], True)])
def test_what_no_attack_achieved_is_an_empty_cell(success, correct, empty_rate):
    got = attacks_row(attack(success, correct), "FGSM")
    assert math.isnan(got["mean_rms"])
    assert math.isnan(got["median_rms"])
    assert math.isnan(got["success_rate"]) == math.isnan(got["forwards_per_image"]) == empty_rate
    for column in ("solver", "variant"):
        assert pd.isna(got[column])


def test_the_table_of_attacks_has_a_row_an_attack_in_the_order_of_the_images():
    results = {(model, name): ONE for model in ("normal", "pgd") for name in ("PGD", "FGSM")}
    images = tables.attacked(results, dict.fromkeys(("normal", "pgd"), ONE.correct), Y, pixel_max=1)
    found = tables.attacks(images, results, ABOUT, dict.fromkeys(results, 2.0), pixel_max=1)
    assert list(zip(found.model, found.attack, strict=True)) == list(results)


def test_flips_are_shares_of_the_successful_examples():
    flips = Stability(bools(0, 0, 0, 0), bools(1, 0, 0, 0), bools(1, 1, 0, 0), bools(1, 1, 1, 0))
    got = only(tables.stability({("pgd", "PGD"): flips}))
    assert [got[name] for name in tables.STABILITY] == ["pgd", "PGD", 4, 0, 0.25, 0.5, 0.75]


def test_the_flips_of_no_example_are_empty_cells():
    got = only(tables.stability({("pgd", "PGD"): Stability(*[bools()] * 4)}))
    assert got["n"] == 0
    assert all(math.isnan(got[name]) for name in tables.STABILITY[3:])


def test_nearest_compares_with_the_least_distortion_of_any_attack():
    # Of four images: 0 misclassified; 1 both; 2 only the first; 3 both. The second was given one image more.
    a = attack([0, 1, 1, 1], [0, 1, 1, 1], (0.0, 0.2, 0.4, 0.2))
    b = attack([0, 1, 0, 1, 1], [0, 1, 1, 1, 1], (0.0, 0.1, 0.0, 0.4, 0.9))
    found = tables.nearest({("pgd", "A"): a, ("pgd", "B"): b}, pixel_max=255.0)
    assert found.attack.tolist() == ["A", "B", "best of all"]
    assert found.model.tolist() == ["pgd"] * 3
    assert found.n.tolist() == [3, 3, 3]
    assert found.success_rate.tolist() == pytest.approx([1, 2 / 3, 1])
    assert found.nearest_share.tolist() == pytest.approx([2 / 3, 1 / 3, 1])
    assert found.mean_rms.tolist() == pytest.approx([255 * rms for rms in (0.8 / 3, 0.25, 0.7 / 3)])
    assert found.mean_excess.tolist() == pytest.approx([0.8 / 0.7 - 1, 0.5 / 0.3 - 1, 0], abs=1e-6)


def test_an_attack_without_a_success_has_no_excess():
    found = tables.nearest({("pgd", "A"): attack([0, 0], [1, 1])}, pixel_max=1)
    assert found.success_rate.tolist() == [0, 0]
    assert found[["mean_rms", "mean_excess"]].isna().all(axis=None)


def test_evasion_counts_the_attacked_images_whose_true_label_wins():
    kept = bools(1, 1, 0, 0, 0)  # image 0 was misclassified and does not count
    rows = [
        ("number of views", 20, ONE, kept),
        ("size of the views", 0.15, ONE, kept),
        ("confidence", 4.0, attack([False], [False]), bools(1)),
        ("published", "OPTMARGIN-authors", ONE, kept),
    ]
    found = tables.evasion(rows, ABOUT, pixel_max=255.0)
    rate = wilson(1, 4)
    assert found.columns.tolist() == [
        *("curve", "demand", "n", "success_rate", "mean_rms", "region_accuracy", "region_low", "region_high")
    ]
    assert found.demand.tolist() == [20, pytest.approx(38.25), 4.0, "OPTMARGIN-authors (adam, authors)"]
    first = found.iloc[0]
    assert (first.n, first.success_rate, first.mean_rms) == (4, 0.75, pytest.approx(0.3 * 255))
    assert (first.region_accuracy, first.region_low, first.region_high) == (0.25, rate.low, rate.high)
    assert found.iloc[2].n == 0
    assert found.iloc[2, 3:].isna().all()


# Data sets and trained models


def test_datasets_are_described_in_their_own_unit():
    x = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(4, 1, 1, 1).expand(4, 2, 3, 5)
    held = ImageSet(x.contiguous(), torch.tensor([0, 0, 0, 2]), ("a", "b", "c"), 255.0, "mine")
    found = tables.datasets(held, held.first(2)).set_index("part")
    assert found.index.tolist() == ["training", "test"]
    assert found.loc["training"].to_dict() == {
        "source": "mine",
        "images": 4,
        "shape": "2x3x5",
        "classes": 3,
        "fewest_in_a_class": 0,
        "most_in_a_class": 3,
        "lowest_pixel": 0.0,
        "mean_pixel": pytest.approx(255 * 0.4375),
        "highest_pixel": 255.0,
    }
    assert found.loc["test", "images"] == 2
    assert found.loc["test", "highest_pixel"] == 63.75


def test_accuracy_under_pgd_is_of_images_that_were_right_before_and_after():
    results = {"normal": ONE, "pgd": attack([0, 0], [1, 1])}
    schedules = {"normal": "normal", "pgd": "fast"}
    further = {"normal": [ONE.take(slice(3))], "pgd": [attack([1, 0], [1, 1]), attack([0, 0], [1, 1])]}
    found = tables.accuracy(results, further, schedules, eps=0.1, steps=40, pixel_max=255.0).set_index("model")
    left = float((ONE.correct & ~ONE.success)[:3].double().mean())
    benign, robust, worst = wilson(4, 5), wilson(1, 5), wilson(round(3 * left), 3)
    assert found.loc["normal"].to_dict() == {
        "n": 5,
        "benign_accuracy": 0.8,
        "benign_accuracy_low": benign.low,
        "benign_accuracy_high": benign.high,
        "pgd_accuracy": 0.2,
        "pgd_accuracy_low": robust.low,
        "pgd_accuracy_high": robust.high,
        "eps": 25.5,
        "steps": 40,
        "schedule": "normal",
        "worst_n": 3,
        "worst_accuracy": left,
        "worst_accuracy_low": worst.low,
        "worst_accuracy_high": worst.high,
    }
    assert (found.loc["pgd", "pgd_accuracy"], found.loc["pgd", "schedule"]) == (1, "fast")
    assert found.loc["pgd", "worst_accuracy"] == 0.5  # one of the further attacks fooled the first image


# The vote


@pytest.mark.parametrize(
    ("correct", "n", "point", "hits"),
    [((1, 1, 1, 1), 4, 0.25, 3), ((1, 1, 1, 0), 3, 1 / 3, 2)],
)
def test_region_accuracy_of_an_attack_is_over_the_attacked_images(correct, n, point, hits):
    images = voted_images(attack([False] * 4, correct), [0, 0, 0, 0], [0, 1, 0, 3])
    got, rate = region_row(images), wilson(hits, n)
    assert (got["model"], got["examples"]) == ("normal", "PGD")
    assert (got["n"], got["samples"]) == (n, 100)
    assert got["point_accuracy"] == pytest.approx(point)
    assert (got["region_accuracy"], got["region_low"], got["region_high"]) == (rate.value, rate.low, rate.high)
    assert got["radius"] == pytest.approx(5.1)


def test_benign_images_count_whether_they_were_right_or_not():
    got = region_row(voted_images(attack([0] * 4, [1, 0, 0, 0]), [0, 0, 0, 0], [0, 1, 0, 3], "benign"))
    assert (got["n"], got["point_accuracy"], got["region_accuracy"]) == (4, 0.25, 0.75)


def test_sets_without_a_vote_have_no_row():
    images = voted_images(ONE, [0] * 5, [0] * 5)
    assert tables.region(images, radius=1, samples=1, pixel_max=1).examples.tolist() == ["PGD"]


def test_point_accuracy_of_an_attack_is_one_minus_its_success_rate():
    result = attack([False, True, True, False, False], [False, True, True, True, True])
    point = torch.where(result.success | ~result.correct, (Y + 1) % 5, Y).tolist()
    attacked = attacks_row(result, "PGD")
    got = region_row(voted_images(result, point, Y.tolist()))
    assert got["point_accuracy"] == 1 - attacked["success_rate"]
    assert got["n"] == attacked["n"]


def test_a_region_row_of_no_attacked_image_is_empty():
    got = region_row(voted_images(attack([0, 0], [0, 0]), [1, 1], [0, 1]))
    assert got["n"] == 0
    assert all(math.isnan(got[name]) for name in ("point_accuracy", "region_accuracy", "region_low", "region_high"))


def test_other_regions_are_all_about_the_same_images():
    s = presets.settings("digits")
    variants = suite.region_variants(s, 64)
    labels = {(variant, "benign"): torch.tensor([0, 1, 2, 0, 0]) for variant in variants}
    labels |= {(variant, "PGD"): torch.tensor([0, 0, 2, 3, 0]) for variant in variants}
    found = tables.other_regions(variants, labels, Y, bools(0, 1, 1, 1, 0), pixel_max=255.0)
    assert list(zip(found["shape"], found["combine"], strict=True)) == [
        (settings["shape"], settings["combine"]) for settings in variants.values()
    ]
    assert found.radius.tolist() == pytest.approx([255 * settings["radius"] for settings in variants.values()])
    rate = wilson(2, 3)
    for name in ("benign", "PGD"):
        cells = found.iloc[0][["n", f"{name}_accuracy", f"{name}_accuracy_low", f"{name}_accuracy_high"]]
        assert cells.tolist() == [3, rate.value, rate.low, rate.high]


# The boundary


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
    got = boundary_row(profile(distance), pixel_max=255.0)
    assert got["n"] == len(distance)
    assert got["reached_share"] == pytest.approx(np.isfinite(distance).mean())
    if median is None:
        assert math.isnan(got["median_distance"])
    else:
        assert got["median_distance"] == pytest.approx(255 * median)


def test_purities_are_means_over_images():
    got = boundary_row(profile([[0.1] * 4] * 2, [[1, 1, 1, 1], [1, 2, 3, 4]]))
    assert [got[f"purity_{j}"] for j in (1, 2, 3)] == [0.625, 0.75, 0.875]


@pytest.mark.parametrize("num_classes", [2, 3])
def test_with_few_classes_all_three_purities_are_there(num_classes):
    got = boundary_row(profile([[0.1, 0.2]]), num_classes=num_classes)
    assert [got[f"purity_{j}"] for j in (1, 2, 3)] == [1, 1, 1]


def test_the_nearest_ray_stands_beside_the_attack_with_gradients_on_the_same_image():
    result = attack([1, 1, 0, 1, 1], [1, 1, 1, 1, 1])  # rms 0, .1, .2, .6, .9
    distance = profile([[0.3, 0.2], [INF, INF], [0.9, 1.2], [INF, 1.8], [0.1, 0.1]])
    # The image 2 was not fooled by OPTBRITTLE, and 7 was never given to it.
    index = torch.tensor([1, 4, 2, 3, 7])
    found, place = {("pgd", "benign"): distance, ("pgd", "PGD"): distance}, {("pgd", "benign"): index}
    row = only(tables.by_labels(found, place, {("pgd", "OPTBRITTLE"): result}, pixel_max=10.0))
    reached = wilson(2, 3)
    assert row == {
        "model": "pgd",
        "n": 3,
        "reached_share": reached.value,
        "reached_low": reached.low,
        "reached_high": reached.high,
        "nearest_ray": pytest.approx(18),  # of .2, inf and 1.8
        "OPTBRITTLE": pytest.approx(6),  # of .1, .9 and .6
        "ratio": pytest.approx(3),  # of 2, inf and 3
    }


def geometry_row(triple, **changes):
    entries = {
        "reached": bools(*[[1, 1, 0], [1, 1, 1], [0, 0, 0]]),
        "returned": bools(*[[1, 0, 0], [1, 1, 0], [0, 0, 0]]),
        "angle": torch.tensor([[60.0, 80, NAN], [70, NAN, 90], [NAN, NAN, NAN]], dtype=torch.float64),
    }
    found = tables.geometry({("pgd", "benign"): Geometry(torch.tensor(triple), **{**entries, **changes})})
    return only(found)


def test_a_row_of_geometry():
    of_image, again = np.array([2.0, 1.0, 0.0]), wilson(3, 5)
    half = stats.t.ppf(0.975, 2) * of_image.std(ddof=1) / math.sqrt(3)
    assert geometry_row([[0, 4], [1, 1], [0, 0]]) == {
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


@pytest.mark.parametrize(("more", "verdict"), [(5, "more"), (-5, "fewer"), (0, "no difference found")])
def test_triple_cells_are_compared_on_the_images_that_both_sets_have(more, verdict):
    empty = {name: bools([0]) for name in ("reached", "returned")} | {"angle": torch.zeros(1, 1)}
    found = {("pgd", "benign"): Geometry(torch.tensor([[10, 12], [20, 20], [30, 30], [0, 0]]), **empty)}
    found["pgd", "PGD"] = Geometry(torch.tensor([[29 + more] * 2, [20 + more] * 2, [12 + more] * 2]), **empty)
    positions = {("pgd", "benign"): torch.tensor([4, 7, 9, 11]), ("pgd", "PGD"): torch.tensor([9, 7, 4, 5])}
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)  # the differences are more - 1, more, more + 1
    assert only(tables.triple_differences(found, positions)) == {
        "model": "pgd",
        "examples": "PGD",
        "n": 3,
        "difference": pytest.approx(more),
        "difference_low": pytest.approx(more - half),
        "difference_high": pytest.approx(more + half),
        "verdict": verdict,
    }


def test_a_low_end_above_zero_stays():
    assert 0 < geometry_row([[10], [11], [12]])["triple_cells_low"] < 11


def test_equal_images_say_nothing_of_the_spread():
    got = geometry_row([[0], [0], [0]])
    assert (got["triple_cells_low"], got["triple_cells"], got["triple_cells_high"]) == (0, 0, INF)
    assert got["triple_share"] == 0


def test_without_crossings_cells_stay_empty():
    none = torch.zeros(3, 3, dtype=torch.bool)
    angle = torch.full((3, 3), NAN, dtype=torch.float64)
    got = geometry_row([[0], [2], [1]], reached=none, returned=none, angle=angle)
    assert got["crossings"] == 0
    assert all(math.isnan(got[name]) for name in ("reentry_share", "reentry_low", "reentry_high", "mean_angle"))


@pytest.mark.parametrize(("wrong", "rays"), [(0, 512), (3, 40), (7, 7)])
def test_a_row_of_the_audit(wrong, rays):
    index = torch.arange(rays)
    one = Audit(index, index, index.float(), index, index < wrong)
    expected = wilson(wrong, rays)
    assert only(tables.audit({("normal", "FGSM"): one})) == {
        "model": "normal",
        "examples": "FGSM",
        "rays": rays,
        "differing": wrong / rays,
        "low": expected.low,
        "high": expected.high,
    }


# The detector


class Median:
    """A judge that scores by minus the median distance, plus its number: so one sees who judged."""

    def __init__(self, number):
        self.number = number

    def score(self, profile):
        return self.number - profile.distance.double().median(1).values


def test_every_version_is_scored_by_the_judge_that_held_its_image_out():
    profiles = {("normal", "benign"): profile([[0.4] * 3, [0.5] * 3]), ("normal", "PGD"): profile([[0.1] * 3] * 3)}
    profiles["pgd", "benign"] = profile([[0.9] * 3])
    positions = {key: torch.tensor([7, 4, 5])[: len(one)] for key, one in profiles.items()}
    folds = {key: index % 3 for key, index in positions.items()}
    judges = {("normal", "all", seed): [Median(10 * seed + fold) for fold in range(3)] for seed in (0, 1)}
    found = tables.scores({"network": judges}, profiles, positions, folds)
    assert (found.model == "normal").all()
    rows = [("benign", 7, 1), ("benign", 4, 1), ("PGD", 7, 1), ("PGD", 4, 1), ("PGD", 5, 2)]
    assert list(zip(found.examples, found["index"], found.fold, strict=True)) == rows * 2
    expected = [1 - 0.4, 1 - 0.5, 1 - 0.1, 1 - 0.1, 2 - 0.1]
    assert found.score.tolist() == pytest.approx([*expected, *(10 + score for score in expected)])


def test_a_threshold_is_calibrated_on_the_other_folds():
    score = np.random.default_rng(0).random(70)
    scores = joined(judged("PGD", [5.0] * 70), judged("benign", score))
    found = tables.thresholds(scores).set_index(["fold", "target_fpr"])
    assert len(found) == 6
    for (fold, target), row in found.iterrows():
        others = score[np.arange(70) % 3 != fold]
        assert row.n_benign == len(others)
        assert row.threshold == detector.calibrate(others, false_positive_rate=target)


def detector_row(scores, tested_on="PGD", target=0.05, rays=NO_RAYS, **row):
    found = tables.detector(scores, tables.thresholds(scores), rays)
    for name, value in {"tested_on": tested_on, "target_fpr": target, **row}.items():
        found = found[found[name] == value]
    return only(found)


def test_rates_count_images_at_the_threshold_of_their_fold():
    generator = np.random.default_rng(1)
    benign, pgd, fgsm = generator.random(80), 0.5 + generator.random(40), 0.2 + generator.random(30)
    scores = joined(judged("benign", benign), judged("PGD", pgd), judged("FGSM", fgsm, index=range(10, 40)))
    limits = tables.thresholds(scores)
    limit = limits[limits.target_fpr == 0.05].set_index("fold").threshold
    wrong = sum(score >= limit[i % 3] for i, score in enumerate(benign))
    missed = sum(score < limit[i % 3] for i, score in enumerate(pgd))
    row = detector_row(scores)
    assert (row["n_benign"], row["n_adversarial"], row["note"]) == (80, 40, "")
    assert row["threshold"] == pytest.approx(limit.mean())
    for name, k, n in (("false_positive_rate", wrong, 80), ("false_negative_rate", missed, 40)):
        expected = wilson(k, n)
        cells = [row[name + end] for end in ("", "_low", "_high")]
        assert cells == pytest.approx([expected.value, expected.low, expected.high], abs=1e-12)
    row = detector_row(scores, "all")
    assert row["n_adversarial"] == 40  # 70 versions of 40 images
    missed += sum(score < limit[i % 3] for i, score in zip(range(10, 40), fgsm, strict=True))
    assert row["false_negative_rate"] == pytest.approx(missed / 70)


def test_seeds_are_averaged_and_add_no_images():
    one, two = (joined(judged("benign", np.arange(60) / 60), judged("PGD", [top] * 30)) for top in (2.0, -1.0))
    row = detector_row(joined(one, two.assign(seed=1)))
    assert row["false_negative_rate"] == row["auc"] == 0.5
    assert (row["n_benign"], row["n_adversarial"]) == (60, 30)


def test_a_perfect_detector_is_told_as_one():
    row = detector_row(joined(judged("benign", np.arange(60) / 60), judged("PGD", 2 + np.arange(60) / 60)))
    assert (row["auc"], row["false_negative_rate"]) == (1, 0)
    assert 0.9 < row["auc_low"] < row["auc_high"] == 1
    assert row["false_positive_rate_low"] <= 0.05 <= row["false_positive_rate_high"]


def test_a_blind_detector_is_told_as_one():
    generator = np.random.default_rng(3)
    scores = joined(judged("benign", generator.random(150)), judged("PGD", generator.random(150)))
    for target in tables.TARGETS:
        row = detector_row(scores, target=target)
        assert row["auc_low"] < 0.5 < row["auc_high"]
        assert row["false_positive_rate_low"] <= target <= row["false_positive_rate_high"]


@pytest.mark.parametrize(("others", "measured"), [(18, False), (19, True)])
def test_a_threshold_for_five_per_cent_takes_nineteen_benign_images_beside_the_fold(others, measured):
    scores = joined(judged("benign", np.arange(2 * others) / 100, folds=2), judged("PGD", [2.0] * 4, folds=2))
    row = detector_row(scores)
    assert math.isfinite(row["threshold"]) is math.isfinite(row["false_positive_rate"]) is measured
    assert row["note"] == ("" if measured else "18 benign scores beside the fold, 5% needs 19")
    assert row["auc"] == 1
    assert detector_row(scores, target=0.5)["note"] == ""


def test_one_kind_of_image_alone_is_said():
    row = detector_row(joined(judged("benign", np.arange(60) / 60)), "all")
    assert row["note"] == "no adversarial image"
    assert math.isnan(row["auc"])
    assert math.isnan(row["false_negative_rate"])
    assert row["false_positive_rate"] < 0.1
    row = detector_row(joined(judged("PGD", [0.5] * 9)))
    assert row["note"] == "0 benign scores beside the fold, 5% needs 19; no benign image"
    row = detector_row(joined(judged("benign", [0.1] * 40, index=3 * np.arange(40)), judged("PGD", [0.2], index=[1])))
    assert "no fold holds benign and adversarial images" in row["note"]


def test_controls_are_benign_images_that_may_be_called_adversarial():
    benign, noise = np.arange(60) / 60, [0.2, 0.3, 2.0, 2.0]
    scores = joined(judged("benign", benign), judged("PGD", [3.0] * 5), judged("noise", noise))
    row = detector_row(scores, "noise")
    assert (row["false_positive_rate"], row["n_benign"], row["n_adversarial"], row["note"]) == (0.5, 4, 0, "")
    assert math.isnan(row["false_negative_rate"])
    assert math.isnan(row["auc"])
    assert detector_row(scores, "all")["n_adversarial"] == 5  # a control is no attack


def rays_of(scores, medians):
    """A median distance for each row, as `tables.probed` states them."""
    return scores[[*tables.KEY]].assign(median_distance=medians)


def test_matched_images_are_partners_in_median_distance():
    # In fold 0 are the images 0 and 3, in fold 1 image 1, in fold 2 image 2.
    scores = joined(judged("benign", [0.1] * 4), judged("PGD", [0.9] * 4), judged("FGSM", [0.9] * 4))
    rays = rays_of(scores, [0.50, 0.30, INF, 0.10, 0.11, 0.90, INF, 0.51, 0.30, 0.30, 0.30, 0.30])
    benign, adversarial = tables.matched(scores, rays, "PGD")
    assert benign.nonzero()[0].tolist() == [0, 3]  # image 1's partner is too far, image 2 is not known
    assert adversarial.nonzero()[0].tolist() == [4, 7]
    benign, adversarial = tables.matched(scores, rays, "all")
    assert benign.nonzero()[0].tolist() == [0, 1, 3]
    assert adversarial.nonzero()[0].tolist() == [4, 7, 9]  # of FGSM; every benign image has one partner
    assert not np.any(tables.matched(scores, rays.assign(median_distance=INF), "PGD"))


def test_a_detector_of_near_boundaries_cannot_tell_matched_images_apart():
    # Its score is minus the median distance, and nothing else.
    generator = np.random.default_rng(0)
    far, near = generator.uniform(0.2, 1.0, 150), generator.uniform(0.0, 0.8, 150)
    scores = joined(judged("benign", -far), judged("PGD", -near))
    rays = rays_of(scores, np.concatenate((far, near)))
    found = detector_row(scores, rays=rays), detector_row(scores, "matched", rays=rays)
    assert found[0]["auc_low"] > 0.6
    assert found[1]["auc_low"] < 0.5 < found[1]["auc_high"]
    assert found[1]["n_benign"] == found[1]["n_adversarial"] > 60
    assert found[1]["auc_high"] < found[0]["auc"]
    assert math.isnan(found[1]["false_negative_rate"])


def test_the_network_is_compared_with_every_other_detector():
    generator = np.random.default_rng(0)
    benign, pgd = generator.normal(size=60), 2 + generator.normal(size=60)
    own = joined(judged("benign", benign), judged("PGD", pgd))
    blind = joined(judged("benign", pgd), judged("PGD", benign)).assign(detector="blind")
    found = tables.beaten(joined(own, blind, own.assign(detector="same"))).set_index("detector")
    area = stats.mannwhitneyu(pgd, benign).statistic / 3600
    assert found.difference["blind"] == pytest.approx(2 * area - 1, abs=0.05)  # means over folds, not pooled
    assert found.difference_low["blind"] > 0
    assert found.loc["same", ["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]


# For the reader

RATES = pd.DataFrame(
    {
        "model": ["normal", "normal", "pgd"],
        "attack": ["FGSM", "PGD", "FGSM"],
        "n": [97, 97, 95],
        "success_rate": [0.984, 1.0, NAN],
        "success_rate_low": [0.971, 0.96, NAN],
        "success_rate_high": [0.991, 1.0, NAN],
        "mean_rms": [0.12345, INF, NAN],
    }
)


def read(style):
    """What stands in the page: the names of the columns, and the cells of every row."""
    header, body = style.to_html().split("<tbody>")
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]
    return re.findall(r"<th[^>]*>(.*?)</th>", header), rows


def test_a_share_has_an_interval():
    assert tables.share(bools(1, 1, 0, 1)) == wilson(3, 4)
    assert math.isnan(tables.share(bools()).value)


@pytest.mark.parametrize(
    ("column", "row", "text"),
    [
        ("success_rate", {"model": "normal", "attack": "FGSM"}, "98 % [97, 99]"),
        ("success_rate", {"model": "pgd", "attack": "FGSM"}, "not measured"),
        ("success_rate", {"model": "pgd", "attack": "PGD"}, "not measured"),
        ("mean_rms", {"attack": "PGD"}, "inf"),
        ("mean_rms", {"model": "normal", "attack": "FGSM"}, "0.123"),
        ("n", {"model": "pgd"}, "95"),
        ("attack", {"model": "pgd"}, "FGSM"),
    ],
)
def test_a_cell_says_a_rate_with_its_interval(column, row, text):
    assert tables.cell(RATES, column, **row) == text


def test_a_cell_is_of_one_row():
    with pytest.raises(ValueError, match=r"expected \{'model': 'normal'\} to name one row, got 2; name it by"):
        tables.cell(RATES, "n", model="normal")


@pytest.mark.parametrize(
    ("name", "text"),
    [("auc", "0.9 [0.8, 0.95]"), ("differing", "90 % [80, 95]"), ("accuracy", "90 % [80, 95]")],
)
@pytest.mark.parametrize("ends", [("{}_low", "{}_high"), ("low", "high")])
def test_the_interval_is_that_of_the_column_before_it(name, text, ends):
    low, high = (end.format(name) for end in ends)
    frame = pd.DataFrame({"model": ["a"], name: [0.9], low: [0.8], high: [0.95]})
    assert tables.cell(frame, name, model="a") == text
    assert read(tables.show(frame)) == (["model", name], [["a", text]])


def test_a_rate_without_an_interval_is_still_in_per_cent():
    frame = pd.DataFrame({"flips_8bit": [0.25], "reached_share": [1.0], "purity_1": [0.5], "flips_alone": [NAN]})
    assert read(tables.show(frame))[1] == [["25 %", "100 %", "0.5", ""]]


def test_a_table_is_shown_with_intervals_in_the_cells():
    names, rows = read(tables.show(RATES))
    assert names == ["model", "attack", "n", "success_rate", "mean_rms"]
    assert rows == [
        ["normal", "FGSM", "97", "98 % [97, 99]", "0.123"],
        ["normal", "PGD", "97", "100 % [96, 100]", "inf"],
        ["pgd", "FGSM", "95", "", ""],
    ]
    assert read(tables.show(RATES, columns=["attack", "success_rate"]))[0] == ["attack", "success_rate"]
    left = re.findall(r"td\.col(\d) \{\s*text-align: left", tables.show(RATES).to_html())
    assert left == ["0", "1"]  # words; numbers are to the right


def test_a_table_is_pivoted_by_model():
    style = tables.show(RATES, by="model", columns=["model", "attack", "n", "success_rate"])
    assert style.data.index.tolist() == ["FGSM", "PGD"]
    assert style.data.columns.tolist() == [
        (name, model) for name in ("n", "success_rate") for model in ("normal", "pgd")
    ]
    assert style.data.loc["FGSM"].tolist() == ["97", "95", "98 % [97, 99]", ""]
    assert style.data.loc["PGD"].tolist() == ["97", "", "100 % [96, 100]", ""]
    page = style.to_html()
    assert "98 % [97, 99]" in page
    assert page.count("FGSM") == 1


def test_the_order_of_the_rows_stays_when_two_columns_name_them():
    frame = pd.DataFrame({"model": list("abab"), "x": list("zzyy"), "w": list("qqpp"), "n": [1, 2, 3, 4]})
    shown = tables.show(frame, by="model").data
    assert shown.index.tolist() == [("z", "q"), ("y", "p")]
    assert shown.to_numpy().tolist() == [["1", "2"], ["3", "4"]]


@pytest.mark.parametrize("by", [None, "model"])
def test_no_row_or_column_is_left_out(by):
    size = 130  # pandas itself shows 60 rows and 20 columns
    frame = pd.DataFrame({f"column {j}": [j * size + i for i in range(size)] for j in range(40)})
    frame.insert(0, "model", ["normal", "pgd"] * (size // 2))
    frame.insert(1, "row", [f"row {i // 2}" for i in range(size)])
    page = tables.show(frame, by=by).to_html()
    assert all(f"column {j}" in page for j in range(40))
    assert all(f">{number}<" in page for number in range(40 * size))
    assert "..." not in page


def test_tables_survive_a_csv_file(tmp_path):
    results = {("normal", "FGSM"): attack([False], [True]), ("normal", "OPTSTRONG"): attack([True], [True])}
    images = tables.attacked(results, {"normal": bools(1)}, Y, pixel_max=1)
    frame = tables.attacks(images, results, ABOUT, dict.fromkeys(results, 1.0), pixel_max=1)
    run = store.open_run(tmp_path / "run", dataset="digits", preset="smoke")
    run.write_table("attacks", frame)
    again = run.read_table("attacks", made_by="03_attacks")
    assert list(again) == list(frame)
    assert again["mean_rms"].isna().tolist() == [True, False]
    assert again["n"].tolist() == frame["n"].tolist() == [1, 1]
    assert np.array_equal(again["success_rate_high"], frame["success_rate_high"])
