from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rugged import DIM, Rugged, images
from torch import Tensor, nn

from nbsupport import boundary
from nbsupport.models.analytic import Ball, HalfSpace

GRID = [0.02 * (i + 1) for i in range(30)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
def test_a_gpu_finds_the_same(rays: tuple[Tensor, Tensor], cuda: torch.device) -> None:
    profile = boundary.probe(Rugged(), *rays, GRID)
    here = boundary.reentry(Rugged(), *rays, GRID, profile)
    there = boundary.reentry(Rugged().to(cuda), *rays, GRID, profile)
    assert there.distance.is_cuda
    assert (there.distance.cpu() == here.distance).float().mean() > 0.98  # up to rounding at grid points
