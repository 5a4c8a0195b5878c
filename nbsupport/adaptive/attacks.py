"""Attacks that know the defence: the vote, the detector, or both; and the one that looks like its source."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.adaptive.descent import Rule, descend
from nbsupport.adaptive.goals import Alike, Misclassified, Outvoted, Rays, Undetected
from nbsupport.attacks.engine import Attack, Objective, Problem
from nbsupport.attacks.minimum_norm import NormSearch
from nbsupport.boundary import Profile
from nbsupport.boundary.probe import grid
from nbsupport.boundary.profile import check_directions, check_probed
from nbsupport.detector import Detector
from nbsupport.runtime import Precision, frozen

Magnitudes = Tensor | Sequence[float]
_LEAD = 0.3  # share of the points by which a rival must lead
_POINTS = 8  # of the vote in a step, beside a detector


def through_views(
    model: nn.Module, x: Tensor, y: Tensor, *, offsets: Tensor, steps: int = 200, precision: Precision = "float32"
) -> Attack:
    """Return the least L2 images of which all views x' + v_i, clipped to [0, 1], are misclassified.

    OPTMARGIN (`attacks.optmargin`, solver "ddn") with views of the caller's choice, such as points of the vote.

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits.
    x : (N, C, H, W) float32 in [0, 1]
    y : (N,) int64
        True labels.
    offsets : (V, C, H, W)
        The v_i, the same for all images.
    steps : int
        Iterations; one costs V + 5 passes forward and 5 backward.
    precision : {"float32", "mixed"}
        As of `attacks.optmargin`.

    Returns
    -------
    Attack
        A failed image is returned unchanged.

    Raises
    ------
    ValueError
        For images, labels, logits, offsets or settings out of their range or shape.
    """
    if offsets.ndim != 4 or not len(offsets) or offsets.shape[1:] != x.shape[1:]:
        shape, got = tuple(x.shape[1:]), tuple(offsets.shape)
        raise ValueError(f"expected offsets of shape (V, C, H, W), each like an image {shape}, got {got}")
    with frozen(model):
        problem = Problem.of(model, x, y, None)
        return NormSearch(Objective(problem, offsets.to(problem.x.device), precision=precision), steps=steps).attack()


def through_vote(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    steps: int,
    points: int = 16,
    lead: float = _LEAD,
    budget: Tensor | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    precision: Precision = "float32",
) -> Attack:
    """Return images that lose the vote: expectation over transformation, with fresh random points at every step.

    Without a `budget` they are the nearest found, with one those that lose by most (see `adaptive.descent`).

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits.
    x : (N, C, H, W) float32 in [0, 1]
    y : (N,) int64
        True labels.
    radius : float
        Half-width of the hypercube of the vote, [0, 1] units.
    steps, points : int
        Steps, and points drawn at each: so many passes forward and backward.
    lead : float
        Share of the points by which a rival must lead in one look.
    budget : (N,), optional
        The largest RMS of each image, [0, 1] units.
    start : (N, C, H, W), optional
        Images to start from; None: `x`.
    generator : torch.Generator, optional
        A CPU generator, from which the points are drawn; None: torch's global one.
    precision : {"float32", "mixed"}
        "mixed" descends in bfloat16 where an image's gradients survive it (one pass more in each precision tells); the
        last look is in float32.

    Returns
    -------
    Attack
        `success` is about a further look with new points. Whether `region.classify` is fooled is for the caller to see.

    Raises
    ------
    ValueError
        For images, labels, logits or settings out of their range or shape.

    References
    ----------
    Athalye, Carlini & Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018.
    """
    checks.number(radius, name="radius", open_low=True)
    checks.count(points, name="points")
    checks.number(lead, name="lead", high=1 - 1e-9)
    with frozen(model):
        problem = Problem.of(model, x, y, None)
        lost = Outvoted(problem, radius, points, lead)
        settings: dict[str, Any] = {"budget": budget, "start": start, "generator": generator, "precision": precision}
        return descend(problem, [lost], steps=steps, **settings)


def past_detector(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    detectors: Sequence[Detector],
    fold: Tensor,
    threshold: Tensor,
    directions: Tensor,
    magnitudes: Magnitudes,
    steps: int,
    rays: int = 32,
    rule: Rule = "selective",
    radius: float | None = None,
    budget: Tensor | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    precision: Precision = "float32",
) -> Attack:
    """Return images that are misclassified and that the detector does not flag; with a `radius`, that lose the vote.

    Steps follow the classifier until it is fooled and then the detector, on soft distances along a few of its rays,
    drawn afresh at every step. Without a `budget` the images are the nearest found, with one those of the least score
    (see `adaptive.descent`).

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits.
    x : (N, C, H, W) float32 in [0, 1]
    y : (N,) int64
        True labels.
    detectors : sequence of Detector
        Such as one for each fold.
    fold : (N,) int64
        Which of the detectors judges each image.
    threshold : (N,)
        The score from which it flags the image.
    directions : (K, D), magnitudes : (M,)
        Of the detector's profiles.
    steps : int
    rays : int
        Rays of one step, at most K; each takes 16 passes forward and 8 backward.
    rule : {"selective", "orthogonal"}
        "orthogonal": each gradient is projected off the other.
    radius : float, optional
        Half-width of the hypercube of the vote that is to be lost too; None: the point classifier is to be fooled.
    budget, start, generator, precision
        As of `through_vote`.

    Returns
    -------
    Attack
        `success` is about a further look with new rays and points. Whether the detector, which sees all rays, flags
        the image is for the caller to see.

    Raises
    ------
    ValueError
        For images, labels, logits or settings out of their range or shape, and for no detector.

    References
    ----------
    Bryniarski et al., "Evading Adversarial Example Detection Defenses with Orthogonal Projected Gradient Descent",
    ICLR 2022.
    """
    if not detectors:
        raise ValueError("expected at least one detector, got none; train one on an attack that succeeds")
    if (expected := {each.rays for each in detectors}) != {len(directions)}:
        raise ValueError(
            f"expected as many directions as the detectors have rays, {sorted(expected)}, got {len(directions)}; "
            "pass those that their profiles were probed along"
        )
    checks.labels(fold, count=len(x), num_classes=len(detectors), name="fold")
    if threshold.shape != fold.shape or not bool(((threshold >= 0) & (threshold <= 1)).all()):
        raise ValueError(f"expected thresholds ({len(x)},) in [0, 1], got {threshold.tolist()}; calibrate them first")
    with frozen(model):
        problem = Problem.of(model, x, y, None)
        fooled = Misclassified(problem) if radius is None else Outvoted(problem, radius, _POINTS, _LEAD)
        quiet = Undetected(_rays(problem, directions, magnitudes, rays), detectors, fold, threshold)
        settings: dict[str, Any] = {"budget": budget, "start": start, "generator": generator, "precision": precision}
        return descend(problem, [fooled, quiet], steps=steps, rule=rule, **settings)


def mimic(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    profile: Profile,
    *,
    directions: Tensor,
    magnitudes: Magnitudes,
    steps: int,
    rays: int = 32,
    budget: Tensor | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    precision: Precision = "float32",
) -> Attack:
    """Return misclassified images around which the boundary is like that around their source: the talk's challenge.

    As `past_detector`, with the mismatch of the sorted distances and the purities to `profile` in place of a detector.
    None has to exist.

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits.
    x : (N, C, H, W) float32 in [0, 1]
    y : (N,) int64
        True labels.
    profile : Profile
        The boundary around `x`, along `directions`.
    directions : (K, D), magnitudes : (M,)
        That `profile` was probed with.
    steps, rays
        As of `past_detector`.
    budget, start, generator, precision
        As of `through_vote`; without a budget the image returned is barely misclassified.

    Returns
    -------
    Attack
        `success`: misclassified, however like.

    Raises
    ------
    ValueError
        For images, labels, logits or settings out of their range or shape.
    """
    check_probed(x, directions, profile)
    with frozen(model):
        problem = Problem.of(model, x, y, None)
        like = Alike(_rays(problem, directions, magnitudes, rays), profile)
        settings: dict[str, Any] = {"budget": budget, "start": start, "generator": generator, "precision": precision}
        return descend(problem, [Misclassified(problem), like], steps=steps, **settings)


def _rays(problem: Problem, directions: Tensor, magnitudes: Magnitudes, rays: int) -> Rays:
    check_directions(directions, problem.x[0].numel())
    checks.count(rays, name="rays")
    return Rays(problem, directions, grid(magnitudes), rays)
