"""Region classification: one label from the classes of random points around an image, as a rule their plurality."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.labels import Labeller
from nbsupport.record import Record

STOPS = ("none", "exact", "alpha")
COMBINATIONS = ("plurality", "mean_logits", "mean_probability")
SHAPES = ("hypercube", "ball", "gaussian")
Plan = Callable[[Tensor], Tensor]  # counts (N, L) -> how many more points (N,) each image evaluates

_BATCHES = 8  # of logits in memory at once: the last one, which may be short, then matters little


@dataclass(frozen=True, eq=False)
class Vote(Record):
    """The vote of the points around each of N images.

    Attributes
    ----------
    label : Tensor (N,) int64
        The plurality class, or that of the largest mean; ties go to the lowest class index.
    counts : Tensor (N, L) int64
        Votes of each class among the points evaluated.
    used : Tensor (N,) int64
        Points evaluated.
    p_lower, p_upper : Tensor (N,) float64
        Clopper-Pearson interval of the share of `label`.
    abstain : Tensor (N,) bool
        `label` does not lead the next class significantly.
    radius_l1, radius_linf : Tensor (N,) float64
        Any shift of the image up to here, [0, 1] units, leaves the majority with `label`; 0 where
        `p_lower` <= 1/2, and for all but the plurality in a hypercube.
    """

    label: Tensor
    counts: Tensor
    used: Tensor
    p_lower: Tensor
    p_upper: Tensor
    abstain: Tensor
    radius_l1: Tensor
    radius_linf: Tensor


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
        "none": all points; take it for certificates. "exact": stop once the remaining points cannot change the
        plurality; the label is always that of "none", the certificate is weaker (see Notes). "alpha": look after 10,
        20, 40, ..., m points and stop once the winner leads the runner-up at level alpha divided by the number of
        looks. A mean has no early stop that is exact: with it "exact" evaluates all points, as "none" does, and
        "alpha" is refused.
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
    rises, and the same argument holds). But it is about the points evaluated: where all agree, 51 of 100 decide, and
    at alpha .001 p_lower is .862 where 100 of 100 give .927. Under "alpha" the interval and `abstain` use the split
    level, so that they hold at all looks together.

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
    checks.choice(shape, SHAPES, name="shape")
    checks.choice(combine, COMBINATIONS, name="combine")
    averaged = combine != "plurality"
    if averaged and stop == "alpha":
        raise ValueError(
            f"expected stop 'none' (or 'exact', the same there) with combine '{combine}', got 'alpha'; "
            "its test is about votes: take combine='plurality' to stop by it"
        )
    if averaged and precision == "mixed":
        raise ValueError(
            f"expected precision 'float32' with combine '{combine}', got 'mixed'; "
            "only labels are confirmed in float32, not means: take combine='plurality' for mixed precision"
        )
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
            mean, counts = average(label, len(x), radius, samples, softmax=combine == "mean_probability")
        else:
            mean = counts = count(label, len(x), radius, plans[stop])
    certified = radius if shape == "hypercube" and not averaged else 0.0
    return vote(counts, mean.argmax(1), level, half_width=certified, dim=x[0].numel())


def search_radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    step: float = 0.01,
    max_radius: float = 1.0,
    samples: int = 100,
    generator: torch.Generator | None = None,
    precision: str = "float32",
    shape: str = "hypercube",
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
    shape : {"hypercube", "ball", "gaussian"}
        As in `classify`, which also says what the radius is.

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
    checks.choice(shape, SHAPES, name="shape")
    offsets = draw(shape, samples, x, generator)
    with runtime.frozen(model):
        label = Labeller(model, x, offsets, precision=precision, reach=max_radius)
        y = y.to(label.device)
        correct = (label.centers() == y).sum()
        best = 0.0
        for i in range(int(max_radius / step + 1e-9)):
            radius = min((i + 1) * step, max_radius)
            counts = count(label, len(x), radius, lambda counts: until_decided(counts, samples))
            if bool((counts.argmax(1) == y).sum() < correct):
                break
            best = radius
    return best


def draw(shape: str, samples: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return offsets (samples, D) float32 of radius 1 for images `x` (N, C, H, W), D = C*H*W, drawn on the CPU.

    "hypercube": uniform in [-1, 1)^D. "ball": uniform in the L2 ball of radius sqrt(D), the points of RMS at most 1: a
    Gaussian direction, at the D-th root of a uniform number of the way out. "gaussian": standard normal pixels.
    """
    dim = x[0].numel()
    if shape == "hypercube":
        return 2 * torch.rand(samples, dim, generator=generator) - 1
    if shape == "gaussian":
        return torch.randn(samples, dim, generator=generator)
    direction = torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    volume = torch.rand(samples, 1, generator=generator, dtype=torch.float64)
    direction /= direction.norm(dim=1, keepdim=True)
    return (math.sqrt(dim) * volume.pow(1 / dim) * direction).float()


def unit_rms(shape: str, dim: int) -> float:
    """Return the root mean square of the offsets of radius 1 in `dim` pixels, before clipping.

    Regions of different shape whose radius times this is the same move an image equally far.
    """
    return {"hypercube": math.sqrt(1 / 3), "ball": math.sqrt(dim / (dim + 2)), "gaussian": 1.0}[shape]


