"""Carlini & Wagner's L2 attack: Adam in tanh space, the constant searched for every image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.attacks.objective import Objective, across
from nbsupport.attacks.problem import Problem
from nbsupport.attacks.result import Attack
from nbsupport.attacks.search import Search, per_image
from nbsupport.pool import State
from nbsupport.runtime import Precision, frozen

_NO_UPPER = 1e10  # the upper bound of the constant before the first success


def carlini_wagner_l2(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    confidence: float = 0.0,
    search_steps: int = 4,
    steps: int = 1000,
    lr: float = 0.05,
    initial_const: float = 1.0,
    targets: Tensor | None = None,
    precision: Precision = "float32",
) -> Attack:
    """Return the least L2 adversarial images found by minimising `||x' - x||^2 + c max(margin, -confidence)`.

    OPTBRITTLE is this attack with confidence 0, OPTSTRONG with a high one. Constant, optimiser, success and the
    abort rule (see `PenaltySearch`) belong to the image.

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits.
    x : (N, C, H, W) float32 in [0, 1]
    y : (N,) int64
        True labels.
    confidence : float
        Margin, in logits, by which the other class must win.
    search_steps, steps : int
        Constants tried for an image, and iterations of Adam at most with each.
    lr, initial_const : float
        Adam's learning rate in tanh space and the first constant.
    targets : (N,) int64, optional
        Classes to reach.
    precision : {"float32", "mixed"}
        "mixed" searches in bfloat16 and confirms in float32 every iterate that it would keep.

    Returns
    -------
    Attack
        A failed image is returned unchanged.

    Raises
    ------
    ValueError
        For images, labels, logits or settings out of their range or shape.

    References
    ----------
    Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, arXiv:1608.04644.
    """
    with frozen(model):
        problem = Problem.of(model, x, y, targets)
        objective = Objective(problem, precision=precision)
        search = PenaltySearch(
            problem,
            objective,
            confidence=confidence,
            search_steps=search_steps,
            steps=steps,
            lr=lr,
            initial_const=initial_const,
        )
        search.run()
        return search.result(objective, confidence=confidence)


class PenaltySearch(Search):
    """Minimise `||x' - x||^2 / distance_scale + c sum_i max(gap_i, -confidence)` over one or many views i.

    x' = (tanh(w) + 1) / 2. For every image c grows tenfold until the first success and is bisected from then on; w
    and Adam's moments restart with every c. At every tenth of the steps an image whose loss is above .9999 of the
    value last looked at goes on to its next c at once (the release sums the loss over the batch, so that one image
    stops or holds up all others). The successful iterate of least L2 is kept.
    """

    # Most rows need no backward pass after the first steps. Skipping it took .72 of the time for `mnist_cnn` on two
    # cores with slots for two batches, .75 with slots for one.
    batches = 2

    def __init__(
        self,
        problem: Problem,
        objective: Objective,
        *,
        confidence: float,
        search_steps: int,
        steps: int,
        lr: float,
        initial_const: float,
        distance_scale: float = 1.0,
    ) -> None:
        checks.number(confidence, name="confidence")
        checks.count(search_steps, name="search_steps")
        checks.count(steps, name="steps")
        checks.number(lr, name="lr", open_low=True)
        checks.number(initial_const, name="initial_const", open_low=True)
        checks.number(distance_scale, name="distance_scale", open_low=True)
        super().__init__(problem)
        self.every = min(10, steps)
        self.objective, self.confidence = objective, confidence
        self.search_steps, self.steps, self.lr = search_steps, steps, lr
        self.initial_const, self.distance_scale = initial_const, distance_scale

    def begin(self, state: State) -> None:
        """Set the first constant; w and Adam's moments are set by the first step."""
        zero = torch.zeros_like(state["x"][:, 0, 0, 0])
        state["const"] = torch.full_like(zero, self.initial_const)
        state["low"] = zero.clone()
        state["high"] = torch.full_like(zero, _NO_UPPER)
        state["best_l2"] = torch.full_like(zero, torch.inf)
        state["trial"] = torch.zeros_like(state["index"])  # constants tried
        state["restart"] = torch.ones_like(state["done"])
        state |= {"iteration": torch.zeros_like(state["index"]), "found": torch.zeros_like(state["done"])}
        state["last_loss"] = zero.clone()
        state["last_best"] = torch.full_like(zero, torch.inf)
        state["sloped"] = torch.ones(len(zero), self.objective.count, dtype=torch.bool, device=zero.device)
        state |= {name: torch.zeros_like(state["x"]) for name in ("w", "first", "second")}

    def step(self, state: State) -> None:
        """Evaluate, keep the best, take one step of Adam, and move on to the next constant where due."""
        self._enter_trial(state)
        x = state["x"]
        x_adv = (state["w"].tanh() + 1) / 2
        look = self.objective.hinge(x_adv, state["label"], self.confidence, state["sloped"])
        short = ~across(look.gap, self.confidence)
        state["sloped"] = short
        l2 = (x_adv - x).square().flatten(1).sum(1)
        # The hinge is counted from -confidence, as in the release: the same gradient, and never negative.
        loss = l2 / self.distance_scale + state["const"] * (look.gap + self.confidence).clamp(min=0).sum(1)

        wanted = ~short.any(1) & ~state["done"] & (~state["found"] | (l2 < state["best_l2"]))
        success, passes = self.objective.confirmed(wanted, x_adv, state["label"], self.confidence)
        state["forwards"] += look.forwards + passes
        state["backwards"] += look.backwards
        state["found"] |= success
        better = success & (l2 < state["best_l2"])
        state["best_l2"] = torch.where(better, l2, state["best_l2"])
        state["best"] = torch.where(per_image(better), x_adv, state["best"])

        slope = 2 * (x_adv - x) / self.distance_scale + per_image(state["const"]) * look.pull
        self._adam(state, slope * (1 - (2 * x_adv - 1).square()) / 2)
        self._leave_trial(state, loss)

    def _enter_trial(self, state: State) -> None:
        """Reset w, Adam and the bookkeeping of the images that begin with a new constant."""
        restart = state["restart"]
        origin = ((state["x"] - 0.5) / 0.50001).atanh()
        state["w"] = torch.where(per_image(restart), origin, state["w"])
        for name in ("first", "second"):
            state[name].masked_fill_(per_image(restart), 0)
        state["iteration"].masked_fill_(restart, 0)
        state["found"].masked_fill_(restart, False)
        state["last_loss"].masked_fill_(restart, torch.inf)
        state["restart"] = torch.zeros_like(restart)

    def _adam(self, state: State, gradient: Tensor) -> None:
        """Take one step of Adam; the bias correction follows the image's own iteration."""
        state["first"].lerp_(gradient, 0.1)
        state["second"].lerp_(gradient.square(), 0.001)
        taken = per_image(state["iteration"] + 1).to(gradient.dtype)
        first = state["first"] / (1 - 0.9**taken)
        second = state["second"] / (1 - 0.999**taken)
        state["w"] -= self.lr * first / (second.sqrt() + 1e-8)

    def _leave_trial(self, state: State, loss: Tensor) -> None:
        """Give the images whose loss has stalled, or that are out of iterations, their next constant."""
        look = state["iteration"] % max(1, self.steps // 10) == 0
        stalled = look & (loss > 0.9999 * state["last_loss"])
        best, last = state["best_l2"], state["last_best"]
        gained = torch.where(best.isfinite(), best < 0.99**2 * last, loss < 0.99 * state["last_loss"])
        state["iteration"] += 1
        leave = (stalled | (state["iteration"] >= self.steps)) & ~state["done"]
        state["falling"] = torch.where(leave, gained & ~stalled, state["falling"])
        state["last_loss"] = torch.where(look, loss, state["last_loss"])
        state["last_best"] = torch.where(look, best, last)

        const, found = state["const"], state["found"]
        state["high"] = torch.where(leave & found, torch.minimum(state["high"], const), state["high"])
        state["low"] = torch.where(leave & ~found, torch.maximum(state["low"], const), state["low"])
        bounded = state["high"] < _NO_UPPER
        following = torch.where(bounded, (state["low"] + state["high"]) / 2, const * 10)
        state["const"] = torch.where(leave, following, const)
        state["trial"] += leave
        state["restart"] = leave
        state["done"] |= state["trial"] >= self.search_steps
        state["at_bound"] = ~bounded | (state["low"] == 0)
