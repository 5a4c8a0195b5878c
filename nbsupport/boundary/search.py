"""The searches along rays, as jobs for the pool of slots.

Every row of a pool keeps a bracket of its ray: at `low` the class is the image's, at `high` it is `adjacent`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nbsupport.labels import Labeller
from nbsupport.pool import State

_BATCHES = 8  # slots of the pool, in batches of the model: the rows to be confirmed then fill batches too


class Rays:
    """Rays of the images of `label`, K of each, of which `center` (N,) are the classes.

    Ray i belongs to image i // K and direction i % K. With `chosen` (R,) int64 only those are rays, renumbered.
    """

    def __init__(self, label: Labeller, rays_per_image: int, center: Tensor, chosen: Tensor | None = None) -> None:
        self.label, self.rays_per_image, self.center, self.chosen = label, rays_per_image, center, chosen
        self.count = len(center) * rays_per_image if chosen is None else len(chosen)
        self.slots = _BATCHES * label.rows

    def look(self, ray: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classes (R,) found at `scale` (R,) along the rays `ray` (R,), and those of their images."""
        image, direction = self.ends(ray)
        return self.label(image, direction, scale), self.center[image]

    def ends(self, ray: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image and the direction (R,) of the rays `ray` (R,)."""
        number = ray if self.chosen is None else self.chosen[ray]
        return number // self.rays_per_image, number % self.rays_per_image

    def narrow(self, state: State, at: Tensor, scale: Tensor, running: Tensor) -> None:
        """Look at `scale` (R,) along the rays of `state` and move `low` or `high` of the running rows to `at`."""
        found, center = self.look(state["ray"], scale)
        differs = found != center
        state["low"] = torch.where(running & ~differs, at, state["low"])
        state["high"] = torch.where(running & differs, at, state["high"])
        state["adjacent"] = torch.where(running & differs, found, state["adjacent"])


class March:
    """Every ray on the grid, at positions 0 (the image), 1 to M (the magnitudes), M + 1 (beyond the grid).

    While `high` lies beyond the grid a row marches by `stride` positions, then it bisects; it is done when `low`
    and `high` are neighbours. The rays of images that are `near` (N,) bool a boundary visit the first stride in full:
    there, a class is often entered and left within it.
    """

    def __init__(self, rays: Rays, grid: Tensor, *, stride: int, near: Tensor | None = None) -> None:
        self.rays, self.stride, self.beyond = rays, stride, len(grid) + 1
        self.near = torch.zeros_like(rays.center, dtype=torch.bool) if near is None else near
        self.values = torch.cat((grid.new_zeros(1), grid, grid.new_full((1,), math.inf)))
        self.scale = self.values.float()
        self.high = torch.empty(rays.count, dtype=torch.int64, device=grid.device)
        self.adjacent = torch.empty_like(self.high)

    def start(self, index: Tensor) -> State:
        """Return the rows of the rays `index`, with their widest brackets."""
        low = torch.zeros_like(index)
        return {"ray": index, "low": low, "high": low + self.beyond, "adjacent": low - 1}

    def step(self, state: State) -> None:
        """Look once along every ray and narrow its bracket."""
        low, high = state["low"], state["high"]
        image, _ = self.rays.ends(state["ray"])
        stride = torch.where(self.near[image] & (low < self.stride), 1, self.stride)
        onward = (low + stride).clamp(max=self.beyond - 1)
        at = torch.where(high == self.beyond, onward, (low + high) // 2)
        self.rays.narrow(state, at, self.scale[at], ~self.done(state))

    def done(self, state: State) -> Tensor:
        """Return which brackets are as narrow as they shall be."""
        return state["high"] - state["low"] == 1

    def finish(self, state: State) -> None:
        """Store the upper ends of the brackets and the classes there."""
        self.high[state["ray"]] = state["high"]
        self.adjacent[state["ray"]] = state["adjacent"]


class Bisect:
    """The rays `index` of a finished march, bisected below the grid step, in float64."""

    def __init__(self, march: March, index: Tensor, *, tolerance: float) -> None:
        self.march, self.index, self.tolerance = march, index, tolerance
        self.distance, self.adjacent = march.values[march.high], march.adjacent

    def start(self, index: Tensor) -> State:
        """Return the rows of the rays `index`, with their widest brackets."""
        ray = self.index[index]
        position = self.march.high[ray]
        low, high = self.march.values[position - 1].double(), self.march.values[position].double()
        return {"ray": ray, "low": low, "high": high, "adjacent": self.adjacent[ray]}

    def step(self, state: State) -> None:
        """Look once along every ray and narrow its bracket."""
        middle = (state["low"] + state["high"]) / 2
        self.march.rays.narrow(state, middle, middle.float(), ~self.done(state))

    def done(self, state: State) -> Tensor:
        """Return which brackets are as narrow as they shall be."""
        low, high = state["low"], state["high"]
        middle = (low + high) / 2
        return (high - low <= self.tolerance) | (middle <= low) | (middle >= high)  # or nothing lies between

    def finish(self, state: State) -> None:
        """Store the upper ends of the brackets and the classes there."""
        self.distance[state["ray"]] = state["high"].to(self.distance.dtype)
        self.adjacent[state["ray"]] = state["adjacent"]
