from __future__ import annotations

import math

import pytest
import torch
from breaks_late import BreaksLate
from scipy import stats
from torch import Tensor, nn

from nbsupport import region
from nbsupport.models.analytic import HalfSpace, Wedge
from nbsupport.region import Vote


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Sectors(nn.Module):
    """Four classes around the middle of the first two pixels; counts its rows, and says how many fit a batch."""

    def __init__(self, rows: int = 16) -> None:
        super().__init__()
        plane = torch.eye(12)[:2]
        self.wedge = Wedge(plane[0], plane[1], center=torch.full((12,), 0.5), axes=[2.5, 0.2, 1.1, 4.0])
        self.drop = nn.Dropout(0.5)
        self.batch_rows = {"cpu": rows, "cuda": rows}
        self.largest = self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest, self.forwards = max(self.largest, len(x)), self.forwards + len(x)
        z: Tensor = self.wedge(self.drop(x))
        return z


class OwnPixel(nn.Module):
    """Class 1 where the pixel that an image marks is above `offset`: one half-space an image, all independent.

    Images (N, 2, 1, D): the pixel marked is the largest of channel 1, and the one compared is that of channel 0.
    """

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        score = x[:, 0, 0].gather(1, x[:, 1, 0].argmax(1, keepdim=True))[:, 0] - self.offset
        return torch.stack((torch.zeros_like(score), score), 1)


@pytest.fixture(scope="module")
def x() -> Tensor:
    """Images from all over, many with near ties."""
    images = torch.rand(40, 3, 2, 2, generator=generator())
    images.view(40, -1)[:20, :2] = 0.5 + 0.02 * (images.view(40, -1)[:20, :2] - 0.5)
    return images


def votes(model: nn.Module, image: Tensor, radius: float, samples: int, seed: int) -> list[int]:
    """The classes of the points around one image, one after the other."""
    model.eval()
    offsets = 2 * torch.rand(samples, image.numel(), generator=generator(seed)) - 1
    points = [(image + radius * offset.view_as(image)).clamp(0, 1) for offset in offsets]
    return [int(model(point[None]).argmax()) for point in points]


def plurality(counts: list[int]) -> int:
    return max(range(len(counts)), key=lambda c: (counts[c], -c))


def stopping_time(sequence: list[int], classes: int, stop: str, alpha: float) -> int:
    """Count the votes one by one until the rule `stop` ends the vote."""
    samples = len(sequence)
    looks = [10 * 2**i for i in range(20) if 10 * 2**i < samples] + [samples]
    for used in range(1, samples + 1):
        counts = [sequence[:used].count(c) for c in range(classes)]
        winner = plurality(counts)
        if stop == "exact":  # would the winner survive if all remaining votes went to any one class?
            rivals = [[n + (samples - used) * (c == rival) for c, n in enumerate(counts)] for rival in range(classes)]
            if all(plurality(rival) == winner for rival in rivals):
                return used
        if stop == "alpha" and used in looks:
            first, second = sorted(counts)[:-3:-1]
            if stats.binomtest(first, first + second, 0.5).pvalue <= alpha / len(looks):
                return used
    return samples


def assert_same(a: Vote, b: Vote, rows: Tensor | slice = slice(None)) -> None:
    for name in ("label", "counts", "used", "p_lower", "p_upper", "abstain", "radius_l1", "radius_linf"):
        assert torch.equal(getattr(a, name), getattr(b, name)[rows]), name


# ---------------------------------------------------------------------------------------------- the vote


@pytest.mark.parametrize("samples", [1, 2, 7, 45, 100])
@pytest.mark.parametrize("stop", ["none", "exact", "alpha"])
def test_votes_equal_the_plain_loop_s(x: Tensor, stop: str, samples: int) -> None:
    model = Sectors()
    found = region.classify(model, x, radius=0.3, samples=samples, stop=stop, alpha=0.05, generator=generator(samples))
    assert model.largest == 16
    assert model.forwards == int(found.used.sum()) + 1  # and one look at the shape of the logits
    for i, image in enumerate(x):
        sequence = votes(model, image, 0.3, samples, samples)
        used = stopping_time(sequence, 4, stop, 0.05)
        assert found.used[i] == used
        counts = [sequence[:used].count(c) for c in range(4)]
        assert found.counts[i].tolist() == counts
        assert found.label[i] == plurality(counts)


