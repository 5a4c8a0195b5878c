"""What the votes of the points around an image say: the plurality, its interval, its certificate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

from nbsupport.record import Record


@dataclass(frozen=True, eq=False)
class Vote(Record):
    """The vote of the points around each of N images.

    Attributes
    ----------
    label : Tensor (N,) int64
        The plurality class, or that of the largest mean; ties go to the lowest class index.
    counts : Tensor (N, L) int64
        Votes of each class among the points evaluated.
    used : Tensor (N,) int64
        Points evaluated.
    p_lower, p_upper : Tensor (N,) float64
        Clopper-Pearson interval of the share of `label`.
    abstain : Tensor (N,) bool
        `label` does not lead the next class significantly.
    radius_l1, radius_linf : Tensor (N,) float64
        Any shift of the image up to here, [0, 1] units, leaves the majority with `label`; 0 where
        `p_lower` <= 1/2, and for all but the plurality in a hypercube.
    """

    label: Tensor
    counts: Tensor
    used: Tensor
    p_lower: Tensor
    p_upper: Tensor
    abstain: Tensor
    radius_l1: Tensor
    radius_linf: Tensor


def vote(counts: Tensor, label: Tensor, level: float, *, half_width: float, dim: int) -> Vote:
    """Return what `counts` (N, L) say of the classes `label` (N,) at error `level`.

    The certificate is that of hypercubes of half-width `half_width` in `dim` dimensions; none, that is 0, for 0.
    """
    k, n = (votes.cpu().numpy() for votes in (_votes_for(label, counts), counts.sum(1)))
    lower = np.where(k > 0, stats.beta.ppf(level / 2, np.maximum(k, 1), n - k + 1), 0.0)
    upper = np.where(k < n, stats.beta.ppf(1 - level / 2, k + 1, np.maximum(n - k, 1)), 1.0)
    certain = lower > 0.5
    l1 = np.where(certain, 2 * half_width * (lower - 0.5), 0.0)
    linf = np.where(certain, -2 * half_width * np.expm1(np.log(1.5 - lower) / dim), 0.0)

    def on_device(array: ArrayLike) -> Tensor:
        return torch.as_tensor(array, device=counts.device)

    return Vote(
        label=label,
        counts=counts,
        used=counts.sum(1),
        p_lower=on_device(lower),
        p_upper=on_device(upper),
        abstain=on_device(p_value(counts, label) > level),
        radius_l1=on_device(l1),
        radius_linf=on_device(linf),
    )


def p_value(counts: Tensor, label: Tensor) -> NDArray[np.float64]:
    """Return the p (N,) of the two-sided binomial test at 1/2 of `label` (N,) against the most frequent other class.

    1 where `label` does not lead: the test asks only whether it does.
    """
    votes = _votes_for(label, counts)
    others = counts.scatter(1, label[:, None], -1).amax(1)
    first, second = votes.cpu().numpy(), others.cpu().numpy()
    p: NDArray[np.float64] = np.minimum(2 * stats.binom.sf(first - 1, first + second, 0.5), 1.0)
    return p


def _votes_for(label: Tensor, counts: Tensor) -> Tensor:
    """Return the votes (N,) for `label` (N,) among `counts` (N, L)."""
    return counts.gather(1, label[:, None])[:, 0]
