"""The distance to the decision boundary along every ray, an image times a direction, and its audit.

The searches along rays are jobs for the pool of slots. Every row of it keeps a bracket of its ray: at `low` the class
is the image's, at `high` it is `adjacent`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.boundary.profile import Profile, as_adjacent, check_directions, check_probed
from nbsupport.labels import Labeller
from nbsupport.pool import State, drain
from nbsupport.record import Record

SEARCHES = ("bracket", "scan", "refine")
_BATCHES = 8  # slots of the pool, in batches of the model: the rows to be confirmed then fill batches too


def probe(
    model: nn.Module,
    x: Tensor,
    directions: Tensor,
    magnitudes: Tensor | Sequence[float],
    *,
    search: str = "bracket",
    stride: int = 8,
    tolerance: float = 1e-4,
    precision: str = "float32",
) -> Profile:
    """Return the distance from every image to the first other class along every direction.

    The distance along d is the smallest magnitude t with f(clip(x + t d, 0, 1)) != f(x). Rays of all images share
    one pool: a ray that has its answer leaves the batch and the next one enters, so that memory does not depend
    on the number of images, apart from the result.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    directions : Tensor (K, C*H*W) float32
        Flattened in NCHW order; of RMS 1 (see `directions`) if distances are to be RMS values.
    magnitudes : Tensor (M,) or sequence of floats
        The grid: positive and ascending, [0, 1] units.
    search : {"bracket", "scan", "refine"}
        "scan" visits the grid in order: the definition. "bracket" marches in strides of `stride` grid steps and
        bisects the first stride that ends in another class: the same answer, unless a ray leaves its class and
        re-enters it within one stride. That is most frequent right beside a boundary, so the first stride is visited
        in full around images whose margin and gradient put one within it. "refine" goes on bisecting below the grid
        step.
    stride : int
        Grid steps of one stride, at least 1 (not used by "scan").
    tolerance : float
        "refine" stops when the bracket is no longer than this, [0, 1] units, > 0 (or cannot be halved).
    precision : {"float32", "mixed"}
        "mixed": bfloat16 with every label near a tie confirmed in float32 (see `nbsupport.labels.Labeller`).

    Returns
    -------
    Profile
        On the model's device. `distance` is an element of `magnitudes` ("refine": the upper end of the bracket,
        where the class is known to differ).

    Raises
    ------
    ValueError
        For images outside [0, 1], directions or magnitudes of wrong shape, type or order, an unknown search or
        precision, and for a model whose logits are not finite or of wrong shape in any pass.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018, section 4.
    """
    checks.images(x)
    check_directions(directions, x[0].numel())
    checks.choice(search, SEARCHES, name="search")
    checks.count(stride, name="stride")
    checks.number(tolerance, name="tolerance", open_low=True)
    device = runtime.device_of(model, x)
    positions = grid(magnitudes).to(device)
    with runtime.frozen(model):
        label = Labeller(model, x, directions, precision=precision, reach=float(positions[-1]))
        rays = Rays(label, len(directions), label.centers())
        stride = 1 if search == "scan" else stride
        rms = float(torch.linalg.vector_norm(directions, dim=1).max()) / math.sqrt(directions.shape[1])
        near = near_boundary(model, x, rms * float(positions[:stride][-1])) if stride > 1 else None
        march = March(rays, positions, stride=stride, near=near)
        drain(march, rays.count, slots=rays.slots, every=1, device=device)
        reached = march.high < march.beyond
        distance, adjacent = march.values[march.high], march.adjacent
        if search == "refine":
            bisect = Bisect(march, tolerance=tolerance)
            drain(bisect, len(bisect.index), slots=rays.slots, every=1, device=device)
            distance, adjacent = bisect.distance, bisect.adjacent
    shape = len(x), len(directions)
    adjacent = as_adjacent(adjacent, label.num_classes)
    return Profile(rays.center, distance.view(shape), adjacent.view(shape), reached.view(shape))


def grid(magnitudes: Tensor | Sequence[float]) -> Tensor:
    """Return the magnitudes as a floating tensor (M,); raise ValueError unless they are finite, > 0 and ascending."""
    values = torch.as_tensor(magnitudes)
    if not values.is_floating_point():
        values = values.float()
    if values.ndim != 1 or values.numel() == 0:
        raise ValueError(f"expected magnitudes of shape (M,) with M >= 1, got {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()) or float(values[0]) <= 0 or not bool((values.diff() > 0).all()):
        raise ValueError("expected magnitudes finite, above 0 and ascending; sort them and drop zeros and duplicates")
    return values


class Rays:
    """Rays of the images of `label`, K of each, of which `center` (N,) are the classes.

    Ray i belongs to image i // K and direction i % K. With `chosen` (R,) int64 only those are rays, renumbered. What is
    looked for is the first class other than the image's or, with `returning`, the image's own again.
    """

    def __init__(
        self, label: Labeller, per_image: int, center: Tensor, chosen: Tensor | None = None, *, returning: bool = False
    ) -> None:
        self.label, self.per_image, self.center, self.chosen = label, per_image, center, chosen
        self.returning = returning
        self.count = len(center) * per_image if chosen is None else len(chosen)
        self.slots = _BATCHES * label.rows

    def ends(self, ray: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image and the direction (R,) of the rays `ray` (R,)."""
        number = ray if self.chosen is None else self.chosen[ray]
        return number // self.per_image, number % self.per_image

    def narrow(self, state: State, at: Tensor, scale: Tensor, running: Tensor) -> None:
        """Look at `scale` (R,) along the rays of `state` and move `low` or `high` of the running rows to `at`."""
        image, direction = self.ends(state["ray"])
        found = self.label(image, direction, scale)
        met = (found == self.center[image]) == self.returning
        state["low"] = torch.where(running & ~met, at, state["low"])
        state["high"] = torch.where(running & met, at, state["high"])
        state["adjacent"] = torch.where(running & met, found, state["adjacent"])