@pytest.mark.parametrize("samples", [1, 10, 33, 100])
def test_exact_stopping_never_changes_the_label(samples: int) -> None:
    x = 0.5 + 0.5 * (torch.rand(500, 3, 2, 2, generator=generator()) - 0.5)
    arguments = {"radius": 0.3, "samples": samples}
    everything = region.classify(Sectors(512), x, stop="none", generator=generator(1), **arguments)  # type: ignore[arg-type]
    exact = region.classify(Sectors(512), x, stop="exact", generator=generator(1), **arguments)  # type: ignore[arg-type]
    assert torch.equal(exact.label, everything.label)
    assert bool((everything.used == samples).all())
    assert bool((exact.used <= samples).all())
    assert bool((exact.used >= math.ceil(samples / 2)).all())
    assert everything.label.unique().numel() == 4


def test_a_unanimous_vote_stops_at_the_first_point_of_no_return() -> None:
    model = HalfSpace(torch.tensor([1.0]), 0.5)
    x = torch.tensor([0.1, 0.9]).view(2, 1, 1, 1)
    vote = region.classify(model, x, radius=0.2, samples=100, generator=generator())
    assert vote.used.tolist() == [50, 51]  # a tie goes to class 0
    assert vote.label.tolist() == [0, 1]


@pytest.mark.parametrize(("stop", "votes", "certain"), [("exact", 51, 0.862), ("none", 100, 0.927)])
def test_all_points_certify_more_than_those_that_decide(stop: str, votes: int, certain: float) -> None:
    x = torch.full((1, 1, 1, 1), 0.9)
    vote = region.classify(HalfSpace(torch.tensor([1.0]), 0.5), x, radius=0.2, stop=stop, generator=generator())
    lower = (0.001 / 2) ** (1 / votes)  # Clopper-Pearson where all votes agree
    assert vote.p_lower.item() == pytest.approx(lower)
    assert vote.radius_l1.item() == pytest.approx(2 * 0.2 * (lower - 0.5))
    assert round(lower, 3) == certain  # as the docstring and notebook 4 say


@pytest.mark.parametrize("stop", ["none", "exact", "alpha"])
def test_an_image_alone_and_in_any_order_gets_the_same(x: Tensor, stop: str) -> None:
    def classify(images: Tensor, rows: int) -> Vote:
        return region.classify(Sectors(rows), images, radius=0.3, stop=stop, alpha=0.05, generator=generator(2))

    together = classify(x, 64)
    order = torch.randperm(len(x), generator=generator())
    assert_same(classify(x[order], 7), together, order)
    for i in range(0, len(x), 8):
        assert_same(classify(x[i : i + 1], 64), together, slice(i, i + 1))


def test_points_are_clipped() -> None:
    model = HalfSpace(torch.tensor([1.0]), -1e-3)  # class 0 only below 0
    vote = region.classify(model, torch.zeros(1, 1, 1, 1), radius=0.5, stop="none", generator=generator())
    assert vote.counts.tolist() == [[0, 100]]


@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
def test_the_share_of_a_half_space_is_its_volume(share: float) -> None:
    radius = 0.2
    model = HalfSpace(torch.tensor([1.0, 0.0]), 0.5 + radius * (1 - 2 * share))
    x = torch.full((1, 1, 1, 2), 0.5)
    vote = region.classify(model, x, radius=radius, samples=20000, stop="none", generator=generator())
    assert stats.binomtest(int(vote.counts[0, 1]), 20000, share).pvalue > 0.001


def test_mixed_precision_gives_the_same_vote(x: Tensor) -> None:
    a, b = (
        region.classify(Sectors(), x, radius=0.3, generator=generator(3), precision=precision)
        for precision in ("float32", "mixed")
    )
    assert_same(a, b)


def test_the_model_comes_back_as_it_was_and_results_are_ordinary_tensors(x: Tensor) -> None:
    model = Sectors().train()
    model.drop.eval()
    vote = region.classify(model, x, radius=0.3)
    assert [module.training for module in model.modules()] == [True, True, False]
    dtypes = [torch.int64] * 3 + [torch.float64] * 2 + [torch.bool] + [torch.float64] * 2
    assert [tensor.dtype for tensor in vars(vote).values()] == dtypes
    assert not any(tensor.is_inference() for tensor in vars(vote).values())


