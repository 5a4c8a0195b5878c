"""Attacks on the defences: soft rays against closed forms, goals against what the defences say, planted truths."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import rugged
import torch
from torch import Tensor, nn

from nbsupport import adaptive, attacks, boundary, detector, presets, region, runtime, suite
from nbsupport.adaptive import descent, goals, surrogate
from nbsupport.attacks import Attack
from nbsupport.attacks.engine import Objective
from nbsupport.detector import Detector
from nbsupport.models.analytic import Ball, HalfSpace, Wedge
from nbsupport.suite import Attempt, Defended

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
        profile = boundary.probe(wedge, x, directions, GRID, search="scan")
        steep = Scaled(wedge, 1e6)  # the classes at a crossing are then certain
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
        magnitudes = 0.1 * GRID[::4].double().expand(2, 6, -1)  # nothing is clipped
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
        x, coarse = grey(8), torch.tensor([0.01, 0.03, 0.07, 0.12])  # nothing is clipped
        low, high = surrogate.intervals(wedge, x, directions, coarse)
        exact = wedge.crossing(x, directions)
        inside = exact < 0.12
        assert inside.any()
        assert ((low <= exact) & (exact <= high))[inside].all()
        assert ((low == high) & (high == coarse[-1]))[exact > 0.12].all()

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


class Counted(nn.Module):
    """A model that counts its rows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        z: Tensor = self.model(x)
        return z


def judge_of(rays: int, *, bias: float = 0.0, slope: float = 0.0) -> Detector:
    """A detector whose logit of "adversarial" is `bias` plus `slope` times the first purity, exactly."""
    network = detector.initialised(rays, seeded())
    for parameter in network.parameters():
        parameter.data.zero_()
    network.linear1.weight.data[0, -3] = 1
    network.linear2.weight.data[1, 0] = slope
    network.linear2.bias.data[1] = bias
    return Detector(network.requires_grad_(False), 4, rays, 1.0, 0.0, 1.0, torch.zeros(1))


class Rounded(detector.BoundaryNet):
    """A detector's network whose logits are rounded."""

    def __init__(self, network: detector.BoundaryNet) -> None:
        nn.Module.__init__(self)
        self.network, self.linear2 = network, network.linear2

    def forward(self, distance: Tensor, purities: Tensor) -> Tensor:
        z: Tensor = self.network(distance, purities)
        return (1e3 * z).round() / 1e3 + 0 * z


@pytest.fixture
def half() -> HalfSpace:
    normal = torch.randn(DIM, generator=seeded(2))
    return HalfSpace(normal, float(normal.sum()) / 2)


@pytest.fixture
def many() -> Tensor:
    return boundary.directions(DIM, DIM, negate=True, generator=seeded(1)).repeat(2, 1)  # 64 rays


def labels(model: nn.Module, x: Tensor) -> Tensor:
    return runtime.predict(model, x)


