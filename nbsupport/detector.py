"""The classifier of boundary information: it tells adversarial from benign images by their rays."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsupport import checks, intervals
from nbsupport.boundary.profile import Profile, purity
from nbsupport.intervals import Rate
from nbsupport.presets import FEWEST_RAYS
from nbsupport.runtime import full_float32, repeatable, sent

PURITIES = 3
_ROWS = 1024  # profiles scored, or made into inputs, at once
_NUMBERS = {"num_classes": torch.int64, "rays": torch.int64}  # what is stored beside the weights and the history
_NUMBERS |= dict.fromkeys(("unreached", "shift", "scale"), torch.float64)


@dataclass(frozen=True)
class Rates:
    """How a detector errs: benign profiles called adversarial, adversarial ones missed, area under the ROC curve.

    `false_positive_rate.n` is the number of benign profiles, `false_negative_rate.n` of adversarial ones, and
    `auc.n` of both together.
    """

    false_positive_rate: Rate
    false_negative_rate: Rate
    auc: Rate


class BoundaryNet(nn.Module):
    """The network of [1]: two convolutions along the sorted distances, joined by the purities.

    Dropout is a function handed to `forward`, so that its noise has a generator and evaluation has none.

    References
    ----------
    .. [1] He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018, and its released code.
    """

    def __init__(self, rays: int) -> None:
        super().__init__()
        length = ((rays - 8) // 4 + 1 - 8) // 4 + 1
        self.conv1 = nn.Conv1d(1, 8, 8, stride=4)
        self.conv2 = nn.Conv1d(8, 16, 8, stride=4)
        self.linear1 = nn.Linear(16 * length + PURITIES, 32)
        self.linear2 = nn.Linear(32, 2)

    def forward(self, distances: Tensor, purities: Tensor, noise: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        """Return the logits (N, 2) of benign and adversarial from distances (N, K), sorted and scaled, and purities."""
        h = noise(F.relu(self.conv1(distances[:, None])))  # (N, 8, 391) on MNIST
        h = noise(F.relu(self.conv2(h)))  # (N, 16, 96)
        h = torch.cat((h.flatten(1), purities), 1)
        logits: Tensor = self.linear2(noise(F.relu(self.linear1(h))))
        return logits


@dataclass(frozen=True, eq=False)
class Detector:
    """A trained detector with everything that its input depends on.

    Attributes
    ----------
    network
        The trained network, its parameters constant.
    num_classes, rays
        The classes of the classifier and the rays K of a profile, as in training.
    unreached
        The distance that stands for a ray without a boundary, [0, 1] units (RMS).
    shift, scale
        The network sees (distance - shift) / scale.
    history
        The training loss at every step, (steps,) float32.
    """

    network: BoundaryNet
    num_classes: int
    rays: int
    unreached: float
    shift: float
    scale: float
    history: Tensor

    def logits(self, distance: Tensor, purities: Tensor) -> Tensor:
        """Return the logits (N, 2) of benign and adversarial, differentiable in both arguments.

        `distance` (N, K) in [0, 1] units, in any order, inf where a ray meets no boundary; `purities` (N, 3).
        """
        parameter = self.network.linear2.weight
        inputs = _input(distance.to(parameter), self.unreached, self.shift, self.scale)
        logits: Tensor = self.network(inputs, purities.to(parameter))
        return logits

    @torch.no_grad()
    def score(self, profile: Profile) -> Tensor:
        """Return the probability (N,) float64 that each profile is an adversarial one.

        Raises
        ------
        ValueError
            If the profile has another number of rays than those in training, or a distance is NaN.
        """
        _check(profile, name="profile")
        if profile.distance.shape[1] != self.rays:
            raise ValueError(
                f"expected profiles of {self.rays} rays, as in training, got {profile.distance.shape[1]}; "
                "probe along the same directions"
            )
        purities = purity(profile, num_classes=self.num_classes, top=PURITIES)
        parts = zip(profile.distance.split(_ROWS), purities.split(_ROWS), strict=True)
        with repeatable(), full_float32():
            return torch.cat([self.logits(distance, share).double().softmax(1)[:, 1] for distance, share in parts])

    def rates(
        self, benign: Profile, adversarial: Profile, *, threshold: float = 0.5, confidence: float = 0.95
    ) -> Rates:
        """Return the detector's rates on profiles that it was not trained on.

        A profile is called adversarial where its score is at least `threshold`. A rate without a profile is NaN.
        Intervals: Wilson's for the two rates, Newcombe's for the area under the ROC curve.
        """
        checks.number(threshold, name="threshold", high=1.0)
        checks.number(confidence, name="confidence", open_low=True, high=1 - 1e-9)
        negative, positive = (self.score(profile).cpu().numpy() for profile in (benign, adversarial))
        return Rates(
            intervals.wilson(int((negative >= threshold).sum()), negative.size, confidence=confidence),
            intervals.wilson(int((positive < threshold).sum()), positive.size, confidence=confidence),
            intervals.roc_auc(negative, positive, confidence=confidence),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return everything the detector consists of as named CPU tensors, for a safetensors file."""
        named = {f"network.{name}": tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        numbers = {name: torch.tensor(getattr(self, name), dtype=kind) for name, kind in _NUMBERS.items()}
        return named | numbers | {"history": self.history.cpu()}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> Self:
        """Return the detector that `tensors` described, on the CPU.

        Raises
        ------
        ValueError
            If a tensor is missing or belongs to another network.
        """
        try:
            numbers: dict[str, Any] = {name: named[name].item() for name in _NUMBERS}
            network = initialised(numbers["rays"], torch.Generator())  # leaves the global random numbers alone
            network.load_state_dict({name: named[f"network.{name}"] for name in network.state_dict()})
            return cls(network.requires_grad_(False), history=named["history"].cpu(), **numbers)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"expected the tensors of a detector; {error}") from error


