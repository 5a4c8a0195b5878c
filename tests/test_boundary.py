from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import makes
import pytest
import torch
from torch import Tensor, nn

from nbsupport import attacks, boundary
from nbsupport.boundary import Profile
from nbsupport.data import ImageSet
from nbsupport.models.analytic import Ball, HalfSpace, Wedge

GRID = [0.02 * (i + 1) for i in range(30)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Conv(nn.Module):
    """A random network with a rugged boundary, on images that are neither square nor grey; counts its rows."""

    def __init__(self, *, flatten: str = "flatten", rows: int = 8) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(6 * 4 * 5, 5)
        with torch.no_grad():
            self.conv.weight *= 8
            self.linear.bias.zero_()
        self.flatten = flatten
        self.batch_rows = {"cpu": rows, "cuda": rows}
        self.largest = self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest, self.forwards = max(self.largest, len(x)), self.forwards + len(x)
        z = self.drop(torch.sin(self.norm(self.conv(x - 0.5))))
        logits: Tensor = self.linear(z.view(len(x), -1) if self.flatten == "view" else z.flatten(1))
        return logits


class Strip(nn.Module):
    """Class 1 where the first pixel lies in (low, high), else class 0."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        pixel = x.flatten(1)[:, 0]
        inside = ((pixel > self.low) & (pixel < self.high)).float()
        return torch.stack((1 - inside, inside), 1)


def walk(model: nn.Module, x: Tensor, d: Tensor, grid: Sequence[float]) -> tuple[Profile, int]:
    """One image, one direction, one magnitude after the other. Returns the profile and the forwards of the rays."""
    model.eval()
    forwards = 0
    center = torch.tensor([int(model(image[None]).argmax()) for image in x])
    distance = torch.full((len(x), len(d)), math.inf)
    adjacent = torch.full((len(x), len(d)), -1)
    for i, image in enumerate(x):
        for k, direction in enumerate(d):
            for t in grid:
                point = (image + torch.tensor(t) * direction.view_as(image)).clamp(0, 1)
                found = int(model(point[None]).argmax())
                forwards += 1
                if found != center[i]:
                    distance[i, k], adjacent[i, k] = t, found
                    break
    return Profile(center, distance, adjacent, adjacent >= 0), forwards


def assert_same(a: Profile, b: Profile) -> None:
    assert torch.equal(a.center, b.center)
    assert torch.equal(a.distance, b.distance)
    assert torch.equal(a.adjacent, b.adjacent)
    assert torch.equal(a.reached, b.reached)


@pytest.fixture(scope="module")
def rugged() -> tuple[Tensor, Tensor]:
    x = torch.rand(5, 3, 4, 5, generator=generator())
    return x, boundary.directions(60, 9, negate=True, generator=generator(1))


# ---------------------------------------------------------------------------------------------- directions


@pytest.mark.parametrize(("dim", "count"), [(1, 1), (12, 5), (64, 64)])
def test_directions_are_orthogonal_of_rms_one(dim: int, count: int) -> None:
    d = boundary.directions(dim, count, negate=False, generator=generator())
    assert d.shape == (count, dim)
    assert d.dtype == torch.float32
    assert torch.allclose(d.double() @ d.double().T, dim * torch.eye(count, dtype=torch.float64), atol=1e-5 * dim)
    both = boundary.directions(dim, count, negate=True, generator=generator())
    assert torch.equal(both, torch.cat((d, -d)))


def test_directions_are_the_qr_of_the_gaussian_whatever_the_library_s_signs() -> None:
    gaussian = torch.randn(20, 6, generator=generator(3), dtype=torch.float64)
    r = boundary.directions(20, 6, negate=False, generator=generator(3)).double() @ gaussian
    assert torch.allclose(r.tril(-1), torch.zeros_like(r), atol=1e-5)
    assert bool((r.diagonal() > 0).all())


@pytest.fixture(scope="module")
def long() -> Tensor:
    """More numbers than are left to a QR decomposition: 128 directions of 3 x 224 x 224."""
    return boundary.directions(150_528, 128, negate=False, generator=generator(3))


def test_many_long_directions_are_orthogonal_of_rms_one_to_1e_6(long: Tensor) -> None:
    assert (long.shape, long.dtype) == ((128, 150_528), torch.float32)
    cosine = long.double() @ long.double().T / 150_528
    assert float((cosine - torch.eye(128, dtype=torch.float64)).abs().max()) < 1e-6


def test_many_long_directions_are_the_q_of_a_gaussian(long: Tensor) -> None:
    """So they are uniformly distributed, as the few or short ones are."""
    gaussian = torch.randn(128, 150_528, generator=generator(3)).double()
    q, r = torch.linalg.qr(gaussian.T)
    expected = (q * r.diagonal().sign()).T * 150_528**0.5
    assert float((long - expected).abs().max()) < 1e-5


def test_the_coordinates_of_many_long_directions_are_normal(long: Tensor) -> None:
    """Five standard errors of the mean, the variance and the kurtosis of as many normal numbers."""
    z, n = long.double(), long.numel()
    assert abs(float(z.mean())) < 5 / n**0.5
    assert abs(float(z.square().mean()) - 1) < 5 * (2 / n) ** 0.5
    assert abs(float(z.pow(4).mean()) - 3) < 5 * (96 / n) ** 0.5
    shifted = (z[:, :-1] * z[:, 1:]).mean(1)  # nor do pixels follow from their neighbours
    assert float(shifted.abs().max()) < 5 * 150_528**-0.5


def test_many_long_directions_follow_their_generator(long: Tensor) -> None:
    assert torch.equal(long, boundary.directions(150_528, 128, negate=False, generator=generator(3)))
    other = boundary.directions(150_528, 128, negate=True, generator=generator(4))
    assert torch.equal(other[128:], -other[:128])
    assert float((other[:128] @ long.T / 150_528).abs().max()) < 6 * 150_528**-0.5


@pytest.mark.parametrize(("dim", "count"), [(784, 784), (3072, 300), (150_528, 19)])
def test_short_or_few_directions_stay_those_of_the_qr_decomposition(dim: int, count: int) -> None:
    q, r = torch.linalg.qr(torch.randn(dim, count, generator=generator(), dtype=torch.float64))
    found = boundary.directions(dim, count, negate=False, generator=generator())
    assert torch.equal(found, ((q * r.diagonal().sign()).T * math.sqrt(dim)).float())


def test_directions_use_the_global_generator_by_default() -> None:
    torch.manual_seed(5)
    a, b = (boundary.directions(8, 2, negate=False) for _ in range(2))
    assert not torch.equal(a, b)
    assert torch.equal(a, boundary.directions(8, 2, negate=False, generator=generator(5)))


@pytest.mark.parametrize(
    ("dim", "count", "message"),
    [
        (4, 5, "expected at most dim=4 orthogonal directions, got count=5"),
        (0, 1, "expected dim as a whole number of at least 1, got 0"),
        (4, 0, "expected count as a whole number of at least 1, got 0"),
    ],
)
def test_directions_refuse(dim: int, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boundary.directions(dim, count, negate=False)


# ---------------------------------------------------------------------------------------------- probe


def test_the_scan_equals_the_slow_walk_with_as_many_forwards(rugged: tuple[Tensor, Tensor]) -> None:
    model = Conv()
    expected, forwards = walk(model, *rugged, GRID)
    assert 0.05 < expected.reached.float().mean() < 0.999
    assert expected.adjacent.unique().numel() > 3
    model.largest = model.forwards = 0
    assert_same(boundary.probe(model, *rugged, GRID, search="scan"), expected)
    assert model.largest == 8
    assert model.forwards == forwards + len(rugged[0]) + 1  # the images themselves, and one for the number of logits


@pytest.mark.parametrize("stride", [3, 8, 32, 1000])
def test_bracket_is_the_scan_in_fewer_looks(rugged: tuple[Tensor, Tensor], stride: int) -> None:
    model = Conv()
    scan = boundary.probe(model, *rugged, GRID, search="scan")
    scanned, model.forwards = model.forwards, 0
    assert_same(boundary.probe(model, *rugged, GRID, stride=stride), scan)
    assert model.largest == 8
    assert model.forwards < 0.6 * scanned


class Zigzag(nn.Module):
    """The margin of class 0 is a broken line of the first pixel, of slope `slope` or minus it everywhere."""

    def __init__(self, turns: Sequence[float], start: float, slope: float = 3.0) -> None:
        super().__init__()
        self.turns, self.start, self.slope = turns, start, slope
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        v = x.flatten(1)[:, 0]
        margin, sign, before = torch.full_like(v, self.start), -1.0, 0.0
        for turn in [*self.turns, math.inf]:
            margin = margin + sign * self.slope * (v.clamp(before, turn) - before)
            sign, before = -sign, turn
        return torch.stack((margin, torch.zeros_like(v)), 1)


def test_no_class_hides_where_the_margin_is_as_steep_as_at_the_image() -> None:
    grid = [0.005 * (i + 1) for i in range(199)]
    x, d = torch.zeros(1, 1, 1, 1), torch.ones(1, 1)
    looks = scanned = reached = 0
    for seed in range(60):
        turns = torch.rand(8, generator=generator(seed)).sort().values.tolist()
        model = Zigzag(turns, start=0.3 + 0.01 * seed)
        scan = boundary.probe(model, x, d, grid, search="scan")
        scanned, model.forwards = scanned + model.forwards, 0
        assert_same(boundary.probe(model, x, d, grid), scan)
        looks += model.forwards
        reached += int(scan.reached)
    assert 10 < reached < 50
    assert looks < scanned / 5


@pytest.mark.parametrize("name", ["plain", "normed"])
def test_bracket_is_the_scan_on_networks_it_was_not_tuned_on(
    name: str, plain: nn.Module, normed: nn.Module, digits: ImageSet
) -> None:
    model, images = (plain, digits) if name == "plain" else (normed, makes.tinted(digits))
    x, y = makes.right(model, images, 24)
    assert len(x) == 24
    grid = [0.01 * (i + 1) for i in range(60)]
    d = boundary.directions(x[0].numel(), 64, negate=True, generator=generator(2))
    counted = Counted(model)
    brittle = attacks.ddn_l2(model, x, y, steps=60)
    margin = attacks.optmargin(model, x, y, eps=0.1, steps=40, generator=generator(3))
    differing = looks = 0
    for points in (x, brittle.x_adv[brittle.success], margin.x_adv[margin.success]):
        scan = boundary.probe(model, points, d, grid, search="scan")
        counted.forwards = 0
        found = boundary.probe(counted, points, d, grid)
        looks += counted.forwards
        differing += int(((found.distance != scan.distance) | (found.adjacent != scan.adjacent)).sum())
        assert scan.reached.float().mean() > 0.1
    rays = 3 * 24 * len(d)
    assert differing <= 0.0002 * rays
    assert looks < 8 * rays


@pytest.mark.parametrize("offset", [0.2, 0.5, 1.5])
def test_a_flat_boundary_is_found_in_a_few_looks(offset: float) -> None:
    model = HalfSpace(torch.ones(1), offset)
    counted = Counted(model)
    grid = torch.arange(1, 100, dtype=torch.float64) / 100 - 0.005
    found = boundary.probe(counted, torch.zeros(1, 1, 1, 1), torch.ones(1, 1), grid)
    assert found.distance.item() == (pytest.approx(offset + 0.005) if offset < 1 else math.inf)
    assert counted.forwards <= 10  # the shape of the logits, the image, the three of its pace, and five looks


class Counted(nn.Module):
    """A model that counts its rows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits: Tensor = self.model(x)
        return logits


def test_stride_of_one_is_the_scan(rugged: tuple[Tensor, Tensor]) -> None:
    scan = boundary.probe(Conv(), *rugged, GRID, search="scan")
    assert_same(boundary.probe(Conv(), *rugged, GRID, stride=1), scan)


def test_a_model_that_wants_nchw_memory_is_served(rugged: tuple[Tensor, Tensor]) -> None:
    found = boundary.probe(Conv(flatten="view"), *rugged, GRID)
    assert_same(found, boundary.probe(Conv(), *rugged, GRID))


@pytest.mark.parametrize("search", ["bracket", "scan"])
def test_an_image_alone_and_in_any_order_gets_the_same(rugged: tuple[Tensor, Tensor], search: str) -> None:
    x, d = rugged
    together = boundary.probe(Conv(), x, d, GRID, search=search)
    alone = [boundary.probe(Conv(rows=3), image[None], d, GRID, search=search) for image in x]
    assert_same(Profile.cat(alone), together)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert_same(boundary.probe(Conv(), x[order], d, GRID, search=search), together.take(order))
    reverse = boundary.probe(Conv(), x, d.flip(0), GRID, search=search)
    assert torch.equal(reverse.distance.flip(1), together.distance)


def wedge(dim: int) -> Wedge:
    first, second = torch.linalg.qr(torch.randn(dim, 2, generator=generator(7))).Q.T
    return Wedge(first, second, center=torch.full((dim,), 0.5), axes=[0.3, 1.5, 2.9, 4.4])


MODELS: dict[str, Callable[[], HalfSpace | Ball | Wedge]] = {
    "half-space": lambda: HalfSpace(torch.tensor([1.0, -2, 0.5] * 4), -0.5),
    "ball": lambda: Ball(torch.full((12,), 0.5), 0.7),
    "wedge": lambda: wedge(12),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("search", ["scan", "bracket", "refine"])
def test_crossings_in_closed_form(name: str, search: str) -> None:
    model = MODELS[name]()
    x = 0.5 + 0.2 * (torch.rand(6, 3, 2, 2, generator=generator(9)) - 0.5)
    d = 0.5 * boundary.directions(12, 12, negate=True, generator=generator(10))
    d = d / d.abs().amax(1, keepdim=True)  # so that no pixel leaves [0, 1] up to the last magnitude
    grid = torch.arange(1, 40, dtype=torch.float64) / 100
    truth = model.crossing(x, d)
    found = boundary.probe(model, x, d, grid, search=search, tolerance=1e-5)
    at = torch.searchsorted(grid, truth)
    expected = torch.cat((grid, torch.tensor([math.inf], dtype=torch.float64)))[at]
    clear = (truth.unsqueeze(-1) - grid).abs().amin(-1) > 1e-6  # not on a grid point, where rounding decides
    assert clear.float().mean() > 0.98
    assert torch.equal(found.reached[clear], expected[clear].isfinite())
    assert 0.2 < found.reached.float().mean() < 1
    if search == "refine":
        gap = (found.distance - truth)[found.reached]
        assert bool((gap >= -1e-6).all())
        assert bool((gap <= 1e-5 + 1e-6).all())
    else:
        assert torch.equal(found.distance[clear], expected[clear])


def test_the_class_behind_a_wedge_s_edges() -> None:
    model = Wedge(torch.tensor([1.0, 0]), torch.tensor([0, 1.0]), center=torch.full((2,), 0.5), axes=[0, 2.0, 4.2])
    x = torch.tensor([0.6, 0.5]).view(1, 1, 1, 2)
    d = torch.tensor([[-0.5, 1], [-0.5, -1], [1, 0]])
    found = boundary.probe(model, x, d, [0.1, 0.2, 0.3, 0.4])
    assert found.adjacent.tolist() == [[1, 2, -1]]
    assert found.center.tolist() == [0]


def test_pixels_are_clipped_on_the_way() -> None:
    # From (.9, .1) along (1, 1) the sum passes 1.52 at t = .26 without clipping, at t = .42 with it.
    model = HalfSpace(torch.ones(2), 1.52)
    x = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1)
    grid = [0.05 * (i + 1) for i in range(16)]
    found = boundary.probe(model, x, torch.tensor([[1.0, 1.0], [1.0, -1.0]]), grid)
    assert found.distance[0].tolist() == [torch.tensor(grid)[8].item(), math.inf]
    fine = boundary.probe(model, x, torch.tensor([[1.0, 1.0]]), grid, search="refine", tolerance=1e-6)
    assert fine.distance[0].tolist() == pytest.approx([0.42], abs=2e-6)


def test_a_class_that_no_margin_announces_is_missed() -> None:
    x, d = torch.zeros(1, 1, 1, 1), torch.ones(1, 1)
    grid = [0.1 * (i + 1) for i in range(8)]
    strip = Strip(0.25, 0.35)  # only .3 lies inside, and the logits do not change before
    assert boundary.probe(strip, x, d, grid, search="scan").distance.item() == pytest.approx(0.3)
    assert not boundary.probe(strip, x, d, grid, search="bracket").reached.item()
    assert boundary.probe(strip, x, d, grid, stride=1).distance.item() == pytest.approx(0.3)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-30])
