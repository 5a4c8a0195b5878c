"""The distance to the decision boundary along every ray, an image times a direction, and its audit.

The searches along rays are jobs for the pool of slots. Every row of it keeps a bracket of its ray: at `low` the class
is the image's, at `high` it is `adjacent`. The margin is Z_center - max of the other logits, positive up to there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.boundary.profile import Profile, as_adjacent, check_directions, check_probed
from nbsupport.labels import Labeller, margins
from nbsupport.pool import Jobs, State, drain
from nbsupport.record import Record

SEARCHES = ("bracket", "scan", "refine")
_BATCHES = 8  # slots of the pool, in batches of the model: the rows to be confirmed then fill batches too

# Of the march (`March`). Chosen on 42,000 rays of a CIFAR-10 ResNet-20, a 3x3 MNIST network and two of digits: going
# on however little the gradient at the image holds, 58 differ from the scan; with a least slope of .3, 5. Of 15,680
# rays of a PGD-trained MNIST network 8 differ where they are held to the slope at the image alone, 3 where to that
# far away too.
_CAUTION = 1.2  # times the slope seen, at which the margins at both ends of an interval may fall in between
_LEAST = 0.7  # of the slope at the image, or far away: no ray is taken to be flatter
_HELD = 8  # an image's gradient is compared after 1 / _HELD of a stride
_NINE_OF_TEN = 1.645  # standard deviations within which nine of ten normal numbers lie
_PENDING = 8  # positions looked at and not passed yet; the furthest of more are forgotten, and looked at again
_FAR = 6  # directions along which the slope far away is taken
_TINY = 1e-30


def probe(
    model: nn.Module,
    x: Tensor,
    directions: Tensor,
    magnitudes: Tensor | Sequence[float],
    *,
    search: str = "bracket",
    stride: int = 32,
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
        "scan" visits the grid in order: the definition. "bracket" visits a part of it (sphere tracing): the margins
        seen along the ray say how far it is safe to go. The same answer, unless the margin falls and rises again
        between two looks more steeply than it was seen to do (see `audit`). "refine" narrows the crossings that
        "bracket" finds below the grid step, by secants of the margin.
    stride : int
        The longest step, in grid steps, at least 1 (not used by "scan"). With 1 every magnitude is visited.
    tolerance : float
        "refine" stops when the bracket is no longer than this, [0, 1] units, > 0 (or cannot be narrowed).
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
        rays, pace = Rays(label, len(directions), label.centers()), None
        if search != "scan":
            pace = paces(model, x, rays.center, directions, stride, positions)
        march = March(rays, positions, stride=1 if search == "scan" else stride, pace=pace)
        rays.run(march)
        reached = march.high < march.beyond
        distance, adjacent = march.values[march.high], march.adjacent
        if search == "refine":
            secant = Secant(march, tolerance=tolerance)
            rays.run(secant, len(secant.index))
            distance, adjacent = secant.distance, secant.adjacent
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

    def run(self, jobs: Jobs, count: int | None = None) -> None:
        """Run `jobs` along these rays through the pool; `count` None: one for each ray. Raises as `Labeller` does."""
        # Looking at who is done after every step: a step takes eight batches, beside which the host's wait is short.
        drain(jobs, self.count if count is None else count, slots=self.slots, every=1, device=self.label.device)
        self.label.require_finite()

    def look(self, state: State, scale: Tensor, *, own: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the classes (R,) at `scale` (R,) along the rays of `state`, which are met, and the margins there.

        Margins are those of the classes of the images where these hold, or with `own` wherever they are: negative then.
        """
        image, direction = self.ends(state["ray"])
        found, margin = self.label.look(image, direction, scale, self.center[image] if own else None)
        return found, (found == self.center[image]) == self.returning, margin


