"""Measurements in, tables out: one row an image first, then every results table as a group-by of it.

Frames of images have the key columns model, examples, index. An empty cell (NaN) means not measured, `inf` a distance
beyond the last magnitude. Lengths are stated in the data set's own units: [0, 1] units times `pixel_max`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from pandas.io.formats.style import Styler
from torch import Tensor

from nbsupport import intervals
from nbsupport.adaptive import Judged
from nbsupport.attacks import Attack, Stability, best_of
from nbsupport.baselines import Judge
from nbsupport.boundary import Audit, Geometry, Profile, purity
from nbsupport.data import ImageSet
from nbsupport.detector import calibrate
from nbsupport.intervals import Rate, wilson
from nbsupport.region import Vote
from nbsupport.suite import (
    BENIGN,
    CONTROLS,
    TARGETS,
    Attempt,
    Defended,
    Keys,
    Results,
    Tensors,
    least_rms,
    of_model,
    ray_medians,
)


def _with_interval(*names: str) -> tuple[str, ...]:
    return tuple(name + end for name in names for end in ("", "_low", "_high"))


KEY = ["model", "examples", "index"]
IMAGES = {  # the columns of images.csv, and what they hold
    "model": "normal or pgd: the model that the row is about",
    "examples": "benign, an attack, mimic, or a control: noise, errors",
    "index": "position in the test set, from 0",
    "y": "true class",
    "correct": "the model was right before the attack; others were not attacked",
    "success": "the attack succeeded, re-checked on the image that it returned",
    "rms": "root mean square of the perturbation, in the unit of the data set",
    "point": "class that the model gives the image",
    "vote": "class that most points of the hypercube have",
    "votes_for_true": "points of the vote that have the true class; a vote ends once it is decided",
    "p_lower": "lower end of the 99.9 % interval of the winner's share of the hypercube",
    "abstain": "the winner does not lead the runner-up significantly (binomial test, p > .001)",
    "median_distance": "median over the rays, in the unit of the data set; inf: half of them meet no boundary",
    "reached_share": "part of the rays that meet a boundary within the grid",
    "share_below_region_line": "part of the rays that meet one before the mean distance of a point of the vote",
    "purity_1": "part of all crossings that leads to the most frequent class",
    "purity_2": "that leads to one of the two most frequent",
    "purity_3": "that leads to one of the three most frequent",
    "detector_part": "fold of the image, whose detector has not seen it",
    "detector_score": "that detector's probability of adversarial",
    "detector_threshold": "the score from which it flags, at 5 % false positives",
    "converged": "the search was no longer gaining when it ended, nor was its constant at a bound",
}
_BUDGETS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of `evasion_cost`
_KINDS = {
    "Int64": ("index", "y", "point", "vote", "votes_for_true", "detector_part"),
    "boolean": ("correct", "success", "abstain", "converged"),
}
_PIXELS = ("lowest_pixel", "mean_pixel", "highest_pixel")
DATASETS = ("part", "source", "images", "shape", "classes", "fewest_in_a_class", "most_in_a_class", *_PIXELS)
TRAINING = (
    *("model", "n", *_with_interval("benign_accuracy", "pgd_accuracy"), "eps", "steps", "schedule"),
    *("worst_n", *_with_interval("worst_accuracy")),
)
ATTACKS = (
    *("model", "attack", "solver", "variant", "eps_or_confidence", "n", "n_misclassified"),
    *_with_interval("success_rate"),
    *("mean_rms", "median_rms", "forwards_per_image", "backwards_per_image", "seconds", "converged"),
)
NEAREST = ("model", "attack", "n", "success_rate", "nearest_share", "mean_rms", "mean_excess")
_REGION = ("region_accuracy", "region_low", "region_high")
EVASION = ("curve", "demand", "n", "success_rate", "mean_rms", *_REGION)
REGION = ("model", "examples", "n", "point_accuracy", *_REGION, "radius", "samples")
BOUNDARY = ("model", "examples", "n", "median_distance", "reached_share", "purity_1", "purity_2", "purity_3")
_ERRORS = _with_interval("false_positive_rate", "false_negative_rate", "auc")
_JUDGE = ["model", "detector", "trained_on"]
SCORES = (*_JUDGE, "seed", "fold", "examples", "index", "score")
THRESHOLDS = (*_JUDGE, "seed", "fold", "target_fpr", "threshold", "n_benign")
DETECTOR = (*_JUDGE, "tested_on", "target_fpr", "threshold", "n_benign", "n_adversarial", *_ERRORS, "note")
_CALIPER = 0.2  # of a standard deviation of the median distances: what a matched image may differ by
STABILITY = ("model", "examples", "n", "flips_alone", "flips_batch", "flips_float64", "flips_8bit")
GEOMETRY = (
    *("model", "examples", "n", *_with_interval("triple_cells"), "triple_share"),
    *("crossings", "reentry_share", "reentry_low", "reentry_high", "mean_angle"),
)
ADAPTIVE = (
    *("model", "defence", "attack", "source_model", "transfer", "n"),
    *_with_interval("success_rate"),
    *("budget_rms", "fpr", "median_rms"),
)
COST = ("model", "defence", "fpr", "attacks", "budgets", "n", *_with_interval("success_rate"))
AUDIT = ("model", "examples", "rays", "differing", "low", "high")


# One row an image


def attacked(results: Results, benign: Mapping[str, Tensor], y: Tensor, *, pixel_max: float) -> pd.DataFrame:
    """Return what the attacks did to each image: the key, y, correct, success, rms, converged.

    `converged`: the search was not still gaining when it ended, and its constant saw both sides (`attacks.Attack`).

    `benign` are, for each model, which of the first images (N,) bool it classifies correctly: its rows of examples
    "benign", without the last three. `y` are the labels of the test set.
    """
    parts = []
    for model, right in benign.items():
        parts.append(_rows((model, BENIGN), y=y[: len(right)], correct=right))
        for name, attack in of_model(results, model).items():
            columns = {"correct": attack.correct, "success": attack.success, "rms": pixel_max * attack.rms.double()}
            columns["converged"] = ~(attack.falling | attack.at_bound)
            parts.append(_rows((model, name), y=y[: len(attack)], **columns))
    return _typed(pd.concat(parts, ignore_index=True))


def voted(votes: Mapping[Keys, Vote], points: Tensors, y: Tensor) -> pd.DataFrame:
    """Return the point label and the vote of each image: the key, point, vote, votes_for_true, p_lower, abstain."""
    parts = []
    for key, vote in votes.items():
        for_true = vote.counts.gather(1, y[: len(vote), None])[:, 0]
        columns = {"vote": vote.label, "votes_for_true": for_true, "p_lower": vote.p_lower, "abstain": vote.abstain}
        parts.append(_rows(key, point=points[key], **columns))
    return pd.concat(parts, ignore_index=True)


def probed(
    profiles: Mapping[Keys, Profile], positions: Tensors, *, radius: float, num_classes: int, pixel_max: float
) -> pd.DataFrame:
    """Return the rays of each image in numbers, from `median_distance` to `purity_3` in `IMAGES`.

    The line is the expected RMS of a point of the vote before clipping, radius / sqrt(3).
    """
    parts = []
    for key, profile in profiles.items():
        columns: dict[str, Any] = {
            "median_distance": pixel_max * ray_medians(profile),
            "reached_share": profile.reached.double().mean(1),
            "share_below_region_line": (profile.distance < radius / math.sqrt(3)).double().mean(1),
        }
        purities = purity(profile, num_classes=num_classes, top=3)
        columns |= {f"purity_{j + 1}": purities[:, j] for j in range(purities.shape[1])}
        parts.append(_rows(key, positions[key], **columns))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*KEY])


def controls(versions: Mapping[Keys, tuple[Tensor, Tensor]], images: ImageSet) -> pd.DataFrame:
    """Return the rows of the controls among `versions` (as `suite.versions`), with the columns of `attacked`.

    `images` is the test set. `success` is empty.
    """
    parts = [pd.DataFrame(columns=[*KEY])]
    for (model, name), (at, x) in versions.items():
        if name in CONTROLS:
            rms = images.pixel_max * (x - images.x[at]).double().square().flatten(1).mean(1).sqrt()
            kept = np.full(len(at), name != "errors")
            parts.append(_rows((model, name), at, y=images.y[at], correct=kept, success=pd.NA, rms=rms))
    return _typed(pd.concat(parts[1:] or parts, ignore_index=True))


def scored(scores: pd.DataFrame, thresholds: pd.DataFrame) -> pd.DataFrame:
    """Return each image's fold, held-out score and threshold: the key, and the columns `detector_...` in `IMAGES`.

    The score is by the network (seed 0) of the row's attack; of benign images, of controls and of attacks without a
    detector of their own by that of `all`. The threshold is that for 5 % of the benign images. `scores` are from
    `scores`, `thresholds` from `thresholds`.
    """
    own = scores[(scores.detector == "network") & (scores.seed == 0)]
    judges = set(zip(own.model, own.trained_on, strict=True))
    of_attack = np.array([pair in judges for pair in zip(own.model, own.examples, strict=True)], dtype=bool)
    own = own[own.trained_on == own.examples.where(of_attack, "all")]
    by = [*_JUDGE, "seed", "fold"]
    limits = thresholds.loc[thresholds.target_fpr == TARGETS[0], [*by, "threshold"]]
    joined = own.merge(limits, how="left", on=by, validate="many_to_one")
    named = {"fold": "detector_part", "score": "detector_score", "threshold": "detector_threshold"}
    return joined[[*KEY, *named]].rename(columns=named)


def _rows(key: Keys, index: Tensor | None = None, **columns: Any) -> pd.DataFrame:
    """Return the rows of one set of examples; `index` None: of the first images."""
    named = {name: values.cpu().numpy() if isinstance(values, Tensor) else values for name, values in columns.items()}
    at = np.arange(len(next(iter(named.values())))) if index is None else index.numpy()
    return pd.DataFrame({"model": key[0], "examples": key[1], "index": at, **named})


def images(first: pd.DataFrame, *others: pd.DataFrame, controls: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return images.csv, columns `IMAGES`: the rows of `first`, which is from `attacked`, with the columns of `others`.

    The rows of `controls` follow them.

    Raises ValueError where a frame names an image of a set twice.
    """
    joined = first if controls is None else pd.concat([first, controls], ignore_index=True)
    for frame in (joined, *others):
        twice = frame[frame.duplicated(KEY)]
        if len(twice):
            model, examples, index = twice.iloc[0][KEY]
            raise ValueError(f"expected every image once, got image {index} twice in {examples} of {model}")
    for frame in others:
        joined = joined.merge(frame, how="left", on=KEY, validate="one_to_one")
    return _typed(joined.reindex(columns=list(IMAGES)))


