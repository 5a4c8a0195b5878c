from __future__ import annotations

import math

import pytest
import torch
from rugged import DIM, Rugged, images
from torch import Tensor

from nbsupport import boundary
from nbsupport.models.analytic import Ball, HalfSpace, Wedge


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    x, other = images(2)
    return x, (x + 0.2 * (other - x)).clamp(0, 1)


def every_place(x: Tensor, found: boundary.Slice) -> Tensor:
    """The class at every place of a slice through `x`, one after the other."""
    return torch.tensor(
        [
            [int(Rugged()((x.flatten() + a * found.u + b * found.v).clamp(0, 1)[None]).argmax()) for a in found.across]
            for b in found.up
        ]
    )


@pytest.mark.parametrize("third", ["random", "gradient", "given"])
@pytest.mark.parametrize("size", [2, 5])
def test_labels_are_those_of_every_place(pair: tuple[Tensor, Tensor], third: str, size: int) -> None:
    x, x_adv = pair
    way: str | Tensor = torch.linspace(-1, 3, DIM) if third == "given" else third
    model = Rugged(rows=7)
    found = boundary.plane(model, x, x_adv, reach=0.3, third=way, size=size, generator=generator())
    assert model.largest == 7
    length = rms(x_adv - x)
    torch.testing.assert_close(x.flatten() + length * found.u, x_adv.flatten())
    assert rms(found.u) == pytest.approx(1, abs=1e-6)
    assert rms(found.v) == pytest.approx(1, abs=1e-6)
    assert float(found.u @ found.v) / DIM == pytest.approx(0, abs=1e-6)
    assert found.across.tolist() == pytest.approx(torch.linspace(-0.3, length + 0.3, 4 * size - 3).tolist(), abs=1e-6)
    assert found.up.tolist() == pytest.approx((found.across - length / 2).tolist(), abs=1e-6)
    every, corners = every_place(x, found), found.labels[::4, ::4].unfold(0, 2, 1).unfold(1, 2, 1).flatten(2)
    assert (found.labels == every)[::4, ::4].double().mean() > 0.99  # up to rounding at the boundary
    mixed = (corners != corners[..., :1]).any(2).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert mixed.any()
    assert (found.labels == every)[:-1, :-1][mixed].double().mean() > 0.99
    assert list(found.points) == ["x", "x_adv"]
    assert found.points["x"].tolist() == [0, 0]
    assert found.points["x_adv"].tolist() == [pytest.approx(length), 0]


def test_the_finer_grid_agrees_with_every_place_and_looks_at_the_boundary_alone(pair: tuple[Tensor, Tensor]) -> None:
    model = Rugged()
    found = boundary.plane(model, *pair, size=17, reach=0.3, generator=generator())
    same = found.labels == every_place(pair[0], found)
    assert same.shape == (65, 65)
    assert same.double().mean() > 0.97  # but for regions smaller than a cell
    assert same[::4, ::4].all()
    assert model.forwards < 65**2


def test_the_regions_of_a_wedge_are_its_sectors() -> None:
    first, second = torch.eye(4)[:2]
    axes = [0.0, 2.0, 4.2]
    model = Wedge(first, second, center=torch.full((4,), 0.5), axes=axes)
    x = torch.full((1, 2, 2), 0.5)
    x_adv = x + 0.1 * first.view(1, 2, 2)
    found = boundary.plane(model, x, x_adv, reach=0.15, third=second, size=40)
    # A step of RMS t along a pixel's axis changes the pixel by t sqrt(D) = 2 t.
    angle = torch.atan2(found.up[:, None], found.across[None])
    nearest = torch.cos(angle[..., None] - torch.tensor(axes, dtype=torch.float64)).argmax(-1)
    assert torch.equal(found.labels, nearest)
    torch.testing.assert_close(found.u, 2 * first)
    torch.testing.assert_close(found.v, 2 * second)


