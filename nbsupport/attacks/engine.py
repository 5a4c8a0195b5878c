"""What all attacks share: the problem, what is pushed below zero, the search as jobs of the pool, and the result.

The margin of label y is Z_y - max_{j != y} Z_j. An untargeted attack lowers the margin of the true label, a targeted
one raises the margin of the target. All margins here are negated where an attack is targeted: every search descends.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.labels import margins
from nbsupport.pool import State, drain
from nbsupport.record import Record
from nbsupport.runtime import PRECISIONS, Precision, device_of, forward, reduced_precision, rows_per_batch, usable

Weigh = Callable[[Tensor], Tensor]  # margins -> weights of the same shape

# A search asks for a little more than the final check, so that a different batch, which rounds differently, agrees:
# this share of the spread of an image's logits.
ROUNDING = 1e-5
_BISECTIONS = 10
_STRETCHES = (1.001, 1.01, 1.1, 2.0)  # of a perturbation that the last check denies by rounding
# Cosine of an image's gradients in bfloat16 and in float32 above which the search may run in bfloat16. What mixed
# precision loses is the direction: with 200 steps of ddn the RMS was larger by .1 to .3 % where the cosine was .996
# (resnet20), .6 % at .989, 3.1 % at .948, and up to 30-fold where it was negative, whatever the error of the margin.
_ALIGNED = 0.99
# What is searched in bfloat16 beside a part in float32 must fill at least 1 / _PARTS of a batch, or two searches take
# longer than one. `ddn_l2`, as a ratio to float32: `digits_cnn` 1.33 with 43 images of 48 in bfloat16, .91 with 173 of
# 192; `mnist_cnn` 1.16 with 11 of 12, .86 with 22 of 24.
_PARTS = 8
# Of the images: more than this, and more than one, cannot be ties within rounding, on which attacks of other batches
# or precisions see another label.
_TIES = 0.01


@dataclass(frozen=True, eq=False)
class Attack(Record):
    """The outcome of an attack, one entry an image.

    Attributes
    ----------
    x_adv : (N, C, H, W) float32 in [0, 1]
        The adversarial image. Where a minimum-norm attack failed, and where `correct` is False, the original;
        where FGSM or PGD failed, the perturbed image.
    success : (N,) bool
        Re-checked in float32 on the returned image: the margin is at most -confidence in every view, and below 0.
    correct : (N,) bool
        Whether the label was right before the attack (targeted: was not the target yet). Others are not attacked.
    rms : (N,) float32
        Root mean square of `x_adv - x` over pixels and channels, in [0, 1] units; never NaN.
    forwards, backwards : (N,) int64
        Network evaluations spent on the image, every one counted: the check before, the search (up to the step at
        which finished images leave the batch), the check after.
    falling : (N,) bool
        The search ended while it was still gaining: the last tenth of its steps improved its result by more than 1 %
        (minimum norm: of the distance; PGD: of the margin before the attack).
    at_bound : (N,) bool
        The constant of a penalty search was only ever too large or only ever too small: all constants tried
        succeeded, so that a smaller one may distort less, or none did.

    Notes
    -----
    `falling` and `at_bound` are evidence for `failure_indicators`; False where the attack has nothing of the kind.
    """

    x_adv: Tensor
    success: Tensor
    correct: Tensor
    rms: Tensor
    forwards: Tensor
    backwards: Tensor
    falling: Tensor
    at_bound: Tensor


@dataclass(frozen=True)
class Problem:
    """Images to attack, on the model's device, with what the model says of them before the attack."""

    model: nn.Module
    x: Tensor  # (N, C, H, W)
    label: Tensor  # (N,): the true label or, when targeted, the target
    targeted: bool
    correct: Tensor  # (N,) bool
    bad_logits: Tensor = field(init=False)  # () int64: that were not finite, so far
    bad_gradients: Tensor = field(init=False)  # () int64: of images whose margin was finite

    def __post_init__(self) -> None:
        for name in ("bad_logits", "bad_gradients"):
            object.__setattr__(self, name, torch.zeros((), dtype=torch.int64, device=self.x.device))

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, y: Tensor, targets: Tensor | None) -> Self:
        """Check the arguments, evaluate the clean images, and return the problem; `model` must be frozen."""
        checks.images(x)
        checks.labels(y, count=len(x))
        device = device_of(model, x)
        x, y = x.detach().to(device), y.to(device)
        batches = x.split(rows_per_batch(model, tuple(x.shape[1:]), device))
        with torch.no_grad(), checks.forward_pass(model, tuple(x.shape[1:])):
            outputs = [forward(model, batch) for batch in batches]
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

    def logits(self, x: Tensor) -> Tensor:
        """Return the model's logits (R, L) of a batch (R, C, H, W)."""
        z = forward(self.model, x).float()
        self.bad_logits.add_(_not_finite(z.detach()).count_nonzero())
        return z

    def require_finite(self) -> None:
        """Raise ValueError if a logit or gradient of the search was not finite: one look, it makes the host wait."""
        logits, gradients = torch.stack((self.bad_logits, self.bad_gradients)).tolist()
        checks.finite_gradients(gradients)  # first: they lead to images that are NaN, and these to such logits
        checks.finite_logits(logits)

    def rows(self, views: int = 1) -> int:
        """Return how many images share a batch when each brings `views` rows."""
        return max(1, rows_per_batch(self.model, tuple(self.x.shape[1:]), self.x.device) // views)


def _not_finite(x: Tensor) -> Tensor:
    """Return `x` - `x`: 0, but NaN where `x` is NaN or infinite. `isfinite` is five kernels on a CPU, this is one."""
    return x - x


def _picks_rows(x: Tensor) -> bool:
    """Return whether to evaluate chosen rows only: on a GPU the choice would make the host wait at every step."""
    return x.device.type == "cpu"


def across(margin: Tensor, confidence: float = 0.0) -> Tensor:
    """Return which margins lie beyond the boundary: at most -confidence, and strictly below 0."""
    return (margin <= -confidence) & (margin < 0)


@dataclass(frozen=True)
class Descent:
    """One look at N images: cautious margins (N, V), the gradient (N, C, H, W) to descend, passes spent (N,) int64."""

    margin: Tensor
    gradient: Tensor
    forwards: Tensor
    backwards: Tensor


@dataclass(frozen=True)
class Objective:
    """The margins of a problem's images, in one or many views."""

    problem: Problem
    views: Tensor | None = None  # (V, C, H, W), added to the image; None: the image itself
    clip: bool = True  # clip the views to [0, 1] before the network
    precision: Precision = "float32"  # of the search; what it finds is confirmed in float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", usable(self.precision, self.problem.x.device))

    @property
    def count(self) -> int:
        """The number of views."""
        return 1 if self.views is None else len(self.views)

    def margins(self, x: Tensor, label: Tensor, *, slack: float = 0.0) -> Tensor:
        """Return the margins (N, V) of `x` (N, C, H, W) in float32, plus `slack` times the spread of the logits."""
        return self._look(*self._moved(x, label), slack=slack, precision="float32").view(-1, self.count)

    def resolved(self, x: Tensor, label: Tensor, error: float) -> Tensor:
        """Return at which images of `x` (N, C, H, W) reduced precision may search (N,).

        There the gradient of the margin points where float32's does, and the logits err, in comparison to that of
        `label`, by less than `error` margins (RMS over the classes).
        """
        seen = []
        for precision in PRECISIONS:
            batch = x.detach().requires_grad_()
            with torch.enable_grad(), reduced_precision(precision, x.device):
                logits = self.problem.logits(batch)
            checks.differentiable(logits)
            margin = margins(logits, label, targeted=self.problem.targeted)
            (gradient,) = torch.autograd.grad(margin.sum(), batch)
            seen.append((logits.detach(), margin.detach(), gradient.flatten(1)))
        (exact, margin, gradient), (near, _, reduced) = seen
        apart = near - exact
        apart = (apart - apart.gather(1, label[:, None])).square().sum(1).div(exact.shape[1] - 1).sqrt()
        aligned = torch.nn.functional.cosine_similarity(gradient, reduced) > _ALIGNED
        return aligned & (apart < error * margin.abs())

    def by_precision(self, index: Tensor, error: float) -> list[tuple["Objective", Tensor]]:
        """Return the images `index` in parts, each with the objective in the precision that serves it (`resolved`)."""
        if self.precision == "float32" or not len(index):
            return [(self, index)]
        x, label, rows = self.problem.x, self.problem.label, self.problem.rows()
        able = torch.cat([self.resolved(x[part], label[part], error) for part in in_batches(index, rows)])
        if not able.all() and able.sum() < self.problem.rows(self.count) / _PARTS:
            able.fill_(False)
        return [(self, index[able]), (replace(self, precision="float32"), index[~able])]

    def exact(self, rows: Tensor, x: Tensor, label: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margins (N, V), in float32 for the images `rows` (N,), and the passes (N,) spent on that.

        `margin` (N, V) is what the search saw; in float32 it is right already. On a CPU only `rows` are looked at
        again, on a GPU all images.
        """
        if self.precision == "float32":
            return margin, torch.zeros_like(label)
        if not _picks_rows(x):
            return self.margins(x, label, slack=ROUNDING), torch.full_like(label, self.count)
        if rows.any():
            margin = margin.index_put((rows,), self.margins(x[rows], label[rows], slack=ROUNDING))
        return margin, rows * self.count

    def hinge(self, x: Tensor, label: Tensor, confidence: float, expected: Tensor) -> Descent:
        """Descend the sum of max(margin, -confidence) over the views.

        A view that is across by `confidence` has no slope and needs no backward pass. Of many views, on a CPU, only
        those `expected` (N, V) to have a slope build a graph, and those that turn out to have one are caught up. With
        one view, and on a GPU, all rows build a graph.
        """
        moved, labels = self._moved(x, label)

        def slope(margin: Tensor) -> Tensor:
            return (~across(margin, confidence)).to(margin.dtype)  # a tie is not across: it pulls too

        forwards, backwards = torch.ones_like(labels), torch.ones_like(labels)
        # With one view most rows have a slope, and two small batches are slower than one.
        if self.count == 1 or not _picks_rows(x):
            return self._descent(*self._gradient(moved, labels, slope), forwards, backwards)
        margin, gradient = moved.new_zeros(len(moved)), torch.zeros_like(moved)
        with_graph, without = (mask.flatten().nonzero().squeeze(1) for mask in (expected, ~expected))
        late = without
        if len(without):
            margin[without] = self._look(moved[without], labels[without])
            late = without[~across(margin[without], confidence)]
        for rows in (with_graph, late):
            if len(rows):
                margin[rows], gradient[rows] = self._gradient(moved[rows], labels[rows], slope)
        forwards[late] = 2
        backwards[without] = 0
        backwards[late] = 1
        return self._descent(margin, gradient, forwards, backwards)

    def worst(self, x: Tensor, label: Tensor, weigh: Weigh, *, count: int, temperature: Tensor) -> Descent:
        """Descend the smooth margins, at `temperature` (N,), of the `count` views of largest weight.

        `weigh` is given the margins (N, V) of all views. A pass over all views without a graph and one over the chosen
        ones with a graph cost V + 3 count instead of 3 V.
        """
        moved, labels = self._moved(x, label)
        temperatures = temperature.repeat_interleave(self.count)
        if 1.5 * count >= self.count:
            margin, gradient = self._gradient(
                moved, labels, lambda m: weigh(m.view(len(x), -1)).flatten(), temperatures
            )
            once = torch.ones_like(labels)
            return self._descent(margin, gradient, once, once)
        margin = self._look(moved, labels).view(-1, self.count)
        weights, chosen = weigh(margin).topk(count, dim=1)
        rows = (chosen + self.count * torch.arange(len(x), device=x.device)[:, None]).flatten()
        _, gradient = self._gradient(moved[rows], labels[rows], lambda _: weights.flatten(), temperatures[rows])
        spent = torch.full_like(label, count)
        return Descent(margin, gradient.view(-1, count, *x.shape[1:]).sum(1), self.count + spent, spent)

    def ascend(self, x: Tensor, label: Tensor, *, smooth: bool = True) -> tuple[Tensor, Tensor]:
        """Return margins (N,) and the direction (N, C, H, W) that raises the cross-entropy (targeted: lowers it).

        Without `smooth` it is the direction that lowers the margin, which knows the strongest rival alone.
        """
        temperature = torch.ones(len(x), device=x.device) if smooth else None
        margin, gradient = self._gradient(x, label, torch.ones_like, temperature, slack=0.0)
        return margin, -gradient

    def _moved(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return all views of `x` (N, C, H, W) before clipping, as rows (N * V, C, H, W), and their labels."""
        moved = x[:, None] if self.views is None else x[:, None] + self.views
        return moved.flatten(0, 1), label.repeat_interleave(self.count)

    def _descent(self, margin: Tensor, gradient: Tensor, *passes: Tensor) -> Descent:
        """Return what was found for views, one a row, by image."""
        rows = -1, self.count
        by_image = gradient.view(*rows, *gradient.shape[1:]).sum(1)
        return Descent(margin.view(rows), by_image, *(spent.view(rows).sum(1) for spent in passes))

    def _look(
        self, moved: Tensor, label: Tensor, *, slack: float = ROUNDING, precision: Precision | None = None
    ) -> Tensor:
        """Return the margins (R,) of views (R, C, H, W) without a graph; `precision` None: that of the search."""
        with torch.no_grad(), reduced_precision(precision or self.precision, moved.device):
            return self._margin(self._logits(moved), label, slack)

    def _gradient(
        self, moved: Tensor, label: Tensor, weigh: Weigh, temperature: Tensor | None = None, *, slack: float = ROUNDING
    ) -> tuple[Tensor, Tensor]:
        """Return the margins (R,) of views (R, C, H, W), and the gradients (R, C, H, W) of these, times their weights.

        With a `temperature` (R,) the gradients are those of the smooth margins.
        """
        batch = moved.detach().requires_grad_()
        with torch.enable_grad(), reduced_precision(self.precision, batch.device):
            logits = self._logits(batch)
            margin = descended = self._margin(logits, label, slack)
            if temperature is not None:
                descended = margins(logits, label, targeted=self.problem.targeted, temperature=temperature)
        checks.differentiable(descended)
        margin = margin.detach()
        weight = weigh(margin)
        (gradient,) = torch.autograd.grad(descended, batch, weight)
        # A sum is finite only where all its terms are, and reads the gradients once.
        bad = (_not_finite(gradient.sum((1, 2, 3))) != 0) & (_not_finite(margin * weight) == 0)
        self.problem.bad_gradients.add_(bad.sum())
        return margin, gradient

    def _logits(self, moved: Tensor) -> Tensor:
        """Return the logits of views (R, C, H, W), clipped inside the graph: a clipped pixel does not move."""
        return self.problem.logits(moved.clamp(0, 1) if self.clip and self.views is not None else moved)

    def _margin(self, logits: Tensor, label: Tensor, slack: float) -> Tensor:
        """Return the margins (R,) plus `slack` times the spread of the logits."""
        fixed = logits.detach()
        return margins(logits, label, targeted=self.problem.targeted) + slack * (fixed.amax(1) - fixed.amin(1))


@dataclass(eq=False)
class Search(ABC):
    """The images of a problem as jobs of the pool; a subclass says how one step changes the state.

    A state holds, for each slot: `index` (which image), `x`, `label`, `done`, of the result `best` (the image to
    return), `forwards`, `backwards`, `falling` and `at_bound`, and what the subclass adds in `begin`.
    """

    objective: Objective
    _: KW_ONLY
    confidence: float = 0.0  # by which every view must be across, in logits
    every: int = 10  # steps between two looks at who is finished
    batches: int = 1  # slots, in batches of the model, on a CPU
    keep_failures: bool = False  # return what a failed attack made of an image, not the image itself
    tolerance: float = math.inf  # of the logits' error in reduced precision, in margins: beyond it, float32 searches

    def __post_init__(self) -> None:
        self.problem = problem = self.objective.problem
        self.attacked = problem.correct.nonzero().squeeze(1)
        self.kept = {"best": problem.x.clone(), "forwards": torch.ones_like(problem.label)}  # the clean pass
        self.kept |= {"backwards": torch.zeros_like(problem.label)}
        self.kept |= {name: torch.zeros_like(problem.correct) for name in ("falling", "at_bound")}

    @abstractmethod
    def begin(self, state: State) -> None:
        """Add the solver's own entries to a fresh `state`."""

    @abstractmethod
    def step(self, state: State) -> None:
        """Advance every image by one step, in place; an image that is done keeps its result."""

    def done(self, state: State) -> Tensor:
        """Return which images are finished (rows,): all, once a logit or gradient was not finite (`attack` raises)."""
        return state["done"] | (self.problem.bad_logits + self.problem.bad_gradients > 0)

    def start(self, index: Tensor) -> State:
        """Return the state of the waiting images `index`, counted among those attacked."""
        image = self.attacked[index]
        state = {"index": image, "x": self.problem.x[image], "label": self.problem.label[image]}
        state |= {name: values[image] for name, values in self.kept.items()}
        state["done"] = torch.zeros_like(image, dtype=torch.bool)
        self.begin(state)
        return state

    def finish(self, state: State) -> None:
        """Keep the results of finished images."""
        for name, values in self.kept.items():
            values[state["index"]] = state[name]

    def attack(self) -> Attack:
        """Attack all images that were classified correctly, and re-check each in float32 in all views.

        Raises ValueError for a model whose logits or gradients were not finite somewhere on the way: such a model would
        look robust.
        """
        device, views, attacked = self.problem.x.device, self.objective.count, self.attacked
        rows = self.problem.rows() * (self.batches if device.type == "cpu" else 1)
        if self.objective.precision == "mixed":
            for name in ("forwards", "backwards"):
                self.kept[name][attacked] += len(PRECISIONS)  # to tell which images it serves
        for objective, part in self.objective.by_precision(attacked, self.tolerance):
            self.objective, self.attacked = objective, part
            drain(self, len(self.attacked), slots=max(1, rows // views), every=self.every, device=device)
        problem, x_adv = self.problem, self.kept["best"]
        success, rms = torch.zeros_like(problem.correct), torch.zeros(len(problem.x), device=device)
        # Batch by batch: what is held beside the images and the result does not grow with their number.
        for index in in_batches(attacked, problem.rows(views)):
            success[index] = self._succeeds(x_adv[index], index)
        if not self.keep_failures:
            self._lengthen(x_adv, success)
        problem.require_finite()
        for index in in_batches(torch.arange(len(success), device=device), problem.rows()):
            kept = success[index] | (self.keep_failures & problem.correct[index])
            x_adv[index] = torch.where(per_image(kept), x_adv[index], problem.x[index])
            rms[index] = (x_adv[index] - problem.x[index]).square().flatten(1).mean(1).sqrt()
        evidence = (self.kept[name] for name in ("forwards", "backwards", "falling", "at_bound"))
        return Attack(x_adv, success, problem.correct, rms, *evidence)

    def _succeeds(self, x_adv: Tensor, index: Tensor) -> Tensor:
        """Return whether `x_adv` (n, C, H, W) are adversarial to the images `index` (n,), in float32 in all views."""
        margin = self.objective.margins(x_adv, self.problem.label[index])
        self.kept["forwards"][index] += self.objective.count
        return across(margin, self.confidence).all(1)

    def _lengthen(self, x_adv: Tensor, success: Tensor) -> None:
        """Lengthen, in place, what was found so near to the boundary that a batch of another size denies it."""
        x = self.problem.x
        moved = (x_adv != x).flatten(1).any(1)
        for index in in_batches((moved & ~success).nonzero().squeeze(1), self.problem.rows(self.objective.count)):
            delta = x_adv[index] - x[index]
            for stretch in _STRETCHES:
                longer = (x[index] + stretch * delta).clamp(0, 1)
                better = self._succeeds(longer, index) & ~success[index]
                x_adv[index] = torch.where(per_image(better), longer, x_adv[index])
                success[index] |= better


def in_batches(index: Tensor, rows: int) -> tuple[Tensor, ...]:
    """Return `index` (N,) in parts of at most `rows`; none where it is empty."""
    return index.split(rows) if len(index) else ()


def per_image(values: Tensor) -> Tensor:
    """Return (N,) as (N, 1, 1, 1), to be multiplied with images."""
    return values[:, None, None, None]


def length(x: Tensor) -> Tensor:
    """Return the L2 norms (N,) of images, never 0."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm.clamp(min=1e-12)


def shorten(state: State, objective: Objective, confidence: float) -> Tensor:
    """Shorten the perturbations of `best` by bisection while they succeed; return the shares (N,) that are left.

    In float32, and so that an image nearer to the boundary than the search could settle is measured too.
    """
    x, delta = state["x"], state["best"] - state["x"]
    low, high = x.new_zeros(len(x)), x.new_ones(len(x))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        margin = objective.margins(x + per_image(middle) * delta, state["label"], slack=ROUNDING)
        success = across(margin, confidence).all(1)
        low, high = torch.where(success, low, middle), torch.where(success, middle, high)
    state["best"] = torch.where(per_image(high < 1), x + per_image(high) * delta, state["best"])
    state["forwards"] += _BISECTIONS * objective.count
    return high


def best_of(attacks: Sequence[Attack]) -> Attack:
    """Return, for every image, the successful result of least RMS among several attacks on the same images.

    Its RMS is an upper bound of the distance to the boundary that no single attack's weakness can spoil. Where none
    succeeded, the result of the first attack stands. An image is correct only where all attacks say so: one whose
    logits tie within rounding can be right in one batch and wrong in another. Where they disagree, it counts as not
    attacked: the image itself, RMS 0, no success.

    Parameters
    ----------
    attacks : sequence of Attack
        Each on the same N images, in the same order, on one device.

    Returns
    -------
    Attack
        Passes are summed over all attacks, as all were made to find the best; evidence is the chosen attack's.

    Raises
    ------
    ValueError
        Without an attack, where they differ in the number of images or in their shape, or where they disagree in
        `correct` on more than one image and more than 1 % of them.

    References
    ----------
    Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705: report the per-image minimum.
    """
    if not attacks:
        raise ValueError("expected at least one attack, got none; pass the results to choose from")
    first = attacks[0]
    for other in attacks[1:]:
        if other.x_adv.shape != first.x_adv.shape:
            raise ValueError(
                f"expected attacks on the same images, got {tuple(first.x_adv.shape)} and {tuple(other.x_adv.shape)}; "
                "attack the same images with each"
            )
    several = torch.stack([attack.correct for attack in attacks])  # (A, N)
    correct, disputed = several.all(0), several.any(0) & ~several.all(0)
    if (count := int(disputed.sum())) > max(1, _TIES * len(disputed)):
        raise ValueError(
            f"expected attacks on the same images and model, got results that disagree on {count} of {len(disputed)} "
            "images whether they were classified correctly; attack the same images, with the same targets, with each"
        )
    rms = torch.stack([torch.where(attack.success, attack.rms, torch.inf) for attack in attacks])  # (A, N)
    chosen, image = rms.argmin(0), torch.arange(rms.shape[1], device=rms.device)
    stacked = {name: torch.stack([getattr(attack, name) for attack in attacks]) for name in first.tensors()}
    best = {name: values[chosen, image] for name, values in stacked.items()}
    best |= {name: stacked[name].sum(0) for name in ("forwards", "backwards")}
    best |= {name: best[name] & ~disputed for name in ("success", "falling", "at_bound")}
    best |= {"correct": correct, "rms": best["rms"].masked_fill(disputed, 0)}
    # An attack that found the image wrong before it began returned the image.
    original = stacked["x_adv"][several.int().argmin(0), image]
    best["x_adv"] = torch.where(per_image(disputed), original, best["x_adv"])
    return Attack(**best)
