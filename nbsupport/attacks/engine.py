"""What all attacks share: the problem, what is pushed below zero, the search as jobs of the pool, and the result.

The margin of label y is Z_y - max_{j != y} Z_j. An untargeted attack lowers the margin of the true label, a targeted
one raises the margin of the target. All margins here are negated where an attack is targeted: every search descends.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Self

import torch
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.pool import State, drain
from nbsupport.record import Record
from nbsupport.runtime import PRECISIONS, Precision, device_of, laid_out, reduced_precision, rows_per_batch

Weigh = Callable[[Tensor], Tensor]  # margins -> weights of the same shape

# A search asks for a little more than the final check, so that a different batch, which rounds differently, agrees:
# this share of the spread of an image's logits.
ROUNDING = 1e-5
_BISECTIONS = 10
_NOWHERE = torch.zeros((), dtype=torch.bool)


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
    falling: Tensor = _NOWHERE
    at_bound: Tensor = _NOWHERE

    def __post_init__(self) -> None:
        for name in ("falling", "at_bound"):
            evidence = getattr(self, name).to(self.success.device).expand_as(self.success)
            object.__setattr__(self, name, evidence.contiguous())


@dataclass(frozen=True)
class Problem:
    """Images to attack, on the model's device, with what the model says of them before the attack."""

    model: nn.Module
    x: Tensor  # (N, C, H, W)
    label: Tensor  # (N,): the true label or, when targeted, the target
    targeted: bool
    correct: Tensor  # (N,) bool

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, y: Tensor, targets: Tensor | None) -> Self:
        """Check the arguments, evaluate the clean images, and return the problem; `model` must be frozen."""
        checks.images(x)
        checks.labels(y, count=len(x))
        device = device_of(model, x)
        x, y = x.detach().to(device), y.to(device)
        batches = x.split(rows_per_batch(model, tuple(x.shape[1:]), device))
        with torch.no_grad():
            outputs = [model(laid_out(model, batch)) for batch in batches]
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
        z: Tensor = self.model(laid_out(self.model, x))
        return z.float()

    def rows(self, views: int = 1) -> int:
        """Return how many images share a batch when each brings `views` rows."""
        return max(1, rows_per_batch(self.model, tuple(self.x.shape[1:]), self.x.device) // views)


def margins(logits: Tensor, label: Tensor, *, targeted: bool, temperature: Tensor | None = None) -> Tensor:
    """Return the margins (N,) of `label` (N,) in `logits` (N, L), negated when `targeted`.

    With a `temperature` (N,), in logits, they are smooth: with a soft maximum over the rivals. At temperature 1 their
    gradient is that of the cross-entropy without its factor 1 - p_y, which is positive but underflows in float32 where
    the model is sure.
    """
    own = logits.gather(1, label[:, None]).squeeze(1)
    rivals = logits.scatter(1, label[:, None], -torch.inf)
    rival = rivals.amax(1) if temperature is None else temperature * (rivals / temperature[:, None]).logsumexp(1)
    return rival - own if targeted else own - rival


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
        checks.choice(self.precision, PRECISIONS, name="precision")

    @property
    def count(self) -> int:
        """The number of views."""
        return 1 if self.views is None else len(self.views)

    def margins(self, x: Tensor, label: Tensor, *, slack: float = 0.0) -> Tensor:
        """Return the margins (N, V) of `x` (N, C, H, W) in float32, plus `slack` times the spread of the logits."""
        return self._look(*self._moved(x, label), slack=slack, precision="float32").view(-1, self.count)

    def confirmed(self, found: Tensor, x: Tensor, label: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
        """Return which of the images `found` (N,) are across by `confidence` in float32 too, and the passes (N,) spent.

        A search in float32 has looked already. On a CPU only the images found are looked at again, on a GPU all.
        """
        if self.precision == "float32":
            return found, torch.zeros_like(label)
        if not _picks_rows(x):
            across_too = across(self.margins(x, label, slack=ROUNDING), confidence).all(1)
            return found & across_too, torch.full_like(label, self.count)
        confirmed = found.clone()
        if found.any():
            confirmed[found] = across(self.margins(x[found], label[found], slack=ROUNDING), confidence).all(1)
        return confirmed, found * self.count

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

    def ascend(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return margins (N,) and the direction (N, C, H, W) that raises the cross-entropy (targeted: lowers it)."""
        temperature = torch.ones(len(x), device=x.device)
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
        (gradient,) = torch.autograd.grad(descended, batch, weigh(margin.detach()))
        return margin.detach(), gradient

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
        """Return which images are finished (rows,)."""
        return state["done"]

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
        """Attack all images that were classified correctly, and re-check each in float32 in all views."""
        device, views = self.problem.x.device, self.objective.count
        rows = self.problem.rows() * (self.batches if device.type == "cpu" else 1)
        drain(self, len(self.attacked), slots=max(1, rows // views), every=self.every, device=device)
        problem, x_adv = self.problem, self.kept["best"]
        success, rms = torch.zeros_like(problem.correct), torch.zeros(len(problem.x), device=device)
        # Batch by batch: what is held beside the images and the result does not grow with their number.
        for index in in_batches(self.attacked, problem.rows(views)):
            margin = self.objective.margins(x_adv[index], problem.label[index])
            success[index] = across(margin, self.confidence).all(1)
            self.kept["forwards"][index] += views
        for index in in_batches(torch.arange(len(success), device=device), problem.rows()):
            kept = success[index] | (self.keep_failures & problem.correct[index])
            x_adv[index] = torch.where(per_image(kept), x_adv[index], problem.x[index])
            rms[index] = (x_adv[index] - problem.x[index]).square().flatten(1).mean(1).sqrt()
        evidence = (self.kept[name] for name in ("forwards", "backwards", "falling", "at_bound"))
        return Attack(x_adv, success, problem.correct, rms, *evidence)


def in_batches(index: Tensor, rows: int) -> tuple[Tensor, ...]:
    """Return `index` (N,) in parts of at most `rows`; none where it is empty."""
    return index.split(rows) if len(index) else ()


def per_image(values: Tensor) -> Tensor:
    """Return (N,) as (N, 1, 1, 1), to be multiplied with images."""
    return values[:, None, None, None]


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
    succeeded, the result of the first attack stands.

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
        Without an attack, or where they differ in the number of images, in their shape or in `correct`.

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
        if not torch.equal(other.correct, first.correct):
            raise ValueError(
                "expected attacks on the same images and model, got results that disagree on which images were "
                "classified correctly; attack the same images, with the same targets, with each"
            )
    rms = torch.stack([torch.where(attack.success, attack.rms, torch.inf) for attack in attacks])  # (A, N)
    chosen, image = rms.argmin(0), torch.arange(rms.shape[1], device=rms.device)
    stacked = {name: torch.stack([getattr(attack, name) for attack in attacks]) for name in first.tensors()}
    best = {name: values[chosen, image] for name, values in stacked.items()}
    return Attack(**{**best, **{name: stacked[name].sum(0) for name in ("forwards", "backwards")}})