class March:
    """Every ray on the grid, at positions 0 (the image), 1 to M (the magnitudes), M + 1 (beyond the grid).

    While `high` lies beyond the grid a row marches by `stride` positions, then it bisects; it is done when `low`
    and `high` are neighbours. The rays of images that are `near` (N,) bool a boundary visit the first stride in full:
    there, a class is often entered and left within it. Rays start from the positions `first` (R,), or from the image.
    """

    def __init__(
        self, rays: Rays, grid: Tensor, *, stride: int = 1, near: Tensor | None = None, first: Tensor | None = None
    ) -> None:
        self.rays, self.stride, self.beyond = rays, stride, len(grid) + 1
        self.near = torch.zeros_like(rays.center, dtype=torch.bool) if near is None else near
        self.first = torch.zeros(rays.count, dtype=torch.int64, device=grid.device) if first is None else first
        self.values = torch.cat((grid.new_zeros(1), grid, grid.new_full((1,), math.inf)))
        self.scale = self.values.float()
        self.high, self.adjacent = torch.empty_like(self.first), torch.empty_like(self.first)

    def start(self, index: Tensor) -> State:
        """Return the rows of the rays `index`, with their widest brackets."""
        high, nothing = torch.full_like(index, self.beyond), torch.full_like(index, -1)
        return {"ray": index, "low": self.first[index], "high": high, "adjacent": nothing}

    def step(self, state: State) -> None:
        """Look once along every ray and narrow its bracket."""
        low, high = state["low"], state["high"]
        image, _ = self.rays.ends(state["ray"])
        stride = torch.where(self.near[image] & (low < self.stride), 1, self.stride)
        onward = (low + stride).clamp(max=self.beyond - 1)
        at = torch.where(high == self.beyond, onward, (low + high) // 2)
        self.rays.narrow(state, at, self.scale[at], ~self.done(state))

    def done(self, state: State) -> Tensor:
        """Return which rows have converged."""
        return state["high"] - state["low"] == 1

    def finish(self, state: State) -> None:
        """Store the upper ends of the brackets and the classes there."""
        self.high[state["ray"]] = state["high"]
        self.adjacent[state["ray"]] = state["adjacent"]


class Bisect:
    """The rays of a finished march that met a boundary, bisected below the grid step, in float64."""

    def __init__(self, march: March, *, tolerance: float) -> None:
        self.march, self.tolerance = march, tolerance
        self.index = (march.high < march.beyond).nonzero().squeeze(1)
        self.distance, self.adjacent = march.values[march.high], march.adjacent

    def start(self, index: Tensor) -> State:
        """Return the rows of the rays `index`, counted among these, with their widest brackets."""
        ray = self.index[index]
        position = self.march.high[ray]
        low, high = self.march.values[position - 1].double(), self.march.values[position].double()
        return {"ray": ray, "low": low, "high": high, "adjacent": self.adjacent[ray]}

    def step(self, state: State) -> None:
        """Look once along every ray and narrow its bracket."""
        middle = (state["low"] + state["high"]) / 2
        self.march.rays.narrow(state, middle, middle.float(), ~self.done(state))

    def done(self, state: State) -> Tensor:
        """Return which rows have converged."""
        low, high = state["low"], state["high"]
        middle = (low + high) / 2
        return (high - low <= self.tolerance) | (middle <= low) | (middle >= high)  # or nothing lies between

    def finish(self, state: State) -> None:
        """Store the upper ends of the brackets and the classes there."""
        self.distance[state["ray"]] = state["high"].to(self.distance.dtype)
        self.adjacent[state["ray"]] = state["adjacent"]


def near_boundary(model: nn.Module, x: Tensor, reach: float) -> Tensor:
    """Return which images (N,) bool have a boundary nearer than `reach` in one random direction of six, or more.

    To first order: along a random direction of RMS 1 the margin between the two largest logits changes at a rate of
    about its gradient's L2 norm times a standard normal number. False for a model without gradients. (A boundary in one
    direction of forty, or a thousand, as the criterion let `bracket` miss as many rays on digits and CIFAR-10.)

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L); the caller keeps it frozen.
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    reach : float
        RMS of a perturbation.
    """
    device, near = runtime.device_of(model, x), []
    for part in x.detach().split(runtime.rows_per_batch(model, tuple(x.shape[1:]), device)):
        batch = runtime.laid_out(model, part.to(device)).requires_grad_()
        with torch.enable_grad():
            first, second = model(batch).topk(2).values.T
            margin, slope = first - second, torch.zeros_like(first)
            if margin.requires_grad:
                slope = torch.autograd.grad(margin.sum(), batch)[0].flatten(1).norm(dim=1)
        near.append(margin.detach() <= reach * slope)
    return torch.cat(near)


@dataclass(frozen=True, eq=False)
class Audit(Record):
    """R rays of a profile, visited magnitude by magnitude.

    Attributes
    ----------
    image, direction : Tensor (R,) int64
        Which rays these are, each at most once.
    distance : Tensor (R,), dtype of the magnitudes
        The first magnitude at which the class differs from the image's, [0, 1] units; inf where it never does.
    adjacent : Tensor (R,) int16
        Class found there, -1 where it never differs.
    differs : Tensor (R,) bool
        Whether the profile states another distance or another class.
    """

    image: Tensor
    direction: Tensor
    distance: Tensor
    adjacent: Tensor
    differs: Tensor


def audit(
    model: nn.Module,
    x: Tensor,
    directions: Tensor,
    magnitudes: Tensor | Sequence[float],
    profile: Profile,
    *,
    rays: int = 512,
    generator: torch.Generator | None = None,
    precision: str = "float32",
) -> Audit:
    """Return what a full scan finds along a random sample of the rays of `profile`.

    "bracket" misses a class that is entered and left within one stride; the share of `differs` says how often that
    happened. "scan" must agree with every ray, up to rounding where a magnitude lies on the boundary.

    Parameters
    ----------
    model, x, directions, magnitudes
        As given to `probe`.
    profile : Profile
        What `probe` found there by "bracket" or "scan"; its `center` is taken for the class of each image.
    rays : int
        Number of rays drawn, without replacement; all where there are fewer.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one.
    precision : {"float32", "mixed"}
        As in `probe`.

    Returns
    -------
    Audit
        On the model's device; R is `rays` or, where there are fewer, N*K.

    Raises
    ------
    ValueError
        As `probe`, for a profile of another number of images or directions, and for `rays` below 1.
    """
    check_probed(x, directions, profile)
    checks.count(rays, name="rays")
    device = runtime.device_of(model, x)
    positions, profile = grid(magnitudes).to(device), profile.to(device)
    chosen = torch.randperm(profile.distance.numel(), generator=generator)[:rays].to(device)
    with runtime.frozen(model):
        label = Labeller(model, x, directions, precision=precision, reach=float(positions[-1]))
        sample = Rays(label, len(directions), profile.center, chosen)
        scan = March(sample, positions)
        drain(scan, sample.count, slots=sample.slots, every=1, device=device)
    image, direction = chosen // len(directions), chosen % len(directions)
    distance = scan.values[scan.high]
    stated = profile.distance[image, direction].to(distance.dtype)
    differs = (stated != distance) | (profile.adjacent[image, direction] != scan.adjacent)
    return Audit(image, direction, distance, as_adjacent(scan.adjacent, label.num_classes), differs)
