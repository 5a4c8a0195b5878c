"""Region classification: one label from the classes of random points around an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.labels import Labeller
from nbsupport.region.counting import SHAPES, Plan, average, count, draw, looks_at, until_decided, until_look
from nbsupport.region.vote import Vote, vote

STOPS = ("none", "exact", "alpha")
COMBINATIONS = ("plurality", "mean_logits", "mean_probability")


def classify(
    model: nn.Module,
    x: Tensor,
    *,
    radius: float,
    samples: int = 100,
    stop: str = "exact",
    alpha: float = 0.001,
    generator: torch.Generator | None = None,
    precision: str = "float32",
    shape: str = "hypercube",
    combine: str = "plurality",
) -> Vote:
    """Return the label of each image that random points around it, clipped to [0, 1], give together.

    As published: the plurality of f over points uniform in a hypercube. The offsets of the points are drawn on the
    CPU, once, and shared by all images.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    radius : float
        The size r of the region, [0, 1] units, > 0: see `shape`.
    samples : int
        Points of one image, m.
    stop : {"exact", "none", "alpha"}
        "none": all points. "exact": stop once the remaining points cannot change the plurality; the label is
        always that of "none". "alpha": look after 10, 20, 40, ..., m points and stop once the winner leads the
        runner-up at level alpha divided by the number of looks. A mean has no early stop that is exact: with it
        "exact" evaluates all points, as "none" does, and "alpha" is refused.
    alpha : float
        Error probability of the interval and of the test, above 0 and at most 1.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one.
    precision : {"float32", "mixed"}
        "mixed": bfloat16 with every label near a tie confirmed in float32 (see `nbsupport.labels.Labeller`); for
        "plurality" only, since a mean needs every logit.
    shape : {"hypercube", "ball", "gaussian"}
        "hypercube": uniform, r is the half-width. "ball": uniform in the L2 ball of radius r sqrt(D), so that r is
        the largest RMS. "gaussian": normal, r is the standard deviation of a pixel.
    combine : {"plurality", "mean_logits", "mean_probability"}
        "plurality": the class of most points; ties go to the lowest class index. The other two: the class of the
        largest mean, over all points, of the logits or of their softmax (taken in float64).

    Returns
    -------
    Vote
        On the model's device.

    Raises
    ------
    ValueError
        For images outside [0, 1], a radius, number of samples or alpha out of range, an unknown stop, precision,
        shape or combination, a mean with stop "alpha" or precision "mixed", and for a model whose logits are not
        finite or of wrong shape in any pass.

    Notes
    -----
    With k of n votes for the winner, p_lower = beta.ppf(alpha/2, k, n-k+1) and p_upper = beta.ppf(1-alpha/2,
    k+1, n-k). The error is at most alpha whenever p_lower > 1/2, since at most one class can have more than half
    of the mass; that is all the certificate needs. Below 1/2 the interval does not allow for the choice of the
    class. It stays valid under "exact": to stop at the winner's k-th vote is negative binomial sampling, for
    which the same lower bound is exact and the upper one conservative (with more than two classes k depends on the
    order of the other votes; given that order the vote stops once the winner's votes reach a bound that never
    rises, and the same argument holds). Under "alpha" the interval and `abstain` use the split level, so that they
    hold at all looks together.

    `abstain`: the two-sided binomial test of the winner against the runner-up at 1/2 has p > alpha ([3], Predict).
    The shares of two hypercubes shifted against each other differ by at most the volume by which they differ,
    hence the radii: L1 2r(p_lower - 1/2), L-inf 2r(1 - (1.5 - p_lower)^(1/D)). They speak of the majority over
    all points (clipping is part of the classifier), not of the vote of m of them. That argument is about the
    plurality in a hypercube: for every other shape or combination both radii are 0, which claims nothing. (For the
    plurality of "gaussian" points [3], theorem 1, gives an L2 radius, r Phi^-1(p_lower) where p_lower > 1/2.)

    With a mean, `counts` are still the classes of the points, and `p_lower`, `p_upper` and `abstain` are about the
    votes for `label`, which need not be the most: the interval is of its share of the points, not of any confidence
    in the mean, and `abstain` says that it does not lead all other classes significantly among the points.

    References
    ----------
    .. [1] Cao & Gong, "Mitigating Evasion Attacks to Deep Neural Networks via Region-based Classification", 2017,
       section 4.
    .. [2] Clopper & Pearson, "The Use of Confidence or Fiducial Limits", Biometrika 26, 1934.
    .. [3] Cohen, Rosenfeld & Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, section 3.2.
    """
    checks.images(x)
    checks.number(radius, name="radius", open_low=True)
    checks.count(samples, name="samples")
    checks.choice(stop, STOPS, name="stop")
    checks.number(alpha, name="alpha", open_low=True, high=1)
    checks.choice(precision, runtime.PRECISIONS, name="precision")
    checks.choice(shape, SHAPES, name="shape")
    checks.choice(combine, COMBINATIONS, name="combine")
    averaged = combine != "plurality"
    if averaged:
        _check_mean(combine, stop, precision)
    offsets = draw(shape, samples, x, generator)
    looks = looks_at(samples)
    level = alpha / len(looks) if stop == "alpha" else alpha
    plans: dict[str, Plan] = {
        "none": lambda counts: samples - counts.sum(1),
        "exact": lambda counts: until_decided(counts, samples),
        "alpha": lambda counts: until_look(counts, looks, level),
    }
    with runtime.frozen(model):
        label = Labeller(model, x, offsets, precision=precision, reach=radius)
        if averaged:
            softmax = combine == "mean_probability"
            mean, counts = average(label, len(x), radius, samples, softmax=softmax)
        else:
            mean = counts = count(label, len(x), radius, plans[stop])
    certified = radius if shape == "hypercube" and not averaged else 0.0
    return vote(counts, mean.argmax(1), level, half_width=certified, dim=x[0].numel())


def _check_mean(combine: str, stop: str, precision: str) -> None:
    """Raise ValueError where `stop` or `precision` is about votes, which the mean `combine` does not count."""
    if stop == "alpha":
        raise ValueError(
            f"expected stop 'none' (or 'exact', the same there) with combine '{combine}', got 'alpha'; "
            "its test is about votes: take combine='plurality' to stop by it"
        )
    if precision == "mixed":
        raise ValueError(
            f"expected precision 'float32' with combine '{combine}', got 'mixed'; "
            "only labels are confirmed in float32, not means: take combine='plurality' for mixed precision"
        )
