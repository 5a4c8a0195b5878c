"""Signs of a failed attack: each where it is known to be there, none where the attack is known to be right."""

import itertools
import math

import pytest
import torch
from torch import nn

from nbsupport import attacks, models, train
from nbsupport.attacks import Attack, failure_indicators
from nbsupport.models.analytic import HalfSpace

SHAPE = (2, 4, 4)
DIM = math.prod(SHAPE)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def half_space():
    normal = torch.randn(DIM, generator=seeded(1))
    return HalfSpace(normal, float(normal.sum()) / 2)


def interior_images(n, seed=0):
    return 0.4 + 0.2 * torch.rand(n, *SHAPE, generator=seeded(seed))


def predicted(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def mask(n, *true):
    return torch.isin(torch.arange(n), torch.tensor([*itertools.chain(*true)]))


def outcome(x, x_adv=None, success=True, correct=True, **evidence):
    """An attack that returned `x_adv`, or that did nothing."""
    n = len(x)
    x_adv = x if x_adv is None else x_adv
    truths = [value if isinstance(value, torch.Tensor) else torch.full((n,), value) for value in (success, correct)]
    rms = (x_adv - x).square().flatten(1).mean(1).sqrt()
    evidence = {"falling": mask(n, []), "at_bound": mask(n, []), **evidence}
    return Attack(x_adv, *truths, rms, torch.ones(n).long(), torch.ones(n).long(), **evidence)


def signs(model, x, attack, **settings):
    found = failure_indicators(model, x, predicted(model, x), attack, generator=seeded(), **settings)
    return {one.name: one for one in found}


def only(found, name):
    assert list(found) == [name]
    return found[name]


# Attacks that do what they can


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        (lambda *problem: attacks.ddn_l2(*problem, init_norm=0.1), {}),
        (
            lambda *problem: attacks.carlini_wagner_l2(
                *problem, steps=100, search_steps=8, lr=0.01, initial_const=0.01
            ),
            {},
        ),
        (lambda *problem: attacks.pgd_linf(*problem, eps=0.03, steps=40, step_size=0.005), {"eps": 0.03}),
        (lambda *problem: attacks.fgsm(*problem, eps=0.03), {"eps": 0.03}),
        (lambda *problem: attacks.optmargin(*problem, eps=0.01, views=4, generator=seeded(3)), {}),
    ],
    ids=["ddn", "cw", "pgd", "fgsm", "optmargin"],
)
def test_an_attack_on_a_half_space_shows_no_sign(attack, settings):
    model, x = half_space(), interior_images(60)
    x = x[model.distance(x) > 0.05]
    result = attack(model, x, predicted(model, x))
    assert result.success.any()
    assert signs(model, x, result, **settings) == {}


def test_targets_are_pushed_towards():
    model, x = half_space(), interior_images(60)
    x = x[model.distance(x) > 0.05]
    y = predicted(model, x)
    result = attacks.ddn_l2(model, x, y, targets=1 - y, init_norm=0.1)
    assert result.success.all()
    assert failure_indicators(model, x, y, result, targets=1 - y, generator=seeded()) == ()


def test_to_reach_another_class_than_the_target_is_no_success():
    two, x = half_space(), interior_images(60)
    model = HalfSpace(two.normal, float(two.offset), num_classes=3)  # the third class is nowhere
    failed = outcome(x, success=False)
    assert list(signs(model, x, failed, eps=0.2)) == ["random beats gradient"]
    assert signs(model, x, failed, eps=0.2, targets=torch.full((60,), 2)) == {}


# Still falling, and the constant


@pytest.mark.parametrize(("falling", "fires"), [(0, False), (5, False), (6, True), (100, True)])
def test_more_than_one_image_in_twenty_still_falls(falling, fires):
    model, x = half_space(), interior_images(110)
    correct = mask(110, range(100))  # the others were never attacked
    result = outcome(x, success=False, correct=correct, falling=mask(110, range(falling), range(100, 110)))
    found = signs(model, x, result)
    assert list(found) == ["still falling"] * fires
    if fires:
        one = found["still falling"]
        assert (one.share, one.n) == (falling / 100, 100)
        assert (
            one.message
            == f"the search was still gaining on {falling} of 100 attacked images when it ended; raise steps"
        )


