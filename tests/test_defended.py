"""The attacks on the defences as a run makes them: who is given, who evaded, the tables, and planted truths."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from nbsupport import adaptive, attacks, boundary, plots, presets, region, suite, tables
from nbsupport.adaptive import Judged
from nbsupport.attacks import Attack
from nbsupport.data import ImageSet
from nbsupport.models.analytic import HalfSpace
from nbsupport.suite import VOTE, Attempt, Defended

S = dataclasses.replace(presets.settings("digits", "smoke"), n=12, adaptive_n=6, adaptive_passes=1200)
IN_SHAPE, DIM, N = (1, 8, 8), 64, 6
POINT = ("point", math.nan)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def half() -> HalfSpace:
    normal = torch.randn(DIM, generator=seeded(2))
    return HalfSpace(normal, float(normal.sum()) / 2, num_classes=10)


@pytest.fixture(scope="module")
def planted(half: HalfSpace) -> ImageSet:
    x = 0.4 + 0.2 * torch.rand(12, *IN_SHAPE, generator=seeded(1))
    return ImageSet(x, half(x).argmax(1), tuple("0123456789"), 1.0, "planted")


@pytest.fixture(scope="module")
def optmargin(half: HalfSpace, planted: ImageSet) -> Attack:
    y = planted.y.clone()
    y[2] = 5  # misclassified before the attack
    return attacks.optmargin(half, planted.x, y, eps=0.05, views=4, steps=30, generator=seeded())


def no_thresholds() -> pd.DataFrame:
    return pd.DataFrame(columns=["detector", "trained_on", "seed", "fold", "target_fpr", "threshold"])


@pytest.fixture(scope="module")
def given(half: HalfSpace, planted: ImageSet, optmargin: Attack) -> Defended:
    at = torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 9])
    profile = boundary.probe(half, planted.x[at], suite.directions(S, IN_SHAPE), S.magnitudes)
    return suite.defended(S, planted, optmargin, (profile, at), [], no_thresholds())


class TestDefended:
    def test_the_images_are_the_first_that_were_attacked_and_probed(
        self, given: Defended, planted: ImageSet, optmargin: Attack, half: HalfSpace
    ) -> None:
        assert given.index.tolist() == [0, 1, 4, 5, 6, 7]  # 2 was wrong before, 3 was not probed
        assert torch.equal(given.x, planted.x[given.index])
        assert torch.equal(given.start, optmargin.x_adv[given.index])
        assert torch.equal(given.budget, optmargin.rms[given.index])
        assert torch.equal(given.fold, suite.folds(S, given.index))
        again = boundary.probe(half, given.x, suite.directions(S, IN_SHAPE), S.magnitudes)
        assert torch.equal(again.distance, given.profile.distance)
        assert all(each.isnan().all() for each in given.thresholds.values())

    def test_where_optmargin_failed_the_budget_is_the_mean(
        self, planted: ImageSet, optmargin: Attack, given: Defended
    ) -> None:
        success = optmargin.success.clone()
        success[[0, 4]] = False
        failed = dataclasses.replace(optmargin, success=success)
        at = torch.tensor([0, 1, 4, 5])
        found = suite.defended(S, planted, failed, (given.profile.take(slice(4)), at), [], no_thresholds())
        mean = float(optmargin.rms[[1, 5]].mean())
        assert found.budget.tolist() == pytest.approx([mean, float(optmargin.rms[1]), mean, float(optmargin.rms[5])])
        none = dataclasses.replace(optmargin, success=torch.zeros_like(success))
        found = suite.defended(S, planted, none, (given.profile.take(slice(4)), at), [], no_thresholds())
        assert found.budget.tolist() == pytest.approx([S.view_eps] * 4)

    def test_thresholds_are_those_of_the_fold(self, planted: ImageSet, optmargin: Attack, given: Defended) -> None:
        rows = [
            (name, on, seed, fold, rate, fold + rate)
            for name in ("network", "one-ray")
            for on in ("all", "OPTMARGIN")
            for seed in (0, 1)
            for fold in range(S.detector_folds)
            for rate in (0.05, 0.5)
        ]
        frame = pd.DataFrame(rows, columns=no_thresholds().columns)
        wrong = (frame.detector != "network") | (frame.trained_on != "all") | (frame.seed != 0)
        frame.loc[wrong, "threshold"] = 99.0
        at = torch.arange(4)
        found = suite.defended(S, planted, optmargin, (given.profile.take(at), at), [], frame)
        for rate in (0.05, 0.5):
            assert found.thresholds[rate].tolist() == pytest.approx((found.fold + rate).tolist())


def judged(point: list[int], vote: list[int], score: list[float], secret: list[float] | None = None) -> Judged:
    scores = [torch.tensor(each, dtype=torch.float64) for each in (score, secret or score)]
    return Judged(torch.tensor(point), torch.tensor(vote), *scores)


class TestEvaded:
    """Who evaded which defence."""

    @pytest.fixture
    def four(self, given: Defended) -> Defended:
        thresholds = {rate: torch.full((N,), flag, dtype=torch.float64) for rate, flag in ((0.05, 0.8), (0.5, 0.3))}
        return dataclasses.replace(given, y=torch.zeros(N, dtype=torch.int64), thresholds=thresholds, detectors=[None])

    def test_both_must_be_wrong_and_the_score_below_the_threshold(self, four: Defended) -> None:
        rows = torch.arange(4)
        found = suite.evaded(four, judged([0, 1, 1, 1], [1, 0, 1, 1], [0.1, 0.5, 0.8, 0.2]), rows)
        assert found[POINT].tolist() == [False, True, True, True]
        assert found[VOTE].tolist() == [True, False, True, True]
        assert found["detector", 0.05].tolist() == [False, True, False, True]
        assert found["detector", 0.5].tolist() == [False, False, False, True]
        assert found["vote + detector", 0.05].tolist() == [True, False, False, True]
        assert found["vote + detector", 0.5].tolist() == [True, False, False, True]

    def test_a_perfect_detector_and_a_blind_one(self, four: Defended) -> None:
        every = torch.arange(N)
        perfect, blind = (suite.evaded(four, judged([1] * N, [1] * N, [s] * N), every) for s in (1.0, 0.0))
        for rate in (0.05, 0.5):
            assert not perfect["detector", rate].any()
            assert blind["detector", rate].all()

    def test_secret_rays_are_a_defence_of_their_own(self, four: Defended) -> None:
        found = suite.evaded(four, judged([1, 1], [1, 1], [0.1, 0.1], [0.1, 0.9]), torch.arange(2))
        assert found["detector, secret rays", 0.05].tolist() == [True, False]
        assert found["vote + detector, secret rays", 0.05].tolist() == [True, False]

    def test_without_a_threshold_or_a_detector_there_is_no_answer(self, four: Defended) -> None:
        said = judged([1, 1], [1, 1], [0.1, 0.1])
        unknown = dataclasses.replace(four, thresholds={0.05: torch.full((N,), math.nan), 0.5: torch.full((N,), 0.3)})
        assert set(suite.evaded(unknown, said, torch.arange(2))) == {
            POINT,
            VOTE,
            ("detector", 0.5),
            ("detector, secret rays", 0.5),
            ("vote + detector", 0.5),
            ("vote + detector, secret rays", 0.5),
        }
        none = dataclasses.replace(four, detectors=[])
        assert set(suite.evaded(none, said, torch.arange(2))) == {POINT, VOTE}


def attempt(
    name: str, rms: list[float], evaded: list[bool], *, transfer: bool = False, rows: list[int] | None = None
) -> Attempt:
    at = torch.arange(N) if rows is None else torch.tensor(rows)
    return Attempt("normal", name, "normal", transfer, at, torch.tensor(rms), {VOTE: torch.tensor(evaded)})


class TestTables:
    @pytest.fixture
    def fixed(self, given: Defended) -> Defended:
        return dataclasses.replace(given, budget=torch.full((N,), 0.1))

    @pytest.fixture
    def attempts(self) -> list[Attempt]:
        return [
            attempt("old", [0.05, 0.2], [True, True], transfer=True, rows=[1, 3]),
            attempt("new", [0.1, 0.15, 0.1, 0.1, 0.3, 0.1], [True, True, False, False, True, False]),
        ]

    def test_rows_within_the_budget_and_without_one(self, attempts: list[Attempt], fixed: Defended) -> None:
        table = tables.adaptive(attempts, {"normal": fixed}, pixel_max=255)
        assert tuple(table.columns) == tables.ADAPTIVE
        assert table.attack.tolist() == ["old", "old", "new", "new", "minimum", "minimum"]
        within, without = table[table.budget_rms.notna()], table[table.budget_rms.isna()]
        assert within.budget_rms.tolist() == pytest.approx([25.5] * 3)
        assert within.n.tolist() == [2, 6, 6]
        assert within.success_rate.tolist() == pytest.approx([1 / 2, 1 / 6, 2 / 6])
        assert without.success_rate.tolist() == pytest.approx([1, 3 / 6, 4 / 6])
        # The higher of the two in the middle: 0.05, 0.2; and 0.1, 0.15, 0.3, inf, inf, inf.
        assert without.median_rms.tolist()[:2] == [pytest.approx(51), math.inf]
        assert within.transfer.tolist() == [True, False, False]
        assert within.fpr.isna().all()

    def test_cost_counts_the_nearest_version(self, attempts: list[Attempt], fixed: Defended) -> None:
        cost = tables.evasion_cost(attempts, {"normal": fixed})
        assert tuple(cost.columns) == tables.COST
        assert cost.budgets.tolist() == 3 * [0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
        chosen = cost[cost.budgets.isin([0.5, 1.5])]
        rates = {(row.attacks, row.budgets): row.success_rate for row in chosen.itertuples()}
        assert rates == {
            ("transferred", 0.5): pytest.approx(1 / 6),
            ("transferred", 1.5): pytest.approx(1 / 6),
            ("adaptive", 0.5): 0,
            ("adaptive", 1.5): pytest.approx(2 / 6),
            ("all", 0.5): pytest.approx(1 / 6),
            ("all", 1.5): pytest.approx(2 / 6),
        }

    @pytest.mark.parametrize(("low", "rows"), [(0.6, 1), (0.5, 0)])
    def test_a_defence_is_overstated_where_intervals_do_not_overlap(self, low: float, rows: int) -> None:
        common = {"model": "normal", "defence": "vote", "fpr": math.nan, "budgets": 1.0, "n": 9}
        sides = [("transferred", 0.3, 0.1, 0.5), ("adaptive", 0.8, low, 0.9)]
        named = [
            {**common, "attacks": kind, "success_rate": rate, "success_rate_low": a, "success_rate_high": b}
            for kind, rate, a, b in sides
        ]
        assert len(tables.overstated(pd.DataFrame(named))) == rows

    def test_figures(self, attempts: list[Attempt], fixed: Defended) -> None:
        table = tables.adaptive(attempts, {"normal": fixed}, pixel_max=1)
        figure = plots.attack_matrix(table)
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert [text.split("\n")[0] for text in texts if "\n" in text] == ["50", "17", "33"]
        assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["old", "new", "minimum"]
        known = attempts[1]._replace(attack="PGD")
        curves = plots.evasion_curves([attempts[0], known], images=N)
        assert [each.get_label() for each in curves.axes[0].containers] == ["PGD"]

    def test_figures_of_nothing(self, attempts: list[Attempt], fixed: Defended) -> None:
        table = tables.adaptive(attempts, {"normal": fixed}, pixel_max=1)
        with pytest.raises(ValueError, match="expected a row with a budget"):
            plots.attack_matrix(table[table.budget_rms.isna()])
        with pytest.raises(ValueError, match="expected the adaptive table of one model, got normal, pgd"):
            plots.attack_matrix(pd.concat([table, table.assign(model="pgd")]))
        with pytest.raises(ValueError, match="expected an attack on vote or detector, got none"):
            plots.evasion_curves([each._replace(evaded={}) for each in attempts], images=N)


class Masked(nn.Module):
    """A model whose logits are rounded: its gradients are 0 everywhere, and its classes those of `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x)
        return (1e4 * z).round() / 1e4 + 0 * z


class TestWarnings:
    """A defence that masks gradients is noticed; one that does not is not accused."""

    def warned(self, model: nn.Module, given: Defended, attempts: list[Attempt] | None = None) -> pd.DataFrame:
        budget = 2.5 * given.budget
        given = dataclasses.replace(given, budget=torch.full_like(budget, float(budget.max())))
        options: dict[str, Any] = {"radius": 0.02, "steps": 30, "generator": seeded()}
        aware = {("normal", "EOT"): adaptive.through_vote(model, given.x, given.y, budget=given.budget, **options)}
        return suite.adaptive_warnings(S, {"normal": model}, {"normal": given}, aware, attempts or [])

    def test_masked_gradients_are_noticed(self, half: HalfSpace, given: Defended) -> None:
        names = set(self.warned(Masked(half), given).indicator)
        assert "random beats gradient" in names
        assert self.warned(half, given).empty

    def test_so_is_a_transferred_attack_that_does_more(self, half: HalfSpace, given: Defended) -> None:
        far = [0.0] * N
        better = [attempt("old", far, [True] * N, transfer=True), attempt("new", far, [False] * N)]
        found = self.warned(half, given, better)
        assert found.indicator.tolist() == ["transfer beats it"]
        assert found["share"].tolist() == [1.0]
        assert self.warned(
            half, given, [attempt("old", far, [True] * N, transfer=True), attempt("new", far, [True] * N)]
        ).empty


def test_every_attack_of_a_run_keeps_its_budget_and_passes(half: HalfSpace, given: Defended) -> None:
    attempts = suite.adaptive_attacks(S, given)
    assert list(attempts) == ["EOT-least", "EOT", "EOT-0.75", "views-hypercube", "views-large", "views-rays", "mimic"]
    for attack, each in attempts.values():
        views = attack.keywords.get("offsets", ())
        options = {} if len(views) else {**each, "generator": seeded()}
        found = attack(half, given.x, given.y, **options)
        assert (found.forwards + found.backwards).max() < 1.2 * S.adaptive_passes + 22 * (
            len(views) + 10
        )  # looks at ten steps at once
        if "budget" in each:
            assert (found.rms <= each["budget"] * (1 + 1e-5)).all()


def test_mimics_have_their_rows_in_images(half: HalfSpace, given: Defended) -> None:
    attack, each = suite.adaptive_attacks(S, given)["mimic"]
    found = attack(half, given.x, given.y, generator=seeded(), **each)
    said = adaptive.judge(
        half,
        found.x_adv,
        given.y,
        fold=given.fold,
        radius=0.1,
        samples=20,
        directions=suite.directions(S, IN_SHAPE),
        magnitudes=S.magnitudes,
    )
    vote = region.classify(half, found.x_adv, radius=0.1, samples=20, generator=seeded())
    profile = boundary.probe(half, found.x_adv[found.success], suite.directions(S, IN_SHAPE), S.magnitudes)
    frame = tables.mimicked("pgd", given, found, said, vote, profile, radius=0.1, pixel_max=255)
    assert tuple(frame.columns) == tuple(tables.IMAGES)
    assert frame["index"].tolist() == given.index.tolist()
    assert set(frame.model) == {"pgd"}
    assert set(frame.examples) == {"mimic"}
    assert frame.rms.tolist() == pytest.approx((255 * found.rms).tolist())
    assert frame.vote.tolist() == vote.label.tolist()
    assert frame.reached_share.notna().tolist() == found.success.tolist()
    without = tables.mimicked("pgd", given, found, said, vote, None, radius=0.1, pixel_max=255)
    assert without.reached_share.isna().all()
    both = tables.stacked(frame, without.assign(model="normal"))
    assert both["index"].tolist() == 2 * given.index.tolist()
    assert both.rms.dtype == both.median_distance.dtype == float


def test_optmargin_is_tried_with_other_budgets_too(given: Defended, optmargin: Attack) -> None:
    found = {name: (ignorant, each) for name, ignorant, _, each in suite.tried(given, {"OPTMARGIN": optmargin}, {})}
    assert list(found) == ["OPTMARGIN", "OPTMARGIN-0.75", "OPTMARGIN-1.25", "OPTMARGIN-1.5"]
    for name, share in (("OPTMARGIN-0.75", 0.75), ("OPTMARGIN-1.25", 1.25), ("OPTMARGIN-1.5", 1.5)):
        ignorant, moved = found[name]
        assert ignorant
        assert torch.allclose(moved.x_adv, (given.x + share * (given.start - given.x)).clamp(0, 1))
        assert moved.rms.tolist() == pytest.approx((share * given.budget).tolist(), rel=1e-5)  # nothing is clipped here
