"""The claims of the talk, each with a verdict from our own measurements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbsupport import intervals
from nbsupport.intervals import Rate
from nbsupport.tables import DetectorRow

COLUMNS = ("claim", "model", "examples", "statement", "statistic", "threshold", "low", "high", "n", "verdict")
OPTMARGINS = ("OPTMARGIN", "OPTMARGIN-adam", "OPTMARGIN-authors")
NOT_ATTACKS = ("benign", "noise", "errors")
FEWEST = 30  # observations for a verdict
_CHANGE = (-1.0, 1.0)  # the range of a difference of two values in [0, 1]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of one model's set of examples, one entry an image; the lengths must agree.

    Attributes
    ----------
    model, examples : str
        As in the tables: `normal`, `pgd`; `benign`, `FGSM`, ...
    index : (N,)
        Positions in the test set, by which the sets of one model are matched.
    y : (N,)
        True labels.
    correct : (N,) bool
        Whether the model classifies the original correctly. Others were not attacked.
    success : (N,) bool, optional
        Whether the attack succeeded; None for benign images.
    rms : (N,), optional
        RMS of the change, [0, 1] units.
    point, vote : (N,), optional
        Labels of the classifier and of the region vote; NaN or negative where not measured.
    median_distance : (N,), optional
        Median of the image's rays, [0, 1] units, inf kept (`tables.ray_medians`); NaN where not measured.
    purity_1 : (N,), optional
        Purity of the top class; NaN where not measured.
    """

    model: str
    examples: str
    index: ArrayLike | Tensor
    y: ArrayLike | Tensor
    correct: ArrayLike | Tensor
    success: ArrayLike | Tensor | None = None
    rms: ArrayLike | Tensor | None = None
    point: ArrayLike | Tensor | None = None
    vote: ArrayLike | Tensor | None = None
    median_distance: ArrayLike | Tensor | None = None
    purity_1: ArrayLike | Tensor | None = None


def aligned(index: ArrayLike | Tensor, at: ArrayLike | Tensor, values: ArrayLike | Tensor) -> NDArray[np.float64]:
    """Return `values` (M,), measured at the positions `at` (M,), for the positions `index` (N,): NaN where absent."""
    found = pd.Series(_array(values), index=_array(at), dtype=np.float64).reindex(_array(index))
    return found.to_numpy()


def verdict(statistic: Rate, threshold: float) -> str:
    """Return what is to be said of the claim that `statistic` lies above `threshold`.

    "holds" where the whole interval lies above, "fails" where it lies below, "undecided" otherwise, where fewer
    than 30 observations were made, and where a number is missing.
    """
    missing = any(math.isnan(value) for value in (statistic.value, statistic.low, statistic.high))
    if statistic.n < FEWEST or missing:
        return "undecided"
    if statistic.low > threshold:
        return "holds"
    return "fails" if statistic.high < threshold else "undecided"


