"""The baselines on profiles of which is known what tells them apart."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from nbsupport import baselines
from nbsupport.boundary import Profile

CLASSES = 5


def profiles(count, *, rays=40, number=0, pure=False, **near):
    """Profiles of sorted distances that are random but for rank `rank`, at which they are shorter by `by`."""
    generator = torch.Generator().manual_seed(number)
    distance = torch.linspace(0.1, 0.8, rays) + 0.01 * torch.rand(count, rays, generator=generator)
    if near:
        distance[:, near["rank"] - 1] -= near["by"]
    adjacent = torch.randint(1, CLASSES, (count, rays), generator=generator)
    adjacent[:] = 3 if pure else adjacent
    shuffled = distance[:, torch.randperm(rays, generator=generator)]
    return Profile(torch.zeros(count, dtype=torch.int64), shuffled, adjacent, shuffled < 1)


@pytest.mark.parametrize("rank", [1, 7, 40])
def test_one_ray_finds_the_rank_that_tells_images_apart(rank):
    found = baselines.one_ray(profiles(30, number=1), profiles(30, number=2, rank=rank, by=0.012))
    assert found.rank == rank
    tested = profiles(6, number=3)
    assert (-found.score(tested)).tolist() == tested.distance.double().sort(1).values[:, rank - 1].tolist()


def test_the_rank_is_that_of_the_largest_area():
    generator = torch.Generator().manual_seed(0)
    zero = torch.zeros(50, 40, dtype=torch.int64)
    sides = []
    for scale in (1.0, torch.linspace(1.2, 0.8, 40)):
        distance = (scale * torch.rand(50, 40, generator=generator)).masked_fill(zero == 1, 0)
        distance[:, ::3] = torch.inf  # these count as 1
        sides.append(Profile(zero[:, 0], distance, zero, distance < 1))
    found = baselines.one_ray(*sides)
    seen = [side.distance.clamp(max=1).sort(1).values.double().numpy() for side in sides]
    labels = np.repeat([0, 1], 50)
    areas = [roc_auc_score(labels, -np.concatenate((seen[0][:, k], seen[1][:, k]))) for k in range(40)]
    assert areas[found.rank - 1] == pytest.approx(max(areas))
    assert found.rank - 1 == int(np.argmax(np.round(areas, 12)))


@pytest.mark.parametrize("what", [{"rank": 5, "by": 0.3}, {"pure": True}])
def test_boosting_learns_from_distances_and_from_purities(what):
    fitted = baselines.boosting(profiles(60, number=1), profiles(60, number=2, **what), num_classes=CLASSES)
    low, high = fitted.score(profiles(20, number=3)), fitted.score(profiles(20, number=4, **what))
    assert low.dtype == torch.float64
    assert low.max() < 0.5 < high.min()
    assert fitted.score(profiles(0)).shape == (0,)
    again = baselines.boosting(profiles(60, number=1), profiles(60, number=2, **what), num_classes=CLASSES)
    assert again.score(profiles(20, number=4)).equal(fitted.score(profiles(20, number=4)))


def test_the_baseline_of_a_fold_has_not_seen_it():
    benign, adversarial = profiles(20, number=1), profiles(20, number=2, rank=9, by=0.05)
    changed = profiles(20, number=2, rank=9, by=0.05)
    folds = torch.arange(20) % 2
    changed.distance[folds == 1] = profiles(20, number=5, rank=30, by=0.9).distance[folds == 1]
    one, two = (baselines.cross_fit(baselines.one_ray, benign, side, folds, count=2) for side in (adversarial, changed))
    assert one[1] == two[1] == baselines.one_ray(benign.take(folds == 0), adversarial.take(folds == 0))
    assert one[0] != two[0]


def boosting(benign, adversarial):
    return baselines.boosting(benign, adversarial, num_classes=CLASSES)


@pytest.mark.parametrize("fit", [baselines.one_ray, boosting])
@pytest.mark.parametrize(
    ("benign", "adversarial", "message"),
    [
        (profiles(0), profiles(3), "expected at least one benign profile, got none; give the attack more images"),
        (profiles(3), profiles(0), "expected at least one adversarial profile, got none"),
        (profiles(3), profiles(3, rays=41), "expected as many rays on both sides, got 40 benign and 41 adversarial"),
        (profiles(3, rank=1, by=math.nan), profiles(3), "expected benign distances without NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(fit, benign, adversarial, message):
    with pytest.raises(ValueError, match=message):
        fit(benign, adversarial)


@pytest.mark.parametrize("fit", [baselines.one_ray, boosting])
def test_profiles_of_other_rays_are_refused(fit):
    fitted = fit(profiles(30, number=1), profiles(30, number=2, pure=True))
    with pytest.raises(ValueError, match="expected profiles of 40 rays, as in training, got 64; probe along the same"):
        fitted.score(profiles(3, rays=64))