def test_refine_keeps_the_bracket(rugged: tuple[Tensor, Tensor], tolerance: float) -> None:
    model = Conv()
    grid = torch.tensor(GRID, dtype=torch.float64)
    coarse = boundary.probe(model, *rugged, grid)
    fine = boundary.probe(model, *rugged, grid, search="refine", tolerance=tolerance)
    assert torch.equal(fine.reached, coarse.reached)
    assert bool((fine.distance <= coarse.distance).all())
    assert bool((fine.distance[fine.reached] > coarse.distance[fine.reached] - 0.02 - 1e-9).all())
    image, direction = fine.reached.nonzero().T
    x, d = rugged
    step = fine.distance[image, direction].float()[:, None] * d[direction]
    upper = (x[image] + step.view(-1, 3, 4, 5)).clamp(0, 1)
    classes = model.eval()(upper).argmax(1)
    if tolerance > 1e-5:  # below, float32 decides on which side of the boundary the point lies
        assert torch.equal(classes, fine.adjacent[fine.reached])
    assert bool((fine.adjacent[fine.reached] != fine.center[image]).all())


def test_refine_takes_few_looks(rugged: tuple[Tensor, Tensor]) -> None:
    model = Conv()
    coarse = boundary.probe(model, *rugged, GRID)
    marched, model.forwards = model.forwards, 0
    boundary.probe(model, *rugged, GRID, search="refine", tolerance=1e-5)
    assert model.forwards - marched < 5 * int(coarse.reached.sum())  # bisection takes 11 for each