def table(measured: Iterable[Measured], detectors: Iterable[DetectorRow] = (), *, pixel_max: float) -> pd.DataFrame:
    """Return one row a (claim, model, examples), columns `COLUMNS`, for all sets of examples in `measured`.

    Every claim says that a statistic lies above a threshold; `low` and `high` are its 95 % interval, `n` the number
    of images (or pairs) in it. Rates have Wilson's interval, differences of rates Newcombe's (paired where both
    are of the same images), means of paired differences Student's, areas under the ROC curve Newcombe's.

    - Claims 4 and 5, as the region table: all benign images, and all attacked images with whatever the attack
      returned. The rows of claim 5 are named after both sets.
    - Claims 2, 6, 7 and 9, on adversarial examples: images on which the attack (claim 2: both attacks) succeeded.
    - Claim 3 compares the two models, as independent samples, and is filed under `pgd`.
    - Claim 6: a median that is infinite for both versions is not nearer. Claim 7: no ray reached is purity 0.
    - Claim 8: detectors tested on the attack that they were trained on; `n` is the smaller class.

    The statistic of claim 2 is in the data set's own units.

    Raises
    ------
    ValueError
        If a model's set of examples comes twice, names an image twice, or has arrays of unequal lengths.
    """
    sets: dict[str, dict[str, pd.DataFrame]] = {}
    for one in measured:
        of_model = sets.setdefault(one.model, {})
        if one.examples in of_model:
            raise ValueError(f"expected one set of examples a name, got {one.examples} of {one.model} twice")
        of_model[one.examples] = _images(one)
    rows: list[dict[str, Any]] = []
    for model, of_model in sets.items():
        rows += _of_model(model, of_model, pixel_max)
    rows += _hardening(sets)
    rows += _detection(detectors)
    rows.sort(key=lambda row: int(row["claim"]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_model(model: str, sets: dict[str, pd.DataFrame], pixel_max: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of all claims about one model."""
    attacks = [name for name in sets if name not in NOT_ATTACKS]
    margins = [name for name in OPTMARGINS if name in sets]
    for name in margins:
        attacked = sets[name][sets[name].correct]
        rate = intervals.wilson(int(attacked.success.sum()), len(attacked))
        yield _row(1, model, name, f"{name} succeeds on almost every image", rate, 0.95)
        if "OPTBRITTLE" in sets:
            both = _both(sets, name, "OPTBRITTLE")
            both = both[both.success_a & both.success_b]
            change = intervals.mean(both.rms_a - both.rms_b, bounds=_CHANGE)
            yield _row(2, model, name, f"OPTBRITTLE distorts less than {name}", _scaled(change, pixel_max), 0.0)
        for other in ("FGSM", "PGD", "OPTBRITTLE"):
            if other in sets:
                both = _both(sets, other, name, needed=["vote"])
                both = both[both.correct_a & both.correct_b]
                drop = intervals.paired_difference_of_rates(both.vote_a == both.y_a, both.vote_b == both.y_b)
                statement = f"the region vote is right less often on {name} than on {other}"
                yield _row(5, model, f"{other} - {name}", statement, drop, 0.0)
    if "benign" in sets:
        statement = "the region vote keeps the accuracy on benign images"
        yield _row(4, model, "benign", statement, _gain(sets["benign"]), -0.02)
    if "OPTBRITTLE" in sets:
        statement = "the region vote restores the accuracy on OPTBRITTLE"
        yield _row(4, model, "OPTBRITTLE", statement, _gain(sets["OPTBRITTLE"][sets["OPTBRITTLE"].correct]), 0.5)
        fooled = sets["OPTBRITTLE"][sets["OPTBRITTLE"].success].dropna(subset="vote")
        rate = intervals.wilson(int((fooled.vote == fooled.y).sum()), len(fooled))
        statement = "the hypercube around an OPTBRITTLE example lies mostly with the true class"
        yield _row(9, model, "OPTBRITTLE", statement, rate, 0.5)
    for name in attacks if "benign" in sets else []:
        pairs = _both(sets, name, "benign", needed=["median_distance"])
        pairs = pairs[pairs.success_a & pairs.correct_b]
        rate = intervals.wilson(int((pairs.median_distance_a < pairs.median_distance_b).sum()), len(pairs))
        yield _row(6, model, name, f"boundaries are nearer around {name} than around benign images", rate, 0.5)
        pairs = _both(sets, name, "benign", needed=["purity_1"])
        pairs = pairs[pairs.success_a & pairs.correct_b]
        change = intervals.mean(pairs.purity_1_a - pairs.purity_1_b, bounds=_CHANGE)
        yield _row(7, model, name, f"the boundary around {name} is purer than around benign images", change, 0.0)


def _hardening(sets: dict[str, dict[str, pd.DataFrame]]) -> Iterator[dict[str, Any]]:
    """Yield the row of claim 3, where FGSM was measured on both models."""
    rates = []
    for model in ("normal", "pgd"):
        if "FGSM" not in sets.get(model, {}):
            return
        attacked = sets[model]["FGSM"][sets[model]["FGSM"].correct]
        rates.append(intervals.wilson(int(attacked.success.sum()), len(attacked)))
    statement = "FGSM succeeds less often on the PGD-trained model"
    yield _row(3, "pgd", "FGSM", statement, intervals.difference_of_rates(*rates), 0.0)


def _detection(detectors: Iterable[DetectorRow]) -> Iterator[dict[str, Any]]:
    """Yield the rows of claim 8."""
    for row in detectors:
        if row.trained_on == row.tested_on:
            n = min(row.rates.false_positive_rate.n, row.rates.false_negative_rate.n)
            area = Rate(row.rates.auc.value, row.rates.auc.low, row.rates.auc.high, n)
            statement = f"boundary information separates benign images from {row.tested_on}"
            yield _row(8, row.model, row.tested_on, statement, area, 0.9)


def _images(one: Measured) -> pd.DataFrame:
    """Return the arrays of `one` as columns, a row an image, NaN (success: False) where nothing was measured."""
    index = _array(one.index)
    columns: dict[str, NDArray[Any]] = {}
    for name in ("y", "correct", "success", "rms", "point", "vote", "median_distance", "purity_1"):
        values = getattr(one, name)
        column = np.full(index.shape, math.nan) if values is None else _array(values)
        if column.shape != index.shape or index.ndim != 1:
            raise ValueError(
                f"expected {name} of {one.examples} with one entry an image, got {column.shape} for {index.shape}; "
                "spread it with claims.aligned"
            )
        columns[name] = column.astype(np.float64)
    if np.unique(index).size != index.size:
        raise ValueError(f"expected every image once, got an index twice in {one.examples} of {one.model}")
    frame = pd.DataFrame(columns, index=index)
    for name in ("point", "vote"):
        frame[name] = frame[name].where(frame[name] >= 0)
    frame["correct"] = frame.correct == 1
    frame["success"] = (frame.success == 1) & frame.correct
    return frame


def _both(sets: dict[str, pd.DataFrame], a: str, b: str, *, needed: Sequence[str] = ()) -> pd.DataFrame:
    """Return the images of both sets, columns suffixed _a and _b, without those where `needed` was not measured."""
    joined = sets[a].add_suffix("_a").join(sets[b].add_suffix("_b"), how="inner")
    return joined.dropna(subset=[name + end for name in needed for end in ("_a", "_b")])


def _gain(images: pd.DataFrame) -> Rate:
    """Return region accuracy minus point accuracy."""
    images = images.dropna(subset=["point", "vote"])
    return intervals.paired_difference_of_rates(images.vote == images.y, images.point == images.y)


def _scaled(rate: Rate, factor: float) -> Rate:
    return Rate(factor * rate.value, factor * rate.low, factor * rate.high, rate.n)


def _row(claim: int, model: str, examples: str, statement: str, statistic: Rate, threshold: float) -> dict[str, Any]:
    values = (claim, model, examples, statement, statistic.value, threshold, statistic.low, statistic.high, statistic.n)
    return dict(zip(COLUMNS, (*values, verdict(statistic, threshold)), strict=True))


def _array(values: ArrayLike | Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return array
