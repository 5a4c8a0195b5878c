"""The classifier of boundary information: it tells adversarial from benign images by their rays."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from nbsupport import checks, intervals
from nbsupport.boundary.profile import Profile, purity
from nbsupport.intervals import Rate
from nbsupport.presets import FEWEST_RAYS
from nbsupport.runtime import full_float32, repeatable, sent

PURITIES = 3
UNREACHED = 1.0  # by default, the distance that stands for a ray without a boundary, [0, 1] units (RMS)
_FEW = 512  # rays of which one thread trains as fast as several
_ROWS = 1024  # profiles scored, or made into inputs, at once
_NUMBERS = {"num_classes": torch.int64, "rays": torch.int64}  # what is stored beside the weights and the history
_NUMBERS |= {**dict.fromkeys(("unreached", "shift", "scale"), torch.float64), "sees_purity": torch.bool}


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

    def forward(self, distances: Tensor, purities: Tensor) -> Tensor:
        """Return the logits (N, 2) of benign and adversarial from distances (N, K), sorted and scaled, and purities."""
        alone: dict[str, Tensor] = {name: parameter[None] for name, parameter in self.named_parameters()}
        logits: Tensor = stacked_logits(alone, distances[None], purities[None])[0]
        return logits


def stacked_logits(
    weights: Mapping[str, Tensor], distances: Tensor, purities: Tensor, noise: Callable[[Tensor], Tensor] = lambda h: h
) -> Tensor:
    """Return the logits (G, N, 2) of G networks at once, each on its own distances (G, N, K) and purities (G, N, 3).

    `weights` are the parameters of `BoundaryNet` by name, of all networks one below the other. Dropout is `noise`: so
    it has a generator in training, and evaluation has none. Five networks side by side train twice as fast as one by
    one.
    """
    h = noise(F.relu(_convolved(distances[..., None], weights, "conv1")))  # (G, N, 391, 8) on MNIST
    h = noise(F.relu(_convolved(h, weights, "conv2")))  # (G, N, 96, 16)
    h = torch.cat((h.transpose(2, 3).flatten(2), purities), 2)
    h = noise(F.relu(_linear(h, weights, "linear1")))
    return _linear(h, weights, "linear2")


def _linear(h: Tensor, weights: Mapping[str, Tensor], layer: str) -> Tensor:
    return torch.baddbmm(weights[f"{layer}.bias"][:, None], h, weights[f"{layer}.weight"].transpose(1, 2))


def _convolved(h: Tensor, weights: Mapping[str, Tensor], layer: str) -> Tensor:
    """Return the convolutions `layer`, of kernel 8 and stride 4, of `h` (G, N, L, C), channels last in the result too.

    A window is two neighbouring blocks of four places, so one product of matrices holds the halves of all windows.
    """
    bias, kernel = weights[f"{layer}.bias"], weights[f"{layer}.weight"]  # (G, O), (G, O, C, 8)
    (nets, n, length, channels), out = h.shape, bias.shape[1]
    blocks = h[:, :, : length // 4 * 4].reshape(nets, n * (length // 4), 4 * channels)
    halves = kernel.view(nets, out, channels, 2, 4).permute(0, 4, 2, 3, 1).reshape(nets, 4 * channels, 2 * out)
    first, second = (blocks @ halves).view(nets, n, length // 4, 2 * out).split(out, 3)
    convolved: Tensor = first[:, :, :-1] + second[:, :, 1:] + bias[:, None, None]
    return convolved


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
    sees_purity
        False: the network is given 0 for all purities.
    """

    network: BoundaryNet
    num_classes: int
    rays: int
    unreached: float
    shift: float
    scale: float
    history: Tensor
    sees_purity: bool = True

    def logits(self, distance: Tensor, purities: Tensor) -> Tensor:
        """Return the logits (N, 2) of benign and adversarial, differentiable in both arguments.

        `distance` (N, K) in [0, 1] units, in any order, inf where a ray meets no boundary; `purities` (N, 3).
        """
        parameter = self.network.linear2.weight
        inputs = (sorted_rays(distance.to(parameter), self.unreached) - self.shift) / self.scale
        logits: Tensor = self.network(inputs, purities.to(parameter) * self.sees_purity)
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
        same_rays(profile, self.rays)
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
    sees_purity: bool = True,
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
    sees_purity
        False: purities count as 0, so that the detector sees distances alone.
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
    settings: dict[str, Any] = {"num_classes": num_classes, "epochs": epochs, "steps": steps, "pairs": pairs, "lr": lr}
    settings |= {"unreached": unreached, "shift": shift, "scale": scale}
    settings |= {"sees_purity": sees_purity, "progress": progress}
    return _fitted(benign, adversarial, [(slice(None), slice(None))], [generator], **settings)[0]


