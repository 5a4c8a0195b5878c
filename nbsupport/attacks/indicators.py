"""An attack looked at again: signs that it failed for reasons of its own, and successes that do not last."""

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.attacks.engine import Attack, Objective, Problem, across, in_batches, per_image
from nbsupport.record import Record
from nbsupport.runtime import device_of, forward, frozen

BATCH = 256  # rows of the batch in which every example is scored again

_UNFINISHED = 0.05  # of the attacked images
_LEVEL = 0.05  # of the test that success falls, over all pairs of budgets
_DIRECTIONS = 64
_RANDOM = 0.01  # of the images tried
_STUCK = 0.5  # of the pixels that should have moved: see `_stuck`
_MOVED = 0.01  # of the mean change of the image's pixels that changed


@dataclass(frozen=True)
class Indicator:
    """A sign of failure that was seen.

    Attributes
    ----------
    name : str
        "still falling", "constant at its bound", "success falls with eps", "random beats gradient" or "stuck pixels".
    share : float
        Of the `n` images (stuck pixels: of the `n` pixels) that could show the sign, those that do.
    n : int
    message : str
        What was seen, and what to do.
    """

    name: str
    share: float
    n: int
    message: str


def failure_indicators(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    eps: float | None = None,
    targets: Tensor | None = None,
    by_eps: Mapping[float, Attack] | None = None,
    views: Tensor | None = None,
    clip_views: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Indicator, ...]:
    """Return the signs that `attack` did not do what it could; none is what one wants.

    - *still falling*: on more than 5 % of the attacked images the search ended while it was still gaining.
    - *constant at its bound*: on more than 5 % the constant of a penalty search was only ever too large or too small.
    - *success falls with eps*: every image within a budget is within a larger one too, so success cannot fall. An
      exact sign test on the images that only one of two budgets flipped, at .05 over all pairs of budgets.
    - *random beats gradient*: 64 random directions do what the gradient does not. With a budget they are sign vectors
      of size `eps`, on the images on which the attack failed, of which they flip more than 1 %. A minimum-norm attack
      is compared on its successes: on more than 1 % a direction of the RMS that was found, clipped to [0, 1], is
      across the boundary, and at least as far as the attack's own image (which need not lie on it: an attack may ask
      for confidence).
    - *stuck pixels*: of the pixels at 0 or 1 that the gradient of the margin (in the worst view) pulls inwards, both
      at `x` and at the adversarial image, more than half did not move.

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits.
    x : (N, C, H, W) float32 in [0, 1]
        The images that were attacked.
    y : (N,) int64
        True labels.
    attack : Attack
        On these images.
    eps : float, optional
        L-inf budget of the attack, in [0, 1] units. None: the attack has no budget and minimises the norm.
    targets : (N,) int64, optional
        Classes that the attack was to reach.
    by_eps : mapping from float to Attack, optional
        The same attack on the same images with other budgets. None: success is not compared.
    views : (V, C, H, W), optional
        Offsets that the attack added to the image, all of which had to be across (`optmargin`). None: the image alone.
    clip_views : bool
        Whether these views were clipped to [0, 1].
    generator : torch.Generator, optional
        A CPU generator, from which the directions are drawn once, shared by all images; None: torch's global one.

    Returns
    -------
    tuple of Indicator
        In the order above; only those that were seen.

    Raises
    ------
    ValueError
        For images, labels or logits out of their range or shape, attacks on another number of images, and budgets
        that are not at least two numbers above 0.

    References
    ----------
    Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705: convergence, larger budgets,
    random search. Pintor et al., "Indicators of Attack Failure: Debugging and Improving Optimization of Adversarial
    Examples", NeurIPS 2022, arXiv:2106.09947. That pixels stick is our own sign of a poor change of variables.
    """
    if eps is not None:
        checks.number(eps, name="eps", open_low=True)
    budgets = None if by_eps is None else _budgets(attack, eps, by_eps)
    with frozen(model):
        problem = Problem.of(model, x, y, targets)
        for other in (attack, *(budgets or {}).values()):
            if other.x_adv.shape != problem.x.shape:
                raise ValueError(
                    f"expected an attack on the {len(x)} images x of shape {tuple(x.shape)}, got one on images of "
                    f"shape {tuple(other.x_adv.shape)}; pass the images that were attacked"
                )
        device = problem.x.device
        attack = attack.to(device)
        compared = {size: other.to(device) for size, other in (budgets or {}).items()}
        found = [*_unfinished(attack), _fewer(compared)]
        goal = Objective(problem, None if views is None else views.to(device), clip=clip_views)
        found += [_random(goal, attack, eps, generator), _stuck(goal, attack)]
    return tuple(one for one in found if one is not None)