def count(label: Labeller, images: int, radius: float, plan: Plan) -> Tensor:
    """Return the counts (N, L): each image evaluates as many further points as `plan` says until it says 0."""
    counts = torch.zeros(images, label.num_classes, dtype=torch.int64, device=label.device)
    used = counts.sum(1)
    while True:
        more = plan(counts)
        image = torch.arange(images, device=label.device).repeat_interleave(more)  # (R,), R = more.sum()
        if not len(image):
            label.require_finite()
            return counts
        first = used - (more.cumsum(0) - more)
        point = torch.arange(len(image), device=label.device) + first[image]
        found, _ = label.look(image, point, torch.full((len(image),), radius, device=label.device))
        counts.index_put_((image, found), torch.ones_like(found), accumulate=True)
        used = used + more


def average(label: Labeller, images: int, radius: float, samples: int, *, softmax: bool) -> tuple[Tensor, Tensor]:
    """Return the mean (N, L) float64 of the logits of all points, or of their softmax, and the counts (N, L)."""
    means, counts = [], []
    every = torch.arange(samples, device=label.device)
    for some in torch.arange(images, device=label.device).split(max(1, _BATCHES * label.rows // samples)):
        image, point = some.repeat_interleave(samples), every.repeat(len(some))
        z = label.logits(image, point, torch.full((len(image),), radius, device=label.device))
        z = z.view(len(some), samples, -1)
        found = z.argmax(2)  # (images, samples)
        counts.append(torch.zeros_like(z[:, 0], dtype=torch.int64).scatter_add_(1, found, torch.ones_like(found)))
        means.append((z.double().softmax(2) if softmax else z.double()).mean(1))
    return torch.cat(means), torch.cat(counts)


def until_decided(counts: Tensor, samples: int) -> Tensor:
    """Return the smallest number of points (N,) after which the plurality could be decided.

    After s more votes for the leader w, class j can no longer win if c_w + s > c_j + (R - s), R points remaining
    now (or if they are equal and w < j). Any other class would need at least as many, because the leader's votes
    count against it. So nothing can be decided before, and to look after exactly s points misses no stop.
    """
    remaining = samples - counts.sum(1, keepdim=True)
    winner = counts.argmax(1, keepdim=True)
    lead = counts.gather(1, winner) - counts
    classes = torch.arange(counts.shape[1], device=counts.device)
    needed = (remaining - lead + (classes < winner) + 1) // 2  # ceil
    return needed.masked_fill(classes == winner, 0).amax(1).clamp(min=0)


def looks_at(samples: int) -> list[int]:
    """Return the numbers of points 10, 20, 40, ..., `samples` after which the rule "alpha" looks at the counts."""
    return [*(10 * 2**i for i in range(samples.bit_length()) if 10 * 2**i < samples), samples]


def until_look(counts: Tensor, looks: list[int], level: float) -> Tensor:
    """Return the points (N,) to the next look, 0 where the winner leads at `level` or all points were used."""
    held = counts.cpu()  # where the test is computed: the one wait for it
    used, ends = held.sum(1), torch.tensor([*looks, looks[-1]])
    more = ends[torch.searchsorted(ends[:-1], used, right=True)] - used
    undecided = torch.from_numpy(p_value(held, held.argmax(1)) > level)
    return runtime.sent(torch.where(undecided, more, 0), counts.device)


def vote(counts: Tensor, label: Tensor, level: float, *, half_width: float, dim: int) -> Vote:
    """Return what `counts` (N, L) say of the classes `label` (N,) at error `level`.

    The certificate is that of hypercubes of half-width `half_width` in `dim` dimensions; none, that is 0, for 0.
    """
    winner, held = label.cpu(), counts.cpu()
    k, n = _votes_for(winner, held).numpy(), held.sum(1).numpy()
    lower = np.where(k > 0, stats.beta.ppf(level / 2, np.maximum(k, 1), n - k + 1), 0.0)
    upper = np.where(k < n, stats.beta.ppf(1 - level / 2, k + 1, np.maximum(n - k, 1)), 1.0)
    certain = lower > 0.5
    l1 = np.where(certain, 2 * half_width * (lower - 0.5), 0.0)
    linf = np.where(certain, -2 * half_width * np.expm1(np.log(1.5 - lower) / dim), 0.0)
    known = lower, upper, p_value(held, winner) > level, l1, linf
    return Vote(
        label, counts, counts.sum(1), *(runtime.sent(torch.from_numpy(array), counts.device) for array in known)
    )


def p_value(counts: Tensor, label: Tensor) -> NDArray[np.float64]:
    """Return the p (N,) of the two-sided binomial test at 1/2 of `label` (N,) against the most frequent other class.

    1 where `label` does not lead: the test asks only whether it does. `counts` and `label` lie on the CPU.
    """
    others = counts.scatter(1, label[:, None], -1).amax(1)
    first, second = _votes_for(label, counts).numpy(), others.numpy()
    p: NDArray[np.float64] = np.minimum(2 * stats.binom.sf(first - 1, first + second, 0.5), 1.0)
    return p


def _votes_for(label: Tensor, counts: Tensor) -> Tensor:
    """Return the votes (N,) for `label` (N,) among `counts` (N, L)."""
    return counts.gather(1, label[:, None])[:, 0]
