from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rugged import DIM, Rugged, images
from torch import Tensor, nn

from nbsupport import boundary
from nbsupport.models.analytic import HalfSpace

GRID = [0.02 * (i + 1) for i in range(30)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Strip(nn.Module):
    """Class 1 where the first pixel lies in (.25, .35), else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        inside = (x.flatten(1)[:, :1] - 0.3).abs() < 0.05
        return torch.cat((~inside, inside), 1).float()


@pytest.fixture(scope="module")
def rays() -> tuple[Tensor, Tensor]:
    return images(4), boundary.directions(DIM, 9, negate=True, generator=generator(1))


def test_an_audit_of_all_rays_is_the_scan(rays: tuple[Tensor, Tensor]) -> None:
    scan = boundary.probe(Rugged(), *rays, GRID, search="scan")
    changed = scan.reached & (torch.rand(scan.adjacent.shape, generator=generator(3)) < 0.3)
    stated = replace(scan, adjacent=torch.where(changed, 4 - scan.adjacent, scan.adjacent))
    found = boundary.audit(Rugged(), *rays, GRID, stated, rays=10_000, generator=generator())
    pairs = torch.stack((found.image, found.direction), 1)
    assert pairs.unique(dim=0).shape == (4 * 18, 2)
    assert torch.equal(found.distance, scan.distance[found.image, found.direction])
    assert torch.equal(found.adjacent, scan.adjacent[found.image, found.direction])
    assert found.adjacent.dtype == scan.adjacent.dtype == torch.int16
    wrong = (stated.distance != scan.distance) | (stated.adjacent != scan.adjacent)
    assert torch.equal(found.differs, wrong[found.image, found.direction])
    assert 0.05 < found.differs.float().mean() < 0.9


def test_a_scan_passes_its_audit(rays: tuple[Tensor, Tensor]) -> None:
    for dtype in (torch.float32, torch.float64):
        grid = torch.tensor(GRID, dtype=dtype)
        scan = boundary.probe(Rugged(), *rays, grid, search="scan")
        assert not boundary.audit(Rugged(), *rays, grid, scan).differs.any()


def test_a_sample_is_drawn_without_replacement_and_repeats(rays: tuple[Tensor, Tensor]) -> None:
    profile = boundary.probe(Rugged(), *rays, GRID)
    model = Rugged(rows=8)
    found = boundary.audit(model, *rays, GRID, profile, rays=40, generator=generator(3))
    assert model.largest == 8
    assert torch.stack((found.image, found.direction), 1).unique(dim=0).shape == (40, 2)
    assert found.image.unique().tolist() == [0, 1, 2, 3]
    again = boundary.audit(Rugged(), *rays, GRID, profile, rays=40, generator=generator(3))
    assert torch.equal(found.direction, again.direction)
    other = boundary.audit(Rugged(), *rays, GRID, profile, rays=40, generator=generator(4))
    assert not torch.equal(found.direction, other.direction)


def test_what_bracket_misses_is_found() -> None:
    x, d, grid = torch.zeros(1, 1, 1, 1), torch.ones(1, 1), [0.1 * (i + 1) for i in range(8)]
    missed = boundary.probe(Strip(), x, d, grid)  # only .3 lies inside, and no margin announces it
    found = boundary.audit(Strip(), x, d, grid, missed)
    assert (found.distance.item(), found.adjacent.item()) == (pytest.approx(0.3), 1)
    assert found.differs.tolist() == [True]
    seen = boundary.probe(Strip(), x, d, grid, stride=1)
    assert boundary.audit(Strip(), x, d, grid, seen).differs.tolist() == [False]


@pytest.mark.parametrize(("field", "value"), [("distance", 0.02), ("distance", math.inf), ("adjacent", 4)])
def test_an_altered_entry_is_noticed(rays: tuple[Tensor, Tensor], field: str, value: float) -> None:
    profile = boundary.probe(Rugged(), *rays, GRID, search="scan")
    at = int(((profile.distance > 0.1) & profile.reached & (profile.adjacent != 4)).flatten().nonzero()[0])
    getattr(profile, field).view(-1)[at] = value
    found = boundary.audit(Rugged(), *rays, GRID, profile)
    assert (found.image * 18 + found.direction)[found.differs].tolist() == [at]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rays": 0}, "expected rays as a whole number of at least 1, got 0"),
        ({"x": torch.zeros(3, 1, 1, 2)}, r"expected a profile of 3 images along 1 directions, got .*\(1, 1\)"),
        ({"x": torch.zeros(1, 2)}, "expected x of shape"),
        ({"directions": torch.ones(1, 3)}, r"expected directions of shape \(K, 2\)"),
        ({"magnitudes": []}, r"expected magnitudes of shape \(M,\)"),
        ({"precision": "mix"}, "expected precision to be one of float32, mixed"),
    ],
)
def test_audit_refuses(change: dict[str, object], message: str) -> None:
    model = HalfSpace(torch.ones(2), 0.5)
    given = {"x": torch.full((1, 1, 1, 2), 0.1), "directions": torch.ones(1, 2), "magnitudes": [0.1, 0.2]}
    profile = boundary.probe(model, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        boundary.audit(model, profile=profile, **{**given, **change})  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_gpu_audits_what_was_found_elsewhere(rays: tuple[Tensor, Tensor], cuda: torch.device) -> None:
    profile = boundary.probe(Rugged(), *rays, GRID, search="scan")
    found = boundary.audit(Rugged().to(cuda), *rays, GRID, profile)
    assert found.differs.is_cuda
    assert found.differs.float().mean() < 0.05  # up to rounding at grid points