@pytest.mark.parametrize(
    ("successes", "failures", "said"),
    [
        (3, 2, None),
        (6, 0, "on 6 successes no constant was too small, lower initial_const; or raise search_steps"),
        (0, 6, "on 6 failures none was large enough, raise initial_const; or raise search_steps"),
        (4, 3, "on 4 successes no constant was too small, lower initial_const; on 3 failures none was large enough, "),
    ],
)
def test_a_constant_at_its_bound_is_told_by_its_side(successes, failures, said):
    model, x = half_space(), interior_images(100)
    bound = mask(100, range(successes), range(50, 50 + failures))
    found = signs(model, x, outcome(x, success=mask(100, range(50)), at_bound=bound))
    found.pop("random beats gradient", None)  # an attack that did nothing is beaten by nothing
    if said is None:
        assert found == {}
    else:
        one = only(found, "constant at its bound")
        assert (one.share, one.n) == ((successes + failures) / 100, 100)
        assert said in one.message


def test_no_attacked_image_shows_no_sign():
    model, x = half_space(), interior_images(3)
    y = 1 - predicted(model, x)
    every = torch.ones(3, dtype=torch.bool)
    result = outcome(x, success=False, correct=False, falling=every, at_bound=every)
    for settings in ({}, {"eps": 0.5, "by_eps": {0.1: result}}):
        assert failure_indicators(model, x, y, result, **settings) == ()


# Success against the budget


@pytest.mark.parametrize(
    ("lost", "gained", "budgets", "fires"),
    [
        (4, 0, 2, False),  # p = 1/16
        (5, 0, 2, True),  # p = 1/32
        (5, 0, 3, False),  # three pairs: the level of each is .05 / 3
        (6, 0, 3, True),  # p = 1/64
        (8, 2, 2, False),  # p = 56/1024
        (9, 2, 2, True),  # p = 67/2048
        (20, 20, 2, False),
        (0, 30, 2, False),
        (0, 0, 2, False),
    ],
)
def test_success_falls_by_more_than_chance(lost, gained, budgets, fires):
    model, x = half_space(), interior_images(100)
    small = outcome(x, success=mask(100, range(lost), range(50, 60)))
    large = outcome(x, success=mask(100, range(20, 20 + gained), range(50, 60)))
    by_eps = {0.2: large, 0.1: small}  # in any order
    if budgets == 3:
        by_eps[0.3] = large
    found = signs(model, x, outcome(x, success=False), by_eps=by_eps)
    assert list(found) == ["success falls with eps"] * fires
    if fires:
        one = found["success falls with eps"]
        assert (one.share, one.n) == ((lost - gained) / 100, 100)
        assert f"from eps 0.1 to 0.2 success is lost on {lost} of 100 images and gained on {gained};" in one.message


def test_the_attack_itself_is_one_of_the_budgets():
    model, x = half_space(), interior_images(20)
    found = signs(model, x, outcome(x, success=False), eps=1e-6, by_eps={1e-7: outcome(x)})
    assert "from eps 1e-07 to 1e-06 success is lost on 20 of 20" in only(found, "success falls with eps").message


class Band(nn.Module):
    """Class 1 except where the mean pixel lies in a band around .55, which large steps pass over."""

    def forward(self, x):
        gap = (x.flatten(1).mean(1) - 0.55).abs() - 0.02
        return torch.stack((torch.zeros_like(gap), gap), 1)


def test_a_step_that_leaps_over_the_other_class_is_seen():
    model, x = Band(), 0.98 * torch.full((12, *SHAPE), 0.5) + 0.02 * torch.rand(12, *SHAPE, generator=seeded())
    y = predicted(model, x)
    by_eps = {eps: attacks.fgsm(model, x, y, eps=eps) for eps in (0.05, 0.2)}
    assert by_eps[0.05].success.all()
    assert not by_eps[0.2].success.any()
    assert signs(model, x, by_eps[0.05], by_eps=by_eps)["success falls with eps"].share == 1
    fine = {eps: attacks.pgd_linf(model, x, y, eps=eps, steps=40, step_size=0.01) for eps in (0.05, 0.2)}
    assert signs(model, x, fine[0.2], eps=0.2, by_eps=fine) == {}


