from __future__ import annotations

import math

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
    own, other = axes[profile.center[image]], axes[profile.adjacent[profile.reached]]
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
def test_a_gpu_finds_the_same(cuda: torch.device, stored: bool) -> None:
    x, d = images(5), boundary.directions(DIM, 6, negate=True, generator=generator(1))
    profile = boundary.probe(Rugged(), x, d, GRID)
    if not stored:
        profile = Profile(*(getattr(profile, f).to(cuda) for f in ("center", "distance", "adjacent", "reached")))
    here = boundary.normals(Rugged(), x, d, profile)
    there = boundary.normals(Rugged().to(cuda), x, d, profile)
    torch.testing.assert_close(there.normal.cpu(), here.normal, atol=1e-3, rtol=0)
