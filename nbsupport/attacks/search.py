"""What every attack shares: images as jobs of the pool of slots, and the check in float32 after the search."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from nbsupport.attacks.objective import ROUNDING, Objective, across
from nbsupport.attacks.problem import Problem
from nbsupport.attacks.result import Attack
from nbsupport.pool import State, drain

_BISECTIONS = 10


def per_image(values: Tensor) -> Tensor:
    """Return (N,) as (N, 1, 1, 1), to be multiplied with images."""
    return values[:, None, None, None]


def shorten(state: State, objective: Objective, confidence: float) -> Tensor:
    """Shorten the perturbations of `best` by bisection while they succeed; return the shares (N,) that are left.

    In float32, and so that an image nearer to the boundary than the search could settle is measured too.
    """
    x, delta = state["x"], state["best"] - state["x"]
    low = torch.zeros_like(x[:, 0, 0, 0])
    high = torch.ones_like(low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        gap = objective.gaps(x + per_image(middle) * delta, state["label"], slack=ROUNDING)
        success = across(gap, confidence).all(1)
        low, high = torch.where(success, low, middle), torch.where(success, middle, high)
    state["best"] = torch.where(per_image(high < 1), x + per_image(high) * delta, state["best"])
    state["forwards"] += _BISECTIONS * objective.count
    return high


class Search(ABC):
    """The images of a problem as jobs of the pool; a subclass says how one step changes the state.

    A state holds, for each slot: `index` (which image), `x`, `label`, `done`, of the result `best` (the image to
    return), `forwards`, `backwards`, `falling` and `at_bound`, and what the subclass adds in `begin`.
    """

    every = 10  # steps between two looks at who is finished
    batches = 1  # slots, in batches of the model, on a CPU

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.attacked = problem.correct.nonzero().squeeze(1)
        self.x_adv = problem.x.clone()
        self.forwards = torch.ones_like(problem.label)  # the clean pass
        self.backwards = torch.zeros_like(problem.label)
        self.falling, self.at_bound = torch.zeros_like(problem.correct), torch.zeros_like(problem.correct)

    @abstractmethod
    def begin(self, state: State) -> None:
        """Add the solver's own entries to a fresh `state`."""

    @abstractmethod
    def step(self, state: State) -> None:
        """Advance every image by one step, in place; an image that is done keeps its result."""

    def done(self, state: State) -> Tensor:
        """Return which images are finished (rows,)."""
        return state["done"]

    def start(self, index: Tensor) -> State:
        """Return the state of the waiting images `index`, counted among those attacked."""
        image = self.attacked[index]
        x, nothing = self.problem.x[image], torch.zeros_like(image)
        state: State = {"index": image, "x": x, "label": self.problem.label[image], "best": x.clone()}
        state |= {name: nothing.clone() for name in ("forwards", "backwards")}
        state |= {name: nothing.bool() for name in ("done", "falling", "at_bound")}
        self.begin(state)
        return state

    def finish(self, state: State) -> None:
        """Keep the results of finished images."""
        self.x_adv[state["index"]] = state["best"]
        self.forwards[state["index"]] += state["forwards"]
        self.backwards[state["index"]] += state["backwards"]
        self.falling[state["index"]], self.at_bound[state["index"]] = state["falling"], state["at_bound"]

    def run(self, *, views: int = 1) -> None:
        """Attack all images of the problem that were classified correctly; each brings `views` rows to the batch."""
        device = self.problem.x.device
        rows = self.problem.rows() * (self.batches if device.type == "cpu" else 1)
        if len(self.attacked):
            drain(self, len(self.attacked), slots=max(1, rows // views), every=self.every, device=device)

    def result(self, objective: Objective, *, confidence: float = 0.0, keep_failures: bool = False) -> Attack:
        """Re-check every returned image in float32 in all views of `objective` and return the outcome."""
        problem = self.problem
        success = torch.zeros_like(problem.correct)
        rms = torch.zeros(len(success), device=problem.x.device)
        for index in self.attacked.split(problem.rows(objective.count)) if len(self.attacked) else ():
            gap = objective.gaps(self.x_adv[index], problem.label[index])
            success[index] = across(gap, confidence).all(1)
            self.forwards[index] += objective.count
        # Batch by batch: what is held beside the images and the result does not grow with their number.
        for index in torch.arange(len(success), device=success.device).split(problem.rows()):
            kept = success[index] | (keep_failures & problem.correct[index])
            self.x_adv[index] = torch.where(per_image(kept), self.x_adv[index], problem.x[index])
            rms[index] = (self.x_adv[index] - problem.x[index]).square().flatten(1).mean(1).sqrt()
        passes = self.forwards, self.backwards
        return Attack(self.x_adv, success, problem.correct, rms, *passes, self.falling, self.at_bound)
