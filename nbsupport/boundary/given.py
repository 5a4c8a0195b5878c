"""What the functions of the boundary are given: directions, magnitudes and profiles, checked once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nbsupport import checks, runtime
from nbsupport.boundary.profile import Profile


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


def grid(magnitudes: Tensor | Sequence[float]) -> Tensor:
    """Return the magnitudes as a floating tensor (M,); raise ValueError unless they are finite, > 0 and ascending."""
    values = torch.as_tensor(magnitudes)
    if not values.is_floating_point():
        values = values.float()
    if values.ndim != 1 or values.numel() == 0:
        raise ValueError(f"expected magnitudes of shape (M,) with M >= 1, got {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()) or float(values[0]) <= 0 or not bool((values.diff() > 0).all()):
        raise ValueError("expected magnitudes finite, above 0 and ascending; sort them and drop zeros and duplicates")
    return values
