"""What every attack shares: checked inputs, the pass before, the pool of slots, the check in float32 after."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.attacks.objective import Objective
from nbsupport.attacks.result import Attack
from nbsupport.pool import State, drain
from nbsupport.runtime import channels_last, device_of, rows_per_batch


@dataclass(frozen=True)
class Problem:
    """Images to attack, on the model's device, with what the model says of them before the attack."""

    model: nn.Module
    x: Tensor  # (N, C, H, W)
    label: Tensor  # (N,): the true label or, when targeted, the target
    targeted: bool
    correct: Tensor  # (N,) bool

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, y: Tensor, targets: Tensor | None) -> Problem:
        """Check the arguments, evaluate the clean images, and return the problem; `model` must be frozen."""
        checks.images(x)
        checks.labels(y, count=len(x))
        device = device_of(model, x)
        x, y = x.to(device), y.to(device)
        with torch.no_grad():
            batches = x.split(rows_per_batch(model, tuple(x.shape[1:]), device))
            outputs = [model(channels_last(batch)) for batch in batches]
        for batch, output in zip(batches, outputs, strict=True):
            checks.logits(output, count=len(batch))
        logits = torch.cat(outputs)
        checks.not_probabilities(logits)
        checks.labels(y, count=len(x), num_classes=logits.shape[1])
        if targets is None:
            return cls(model, x, y, False, logits.argmax(1) == y)
        checks.labels(targets, count=len(x), num_classes=logits.shape[1], name="targets")
        targets = targets.to(device)
        return cls(model, x, targets, True, logits.argmax(1) != targets)

    def rows(self, views: int = 1) -> int:
        """Return how many images share a batch when each brings `views` rows."""
        return max(1, rows_per_batch(self.model, tuple(self.x.shape[1:]), self.x.device) // views)


class Search(ABC):
    """The images of a problem as jobs of the pool; a subclass says how one step changes the state.

    A state holds, for each slot: `index` (which image), `x`, `label`, `best` (the image to return), `forwards`,
    `backwards` and what the subclass adds in `begin`.
    """

    every = 10  # steps between two looks at who is finished

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.attacked = problem.correct.nonzero().squeeze(1)
        self.x_adv = problem.x.clone()
        self.forwards = torch.ones_like(problem.label)  # the clean pass
        self.backwards = torch.zeros_like(problem.label)

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
        state |= {"forwards": nothing.clone(), "backwards": nothing.clone(), "done": nothing.bool()}
        self.begin(state)
        return state

    def finish(self, state: State) -> None:
        """Keep the results of finished images."""
        self.x_adv[state["index"]] = state["best"]
        self.forwards[state["index"]] += state["forwards"]
        self.backwards[state["index"]] += state["backwards"]

    def run(self, *, slots: int) -> None:
        """Attack all images of the problem that were classified correctly."""
        if len(self.attacked):
            drain(self, len(self.attacked), slots=slots, every=self.every, device=self.problem.x.device)

    def result(self, objective: Objective, *, confidence: float = 0.0, keep_failures: bool = False) -> Attack:
        """Re-check every returned image in float32 in all views of `objective` and return the outcome."""
        problem = self.problem
        success = torch.zeros_like(problem.correct)
        for index in self.attacked.split(problem.rows(objective.count)):
            gap = objective.gaps(self.x_adv[index], problem.label[index])
            success[index] = across(gap, confidence).all(1)
            self.forwards[index] += objective.count
        kept = (success | (keep_failures & problem.correct))[:, None, None, None]
        x_adv = torch.where(kept, self.x_adv, problem.x)
        rms = (x_adv - problem.x).square().flatten(1).mean(1).sqrt()
        return Attack(x_adv, success, problem.correct, rms, self.forwards, self.backwards)


def across(gap: Tensor, confidence: float) -> Tensor:
    """Return which gaps lie beyond the boundary: at most -confidence, and strictly below 0."""
    return (gap <= -confidence) & (gap < 0)
