"""What was found along the rays of every image: distances, adjacent classes, and how pure they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nbsupport import checks, runtime
from nbsupport.boundary.directions import check_directions
from nbsupport.record import Record


@dataclass(frozen=True, eq=False)
class Profile(Record):
    """The decision boundary around N images along K directions.

    Attributes
    ----------
    center : Tensor (N,) int64
        Class of the image itself.
    distance : Tensor (N, K), dtype of the magnitudes
        Magnitude t at which the class first differs, in RMS of the unclipped displacement, [0, 1] units; inf
        where no boundary was met.
    adjacent : Tensor (N, K) int64
        Class found there, -1 where no boundary was met.
    reached : Tensor (N, K) bool
        Whether a boundary was met up to the last magnitude.
    """

    center: Tensor
    distance: Tensor
    adjacent: Tensor
    reached: Tensor


def purity(profile: Profile, *, num_classes: int, top: int = 3) -> Tensor:
    """Return how much of each image's boundary belongs to its most frequent adjacent classes.

    Parameters
    ----------
    profile : Profile
        Of N images.
    num_classes : int
        L, the number of classes of the model.
    top : int
        Largest number of classes; beyond L the purity stays what it is at L.

    Returns
    -------
    Tensor (N, top) float64
        Column j-1: the largest cumulative fraction of the reached rays whose boundary belongs to j classes;
        0 where no ray is reached.

    Raises
    ------
    ValueError
        If `num_classes` or `top` is below 1, or an adjacent class is not below `num_classes`.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018, section 4.
    """
    checks.count(num_classes, name="num_classes")
    checks.count(top, name="top")
    reached, adjacent = profile.reached, profile.adjacent.clamp(min=0)
    if reached.any() and (largest := int(adjacent.max())) >= num_classes:
        raise ValueError(
            f"expected adjacent classes below num_classes={num_classes}, got {largest}; pass the model's L"
        )
    counts = torch.zeros(len(reached), max(num_classes, top), dtype=torch.int64, device=reached.device)
    counts.scatter_add_(1, adjacent, reached.long())
    cumulative = counts.sort(dim=1, descending=True).values[:, :top].cumsum(1)
    return cumulative.double() / reached.sum(1, keepdim=True).clamp(min=1)


def check_probed(x: Tensor, directions: Tensor, profile: Profile, precision: str = "float32") -> None:
    """Raise ValueError unless `profile` may be one of the images `x` along `directions`, and `precision` is known."""
    checks.images(x)
    check_directions(directions, x[0].numel())
    wanted, got = (len(x), len(directions)), tuple(profile.distance.shape)
    if got != wanted:
        raise ValueError(
            f"expected a profile of {wanted[0]} images along {wanted[1]} directions, got one of shape {got}; "
            "pass the x and the directions that it was probed with"
        )
    checks.choice(precision, runtime.PRECISIONS, name="precision")