def cross_fit(
    benign: Profile,
    adversarial: Profile,
    folds: Tensor,
    *,
    count: int,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> list[Detector]:
    """Return a detector for each of `count` folds, trained as by `fit` on the pairs of all other folds.

    The detectors are trained side by side, which changes nothing in them: that of fold k is the one that `fit` returns
    for its pairs and a generator with the k-th of `count` seeds below 2**62, which `generator` draws first.

    Parameters
    ----------
    benign, adversarial
        As many profiles each: rows i are the two versions of one image.
    folds
        The fold of each pair, (N,) int64 from 0 to `count` - 1. All pairs of one image belong in one fold.
    count
        The number of folds, at least 2.
    progress, **settings
        Those of `fit`.

    Raises
    ------
    ValueError
        If the numbers of rows differ, if a fold is out of range or holds all pairs, and as `fit`.
    """
    checks.count(count, name="count", low=2)
    if not len(benign) == len(adversarial) == len(folds):
        sizes = f"{len(benign)} benign, {len(adversarial)} adversarial, {len(folds)} folds"
        raise ValueError(f"expected pairs, each with its fold, got {sizes}; give both versions of every image")
    if len(folds) and not 0 <= int(folds.min()) <= int(folds.max()) < count:
        raise ValueError(f"expected folds from 0 to {count - 1}, got {int(folds.min())} to {int(folds.max())}")
    parts = [(folds != fold).nonzero().squeeze(1).to(benign.distance.device) for fold in range(count)]
    if len(folds) and not all(map(len, parts)):
        raise ValueError("expected pairs in two folds or more, got all in one; give the attack more images")
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pairs = [(part, part) for part in parts]
    return _fitted(benign, adversarial, pairs, generators, progress=progress, **settings)


def calibrate(scores: ArrayLike, *, false_positive_rate: float) -> float:
    """Return the threshold t at which "score >= t" flags a benign image at no more than `false_positive_rate`.

    It lies just above the k-th smallest of the n `scores` of benign images, k = ceil((n + 1) (1 - rate)): a further
    benign score from the same distribution is then flagged with at most that probability (split conformal [1]_). NaN
    where n is too small for the rate: below 19 at 5 %.

    Parameters
    ----------
    scores
        Of benign images that the detector was not trained on, (n,), higher meaning adversarial.
    false_positive_rate
        Above 0 and below 1.

    Raises
    ------
    ValueError
        For a rate out of range and for a score that is NaN.

    References
    ----------
    .. [1] Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005, chapter 4.
    """
    checks.number(false_positive_rate, name="false_positive_rate", open_low=True, high=1 - 1e-9)
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    if np.isnan(ordered).any():
        raise ValueError("expected benign scores without NaN; leave out what was not scored")
    rank = math.ceil((len(ordered) + 1) * (1 - false_positive_rate) - 1e-9)  # the product may round up
    return float(np.nextafter(ordered[rank - 1], np.inf)) if rank <= len(ordered) else math.nan


def _fitted(
    benign: Profile,
    adversarial: Profile,
    parts: Sequence[tuple[Tensor | slice, Tensor | slice]],
    generators: Sequence[torch.Generator | None],
    *,
    num_classes: int,
    unreached: float = 1.0,
    epochs: int | None = None,
    steps: int | None = None,
    pairs: int = 128,
    lr: float = 1e-3,
    shift: float = 0.0,
    scale: float = 1.0,
    sees_purity: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Detector]:
    """Return a detector for each of `parts`, its rows on the benign and on the adversarial side; see `fit`."""
    comparable(benign, adversarial)
    rays = benign.distance.shape[1]
    checks.count(num_classes, name="num_classes", low=2)
    checks.count(pairs, name="pairs")
    checks.number(unreached, name="unreached")
    checks.number(lr, name="lr", open_low=True)
    checks.number(shift, name="shift", low=-math.inf)
    checks.number(scale, name="scale", open_low=True)
    for name, length in (("epochs", epochs), ("steps", steps)):
        if length is not None:
            checks.count(length, name=name)
    if epochs is not None and steps is not None:
        raise ValueError(f"expected epochs or steps, got both ({epochs!r} and {steps!r}); leave one out")

    device = benign.distance.device
    sides = benign, adversarial.to(device)
    inputs = [part for side in sides for part in side.distance.split(_ROWS)]  # a sort takes three times its input
    distances = torch.cat([(sorted_rays(part.float(), unreached) - shift) / scale for part in inputs])
    shares = torch.cat([purity(side, num_classes=num_classes, top=PURITIES) for side in sides])
    purities = shares.float() * sees_purity
    rows = torch.arange(len(distances), device=device)
    chosen = [(rows[: len(benign)][first], rows[len(benign) :][second]) for first, second in parts]
    longer = [max(map(len, both)) for both in chosen]
    batch = [min(pairs, length) for length in longer]
    lengths = [2000 if steps is None else steps for _ in parts]
    if epochs is not None:
        lengths = [epochs * math.ceil(length / size) for length, size in zip(longer, batch, strict=True)]
    alike: dict[tuple[int, int], list[int]] = {}  # networks with batches of one size are trained side by side
    for which, shape in enumerate(zip(lengths, batch, strict=True)):
        alike.setdefault(shape, []).append(which)
    detectors: dict[int, Detector] = {}
    done, total = 0, sum(length for length, _ in alike)

    def report(step: int) -> None:
        if progress is not None and ((done + step) % max(total // 100, 1) == 0 or done + step == total):
            progress(done + step, total)

    for (length, size), members in alike.items():
        some = [generators[which] for which in members]
        networks = [initialised(rays, generator) for generator in some]
        visits = [_visits(*chosen[which], length, size, generators[which]) for which in members]
        weights, losses = _trained(networks, distances, purities, torch.stack(visits, 1), some, lr=lr, report=report)
        done += length
        for k, which in enumerate(members):
            network = networks[k].to(device).requires_grad_(False)
            network.load_state_dict({name: weight[k] for name, weight in weights.items()})
            settings = (num_classes, rays, unreached, shift, scale)
            detectors[which] = Detector(network, *settings, losses[:, k].cpu().contiguous(), sees_purity)
    return [detectors[which] for which in range(len(parts))]


def _trained(
    networks: Sequence[BoundaryNet],
    distances: Tensor,
    purities: Tensor,
    visits: Tensor,
    generators: Sequence[torch.Generator | None],
    *,
    lr: float,
    report: Callable[[int], None],
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the parameters of G `networks` after training, by name, (G, ...), and their losses (steps, G).

    `visits` (steps, G, 2 * size) are the rows of each batch, benign ones first.
    """
    steps, nets, rows = visits.shape
    own = [dict(network.named_parameters()) for network in networks]
    stacks = {name: torch.stack([each[name].detach() for each in own]).to(distances.device) for name in own[0]}
    weights = {name: stack.requires_grad_() for name, stack in stacks.items()}
    fused = distances.device.type in ("cpu", "cuda")
    optimiser = torch.optim.Adam(list(weights.values()), lr=lr, fused=fused)
    labels = torch.arange(2, device=distances.device).repeat_interleave(rows // 2).repeat(nets)
    losses = torch.empty(steps, nets, device=distances.device)
    noise = partial(dropout, generators=generators)
    with torch.enable_grad(), repeatable(), full_float32(), _threads(distances.shape[1]):
        for step in range(steps):
            batch = visits[step]
            logits = stacked_logits(weights, distances[batch], purities[batch], noise)
            loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none").view(nets, rows).mean(1)
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
            losses[step] = loss.detach()
            report(step + 1)
    return {name: weight.detach() for name, weight in weights.items()}, losses


@contextlib.contextmanager
def _threads(rays: int) -> Iterator[None]:
    """Compute with one thread where there are few rays: more of them mostly wait for each other.

    On two cores that others use as well, a step with two threads took eight times as long, of 128 rays.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if rays <= _FEW else before)
        yield
    finally:
        torch.set_num_threads(before)


def _visits(benign: Tensor, adversarial: Tensor, steps: int, size: int, generator: torch.Generator | None) -> Tensor:
    """Return the batches (steps, 2 * size): rows out of `benign` first, of pairs the same ones on both sides."""
    order = orders(len(benign), steps, size, generator)
    paired = len(benign) == len(adversarial)
    other = order if paired else orders(len(adversarial), steps, size, generator)
    return torch.cat((benign[order.to(benign.device)], adversarial[other.to(benign.device)]), 1)


def comparable(benign: Profile, adversarial: Profile) -> None:
    """Raise ValueError unless both sides hold profiles, of equally many rays and without NaN."""
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


def same_rays(profile: Profile, rays: int) -> None:
    """Raise ValueError unless `profile` has as many rays as those in training."""
    if profile.distance.shape[1] != rays:
        raise ValueError(
            f"expected profiles of {rays} rays, as in training, got {profile.distance.shape[1]}; "
            "probe along the same directions"
        )


def _check(profile: Profile, *, name: str) -> None:
    distance = profile.distance
    if distance.ndim != 2 or distance.shape[1] < FEWEST_RAYS:
        raise ValueError(
            f"expected {name} distances of shape (N, K) with K at least {FEWEST_RAYS}, got {tuple(distance.shape)}; "
            "probe more directions, or their negations too"
        )
    if bool(distance.isnan().any()):
        raise ValueError(f"expected {name} distances without NaN (inf where a ray meets no boundary); probe again")


def sorted_rays(distance: Tensor, unreached: float) -> Tensor:
    """Return `distance` (N, K) sorted, with `unreached` for the infinite ones."""
    return distance.masked_fill(distance.isinf(), unreached).sort(1).values


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


def dropout(h: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
    """Return `h` (G, ...) with every element either doubled or 0, at even odds, part g by the g-th generator.

    Sixty-four fair coins come from each random number, drawn on the CPU: many times as fast as torch's dropout there,
    the same on every device, and the global random numbers stay untouched.
    """
    count = h[0].numel()
    numbers = torch.empty(len(generators), math.ceil(count / 64), dtype=torch.int64)
    for row, generator in zip(numbers, generators, strict=True):
        row.random_(-(2**63), None, generator=generator)
    octets = sent(numbers.view(torch.uint8), h.device).int()
    coins = _coins(h.device).index_select(0, octets.flatten()).view(len(h), -1)
    return h * coins[:, :count].view(h.shape)


@functools.cache
def _coins(device: torch.device) -> Tensor:
    """Return the bits of every byte, doubled: (256, 8) float32."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    return 2.0 * (bits & 1)


def orders(count: int, steps: int, rows: int, generator: torch.Generator | None) -> Tensor:
    """Return the rows (steps, rows) of `count` to visit: one random permutation after another."""
    cycles = math.ceil(steps * rows / count)
    return torch.rand(cycles, count, generator=generator).argsort(1).flatten()[: steps * rows].view(steps, rows)