def _budgets(attack: Attack, eps: float | None, by_eps: Mapping[float, Attack]) -> dict[float, Attack]:
    """Return the attacks by budget, smallest first, `attack` among them."""
    budgets = {**({} if eps is None else {eps: attack}), **by_eps}
    for size in budgets:
        checks.number(size, name="every budget of by_eps", open_low=True)
    if len(budgets) < 2:
        raise ValueError(f"expected at least two budgets to compare, got {list(budgets)}; add one to by_eps")
    return dict(sorted(budgets.items()))


def _beyond(share: float, name: str, count: int, n: int, message: str) -> Indicator | None:
    """Return the sign `name` where more than `share` of `n` show it."""
    return Indicator(name, count / n, n, message) if count > share * n else None


def _unfinished(attack: Attack) -> Iterator[Indicator | None]:
    n, count = int(attack.correct.sum()), int((attack.falling & attack.correct).sum())
    message = f"the search was still gaining on {count} of {n} attacked images when it ended; raise steps"
    yield _beyond(_UNFINISHED, "still falling", count, n, message)
    bound = attack.at_bound & attack.correct
    count, low = int(bound.sum()), int((bound & attack.success).sum())
    seen = [f"on {low} successes no constant was too small, lower initial_const"] * (low > 0)
    seen += [f"on {count - low} failures none was large enough, raise initial_const"] * (low < count)
    message = (
        f"the constant saw one side only on {count} of {n} attacked images; {'; '.join(seen)}; or raise search_steps"
    )
    yield _beyond(_UNFINISHED, "constant at its bound", count, n, message)


def _fewer(budgets: Mapping[float, Attack]) -> Indicator | None:
    """Return the pair of budgets between which success falls most, of those where it falls by more than chance."""
    pairs = list(itertools.combinations(budgets, 2))
    found = []
    for small, large in pairs:
        first, second = budgets[small], budgets[large]
        both = first.correct & second.correct
        lost = int((both & first.success & ~second.success).sum())
        gained = int((both & second.success & ~first.success).sum())
        if lost and binomtest(lost, lost + gained, alternative="greater").pvalue < _LEVEL / len(pairs):
            n = int(both.sum())
            message = (
                f"from eps {small:.4g} to {large:.4g} success is lost on {lost} of {n} images and gained on {gained}; "
                "raise steps or restarts, fit step_size to eps, then suspect masked gradients"
            )
            found.append(Indicator("success falls with eps", (lost - gained) / n, n, message))
    return max(found, key=lambda one: one.share, default=None)


def _random(goal: Objective, attack: Attack, eps: float | None, generator: torch.Generator | None) -> Indicator | None:
    x = goal.problem.x
    shape = (_DIRECTIONS, *x.shape[1:])
    if eps is None:
        drawn = torch.randn(shape, generator=generator)
        drawn /= per_image(drawn.square().flatten(1).mean(1).sqrt())
        tried, size = attack.success & attack.correct, attack.rms
    else:
        drawn = 2.0 * torch.randint(2, shape, generator=generator) - 1
        tried, size = attack.correct & ~attack.success, torch.full_like(attack.rms, eps)
    n = int(tried.sum())
    count = _beaten(goal, attack, tried.nonzero().squeeze(1), drawn.to(x.device), size)
    if eps is None:
        seen = f"on {count} of {n} successes a random direction of the same RMS reaches as far"
    else:
        seen = f"random signs of size {eps:.4g} flip {count} of {n} images on which the attack failed"
    message = (
        f"{seen}; raise steps or restarts, then suspect masked gradients and try examples of another model or a search "
        "without gradients"
    )
    return _beyond(_RANDOM, "random beats gradient", count, n, message)