class TestThroughVote:
    """Where both sides of a flat boundary are alike, the vote is lost just beyond it."""

    def test_the_nearest_image_is_near_the_closed_form(self, half: HalfSpace) -> None:
        x = grey(6)
        found = adaptive.through_vote(
            half, x, labels(half, x), radius=0.05, steps=150, points=32, lead=0.0, generator=seeded()
        )
        exact = half.distance(x) / math.sqrt(DIM)
        assert (found.rms >= 0.8 * exact).all()  # a draw of 32 points may be lucky
        assert (found.rms <= 1.25 * exact + 0.002).all()

    def test_a_lead_survives_fresh_points(self, half: HalfSpace) -> None:
        x, y = grey(6), labels(half, grey(6))
        options: dict[str, Any] = {"radius": 0.05, "steps": 150, "points": 32}
        found = adaptive.through_vote(half, x, y, lead=0.6, generator=seeded(), **options)
        for seed in range(3):
            vote = region.classify(half, found.x_adv, radius=0.05, samples=200, generator=seeded(100 + seed))
            assert (vote.label != y).all()

    def test_the_budget_is_kept_and_used(self, half: HalfSpace) -> None:
        x, y = grey(6), labels(half, grey(6))
        exact = (half.distance(x) / math.sqrt(DIM)).float()
        for share, lost in ((0.5, False), (1.5, True)):
            found = adaptive.through_vote(half, x, y, radius=0.02, steps=60, budget=share * exact, generator=seeded())
            assert (found.rms <= share * exact * (1 + 1e-5)).all()
            vote = region.classify(half, found.x_adv, radius=0.02, samples=200, generator=seeded(9))
            assert ((vote.label != y) == lost).all()

    def test_an_image_alone_has_the_result_of_the_batch(self) -> None:
        model, x = rugged.Rugged(), rugged.images(5)
        y = labels(model, x)
        budget = torch.linspace(0.05, 0.2, 5)
        options: dict[str, Any] = {"radius": 0.05, "steps": 12, "points": 4}
        together = adaptive.through_vote(model, x, y, budget=budget, start=1 - x, generator=seeded(), **options)
        for i in (0, 3):
            part = slice(i, i + 1)
            alone = adaptive.through_vote(
                model, x[part], y[part], budget=budget[part], start=1 - x[part], generator=seeded(), **options
            )
            assert torch.allclose(alone.x_adv, together.x_adv[part], atol=1e-5)
            assert torch.equal(alone.success, together.success[part])

    def test_what_was_wrong_before_is_not_attacked_and_passes_are_counted(self) -> None:
        model, x = Counted(rugged.Rugged()), rugged.images(5)
        y = labels(model, x)
        y[1] = (y[1] + 1) % 5
        model.rows = 0
        found = adaptive.through_vote(model, x, y, radius=0.05, steps=7, points=4, generator=seeded())
        assert found.correct.tolist() == [True, False, True, True, True]
        assert torch.equal(found.x_adv[1], x[1])
        assert (found.rms[1], found.success[1], found.backwards[1]) == (0, False, 0)
        assert found.backwards[0] == 7 * 4
        scale = len(x)  # the margins before the attack, of all images
        assert model.rows == int(found.forwards.sum()) + scale

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"budget": torch.ones(2)}, r"expected budget of shape \(3,\)"),
            ({"start": torch.ones(2, *SHAPE)}, r"expected start of shape \(3, 1, 4, 4\)"),
            ({"radius": 0.0}, "expected radius above 0"),
            ({"points": 0}, "expected points as a whole number"),
            ({"lead": 1.0}, "expected lead at least 0 and at most 1"),
            ({"steps": 0}, "expected steps as a whole number"),
        ],
    )
    def test_bad_settings(self, half: HalfSpace, options: dict[str, Any], message: str) -> None:
        x = grey(3)
        with pytest.raises(ValueError, match=message):
            adaptive.through_vote(half, x, labels(half, x), **{"radius": 0.1, "steps": 3, **options})


class TestThroughViews:
    def test_with_optmargins_own_views_it_is_optmargin(self) -> None:
        model, x = rugged.Rugged(), rugged.images(3)
        y = labels(model, x)
        offsets = attacks.draw_views(rugged.IN_SHAPE, eps=0.05, views=6, generator=seeded())
        mine = adaptive.through_views(model, x, y, offsets=offsets, steps=20)
        theirs = attacks.optmargin(model, x, y, eps=0.05, views=6, steps=20, generator=seeded())
        assert all(torch.equal(a, b) for a, b in zip(mine.tensors().values(), theirs.tensors().values(), strict=True))

    @pytest.mark.parametrize("shape", [(0, *SHAPE), SHAPE, (2, 1, 4, 5)])
    def test_offsets_of_another_shape(self, half: HalfSpace, shape: tuple[int, ...]) -> None:
        x = grey(2)
        with pytest.raises(ValueError, match=r"expected offsets of shape \(V, C, H, W\), each like an image"):
            adaptive.through_views(half, x, labels(half, x), offsets=torch.zeros(shape))