def stacked(*frames: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of several frames of images, one below the other; as `images` names and types them."""
    joined = pd.concat([frame.astype(object) for frame in frames], ignore_index=True)
    return _typed(joined.reindex(columns=list(IMAGES)).infer_objects())


def _typed(images: pd.DataFrame) -> pd.DataFrame:
    """Return `images` with whole numbers and yes/no answers as such, also where some are missing."""
    return images.astype({name: kind for kind, names in _KINDS.items() for name in names if name in images})


# Tables


def datasets(train: ImageSet, test: ImageSet) -> pd.DataFrame:
    """Return a row for the training and one for the test images: how many, their shape, and their range in its unit."""
    rows = []
    for part, held in (("training", train), ("test", test)):
        counts = held.y.bincount(minlength=held.num_classes)
        size = (len(held), "x".join(map(str, held.in_shape)), held.num_classes, int(counts.min()), int(counts.max()))
        pixels = (held.pixel_max * float(value) for value in (held.x.min(), held.x.mean(), held.x.max()))
        rows.append((part, held.name, *size, *pixels))
    return pd.DataFrame(rows, columns=[*DATASETS])


def accuracy(
    results: Mapping[str, Attack],
    further: Mapping[str, Sequence[Attack]],
    schedules: Mapping[str, str],
    *,
    eps: float,
    steps: int,
    pixel_max: float,
) -> pd.DataFrame:
    """Return training.csv: the accuracy of each model before and after PGD, with Wilson's 95 % intervals.

    `pgd_accuracy` is the share that is classified correctly before and after PGD of `steps` steps within `eps`;
    `schedules` says how each model was trained. `worst_accuracy` is what is left of the first `worst_n` images when an
    image counts only if PGD and all of the `further` attacks within `eps` leave it right.
    """
    rows = []
    for model, one in results.items():
        rates = _cells(share(one.correct), share(one.correct & ~one.success))
        n = min(map(len, further[model]))
        worst = best_of([each.take(slice(n)) for each in (one, *further[model])])
        left = n, *_cells(share(worst.correct & ~worst.success))
        rows.append((model, len(one), *rates, pixel_max * eps, steps, schedules[model], *left))
    return pd.DataFrame(rows, columns=[*TRAINING])


def attacks(
    images: pd.DataFrame, results: Results, about: pd.DataFrame, seconds: Mapping[Keys, float], *, pixel_max: float
) -> pd.DataFrame:
    """Return one row an attack, columns `ATTACKS`; passes are from `results`, settings from `about` (`suite.about`).

    `n` counts the attacked, that is correctly classified, images; rates and passes are over them, `mean_rms` and
    `median_rms` over the successful ones. `converged` is the share of the attacked whose search had converged.
    """
    known, rows = about.set_index("attack").to_dict("index"), []
    for (model, name), part in _sets(images):
        if name == BENIGN:
            continue
        result, settings, right = results[model, name], known[name], part[part.correct]
        rms = right.rms[right.success].to_numpy(float)
        budget = settings["confidence"] if math.isnan(settings["eps"]) else pixel_max * settings["eps"]
        counts = (len(right), len(part) - len(right), *_cells(share(right.success)))
        passes = (_mean(spent[result.correct]) for spent in (result.forwards, result.backwards))
        lengths = (_mean(rms), float(np.median(rms)) if rms.size else math.nan)
        said = (settings["solver"], settings["variant"], budget)
        rows.append((model, name, *said, *counts, *lengths, *passes, seconds[model, name], _mean(right.converged)))
    return pd.DataFrame(rows, columns=[*ATTACKS])


def region(images: pd.DataFrame, *, radius: float, samples: int, pixel_max: float) -> pd.DataFrame:
    """Return one row a set of examples, columns `REGION`: shares of the images with the true label.

    Benign images all count, whether they were classified correctly or not. Of an attack's images those count that were
    attacked, with the image that the attack returned, so that the point accuracy of an attack without targets is one
    minus its success rate.
    """
    rows = []
    for (model, name), part in _sets(images[images.vote.notna()]):
        counted = part if name == BENIGN else part[part.correct]
        rates = (_mean(counted.point == counted.y), *_cells(share(counted.vote == counted.y)))
        rows.append((model, name, len(counted), *rates, pixel_max * radius, samples))
    return pd.DataFrame(rows, columns=[*REGION])


def other_regions(
    variants: Mapping[str, Mapping[str, Any]], labels: Tensors, y: Tensor, counted: Tensor, *, pixel_max: float
) -> pd.DataFrame:
    """Return region_other.csv: one row a variant (as `suite.region_variants`), the accuracy on every set of examples.

    `labels` (N,) by variant and examples are compared with `y` (N,) on the images `counted` (N,) bool, with Wilson's
    95 % interval.
    """
    rows, names = [], list(dict.fromkeys(examples for _, examples in labels))
    for variant, settings in variants.items():
        rates = _cells(*(share((labels[variant, name] == y)[counted]) for name in names))
        said = (settings["shape"], settings["combine"], pixel_max * settings["radius"], int(counted.sum()))
        rows.append((*said, *rates))
    ends = _with_interval(*(f"{name}_accuracy" for name in names))
    return pd.DataFrame(rows, columns=["shape", "combine", "radius", "n", *ends])


def boundary(images: pd.DataFrame, profiles: Mapping[Keys, Profile], *, pixel_max: float) -> pd.DataFrame:
    """Return one row a set of examples, columns `BOUNDARY`.

    `median_distance` is the median over images and rays, rays without a boundary being infinitely long; the cell is
    empty where that median is infinite. Purities are means over images.
    """
    of_set, rows = dict(_sets(images)), []
    for (model, name), profile in profiles.items():
        median = pixel_max * float(np.median(profile.distance.cpu().numpy()))
        measured = of_set[model, name].dropna(subset="reached_share")
        purities = (_mean(measured[column]) for column in ("purity_1", "purity_2", "purity_3"))
        shown = median if math.isfinite(median) else math.nan
        rows.append((model, name, len(profile), shown, _mean(profile.reached), *purities))
    return pd.DataFrame(rows, columns=[*BOUNDARY])


def scores(
    judges: Mapping[str, Mapping[tuple[str, str, int], Sequence[Judge]]],
    profiles: Mapping[Keys, Profile],
    positions: Tensors,
    folds: Tensors,
) -> pd.DataFrame:
    """Return the score of every profile by every detector, columns `SCORES`: that of the fold which held it out.

    Parameters
    ----------
    judges
        By the name of the detector, then by (model, trained_on, seed), one for each fold.
    profiles, positions, folds
        Of every (model, examples) the profiles, their positions in the test set and their folds (`suite.folds`).
    """
    parts = [pd.DataFrame(columns=[*SCORES])]
    for name, found in judges.items():
        for (model, trained_on, seed), by_fold in found.items():
            own = of_model(profiles, model)
            tested, fold = Profile.cat(list(own.values())), torch.cat([folds[model, examples] for examples in own])
            score = torch.empty(len(fold), dtype=torch.float64)
            for k, judge in enumerate(by_fold):
                score[fold == k] = judge.score(tested.take(fold == k)).cpu()
            rows = {"examples": np.repeat(list(own), list(map(len, own.values())))}
            rows["index"] = torch.cat([positions[model, examples] for examples in own]).numpy()
            columns = {"model": model, "detector": name, "trained_on": trained_on, "seed": seed, "fold": fold.numpy()}
            parts.append(pd.DataFrame({**columns, **rows, "score": score.numpy()}))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def thresholds(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the threshold of each fold's detector for each of `TARGETS`, columns `THRESHOLDS`.

    It is calibrated (`detector.calibrate`) on the scores of the `n_benign` benign images of all other folds, each by
    the detector that held it out. The cell is empty where those are too few.
    """
    rows = []
    for keys, part in scores.groupby([*_JUDGE, "seed"], sort=False):
        benign = part[part.examples == BENIGN]
        for fold, target in itertools.product(sorted(part.fold.unique()), TARGETS):
            others = benign.score[benign.fold != fold]
            threshold = calibrate(others, false_positive_rate=target)
            rows.append((*keys, fold, target, threshold, len(others)))
    return pd.DataFrame(rows, columns=[*THRESHOLDS])


def detector(scores: pd.DataFrame, thresholds: pd.DataFrame, rays: pd.DataFrame) -> pd.DataFrame:
    """Return detector.csv, columns `DETECTOR`: how each detector errs on each set of examples that it is tested on.

    Rates are over images, each judged by the detector and at the threshold of its own fold (seeds averaged), with
    Wilson's 95 % intervals for as many observations as there are images. `threshold` is the mean over folds, and
    `n_benign`, `n_adversarial` count images. The area under the ROC curve is the mean over folds
    (`intervals.roc_auc_of_folds`). `note` says why a cell is empty.

    Rows tested on a control are about benign images alone: their false positive rate is that of the images with noise
    (`noise`), or of those that the classifier gets wrong (`errors`). `matched` are the benign images that have a
    partner of nearly the same median distance among the adversarial ones that the detector was trained on (see
    `matched`): the area is that of the partners against them.

    Parameters
    ----------
    scores, thresholds
        As the functions of these names return them.
    rays
        The key and `median_distance` of every image, as `probed` returns them.
    """
    rows: list[tuple[Any, ...]] = []
    for keys, part in scores.groupby(_JUDGE, sort=False):
        own = thresholds[(thresholds[_JUDGE] == list(keys)).all(axis=1)]
        sets, score, first = _tested(part)
        nearby = matched(first, rays, str(keys[2]))
        for name, (benign, adversarial) in {**sets, "matched": nearby}.items():
            chosen = benign | adversarial
            tested = _folds(score[:, chosen], adversarial[chosen], first[chosen])
            area = intervals.roc_auc_of_folds(tested)
            for target, limits in own.groupby("target_fpr"):
                cut = limits.pivot(index="seed", columns="fold", values="threshold")
                at = cut[first.fold].to_numpy(float)
                flagged, unknown = score >= at, np.isnan(at).any(0)
                sides = [_flagged(side, flagged, unknown, first) for side in (benign, adversarial)]
                if name in (*CONTROLS, "matched"):
                    sides[1] = Rate(math.nan, math.nan, math.nan, sides[1].n)
                missed = Rate(1 - sides[1].value, 1 - sides[1].high, 1 - sides[1].low, sides[1].n)
                sizes = sides[0].n, sides[1].n
                note = _why_empty(target, limits, sizes, control=name in CONTROLS, area=area)
                limit = float(np.mean(cut.to_numpy()))
                rows.append((*keys, name, target, limit, *sizes, *_cells(sides[0], missed, area), note))
    return pd.DataFrame(rows, columns=[*DETECTOR])


def _tested(part: pd.DataFrame) -> tuple[dict[str, tuple[NDArray[Any], NDArray[Any]]], NDArray[Any], pd.DataFrame]:
    """Return what one detector is tested on: which rows are benign, which adversarial, by name; scores; the rows.

    `part` are its rows of `SCORES`. The scores are (S, m) of S seeds, the rows those of one seed.
    """
    seeds = part.seed.nunique()
    first = part.iloc[: len(part) // seeds].reset_index(drop=True)
    score = part.score.to_numpy(float).reshape(seeds, -1)
    is_set = {name: (first.examples == name).to_numpy() for name in first.examples.unique()}
    none, benign = np.zeros(len(first), dtype=bool), is_set.pop(BENIGN, np.zeros(len(first), dtype=bool))
    attacked = {name: rows for name, rows in is_set.items() if name not in CONTROLS}
    sets = {name: (benign, rows) for name, rows in attacked.items()}
    sets["all"] = benign, np.any([none, *attacked.values()], axis=0)
    return sets | {name: (is_set[name], none) for name in CONTROLS if name in is_set}, score, first


def _folds(score: NDArray[Any], adversarial: NDArray[Any], rows: pd.DataFrame) -> intervals.Folds:
    return intervals.Folds(score, adversarial, rows.fold.to_numpy(int), rows["index"].to_numpy(int))


def _flagged(rows: NDArray[Any], flagged: NDArray[Any], unknown: NDArray[Any], first: pd.DataFrame) -> Rate:
    """Return the share of the chosen `rows` (m,) bool that are `flagged` (S, m); NaN where a threshold is unknown."""
    images = first["index"].to_numpy(int)[rows]
    if unknown[rows].any():
        return Rate(math.nan, math.nan, math.nan, len(np.unique(images)))
    return intervals.share_of_clusters(flagged[:, rows].ravel(), np.tile(images, len(flagged)))


def _why_empty(target: Any, limits: pd.DataFrame, sizes: tuple[int, int], *, control: bool, area: Rate) -> str:
    """Return why a row has empty cells; nothing where it has none."""
    fewest, needed = int(limits.n_benign.min()), math.ceil(1 / target - 1 - 1e-9)
    said = []
    if limits.threshold.isna().any():
        said.append(f"{fewest} benign scores beside the fold, {target:.0%} needs {needed}")
    if sizes[0] == 0:
        said.append("no benign image")
    if not control and sizes[1] == 0:
        said.append("no adversarial image")
    elif not control and sizes[0] and math.isnan(area.value):
        said.append("no fold holds benign and adversarial images")
    return "; ".join(said)


def matched(tested: pd.DataFrame, rays: pd.DataFrame, trained_on: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows of `tested` (benign ones, adversarial ones: (m,) bool each) are partners in median distance.

    One adversarial image after the other, of those in `trained_on` ("all": of every attack), takes the nearest benign
    image of its fold that is still free, if their medians differ by less than a fifth of a standard deviation. Images
    whose median is infinite have no partner. `tested` are rows of `SCORES`, `rays` as in `detector`.
    """
    medians = tested.merge(rays[[*KEY, "median_distance"]], how="left", on=KEY).median_distance.to_numpy(float)
    known, benign = np.isfinite(medians), (tested.examples == BENIGN).to_numpy()
    attack = ~tested.examples.isin((BENIGN, *CONTROLS)) if trained_on == "all" else tested.examples == trained_on
    adversarial = attack.to_numpy(bool) & known
    partners = np.zeros((2, len(tested)), dtype=bool)
    limit = _CALIPER * float(np.std(medians[known & (benign | adversarial)])) if known.any() else 0.0
    for fold in tested.fold.unique():
        mine = (tested.fold == fold).to_numpy()
        free = list((mine & benign & known).nonzero()[0])
        for row in (mine & adversarial).nonzero()[0]:
            apart = np.abs(medians[free] - medians[row])
            if len(free) and apart.min() < limit:
                partners[:, [free.pop(int(apart.argmin())), row]] |= np.eye(2, dtype=bool)
    return partners[0], partners[1]


def own_tests(scores: pd.DataFrame) -> dict[tuple[str, str, str], intervals.Folds]:
    """Return the scores of each (model, detector, trained_on) on benign images and on the attack it was trained on."""
    found = {}
    for keys, part in scores.groupby(_JUDGE, sort=False):
        sets, score, first = _tested(part)
        if keys[2] in sets:
            chosen = sets[keys[2]][0] | sets[keys[2]][1]
            found[str(keys[0]), str(keys[1]), str(keys[2])] = _folds(
                score[:, chosen], sets[keys[2]][1][chosen], first[chosen]
            )
    return found


def beaten(scores: pd.DataFrame) -> pd.DataFrame:
    """Return by how much the network's area under the ROC curve exceeds that of each other detector, a row each.

    Both are tested on the attack that they were trained on. `difference` comes with a 95 % bootstrap interval over
    images; where it reaches 0 or below, the other detector is not shown to be worse.
    """
    found, rows = own_tests(scores), []
    for (model, name, trained_on), other in found.items():
        if name != "network":
            change = intervals.difference_of_roc_auc(found[model, "network", trained_on], other)
            rows.append((model, name, trained_on, *_cells(change), change.n))
    return pd.DataFrame(rows, columns=[*_JUDGE, *_with_interval("difference"), "n"])


def stability(flips: Mapping[Keys, Stability]) -> pd.DataFrame:
    """Return one row an attack, columns `STABILITY`: the shares of its `n` successful examples that were undone."""
    rows = []
    for (model, name), found in flips.items():
        shares = map(_mean, (found.alone, found.batch, found.float64, found.eight_bit))
        rows.append((model, name, len(found), *shares))
    return pd.DataFrame(rows, columns=[*STABILITY])


def nearest(results: Results, *, pixel_max: float) -> pd.DataFrame:
    """Return nearest.csv: every attack against the least distortion that any attack needed, one row each.

    The rows are about the first images, which every attack was given, of these about the n that were attacked.
    `nearest_share`: the part of the images on which this attack was the nearest. `mean_rms` is over its own successes,
    `mean_excess` is that mean over the mean of the least RMS on the same images, less one; of the rows "best of all"
    `mean_rms` is the mean of that least RMS.
    """
    rows = []
    for model, sets in {model: of_model(results, model) for model, _ in results}.items():
        common = slice(min(map(len, sets.values())))
        firsts = {name: attack.take(common) for name, attack in sets.items()}
        best = best_of(list(firsts.values()))
        for name, attack in {**firsts, "best of all": best}.items():
            own, nearer = attack.success, attack.success & (attack.rms == best.rms)
            mean, n = _mean(attack.rms[own]), int(best.correct.sum())
            excess = mean / _mean(best.rms[own]) - 1 if own.any() else math.nan
            shares = (_mean(own[best.correct]), _mean(nearer[best.correct]))
            rows.append((model, name, n, *shares, pixel_max * mean, excess))
    return pd.DataFrame(rows, columns=[*NEAREST])


def evasion(
    rows: Sequence[tuple[str, float | str, Attack, Tensor]], about: pd.DataFrame, *, pixel_max: float
) -> pd.DataFrame:
    """Return evasion.csv: distortion and region accuracy, one row for each (curve, demand, attack, kept).

    `curve` names what grows and `demand` its value; of the curve "published" it is an attack's name, of which `about`
    (`suite.about`) says more. `kept` (N,) bool says which images' true label wins the vote.
    `mean_rms` is over the successes; `region_accuracy` the share of the attacked images that are kept, with Wilson's
    95 % interval.
    """
    known, frame = about.set_index("attack"), []
    for curve, demand, attack, kept in rows:
        if curve == "published":
            said = [each for each in (known.solver[demand], known.variant[demand]) if isinstance(each, str)]
            demand = f"{demand} ({', '.join(said)})" if said else demand
        elif curve == "size of the views":
            demand = pixel_max * float(demand)
        right, rms = attack.correct, attack.rms[attack.success]
        success = _mean(attack.success[right])
        frame.append((curve, demand, int(right.sum()), success, pixel_max * _mean(rms), *_cells(share(kept[right]))))
    return pd.DataFrame(frame, columns=[*EVASION])


def geometry(found: Mapping[Keys, Geometry]) -> pd.DataFrame:
    """Return one row a set of examples, columns `GEOMETRY`.

    `triple_cells` is the mean number of cells in a plane, averaged over the planes of an image and then over images,
    with Student's interval over images (infinite where all have as many); `triple_share` the share of images with
    any. `reentry_share`, of the `crossings` (rays that meet a boundary), comes with Wilson's interval, which takes all
    rays for independent. `mean_angle` is over the rays that have one, in degrees.
    """
    rows = []
    for (model, name), one in found.items():
        of_image, crossings = one.triple.double().mean(1), int(one.reached.sum())
        cells = intervals.mean(of_image.numpy(), bounds=(0, math.inf))
        triple = (cells.value, max(cells.low, 0.0), cells.high, _mean(of_image > 0))
        again = _cells(wilson(int(one.returned.sum()), crossings))
        rows.append((model, name, cells.n, *triple, crossings, *again, float(one.angle.nanmean())))
    return pd.DataFrame(rows, columns=[*GEOMETRY])


def by_labels(
    profiles: Mapping[Keys, Profile], positions: Tensors, attacked: Results, *, pixel_max: float
) -> pd.DataFrame:
    """Return how far off the nearest crossing of a benign image's rays is, beside its OPTBRITTLE: one row a model.

    The rays ask for classes alone, OPTBRITTLE for gradients. Over the `n` probed images on which that succeeded:
    `reached_share`, that with a crossing within the grid (Wilson's 95 % interval), and medians of both lengths and of
    their ratio, infinite where half of the images have no crossing.
    """
    rows = []
    for (model, name), profile in profiles.items():
        if name == BENIGN:
            attack, index = attacked[model, "OPTBRITTLE"], positions[model, name]
            known = (index < len(attack)).nonzero().squeeze(1)
            known = known[attack.success[index[known]]]
            ray, rms = profile.distance[known].amin(1).numpy(), attack.rms[index[known]].numpy()
            medians = [float(np.median(each)) if len(known) else math.nan for each in (ray, rms, ray / rms)]
            lengths = (pixel_max * medians[0], pixel_max * medians[1], medians[2])
            rows.append((model, len(known), *_cells(share(torch.from_numpy(np.isfinite(ray)))), *lengths))
    reached = ("reached_share", "reached_low", "reached_high")
    return pd.DataFrame(rows, columns=["model", "n", *reached, "nearest_ray", "OPTBRITTLE", "ratio"])


def audit(found: Mapping[Keys, Audit]) -> pd.DataFrame:
    """Return one row a set of examples, columns `AUDIT`.

    `differing` is the share of the audited rays of which the profile states another distance or another class, with
    Wilson's 95 % interval.
    """
    rows = [(model, name, len(one), *_cells(share(one.differs))) for (model, name), one in found.items()]
    return pd.DataFrame(rows, columns=[*AUDIT])


def adaptive(attempts: Sequence[Attempt], every: Mapping[str, Defended], *, pixel_max: float) -> pd.DataFrame:
    """Return adaptive.csv, columns `ADAPTIVE`: one row an attack on a defence within the budget, and one without one.

    Within the budget an image counts as a success only where its RMS is at most that of the image's own OPTMARGIN;
    `budget_rms` is the mean of these, and empty in the row without a budget. `median_rms`, there, is the median RMS
    over all n images, infinite where the attack failed. `fpr` is the false-positive rate of the detector's threshold.
    The last row of each defence, "minimum", counts an image that any attack evaded, transferred ones included.
    """
    rows = []
    for model, given in every.items():
        own = [attempt for attempt in attempts if attempt.model == model]
        budget = pixel_max * float(given.budget.mean()) if len(given.index) else math.nan
        for key, kinds in least_rms(own, len(given.index)).items():
            defence, fpr = key
            tried = [(one.attack, one.source, one.transfer, one.rows, one.rms, one.evaded.get(key)) for one in own]
            least, everyone = kinds["all"], torch.arange(len(given.index))
            tried.append(("minimum", model, False, everyone, least, least.isfinite()))
            for attack, source, transfer, at, rms, evaded in tried:
                if evaded is None or ("secret" in defence and attack == "minimum"):
                    continue
                within = evaded & (rms <= given.budget[at] * (1 + 1e-4))
                median = pixel_max * float(torch.where(evaded, rms, torch.inf).quantile(0.5, interpolation="higher"))
                said = (model, defence, attack, source, transfer, len(at))
                rows.append((*said, *_cells(share(within)), budget, fpr, math.nan))
                rows.append((*said, *_cells(share(evaded)), math.nan, fpr, median))
    return pd.DataFrame(rows, columns=[*ADAPTIVE])


def mimicked(
    model: str,
    given: Defended,
    attack: Attack,
    judged: Judged,
    vote: Vote,
    profile: Profile | None,
    *,
    radius: float,
    pixel_max: float,
) -> pd.DataFrame:
    """Return the rows of images.csv about the examples "mimic" of one model.

    `profile` is of the images that succeeded; None where there is none.
    """
    key, at = (model, "mimic"), attack.success.nonzero().squeeze(1)
    first = attacked({key: attack}, {model: attack.correct}, given.y, pixel_max=pixel_max)
    columns: dict[str, Any] = {"detector_part": given.fold, "detector_score": judged.score}
    columns["detector_threshold"] = given.thresholds[min(given.thresholds)]
    votes, probes = voted({key: vote}, {key: judged.point}, given.y), pd.DataFrame(columns=[*KEY])
    if profile is not None:
        options: dict[str, Any] = {"radius": radius, "num_classes": vote.counts.shape[1], "pixel_max": pixel_max}
        probes = probed({key: profile}, {key: at}, **options)
    frame = images(first, votes, probes, _rows(key, **columns))
    frame = frame[frame.examples == key[1]]
    return frame.assign(index=given.index[torch.from_numpy(frame["index"].to_numpy(int))].numpy())


def triple_differences(found: Mapping[Keys, Geometry], positions: Tensors) -> pd.DataFrame:
    """Return how many more triple cells lie around adversarial images than around the same images when benign.

    Columns: model, examples, n, difference with Student's 95 % interval, and a verdict in words. `positions` (N,) are
    those of the images of each set, which may be more than were looked at.
    """
    rows, cells = [], {}
    for key, one in found.items():
        cells[key] = pd.Series(one.triple.double().mean(1).numpy(), positions[key][: len(one.triple)].numpy())
    for model, name in [key for key in found if key[1] != BENIGN and (key[0], BENIGN) in found]:
        rate = intervals.mean((cells[model, name] - cells[model, BENIGN]).dropna())
        verdict = "more" if rate.low > 0 else "fewer" if rate.high < 0 else "no difference found"
        rows.append((model, name, rate.n, rate.value, rate.low, rate.high, verdict))
    names = ("model", "examples", "n", *_with_interval("difference"), "verdict")
    return pd.DataFrame(rows, columns=[*names])


def evasion_cost(attempts: Sequence[Attempt], every: Mapping[str, Defended]) -> pd.DataFrame:
    """Return adaptive_cost.csv, columns `COST`: success of the nearest version of each image, by kind of attack.

    The column `budgets` holds multiples of each image's own budget.
    """
    rows = []
    for model, given in every.items():
        own = [attempt for attempt in attempts if attempt.model == model]
        for (defence, fpr), kinds in least_rms(own, len(given.index)).items():
            for kind, least in kinds.items():
                for budget in _BUDGETS:
                    rate = share(least <= given.budget * budget * (1 + 1e-4))
                    rows.append((model, defence, fpr, kind, budget, rate.n, *_cells(rate)))
    return pd.DataFrame(rows, columns=[*COST])


def overstated(cost: pd.DataFrame) -> pd.DataFrame:
    """Return where adaptive attacks succeed more often than transferred ones, the intervals not overlapping.

    `cost` is from `evasion_cost`. Columns: model, defence, fpr, budgets, and both rates with their intervals.
    """
    key, rates = ["model", "defence", "fpr", "budgets"], [*_with_interval("success_rate")]
    sides = {kind: cost[cost.attacks == kind][[*key, *rates]] for kind in ("transferred", "adaptive")}
    both = sides["transferred"].merge(sides["adaptive"], on=key, suffixes=("_t", "_a"))
    names = {f"success_rate{end}_{kind[0]}": f"{kind}_rate{end}" for kind in sides for end in ("", "_low", "_high")}
    apart = both.rename(columns=names)
    return apart[apart.adaptive_rate_low > apart.transferred_rate_high].reset_index(drop=True)


def _sets(images: pd.DataFrame) -> list[tuple[Keys, pd.DataFrame]]:
    """Return the rows of each (model, examples), in the order in which they first appear."""
    return [((str(key[0]), str(key[1])), part) for key, part in images.groupby(KEY[:2], sort=False)]


def _cells(*rates: Rate) -> list[float]:
    return [value for rate in rates for value in (rate.value, rate.low, rate.high)]


def _mean(values: Tensor | ArrayLike) -> float:
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return float(array.mean(dtype=np.float64)) if array.size else math.nan


# For the reader


def share(answers: Tensor | pd.Series) -> Rate:
    """Return the share of the `answers` (n,) bool that are true, with Wilson's 95 % interval."""
    return wilson(int(answers.sum()), len(answers))


def cell(frame: pd.DataFrame, column: str, **row: Any) -> str:
    """Return one cell of a results table as `show` writes it; "not measured" where the row is absent or empty.

    `row` names the row by its values, such as model="normal".
    """
    for name, value in row.items():
        frame = frame[frame[name] == value]
    if len(frame) > 1:
        raise ValueError(f"expected {row} to name one row, got {len(frame)}; name it by more columns")
    return (in_words(frame, column) or [""])[0] or "not measured"


def show(frame: pd.DataFrame, *, by: str | None = None, columns: Sequence[str] = ()) -> Styler:
    """Return `frame` for a notebook: rates with their interval in one cell, such as "98 % [97, 99]", all rows shown.

    Parameters
    ----------
    frame
        A results table; `x`, `x_low` and `x_high` become one column `x`.
    by
        A column whose values become columns, such as "model"; the other columns of text name the rows.
    columns
        The columns to show, in this order; empty: all.
    """
    shown = _texts(frame, columns)
    if by is not None:
        keys = [name for name in shown if name != by and not pd.api.types.is_numeric_dtype(frame[name])]
        order = shown.set_index(keys).index.unique()
        shown = shown.pivot(index=keys, columns=by, values=[name for name in shown if name not in (*keys, by)])
        shown = shown.loc[order].fillna("")
    style = shown.style.set_table_styles([{"selector": "td, th", "props": "text-align: right; white-space: nowrap"}])
    if by is not None:
        return style
    words = [name for name in shown if not pd.api.types.is_numeric_dtype(frame[name])]
    left = {name: [{"selector": "td, th", "props": "text-align: left"}] for name in words}
    return style.set_table_styles(left, overwrite=False).hide(axis="index")  # type: ignore[arg-type]


def latex(frame: pd.DataFrame) -> str:
    """Return `frame` as a LaTeX table for the package booktabs, with the cells of `show`."""
    style = _texts(frame).style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    return str(style.to_latex(hrules=True))


def _texts(frame: pd.DataFrame, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return the `columns` of `frame` (empty: all) as texts, those of an interval within the cells of its value."""
    ends = {end for pair in _interval_columns(frame).values() for end in pair}
    text = {name: in_words(frame, name) for name in columns or [str(name) for name in frame if name not in ends]}
    return pd.DataFrame(text, columns=list(text))


def in_words(frame: pd.DataFrame, name: str) -> list[str]:
    """Return the cells of a column, each with its interval, such as "98 % [97, 99]"; empty where not measured."""
    measured = name.removesuffix("_reference")
    percent = measured.endswith(("rate", "accuracy", "share", "differing")) or name.startswith("flips")
    ends = _interval_columns(frame).get(name, ())

    def number(value: Any) -> str:
        return intervals.per_cent(value) if percent else f"{value:.3g}" if isinstance(value, float) else str(value)

    def text(value: Any, *interval: Any) -> str:
        bounds = f" [{', '.join(map(number, interval))}]" if ends and not pd.isna(interval[0]) else ""
        return "" if pd.isna(value) else number(value) + " %" * percent + bounds

    return [text(*values) for values in zip(*(frame[each] for each in (name, *ends)), strict=True)]


def _interval_columns(frame: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return which columns are the ends of the interval of which other column, which stands before them."""
    beside = [pair for pair in itertools.pairwise(map(str, frame)) if f"_{pair[1]}".endswith("_low")]
    ends = {value: (low, low.removesuffix("low") + "high") for value, low in beside}
    return {value: pair for value, pair in ends.items() if pair[1] in frame}
