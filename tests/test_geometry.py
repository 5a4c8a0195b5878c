"""What the boundary looks like: normals, re-entries and triple points, each against a closed form or a slow loop."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from rugged import DIM, IN_SHAPE, Rugged, images
from torch import Tensor, nn

from nbsupport import boundary
from nbsupport.boundary import Profile
from nbsupport.models.analytic import Ball, HalfSpace, Wedge

GRID = [0.02 * (i + 1) for i in range(30)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def around(dim: int, images: int = 6) -> tuple[Tensor, Tensor]:
    """Images near the middle of [0, 1], and directions along which no pixel leaves it up to .8."""
    x = 0.5 + 0.1 * (torch.rand(images, 1, 1, dim, generator=generator(9)) - 0.5)
    d = boundary.directions(dim, dim, negate=True, generator=generator(10))
    return x, 0.5 * d / d.abs().amax(1, keepdim=True)


def degrees(a: Tensor, b: Tensor) -> Tensor:
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)
    return torch.rad2deg(cosine.acos())


def test_all_normals_of_a_half_space_are_its_own() -> None:
    normal = torch.tensor([1.0, -2, 0.5] * 4)
    x, d = around(12)
    model = HalfSpace(normal, -1.0)
    profile = boundary.probe(model, x, d, GRID)
    found = boundary.normals(model, x, d, profile)
    image, direction = profile.reached.nonzero().T
    assert len(image) > 30
    assert profile.center.unique().numel() == 2  # from both sides
    outwards = torch.where(profile.center[image] == 0, 1.0, -1.0)[:, None] * normal / normal.norm()
    torch.testing.assert_close(found.normal, outwards)
    torch.testing.assert_close(found.angle, degrees(outwards, d[direction]))
    assert bool((found.angle < 90).all())  # a ray that crosses goes with the normal
    assert found.angle.dtype == torch.float64


@pytest.mark.parametrize(("direction", "angle"), [([3.0, 0], 0.0), ([1.0, 1], 45.0), ([1.0, 1e-4], math.degrees(1e-4))])
def test_angles_are_exact(direction: list[float], angle: float) -> None:
    model, x, d = HalfSpace(torch.tensor([2.0, 0]), 1.1), torch.full((1, 1, 1, 2), 0.5), torch.tensor([direction])
    found = boundary.normals(model, x, d, boundary.probe(model, x, d, GRID))
    assert found.angle.item() == pytest.approx(angle, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("start", "sign"), [(0.0, 1.0), (0.6, -1.0)])  # from inside outwards, and back
def test_normals_of_a_ball_are_radial(start: float, sign: float) -> None:
    x, d = around(12)
    ball = Ball(torch.full((12,), 0.5), 0.4)
    x = x + start * d[0].view(1, 1, 1, 12)
    profile = boundary.probe(ball, x, d, GRID, search="refine", tolerance=1e-6)
    found = boundary.normals(ball, x, d, profile)
    image, direction = profile.reached.nonzero().T
    assert len(image) > 2
    crossing = x[image].flatten(1) + profile.distance[profile.reached][:, None] * d[direction]
    radial = sign * (crossing - 0.5)
    torch.testing.assert_close(found.normal, radial / radial.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.angle, degrees(radial, d[direction]), atol=1e-3, rtol=0)


def test_normals_of_a_wedge_lie_across_its_edges() -> None:
    first, second = torch.linalg.qr(torch.randn(12, 2, generator=generator(7))).Q.T
    axes = torch.tensor([0.3, 1.5, 2.9, 4.4])
    model = Wedge(first, second, center=torch.full((12,), 0.5), axes=axes.tolist())
    x, d = around(12)
    profile = boundary.probe(model, x, d, GRID, search="refine")
    found = boundary.normals(model, x, d, profile)
    image, _ = profile.reached.nonzero().T
    own, other = axes[profile.center[image]], axes[profile.adjacent[profile.reached].long()]
    expected = (other.cos() - own.cos())[:, None] * first + (other.sin() - own.sin())[:, None] * second
    assert torch.stack((own, other), 1).unique(dim=0).shape[0] > 4
    torch.testing.assert_close(found.normal, expected / expected.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    edge = (own + other) / 2  # the edge is midway between the axes, and the normal is at a right angle to it
    along = edge.cos()[:, None] * first + edge.sin()[:, None] * second
    assert float((found.normal * along).sum(1).abs().max()) < 1e-5


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_are_those_of_differences_at_the_clipped_crossing(channels_last: bool) -> None:
    x, d = images(5), boundary.directions(DIM, 6, negate=True, generator=generator(1))
    profile = boundary.probe(Rugged(), x, d, GRID)
    model = Rugged(rows=8, channels_last=channels_last)
    found = boundary.normals(model, x, d, profile)
    assert model.largest == 8
    double = Rugged().double()
    for r, (i, k) in enumerate(profile.reached.nonzero().tolist()[:20]):
        point = (x[i].flatten() + profile.distance[i, k] * d[k]).clamp(0, 1).double().requires_grad_()
        z = double(point.view(1, *IN_SHAPE))[0]
        (z[profile.adjacent[i, k]] - z[profile.center[i]]).backward()
        assert point.grad is not None
        torch.testing.assert_close(found.normal[r].double(), point.grad / point.grad.norm(), atol=2e-4, rtol=0)
        torch.testing.assert_close(found.angle[r], degrees(point.grad, d[k]), atol=2e-2, rtol=0)


def test_chosen_rays_come_in_their_order() -> None:
    x, d = images(5), boundary.directions(DIM, 6, negate=True, generator=generator(1))
    profile = boundary.probe(Rugged(), x, d, GRID)
    every = boundary.normals(Rugged(), x, d, profile)
    pick = torch.tensor([7, 2, 2, 0])
    found = boundary.normals(Rugged(), x, d, profile, rays=profile.reached.nonzero()[pick])
    torch.testing.assert_close(found.normal, every.normal[pick])
    torch.testing.assert_close(found.angle, every.angle[pick])
    none = boundary.normals(Rugged(), x, d, profile, rays=torch.empty(0, 2, dtype=torch.int64))
    assert (none.normal.shape, none.angle.shape) == ((0, DIM), (0,))


class Steps(nn.Module):
    """Classes without a slope: 1 where the first pixel exceeds .5."""

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1)[:, 0] > 0.5).float() + 0 * x.sum((1, 2, 3))
        return torch.stack((0.5 * torch.ones_like(score), score), 1)


def test_without_a_gradient_there_is_no_normal() -> None:
    x, d = torch.full((1, 1, 1, 2), 0.4), torch.ones(1, 2)
    found = boundary.normals(Steps(), x, d, boundary.probe(Steps(), x, d, GRID))
    assert found.normal.tolist() == [[0, 0]]
    assert found.angle.isnan().tolist() == [True]


def test_small_gradients_do_not_underflow() -> None:
    model, x, d = HalfSpace(1e-30 * torch.tensor([3.0, 4]), 4e-30), torch.full((1, 1, 1, 2), 0.5), torch.ones(1, 2)
    found = boundary.normals(model, x, d, boundary.probe(model, x, d, GRID))
    torch.testing.assert_close(found.normal, torch.tensor([[0.6, 0.8]]))


def test_the_model_comes_back_as_it_was() -> None:
    x, d = images(2), boundary.directions(DIM, 6, negate=True, generator=generator(1))
    model = Rugged().train()
    profile = boundary.probe(model, x, d, GRID)
    found = boundary.normals(model, x.requires_grad_(), d, profile)
    assert model.training
    assert model.first.requires_grad
    assert model.first.grad is None
    assert x.grad is None
    assert not found.normal.requires_grad


class Broken(HalfSpace):
    def forward(self, x: Tensor) -> Tensor:
        return math.nan * super().forward(x)


@pytest.mark.parametrize(
    ("rays", "message"),
    [
        ([[0, 0]], r"expected rays as int64 pairs \(image, direction\) of shape \(R, 2\), got list"),
        (torch.zeros(1, 2), r"int64 pairs .*, got torch.float32 of shape \(1, 2\)"),
        (torch.tensor([0, 0]), r"int64 pairs .*, got torch.int64 of shape \(2,\)"),
        (torch.tensor([[1, 0]]), "expected rays of 1 images, from 0 to 0, got 1 to 1"),
        (torch.tensor([[0, -1]]), "expected rays of 2 directions, from 0 to 1, got -1 to -1"),
        (torch.tensor([[0, 0], [0, 1]]), "expected rays that meet a boundary, .*; choose from profile.reached.nonzero"),
    ],
)
def test_rays_are_checked(rays: Tensor, message: str) -> None:
    model, x, d = HalfSpace(torch.tensor([1.0, 0]), 0.55), torch.full((1, 1, 1, 2), 0.5), torch.eye(2)
    profile = boundary.probe(model, x, d, GRID)
    assert profile.reached.tolist() == [[True, False]]
    with pytest.raises(ValueError, match=message):
        boundary.normals(model, x, d, profile, rays=rays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((1, 1, 1, 2), 1.5)}, "expected x in"),
        ({"directions": torch.ones(3, 2)}, "expected a profile of 1 images along 3 directions"),
        ({"model": Broken(torch.tensor([1.0, 0]), 0.55)}, "expected finite logits"),
    ],
)
def test_normals_refuse(change: dict[str, object], message: str) -> None:
    model, x, d = HalfSpace(torch.tensor([1.0, 0]), 0.55), torch.full((1, 1, 1, 2), 0.5), torch.eye(2)
    given: dict[str, object] = {"model": model, "x": x, "directions": d, "profile": boundary.probe(model, x, d, GRID)}
    with pytest.raises(ValueError, match=message):
        boundary.normals(**{**given, **change})  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("stored", [True, False])
def test_a_gpu_finds_the_same_normals(cuda: torch.device, stored: bool) -> None:
    x, d = images(5), boundary.directions(DIM, 6, negate=True, generator=generator(1))
    profile = boundary.probe(Rugged(), x, d, GRID)
    if not stored:
        profile = Profile(*(getattr(profile, f).to(cuda) for f in ("center", "distance", "adjacent", "reached")))
    here = boundary.normals(Rugged(), x, d, profile)
    there = boundary.normals(Rugged().to(cuda), x, d, profile)
    torch.testing.assert_close(there.normal.cpu(), here.normal, atol=1e-3, rtol=0)


def walk(model: nn.Module, x: Tensor, d: Tensor, grid: Tensor, profile: boundary.Profile) -> Tensor:
    """One image, one direction, one magnitude after the other."""
    distance = torch.full((len(x), len(d)), math.inf, dtype=grid.dtype)
    for i, image in enumerate(x):
        for k, direction in enumerate(d):
            for t in grid[grid > profile.distance[i, k]]:
                point = (image + t.float() * direction.view_as(image)).clamp(0, 1)
                if int(model(point[None]).argmax()) == profile.center[i]:
                    distance[i, k] = t
                    break
    return distance


@pytest.fixture(scope="module")
def rays() -> tuple[Tensor, Tensor]:
    return images(4), boundary.directions(DIM, 9, negate=True, generator=generator(1))


@pytest.mark.parametrize("search", ["scan", "bracket", "refine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reentry_equals_the_slow_walk(rays: tuple[Tensor, Tensor], search: str, dtype: torch.dtype) -> None:
    model, grid = Rugged(), torch.tensor(GRID, dtype=dtype)
    profile = boundary.probe(model, *rays, grid, search=search)
    expected = walk(model, *rays, grid, profile)
    assert 0.2 < expected.isfinite().float().mean() < 0.98
    found = boundary.reentry(model, *rays, grid, profile)
    assert found.distance.dtype == dtype
    assert torch.equal(found.distance, expected)
    assert torch.equal(found.returned, expected.isfinite())
    assert bool((found.distance > profile.distance)[found.returned].all())


def test_each_magnitude_is_looked_at_once_in_batches_of_the_model(rays: tuple[Tensor, Tensor]) -> None:
    model, grid = Rugged(rows=8), torch.tensor(GRID)
    profile = boundary.probe(model, *rays, grid, search="scan")
    model.forwards = model.largest = 0
    found = boundary.reentry(model, *rays, grid, profile)
    first = torch.searchsorted(grid, profile.distance, right=True)
    last = torch.where(found.returned, torch.searchsorted(grid, found.distance, right=True), len(grid))
    assert model.forwards == int((last - first).sum()) + 1  # and one look at the shape of the logits
    assert model.largest == 8


def test_an_image_alone_gets_the_same(rays: tuple[Tensor, Tensor]) -> None:
    x, d = rays
    profile = boundary.probe(Rugged(), x, d, GRID)
    together = boundary.reentry(Rugged(), x, d, GRID, profile)
    for i in range(len(x)):
        alone = boundary.reentry(Rugged(rows=3), x[i : i + 1], d, GRID, profile.take(torch.tensor([i])))
        assert torch.equal(alone.distance[0], together.distance[i])


def test_mixed_precision_finds_the_same(rays: tuple[Tensor, Tensor]) -> None:
    profile = boundary.probe(Rugged(), *rays, GRID)
    expected = boundary.reentry(Rugged(), *rays, GRID, profile)
    found = boundary.reentry(Rugged(), *rays, GRID, profile, precision="mixed")
    assert torch.equal(found.distance, expected.distance)


def test_a_ray_through_a_ball_comes_out_on_the_other_side() -> None:
    # From (.1, .5) along (1, 0): in at .3, out at .7, so the class is the image's again at .61.
    ball = Ball(torch.tensor([0.5, 0.5]), 0.2)
    x, d = torch.tensor([0.1, 0.5]).view(1, 1, 1, 2), torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    grid = [0.05 + 0.04 * i for i in range(18)]  # .05, .09, ..., .73: none on the ball
    profile = boundary.probe(ball, x, d, grid)
    found = boundary.reentry(ball, x, d, grid, profile)
    assert found.distance[0].tolist() == [pytest.approx(0.61), math.inf, math.inf]
    assert found.returned.tolist() == [[True, False, False]]


def test_a_half_space_is_never_left_again() -> None:
    model = HalfSpace(torch.tensor([1.0, -2, 0.5] * 4), -0.5)
    x = 0.5 + 0.2 * (torch.rand(6, 3, 2, 2, generator=generator(9)) - 0.5)
    d = boundary.directions(12, 12, negate=True, generator=generator(10))
    d = 0.5 * d / d.abs().amax(1, keepdim=True)  # so that no pixel leaves [0, 1]
    profile = boundary.probe(model, x, d, GRID)
    assert profile.reached.float().mean() > 0.2
    assert not boundary.reentry(model, x, d, GRID, profile).returned.any()


def test_a_crossing_at_the_last_magnitude_or_none_is_not_followed() -> None:
    model = HalfSpace(torch.tensor([1.0, 0.0]), 0.55)
    x, d = torch.full((1, 1, 1, 2), 0.5), torch.tensor([[1.0, 0], [0, 1.0]])
    profile = boundary.probe(model, x, d, [0.02, 0.1])
    assert profile.distance[0].tolist() == [pytest.approx(0.1), math.inf]
    found = boundary.reentry(model, x, d, [0.02, 0.1], profile)
    assert found.distance.tolist() == [[math.inf, math.inf]]


def test_the_class_of_the_profile_is_what_counts(rays: tuple[Tensor, Tensor]) -> None:
    profile = boundary.probe(Rugged(), *rays, GRID)
    elsewhere = replace(profile, center=torch.full_like(profile.center, 99))
    assert not boundary.reentry(Rugged(), *rays, GRID, elsewhere).returned.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((1, 1, 1, 2), 1.5)}, "expected x in"),
        ({"directions": torch.ones(2, 2)}, r"expected a profile of 1 images along 2 directions, .* shape \(1, 1\)"),
        ({"x": torch.zeros(3, 1, 1, 2)}, "a profile of 3 images along 1 directions, .*; pass the x and the dir"),
        ({"directions": torch.ones(1, 3)}, r"expected directions of shape \(K, 2\)"),
        ({"magnitudes": [0.2, 0.1]}, "expected magnitudes finite, above 0 and ascending"),
        ({"precision": "mix"}, "expected precision to be one of float32, mixed, .* did you mean 'mixed'"),
    ],
)
def test_reentry_refuses(change: dict[str, object], message: str) -> None:
    model = HalfSpace(torch.ones(2), 0.5)
    given = {"x": torch.full((1, 1, 1, 2), 0.1), "directions": torch.ones(1, 2), "magnitudes": [0.1, 0.2]}
    profile = boundary.probe(model, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        boundary.reentry(model, profile=profile, **{**given, **change})  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_gpu_finds_the_same_reentry(rays: tuple[Tensor, Tensor], cuda: torch.device) -> None:
    profile = boundary.probe(Rugged(), *rays, GRID)
    here = boundary.reentry(Rugged(), *rays, GRID, profile)
    there = boundary.reentry(Rugged().to(cuda), *rays, GRID, profile)
    assert there.distance.is_cuda
    assert (there.distance.cpu() == here.distance).float().mean() > 0.98  # up to rounding at grid points


def slow(model: nn.Module, x: Tensor, first: Tensor, second: Tensor, reach: float, size: int) -> int:
    """Count the cells of one plane through one image, place by place."""
    steps = torch.linspace(-reach, reach, size)
    places = [[(x + (a * first + b * second).view_as(x)).clamp(0, 1) for a in steps] for b in steps]
    labels = [[int(model(place[None]).argmax()) for place in row] for row in places]
    cells = itertools.product(range(size - 1), repeat=2)
    return sum(len({labels[r + i][c + j] for i in (0, 1) for j in (0, 1)}) >= 3 for r, c in cells)


@pytest.mark.parametrize("rows", [5, 64])
def test_counts_equal_the_slow_loop(rows: int) -> None:
    x, d = images(3), boundary.directions(DIM, 3, negate=False, generator=generator(1))
    model = Rugged(rows=rows)
    found = boundary.triple_points(model, x, d, reach=0.4, pairs=3, size=9, generator=generator())
    assert found.dtype == torch.int64
    assert model.largest == rows
    assert model.forwards == 3 * 3 * 81 + 1  # and one look at the shape of the logits
    expected = [[slow(Rugged(), image, d[i], d[j], 0.4, 9) for i, j in ((0, 1), (0, 2), (1, 2))] for image in x]
    assert found.sort(1).values.tolist() == [sorted(row) for row in expected]
    assert 0 < found.sum() < 3 * 3 * 64


def test_one_chunk_or_many_and_images_alone_give_the_same() -> None:
    x, d = images(5), boundary.directions(DIM, 8, negate=False, generator=generator(1))
    together = boundary.triple_points(Rugged(rows=4096), x, d, reach=0.4, pairs=7, size=9, generator=generator())
    assert together.unique().numel() > 2
    for rows in (3, 50):
        parts = boundary.triple_points(Rugged(rows=rows), x, d, reach=0.4, pairs=7, size=9, generator=generator())
        assert torch.equal(parts, together)
    for i in range(5):
        alone = boundary.triple_points(Rugged(), x[i : i + 1], d, reach=0.4, pairs=7, size=9, generator=generator())
        assert torch.equal(alone[0], together[i])
    mixed = boundary.triple_points(Rugged(), x, d, reach=0.4, pairs=7, size=9, generator=generator(), precision="mixed")
    assert torch.equal(mixed, together)


def test_every_pair_comes_once() -> None:
    d = boundary.directions(DIM, 4, negate=False, generator=generator(1))
    seen = boundary.triple_points(Rugged(), images(1), d, reach=0.4, pairs=6, size=7, generator=generator())
    every = [slow(Rugged(), images(1)[0], d[i], d[j], 0.4, 7) for i, j in itertools.combinations(range(4), 2)]
    assert sorted(seen[0].tolist()) == sorted(every)


AXES = [0.3, 2.4, 4.5]


def wedge(center: list[float]) -> Wedge:
    return Wedge(*torch.eye(4)[:2], center=torch.tensor([*center, 0.5, 0.5]), axes=AXES)


# A step of RMS t along the axis of one of four pixels changes the pixel by 2 t: the grid of 17 has steps of .05 in it.
@pytest.mark.parametrize(
    ("center", "cells"),
    [
        ([0.51, 0.53], 1),  # the apex lies inside a cell
        ([0.3, 0.68], 1),
        ([0.89, 0.12], 1),  # in the last cell
        ([0.95, 0.5], 0),  # outside the grid
        ([2.0, 0.5], 0),
    ],
)
def test_a_plane_of_its_axes_meets_the_apex_of_a_wedge_once(center: list[float], cells: int) -> None:
    x, d = torch.full((1, 1, 1, 4), 0.5), 2 * torch.eye(4)[:2]
    found = boundary.triple_points(wedge(center), x, d, reach=0.2, pairs=1, size=17)
    assert found.tolist() == [[cells]]


def test_a_plane_along_the_apex_meets_no_third_class() -> None:
    x, d = torch.tensor([0.6, 0.5, 0.5, 0.5]).view(1, 1, 1, 4), 2 * torch.eye(4)[1:3]  # one pixel of the wedge stands
    assert boundary.triple_points(wedge([0.5, 0.5]), x, d, reach=0.2, pairs=1, size=17).tolist() == [[0]]


def test_places_beyond_the_pixels_are_clipped() -> None:
    # The apex lies beyond [0, 1] where the grid goes and no image can: clipped, no class but two is seen.
    x, d = torch.full((1, 1, 1, 4), 0.5), 2 * torch.eye(4)[:2]
    found = boundary.triple_points(wedge([1.2, 0.5]), x, d, reach=0.45, pairs=1, size=17)
    assert found.tolist() == [[0]]


@pytest.mark.parametrize("model", [HalfSpace(torch.ones(12), 6.0, num_classes=4), Ball(torch.full((12,), 0.5), 0.6)])
def test_two_classes_have_no_triple_point(model: nn.Module) -> None:
    x = torch.rand(3, 3, 2, 2, generator=generator(2))
    d = boundary.directions(12, 5, negate=False, generator=generator(1))
    assert not boundary.triple_points(model, x, d, reach=0.5, pairs=10, size=9).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((1, 1, 1, 2), 1.5)}, "expected x in"),
        ({"directions": torch.ones(2, 3)}, r"expected directions of shape \(K, 2\)"),
        ({"directions": torch.tensor([[1.0, 0], [0, 1], [-1, 0]])}, "no two are parallel .* first half of those"),
        ({"directions": torch.tensor([[1.0, 0], [0, 0]])}, "no two are parallel and none is zero"),
        ({"directions": torch.ones(1, 2)}, "expected at most 0 pairs of 1 directions, got 1; lower pairs"),
        ({"pairs": 2}, "expected at most 1 pairs of 2 directions, got 2; lower pairs or pass more directions"),
        ({"pairs": 0}, "expected pairs as a whole number of at least 1, got 0"),
        ({"size": 1}, "expected size as a whole number of at least 2, got 1"),
        ({"reach": 0.0}, "expected reach above 0, got 0.0"),
        ({"precision": "mix"}, "expected precision to be one of float32, mixed"),
    ],
)
def test_triple_points_refuse(change: dict[str, object], message: str) -> None:
    given = {"x": torch.full((1, 1, 1, 2), 0.5), "directions": torch.eye(2), "pairs": 1, "reach": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        boundary.triple_points(HalfSpace(torch.ones(2), 0.5), **given)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_gpu_finds_the_same_triple(cuda: torch.device) -> None:
    x, d = images(5), boundary.directions(DIM, 8, negate=False, generator=generator(1))
    here = boundary.triple_points(Rugged(), x, d, reach=0.4, pairs=7, generator=generator())
    there = boundary.triple_points(Rugged().to(cuda), x, d, reach=0.4, pairs=7, generator=generator())
    assert there.is_cuda
    assert (there.cpu() == here).float().mean() > 0.9  # up to rounding at the boundary


SHORT = [0.02 * (i + 1) for i in range(10)]


def measured(x: Tensor, d: Tensor, profile: Profile, *, rays: int = 9, pairs: int = 4) -> boundary.Geometry:
    negate = len(d) == 2 * 9
    options = {"rays": rays, "pairs": pairs, "negate": negate, "generator": generator(2)}
    return boundary.geometry(Rugged(), x, d, SHORT, profile, **options)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return images(4)


@pytest.mark.parametrize("negate", [True, False])
def test_geometry_is_its_three_parts(x: Tensor, negate: bool) -> None:
    d = boundary.directions(DIM, 9, negate=negate, generator=generator(1))
    profile = boundary.probe(Rugged(), x, d, SHORT)
    found = measured(x, d, profile)
    triple = boundary.triple_points(Rugged(), x, d[:9], reach=SHORT[-1], pairs=4, generator=generator(2))
    assert torch.equal(found.triple, triple)
    again = boundary.reentry(Rugged(), x, d, SHORT, profile)
    assert torch.equal(found.returned, again.returned[:, :9])
    assert torch.equal(found.reached, profile.reached[:, :9])
    normals = boundary.normals(Rugged(), x, d, profile, rays=found.reached.nonzero())
    torch.testing.assert_close(found.angle[found.reached], normals.angle)
    assert torch.equal(found.angle.isfinite(), found.reached)
    assert 0 < found.returned.sum() < found.reached.sum() < found.reached.numel()
    assert (found.angle.dtype, found.triple.dtype) == (torch.float64, torch.int64)


def test_images_alone_and_together_have_the_same_geometry(x: Tensor) -> None:
    d = boundary.directions(DIM, 9, negate=False, generator=generator(1))
    profile = boundary.probe(Rugged(), x, d, SHORT)
    together = measured(x, d, profile)
    alone = [measured(x[i : i + 1], d, profile.take(slice(i, i + 1))) for i in range(len(x))]
    for name, tensor in boundary.Geometry.cat(alone).tensors().items():
        torch.testing.assert_close(tensor, together.tensors()[name], equal_nan=True, msg=name)


def test_where_there_are_fewer_rays_or_planes_all_are_taken(x: Tensor) -> None:
    d = boundary.directions(DIM, 3, negate=False, generator=generator(1))
    found = measured(x, d, boundary.probe(Rugged(), x, d, SHORT), rays=10, pairs=10)
    assert (found.angle.shape, found.triple.shape) == ((4, 3), (4, 3))


def test_another_profile_and_no_ray_are_refused(x: Tensor) -> None:
    d = boundary.directions(DIM, 3, negate=False, generator=generator(1))
    profile = boundary.probe(Rugged(), x, d, SHORT)
    with pytest.raises(ValueError, match="expected a profile of 4 images along 3 directions, got one of shape"):
        measured(x, d, profile.take(slice(2)))
    with pytest.raises(ValueError, match="expected rays as a whole number of at least 1, got 0"):
        measured(x, d, profile, rays=0)
