"""Any image between a test image and its adversarial version, or beyond: prediction, vote and rays, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from nbsupport import boundary, checks, region, runtime
from nbsupport.boundary import Profile
from nbsupport.presets import Settings
from nbsupport.region import Vote
from nbsupport.stages.boundary import run_directions
from nbsupport.store import Run

RAYS = 32  # of the run's directions, evenly chosen
_CHUNK = 8  # rays between two looks at whether to go on


@dataclass(frozen=True, eq=False)
class Live:
    """What is known so far of one image between two others.

    Attributes
    ----------
    share : float
        How far it lies from the original (0) to the adversarial image (1).
    image : Tensor (C, H, W) float32
        clip(x + share * (x_adv - x)).
    rms : float
        Its distance from the original, [0, 1] units.
    logits : Tensor (L,)
        The model's.
    vote : Vote or None
        Of this one image; None: not yet.
    directions : Tensor (R,) int64
        Which of the run's directions `profile` was probed along.
    profile : Profile or None
        Of this one image, with the rays found so far.
    done, total : int
        Parts of the computation.
    """

    share: float
    image: Tensor
    rms: float
    logits: Tensor
    vote: Vote | None
    directions: Tensor
    profile: Profile | None
    done: int
    total: int

    @property
    def label(self) -> int:
        """The model's class."""
        return int(self.logits.argmax())

    @property
    def complete(self) -> bool:
        """Whether nothing is left to compute."""
        return self.done == self.total


def look_between(
    network: nn.Module, x: Tensor, x_adv: Tensor, share: float, settings: Settings, *, rays: int = RAYS
) -> Iterator[Live]:
    """Yield what is known of the image at `share` of the way from `x` to `x_adv`, after every part of the work.

    The first comes after a single forward pass, the second with the vote, the others with more and more rays. Vote and
    rays use the run's own random points and directions: at shares 0 and 1 they repeat what the run has stored.

    Parameters
    ----------
    network : Module
        Maps images in [0, 1] to logits (N, L).
    x, x_adv : Tensor (C, H, W) float32
        In [0, 1].
    share : float
        0 is `x`, 1 is `x_adv`; may lie beyond.
    settings : Settings
        Of the run.
    rays : int
        Directions to probe, at least 1; all of the run's where there are no more.

    Raises
    ------
    ValueError
        For images of different shape or out of range, a `share` that is not finite, `rays` below 1.
    """
    checks.images(torch.stack((x, x_adv)))
    checks.number(share, name="share", low=-float(10**6), high=float(10**6))
    checks.count(rays, name="rays")
    image = x_adv if share == 1 else (x + share * (x_adv - x)).clamp(0, 1)  # exactly the adversarial image at its end
    with runtime.frozen(network), torch.no_grad():
        batch = image[None].to(runtime.device_of(network, image))
        logits = network(runtime.laid_out(network, batch))[0].cpu()
    every = run_directions(settings, tuple(x.shape))
    count = min(rays, len(every))
    chosen = torch.linspace(0, len(every) - 1, count).round().long()
    parts = chosen.split(_CHUNK)
    rms, total = float((image - x).square().mean().sqrt()), 2 + len(parts)

    def state(done: int, vote: Vote | None = None, profile: Profile | None = None) -> Live:
        found = chosen[: 0 if profile is None else profile.distance.shape[1]]
        return Live(share, image, rms, logits, vote, found, profile, done, total)

    yield state(1)
    generator = runtime.seeded(settings.seed, "region")  # as stage 04 draws them
    counted = region.classify(
        network, image[None], radius=settings.radius, samples=settings.samples, generator=generator
    )
    vote = Vote(**{field.name: getattr(counted, field.name).cpu() for field in fields(Vote)})
    yield state(2, vote)
    found: list[Profile] = []
    for part in parts:
        found.append(boundary.probe(network, image[None], every[part], settings.magnitudes))
        yield state(2 + len(found), vote, _side_by_side(found))


def _side_by_side(parts: list[Profile]) -> Profile:
    """Return the profiles of one image along different directions as one, on the CPU."""
    names = ("distance", "adjacent", "reached")
    joined = {name: torch.cat([getattr(part, name) for part in parts], 1).cpu() for name in names}
    return Profile(center=parts[0].center.cpu(), **joined)


def save_live(run: Run, model: str, attack: str, index: int, live: Live) -> Path:
    """Store a complete `live` as live/<model>/<attack>-<index>-<share>.safetensors in the run folder; return its path.

    Raises ValueError where it is not complete.
    """
    if not live.complete or live.vote is None or live.profile is None:
        raise ValueError(f"expected a complete look, got {live.done} of {live.total} parts; let it finish")
    tensors = {"image": live.image, "logits": live.logits, "directions": live.directions}
    tensors |= {"counts": live.vote.counts, "rms": torch.tensor(live.rms), "index": torch.tensor(index)}
    tensors |= {field.name: getattr(live.profile, field.name) for field in fields(Profile)}
    name = f"live/{model}/{attack}-{index}-{live.share:.4f}.safetensors"
    return run.save(name, tensors, share=repr(live.share))