class March:
    """Every ray on the grid, at positions 0 (the image), 1 to M (the magnitudes), M + 1 (beyond the grid).

    Sphere tracing: the margin says how far it is safe to go. Up to `low` the class is known not to have changed, and
    `high` is the nearest position seen where it has. An interval between two looks is passed over only if the margins
    at its ends, both falling inwards at `_CAUTION` times the steepest slope seen lately, cannot meet zero. Otherwise it
    is looked into where they would be lowest. A ray marches on to where a margin that goes on falling as it did would
    just pass that test: at most `stride` positions, and no further than it has come so far plus the length over which
    the gradient at its image holds. Over that length the slope it is held to goes from that at the image to that far
    away. It is done when `low` and `high` are neighbours. With a stride of 1 every position
    is visited.

    Rays start from the positions `first` (R,), or from the image at the pace (4, N) that `paces` returns.
    """

    def __init__(
        self, rays: Rays, grid: Tensor, *, stride: int = 1, pace: Tensor | None = None, first: Tensor | None = None
    ) -> None:
        self.rays, self.stride, self.beyond = rays, stride, len(grid) + 1
        self.paced = pace is not None
        self.pace = torch.zeros(4, len(rays.center), device=grid.device) if pace is None else pace
        self.first = torch.zeros(rays.count, dtype=torch.int64, device=grid.device) if first is None else first
        self.values = torch.cat((grid.new_zeros(1), grid, grid.new_full((1,), math.inf)))
        self.scale = self.values.float()
        self.high, self.adjacent = torch.empty_like(self.first), torch.empty_like(self.first)
        self.margins = torch.empty(2, rays.count, device=grid.device)  # at the position before `high`, and at it

    def start(self, index: Tensor) -> State:
        """Return the rows of the rays `index`, with their widest brackets."""
        margin, slope, far, held = self.pace[:, self.rays.ends(index)[0]]
        state = {"ray": index, "low": self.first[index], "high": torch.full_like(index, self.beyond)}
        state |= {"at_low": margin, "at_high": torch.full_like(margin, torch.nan)}
        state |= {"slope": slope, "near": slope, "far": far, "fall": torch.zeros_like(margin), "held": held}
        # Between low and high, nearest first; 0: none.
        pending = torch.zeros_like(index)[:, None].repeat(1, _PENDING)
        state |= {"pending": pending, "heights": pending.float()}
        return state | {"adjacent": torch.full_like(index, -1)}

    def step(self, state: State) -> Tensor:
        """Look once along every ray and narrow its bracket; return the positions (R,) looked at."""
        running = ~self.done(state)
        low, at_low, slope = state["low"], state["at_low"], state["slope"]
        waiting = state["pending"][:, 0] > 0
        end = torch.where(waiting, state["pending"][:, 0], state["high"])
        at_end = torch.where(waiting, state["heights"][:, 0], state["at_high"])
        inside, width = end < self.beyond, self.scale[end] - self.scale[low]

        fall = torch.where(inside, (at_low - at_end) / width, state["fall"])
        onward = 2 * at_low / (_CAUTION * slope + fall).clamp(min=_TINY)
        onward = torch.where(inside, onward, torch.minimum(onward, self.scale[low] + state["held"]))
        lowest = (width + (at_low - at_end) / slope.clamp(min=_TINY)) / 2
        length = torch.where(waiting, lowest, onward)
        at = torch.searchsorted(self.scale, self.scale[low] + length, right=True) - 1
        furthest = torch.minimum(low + self.stride, end - 1)
        at = torch.minimum(torch.maximum(at, low + 1), furthest).clamp(max=self.beyond - 1)
        found, met, margin = self.rays.look(state, self.scale[at], own=self.paced)

        state["fall"] = (at_low - margin) / (self.scale[at] - self.scale[low])
        rise = ((at_end - margin) / (self.scale[end] - self.scale[at])).abs()
        distance = (self.scale[at] / state["held"].clamp(min=_TINY)).clamp(max=1)
        least = _LEAST * state["near"].lerp(state["far"], distance)
        seen = torch.maximum(state["fall"].abs(), torch.where(inside, torch.maximum(slope, rise), 0))
        state["slope"] = torch.maximum(seen, least)
        met, missed = running & met, running & ~met
        for name, value in (("high", at), ("at_high", margin), ("adjacent", found)):
            state[name] = torch.where(met, value, state[name])
        for name, value in (("pending", at), ("heights", margin)):
            pushed = torch.cat((value[:, None], state[name][:, :-1]), 1)
            state[name] = torch.where(missed[:, None], pushed, state[name])
            state[name] = state[name].masked_fill(met[:, None], 0)  # what lies beyond `high` does not matter
        self._pass_over(state)
        return at

    def _pass_over(self, state: State) -> None:
        """Move `low` over the intervals in which the class cannot have changed."""
        for _ in range(_PENDING):
            low, nearest, height = state["low"], state["pending"][:, 0], state["heights"][:, 0]
            fall = _CAUTION * state["slope"] * (self.scale[nearest] - self.scale[low])
            safe = (nearest > 0) & ((nearest == low + 1) | (state["at_low"] + height > fall))
            state["low"] = torch.where(safe, nearest, low)
            state["at_low"] = torch.where(safe, height, state["at_low"])
            for name in ("pending", "heights"):
                shifted = torch.cat((state[name][:, 1:], torch.zeros_like(state[name][:, :1])), 1)
                state[name] = torch.where(safe[:, None], shifted, state[name])

    def done(self, state: State) -> Tensor:
        """Return which rows have converged."""
        return state["high"] - state["low"] == 1

    def finish(self, state: State) -> None:
        """Store the upper ends of the brackets, the classes there, and the margins at both ends."""
        self.high[state["ray"]] = state["high"]
        self.adjacent[state["ray"]] = state["adjacent"]
        self.margins[:, state["ray"]] = torch.stack((state["at_low"], state["at_high"]))