def _beaten(goal: Objective, attack: Attack, image: Tensor, directions: Tensor, size: Tensor) -> int:
    """Return how many of the images `image` (n,) a direction (K, C, H, W) times `size` (N,) takes as far.

    As far: across, and in its worst view no less than the image that the attack returned. First the points alone are
    looked at and then, of the few that are across, all views.
    """
    problem, count = goal.problem, len(directions)
    pairs = torch.arange(len(image) * count, device=image.device)
    reached = torch.zeros_like(size)
    for part in in_batches(image, problem.rows(goal.count)):
        reached[part] = goal.margins(attack.x_adv[part], problem.label[part]).amax(1)
    for objective, bar in ((Objective(problem), torch.zeros_like(size)), (goal, reached)):
        fits = [torch.zeros_like(pairs[:0], dtype=torch.bool)]
        for part in in_batches(pairs, problem.rows(objective.count)):
            chosen = image[part // count]
            moved = (problem.x[chosen] + per_image(size[chosen]) * directions[part % count]).clamp(0, 1)
            margin = objective.margins(moved, problem.label[chosen]).amax(1)
            fits.append(across(margin) & (margin <= bar[chosen]))
        pairs = pairs[torch.cat(fits)]  # waits once, not for every batch
    return len(image[pairs // count].unique())


def _stuck(goal: Objective, attack: Attack) -> Indicator | None:
    """Return whether pixels at the ends of [0, 1] stay there although the gradient of the worst view pulls inwards.

    Half is far from both sides. On `digits` (standard preset, both models) DDN, PGD, FGSM and Carlini & Wagner leave
    at most .25 of such pixels where they are, OPTMARGIN by DDN .11; a tanh space that is entered without scaling,
    where the slope at the ends is 0, leaves all. Between lies OPTMARGIN by Adam with 120 steps (.55-.66, and .94 as in
    the release), whose pixels at 0 have not had the time to leave: with 500 steps its distortion is a third lower.
    """
    problem = goal.problem
    seen = [torch.zeros(2, dtype=torch.int64, device=problem.x.device)]  # pixels pulled inwards, and those that stayed
    image = (attack.correct & (attack.rms > 0)).nonzero().squeeze(1)
    for part in in_batches(image, problem.rows(goal.count)):
        x, x_adv, label = problem.x[part], attack.x_adv[part], problem.label[part]
        unit = torch.ones_like(attack.rms[part])
        looks = [goal.worst(each, label, torch.ones_like, count=1, temperature=unit) for each in (x, x_adv)]
        at_x, at_end = (-look.gradient for look in looks)
        upwards, downwards = (at_x > 0) & (at_end > 0), (at_x < 0) & (at_end < 0)
        inwards = ((x == 0) & upwards) | ((x == 1) & downwards)
        change = (x_adv - x).abs()
        mean = change.flatten(1).sum(1) / (change > 0).flatten(1).sum(1)
        stayed = inwards & (change < _MOVED * per_image(mean))
        seen.append(torch.stack((inwards.sum(), stayed.sum())))
    pixels, stuck = torch.stack(seen).sum(0).tolist()
    message = (
        f"{stuck} of {pixels} pixels at 0 or 1 stayed although the gradient pulls them inwards; raise steps or lr, and "
        "in a tanh space start a little inside the ends"
    )
    return _beyond(_STUCK, "stuck pixels", stuck, pixels, message)


@dataclass(frozen=True, eq=False)
class Stability(Record):
    """Which successes are undone when the example is scored again, one entry an example.

    An untargeted success is undone where the label is the true class again, a targeted one where it is no longer the
    target. An example that never succeeded reads as undone.

    Attributes
    ----------
    alone : (N,) bool
        In a batch of one.
    batch : (N,) bool
        In a batch of exactly 256 rows; images are repeated to fill the last one.
    float64 : (N,) bool
        With the model and the image in float64.
    eight_bit : (N,) bool
        After rounding to 8-bit pixels, round(255 x) / 255, in float32 and batches of the usual size.
    """

    alone: Tensor
    batch: Tensor
    float64: Tensor
    eight_bit: Tensor


def stability(model: nn.Module, x_adv: Tensor, y: Tensor, *, targets: Tensor | None = None) -> Stability:
    """Return which of the adversarial examples `x_adv` do not survive a second look.

    The size of a batch and the precision change a logit by its rounding, a file of 8-bit pixels changes the image by
    up to 1/510. An example that any of these undo lies on the decision boundary rather than beyond it, and a rate
    that counts it as a success is a rate of one machine.

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits. The float64 model is a copy; `model` itself stays as it is.
    x_adv : (N, C, H, W) float32 in [0, 1]
        Successful adversarial examples; N = 0 is allowed.
    y : (N,) int64
        True labels.
    targets : (N,) int64, optional
        Classes that the attack was to reach.

    Returns
    -------
    Stability
        On the model's device. No pass takes more than 256 rows, or the usual batch where that is larger.

    Raises
    ------
    ValueError
        For images, labels or logits out of their range or shape.

    References
    ----------
    Method section 9: what is known to break conclusions about adversarial examples.
    """
    if isinstance(x_adv, Tensor) and isinstance(y, Tensor) and x_adv.ndim == 4 and len(x_adv) == len(y) == 0:
        nothing = torch.zeros(0, dtype=torch.bool, device=device_of(model, x_adv))
        return Stability(nothing, nothing, nothing, nothing)
    with frozen(model):
        problem = Problem.of(model, x_adv, y, targets)
        double = copy.deepcopy(model).double()
        alone = _undone(problem, model, rows=1)
        batch = _undone(problem, model, rows=BATCH, fill=True)
        float64 = _undone(problem, double, rows=problem.rows(), dtype=torch.float64)
        # What an attack would be free to begin with is what a success that is undone leaves.
        eight_bit = Problem.of(model, (255 * problem.x).round() / 255, y, targets).correct
    return Stability(alone, batch, float64, eight_bit)


def _undone(
    problem: Problem, model: nn.Module, *, rows: int, fill: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return which images (N,) are undone by `model` in batches of `rows`; with `fill` images repeat in the last."""
    x, n = problem.x, len(problem.x)
    index = torch.arange(-(-n // rows) * rows if fill else n, device=x.device) % n
    with torch.no_grad():
        labels = [forward(model, x[part].to(dtype)).argmax(1) for part in index.split(rows)]
    label = torch.cat(labels)[:n]
    return label != problem.label if problem.targeted else label == problem.label