class TestPastDetector:
    """Against detectors whose answer is planted."""

    def attack(self, model: nn.Module, x: Tensor, many: Tensor, judges: list[Detector], **options: Any) -> Attack:
        settings: dict[str, Any] = {"detectors": judges, "directions": many, "magnitudes": GRID, "steps": 40}
        settings |= {"fold": torch.arange(len(x)) % len(judges), "threshold": torch.full((len(x),), 0.5)}
        settings |= {"rays": 16, "generator": seeded(), "budget": torch.full((len(x),), 0.2), **options}
        return adaptive.past_detector(model, x, labels(model, x), **settings)

    @pytest.mark.parametrize("rule", descent.RULES)
    def test_a_blind_detector_stops_nothing_and_a_perfect_one_all(
        self, half: HalfSpace, many: Tensor, rule: str
    ) -> None:
        x = grey(4)
        blind, perfect = judge_of(len(many), bias=-2.0), judge_of(len(many), bias=2.0)
        found = self.attack(half, x, many, [blind, perfect], rule=rule)
        assert (labels(half, found.x_adv) != labels(half, x)).all()
        assert found.success.tolist() == [True, False, True, False]

    def test_the_threshold_is_that_of_the_image(self, half: HalfSpace, many: Tensor) -> None:
        x = grey(4)
        threshold = torch.tensor([0.1, 0.2, 0.8, 0.9])
        found = self.attack(half, x, many, [judge_of(len(many), bias=0.0)], threshold=threshold)
        assert found.success.tolist() == [False, False, True, True]

    def test_it_goes_where_the_detector_is_quiet(self, wedge: Wedge, directions: Tensor) -> None:
        # The detector flags pure boundaries. Near the corner of the wedge, where classes meet, they are not pure.
        x, many = grey(8), directions.repeat(2, 1)
        y = labels(wedge, x)
        judge = judge_of(len(many), bias=-7.0, slope=10.0)  # flags where the first purity is above .7
        budget = torch.full((8,), 0.12)
        mine = self.attack(wedge, x, many, [judge], budget=budget, steps=80, rays=32)
        plain = attacks.ddn_l2(wedge, x, y, steps=60)
        scores = [judge.score(boundary.probe(wedge, each.x_adv, many, GRID, search="scan")) for each in (plain, mine)]
        assert (labels(wedge, mine.x_adv) != y).all()
        assert (mine.rms <= 0.12 + 1e-6).all()
        assert (scores[1] < 0.5).sum() > (scores[0] < 0.5).sum()
        assert (scores[1] <= scores[0] + 1e-6).all()

    def test_a_detector_that_masks_its_gradients_is_noticed(self, wedge: Wedge, directions: Tensor) -> None:
        x, many, budget = grey(8), directions.repeat(2, 1), torch.full((8,), 0.06)
        judge = judge_of(len(many), bias=-5.0, slope=10.0)
        masked = dataclasses.replace(judge, network=Rounded(judge.network))  # the same answers, and no slope
        attempts, settings = [], presets.settings("digits", "smoke", {"directions": DIM})
        for name, seen in (("transferred", judge), ("selective", masked)):
            attack = self.attack(wedge, x, many, [seen], budget=budget, steps=80, rays=32)
            profile = boundary.probe(wedge, attack.x_adv, many, GRID, search="scan")
            evaded = {("detector", 0.05): masked.score(profile) < 0.5}
            attempts.append(Attempt("normal", name, "normal", name != "selective", torch.arange(8), attack.rms, evaded))
        assert attempts[0].evaded["detector", 0.05].sum() >= 4
        benign = boundary.probe(wedge, x, many, GRID)
        y, fold, levels = labels(wedge, x), torch.zeros(8, dtype=torch.int64), {0.05: torch.full((8,), 0.5)}
        given = Defended(torch.arange(8), x, y, fold, budget, x, benign, [masked], levels)
        every, aware = {"normal": given}, {("normal", "selective"): attack}
        found = suite.adaptive_warnings(settings, {"normal": wedge}, every, aware, attempts)
        assert "transfer beats it" in set(found.indicator)
        equals = [attempts[0], attempts[0]._replace(transfer=False)]
        found = suite.adaptive_warnings(settings, {"normal": wedge}, every, aware, equals)
        assert "transfer beats it" not in set(found.indicator)

    def test_bfloat16_serves_the_images_that_it_resolves_and_never_the_detector(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Images 0 and 4 are said to be resolved: the others are attacked as in float32."""
        model, judge, x = rugged.Rugged(), judge_of(40), rugged.images(5)
        seen: dict[str, set[bool]] = {"model": set(), "detector": set()}
        for name, module in (("model", model), ("detector", judge.network)):
            answers = seen[name]
            module.register_forward_pre_hook(lambda *_, told=answers: told.add(torch.is_autocast_enabled("cpu")))
        rays = boundary.directions(60, 40, negate=False, generator=seeded(1))
        options: dict[str, Any] = {"directions": rays, "steps": 5, "rays": 3}
        exact = self.attack(model, x, rays, [judge], **options)
        assert seen["model"] == {False}
        monkeypatch.setattr(Objective, "resolved", lambda self, x, label, error: torch.arange(len(x)) % 4 == 0)
        mixed = self.attack(model, x, rays, [judge], precision="mixed", **options)
        assert (seen["model"], seen["detector"]) == ({False, True}, {False})
        apart = (mixed.x_adv - exact.x_adv).flatten(1).abs().amax(1)
        assert [bool(each > 1e-5) for each in apart] == [True, False, False, False, True]
        assert (mixed.forwards - exact.forwards).tolist() == [2] * 5
        torch.testing.assert_close(mixed.rms, exact.rms, rtol=0.05, atol=0)

    def test_passes_are_counted(self, many: Tensor) -> None:
        model = Counted(rugged.Rugged())
        x, rays = rugged.images(2), boundary.directions(60, 40, negate=False, generator=seeded(1))
        y = labels(model, x)
        model.rows = 0
        options: dict[str, Any] = {"fold": torch.zeros(2, dtype=torch.int64), "threshold": torch.full((2,), 0.5)}
        options |= {"detectors": [judge_of(40)], "directions": rays, "magnitudes": GRID, "steps": 5, "rays": 3}
        found = adaptive.past_detector(model, x, y, **options)
        assert model.rows == int(found.forwards.sum())
        assert found.backwards.tolist() == [5 * (1 + 1 + 3 * goals.MAGNITUDES)] * 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"detectors": []}, "expected at least one detector, got none"),
            ({"detectors": [judge_of(40)]}, r"expected as many directions as the detectors have rays, \[40\], got 64"),
            ({"threshold": torch.tensor([0.5, math.nan])}, "calibrate them first"),
            ({"fold": torch.tensor([0, 1])}, "expected fold from 0 to 0"),
            ({"rule": "random"}, "expected rule to be one of selective, orthogonal"),
            ({"rays": 0}, "expected rays as a whole number"),
        ],
    )
    def test_bad_settings(self, half: HalfSpace, many: Tensor, options: dict[str, Any], message: str) -> None:
        x = grey(2)
        settings: dict[str, Any] = {"detectors": [judge_of(64)], "fold": torch.zeros(2, dtype=torch.int64)}
        settings |= {"threshold": torch.ones(2), "directions": many, "magnitudes": GRID, "steps": 2, **options}
        with pytest.raises(ValueError, match=message):
            adaptive.past_detector(half, x, labels(half, x), **settings)


class TestMimic:
    def test_beyond_a_flat_boundary_the_mirror_image_looks_alike(self, half: HalfSpace, many: Tensor) -> None:
        # As far beyond the boundary as the source is before it, each ray and its negation change places.
        x = grey(4)
        y, exact = labels(half, x), (half.distance(x) / math.sqrt(DIM)).float()
        profile = boundary.probe(half, x, many, GRID)
        start = attacks.ddn_l2(half, x, y, steps=60)
        options: dict[str, Any] = {"directions": many, "magnitudes": GRID, "steps": 120, "rays": 32}
        found = adaptive.mimic(half, x, y, profile, budget=3 * exact, generator=seeded(), **options)
        assert found.success.all()
        assert (labels(half, found.x_adv) != y).all()

        def apart(images: Tensor) -> Tensor:
            seen = boundary.probe(half, images, many, GRID)
            sorted_rays = [each.distance.clamp(max=1.0).sort(1).values for each in (seen, profile)]
            return (sorted_rays[0] - sorted_rays[1]).abs().mean(1)

        assert (apart(found.x_adv) < 0.25 * apart(start.x_adv)).all()

    def test_a_profile_of_other_images(self, half: HalfSpace, many: Tensor) -> None:
        x = grey(3)
        profile = boundary.probe(half, x[:2], many, GRID)
        options: dict[str, Any] = {"directions": many, "magnitudes": GRID, "steps": 2}
        with pytest.raises(ValueError, match="expected a profile of 3 images along 64 directions"):
            adaptive.mimic(half, x, labels(half, x), profile, **options)


class TestJudge:
    def test_each_defence_says_what_it_says_alone(self, wedge: Wedge, directions: Tensor) -> None:
        x, many = grey(7), directions.repeat(2, 1)
        y = labels(wedge, x)
        y[::2] = (y[::2] + 1) % 4
        fold = torch.tensor([0, 1, 1, 0, 1, 0, 0])
        judges = [judge_of(64, bias=-1.0, slope=3.0), judge_of(64, bias=2.0, slope=-3.0)]
        options: dict[str, Any] = {"radius": 0.05, "samples": 50, "magnitudes": GRID}
        said = adaptive.judge(
            wedge,
            x,
            y,
            fold=fold,
            detectors=judges,
            directions=many,
            secret=many.flip(1),
            generator=seeded(),
            **options,
        )
        vote = region.classify(wedge, x, radius=0.05, samples=50, generator=seeded())
        assert torch.equal(said.vote, vote.label)
        assert torch.equal(said.point, labels(wedge, x))
        wrong = (said.point != y) | (said.vote != y)
        assert wrong.any()
        assert not wrong.all()
        for scores, rays in ((said.score, many), (said.secret, many.flip(1))):
            profile = boundary.probe(wedge, x, rays, GRID)
            both = torch.stack([each.score(profile) for each in judges])
            expected = both.gather(0, fold[None])[0]
            assert torch.equal(scores.isnan(), ~wrong)
            assert torch.allclose(scores[wrong], expected[wrong])
        unaware = adaptive.judge(wedge, x, y, fold=fold, detectors=judges, directions=many, **options)
        assert torch.equal(unaware.secret[wrong], said.score[wrong])
        assert unaware.secret.data_ptr() != unaware.score.data_ptr()  # such a pair could not be stored

    def test_without_a_detector_there_is_no_score(self, wedge: Wedge, directions: Tensor) -> None:
        x = grey(3)
        wrong = (labels(wedge, x) + 1) % 4
        options: dict[str, Any] = {"radius": 0.05, "samples": 10, "magnitudes": GRID, "directions": directions}
        said = adaptive.judge(wedge, x, wrong, fold=torch.tensor([0, 1, 4]), **options)
        assert said.score.isnan().all()
        assert said.secret.isnan().all()
