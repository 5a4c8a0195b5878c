"""Descent of several goals at once in L2, for attacks whose success is more than one margin."""

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from nbsupport import checks
from nbsupport.attacks.engine import Attack, Problem, in_batches, per_image

Rule = Literal["selective", "orthogonal"]
RULES = ("selective", "orthogonal")
_STRIDE, _LAST_SHARE = 0.5, 0.02  # first step, in norms of the perturbation, and the part of it that is left at the end
_CHANGE = 0.08  # first relative change of the norm in a step, without a budget
_BATCHES = 8  # batches of the model, on a CPU, that the images descended together make
_START = 0.01  # RMS of the first perturbation, without a budget


class Goal(Protocol):
    """Something that is to be brought below 0 on each image."""

    forwards: int  # network evaluations of one look at one image
    backwards: int
    rows: int  # rows that an image brings to a batch

    def begin(self, index: Tensor, x: Tensor, label: Tensor) -> int:
        """Prepare for the images `index` (N,) of the problem, which are `x`; return the evaluations of each."""

    def look(self, x: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a value (N,) with a gradient to `x`, and whether the goal is met (N,)."""


def descend(
    problem: Problem,
    goals: Sequence[Goal],
    *,
    steps: int,
    rule: Rule = "selective",
    budget: Tensor | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Attack:
    """Return images on which all `goals` (one or two) are met: the nearest or, with a `budget`, those best met.

    A step goes along one goal's gradient: of the first until it is met, then of the second. With the rule "orthogonal"
    what points along the other goal's gradient is taken off before. Without a budget the norm shrinks after every step
    at which all goals were met and grows after every other, as in DDN. With one the perturbation stays in the ball,
    and of all images at which the first goal is met that of the least value of the second is returned; of all images
    where there is but one goal, or where the first is never met, that of the least value of the first.

    Parameters
    ----------
    problem : Problem
        Untargeted; images that are not correct are not attacked.
    steps : int
    rule : {"selective", "orthogonal"}
    budget : Tensor (N,), optional
        Largest RMS of each image, [0, 1] units.
    start : Tensor (N, C, H, W), optional
        Images to start from, such as another attack's; None: the images themselves.
    generator : torch.Generator, optional
        CPU generator of what the goals draw; every batch of images sees the same draws.
    """
    checks.count(steps, name="steps")
    checks.choice(rule, RULES, name="rule")
    x, device, images = problem.x, problem.x.device, len(problem.x)
    for name, given, shape in (("budget", budget, (images,)), ("start", start, tuple(x.shape))):
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"expected {name} of shape {shape}, one row an image, got {tuple(given.shape)}")
    seed = torch.default_generator if generator is None else generator
    kept = {"x_adv": x.clone(), "success": torch.zeros_like(problem.correct)}
    kept |= {name: torch.ones_like(problem.label) for name in ("forwards", "backwards")}
    kept["backwards"] -= 1
    kept["falling"] = torch.zeros_like(problem.correct)
    rows = sum(goal.rows for goal in goals)
    together = max(1, problem.rows() * (_BATCHES if device.type == "cpu" else 1) // rows)
    attacked, drawn = problem.correct.nonzero().squeeze(1), seed.clone_state()
    for index in in_batches(attacked, together):
        drawn = seed.clone_state()
        own = None if budget is None else budget.to(device)[index].float()
        origin = None if start is None else start.to(device)[index]
        found = _descend(problem, index, goals, steps, rule, own, origin, drawn)
        for name, values in found.items():
            kept[name][index] = values
    seed.set_state(drawn.get_state())
    problem.require_finite()
    rms = (kept["x_adv"] - x).square().flatten(1).mean(1).sqrt()
    return Attack(**kept, correct=problem.correct, rms=rms)


def _descend(
    problem: Problem,
    index: Tensor,
    goals: Sequence[Goal],
    steps: int,
    rule: Rule,
    budget: Tensor | None,
    start: Tensor | None,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    x, label = problem.x[index], problem.label[index]
    side = math.sqrt(x[0].numel())  # RMS to L2 norms
    spent = sum(goal.begin(index, x, label) for goal in goals)
    delta = torch.zeros_like(x) if start is None else (start - x).clone()
    norm = (side * budget) if budget is not None else _length(delta).clamp(min=side * _START)
    if budget is not None:
        delta = _within(delta, norm)
    best, best_key = x + delta, torch.full_like(norm, torch.inf)
    best_met = torch.zeros_like(label, dtype=torch.bool)
    late = best_key
    farthest = _length(torch.maximum(x, 1 - x))
    for step in range(steps + 1):
        here = (x + delta).clamp(0, 1).detach().requires_grad_()
        with torch.enable_grad():
            looks = [goal.look(here, label, generator) for goal in goals]
        values = [value.detach() for value, _ in looks]
        mets = [met for _, met in looks]
        everything = torch.stack(mets).all(0)
        if budget is None:
            met, key = everything, _length(here.detach() - x)
        else:
            met = mets[0] if len(goals) > 1 else torch.ones_like(mets[0])
            key = torch.where(met, values[-1], values[0])
        better = (met & ~best_met) | ((met == best_met) & (key < best_key) & (met | (budget is not None)))
        best = torch.where(per_image(better), here.detach(), best)
        best_key, best_met = torch.where(better, key, best_key), best_met | (better & met)
        if step == steps - 1 - steps // 10:
            late = best_key
        if step == steps:
            break
        gradients = [torch.autograd.grad(value.sum(), here, retain_graph=True)[0] for value, _ in looks]
        direction = _direction(gradients, mets, rule)
        decay = _LAST_SHARE + (1 - _LAST_SHARE) * (1 + math.cos(math.pi * step / steps)) / 2
        delta = delta - per_image(_STRIDE * decay * norm / _length(direction)) * direction
        if budget is None:
            norm = (norm * torch.where(everything, 1 - _CHANGE * decay, 1 + _CHANGE * decay)).minimum(farthest)
            delta = delta * per_image(norm / _length(delta))
        else:
            delta = _within(delta, norm)
        delta = (x + delta).clamp(0, 1) - x
    with torch.no_grad():
        success = torch.stack([goal.look(best, label, generator)[1] for goal in goals]).all(0)
    found = best_met | (budget is not None)
    forwards = spent + (steps + 2) * sum(goal.forwards for goal in goals)
    backwards = steps * sum(goal.backwards for goal in goals)
    return {
        "x_adv": torch.where(per_image(found), best, x),
        "success": success & found,
        "forwards": torch.full_like(label, 1 + forwards),
        "backwards": torch.full_like(label, backwards),
        "falling": (late - best_key > 0.01 * late.abs()) if budget is None else torch.zeros_like(found),
    }


def _direction(gradients: Sequence[Tensor], mets: Sequence[Tensor], rule: Rule) -> Tensor:
    """Return the direction (N, C, H, W) to descend: of the first goal, or of the second where the first is met."""
    if len(gradients) == 1:
        return gradients[0]
    first, second = gradients
    if rule == "orthogonal":
        first, second = first - _along(first, second), second - _along(second, first)
    return torch.where(per_image(mets[0]), second, first)


def _along(a: Tensor, b: Tensor) -> Tensor:
    """Return the part of each image of `a` that points along `b`."""
    share = (a * b).flatten(1).sum(1) / b.square().flatten(1).sum(1).clamp(min=1e-24)
    return per_image(share) * b


def _within(delta: Tensor, norm: Tensor) -> Tensor:
    return delta * per_image((norm / _length(delta)).clamp(max=1))


def _length(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return length.clamp(min=1e-12)
