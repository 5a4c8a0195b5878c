"""Regions other than the hypercube, votes other than the plurality."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from breaks_late import BreaksLate
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from nbsupport import region
from nbsupport.data import ImageSet
from nbsupport.models.analytic import HalfSpace, Wedge
from nbsupport.region import COMBINATIONS, SHAPES, Vote, draw

MEANS = ("mean_logits", "mean_probability")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same(a: Vote, b: Vote, rows: Tensor | slice = slice(None)) -> None:
    for name in vars(a):
        assert torch.equal(getattr(a, name), getattr(b, name)[rows]), name


def projection(shape: str, radius: float, dim: int) -> Any:
    """The distribution of a region's points along the diagonal, an L2 distance from its centre."""
    if shape == "gaussian":
        return stats.norm(scale=radius)
    if shape == "ball":  # a section at height t has the volume of (1 - t^2)^((D - 1) / 2)
        edge = radius * math.sqrt(dim)
        return stats.beta((dim + 1) / 2, (dim + 1) / 2, loc=-edge, scale=2 * edge)
    edge = radius * math.sqrt(2)
    assert dim == 2  # the sum of two uniform variables
    return stats.triang(0.5, loc=-edge, scale=2 * edge)


# ---------------------------------------------------------------------------------------------- the draws


@pytest.mark.parametrize("dim", [1, 2, 12, 784])
def test_the_ball_is_filled_uniformly(dim: int) -> None:
    offsets = draw("ball", 5000, torch.zeros(1, 1, 1, dim), generator(dim)).double() / math.sqrt(dim)
    length = offsets.norm(dim=1)
    assert length.max() <= 1 + 1e-6
    # The volume inside a radius r is r^D, and any direction of an image is a direction like all others.
    assert stats.kstest(length.numpy() ** dim, "uniform").pvalue > 0.001
    if dim > 1:
        height = (offsets @ torch.full((dim,), dim**-0.5, dtype=torch.float64)).numpy()
        assert stats.kstest(height, stats.beta((dim + 1) / 2, (dim + 1) / 2, loc=-1, scale=2).cdf).pvalue > 0.001


def test_gaussian_and_hypercube_pixels_are_what_they_are_called() -> None:
    x = torch.zeros(1, 3, 4, 4)
    gaussian, cube = (
        draw(shape, 500, x, generator(1)).double().flatten().numpy() for shape in ("gaussian", "hypercube")
    )
    assert stats.kstest(gaussian, "norm").pvalue > 0.001
    low, high = stats.chi2.ppf((0.0005, 0.9995), gaussian.size)
    assert low < gaussian.size * np.mean(gaussian**2) < high  # the standard deviation is 1
    assert stats.kstest(cube, stats.uniform(-1, 2).cdf).pvalue > 0.001


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dim", [3, 64])
def test_the_rms_of_a_shape_is_that_of_its_draws(shape: str, dim: int) -> None:
    squares = draw(shape, 20000, torch.zeros(1, 1, 1, dim), generator(2)).double().square().mean(1)
    assert stats.ttest_1samp(squares.numpy(), region.unit_rms(shape, dim) ** 2).pvalue > 0.001


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_are_those_of_the_generator(shape: str) -> None:
    x = torch.zeros(2, 1, 3, 4)
    first, again = (draw(shape, 7, x, generator(3)) for _ in range(2))
    assert first.shape == (7, 12)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    torch.manual_seed(3)
    assert torch.equal(draw(shape, 7, x, None), first)


# ---------------------------------------------------------------------------------------------- other regions


@pytest.mark.parametrize(("shape", "dim"), [("hypercube", 2), ("ball", 2), ("ball", 12), ("gaussian", 12)])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
def test_the_share_of_a_half_space_is_known(shape: str, dim: int, share: float) -> None:
    radius = 0.05  # so that nothing is clipped
    beyond = projection(shape, radius, dim).ppf(1 - share) * math.sqrt(dim)
    model = HalfSpace(torch.ones(dim), 0.5 * dim + beyond)
    x = torch.full((1, 1, 1, dim), 0.5)
    arguments: dict[str, Any] = {"samples": 20000, "stop": "none", "generator": generator(4)}
    vote = region.classify(model, x, radius=radius, shape=shape, **arguments)
    assert stats.binomtest(int(vote.counts[0, 1]), 20000, share).pvalue > 0.001


