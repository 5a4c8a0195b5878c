"""Where a ray that has left the class of its image comes back to it: the second crossing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport import runtime
from nbsupport.boundary.given import check_probed, grid
from nbsupport.boundary.profile import Profile
from nbsupport.boundary.search import Rays
from nbsupport.labels import Labeller
from nbsupport.pool import State, drain


@dataclass(frozen=True, eq=False)
class Reentry:
    """Where K rays of N images come back to the class of their image.

    Attributes
    ----------
    distance : Tensor (N, K), dtype of the magnitudes
        The first magnitude beyond the first crossing at which the class is the image's own again, [0, 1] units; inf
        where it never is up to the last magnitude, and where there is no first crossing.
    returned : Tensor (N, K) bool
        Whether it ever is.
    """

    distance: Tensor
    returned: Tensor


def reentry(
    model: nn.Module,
    x: Tensor,
    directions: Tensor,
    magnitudes: Tensor | Sequence[float],
    profile: Profile,
    *,
    precision: str = "float32",
) -> Reentry:
    """Return where each ray comes back to the class of its image after its first crossing.

    The grid is visited in order from the first crossing on. A class that is left and met again between two
    magnitudes is not seen. Memory does not depend on the number of images, apart from arguments and result.

    Parameters
    ----------
    model, x, directions, magnitudes
        As given to `probe`.
    profile : Profile
        What `probe` found there, by any search; its `center` is the class that a ray comes back to.
    precision : {"float32", "mixed"}
        As in `probe`.

    Returns
    -------
    Reentry
        On the model's device.

    Raises
    ------
    ValueError
        As `probe`, and for a profile of another number of images or directions.
    """
    check_probed(x, directions, profile, precision)
    device = runtime.device_of(model, x)
    positions = grid(magnitudes).to(device)
    crossing = profile.distance.to(device, positions.dtype).flatten()
    following = torch.searchsorted(positions, crossing, right=True)  # inf: beyond the grid
    walking = (following < len(positions)).nonzero().squeeze(1)
    distance = torch.full_like(crossing, math.inf)
    with runtime.frozen(model):
        label = Labeller(model, x, directions, precision=precision, reach=float(positions[-1]))
        rays = Rays(label, len(directions), profile.center.to(device), walking)
        job = _Return(rays, positions, following[walking])
        drain(job, rays.count, slots=rays.slots, every=1, device=device)
    distance[walking] = job.distance
    distance = distance.view(profile.distance.shape)
    return Reentry(distance, distance.isfinite())


class _Return:
    """Every ray from the position `first` of its own on, until its class is the image's again or the grid ends."""

    def __init__(self, rays: Rays, positions: Tensor, first: Tensor) -> None:
        self.rays, self.positions, self.first, self.scale = rays, positions, first, positions.float()
        self.distance = torch.full_like(first, math.inf, dtype=positions.dtype)

    def start(self, index: Tensor) -> State:
        """Return the rows of the rays `index`, before their first look."""
        return {"ray": index, "at": self.first[index], "back": torch.zeros_like(index, dtype=torch.bool)}

    def step(self, state: State) -> None:
        """Look once along every ray; a ray that has not come back moves on by one position."""
        running = ~self.done(state)
        found, center = self.rays.look(state["ray"], self.scale[state["at"].clamp(max=len(self.scale) - 1)])
        back = found == center
        state["back"] = state["back"] | running & back
        state["at"] = state["at"] + (running & ~back)

    def done(self, state: State) -> Tensor:
        """Return which rays have come back or passed the last position."""
        return state["back"] | (state["at"] == len(self.scale))

    def finish(self, state: State) -> None:
        """Store where the rays came back."""
        ray, at = state["ray"][state["back"]], state["at"][state["back"]]
        self.distance[ray] = self.positions[at]
