"""What an adaptive attack wants to reach on an image: the class gone, the vote lost, the detector quiet, a likeness."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nbsupport import region
from nbsupport.adaptive.surrogate import SoftRays, soft_input, soft_rays
from nbsupport.attacks.engine import Problem, across, in_batches, margins
from nbsupport.boundary import Profile, purity
from nbsupport.detector import PURITIES, Detector

MAGNITUDES = 8
# Of a ray's last crossing, where it is looked for next: densest at the crossing itself.
_WINDOW = (0.4, 0.6, 0.75, 0.87, 1.0, 1.15, 1.35, 1.7)
_SOFT = 0.5  # temperature of a ray, in changes of its margin between neighbouring magnitudes
_VOTE = 0.1  # temperature of a point of the vote, in margins before the attack


@dataclass(eq=False)
class Misclassified:
    """The margin of the true class, with a soft maximum over the rivals."""

    problem: Problem
    forwards: int = 1
    backwards: int = 1
    rows: int = 1

    def begin(self, index: Tensor, x: Tensor, label: Tensor) -> int:
        """Nothing to prepare."""
        return 0

    def look(self, x: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the margin (N,) and whether it is below 0."""
        z = self.problem.logits(x)
        soft = margins(z, label, targeted=False, temperature=torch.ones(len(x), device=x.device))
        return soft, across(margins(z.detach(), label, targeted=False))