@pytest.mark.parametrize(
    ("magnitudes", "dtype"),
    [
        ([0.5, 1.0], torch.float32),
        (torch.tensor([0.1, 0.7], dtype=torch.float64), torch.float64),
        (torch.tensor([0.1, 0.7]).numpy(), torch.float32),
        ([1], torch.float32),
    ],
)
def test_distances_are_elements_of_the_magnitudes(magnitudes: Tensor | list[float], dtype: torch.dtype) -> None:
    model = HalfSpace(torch.tensor([1.0, 0.0]), 0.55)
    x = torch.full((1, 1, 1, 2), 0.5)
    found = boundary.probe(model, x, torch.tensor([[1.0, 0], [0, 1.0]]), magnitudes)
    last = torch.as_tensor(magnitudes).to(dtype)[0 if len(magnitudes) == 2 else -1]
    assert found.distance.dtype == dtype
    assert found.distance[0, 0] == last
    assert found.distance[0, 1] == math.inf
    assert (found.adjacent.dtype, found.center.dtype) == (torch.int16, torch.int64)
    assert found.reached.tolist() == [[True, False]]


def test_the_model_comes_back_as_it_was_and_results_are_ordinary_tensors(rugged: tuple[Tensor, Tensor]) -> None:
    model = Conv().train()
    model.norm.eval()
    model.linear.bias.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    running = model.norm.running_mean
    assert running is not None
    before = running.clone()
    x, d = rugged
    found = boundary.probe(model, x.clone().requires_grad_(), d, GRID, search="refine")
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(running, before)
    for tensor in (found.center, found.distance, found.adjacent, found.reached):
        assert not tensor.is_inference()
        assert not tensor.requires_grad
    found.distance[~found.reached] = 1.0  # as the detector's input wants it


