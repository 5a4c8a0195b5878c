"""Directions from an image: random orthogonal ones of unit RMS, and the check of those that are given."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nbsupport import checks


def directions(dim: int, count: int, *, negate: bool, generator: torch.Generator | None = None) -> Tensor:
    """Return random, mutually orthogonal directions (K, dim) float32 of RMS 1, on the CPU.

    They are the columns of Q in the QR decomposition, in float64, of a dim x count Gaussian matrix, with R's
    diagonal made positive: uniformly distributed, whatever the sign convention of the linear algebra library.

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
    q, r = torch.linalg.qr(torch.randn(dim, count, generator=generator, dtype=torch.float64))
    rows = ((q * r.diagonal().sign()).t() * math.sqrt(dim)).float().contiguous()
    return torch.cat((rows, -rows)) if negate else rows


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