# ---------------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("stop", ["none", "exact", "alpha"])
def test_intervals_certificates_and_abstention(x: Tensor, stop: str, alpha: float) -> None:
    vote = region.classify(Sectors(), x, radius=0.3, stop=stop, alpha=alpha, generator=generator(4))
    level = alpha / 5 if stop == "alpha" else alpha  # looks at 10, 20, 40, 80, 100
    for i, counts in enumerate(vote.counts.tolist()):
        first, second = sorted(counts)[:-3:-1]
        test = stats.binomtest(first, sum(counts))
        interval = test.proportion_ci(1 - level, method="exact")
        assert vote.p_lower[i].item() == pytest.approx(interval.low, abs=1e-12)
        assert vote.p_upper[i].item() == pytest.approx(interval.high, abs=1e-12)
        assert vote.abstain[i].item() == (stats.binomtest(first, first + second).pvalue > level)
        excess = max(interval.low - 0.5, 0)
        assert vote.radius_l1[i].item() == pytest.approx(2 * 0.3 * excess)
        assert vote.radius_linf[i].item() == pytest.approx(2 * 0.3 * (1 - (1 - excess) ** (1 / 12)))
    assert 0 < vote.abstain.sum() < len(x)
    assert 0 < (vote.radius_l1 > 0).sum() < len(x)
    assert bool((vote.p_upper == 1).any()) or stop == "exact"


@pytest.mark.parametrize("stop", ["none", "exact", "alpha"])
@pytest.mark.parametrize("share", [0.45, 0.7, 0.97])
def test_the_interval_covers_the_share_as_often_as_it_says(share: float, stop: str) -> None:
    cases, alpha, radius = 1000, 0.05, 0.2
    x = torch.zeros(cases, 2, 1, cases)
    x[:, 0] = 0.5
    x[:, 1, 0] = torch.eye(cases)  # the mark stays the largest: the hypercube is narrower than 1/2
    model = OwnPixel(0.5 + radius * (1 - 2 * share))
    vote = region.classify(model, x, radius=radius, stop=stop, alpha=alpha, generator=generator(5))
    truth = torch.where(vote.label == 1, share, 1 - share)
    missed = (truth < vote.p_lower) | (truth > vote.p_upper)
    wrong = (vote.p_lower > 0.5) & (truth < 0.5)
    for errors in (missed, wrong):
        assert stats.binomtest(int(errors.sum()), cases, alpha, alternative="greater").pvalue > 0.001
    # The certificate: where the interval holds, the share after the worst shift is still a majority.
    moved = truth - vote.radius_l1 / (2 * radius)
    certified = (vote.radius_l1 > 0) & ~missed
    assert bool((moved[certified] >= 0.5 - 1e-9).all())
    assert bool((vote.radius_linf <= vote.radius_l1).all())
    assert bool(certified.any()) or share == 0.45


@pytest.mark.parametrize("pixels", [(0.5, 0.5), (0.55, 0.52), (0.45, 0.4)])
def test_no_certificate_is_violated_on_a_diagonal_half_space(pixels: tuple[float, float]) -> None:
    # The sum of two uniform variables has a triangular distribution, so the share is exact after any shift.
    radius, offset = 0.2, 0.9
    model = HalfSpace(torch.ones(2), offset)
    x = torch.tensor(pixels).view(1, 1, 1, 2)
    vote = region.classify(model, x, radius=radius, samples=5000, stop="none", generator=generator(6))
    total = stats.triang(0.5, loc=sum(pixels) - 2 * radius, scale=4 * radius)
    above = vote.label.item() == 1

    def share(shift: float) -> float:  # of the label, after the sum moved by `shift` towards the other class
        return float(total.sf(offset + shift) if above else total.cdf(offset - shift))

    assert vote.p_lower.item() < share(0) < vote.p_upper.item()
    assert share(vote.radius_l1.item()) >= 0.5
    assert share(2 * vote.radius_linf.item()) >= 0.5
    assert vote.radius_linf.item() > 0