# Random directions


class Masked(nn.Module):
    """The labels of `model`, with a gradient that is 0."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.detach()) + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("eps", [0.002, 0.01, 0.05])
def test_random_signs_flip_what_masked_gradients_do_not(eps):
    model, x = half_space(), interior_images(60)
    y = predicted(model, x)
    result = attacks.pgd_linf(Masked(model), x, y, eps=eps, steps=3, step_size=eps, random_start=False)
    assert not result.success.any()
    drawn = 2.0 * torch.randint(2, (64, *SHAPE), generator=seeded()) - 1
    flipped = sum(
        bool((predicted(model, (image + eps * drawn).clamp(0, 1)) != y[i]).any()) for i, image in enumerate(x)
    )
    assert 0 < flipped < 60
    one = only(signs(Masked(model), x, result, eps=eps), "random beats gradient")
    assert (one.share, one.n) == (flipped / 60, 60)
    assert one.message.startswith(
        f"random signs of size {eps:.4g} flip {flipped} of 60 images on which the attack failed"
    )


def along(model, x, direction, factor):
    """The images moved along `direction` (D,), of RMS 1, to `factor` times where it meets the boundary."""
    t = torch.minimum(model.crossing(x, direction), model.crossing(x, -direction))
    toward = torch.where(model.crossing(x, direction).isfinite(), 1.0, -1.0)
    return x + (factor * t * toward).float()[:, None, None, None] * direction.view(1, *SHAPE)


def poor_examples(model, n):
    """Images, and examples barely across the boundary, reached in a direction that hardly leads there."""
    x = interior_images(2 * n)
    poor = torch.randn(DIM, generator=seeded(8))
    poor -= 0.8 * (poor @ model.normal) / model.normal.square().sum() * model.normal
    poor /= poor.square().mean().sqrt()
    x_adv = along(model, x, poor, 1.001)
    inside = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1).nonzero().squeeze(1)[:n]
    assert len(inside) == n
    return x[inside], x_adv[inside]


def test_a_poor_direction_is_beaten_at_its_own_distortion():
    model = half_space()
    x, x_adv = poor_examples(model, 30)
    one = only(signs(model, x, outcome(x, x_adv)), "random beats gradient")
    assert (one.share, one.n) == (1, 30)
    assert "on 30 of 30 successes a random direction of the same RMS reaches as far" in one.message


@pytest.mark.parametrize("factor", [1.001, 1.5, 3.0])
def test_the_best_direction_is_not_beaten_however_deep_the_attack_goes(factor):
    # Three times as far as the boundary many random directions cross it, but none comes as far beyond it.
    model, x = half_space(), interior_images(60)
    normal = model.normal / model.normal.square().mean().sqrt()
    x_adv = along(model, x, normal, factor)
    assert signs(model, x, outcome(x, x_adv)) == {}


def test_one_image_in_a_hundred_may_be_beaten():
    model = half_space()
    normal = model.normal / model.normal.square().mean().sqrt()
    x, poor = poor_examples(model, 100)
    best = along(model, x, normal, 1.001)
    for count, names in ((1, []), (2, ["random beats gradient"])):
        assert list(signs(model, x, outcome(x, torch.cat((poor[:count], best[count:]))))) == names


@pytest.mark.parametrize(("clip_views", "fires"), [(True, True), (False, False)])
def test_all_views_must_be_across(clip_views, fires):
    # One pixel, the other class between .5 and 1.2: seen from .8, a view at 1.3 is across only when clipped to 1.
    class Between(nn.Module):
        def forward(self, x):
            gap = (x.flatten(1)[:, 0] - 0.85).abs() - 0.35
            return torch.stack((torch.zeros_like(gap), gap), 1)

    x = torch.full((3, 1, 1, 1), 0.45)
    views = torch.tensor([0.5, 0.0]).view(2, 1, 1, 1)
    result = outcome(x, torch.full_like(x, 0.8))
    assert list(signs(Between(), x, result)) == ["random beats gradient"]  # with one pixel there is no other direction
    found = signs(Between(), x, result, views=views, clip_views=clip_views)
    assert list(found) == ["random beats gradient"] * fires


def test_directions_are_drawn_once_from_the_generator():
    model, x = half_space(), interior_images(30)
    result = attacks.fgsm(Masked(model), x, predicted(model, x), eps=0.01)
    first, second = (signs(Masked(model), x, result, eps=0.01) for _ in range(2))
    assert first == second
    generators = [seeded(), seeded()]
    for rows, generator in zip((slice(0, 30), slice(0, 3)), generators, strict=True):
        part = attacks.fgsm(Masked(model), x[rows], predicted(model, x[rows]), eps=0.01)
        failure_indicators(model, x[rows], predicted(model, x[rows]), part, eps=0.01, generator=generator)
    assert torch.equal(*(generator.get_state() for generator in generators))
    torch.manual_seed(0)
    y = predicted(model, x)
    assert failure_indicators(Masked(model), x, y, result, eps=0.01) == tuple(first.values())


# Pixels that stay at 0 or 1


def binary_images(n, seed=0):
    return torch.randint(2, (n, *SHAPE), generator=seeded(seed)).float()


def moved(model, x, share):
    """The first `share` of the pixels that may move inwards, towards the boundary, moved by .1."""
    y = predicted(model, x)
    side = torch.where(y == 1, -1.0, 1.0)[:, None, None, None]
    down = side * model.normal.view(1, *SHAPE)
    inwards = ((x == 0) & (down > 0)) | ((x == 1) & (down < 0))
    number = inwards.flatten(1).cumsum(1).view(x.shape) / inwards.flatten(1).sum(1)[:, None, None, None]
    chosen = inwards & (number <= share)
    return (x + 0.1 * chosen * down.sign()), int(inwards.sum()), int((inwards & ~chosen).sum())


@pytest.mark.parametrize(("share", "fires"), [(1.0, False), (0.7, False), (0.2, True)])
def test_pixels_that_should_have_moved_are_counted(share, fires):
    model, x = half_space(), binary_images(20)
    x_adv, pixels, stuck = moved(model, x, share)
    found = signs(model, x, outcome(x, x_adv, success=False), eps=1e-3)
    assert list(found) == ["stuck pixels"] * fires
    assert (stuck > pixels / 2) == fires
    if fires:
        one = found["stuck pixels"]
        assert (one.share, one.n) == (stuck / pixels, pixels)
        assert f"{stuck} of {pixels} pixels at 0 or 1 stayed although the gradient pulls them inwards" in one.message


def test_a_pixel_between_the_ends_is_not_stuck():
    model, x = half_space(), interior_images(20)
    x_adv = x.clone()
    x_adv[:, 0, 0, 0] += 0.1
    assert signs(model, x, outcome(x, x_adv, success=False), eps=1e-3) == {}


def in_tanh_space(model, x, y, scale, steps=200, lr=0.05):
    """A plain attack in tanh space; with `scale` 2 a pixel at 0 or 1 lies at infinity, where the slope is 0."""
    w = ((x - 0.5) * scale).atanh().requires_grad_()
    optimiser = torch.optim.Adam([w], lr=lr)
    for _ in range(steps):
        x_adv = (w.tanh() + 1) / 2
        z = model(x_adv)
        gap = z.gather(1, y[:, None]).squeeze(1) - z.scatter(1, y[:, None], -torch.inf).amax(1)
        loss = (x_adv - x).square().sum() + 10 * (gap + 0.1).clamp(min=0).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x_adv = ((w.tanh() + 1) / 2).detach()
    return outcome(x, x_adv, success=predicted(model, x_adv) != y)


@pytest.fixture(scope="module")
def digits_model(digits_train):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("digits_cnn", in_shape=(1, 8, 8), num_classes=10)
        train.fit(model, digits_train, epochs=2, generator=seeded())
    return model.eval()


@pytest.mark.parametrize(("scale", "fires"), [(2.0, True), (1 / 0.50001, False)])
def test_a_tanh_space_entered_at_infinity_is_seen(digits, digits_model, scale, fires):
    x, y = digits.x[:12], digits.y[:12]
    keep = predicted(digits_model, x) == y
    x, y = x[keep], y[keep]
    found = signs(digits_model, x, in_tanh_space(digits_model, x, y, scale))
    assert ("stuck pixels" in found) == fires
    if fires:
        assert found["stuck pixels"].share == 1


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        (lambda *problem: attacks.ddn_l2(*problem, steps=100), {}),
        (lambda *problem: attacks.carlini_wagner_l2(*problem, steps=120), {}),
        (lambda *problem: attacks.pgd_linf(*problem, eps=0.15, steps=40, step_size=0.01), {"eps": 0.15}),
        (lambda *problem: attacks.fgsm(*problem, eps=0.15), {"eps": 0.15}),
        (lambda *problem: attacks.optmargin(*problem, eps=0.15, steps=30, generator=seeded(3)), {}),
    ],
    ids=["ddn", "cw", "pgd", "fgsm", "optmargin"],
)
def test_our_attacks_on_digits_leave_no_pixels_stuck(digits, digits_model, attack, settings):
    x, y = digits.x[:12], digits.y[:12]
    found = failure_indicators(digits_model, x, y, attack(digits_model, x, y), generator=seeded(), **settings)
    assert "stuck pixels" not in [one.name for one in found]


# The edge


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(DIM, 3), nn.Dropout()).train()
    x = interior_images(4)
    failure_indicators(model, x, torch.zeros(4, dtype=torch.int64), outcome(x), generator=seeded())
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "expected eps above 0, got 0.0"),
        ({"eps": math.nan}, "expected eps above 0, got nan"),
        ({"by_eps": {}}, r"expected at least two budgets to compare, got \[\]; add one to by_eps"),
        ({"eps": 0.1, "by_eps": {0.1: outcome(interior_images(4))}}, r"two budgets to compare, got \[0.1\]"),
        (
            {"eps": 0.1, "by_eps": {-0.1: outcome(interior_images(4))}},
            "expected every budget of by_eps above 0, got -0.1",
        ),
        (
            {"eps": 0.1, "by_eps": {0.2: outcome(interior_images(3))}},
            r"expected an attack on the 4 images x of shape \(4, 2, 4, 4\), got one on images of shape \(3, 2, 4, 4\)",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    model, x = half_space(), interior_images(4)
    with pytest.raises(ValueError, match=message):
        signs(model, x, outcome(x), **settings)


def test_images_labels_and_attack_must_agree():
    model, x = half_space(), interior_images(4)
    y = predicted(model, x)
    with pytest.raises(ValueError, match=r"got one on images of shape .*; pass the images that were attacked"):
        failure_indicators(model, x, y, outcome(x[:3]))
    with pytest.raises(ValueError, match=r"expected x in \[0, 1\]"):
        failure_indicators(model, x + 1, y, outcome(x))
    with pytest.raises(ValueError, match=r"expected y of shape \(4,\)"):
        failure_indicators(model, x, y[:3], outcome(x))


@pytest.mark.gpu
def test_the_same_signs_on_a_gpu(cuda):
    model, x = half_space(), interior_images(60)
    y = predicted(model, x)
    result = attacks.fgsm(Masked(model), x, y, eps=0.01)
    on_cpu = failure_indicators(Masked(model), x, y, result, eps=0.01, generator=seeded())
    on_gpu = failure_indicators(Masked(model).to(cuda), x, y, result, eps=0.01, generator=seeded())
    assert [(one.name, one.n) for one in on_gpu] == [(one.name, one.n) for one in on_cpu]
    assert on_gpu[0].share == pytest.approx(on_cpu[0].share, abs=2 / 60)
