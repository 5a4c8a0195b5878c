"""Attacks on the defences: soft rays against closed forms, goals against what the defences say, planted truths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nbsupport import boundary
from nbsupport.adaptive import surrogate
from nbsupport.models.analytic import Ball, HalfSpace, Wedge

SHAPE = (1, 4, 4)
DIM = 16


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grey(count: int, seed: int = 0) -> Tensor:
    """Images near the middle of [0, 1], so that nothing is clipped on short ways."""
    return 0.45 + 0.1 * torch.rand(count, *SHAPE, generator=seeded(seed))


@pytest.fixture
def wedge() -> Wedge:
    plane, _ = torch.linalg.qr(torch.randn(DIM, 2, generator=seeded(4)))
    return Wedge(plane[:, 0], plane[:, 1], center=torch.full((DIM,), 0.5), axes=[0.3, 1.9, 3.4, 5.0])


@pytest.fixture
def directions() -> Tensor:
    return boundary.directions(DIM, DIM, negate=True, generator=seeded(1))


GRID = torch.arange(1, 31) / 100


class TestSoftRays:
    """Against closed forms and the probe."""

    @pytest.mark.parametrize("kind", ["half-space", "ball", "wedge"])
    def test_without_temperature_the_distance_is_that_of_the_probe(
        self, kind: str, wedge: Wedge, directions: Tensor
    ) -> None:
        normal = torch.randn(DIM, generator=seeded(2))
        models = {"half-space": HalfSpace(normal, float(normal.sum()) / 2 - 0.1), "wedge": wedge}
        models["ball"] = Ball(torch.full((DIM,), 0.5), 0.2)
        x = grey(5)
        profile = boundary.probe(models[kind], x, directions, GRID, search="scan")
        magnitudes = GRID.expand(5, len(directions), -1)
        soft, shares = surrogate.soft_rays(models[kind], x, directions, magnitudes, beyond=1.0, temperature=1e-9)
        expected = profile.distance.masked_fill(~profile.reached, 1.0)
        assert profile.reached.any()
        assert profile.reached.all() == (kind == "ball")
        assert (soft - expected).abs().max() < 1e-5
        assert torch.equal(shares.sum(1) > 0, profile.reached.any(1))

    def test_shares_are_those_of_the_classes_met(self, wedge: Wedge, directions: Tensor) -> None:
        x = grey(6)
        profile = boundary.probe(wedge.double(), x, directions, GRID, search="scan")
        steep = Scaled(wedge.float(), 1e6)  # the classes at a crossing are then certain
        _, shares = surrogate.soft_rays(
            steep, x, directions, GRID.expand(6, len(directions), -1), beyond=1.0, temperature=1e-9
        )
        for row in range(6):
            met = profile.adjacent[row][profile.reached[row]].long().bincount(minlength=4)
            assert (shares[row] - met / met.sum()).abs().max() < 1e-4
        purity = boundary.purity(profile, num_classes=4)
        assert (surrogate.soft_purity(shares, 3) - purity).abs().max() < 1e-4

    def test_the_gradient_is_that_of_finite_differences(self, directions: Tensor) -> None:
        # A half-space: the margin's change along a ray, which sets the temperature, is the same everywhere.
        normal = torch.randn(DIM, generator=seeded(2), dtype=torch.float64)
        model = HalfSpace(normal, float(normal.sum()) / 2 - 0.1, num_classes=3).double()
        x, few = grey(2).double(), directions[:6].double()
        magnitudes = GRID[::4].double().expand(2, 6, -1)
        weights = torch.rand(2, 6, generator=seeded(5), dtype=torch.float64)

        def value(images: Tensor) -> Tensor:
            distance, shares = surrogate.soft_rays(model, images, few, magnitudes, beyond=0.5)
            return (weights * distance).sum() + shares.square().sum()

        images = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(images), images)
        assert gradient.abs().max() > 0.01
        for entry in range(2 * DIM):
            change = torch.zeros(2 * DIM, dtype=torch.float64)
            change[entry] = 1e-6
            ends = [float(value(x + sign * change.view_as(x))) for sign in (1, -1)]
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(gradient.flatten()[entry]), abs=1e-6)

    def test_intervals_hold_the_crossing(self, wedge: Wedge, directions: Tensor) -> None:
        x, coarse = grey(8), torch.tensor([0.02, 0.06, 0.12, 0.3])
        low, high = surrogate.intervals(wedge, x, directions, coarse)
        exact = wedge.crossing(x, directions)
        inside = (exact > 0) & (exact < 0.3)
        assert inside.any()
        assert ((low <= exact) & (exact <= high))[inside].all()
        assert ((low == high) & (high == coarse[-1]))[exact > 0.3].all()

    def test_few_rays_stand_for_many(self) -> None:
        rays = torch.tensor([[0.3, 0.1, 0.2]])
        assert torch.allclose(surrogate.spread(rays, 3), torch.tensor([[0.1, 0.2, 0.3]]))
        many = surrogate.spread(rays, 6)
        assert (many.diff() >= 0).all()
        assert (many[0, 0], many[0, -1]) == (rays.min(), rays.max())
        assert surrogate.soft_purity(torch.tensor([[0.3, 0.7]]), 3).tolist() == [[pytest.approx(0.7), 1.0, 1.0]]


class Scaled(nn.Module):
    """A model whose logits are multiplied."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.factor * self.model(x)
        return z