def test_certificates_of_both_norms_agree_in_one_dimension() -> None:
    model = HalfSpace(torch.tensor([1.0]), 0.4)
    vote = region.classify(model, torch.full((1, 1, 1, 1), 0.5), radius=0.2, samples=1000, generator=generator())
    assert vote.radius_l1.item() > 0
    assert vote.radius_linf.item() == pytest.approx(vote.radius_l1.item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((1, 1, 1, 2), -1.0)}, "expected x in"),
        ({"radius": 0.0}, "expected radius above 0, got 0.0"),
        ({"radius": math.nan}, "expected radius above 0, got nan"),
        ({"samples": 0}, "expected samples as a whole number of at least 1, got 0"),
        ({"stop": "exactly"}, "expected stop to be one of none, exact, alpha, .* did you mean 'exact'"),
        ({"alpha": 0.0}, "expected alpha above 0 and at most 1, got 0.0"),
        ({"precision": "float"}, "expected precision to be one of float32, mixed, .* did you mean 'float32'"),
    ],
)
def test_classify_refuses(change: dict[str, object], message: str) -> None:
    arguments = {"x": torch.full((1, 1, 1, 2), 0.5), "radius": 0.1} | change
    with pytest.raises(ValueError, match=message):
        region.classify(HalfSpace(torch.ones(2), 0.5), **arguments)  # type: ignore[arg-type]


def test_a_model_that_breaks_in_a_later_pass_is_named() -> None:
    with pytest.raises(ValueError, match="expected finite logits"):
        region.classify(BreaksLate(), torch.zeros(1, 1, 1, 1), radius=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("stop", ["none", "exact", "alpha"])
def test_a_gpu_counts_the_same(x: Tensor, stop: str, cuda: torch.device) -> None:
    here = region.classify(Sectors(), x, radius=0.3, stop=stop, generator=generator(7))
    there = region.classify(Sectors().to(cuda), x, radius=0.3, stop=stop, generator=generator(7))
    assert there.label.is_cuda
    assert torch.equal(there.counts.cpu(), here.counts)


# ---------------------------------------------------------------------------------------------- the radius


@pytest.mark.parametrize("max_radius", [0.05, 0.9])
def test_search_radius_equals_a_loop_of_votes(x: Tensor, max_radius: float) -> None:
    model = Sectors().eval()
    y = model(x).argmax(1)
    y[::7] = 3  # some are misclassified anyway, so that the vote may also gain

    def accuracy(radius: float) -> float:
        return float((region.classify(model, x, radius=radius, generator=generator(8)).label == y).float().mean())

    point = float((model(x).argmax(1) == y).float().mean())
    expected = 0.0
    for i in range(round(max_radius / 0.05)):
        if accuracy((i + 1) * 0.05) < point:
            break
        expected = (i + 1) * 0.05
    arguments = {"step": 0.05, "max_radius": max_radius, "generator": generator(8)}
    assert region.search_radius(model, x, y, **arguments) == pytest.approx(expected)  # type: ignore[arg-type]


def test_search_radius_at_its_ends() -> None:
    x = torch.tensor([0.45, 0.9]).view(2, 1, 1, 1)
    model = HalfSpace(torch.tensor([1.0]), 0.5)
    arguments = {"step": 0.1, "max_radius": 0.3}
    always = region.search_radius(model, x, torch.tensor([1, 1]), generator=generator(), **arguments)  # type: ignore[arg-type]
    assert always == pytest.approx(0.3)
    assert region.search_radius(Sliver(), torch.full((1, 1, 1, 1), 0.5), torch.tensor([1])) == 0.0


class Sliver(nn.Module):
    """Class 1 within .001 of 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        score = 0.001 - (x.flatten(1)[:, 0] - 0.5).abs()
        return torch.stack((torch.zeros_like(score), score), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.tensor([0, 1])}, r"expected y of shape \(1,\)"),
        ({"step": 0.0}, "expected step above 0, got 0.0"),
        ({"max_radius": 0.001}, "expected max_radius at least 0.01, got 0.001"),
        ({"samples": -1}, "expected samples as a whole number"),
    ],
)
def test_search_radius_refuses(change: dict[str, object], message: str) -> None:
    arguments = {"x": torch.full((1, 1, 1, 1), 0.5), "y": torch.tensor([0])} | change
    with pytest.raises(ValueError, match=message):
        region.search_radius(Sliver(), **arguments)  # type: ignore[arg-type]
