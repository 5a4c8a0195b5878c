"""What the detector must beat: one distance alone, and boosted trees on the detector's own input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from nbsupport.boundary.profile import Profile, purity
from nbsupport.detector import PURITIES, UNREACHED, comparable, same_rays, sorted_rays


class Judge(Protocol):
    """Anything that scores profiles: a detector, or one of the baselines."""

    def score(self, profile: Profile) -> Tensor:
        """Return a number (N,) for each profile, higher where it looks more adversarial."""
        ...


@dataclass(frozen=True)
class OneRay:
    """The distance of an image's k-th nearest ray, and nothing else.

    Attributes
    ----------
    rank
        k, from 1.
    rays
        The rays K of a profile, as in training.
    """

    rank: int
    rays: int

    def score(self, profile: Profile) -> Tensor:
        """Return minus the distance (N,) float64 of the k-th nearest ray: a near boundary counts as adversarial.

        Raises ValueError for profiles with another number of rays than those in training.
        """
        same_rays(profile, self.rays)
        return -sorted_rays(profile.distance, UNREACHED)[:, self.rank - 1].double()


def one_ray(benign: Profile, adversarial: Profile) -> OneRay:
    """Return the one ray, by its rank, that separates `adversarial` from `benign` profiles best.

    That is the rank of the largest area under the ROC curve, the smallest such rank where several are equal. Raises
    ValueError where a side is empty or the sides differ in their rays.
    """
    comparable(benign, adversarial)
    near, far = (sorted_rays(side.distance, UNREACHED).cpu().double().numpy() for side in (adversarial, benign))
    won = stats.mannwhitneyu(far, near, axis=0, method="asymptotic").statistic
    return OneRay(1 + int(won.argmax()), far.shape[1])


@dataclass(frozen=True, eq=False)
class Boosting:
    """Boosted trees on the sorted distances and the purities; made by `boosting`."""

    trees: Any
    num_classes: int
    rays: int

    def score(self, profile: Profile) -> Tensor:
        """Return the probability (N,) float64 that each profile is an adversarial one.

        Raises ValueError for profiles with another number of rays than those in training.
        """
        same_rays(profile, self.rays)
        columns = _columns(profile, self.num_classes)
        if not len(columns):
            return torch.empty(0, dtype=torch.float64)
        return torch.from_numpy(self.trees.predict_proba(columns)[:, 1])


def boosting(benign: Profile, adversarial: Profile, *, num_classes: int) -> Boosting:
    """Return scikit-learn's histogram gradient boosting, fitted on what the detector sees.

    It has 50 trees of at most 15 leaves, and is the same in every call. Raises as `one_ray`.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    comparable(benign, adversarial)
    columns = [_columns(side, num_classes) for side in (benign, adversarial)]
    labels = np.repeat([0, 1], list(map(len, columns)))
    trees = HistGradientBoostingClassifier(max_iter=50, max_leaf_nodes=15, early_stopping=False, random_state=0)
    return Boosting(trees.fit(np.vstack(columns), labels), num_classes, benign.distance.shape[1])


def cross_fit(
    fit: Callable[..., Judge], benign: Profile, adversarial: Profile, folds: Tensor, *, count: int, **settings: Any
) -> list[Judge]:
    """Return `fit(benign, adversarial, **settings)` for each of `count` folds, on the pairs of all other folds.

    `folds` (N,) int64 are those of the pairs, as in `detector.cross_fit`.
    """
    rest = [folds != fold for fold in range(count)]
    return [fit(benign.take(rows), adversarial.take(rows), **settings) for rows in rest]


def _columns(profile: Profile, num_classes: int) -> NDArray[np.float64]:
    """Return what the detector sees (N, K + 3): sorted distances and purities."""
    shares = purity(profile, num_classes=num_classes, top=PURITIES)
    return torch.cat((sorted_rays(profile.distance, UNREACHED).double(), shares), 1).cpu().numpy()
