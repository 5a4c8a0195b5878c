"""What an adaptive attack brings about on an image: its class gone, its vote lost, the detector quiet, a likeness."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nbsupport import region
from nbsupport.adaptive.surrogate import intervals, soft_purity, soft_rays, spread
from nbsupport.attacks.engine import Problem, across
from nbsupport.boundary import Profile, purity
from nbsupport.detector import PURITIES, UNREACHED, Detector, sorted_rays
from nbsupport.labels import margins
from nbsupport.runtime import reduced_precision

MAGNITUDES = 8  # at which each of two looks along a ray is taken
_VOTE = 0.05  # temperature of a point of the vote, in margins before the attack


class Misclassified:
    """The margin of the true class is below 0."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.forwards, self.backwards = problem, 1, 1

    def look(self, x: Tensor, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the margin (N,), smooth over the rivals, and whether it is below 0."""
        z, label = self.problem.logits(x), self.problem.label[index]
        soft = margins(z, label, temperature=torch.ones(len(x), device=x.device))
        return soft, across(margins(z.detach(), label))


class Outvoted:
    """Another class leads the vote of fresh random points by more than `lead` of them.

    The few points of one look are noisy, and success is scored on others: hence the lead. What is descended is the
    logarithm of the mean probability of the true class over that of the strongest rival, with logits in units of
    `_VOTE` margins before the attack.
    """

    def __init__(self, problem: Problem, radius: float, points: int, lead: float) -> None:
        self.problem, self.radius, self.points, self.lead = problem, radius, points, lead
        self.forwards = self.backwards = points
        with torch.no_grad():
            batches = zip(problem.x.split(problem.rows()), problem.label.split(problem.rows()), strict=True)
            before = [margins(problem.logits(x), label) for x, label in batches]
        self.scale = _VOTE * torch.cat(before).clamp(min=1e-6)

    def look(self, x: Tensor, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw points, the same for all images; return the soft lead of the true class (N,) and whether it is lost."""
        offsets = self.radius * region.draw("hypercube", self.points, x, generator).to(x.device)
        moved = (x.flatten(1)[:, None] + offsets).clamp(0, 1)
        z = self.problem.logits(moved.view(-1, *x.shape[1:])).view(len(x), self.points, -1)
        counts = torch.zeros_like(z[:, 0]).scatter_add_(1, z.argmax(2), torch.ones_like(z[..., 0])).detach()
        label = self.problem.label[index]
        lost = margins(counts, label) < -self.lead * self.points
        mean = (z / self.scale[index][:, None, None]).log_softmax(2).logsumexp(1)  # but for a constant
        return margins(mean, label), lost


@dataclass(eq=False)
class Rays:
    """The boundary around images as a detector sees it, softly, along `rays` of its directions, drawn at each look."""

    problem: Problem
    directions: Tensor  # (K, D)
    magnitudes: Tensor  # (M,): the grid of the detector
    rays: int

    def __post_init__(self) -> None:
        device = self.problem.x.device
        self.rays = min(self.rays, len(self.directions))
        self.directions, self.magnitudes = self.directions.to(device), self.magnitudes.to(device).float()
        first, last = self.magnitudes[0], self.magnitudes[-1]
        steps = torch.linspace(0, 1, MAGNITUDES, device=device)
        self.coarse = first * (last / first) ** steps  # each the same number of times the one before
        self.parts = torch.arange(1, MAGNITUDES + 1, device=device) / MAGNITUDES
        self.backwards = 1 + self.rays * MAGNITUDES
        self.forwards = 2 * self.backwards

    def seen(self, x: Tensor, generator: torch.Generator, *, unreached: float) -> tuple[Tensor, Tensor]:
        """Return the soft distances (N, K), sorted, and purities (N, 3) along rays drawn now, the same for all images.

        A first look along each ray finds the interval of its crossing; a second one within that has gradients.
        """
        chosen = torch.randperm(len(self.directions), generator=generator)[: self.rays].to(x.device)
        low, high = intervals(self.problem.model, x.detach(), self.directions[chosen], self.coarse)
        within = low[..., None] + (high - low)[..., None] * self.parts
        beyond = torch.where(high > low, high, unreached)
        distance, shares = soft_rays(self.problem.model, x, self.directions[chosen], within, beyond=beyond)
        return spread(distance, len(self.directions)), soft_purity(shares, PURITIES)


class Undetected:
    """The detector that judges the image gives it a score below its threshold.

    Parameters
    ----------
    detectors
        One for each fold.
    fold : Tensor (N,) int64
        Which of them judges each image.
    threshold : Tensor (N,)
        The score from which an image is flagged.
    """

    def __init__(self, seen: Rays, detectors: Sequence[Detector], fold: Tensor, threshold: Tensor) -> None:
        device = seen.problem.x.device
        networks = [copy.deepcopy(each.network).to(device) for each in detectors]
        self.detectors = [
            dataclasses.replace(each, network=network) for each, network in zip(detectors, networks, strict=True)
        ]
        self.seen, self.fold = seen, fold.to(device)
        self.logit = threshold.to(device).double().logit(eps=1e-9).float()
        self.forwards, self.backwards = seen.forwards, seen.backwards

    def look(self, x: Tensor, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the logit of "adversarial" beyond that of the threshold (N,), and whether it is below 0."""
        given = self.seen.seen(x, generator, unreached=self.detectors[0].unreached)
        with reduced_precision("float32", x.device):  # the detector tells apart what bfloat16 does not
            logits = torch.stack([each.logits(*given).diff(dim=1)[:, 0] for each in self.detectors], 1)
        beyond = logits.gather(1, self.fold[index, None])[:, 0] - self.logit[index]
        return beyond, beyond.detach() < 0


class Alike:
    """The boundary around the image is like `profile`: a matter of degree, so that it always counts as met.

    What is descended is the mean difference of the sorted distances, in mean distances of `profile`, plus the mean
    difference of the purities.
    """

    def __init__(self, seen: Rays, profile: Profile) -> None:
        self.seen = seen
        problem, device = seen.problem, seen.problem.x.device
        with torch.no_grad():
            num_classes = problem.logits(problem.x[:1]).shape[1]
        self.wanted = sorted_rays(profile.distance.to(device).float(), UNREACHED)
        self.purities = purity(profile, num_classes=num_classes, top=PURITIES).to(device).float()
        self.forwards, self.backwards = seen.forwards, seen.backwards

    def look(self, x: Tensor, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return how far the boundary around each image is from that of its profile (N,), and that all is well."""
        distance, purities = self.seen.seen(x, generator, unreached=UNREACHED)
        wanted = self.wanted[index]
        apart = (distance - wanted).abs().mean(1) / wanted.mean(1)
        apart = apart + (purities - self.purities[index]).abs().mean(1)
        return apart, torch.ones_like(index, dtype=torch.bool)
