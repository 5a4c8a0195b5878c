"""How the boundary looks: its normals where rays cross it, where rays come back, and planes through an image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime
from nbsupport.boundary.probe import March, Rays, grid
from nbsupport.boundary.profile import Profile, check_directions, check_probed, directions
from nbsupport.labels import Labeller
from nbsupport.record import Record

_BATCHES = 8  # places labelled at once, in batches of the model
_PARALLEL = 0.999  # cosine
THIRDS = ("random", "gradient")
_FINER = 4  # steps into which `plane` divides a cell where its corners are of more than one class
_BESIDE = 1e-4  # of a direction's length, left over beside another, at most: they span no plane


@dataclass(frozen=True, eq=False)
class Geometry(Record):
    """How the boundary around N images looks, in P planes and along K rays.

    Attributes
    ----------
    triple : Tensor (N, P) int64
        Cells of each plane in which three or more classes meet: see `triple_points`.
    reached : Tensor (N, K) bool
        Whether the ray meets a boundary, as the profile has it.
    returned : Tensor (N, K) bool
        Whether it then comes back to the class of its image: see `reentry`.
    angle : Tensor (N, K) float64
        Between the ray and the normal where it crosses, in degrees; NaN where it meets no boundary: see `normals`.
    """

    triple: Tensor
    reached: Tensor
    returned: Tensor
    angle: Tensor


def geometry(
    model: nn.Module,
    x: Tensor,
    directions: Tensor,
    magnitudes: Tensor | Sequence[float],
    profile: Profile,
    *,
    rays: int,
    pairs: int,
    negate: bool,
    generator: torch.Generator | None = None,
) -> Geometry:
    """Return the triple points, re-entries and normals of the boundary around each image.

    Parameters
    ----------
    model, x, directions, magnitudes
        As given to `probe`. Planes reach as far as the last magnitude.
    profile : Profile
        What `probe` found there, one row an image of `x`.
    rays : int
        Re-entries and normals are found along the first `rays` directions, or all where there are fewer.
    pairs : int
        Number of planes, at most; all pairs of directions where there are fewer.
    negate : bool
        Whether the second half of `directions` are the negations of the first, which span no plane with these.
    generator : torch.Generator, optional
        On the CPU, for the planes; None takes torch's global one.

    Returns
    -------
    Geometry
        On the model's device; K is the number of rays, P of planes.

    Raises
    ------
    ValueError
        As `triple_points`, `reentry` and `normals`.
    """
    check_probed(x, directions, profile)
    checks.count(rays, name="rays")
    entries = profile.distance[:, :rays], profile.adjacent[:, :rays], profile.reached[:, :rays]
    near, along = Profile(profile.center, *entries), directions[:rays]
    returned = reentry(model, x, along, magnitudes, near).returned
    reached = near.reached.to(returned.device)
    angle = torch.full(reached.shape, torch.nan, dtype=torch.float64, device=reached.device)
    angle[reached] = normals(model, x, along, near).angle
    orthogonal = directions[: len(directions) // 2] if negate else directions
    planes = min(pairs, len(orthogonal) * (len(orthogonal) - 1) // 2)
    triple = triple_points(model, x, orthogonal, reach=float(magnitudes[-1]), pairs=planes, generator=generator)
    return Geometry(triple, reached, returned, angle)


@dataclass(frozen=True, eq=False)
class Normals(Record):
    """How the boundary stands at the crossings of R rays.

    Attributes
    ----------
    normal : Tensor (R, C*H*W) float32
        Of unit L2 norm, pointing into the adjacent class; zero where the gradient vanishes.
    angle : Tensor (R,) float64
        Between normal and direction, in degrees: 0 where the ray crosses the boundary at a right angle, 90 where it
        grazes it; NaN where the gradient vanishes.
    """

    normal: Tensor
    angle: Tensor


def normals(
    model: nn.Module, x: Tensor, directions: Tensor, profile: Profile, *, rays: Tensor | None = None
) -> Normals:
    """Return the normals of the boundary at the crossings that `probe` found.

    The normal is the gradient of Z_adjacent - Z_center at the crossing clip(x + t d), t being the distance in the
    profile. Found by "refine" the point lies on the boundary up to the tolerance, by the other searches up to one
    step of the grid beyond it: the normal is then that of the level set through that point.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L); differentiable.
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    directions : Tensor (K, C*H*W) float32
        As given to `probe`; of any length.
    profile : Profile
        What `probe` found there.
    rays : Tensor (R, 2) int64, optional
        The rays as (image, direction), each of which meets a boundary. None: all that do, in order; the result then
        holds C*H*W numbers for each of them.

    Returns
    -------
    Normals
        On the model's device, one row a ray.

    Raises
    ------
    ValueError
        As `probe`, for a profile of another number of images or directions, for rays that do not exist or meet no
        boundary, and for logits that are not finite or of wrong shape.
    """
    check_probed(x, directions, profile)
    device = runtime.device_of(model, x)
    x, directions, profile = x.detach().to(device), directions.detach().to(device), profile.to(device)
    image, direction = _crossings(profile, rays)
    rows = runtime.rows_per_batch(model, tuple(x.shape[1:]), device)
    normal = torch.empty(len(image), directions.shape[1], device=device)
    angle = torch.empty(len(image), dtype=torch.float64, device=device)
    with runtime.frozen(model):
        for start in range(0, len(image), rows):
            part = slice(start, start + rows)
            i, k = image[part], direction[part]
            step = profile.distance[i, k].float()[:, None] * directions[k]
            points = (x[i] + step.view(-1, *x.shape[1:])).clamp(0, 1)
            gradient = margin_gradient(model, points, profile.adjacent[i, k].long(), profile.center[i])
            normal[part], angle[part] = _unit(gradient), _degrees(gradient, directions[k])
    return Normals(normal, angle)


def _crossings(profile: Profile, rays: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the images and directions (R,) of `rays`, on the profile's device."""
    if rays is None:
        image, direction = profile.reached.nonzero().T
        return image, direction
    if not isinstance(rays, Tensor) or rays.dtype != torch.int64 or rays.ndim != 2 or rays.shape[1] != 2:
        got = f"{rays.dtype} of shape {tuple(rays.shape)}" if isinstance(rays, Tensor) else type(rays).__name__
        raise ValueError(f"expected rays as int64 pairs (image, direction) of shape (R, 2), got {got}")
    image, direction = rays.to(profile.reached.device).T
    for index, count, name in zip((image, direction), profile.reached.shape, ("images", "directions"), strict=True):
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= count):
            raise ValueError(
                f"expected rays of {count} {name}, from 0 to {count - 1}, got {int(index.min())} to {int(index.max())}"
            )
    if not bool(profile.reached[image, direction].all()):
        raise ValueError(
            "expected rays that meet a boundary, got some that do not; choose from profile.reached.nonzero()"
        )
    return image, direction


