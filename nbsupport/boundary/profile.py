"""Directions from an image, what was found along them, and how pure that is."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nbsupport import checks
from nbsupport.record import Record

_ROWS = 1024  # images whose adjacent classes are counted at once
_MOST_BY_QR = 2**24  # numbers: 134 MB in float64, of which a QR decomposition holds some copies
_COLUMNS = 4096  # made orthogonal at once


def directions(dim: int, count: int, *, negate: bool, generator: torch.Generator | None = None) -> Tensor:
    """Return random, mutually orthogonal directions (K, dim) float32 of RMS 1, on the CPU.

    They are the columns of Q in the QR decomposition, in float64, of a dim x count Gaussian matrix, with R's
    diagonal made positive: uniformly distributed, whatever the sign convention of the linear algebra library. Many long
    ones (more than 2^24 numbers, at least four times as long as they are many) are of the same distribution, but other
    draws: their Q comes from the Cholesky factor of the Gram matrix, in the memory of the result.

    Parameters
    ----------
    dim : int
        Length of a flattened image, C*H*W.
    count : int
        Number of orthogonal directions, at most `dim`.
    negate : bool
        Append the negations: K is `2 * count`, row `count + i` being minus row `i`. Otherwise K is `count`.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one.

    Raises
    ------
    ValueError
        If `dim` or `count` is below 1 or `count > dim`.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018, section 4.
    """
    checks.count(dim, name="dim")
    checks.count(count, name="count")
    if count > dim:
        raise ValueError(f"expected at most dim={dim} orthogonal directions, got count={count}; lower the count")
    if dim * count > _MOST_BY_QR and dim >= 4 * count:
        rows = _orthogonalise(torch.randn(count, dim, generator=generator))
    else:
        q, r = torch.linalg.qr(torch.randn(dim, count, generator=generator, dtype=torch.float64))
        rows = ((q * r.diagonal().sign()).t() * math.sqrt(dim)).float().contiguous()
    return torch.cat((rows, -rows)) if negate else rows


def _orthogonalise(rows: Tensor) -> Tensor:
    """Return `rows` (K, D) with each made orthogonal to those before it and of RMS 1, in place.

    With the Gram matrix rows rows^T = L L^T, the rows of L^-1 rows are orthonormal: the Q of a QR decomposition, which
    is unique where R's diagonal is positive. A Gaussian matrix with D >= 4 K has a condition number of about 3 at most,
    so that squaring it costs nothing: the largest cosine of two of 1000 x 150,528 directions is 8e-10. These take one
    core 17 s and .69 GB, of which .60 are the result; a QR decomposition takes 33 s and 3.6 GB.
    """
    blocks = rows.split(_COLUMNS, 1)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for block in blocks:
        gram.addmm_(block.double(), block.double().T)
    factor = torch.linalg.cholesky(gram / rows.shape[1])
    for block in blocks:
        block.copy_(torch.linalg.solve_triangular(factor, block.double(), upper=False))
    return rows


def check_directions(d: Tensor, dim: int, *, name: str = "directions") -> None:
    """Raise ValueError unless `d` is a finite float32 tensor (K, dim) with K >= 1."""
    if not isinstance(d, Tensor) or d.dtype != torch.float32:
        got = d.dtype if isinstance(d, Tensor) else type(d).__name__
        raise ValueError(f"expected {name} as a float32 tensor, got {got}; convert with torch.as_tensor(...).float()")
    if d.ndim != 2 or d.shape[0] == 0 or d.shape[1] != dim:
        raise ValueError(
            f"expected {name} of shape (K, {dim}), one flattened image a row, got {tuple(d.shape)}; "
            f"make them with boundary.directions({dim}, ...)"
        )
    if not bool(torch.isfinite(d).all()):
        raise ValueError(f"expected finite {name}, got NaN or infinite values; drop those rows")


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
    adjacent : Tensor (N, K) int16
        Class found there, -1 where no boundary was met. As int64 it would be 61 % of a profile's memory.
    reached : Tensor (N, K) bool
        Whether a boundary was met up to the last magnitude.
    """

    center: Tensor
    distance: Tensor
    adjacent: Tensor
    reached: Tensor


def as_adjacent(classes: Tensor, num_classes: int) -> Tensor:
    """Return `classes`, -1 or above, as int16; raise ValueError where the model has more classes than that holds."""
    most = torch.iinfo(torch.int16).max + 1
    if num_classes > most:
        raise ValueError(f"expected a model of at most {most} classes, which profiles keep as int16, got {num_classes}")
    return classes.to(torch.int16)


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
    reached, adjacent = profile.reached, profile.adjacent
    if reached.any() and (largest := int(adjacent.max())) >= num_classes:
        raise ValueError(
            f"expected adjacent classes below num_classes={num_classes}, got {largest}; pass the model's L"
        )
    counts = torch.zeros(len(reached), max(num_classes, top), dtype=torch.int64, device=reached.device)
    for start in range(0, len(reached), _ROWS):  # an index is int64, eight bytes a ray
        part = slice(start, start + _ROWS)
        counts[part].scatter_add_(1, adjacent[part].long().clamp(min=0), reached[part].long())
    cumulative = counts.sort(dim=1, descending=True).values[:, :top].cumsum(1)
    return cumulative.double() / reached.sum(1, keepdim=True).clamp(min=1)


def check_probed(x: Tensor, directions: Tensor, profile: Profile) -> None:
    """Raise ValueError unless `profile` may be one of the images `x` along `directions`."""
    checks.images(x)
    check_directions(directions, x[0].numel())
    wanted, got = (len(x), len(directions)), tuple(profile.distance.shape)
    if got != wanted:
        raise ValueError(
            f"expected a profile of {wanted[0]} images along {wanted[1]} directions, got one of shape {got}; "
            "pass the x and the directions that it was probed with"
        )
