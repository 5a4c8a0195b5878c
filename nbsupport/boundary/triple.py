"""Singular points of the boundary: where three classes meet in random planes through an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.boundary.given import check_directions
from nbsupport.boundary.plane import grid_labels
from nbsupport.labels import Labeller

_BATCHES = 8  # places labelled at once, in batches of the model
_PARALLEL = 0.999  # cosine


def triple_points(
    model: nn.Module,
    x: Tensor,
    directions: Tensor,
    *,
    reach: float,
    pairs: int = 64,
    size: int = 33,
    generator: torch.Generator | None = None,
    precision: str = "float32",
) -> Tensor:
    """Return in how many cells of random planes through each image three or more classes meet.

    A plane is x + a d_i + b d_j, clipped to [0, 1], with i != j; a and b take `size` values from -reach to reach. A
    cell has four neighbouring places of that grid for its corners, and counts where these have three classes or
    more. In a plane, three regions usually meet in single points; a cell that counts holds one, or comes near it.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    directions : Tensor (K, C*H*W) float32
        At least two, of which no two are parallel: those of `boundary.directions` without their negations.
    reach : float
        Of the grid, in RMS where the directions have RMS 1, [0, 1] units, > 0; usually the last magnitude.
    pairs : int
        Number of planes P, drawn once for all images, without replacement: at most K (K - 1) / 2.
    size : int
        Places along each side of the grid, at least 2.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one.
    precision : {"float32", "mixed"}
        "mixed": bfloat16 with every label near a tie confirmed in float32 (see `nbsupport.labels.Labeller`).

    Returns
    -------
    Tensor (N, pairs) int64
        On the model's device; from 0 to (size - 1)^2.

    Raises
    ------
    ValueError
        For images outside [0, 1], directions of wrong shape or type, fewer than two or parallel ones, more pairs
        than there are, a reach or size out of range, and for logits that are not finite or of wrong shape.

    Notes
    -----
    N * pairs * size^2 forward passes. Memory for eight batches of the model, or one plane where that is more, apart
    from the result.
    """
    checks.images(x)
    check_directions(directions, x[0].numel())
    checks.number(reach, name="reach", open_low=True)
    checks.count(pairs, name="pairs")
    checks.count(size, name="size", low=2)
    checks.choice(precision, runtime.PRECISIONS, name="precision")
    drawn = _pairs(directions, pairs, generator)
    device = runtime.device_of(model, x)
    offsets = torch.linspace(-reach, reach, size)
    cells = torch.empty(len(x) * pairs, dtype=torch.int64, device=device)
    with runtime.frozen(model):
        label = Labeller(model, x, directions, precision=precision, reach=2**0.5 * reach)
        together = max(1, _BATCHES * label.rows // size**2)
        for start in range(0, len(cells), together):
            stop = min(start + together, len(cells))
            number = torch.arange(start, stop)
            planes = torch.cat((number[:, None] // pairs, drawn[number % pairs]), 1)
            cells[start:stop] = _triple_cells(grid_labels(label, planes, offsets, offsets))
    return cells.view(len(x), pairs)


def _pairs(directions: Tensor, pairs: int, generator: torch.Generator | None) -> Tensor:
    """Return rows (pairs, 2) of two directions that span a plane, each at most once."""
    unit = torch.nn.functional.normalize(directions.detach().cpu(), dim=1)
    parallel = ((unit @ unit.T).abs() > _PARALLEL).triu(1)
    if bool(parallel.any()) or not bool(unit.any(1).all()):
        raise ValueError(
            "expected directions of which no two are parallel and none is zero; pass boundary.directions(..., "
            "negate=False), or the first half of those with negations"
        )
    every = torch.combinations(torch.arange(len(directions)))
    if pairs > len(every):
        raise ValueError(
            f"expected at most {len(every)} pairs of {len(directions)} directions, got {pairs}; "
            "lower pairs or pass more directions"
        )
    return every[torch.randperm(len(every), generator=generator)[:pairs]]


def _triple_cells(labels: Tensor) -> Tensor:
    """Return how many cells (P,) of the grids `labels` (P, S, S) have three or more classes at their corners."""
    corners = torch.stack((labels[:, :-1, :-1], labels[:, :-1, 1:], labels[:, 1:, :-1], labels[:, 1:, 1:]), -1)
    changes = (corners.sort(-1).values.diff(dim=-1) != 0).sum(-1)  # the number of classes less one
    return (changes >= 2).sum((1, 2))
