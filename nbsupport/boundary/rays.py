"""The distance to the decision boundary along every ray, an image times a direction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.boundary.given import check_directions, grid
from nbsupport.boundary.nearness import near_boundary
from nbsupport.boundary.profile import Profile
from nbsupport.boundary.search import Bisect, March, Rays
from nbsupport.labels import Labeller
from nbsupport.pool import drain

SEARCHES = ("bracket", "scan", "refine")


def probe(
    model: nn.Module,
    x: Tensor,
    directions: Tensor,
    magnitudes: Tensor | Sequence[float],
    *,
    search: str = "bracket",
    stride: int = 8,
    tolerance: float = 1e-4,
    precision: str = "float32",
) -> Profile:
    """Return the distance from every image to the first other class along every direction.

    The distance along d is the smallest magnitude t with f(clip(x + t d, 0, 1)) != f(x). Rays of all images share
    one pool: a ray that has its answer leaves the batch and the next one enters, so that memory does not depend
    on the number of images, apart from the result.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    directions : Tensor (K, C*H*W) float32
        Flattened in NCHW order; of RMS 1 (see `directions`) if distances are to be RMS values.
    magnitudes : Tensor (M,) or sequence of floats
        The grid: positive and ascending, [0, 1] units.
    search : {"bracket", "scan", "refine"}
        "scan" visits the grid in order: the definition. "bracket" marches in strides of `stride` grid steps and
        bisects the first stride that ends in another class: the same answer, unless a ray leaves its class and
        re-enters it within one stride. That is most frequent right beside a boundary, so the first stride is visited
        in full around images whose margin and gradient put one within it. "refine" goes on bisecting below the grid
        step.
    stride : int
        Grid steps of one stride, at least 1 (not used by "scan").
    tolerance : float
        "refine" stops when the bracket is no longer than this, [0, 1] units, > 0 (or cannot be halved).
    precision : {"float32", "mixed"}
        "mixed": bfloat16 with every label near a tie confirmed in float32 (see `nbsupport.labels.Labeller`).

    Returns
    -------
    Profile
        On the model's device. `distance` is an element of `magnitudes` ("refine": the upper end of the bracket,
        where the class is known to differ).

    Raises
    ------
    ValueError
        For images outside [0, 1], directions or magnitudes of wrong shape, type or order, an unknown search or
        precision, and for a model whose logits are not finite or of wrong shape in any pass.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018, section 4.
    """
    checks.images(x)
    check_directions(directions, x[0].numel())
    checks.choice(search, SEARCHES, name="search")
    checks.choice(precision, runtime.PRECISIONS, name="precision")
    checks.count(stride, name="stride")
    checks.number(tolerance, name="tolerance", open_low=True)
    device = runtime.device_of(model, x)
    positions = grid(magnitudes).to(device)
    with runtime.frozen(model):
        label = Labeller(model, x, directions, precision=precision, reach=float(positions[-1]))
        rays = Rays(label, len(directions), label.centers())
        stride = 1 if search == "scan" else stride
        rms = float(torch.linalg.vector_norm(directions, dim=1).max()) / math.sqrt(directions.shape[1])
        near = near_boundary(model, x, rms * float(positions[:stride][-1])) if stride > 1 else None
        march = March(rays, positions, stride=stride, near=near)
        drain(march, rays.count, slots=rays.slots, every=1, device=device)
        reached = march.high < march.beyond
        distance, adjacent = march.values[march.high], march.adjacent
        if search == "refine":
            index = reached.nonzero().squeeze(1)
            bisect = Bisect(march, index, tolerance=tolerance)
            drain(bisect, len(index), slots=rays.slots, every=1, device=device)
            distance, adjacent = bisect.distance, bisect.adjacent
    shape = len(x), len(directions)
    return Profile(rays.center, distance.view(shape), adjacent.view(shape), reached.view(shape))