class Secant:
    """The rays of a finished march that met a boundary, narrowed below the grid step by secants, in float64."""

    def __init__(self, march: March, *, tolerance: float) -> None:
        self.march, self.tolerance = march, tolerance
        self.index = (march.high < march.beyond).nonzero().squeeze(1)
        self.distance, self.adjacent = march.values[march.high], march.adjacent

    def start(self, index: Tensor) -> State:
        """Return the rows of the rays `index`, counted among these, with their widest brackets."""
        ray = self.index[index]
        position = self.march.high[ray]
        low, high = self.march.values[position - 1].double(), self.march.values[position].double()
        at_low, at_high = self.march.margins[:, ray].double()
        state = {"ray": ray, "low": low, "high": high, "at_low": at_low, "at_high": at_high}
        return state | {"adjacent": self.adjacent[ray], "looks": torch.zeros_like(ray)}

    def step(self, state: State) -> None:
        """Look once along every ray and narrow its bracket."""
        running = ~self.done(state)
        low, high = state["low"], state["high"]
        at = self._aim(state)
        found, met, margin = self.march.rays.look(state, at.float(), own=True)
        state["low"] = torch.where(running & ~met, at, low)
        state["at_low"] = torch.where(running & ~met, margin.double(), state["at_low"])
        state["high"] = torch.where(running & met, at, high)
        state["at_high"] = torch.where(running & met, margin.double(), state["at_high"])
        state["adjacent"] = torch.where(running & met, found, state["adjacent"])
        state["looks"] += 1

    def _aim(self, state: State) -> Tensor:
        """Return where (R,) to look next: at the secant's root, or in the middle at every third look."""
        low, high, fall = state["low"], state["high"], state["at_low"] - state["at_high"]
        middle, width = (low + high) / 2, high - low
        root = low + width * torch.where(fall > 0, state["at_low"] / fall, 0.5)
        # Half a tolerance to the longer side, so that the end there follows and two looks close the bracket. On digits
        # a ray takes 2.8 looks from a grid step of .01 to 1e-4, where bisection takes 7.
        half = self.tolerance / 2
        root = torch.where(root < middle, root + half, root - half)
        root = torch.minimum(torch.maximum(root, low + half / 2), high - half / 2)
        return torch.where(state["looks"] % 3 == 2, middle, root)

    def done(self, state: State) -> Tensor:
        """Return which rows have converged."""
        low, high = state["low"], state["high"]
        middle = (low + high) / 2
        return (high - low <= self.tolerance) | (middle <= low) | (middle >= high)  # or nothing lies between

    def finish(self, state: State) -> None:
        """Store the upper ends of the brackets and the classes there."""
        self.distance[state["ray"]] = state["high"].to(self.distance.dtype)
        self.adjacent[state["ray"]] = state["adjacent"]