def _unit(gradient: Tensor) -> Tensor:
    """Return `gradient` (R, D) with rows of L2 norm 1, zeros where they are zero."""
    largest = gradient.abs().amax(1, keepdim=True)  # first, so that squares of small gradients do not underflow
    scaled = torch.where(largest > 0, gradient / largest, 0.0)
    return torch.nn.functional.normalize(scaled, dim=1)


def _degrees(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles (R,) float64 between the rows of `a` and `b` (R, D); NaN where one is zero."""
    a, b = (v.double() / v.double().norm(dim=1, keepdim=True) for v in (a, b))
    # Exact near 0 and 180 degrees, where the arc cosine loses half of the digits.
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))


@dataclass(frozen=True, eq=False)
class Reentry(Record):
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
    check_probed(x, directions, profile)
    device = runtime.device_of(model, x)
    positions, profile = grid(magnitudes).to(device), profile.to(device)
    distance = torch.full_like(profile.distance, math.inf, dtype=positions.dtype).flatten()
    passed = torch.searchsorted(positions, profile.distance.to(positions.dtype).flatten(), right=True)
    walking = (passed < len(positions)).nonzero().squeeze(1)  # inf: beyond the grid
    with runtime.frozen(model):
        label = Labeller(model, x, directions, precision=precision, reach=float(positions[-1]))
        rays = Rays(label, len(directions), profile.center, walking, returning=True)
        march = March(rays, positions, first=passed[walking])
        rays.run(march)
    distance[walking] = march.values[march.high]
    distance = distance.view(profile.distance.shape)
    return Reentry(distance, distance.isfinite())


def triple_points(
    model: nn.Module,
    x: Tensor,
    directions: Tensor,
    *,
    reach: float,
    pairs: int = 64,
    size: int = 33,
    generator: torch.Generator | None = None,
    precision: str = "float32",
) -> Tensor:
    """Return in how many cells of random planes through each image three or more classes meet.

    A plane is x + a d_i + b d_j, clipped to [0, 1], with i != j; a and b take `size` values from -reach to reach. A
    cell has four neighbouring places of that grid for its corners, and counts where these have three classes or
    more. In a plane, three regions usually meet in single points; a cell that counts holds one, or comes near it.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    directions : Tensor (K, C*H*W) float32
        At least two, of which no two are parallel: those of `boundary.directions` without their negations.
    reach : float
        Of the grid, in RMS where the directions have RMS 1, [0, 1] units, > 0; usually the last magnitude.
    pairs : int
        Number of planes P, drawn once for all images, without replacement: at most K (K - 1) / 2.
    size : int
        Places along each side of the grid, at least 2.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one.
    precision : {"float32", "mixed"}
        "mixed": bfloat16 with every label near a tie confirmed in float32 (see `nbsupport.labels.Labeller`).

    Returns
    -------
    Tensor (N, pairs) int64
        On the model's device; from 0 to (size - 1)^2.

    Raises
    ------
    ValueError
        For images outside [0, 1], directions of wrong shape or type, fewer than two or parallel ones, more pairs
        than there are, a reach or size out of range, and for logits that are not finite or of wrong shape.

    Notes
    -----
    N * pairs * size^2 forward passes. Memory for eight batches of the model, or one plane where that is more, apart
    from the result.
    """
    checks.images(x)
    check_directions(directions, x[0].numel())
    checks.number(reach, name="reach", open_low=True)
    checks.count(pairs, name="pairs")
    checks.count(size, name="size", low=2)
    drawn = _pairs(directions, pairs, generator)
    cells = []
    with runtime.frozen(model):
        label = Labeller(model, x, directions, precision=precision, reach=2**0.5 * reach)
        every, drawn = torch.arange(len(x) * pairs, device=label.device), drawn.to(label.device)
        offsets = torch.linspace(-reach, reach, size).to(label.device)
        for number in every.split(max(1, _BATCHES * label.rows // size**2)):
            planes = torch.cat((number[:, None] // pairs, drawn[number % pairs]), 1)
            cells.append(_triple_cells(grid_labels(label, planes, offsets, offsets)))
    return torch.cat(cells).view(len(x), pairs)


def _pairs(directions: Tensor, pairs: int, generator: torch.Generator | None) -> Tensor:
    """Return rows (pairs, 2) of two directions that span a plane, each at most once."""
    unit = torch.nn.functional.normalize(directions.detach().cpu(), dim=1)
    parallel = ((unit @ unit.T).abs() > _PARALLEL).triu(1)
    if bool(parallel.any()) or not bool(unit.any(1).all()):
        raise ValueError(
            "expected directions of which no two are parallel and none is zero; pass boundary.directions(..., "
            "negate=False), or the first half of those with negations"
        )
    every = torch.combinations(torch.arange(len(directions)))
    if pairs > len(every):
        raise ValueError(
            f"expected at most {len(every)} pairs of {len(directions)} directions, got {pairs}; "
            "lower pairs or pass more directions"
        )
    return every[torch.randperm(len(every), generator=generator)[:pairs]]


def _triple_cells(labels: Tensor) -> Tensor:
    """Return how many cells (P,) of the grids `labels` (P, S, S) have three or more classes at their corners."""
    corners = torch.stack((labels[:, :-1, :-1], labels[:, :-1, 1:], labels[:, 1:, :-1], labels[:, 1:, 1:]), -1)
    changes = (corners.sort(-1).values.diff(dim=-1) != 0).sum(-1)  # the number of classes less one
    return (changes >= 2).sum((1, 2))


@dataclass(frozen=True, eq=False)
class Slice:
    """The classes around one image in a plane, and where its versions lie.

    Attributes
    ----------
    labels : Tensor (S, S) int64, S = 4 (size - 1) + 1
        The model's class at image + across[column] * u + up[row] * v, clipped to [0, 1].
    across, up : Tensor (S,) float64
        Offsets in RMS, [0, 1] units.
    u, v : Tensor (C*H*W,) float32
        Orthogonal directions of RMS 1.
    points : dict
        Name of the version -> its place (2,).
    """

    labels: Tensor
    across: Tensor
    up: Tensor
    u: Tensor
    v: Tensor
    points: dict[str, Tensor]


def plane(
    model: nn.Module,
    x: Tensor,
    x_adv: Tensor,
    *,
    reach: float,
    third: str | Tensor = "random",
    size: int = 81,
    generator: torch.Generator | None = None,
) -> Slice:
    """Return the classes in the plane through `x`, `x_adv` and a third point.

    `u` points from `x` to `x_adv`; where they are equal it is random. `v` is the part of the third direction that is
    orthogonal to `u`. The slice ends `reach` before `x` and `reach` beyond `x_adv`, and is as high as wide.

    First a coarse grid is labelled. Then the cells whose corners are of more than one class are labelled at four times
    its resolution, and the others filled with the class of their corners.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x, x_adv : Tensor (C, H, W) float32
        In [0, 1], of at least two pixels.
    reach : float
        Width of the margin on each side, in RMS, [0, 1] units, > 0.
    third : {"random", "gradient"} or Tensor (C*H*W,) float32
        "gradient": that of the runner-up's logit minus the logit of the class of `x`, at `x`: the steepest way out
        of the class. A tensor is taken as it is, of any length.
    size : int
        Places along each side of the coarse grid, at least 2.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one. Two directions are drawn, whatever `third` is.

    Returns
    -------
    Slice
        On the CPU; `points` holds "x" and, where it differs, "x_adv".

    Raises
    ------
    ValueError
        For images out of range or of different shapes, a `reach` that is not above 0, an unknown `third`, one that
        spans no plane with `u`, and for logits that are not finite or of wrong shape.
    """
    pair = _checked(x, x_adv)
    checks.number(reach, name="reach", open_low=True)
    checks.count(size, name="size", low=2)
    if isinstance(third, Tensor):
        check_directions(third[None], x.numel(), name="third")
    else:
        checks.choice(third, THIRDS, name="third")
    drawn = directions(x.numel(), 2, negate=False, generator=generator)
    change = (pair[1] - pair[0]).flatten()
    length = float(change.square().mean().sqrt())
    u = change / length if length else drawn[0]
    with runtime.frozen(model):
        ways = {"random": lambda: drawn[1], "gradient": lambda: _way_out(model, pair[:1])}
        v = _beside(u, third.detach().cpu() if isinstance(third, Tensor) else ways[third]())
        across = torch.linspace(-reach, length + reach, (size - 1) * _FINER + 1, dtype=torch.float64)
        up = across - length / 2
        label, offsets = Labeller(model, pair[:1], torch.stack((u, v))), torch.stack((across, up)).float()
        coarse = grid_labels(label, torch.tensor([[0, 0, 1]]), *offsets[:, ::_FINER])[0].cpu()
        labels = _refined(label, coarse, offsets)
    points = {"x": torch.zeros(2), **({"x_adv": torch.tensor([length, 0.0])} if length else {})}
    return Slice(labels, across, up, u, v, points)


def _refined(label: Labeller, labels: Tensor, offsets: Tensor) -> Tensor:
    """Return the classes `labels` (S, S) of a plane on the finer grid of its `offsets` (2, T).

    Places in cells whose corners are of one class get that class, the others are evaluated.
    """
    cell = torch.arange(offsets.shape[1]).div(_FINER, rounding_mode="floor").clamp(max=len(labels) - 2)
    corners = torch.stack((labels[:-1, :-1], labels[:-1, 1:], labels[1:, :-1], labels[1:, 1:]))
    mixed = (corners != corners[0]).any(0)
    fine = labels[cell[:, None], cell]
    row, column = mixed[cell[:, None], cell].nonzero(as_tuple=True)
    where = torch.stack((offsets[0, column], offsets[1, row]), 1).to(label.device)
    image = torch.zeros(len(row), dtype=torch.int64, device=label.device)
    fine[row, column] = label(image, torch.arange(2, device=label.device).expand(len(row), 2), where).cpu()
    return fine


def grid_labels(label: Labeller, planes: Tensor, across: Tensor, up: Tensor) -> Tensor:
    """Return the classes (P, B, A) int64 on the grids of P planes, each through an image along two offsets.

    `planes` (P, 3) int64: the image of `label`, the offset along the columns at `across` (A,) float32, and the offset
    along the rows at `up` (B,) float32.
    """
    rows, columns = len(up), len(across)
    planes, across, up = planes.to(label.device), across.to(label.device), up.to(label.device)
    place = torch.stack((across.repeat(rows), up.repeat_interleave(columns)), 1)  # (B*A, 2)
    each = planes.repeat_interleave(len(place), 0)  # (P*B*A, 3)
    return label(each[:, 0], each[:, 1:], place.repeat(len(planes), 1)).view(-1, rows, columns)


def margin_gradient(model: nn.Module, points: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """Return the gradients (R, C*H*W) of Z_upper - Z_lower at `points` (R, C, H, W), for classes (R,) each.

    One batch, on the model's device; the caller keeps the model frozen.
    """
    batch = points.detach().requires_grad_()
    with torch.enable_grad():
        z = runtime.forward(model, batch)
        checks.logits(z, count=len(points))
        difference = z.gather(1, upper[:, None]) - z.gather(1, lower[:, None])
        (gradient,) = torch.autograd.grad(difference.sum(), batch)
    return gradient.flatten(1)


def _checked(x: Tensor, x_adv: Tensor) -> Tensor:
    """Return both images as (2, C, H, W) on the CPU."""
    for image, name in ((x, "x"), (x_adv, "x_adv")):
        if isinstance(image, Tensor) and image.ndim != 3:
            raise ValueError(
                f"expected {name} as one image (C, H, W), got {tuple(image.shape)}; take one, such as {name}[0]"
            )
        checks.images(image[None] if isinstance(image, Tensor) else image, name=name)
    if x.shape != x_adv.shape:
        raise ValueError(f"expected x and x_adv of one shape, got {tuple(x.shape)} and {tuple(x_adv.shape)}")
    if x.numel() < 2:
        raise ValueError("expected images of at least two pixels, which a plane needs, got one")
    return torch.stack((x.detach().cpu(), x_adv.detach().cpu()))


def _way_out(model: nn.Module, x: Tensor) -> Tensor:
    """Return the gradient (D,) of the runner-up's logit minus the winner's at `x` (1, C, H, W)."""
    x = x.to(runtime.device_of(model, x))
    with torch.no_grad():
        z = runtime.forward(model, x)
    checks.logits(z, count=1)
    winner, runner_up = z.topk(2).indices[0]
    return margin_gradient(model, x, runner_up[None], winner[None])[0].cpu()


def _beside(u: Tensor, third: Tensor) -> Tensor:
    """Return the part of `third` (D,) that is orthogonal to `u` (D,) of RMS 1, scaled to RMS 1."""
    v = third - (third @ u) / u.numel() * u
    size = v.square().mean().sqrt()
    if float(size) <= _BESIDE * float(third.square().mean().sqrt()):
        raise ValueError(
            "expected a third direction that spans a plane with x and x_adv, got zero or one parallel to x_adv - x; "
            'pass third="random"'
        )
    return v / size