class Broken(nn.Module):
    """A model that breaks once the first pixel passes `after`."""

    def __init__(self, how: str, after: float) -> None:
        super().__init__()
        self.how, self.after = how, after

    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros(len(x), 3) + torch.tensor([1.0, 0, 0])
        if x[0, 0, 0, 0] > self.after:
            z = {"nan": z * math.nan, "shape": z[:, 0], "rows": z[:1].repeat(7, 1)}[self.how]
        return z


@pytest.mark.parametrize("after", [0.0, 0.5, 0.85])  # at the image, in the first stride, in a later one
@pytest.mark.parametrize(
    ("how", "message"),
    [("nan", "expected finite logits"), ("shape", "expected logits of shape"), ("rows", "expected logits of shape")],
)
def test_a_model_that_breaks_in_any_pass_is_named(how: str, message: str, after: float) -> None:
    x = torch.full((2, 1, 1, 1), 0.4)
    grid = [0.05 * (i + 1) for i in range(12)]
    with pytest.raises(ValueError, match=message):
        boundary.probe(Broken(how, after), x, torch.ones(1, 1), grid, stride=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((1, 1, 1, 2), 1.5)}, "expected x in"),
        ({"x": torch.zeros(1, 2)}, "expected x of shape"),
        ({"directions": [[1.0, 0.0]]}, "expected directions as a float32 tensor, got list"),
        ({"directions": torch.ones(1, 2, dtype=torch.float64)}, "float32 tensor, got torch.float64; convert"),
        ({"directions": torch.ones(1, 3)}, r"directions of shape \(K, 2\), one flattened image a row, got \(1, 3\)"),
        ({"directions": torch.ones(2)}, r"directions of shape \(K, 2\)"),
        ({"directions": torch.ones(0, 2)}, r"directions of shape \(K, 2\)"),
        ({"directions": torch.tensor([[1.0, math.nan]])}, "expected finite directions"),
        ({"magnitudes": []}, r"expected magnitudes of shape \(M,\) with M >= 1, got \(0,\)"),
        ({"magnitudes": [[0.1]]}, r"expected magnitudes of shape \(M,\)"),
        ({"magnitudes": [0.0, 0.1]}, "expected magnitudes finite, above 0 and ascending"),
        ({"magnitudes": [0.2, 0.1]}, "ascending"),
        ({"magnitudes": [0.1, 0.1]}, "ascending"),
        ({"magnitudes": [0.1, math.nan]}, "expected magnitudes finite"),
        ({"magnitudes": [0.1, math.inf]}, "expected magnitudes finite"),
        ({"search": "brackets"}, "expected search to be one of bracket, scan, refine, .* did you mean 'bracket'"),
        ({"precision": "mix"}, "expected precision to be one of float32, mixed, .* did you mean 'mixed'"),
        ({"stride": 0}, "expected stride as a whole number of at least 1, got 0"),
        ({"tolerance": 0.0}, "expected tolerance above 0, got 0.0"),
    ],
)
def test_probe_refuses(change: dict[str, object], message: str) -> None:
    arguments = {"x": torch.full((1, 1, 1, 2), 0.5), "directions": torch.ones(1, 2), "magnitudes": [0.1, 0.2]} | change
    with pytest.raises(ValueError, match=message):
        boundary.probe(HalfSpace(torch.ones(2), 0.5), **arguments)  # type: ignore[arg-type]