class OwnPixel(nn.Module):
    """Class 1 where the pixel that an image marks is above 1/2: one half-space an image, all independent.

    Images (N, 2, 1, D): the pixel marked is the largest of channel 1, and the one compared is that of channel 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        score = x[:, 0, 0].gather(1, x[:, 1, 0].argmax(1, keepdim=True))[:, 0] - 0.5
        return torch.stack((torch.zeros_like(score), score), 1)


def miss_probabilities(shares: NDArray[np.float64], samples: int, alpha: float) -> NDArray[np.float64]:
    """The exact probability that the winner's interval misses its share, of two classes: a sum over all counts."""
    k = np.arange(samples + 1)
    tests = [stats.binomtest(max(count, samples - count), samples) for count in range(samples + 1)]
    low, high = np.array([test.proportion_ci(1 - alpha, method="exact") for test in tests]).T
    share = shares[:, None]
    truth = np.where(2 * k > samples, share, 1 - share)  # a tie goes to class 0
    missed: NDArray[np.float64] = np.where((truth < low) | (truth > high), stats.binom.pmf(k, samples, share), 0)
    return missed.sum(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_miss_as_often_as_they_must_at_a_thousand_distances(shape: str) -> None:
    cases, samples, alpha, radius = 1000, 60, 0.05, 0.08
    marginal = {
        "hypercube": stats.uniform(-radius, 2 * radius),
        "gaussian": stats.norm(scale=radius),
        # One pixel of 2 * cases; its limits lie outside [0, 1], but 6 standard deviations do not.
        "ball": projection("ball", radius, 2 * cases),
    }[shape]
    shares = np.linspace(0.03, 0.97, 25)[np.arange(cases) % 25]
    x = torch.zeros(cases, 2, 1, cases)
    x[:, 0, 0] = torch.from_numpy(0.5 + marginal.ppf(shares)).float()[:, None]
    x[:, 1, 0] = torch.eye(cases)  # the mark stays the largest: radius is small
    arguments: dict[str, Any] = {"samples": samples, "alpha": alpha, "stop": "none", "generator": generator(5)}
    vote = region.classify(OwnPixel(), x, radius=radius, shape=shape, **arguments)
    truth = np.where(vote.label == 1, shares, 1 - shares)
    missed = int(((truth < vote.p_lower.numpy()) | (truth > vote.p_upper.numpy())).sum())
    expected = float(miss_probabilities(shares, samples, alpha).mean())
    assert 0.01 < expected < alpha
    assert stats.binomtest(missed, cases, expected).pvalue > 0.001
    assert stats.binomtest(missed, cases, alpha, alternative="greater").pvalue > 0.001


def test_no_certificate_is_violated_by_the_exact_attack() -> None:
    # A thousand images before the diagonal of a square; the worst direction, in L1 along one pixel and in L-inf along
    # both, brings the boundary nearer by shift / sqrt(2) and by sqrt(2) * shift.
    radius, cases = 0.2, 1000
    away = torch.linspace(-0.28, 0.28, cases, dtype=torch.float64)  # L2 distance to the boundary
    x = (0.5 + away / math.sqrt(2)).float().view(-1, 1, 1, 1).expand(-1, 1, 1, 2)
    away = (x.double().sum((1, 2, 3)) - 1) / math.sqrt(2)
    model = HalfSpace(torch.ones(2), 1.0)
    vote = region.classify(model, x, radius=radius, samples=2000, stop="none", generator=generator(6))
    share = projection("hypercube", radius, 2).cdf

    def majority(nearer: Tensor) -> NDArray[np.float64]:  # the exact share of `label` after the attack
        kept = torch.where(vote.label == 1, away, -away) - nearer
        shares: NDArray[np.float64] = share(kept.numpy())
        return shares

    held = majority(torch.zeros(cases)) >= vote.p_lower.numpy()
    assert held.mean() > 0.99
    certified = held & (vote.radius_linf > 0).numpy()
    assert 500 < certified.sum() < cases
    for nearer in (vote.radius_l1 / math.sqrt(2), vote.radius_linf * math.sqrt(2)):
        assert (majority(nearer)[certified] >= 0.5).all()
    assert (majority(2 * vote.radius_l1)[certified] < 0.5).any()  # the attack has power


@pytest.mark.parametrize("shape", ["ball", "gaussian"])
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_only_the_plurality_in_a_hypercube_is_certified(shape: str, combine: str) -> None:
    model, x = HalfSpace(torch.ones(2), 0.2), torch.full((3, 1, 1, 2), 0.5)
    sure = region.classify(model, x, radius=0.1, generator=generator())
    assert bool((sure.radius_l1 > 0).all() and (sure.radius_linf > 0).all())
    for of, by in ((shape, combine), ("hypercube", MEANS[0]), ("hypercube", MEANS[1])):
        vote = region.classify(model, x, radius=0.1, shape=of, combine=by, generator=generator())
        assert bool((vote.p_lower > 0.5).all())
        assert not vote.radius_l1.any()
        assert not vote.radius_linf.any()
        assert vote.radius_l1.dtype == vote.radius_linf.dtype == torch.float64


class Ridge(nn.Module):
    """Least squares on one-hot labels: a linear classifier of digits without training."""

    def __init__(self, fitted: ImageSet) -> None:
        super().__init__()
        rows = torch.cat((fitted.x.flatten(1), torch.ones(len(fitted), 1)), 1).double()
        targets = torch.eye(10, dtype=torch.float64)[fitted.y]
        weights = torch.linalg.solve(rows.T @ rows + torch.eye(65, dtype=torch.float64), rows.T @ targets)
        self.weight: Tensor
        self.register_buffer("weight", 10 * weights.float())

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight[:-1] + self.weight[-1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [0.15, 0.4, 0.8])
def test_exact_stopping_keeps_the_label_of_a_thousand_digits(
    digits: ImageSet, digits_train: ImageSet, shape: str, radius: float
) -> None:
    model = Ridge(digits_train)
    x = torch.cat((digits.x, digits_train.x[:500]))
    found = {}
    for stop in ("none", "exact"):
        draws: dict[str, Any] = {"shape": shape, "generator": generator(7)}
        found[stop] = region.classify(model, x, radius=radius, samples=45, stop=stop, **draws)
    assert torch.equal(found["exact"].label, found["none"].label)
    assert 0.5 < float(found["exact"].used.double().mean()) / 45 < 1
    y = torch.cat((digits.y, digits_train.y[:500]))
    assert float((found["none"].label == y).double().mean()) > (0.85 if radius < 0.2 else 0.3)


def test_search_radius_takes_a_shape() -> None:
    model = HalfSpace(torch.ones(2), 0.9)
    x = torch.full((1, 1, 1, 2), 0.5)
    found = {}
    for shape in SHAPES:
        arguments: dict[str, Any] = {"step": 0.1, "max_radius": 0.9, "samples": 31, "shape": shape}

        def kept(radius: float, shape: str = shape) -> bool:
            draws: dict[str, Any] = {"samples": 31, "shape": shape, "generator": generator(15)}
            return region.classify(model, x, radius=radius, **draws).label.item() == 1

        expected = next((i for i in range(9) if not kept((i + 1) * 0.1)), 9) * 0.1
        found[shape] = region.search_radius(model, x, torch.tensor([1]), generator=generator(15), **arguments)
        assert found[shape] == pytest.approx(expected)
    assert len(set(found.values())) > 1


# ---------------------------------------------------------------------------------------------- other votes


class Sectors(nn.Module):
    """Four classes around the middle of the first two pixels, with logits in proportion to the distance from it."""

    def __init__(self, rows: int = 16) -> None:
        super().__init__()
        plane = torch.eye(12)[:2]
        self.wedge = Wedge(plane[0], plane[1], center=torch.full((12,), 0.5), axes=[2.5, 0.2, 1.1, 4.0])
        self.batch_rows = {"cpu": rows, "cuda": rows}

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.wedge(x)
        return 9 * z


@pytest.fixture(scope="module")
def x() -> Tensor:
    """Images from all over, many with near ties."""
    images = torch.rand(40, 3, 2, 2, generator=generator())
    images.view(40, -1)[:20, :2] = 0.5 + 0.1 * (images.view(40, -1)[:20, :2] - 0.5)
    return images


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("combine", MEANS)
@pytest.mark.parametrize("rows", [1, 16, 1000])
def test_means_equal_the_plain_loop_s(x: Tensor, combine: str, shape: str, rows: int) -> None:
    samples, radius, alpha, model = 20, 0.3, 0.05, Sectors(rows)
    offsets = draw(shape, samples, x, generator(8))
    arguments: dict[str, Any] = {"samples": samples, "alpha": alpha, "shape": shape, "combine": combine}
    found = region.classify(model, x, radius=radius, generator=generator(8), **arguments)
    for i, image in enumerate(x):
        logits = [model((image + radius * o.view_as(image)).clamp(0, 1)[None])[0].tolist() for o in offsets]
        sums, counts = [0.0] * 4, [0] * 4
        for z in logits:
            counts[z.index(max(z))] += 1
            total = sum(math.exp(value) for value in z)
            for c, value in enumerate(z):
                sums[c] += math.exp(value) / total if combine == "mean_probability" else value
        label = sums.index(max(sums))
        assert found.label[i] == label
        assert found.counts[i].tolist() == counts
        assert found.used[i] == samples
        interval = stats.binomtest(counts[label], samples).proportion_ci(1 - alpha, method="exact")
        assert found.p_lower[i].item() == pytest.approx(interval.low, abs=1e-12)
        assert found.p_upper[i].item() == pytest.approx(interval.high, abs=1e-12)
        other = max(n for c, n in enumerate(counts) if c != label)
        decided = counts[label] > other and stats.binomtest(counts[label], counts[label] + other).pvalue <= alpha
        assert found.abstain[i].item() == (not decided)
    assert 0 < found.abstain.sum() < len(x)
    assert bool((found.label != found.counts.argmax(1)).any())  # the mean is not the plurality


class Rare(nn.Module):
    """Class 1 by 10 where the first pixel is above .8, class 0 by 1 elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        score = torch.where(x.flatten(1)[:, 0] > 0.8, 10.0, -1.0)
        return torch.stack((torch.zeros_like(score), score), 1)


def test_the_three_votes_part_where_a_fifth_of_the_points_is_sure() -> None:
    # Means of the logit of class 1 against class 0: .2 * 10 - .8 > 0; of its probability: .2 + .8 / (1 + e) < 1/2.
    x = torch.full((1, 1, 1, 1), 0.5)
    found = {c: region.classify(Rare(), x, radius=0.5, combine=c, generator=generator(9)) for c in COMBINATIONS}
    assert {name: vote.label.item() for name, vote in found.items()} == {
        "plurality": 0,
        "mean_logits": 1,
        "mean_probability": 0,
    }
    vote = found["mean_logits"]
    share = vote.counts[0, 1].item() / 100
    assert 0.1 < share < 0.3
    assert vote.p_lower.item() < share < vote.p_upper.item() < 0.5
    assert vote.abstain.item()
    assert found["plurality"].used < found["mean_probability"].used == 100


class Compromise(nn.Module):
    """Class 0 or 1 by 3 on either side of .5, and class 2 always little behind the winner."""

    def forward(self, x: Tensor) -> Tensor:
        above = (x.flatten(1)[:, 0] > 0.5).float()
        return torch.stack((3 - 3 * above, 3 * above, torch.full_like(above, 2.9)), 1)


def test_a_mean_may_choose_a_class_without_a_vote() -> None:
    x = torch.full((1, 1, 1, 1), 0.5)
    vote = region.classify(Compromise(), x, radius=0.1, combine="mean_logits", alpha=0.05, generator=generator(10))
    assert vote.label.item() == 2
    assert vote.counts[0, 2] == 0
    assert vote.p_lower.item() == 0
    assert vote.p_upper.item() == pytest.approx(1 - 0.025 ** (1 / 100))  # Clopper-Pearson's bound of no success
    assert vote.abstain.item()


def test_the_mean_of_a_linear_model_is_its_value_at_the_mean_point(digits: ImageSet, digits_train: ImageSet) -> None:
    model, x = Ridge(digits_train), digits.x[:100]
    offsets = draw("gaussian", 50, x, generator(11)).view(50, 1, 1, 8, 8)
    middle = (x + 0.5 * offsets).clamp(0, 1).double().mean(0).float()
    arguments: dict[str, Any] = {"shape": "gaussian", "samples": 50, "generator": generator(11)}
    found = region.classify(model, x, radius=0.5, combine="mean_logits", **arguments)
    z = model(middle).topk(2)
    clear = (z.values[:, 0] - z.values[:, 1]) > 1e-4
    assert clear.sum() > 90
    assert torch.equal(found.label[clear], z.indices[clear, 0])


@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_alone_and_in_any_order_gets_the_same(x: Tensor, shape: str, combine: str) -> None:
    def classify(images: Tensor, rows: int) -> Vote:
        draws: dict[str, Any] = {"shape": shape, "combine": combine, "generator": generator(12)}
        return region.classify(Sectors(rows), images, radius=0.3, **draws)

    together = classify(x, 64)
    order = torch.randperm(len(x), generator=generator())
    assert_same(classify(x[order], 7), together, order)
    for i in range(0, len(x), 8):
        assert_same(classify(x[i : i + 1], 64), together, slice(i, i + 1))


def test_the_default_is_the_published_vote(x: Tensor) -> None:
    offsets = 2 * torch.rand(100, 12, generator=generator(13)) - 1
    assert torch.equal(draw("hypercube", 100, x, generator(13)), offsets)
    named: dict[str, Any] = {"shape": "hypercube", "combine": "plurality", "stop": "exact"}
    default = region.classify(Sectors(), x, radius=0.3, generator=generator(13))
    assert_same(default, region.classify(Sectors(), x, radius=0.3, generator=generator(13), **named))
    for combine in MEANS:
        exact, none = (
            region.classify(Sectors(), x, radius=0.3, stop=stop, combine=combine, generator=generator(13))
            for stop in ("exact", "none")
        )
        assert_same(exact, none)
        assert not any(tensor.is_inference() for tensor in vars(exact).values())
        assert [v.dtype for v in vars(exact).values()] == [v.dtype for v in vars(default).values()]


@pytest.mark.parametrize("shape", ["ball", "gaussian"])
def test_mixed_precision_gives_the_same_vote(x: Tensor, shape: str) -> None:
    a, b = (
        region.classify(Sectors(), x, radius=0.3, shape=shape, generator=generator(3), precision=precision)
        for precision in ("float32", "mixed")
    )
    assert_same(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"shape": "cube"},
            "expected shape to be one of hypercube, ball, gaussian, got 'cube'; did you mean 'hypercube'",
        ),
        ({"combine": "mean"}, "expected combine to be one of plurality, mean_logits, mean_probability, got 'mean'"),
        (
            {"combine": "mean_logits", "stop": "alpha"},
            r"expected stop 'none' \(or 'exact', the same there\) with combine 'mean_logits', got 'alpha'; its test",
        ),
        (
            {"combine": "mean_probability", "precision": "mixed"},
            "expected precision 'float32' with combine 'mean_probability', got 'mixed'; only labels are confirmed",
        ),
    ],
)
def test_classify_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        region.classify(HalfSpace(torch.ones(2), 0.5), torch.full((1, 1, 1, 2), 0.5), radius=0.1, **change)


def test_search_radius_refuses_an_unknown_shape() -> None:
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([1])
    with pytest.raises(ValueError, match="expected shape to be one of hypercube, ball, gaussian, got 'disc'"):
        region.search_radius(HalfSpace(torch.ones(2), 0.5), x, y, shape="disc")


@pytest.mark.parametrize("combine", MEANS)
def test_a_model_that_breaks_in_a_later_pass_is_named(combine: str) -> None:
    with pytest.raises(ValueError, match="expected finite logits from the model, got 240 NaN"):
        region.classify(BreaksLate(), torch.zeros(1, 1, 1, 1), radius=0.1, samples=96, combine=combine)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_a_gpu_counts_the_same(x: Tensor, shape: str, combine: str, cuda: torch.device) -> None:
    arguments: dict[str, Any] = {"radius": 0.3, "shape": shape, "combine": combine}
    here = region.classify(Sectors(), x, generator=generator(14), **arguments)
    there = region.classify(Sectors().to(cuda), x, generator=generator(14), **arguments)
    assert there.label.is_cuda
    assert torch.equal(there.counts.cpu(), here.counts)
    assert torch.equal(there.label.cpu(), here.label)
