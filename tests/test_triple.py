from __future__ import annotations

import itertools

import pytest
import torch
from rugged import DIM, Rugged, images
from torch import Tensor, nn

from nbsupport import boundary
from nbsupport.models.analytic import Ball, HalfSpace, Wedge


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
def test_a_gpu_finds_the_same(cuda: torch.device) -> None:
    x, d = images(5), boundary.directions(DIM, 8, negate=False, generator=generator(1))
    here = boundary.triple_points(Rugged(), x, d, reach=0.4, pairs=7, generator=generator())
    there = boundary.triple_points(Rugged().to(cuda), x, d, reach=0.4, pairs=7, generator=generator())
    assert there.is_cuda
    assert (there.cpu() == here).float().mean() > 0.9  # up to rounding at the boundary
