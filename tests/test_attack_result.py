"""What attacks return: the best of several, and the evidence of searches that ended too early."""

import pytest
import torch

from nbsupport import attacks, runtime
from nbsupport.attacks import Attack, best_of
from nbsupport.models.analytic import HalfSpace

SHAPE = (1, 4, 4)


def result(rms, success, *, correct=None, forwards=1, shape=SHAPE):
    """An attack that moved every pixel of black images by its RMS."""
    rms, success = torch.tensor(rms), torch.tensor(success)
    count = torch.full((len(rms),), forwards)
    correct = torch.ones_like(success) if correct is None else torch.tensor(correct)
    x_adv, no = rms[:, None, None, None].expand(-1, *shape).clone(), torch.zeros_like(success)
    return Attack(x_adv, success, correct, rms, count, 2 * count, no, no)


def half_space():
    """A half-space whose boundary is .2 in RMS from the middle of the cube, along the diagonal, and images near it."""
    normal = torch.ones(16) / 4
    model = HalfSpace(normal, offset=float(normal.sum()) * 0.7)
    x = 0.5 + 0.02 * torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    return model, x, runtime.predict(model, x)


def test_the_least_success_of_each_image_is_taken():
    first = result([0.1, 0.3, 0.0, 0.4], [True, True, False, False], forwards=3)
    second = result([0.2, 0.1, 0.2, 0.1], [True, True, True, False], forwards=4)
    best = best_of([first, second])
    assert best.rms.tolist() == pytest.approx([0.1, 0.1, 0.2, 0.4])  # the last: no success, so the first attack's
    assert best.success.tolist() == [True, True, True, False]
    assert torch.equal(best.x_adv.amax((1, 2, 3)), best.rms)
    assert best.forwards.tolist() == [7] * 4
    assert best.backwards.tolist() == [14] * 4


def test_the_order_of_the_attacks_does_not_matter_where_one_succeeds():
    generator = torch.Generator().manual_seed(1)
    several = [result(torch.rand(9, generator=generator).tolist(), [True] * 9) for _ in range(4)]
    assert torch.equal(best_of(several).x_adv, best_of(several[::-1]).x_adv)


def test_the_best_of_real_attacks_is_no_further_than_any_and_no_nearer_than_the_boundary():
    model, x, y = half_space()
    several = [attacks.ddn_l2(model, x, y), attacks.carlini_wagner_l2(model, x, y, steps=200)]
    best = best_of(several)
    assert best.success.all()
    assert all((best.rms <= attack.rms).all() for attack in several)
    assert (best.rms >= model.distance(x) / 4 - 1e-6).all()  # L2 to RMS of 16 pixels


@pytest.mark.parametrize(("n", "disputed"), [(1, 1), (3, 1), (200, 2)])
@pytest.mark.parametrize("order", [1, -1])
def test_an_image_on_whose_label_attacks_disagree_counts_as_not_attacked(n, disputed, order):
    right = [i >= disputed for i in range(n)]
    first = result([0.2] * n, [True] * n, forwards=3)
    # The second finds its first images wrong already, as it does where two logits tie, and returns them.
    second = result([0.1 * yes for yes in right], right, correct=right, forwards=1)
    best = best_of([first, second][::order])
    assert best.correct.tolist() == best.success.tolist() == right
    assert best.rms.tolist() == pytest.approx([0.1 * yes for yes in right])
    assert torch.equal(best.x_adv.amax((1, 2, 3)), best.rms)
    assert best.forwards.tolist() == [4] * n


@pytest.mark.parametrize(
    ("several", "message"),
    [
        ([], "expected at least one attack, got none"),
        ([result([0.1], [True]), result([0.1, 0.2], [True, True])], "expected attacks on the same images, got"),
        ([result([0.1], [True]), result([0.1], [True], shape=(1, 2, 2))], "expected attacks on the same images, got"),
        (
            [
                result([0.1] * 3, [True] * 3),
                result([0.0, 0.0, 0.1], [False, False, True], correct=[False, False, True]),
            ],
            "disagree on 2 of 3 images whether they were classified correctly",
        ),
        (
            [result([0.1] * 200, [True] * 200), result([0.1] * 200, [True] * 200, correct=[False] * 3 + [True] * 197)],
            "disagree on 3 of 200 images",
        ),
    ],
)
def test_attacks_on_different_images_are_refused(several, message):
    with pytest.raises(ValueError, match=message):
        best_of(several)


@pytest.mark.parametrize(("steps", "falling"), [(8, True), (400, False)])
def test_a_minimum_norm_search_that_ends_too_early_says_so(steps, falling):
    model, x, y = half_space()
    found = attacks.ddn_l2(model, x, y, steps=steps, init_norm=4.0, gamma=0.05)
    assert found.success.all()
    assert (found.falling == falling).all()


@pytest.mark.parametrize(("steps", "falling"), [(10, True), (1000, False)])
def test_a_penalty_search_that_ends_too_early_says_so(steps, falling):
    model, x, y = half_space()
    found = attacks.carlini_wagner_l2(model, x, y, steps=steps, search_steps=1, lr=0.02, initial_const=20.0)
    assert (found.falling == falling).all()


@pytest.mark.parametrize(
    ("const", "search_steps", "success", "at_bound"),
    [(1e-6, 1, False, True), (1e4, 2, True, True), (0.1, 6, True, False)],
    ids=["never large enough", "never small enough", "bracketed"],
)
def test_a_constant_that_saw_one_side_only_is_reported(const, search_steps, success, at_bound):
    model, x, y = half_space()
    found = attacks.carlini_wagner_l2(model, x, y, steps=300, search_steps=search_steps, initial_const=const)
    assert (found.success == success).all()
    assert (found.at_bound == at_bound).all()


def test_pgd_that_gives_up_on_its_way_says_so():
    model, x, y = half_space()
    stuck = attacks.pgd_linf(model, x, y, eps=0.05, steps=40, step_size=0.01, random_start=False)
    slow = attacks.pgd_linf(model, x, y, eps=0.5, steps=10, step_size=0.01, random_start=False)
    there = attacks.pgd_linf(model, x, y, eps=0.5, steps=100, step_size=0.01, random_start=False)
    assert not stuck.success.any()
    assert not slow.success.any()
    assert there.success.all()
    assert slow.falling.all()
    assert not (stuck.falling | there.falling).any()