def fit(
    benign: Profile,
    adversarial: Profile,
    *,
    num_classes: int,
    unreached: float = 1.0,
    epochs: int | None = None,
    generator: torch.Generator | None = None,
    steps: int | None = None,
    pairs: int = 128,
    lr: float = 1e-3,
    shift: float = 0.0,
    scale: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Detector:
    """Return a detector trained to tell `adversarial` from `benign` profiles.

    The input is an image's K distances, sorted, inf replaced by `unreached`, as (distance - shift) / scale, and its
    first three purities. Adam minimises the cross-entropy of batches with as many benign as adversarial profiles.

    Parameters
    ----------
    benign, adversarial
        Profiles of correctly classified images and of successful adversarial examples, filtered by the caller.
        Where both have the same number of rows, rows i are the two versions of one image and enter the same batch.
        Otherwise each side is visited in its own order, and the shorter one more often.
    num_classes
        The number of the classifier's classes.
    unreached
        The distance that stands for a ray without a boundary, [0, 1] units (RMS); 1 in [1]_.
    epochs, steps
        How long to train: so many visits of the longer side, or so many batches. Both None: 2000 steps ([1]_, MNIST).
    generator
        CPU generator of the initial weights, the order and the dropout; None: torch's global one. The draws happen
        on the CPU, so that they are the same on every device.
    pairs
        Profiles of each side in a batch, at most as many as there are; 128 on MNIST and 150 on CIFAR-10 in [1]_.
    lr
        Adam's step size.
    shift, scale
        Put the distances into the network's range; 0 and 1 on MNIST, 16/255 and .5 on CIFAR-10 in [1]_.
    progress
        Called with the steps done and the steps in all, about a hundred times.

    Returns
    -------
    Detector
        On the profiles' device.

    Raises
    ------
    ValueError
        If a side is empty, has fewer than 36 rays, another number of rays than the other, or a NaN distance; if both
        `epochs` and `steps` are given; if a number is out of range.

    References
    ----------
    .. [1] He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018, and its released code.
    """
    for name, profile in (("benign", benign), ("adversarial", adversarial)):
        _check(profile, name=name)
        if len(profile) == 0:
            raise ValueError(f"expected at least one {name} profile, got none; give the attack more images")
    rays = benign.distance.shape[1]
    if adversarial.distance.shape[1] != rays:
        raise ValueError(
            f"expected as many rays on both sides, got {rays} benign and {adversarial.distance.shape[1]} adversarial; "
            "probe both along the same directions"
        )
    checks.count(num_classes, name="num_classes", low=2)
    checks.count(pairs, name="pairs")
    checks.number(unreached, name="unreached")
    checks.number(lr, name="lr", open_low=True)
    checks.number(shift, name="shift", low=-math.inf)
    checks.number(scale, name="scale", open_low=True)
    longer = max(len(benign), len(adversarial))
    rows = min(pairs, longer)
    if epochs is not None:
        if steps is not None:
            raise ValueError(f"expected epochs or steps, got both ({epochs!r} and {steps!r}); leave one out")
        checks.count(epochs, name="epochs")
        steps = epochs * math.ceil(longer / rows)
    steps = 2000 if steps is None else steps
    checks.count(steps, name="steps")

    device = benign.distance.device
    network = initialised(rays, generator).to(device)
    order = orders(len(benign), steps, rows, generator)
    paired = len(benign) == len(adversarial)
    other = order if paired else orders(len(adversarial), steps, rows, generator)
    order = torch.cat((order, other + len(benign)), 1).to(device)  # (steps, 2 * rows), the rows of both sides
    sides = benign, adversarial.to(device)
    parts = [part for side in sides for part in side.distance.split(_ROWS)]  # a sort takes three times its input
    distances = torch.cat([_input(part.float(), unreached, shift, scale) for part in parts])
    purities = torch.cat([purity(side, num_classes=num_classes, top=PURITIES) for side in sides]).float()
    labels = torch.arange(2, device=device).repeat_interleave(rows)
    losses = torch.empty(steps, device=device)
    optimiser = torch.optim.Adam(network.parameters(), lr=lr)
    noise = partial(dropout, generator=generator)
    with torch.enable_grad(), repeatable(), full_float32():
        for step in range(steps):
            batch = order[step]  # benign first
            loss = F.cross_entropy(network(distances[batch], purities[batch], noise), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[step] = loss.detach()
            if progress is not None and ((step + 1) % max(steps // 100, 1) == 0 or step + 1 == steps):
                progress(step + 1, steps)
    return Detector(network.requires_grad_(False), num_classes, rays, unreached, shift, scale, losses.cpu())


def _check(profile: Profile, *, name: str) -> None:
    distance = profile.distance
    if distance.ndim != 2 or distance.shape[1] < FEWEST_RAYS:
        raise ValueError(
            f"expected {name} distances of shape (N, K) with K at least {FEWEST_RAYS}, got {tuple(distance.shape)}; "
            "probe more directions, or their negations too"
        )
    if bool(distance.isnan().any()):
        raise ValueError(f"expected {name} distances without NaN (inf where a ray meets no boundary); probe again")


def _input(distance: Tensor, unreached: float, shift: float, scale: float) -> Tensor:
    """Return `distance` (N, K) as the network sees it: without inf, sorted, scaled."""
    return (distance.masked_fill(distance.isinf(), unreached).sort(1).values - shift) / scale


def initialised(rays: int, generator: torch.Generator | None) -> BoundaryNet:
    """Return a network with torch's usual initial weights, U(-1, 1) / sqrt(inputs of a unit), from `generator`."""
    with torch.device("meta"):
        network = BoundaryNet(rays)
    network.to_empty(device="cpu")
    for layer in (network.conv1, network.conv2, network.linear1, network.linear2):
        bound = layer.weight[0].numel() ** -0.5
        for parameter in layer.parameters():
            parameter.data.uniform_(-bound, bound, generator=generator)
    return network


def dropout(h: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return `h` with every element either doubled or 0, at even odds.

    Eight fair coins come from each random byte, drawn on the CPU: twenty times as fast as torch's dropout there,
    the same on every device, and the global random numbers stay untouched.
    """
    count = h.numel()
    drawn = sent(torch.randint(256, (math.ceil(count / 8), 1), dtype=torch.uint8, generator=generator), h.device)
    coins = (drawn >> torch.arange(8, dtype=torch.uint8, device=h.device)) & 1
    return 2 * h * coins.flatten()[:count].view(h.shape)


def orders(count: int, steps: int, rows: int, generator: torch.Generator | None) -> Tensor:
    """Return the rows (steps, rows) of `count` to visit: one random permutation after another."""
    cycles = math.ceil(steps * rows / count)
    return torch.rand(cycles, count, generator=generator).argsort(1).flatten()[: steps * rows].view(steps, rows)