@dataclass(eq=False)
class Outvoted:
    """The lead of the true class in the vote of fresh random points, in logarithms of mean probabilities.

    Met where another class leads by `lead` of the points: the few points of one look are noisy, and success is scored
    on others.
    """

    problem: Problem
    radius: float
    points: int
    lead: float
    backwards: int = field(init=False)

    def __post_init__(self) -> None:
        self.forwards = self.backwards = self.rows = self.points
        self.scale = torch.ones(0)

    def begin(self, index: Tensor, x: Tensor, label: Tensor) -> int:
        """Note the margins before the attack, which are the unit of the temperature."""
        with torch.no_grad():
            self.scale = margins(self.problem.logits(x), label, targeted=False).clamp(min=1e-6)
        return 1

    def look(self, x: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw points, the same for all images; return the soft lead (N,) and whether a rival leads by enough."""
        offsets = self.radius * region.draw("hypercube", self.points, x, generator).to(x.device)
        moved = (x.flatten(1)[:, None] + offsets).clamp(0, 1)
        z = self.problem.logits(moved.view(-1, *x.shape[1:])).view(len(x), self.points, -1)
        counts = torch.zeros_like(z[:, 0]).scatter_add_(1, z.argmax(2), torch.ones_like(z[..., 0]))
        met = margins(counts, label, targeted=False) < -self.lead * self.points
        soft = (z / (_VOTE * self.scale)[:, None, None]).log_softmax(2).logsumexp(1)  # log of the mean, but a constant
        return margins(soft, label, targeted=False), met


@dataclass(eq=False)
class _Rays:
    """The boundary around images, seen along `rays` of the `directions`, drawn afresh at each look."""

    problem: Problem
    directions: Tensor  # (K, D)
    magnitudes: Tensor  # (M,), the grid of the detector
    rays: int
    unreached: float

    def __post_init__(self) -> None:
        self.rays = min(self.rays, len(self.directions))
        self.rows = self.forwards = 1 + self.rays * MAGNITUDES
        self.backwards = self.rows
        device = self.problem.x.device
        self.directions, self.magnitudes = self.directions.to(device), self.magnitudes.to(device).float()
        self.window = torch.tensor(_WINDOW, device=device)
        self.near = torch.empty(0)

    def begin(self, index: Tensor, x: Tensor, label: Tensor) -> int:
        """Look for the crossings of all rays, coarsely; return the evaluations of an image."""
        low, last = self.magnitudes[0], self.magnitudes[-1]
        powers = torch.linspace(0, 1, MAGNITUDES, device=x.device)
        grid = low * (last / low) ** powers
        self.near = torch.empty(len(x), len(self.directions), device=x.device)
        every = torch.arange(len(self.directions), device=x.device)
        with torch.no_grad():
            for part in in_batches(every, self.rays):
                seen = self._seen(x, part, grid.expand(len(x), len(part), -1))
                self.near[:, part] = seen.crossing.clamp(low, last)
        return len(self.directions) * MAGNITUDES + -(-len(every) // self.rays)

    def _seen(self, x: Tensor, part: Tensor, magnitudes: Tensor) -> SoftRays:
        beyond = torch.where(magnitudes[..., -1] >= self.magnitudes[-1], self.unreached, magnitudes[..., -1])
        return soft_rays(
            self.problem.model, x, self.directions[part], magnitudes, temperature=_SOFT, beyond=beyond
        )

    def input(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the soft distances (N, K), sorted, and the soft purities (N, 3) along rays drawn now."""
        order = torch.randperm(len(self.directions), generator=generator)
        part = order[: self.rays].to(x.device)
        low, last = self.magnitudes[0], self.magnitudes[-1]
        magnitudes = (self.near[:, part, None] * self.window).clamp(max=last)
        seen = self._seen(x, part, magnitudes)
        self.near[:, part] = seen.crossing.clamp(low, last)
        return soft_input(seen, len(self.directions), purities=PURITIES)


@dataclass(eq=False)
class Undetected(_Rays):
    """The detector's logit of "adversarial" over "benign", less that of the threshold.

    `detectors` are one for each fold, of which `fold` (N,) names the one that judges an image; `threshold` (N,) is the
    probability at which it flags.
    """

    detectors: Sequence[Detector]
    fold: Tensor
    threshold: Tensor
    slack: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        device = self.problem.x.device
        # Detector.logits computes where the network's parameters are.
        self.detectors = [dataclasses.replace(each, network=each.network.to(device)) for each in self.detectors]
        self.fold, self.threshold = self.fold.to(device), self.threshold.to(device).double()
        self.index = torch.empty(0)

    def begin(self, index: Tensor, x: Tensor, label: Tensor) -> int:
        """As all rays; note which detectors judge the images."""
        self.index = index
        return super().begin(index, x, label)

    def look(self, x: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the logit over the threshold (N,) and whether it is below 0 by the slack."""
        given = self.input(x, generator)
        logits = torch.stack([each.logits(*given).diff(dim=1)[:, 0] for each in self.detectors], 1)
        logit = logits.gather(1, self.fold[self.index, None])[:, 0]
        value = logit - self.threshold[self.index].logit(eps=1e-6).float() + self.slack
        return value, value.detach() < 0


@dataclass(eq=False)
class Alike(_Rays):
    """How far the boundary around an image is from that of `profile`, whose row belongs to the same image.

    The mean difference of the sorted distances, in mean distances of `profile`, plus that of the purities.
    """

    profile: Profile
    num_classes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        device = self.problem.x.device
        distance = self.profile.distance.to(device).float()
        self.wanted = distance.masked_fill(distance.isinf(), self.unreached).sort(1).values
        self.purities = purity(self.profile, num_classes=self.num_classes, top=PURITIES).to(device).float()
        self.index = torch.empty(0)

    def begin(self, index: Tensor, x: Tensor, label: Tensor) -> int:
        """As all rays; note which images they are."""
        self.index = index
        return super().begin(index, x, label)

    def look(self, x: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the mismatch (N,); it is a matter of degree, and always counts as met."""
        distance, purities = self.input(x, generator)
        wanted = self.wanted[self.index]
        apart = (distance - wanted).abs().mean(1) / wanted.mean(1)
        apart = apart + (purities - self.purities[self.index]).abs().mean(1)
        return apart, torch.ones_like(label, dtype=torch.bool)
