"""Region classification: the plurality of the classes of random points in the hypercube around an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.labels import Labeller
from nbsupport.region.stopping import looks_at, until_decided, until_look
from nbsupport.region.vote import Vote, vote

STOPS = ("none", "exact", "alpha")
Plan = Callable[[Tensor], Tensor]  # counts (N, L) -> how many more points (N,) each image evaluates


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
) -> Vote:
    """Return the plurality of f over points uniform in the hypercube around each image, clipped to [0, 1].

    The offsets of the points are drawn on the CPU, once, and shared by all images.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    radius : float
        Half-width r of the hypercube, [0, 1] units, > 0.
    samples : int
        Points of one image, m.
    stop : {"exact", "none", "alpha"}
        "none": all points. "exact": stop once the remaining points cannot change the plurality; the label is
        always that of "none". "alpha": look after 10, 20, 40, ..., m points and stop once the winner leads the
        runner-up at level alpha divided by the number of looks.
    alpha : float
        Error probability of the interval and of the test, above 0 and at most 1.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one.
    precision : {"float32", "mixed"}
        "mixed": bfloat16 with every label near a tie confirmed in float32 (see `nbsupport.labels.Labeller`).

    Returns
    -------
    Vote
        On the model's device.

    Raises
    ------
    ValueError
        For images outside [0, 1], a radius, number of samples or alpha out of range, an unknown stop or precision,
        and for a model whose logits are not finite or of wrong shape in any pass.

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
    all points (clipping is part of the classifier), not of the vote of m of them.

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
    offsets = _hypercube(samples, x, generator)
    looks = looks_at(samples)
    level = alpha / len(looks) if stop == "alpha" else alpha
    plans: dict[str, Plan] = {
        "none": lambda counts: samples - counts.sum(1),
        "exact": lambda counts: until_decided(counts, samples),
        "alpha": lambda counts: until_look(counts, looks, level),
    }
    with runtime.frozen(model):
        label = Labeller(model, x, offsets, precision=precision, reach=radius)
        counts = _votes(label, len(x), radius, plans[stop])
    return vote(counts, radius, x[0].numel(), level)


def search_radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    step: float = 0.01,
    max_radius: float = 1.0,
    samples: int = 100,
    generator: torch.Generator | None = None,
    precision: runtime.Precision = "float32",
) -> float:
    """Return the last radius before the first one at which the vote is less accurate than the point classifier.

    The radii are step, 2 step, ... up to `max_radius`; 0 when the first is already less accurate. All radii share
    the same offsets, scaled, so that the accuracies differ by the radius alone.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x : Tensor (N, C, H, W) float32
        Validation images in [0, 1].
    y : Tensor (N,) int64
        Their labels.
    step, max_radius : float
        [0, 1] units, > 0.
    samples : int
        Points of one image, as in `classify`.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one.
    precision : {"float32", "mixed"}
        As in `classify`.

    Raises
    ------
    ValueError
        For images or labels out of range, `max_radius` below `step`, and as `classify`.

    References
    ----------
    Cao & Gong, "Mitigating Evasion Attacks to Deep Neural Networks via Region-based Classification", 2017, section 4.
    """
    checks.images(x)
    checks.labels(y, count=len(x))
    checks.number(step, name="step", open_low=True)
    checks.number(max_radius, name="max_radius", low=step)
    checks.count(samples, name="samples")
    checks.choice(precision, runtime.PRECISIONS, name="precision")
    offsets = _hypercube(samples, x, generator)
    with runtime.frozen(model):
        label = Labeller(model, x, offsets, precision=precision, reach=max_radius)
        y = y.to(label.device)
        correct = (label.centers() == y).sum()
        best = 0.0
        for i in range(int(max_radius / step + 1e-9)):
            radius = min((i + 1) * step, max_radius)
            counts = _votes(label, len(x), radius, lambda counts: until_decided(counts, samples))
            if bool((counts.argmax(1) == y).sum() < correct):
                break
            best = radius
    return best


def _hypercube(samples: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return offsets (samples, D) float32 uniform in [-1, 1)."""
    return 2 * torch.rand(samples, x[0].numel(), generator=generator) - 1


def _votes(label: Labeller, images: int, radius: float, plan: Plan) -> Tensor:
    """Return the counts (N, L): each image evaluates as many further points as `plan` says until it says 0."""
    counts = torch.zeros(images, label.num_classes, dtype=torch.int64, device=label.device)
    used = counts.sum(1)
    while True:
        more = plan(counts)
        image = torch.arange(images, device=label.device).repeat_interleave(more)  # (R,), R = more.sum()
        if not len(image):
            return counts
        first = used - (more.cumsum(0) - more)
        point = torch.arange(len(image), device=label.device) + first[image]
        found = label(image, point, torch.full((len(image),), radius, device=label.device))
        counts.index_put_((image, found), torch.ones_like(found), accumulate=True)
        used = used + more