def test_the_gradient_is_the_way_out_of_the_class() -> None:
    x = torch.tensor([0.55, 0.5, 0.5]).view(1, 1, 3)
    x_adv = x + torch.tensor([0.0, 0.2, 0.1]).view(1, 1, 3)
    inside = boundary.plane(Ball(torch.full((3,), 0.5), 0.3), x, x_adv, reach=0.1, third="gradient")
    torch.testing.assert_close(inside.v, torch.tensor([math.sqrt(3), 0, 0]))
    outside = boundary.plane(Ball(torch.full((3,), 0.5), 0.02), x, x_adv, reach=0.1, third="gradient")
    torch.testing.assert_close(outside.v, torch.tensor([-math.sqrt(3), 0, 0]))


def test_directions_are_drawn_alike_whatever_the_third_is(pair: tuple[Tensor, Tensor]) -> None:
    drawn = boundary.directions(DIM, 2, negate=False, generator=generator(4))
    g = generator(4)
    found = boundary.plane(Rugged(), *pair, reach=0.1, size=3, generator=g)
    torch.testing.assert_close(found.v, drawn[1] - (drawn[1] @ found.u) / DIM * found.u, atol=0.1, rtol=0)
    for third in ("gradient", drawn[0]):
        other = generator(4)
        boundary.plane(Rugged(), *pair, reach=0.1, size=3, third=third, generator=other)
        assert torch.equal(other.get_state(), g.get_state())


@pytest.mark.parametrize("third", ["random", "gradient"])
def test_without_an_attack_both_directions_are_found(pair: tuple[Tensor, Tensor], third: str) -> None:
    x, _ = pair
    found = boundary.plane(Rugged(), x, x, reach=0.2, third=third, size=5, generator=generator(4))
    drawn = boundary.directions(DIM, 2, negate=False, generator=generator(4))
    assert torch.equal(found.u, drawn[0])
    assert list(found.points) == ["x"]
    assert found.across.tolist() == found.up.tolist()
    assert found.across[::4].tolist() == pytest.approx([-0.2, -0.1, 0, 0.1, 0.2])
    assert int(found.labels[8, 8]) == int(Rugged()(x[None]).argmax())
    assert torch.allclose(found.v, drawn[1], atol=1e-5) == (third == "random")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 1, 1, 2)}, r"expected x as one image \(C, H, W\), got \(1, 1, 1, 2\); .* x\[0\]"),
        ({"x_adv": torch.full((1, 1, 2), 2.0)}, "expected x_adv in"),
        ({"x_adv": "image"}, "expected x_adv as a torch.Tensor, got str"),
        ({"x_adv": torch.zeros(1, 2, 1)}, r"expected x and x_adv of one shape, got \(1, 1, 2\) and \(1, 2, 1\)"),
        ({"x": torch.zeros(1, 1, 1), "x_adv": torch.zeros(1, 1, 1)}, "expected images of at least two pixels"),
        ({"reach": 0.0}, "expected reach above 0, got 0.0"),
        ({"size": 1}, "expected size as a whole number of at least 2, got 1"),
        ({"third": "gradiant"}, "expected third to be one of random, gradient, .* did you mean 'gradient'"),
        ({"third": torch.ones(3)}, r"expected third of shape \(K, 2\)"),
        ({"third": torch.tensor([-3.0, 0])}, "expected a third direction that spans a plane .* or one parallel"),
        ({"third": torch.zeros(2)}, 'got zero .*; pass third="random"'),
        ({"third": "gradient"}, "expected a third direction that spans a plane"),
    ],
)
def test_plane_refuses(change: dict[str, object], message: str) -> None:
    model = HalfSpace(torch.tensor([1.0, 0]), 0.5)  # its gradient points from x to x_adv
    given = {"x": torch.full((1, 1, 2), 0.4), "x_adv": torch.tensor([[[0.6, 0.4]]]), "reach": 0.1}
    with pytest.raises(ValueError, match=message):
        boundary.plane(model, **{**given, **change})  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_gpu_finds_the_same(pair: tuple[Tensor, Tensor], cuda: torch.device) -> None:
    for third in ("random", "gradient"):
        here = boundary.plane(Rugged(), *pair, reach=0.2, third=third, generator=generator())
        there = boundary.plane(Rugged().to(cuda), *pair, reach=0.2, third=third, generator=generator())
        assert not there.labels.is_cuda
        assert (there.labels == here.labels).double().mean() > 0.99