def paces(model: nn.Module, x: Tensor, center: Tensor, directions: Tensor, stride: int, positions: Tensor) -> Tensor:
    """Return the margins of the images, how steep these are nearby and far away, and how far a gradient holds (4, N).

    To first order the margin along a random direction of RMS 1 changes at a rate of the gradient's L2 norm times a
    standard normal number; a slope is the one that nine rays in ten do not exceed: at the image, and at the last
    magnitude along a few of the directions. The gradient at the image holds as far as it takes to change by its own
    norm, extrapolated from an eighth of a stride along the first direction. A model without gradients gives slopes of
    0 that hold nowhere.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L); the caller keeps it frozen.
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    center : Tensor (N,) int64
        Their classes, on the model's device.
    directions : Tensor (K, C*H*W) float32
        Of the rays.
    stride : int
        The longest step, in grid steps.
    positions : Tensor (M,)
        The grid.
    """
    device, found = center.device, []
    length = float(positions[max(min(stride, len(positions)) // _HELD, 1) - 1])
    along = directions[:_FAR].to(device).view(-1, *x.shape[1:])
    spread = _NINE_OF_TEN * torch.linalg.vector_norm(directions, dim=1).max().to(device) / math.sqrt(x[0].numel())
    rows = runtime.rows_per_batch(model, tuple(x.shape[1:]), device)
    for part, label in zip(x.detach().split(rows), center.split(rows), strict=True):
        part = part.to(device)
        margin, here = _margin_gradient(model, part, label)
        _, further = _margin_gradient(model, part + length * along[0], label)
        slope = spread * here.norm(dim=1)
        away = positions[-1] * torch.arange(1, len(along) + 1, device=device) / len(along)
        far = [
            _margin_gradient(model, part + t * one, label)[1].norm(dim=1) for t, one in zip(away, along, strict=True)
        ]
        held = length * here.norm(dim=1) / (further - here).norm(dim=1).clamp(min=_TINY)
        found.append(torch.stack((margin, slope, spread * torch.stack(far).amax(0), held)))
    return torch.cat(found, 1)


def _margin_gradient(model: nn.Module, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return Z_label - max of the others (N,) at clip(x), and its gradients (N, D), 0 for a model without any."""
    batch = x.clamp(0, 1).requires_grad_()
    with torch.enable_grad():
        margin = margins(runtime.forward(model, batch), label)
        gradient = torch.autograd.grad(margin.sum(), batch)[0] if margin.requires_grad else torch.zeros_like(batch)
    return margin.detach(), gradient.flatten(1)


@dataclass(frozen=True, eq=False)
class Trace:
    """The margin along one ray, and where "bracket" looked.

    Attributes
    ----------
    magnitude : Tensor (M + 1,)
        0, the image itself, and the grid.
    margin : Tensor (M + 1,) float32
        Z_center - max of the other logits there.
    looked : Tensor (looks,) int64
        The positions in the grid that the search looked at, in order; 0 is the image, where it starts.
    """

    magnitude: Tensor
    margin: Tensor
    looked: Tensor


def trace(
    model: nn.Module, x: Tensor, direction: Tensor, magnitudes: Tensor | Sequence[float], *, stride: int = 32
) -> Trace:
    """Return what "bracket" sees along one ray, beside all that it might have seen.

    Parameters
    ----------
    model, magnitudes, stride
        As given to `probe`.
    x : Tensor (1, C, H, W) float32
        One image in [0, 1].
    direction : Tensor (1, C*H*W) float32
        One direction.

    Returns
    -------
    Trace
        On the model's device.

    Raises
    ------
    ValueError
        As `probe`.
    """
    checks.images(x)
    check_directions(direction, x[0].numel())
    for given, name in ((x, "image"), (direction, "direction")):
        if len(given) != 1:
            raise ValueError(f"expected one {name}, got {len(given)}; take one, such as the first, by [:1]")
    positions = grid(magnitudes).to(runtime.device_of(model, x))
    with runtime.frozen(model):
        label = Labeller(model, x, direction)
        rays = Rays(label, 1, label.centers())
        march = March(rays, positions, stride=stride, pace=paces(model, x, rays.center, direction, stride, positions))
        one = torch.zeros(1, dtype=torch.int64, device=positions.device)
        state, looked = march.start(one), [one]
        while not bool(march.done(state)):
            looked.append(march.step(state))
        everywhere = one.expand(len(positions) + 1)
        _, margin = label.look(everywhere, everywhere, march.scale[:-1], rays.center.expand_as(everywhere))
    return Trace(march.values[:-1], margin, torch.cat(looked))


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

    "bracket" may miss a class that is entered and left between two looks; the share of `differs` says how often that
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
        sample.run(scan)
    image, direction = chosen // len(directions), chosen % len(directions)
    distance = scan.values[scan.high]
    stated = profile.distance[image, direction].to(distance.dtype)
    differs = (stated != distance) | (profile.adjacent[image, direction] != scan.adjacent)
    return Audit(image, direction, distance, as_adjacent(scan.adjacent, label.num_classes), differs)
