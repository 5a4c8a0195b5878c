"""Descent in L2 towards one or two goals on each image: for attacks whose success is more than a margin."""

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from nbsupport import checks
from nbsupport.attacks.engine import Attack, Objective, Problem, in_batches, length, per_image
from nbsupport.runtime import Precision, reduced_precision

Rule = Literal["selective", "orthogonal"]
RULES = ("selective", "orthogonal")
_STRIDE, _LAST_SHARE = 0.3, 0.02  # the first step, in norms of the perturbation, and what is left of it at the end
_CHANGE = 0.08  # first relative change of the norm in a step, without a budget
_FIRST = 0.01  # RMS of the first perturbation, without a budget and a start
_BATCHES = 8  # batches of the model that the images descended together make, on a CPU


class Goal(Protocol):
    """Something to bring about on each image."""

    forwards: int  # network evaluations in one look at one image
    backwards: int

    def look(self, x: Tensor, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a value to descend (N,), with a gradient to `x` (N, C, H, W), and whether the goal is met (N,) bool.

        `x` are versions of the images `index` (N,) of the problem.
        """


def descend(
    problem: Problem,
    goals: Sequence[Goal],
    *,
    steps: int,
    rule: Rule = "selective",
    budget: Tensor | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    precision: Precision = "float32",
) -> Attack:
    """Return images on which all `goals`, one or two, are met: the nearest ones or, within a `budget`, the best.

    A step follows the gradient of the first goal until it is met, then that of the second. Under the rule "orthogonal"
    what points along the other goal's gradient is taken off before. All images take all steps, and see the same draws.

    Without a budget the norm shrinks after a step at which all goals were met and grows after every other, as in DDN.
    With one the perturbation stays in the ball. Of the iterates at which the first goal was met the one is returned
    with the least value of the last goal; where there is none, the one with the least value of the first.

    Parameters
    ----------
    problem : Problem
        Untargeted; images that are not correct are not attacked.
    goals : sequence of one or two goals
    steps : int
    rule : {"selective", "orthogonal"}
    budget : Tensor (N,), optional
        The largest RMS of each image, [0, 1] units.
    start : Tensor (N, C, H, W), optional
        Where to start, such as at another attack's images; None: at the images themselves.
    generator : torch.Generator, optional
        CPU generator of what the goals draw; None: torch's global one.
    precision : {"float32", "mixed"}
        "mixed" descends in bfloat16 where an image's gradients survive it (one pass more in each precision tells); the
        last look is in float32.

    Returns
    -------
    Attack
        `success`: all goals were met when the returned image was looked at once more, with new draws. A search without
        a budget returns the image itself where they were never all met.

    Raises
    ------
    ValueError
        For settings out of their range, and a budget or start of another shape.

    References
    ----------
    Rony et al., "Decoupling Direction and Norm", CVPR 2019. Bryniarski et al., "Evading Adversarial Example Detection
    Defenses with Orthogonal Projected Gradient Descent", ICLR 2022: both rules.
    """
    checks.count(steps, name="steps")
    checks.choice(rule, RULES, name="rule")
    x, device = problem.x, problem.x.device
    for name, given, shape in (("budget", budget, (len(x),)), ("start", start, tuple(x.shape))):
        if given is not None and tuple(given.shape) != shape:
            got = tuple(given.shape)
            raise ValueError(f"expected {name} of shape {shape}, one row an image, got {got}; give a row to each")
    forwards, backwards = (sum(getattr(goal, name) for goal in goals) for name in ("forwards", "backwards"))
    rows = problem.rows() * (_BATCHES if device.type == "cpu" else 1)
    attacked = problem.correct.nonzero().squeeze(1)
    source = torch.default_generator if generator is None else generator
    draws = source.clone_state()
    x_adv, success, falling = x.clone(), torch.zeros_like(problem.correct), torch.zeros_like(problem.correct)
    whole = Objective(problem, precision=precision)
    for objective, part in whole.by_precision(attacked, math.inf):
        for index in in_batches(part, max(1, rows // max(forwards, 1))):
            draws = source.clone_state()  # the same for every batch
            cap = None if budget is None else budget.to(device)[index].float()
            origin = None if start is None else start.to(device)[index]
            search = _descend(problem, goals, index, steps, rule, cap, origin, draws, objective.precision)
            x_adv[index], success[index], falling[index] = search
    source.set_state(draws.get_state())
    problem.require_finite()
    rms = (x_adv - x).square().flatten(1).mean(1).sqrt()
    told = 2 * (whole.precision == "mixed")  # by a pass in each precision
    spent = 1 + ((steps + 2) * forwards + told) * problem.correct, (steps * backwards + told) * problem.correct
    return Attack(x_adv, success, problem.correct, rms, *spent, falling, torch.zeros_like(falling))


def _descend(
    problem: Problem,
    goals: Sequence[Goal],
    index: Tensor,
    steps: int,
    rule: Rule,
    budget: Tensor | None,
    start: Tensor | None,
    generator: torch.Generator,
    precision: Precision,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return of the images `index` the result (N, C, H, W), whether it succeeded (N,), whether it was still gaining."""
    x = problem.x[index]
    side, farthest = math.sqrt(x[0].numel()), length(torch.maximum(x, 1 - x))
    delta = torch.zeros_like(x) if start is None else start - x
    norm = length(delta).clamp(min=side * _FIRST) if budget is None else side * budget
    delta = _within(delta, norm)
    best, best_key, best_met = x.clone(), torch.full_like(norm, torch.inf), torch.zeros_like(index, dtype=torch.bool)
    late = best_key
    for step in range(steps + 1):
        here = (x + delta).clamp(0, 1).detach().requires_grad_()
        with torch.enable_grad(), reduced_precision(precision, x.device):
            looks = [goal.look(here, index, generator) for goal in goals]
        values, mets = [value.detach() for value, _ in looks], [met for _, met in looks]
        every = torch.stack(mets).all(0)
        met, key = every, torch.where(every, length(delta), torch.inf)
        if budget is not None:
            met = mets[0] if len(goals) > 1 else torch.ones_like(every)
            key = torch.where(met, values[-1], values[0])
        better = (met & ~best_met) | ((met == best_met) & (key < best_key))
        best = torch.where(per_image(better), here.detach(), best)
        best_key, best_met = torch.where(better, key, best_key), best_met | met
        late = best_key if step == steps - 1 - steps // 10 else late
        if step == steps:
            break
        gradients = [torch.autograd.grad(value.sum(), here)[0] for value, _ in looks]
        decay = _LAST_SHARE + (1 - _LAST_SHARE) * (1 + math.cos(math.pi * step / steps)) / 2
        direction = _direction(gradients, mets[0], rule)
        delta = delta - per_image(_STRIDE * decay * norm / length(direction)) * direction
        if budget is None:
            norm = (norm * torch.where(every, 1 - _CHANGE * decay, 1 + _CHANGE * decay)).minimum(farthest)
            delta = delta * per_image(norm / length(delta))
        delta = (x + _within(delta, norm)).clamp(0, 1) - x
    with torch.no_grad():
        success = torch.stack([goal.look(best, index, generator)[1] for goal in goals]).all(0)
    if budget is None:
        return best, success & best_met, best_met & (best_key < 0.99 * late)
    return best, success, torch.zeros_like(success)


def _direction(gradients: Sequence[Tensor], met: Tensor, rule: Rule) -> Tensor:
    """Return the gradient (N, C, H, W) of the first goal, or where it is `met` (N,) of the last."""
    first, last = gradients[0], gradients[-1]
    if rule == "orthogonal" and len(gradients) > 1:
        first, last = first - _along(first, last), last - _along(last, first)
    return torch.where(per_image(met), last, first)


def _along(a: Tensor, b: Tensor) -> Tensor:
    """Return the part of each image of `a` that points along `b`."""
    share = (a * b).flatten(1).sum(1) / b.square().flatten(1).sum(1).clamp(min=1e-24)
    return per_image(share) * b


def _within(delta: Tensor, norm: Tensor) -> Tensor:
    """Return `delta`, shortened to `norm` (N,) where it is longer."""
    return delta * per_image((norm / length(delta)).clamp(max=1))
