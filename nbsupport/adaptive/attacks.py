"""Attacks that know the defence: through the vote, past the detector, past both, and into the likeness of the source."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.adaptive.engine import Goal, Rule, descend
from nbsupport.adaptive.goals import Alike, Misclassified, Outvoted, Undetected
from nbsupport.attacks.engine import Attack, Objective, Problem
from nbsupport.attacks.minimum_norm import NormSearch
from nbsupport.boundary import Profile
from nbsupport.detector import Detector
from nbsupport.runtime import Precision, frozen


def through_views(
    model: nn.Module, x: Tensor, y: Tensor, *, offsets: Tensor, steps: int = 200, precision: Precision = "float32"
) -> Attack:
    with frozen(model):
        problem = Problem.of(model, x, y, None)
        objective = Objective(problem, offsets.to(problem.x.device), precision=precision)
        return NormSearch(objective, steps=steps).attack()


def through_vote(model, x, y, *, radius, steps, points=16, lead=0.3, budget=None, start=None, generator=None) -> Attack:
    with frozen(model):
        problem = Problem.of(model, x, y, None)
        goals = [Outvoted(problem, radius, points, lead)]
        return descend(problem, goals, steps=steps, budget=budget, start=start, generator=generator)


def past_detector(model, x, y, *, detectors, fold, threshold, directions, magnitudes, steps, rays=32, rule="selective",
    radius=None, points=8, lead=0.3, slack=0.0, budget=None, start=None, generator=None) -> Attack:
    with frozen(model):
        problem = Problem.of(model, x, y, None)
        first = Misclassified(problem) if radius is None else Outvoted(problem, radius, points, lead)
        unreached = detectors[0].unreached
        second = Undetected(problem, directions, magnitudes, rays, unreached, detectors, fold, threshold, slack)
        return descend(problem, [first, second], steps=steps, rule=rule, budget=budget, start=start, generator=generator)


def mimic(model, x, y, profile, *, directions, magnitudes, steps, num_classes, budget=None, unreached=1.0, rays=32, rule="selective", start=None, generator=None) -> Attack:
    with frozen(model):
        problem = Problem.of(model, x, y, None)
        second = Alike(problem, directions, magnitudes, rays, unreached, profile, num_classes)
        return descend(problem, [Misclassified(problem), second], steps=steps, rule=rule, budget=budget, start=start, generator=generator)
