"""What the votes of the points around an image say: the plurality, its interval, its certificate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Vote:
    """The vote of the points around each of N images.

    Attributes
    ----------
    label : Tensor (N,) int64
        The plurality class; ties go to the lowest class index.
    counts : Tensor (N, L) int64
        Votes of each class among the points evaluated.
    used : Tensor (N,) int64
        Points evaluated.
    p_lower, p_upper : Tensor (N,) float64
        Clopper-Pearson interval of the share of `label`.
    abstain : Tensor (N,) bool
        The winner does not lead the runner-up significantly.
    radius_l1, radius_linf : Tensor (N,) float64
        Any shift of the image up to here, [0, 1] units, leaves the majority with `label`; 0 where
        `p_lower` <= 1/2.
    """

    label: Tensor
    counts: Tensor
    used: Tensor
    p_lower: Tensor
    p_upper: Tensor
    abstain: Tensor
    radius_l1: Tensor
    radius_linf: Tensor


def vote(counts: Tensor, radius: float, dim: int, level: float) -> Vote:
    """Return what `counts` (N, L) in hypercubes of half-width `radius` in `dim` dimensions say at error `level`."""
    k, n = counts.amax(1).cpu().numpy(), counts.sum(1).cpu().numpy()
    lower = stats.beta.ppf(level / 2, k, n - k + 1)  # the winner has k >= 1
    upper = np.where(k < n, stats.beta.ppf(1 - level / 2, k + 1, np.maximum(n - k, 1)), 1.0)
    certain = lower > 0.5
    l1 = np.where(certain, 2 * radius * (lower - 0.5), 0.0)
    linf = np.where(certain, -2 * radius * np.expm1(np.log(1.5 - lower) / dim), 0.0)

    def on_device(array: ArrayLike) -> Tensor:
        return torch.as_tensor(array, device=counts.device)

    return Vote(
        label=counts.argmax(1),
        counts=counts,
        used=counts.sum(1),
        p_lower=on_device(lower),
        p_upper=on_device(upper),
        abstain=on_device(p_value(counts) > level),
        radius_l1=on_device(l1),
        radius_linf=on_device(linf),
    )


def p_value(counts: Tensor) -> NDArray[np.float64]:
    """Return the p (N,) of the two-sided binomial test, winner against runner-up at 1/2."""
    first, second = counts.topk(2).values.cpu().numpy().T
    p: NDArray[np.float64] = np.minimum(2 * stats.binom.sf(first - 1, first + second, 0.5), 1.0)
    return p