class Last(nn.Module):
    """Of `count` classes the last one where the first pixel exceeds .5, else the first."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros(len(x), self.count)
        z[:, -1] = x.flatten(1)[:, 0] - 0.5
        return z


def test_as_many_classes_as_int16_counts_and_no_more() -> None:
    x, d = torch.full((1, 1, 1, 1), 0.4), torch.ones(1, 1)
    found = boundary.probe(Last(32_768), x, d, [0.05, 0.2])
    assert found.adjacent.tolist() == [[32_767]]
    assert boundary.audit(Last(32_768), x, d, [0.05, 0.2], found).adjacent.tolist() == [32_767]
    assert boundary.purity(found, num_classes=32_768, top=1).tolist() == [[1.0]]
    with pytest.raises(ValueError, match=r"expected a model of at most 32768 classes, .* got 32769"):
        boundary.probe(Last(32_769), x, d, [0.05, 0.2])


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_finds_the_same(name: str, cuda: torch.device) -> None:
    x = torch.rand(6, 3, 2, 2, generator=generator(9))
    d = boundary.directions(12, 12, negate=True, generator=generator(10))
    here = boundary.probe(MODELS[name](), x, d, GRID)
    there = boundary.probe(MODELS[name]().to(cuda), x, d, GRID)
    assert there.distance.is_cuda
    assert (there.distance.cpu() == here.distance).float().mean() > 0.99  # up to rounding at grid points


# ---------------------------------------------------------------------------------------------- profiles


def profile(adjacent: list[list[int]], dtype: torch.dtype = torch.int16) -> Profile:
    a = torch.tensor(adjacent, dtype=dtype)
    return Profile(torch.zeros(len(a), dtype=torch.int64), torch.where(a >= 0, 0.1, math.inf), a, a >= 0)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])  # int64: as earlier versions stored it
def test_purity_by_hand(dtype: torch.dtype) -> None:
    given = profile([[1, 1, 1, 2, 2, 3, 4, -1], [-1] * 8, [5, -1, -1, -1, -1, -1, -1, -1]], dtype)
    expected = [[3 / 7, 5 / 7, 6 / 7, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    for top in (1, 3, 5):
        found = boundary.purity(given, num_classes=6, top=top)
        assert found.dtype == torch.float64
        assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64)[:, :top])


def test_purity_of_many_images_is_that_of_each() -> None:
    classes = torch.randint(-1, 5, (2500, 7), generator=generator())
    found = boundary.purity(profile(classes.tolist()), num_classes=5)
    for i in (0, 1023, 1024, 2047, 2048, 2499):
        counts = sorted((classes[i].tolist().count(c) for c in range(5)), reverse=True)
        shares = [sum(counts[: j + 1]) / max(sum(counts), 1) for j in range(3)]
        assert found[i].tolist() == pytest.approx(shares)


def test_purity_with_fewer_classes_than_asked_for() -> None:
    assert boundary.purity(profile([[1, 0, 1, -1]]), num_classes=2).tolist() == [pytest.approx([2 / 3, 1, 1])]


@pytest.mark.parametrize(
    ("num_classes", "top", "message"),
    [
        (3, 3, "expected adjacent classes below num_classes=3, got 4"),
        (0, 3, "expected num_classes as a whole number"),
        (6, 0, "expected top as a whole number"),
    ],
)
def test_purity_refuses(num_classes: int, top: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boundary.purity(profile([[1, 4]]), num_classes=num_classes, top=top)


def test_profiles_are_taken_and_joined() -> None:
    given = profile([[1, -1], [2, 3], [-1, -1]])
    assert given.take(torch.tensor([2, 0])).adjacent.tolist() == [[-1, -1], [1, -1]]
    assert given.take(torch.tensor([True, False, True])).reached.tolist() == [[True, False], [False, False]]
    assert_same(Profile.cat([given.take(torch.tensor([0])), given.take(torch.tensor([1, 2]))]), given)


# ---------------------------------------------------------------------------------------------- trace


def test_a_trace_is_what_bracket_looks_at() -> None:
    grid = [0.005 * (i + 1) for i in range(199)]
    x, d = torch.zeros(1, 1, 1, 1), torch.ones(1, 1)
    model = Zigzag([0.2, 0.3, 0.7], start=0.9)  # the margin: .9, down to .3, up to .6, down to 0 at .5
    model.forwards = 0
    boundary.probe(model, x, d, grid)
    probed, found = model.forwards, boundary.trace(model, x, d, grid)
    assert found.magnitude.tolist() == pytest.approx([0, *grid])
    expected = [0.9 - 3 * t if t < 0.2 else 3 * t - 0.3 if t < 0.3 else 1.5 - 3 * t for t in (0, *grid)]
    assert found.margin[: len(grid) // 2].tolist() == pytest.approx(expected[: len(grid) // 2], abs=1e-5)
    assert found.looked[0] == 0
    assert len(found.looked) - 1 == probed - 5  # the shape of the logits, the image, and the three of its pace
    boundary_at = next(i for i, t in enumerate((0, *grid)) if t > 0.5)
    assert {boundary_at - 1, boundary_at} <= set(found.looked.tolist())


def test_a_trace_refuses_what_the_probe_refuses() -> None:
    with pytest.raises(ValueError, match="expected magnitudes finite, above 0 and ascending"):
        boundary.trace(Conv(), torch.rand(1, 3, 4, 5), torch.ones(1, 60), [0.2, 0.1])
    with pytest.raises(ValueError, match=r"expected one image, got 2"):
        boundary.trace(Conv(), torch.rand(2, 3, 4, 5), torch.ones(1, 60), [0.1])
    with pytest.raises(ValueError, match=r"expected one direction, got 2"):
        boundary.trace(Conv(), torch.rand(1, 3, 4, 5), torch.ones(2, 60), [0.1])
