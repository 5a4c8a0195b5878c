"""What the notebooks share: settings that reach the kernels, which images are looked at, and one smoke run of all."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from nbsupport import attacks as kernels
from nbsupport import boundary, detector, presets, region, runner, runtime, store, suite, tables, train
from nbsupport.attacks import Attack
from nbsupport.boundary import Profile
from nbsupport.data import ImageSet
from nbsupport.intervals import wilson
from nbsupport.presets import Settings
from nbsupport.store import Run

INF = math.inf
NAMES = ["FGSM", "PGD", "OPTBRITTLE", "OPTSTRONG", *suite.OPTMARGINS]


def settings(dataset: str = "digits", preset: str = "smoke", **overrides: Any) -> Settings:
    return presets.settings(dataset, preset, overrides)


def bools(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def attack(
    success: Tensor, correct: Tensor | None = None, rms: Tensor | None = None, x: Tensor | None = None
) -> Attack:
    n = len(success)
    ones = torch.ones(n, dtype=torch.int64)
    return Attack(
        x_adv=torch.zeros(n, 1, 2, 2) if x is None else x,
        success=success,
        correct=torch.ones(n, dtype=torch.bool) if correct is None else correct,
        rms=torch.arange(n).float(),
        forwards=ones,
        backwards=ones,
        falling=ones == 0,
        at_bound=ones == 0,
    )


def profile(*median: float) -> Profile:
    """One image for each of the medians, all rays of which are as long."""
    distance = torch.tensor(median)[:, None].expand(-1, 3).contiguous()
    zero = torch.zeros(distance.shape, dtype=torch.int64)
    return Profile(torch.arange(len(median)), distance, zero, distance.isfinite())


@pytest.fixture(scope="module")
def networks(digits_train: ImageSet) -> dict[str, nn.Module]:
    """Two models of `digits` that were trained for some seconds."""
    s, found = settings(), {}
    fitted, validation = digits_train.split(100)
    for which, last in (("normal", "benign"), ("pgd", "single")):
        recipe = {**suite.training(s)[which], "schedule": ["benign"] * 4 + [last]}
        found[which] = suite.new_model(s, digits_train, which)
        train.fit_schedule(found[which], fitted, validation, **recipe, generator=runtime.seeded(0, which))
    return found


# Training


def test_the_two_recipes_differ_in_what_is_said_of_them() -> None:
    s = settings(epochs=5, fast_epochs=3, pgd_epochs=2, label_smoothing=0.1)
    recipes = suite.training(s)
    assert list(recipes) == list(store.MODELS)
    assert recipes["normal"]["schedule"] == ["benign"] * 5
    assert recipes["pgd"]["schedule"] == ["single"] * 3 + ["pgd"] * 2
    differing = {name for name in recipes["normal"] if recipes["normal"][name] != recipes["pgd"][name]}
    assert differing == {"schedule", "augment", "label_smoothing"}
    assert (recipes["normal"]["augment"], recipes["pgd"]["augment"]) == (s.augment, s.pgd_augment)
    assert (recipes["normal"]["label_smoothing"], recipes["pgd"]["label_smoothing"]) == (0.1, 0.0)


def test_the_schedule_named_pgd_has_no_single_steps() -> None:
    assert suite.training(settings(pgd_schedule="pgd", pgd_epochs=4))["pgd"]["schedule"] == ["pgd"] * 4


def test_a_new_model_depends_on_the_seed_alone(digits: ImageSet) -> None:
    before = torch.get_rng_state()
    first, again, other = (suite.new_model(settings(seed=seed), digits, "normal") for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    states = [
        torch.cat([tensor.flatten().float() for tensor in m.state_dict().values()]) for m in (first, again, other)
    ]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_given_weights_are_measured_and_not_trained(
    networks: dict[str, nn.Module], digits: ImageSet, tmp_path: Path
) -> None:
    torch.save(networks["normal"].state_dict(), tmp_path / "w.pt")
    s = settings(pgd_weights=str(tmp_path / "w.pt"))
    assert suite.schedules(s) == {"normal": "normal", "pgd": "given"}
    recipe, model = suite.training(s)["pgd"], suite.new_model(s, digits, "pgd")
    history = train.fit_schedule(model, digits, digits.first(100), **recipe)
    (row,) = history.to_dict("records")
    with torch.no_grad():
        z = networks["normal"](digits.x[:100])
    assert row["benign_accuracy"] == (z.argmax(1) == digits.y[:100]).double().mean().item()
    assert row["loss"] == pytest.approx(float(nn.functional.cross_entropy(z, digits.y[:100])), rel=1e-5)
    assert row["pgd_accuracy"] < row["benign_accuracy"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, networks["normal"].state_dict()[name])
    assert suite.kept_epochs({"pgd": history}) == {"pgd": 0}


def test_the_hardened_model_may_be_another(digits: ImageSet) -> None:
    s = settings(pgd_model="resnet20")
    kinds = {which: type(suite.new_model(s, digits, which)).__name__ for which in store.MODELS}
    assert kinds == {"normal": "DigitsCNN", "pgd": "ResNet20"}


def test_a_schedule_trains_each_epoch_on_what_it_says(digits_train: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, dict[str, Any]] = {}
    given: dict[str, Any] = {}

    def adversary(**options: Any) -> str:
        made[name := f"{options['steps']} steps"] = options
        return name

    monkeypatch.setattr(train, "linf_adversary", adversary)
    monkeypatch.setattr(train, "fit", lambda *arguments, **options: given.update(options))
    few, schedule = digits_train.first(8), ["benign", "single", "pgd"]
    model = suite.new_model(settings(), few, "normal")
    train.fit_schedule(model, few, few, schedule=schedule, eps=0.2, steps=7, step_size=0.05, lr=0.3)
    assert given["adversary"] == [None, "1 steps", "7 steps"]
    assert given["evaluation_adversary"] == "7 steps"
    assert (given["epochs"], given["lr"]) == (3, 0.3)
    assert (made["1 steps"]["eps"], made["1 steps"]["step_size"]) == (0.2, 0.25)  # one step of 1.25 eps
    assert (made["7 steps"]["eps"], made["7 steps"]["step_size"]) == (0.2, 0.05)


def test_an_unknown_kind_of_epoch_is_refused(digits_train: ImageSet) -> None:
    few = digits_train.first(8)
    with pytest.raises(ValueError, match="expected schedule to be one of benign, single, pgd, got 'pdg'; did you mean"):
        train.fit_schedule(nn.Linear(1, 1), few, few, schedule=["pdg"], eps=0.1, steps=1, step_size=0.1)


def test_the_last_of_the_best_epochs_is_kept() -> None:
    accuracies = {"benign_accuracy": [0.5, 0.9, 0.9, 0.8], "pgd_accuracy": [0.3, 0.1, 0.2, float("nan")]}
    histories = {name: pd.DataFrame({"epoch": range(4), **accuracies}) for name in store.MODELS}
    assert suite.kept_epochs(histories) == {"normal": 2, "pgd": 0}


# Attacks


@pytest.mark.parametrize("solver", ["ddn", "adam"])
@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
def test_every_attack_has_the_settings_that_the_tables_state(dataset: str, solver: str) -> None:
    s = settings(dataset, "standard", brittle_solver=solver)
    found, about = suite.attacks(s, "normal"), suite.about(s).set_index("attack")
    assert list(found) == list(about.index) == NAMES
    kernel = {name: (one.func, one.keywords) for name, (one, _) in found.items() if isinstance(one, partial)}
    for name, (function, given) in kernel.items():
        row = about.loc[name]
        if math.isnan(row.eps):
            assert given.get("confidence", 0.0) == row.confidence
        else:
            assert given["eps"] == row.eps
            assert math.isnan(row.confidence)
        if function is kernels.optmargin:
            assert given.get("solver", "adam") == row.solver  # `authors` knows no other
            assert given.get("variant", "equations") == row.variant
            assert given["views"] == s.views
        else:
            assert pd.isna(row.variant)
    functions = {name: function for name, (function, _) in kernel.items()}
    brittle = {"ddn": kernels.ddn_l2, "adam": kernels.carlini_wagner_l2}[solver]
    assert functions == {
        "FGSM": kernels.fgsm,
        "PGD": kernels.pgd_linf,
        "OPTBRITTLE": brittle,
        "OPTSTRONG": kernels.carlini_wagner_l2,
        **dict.fromkeys(suite.OPTMARGINS, kernels.optmargin),
    }


def test_slow_attacks_get_fewer_images() -> None:
    s = settings(n=30, strong_n=20, adam_n=10)
    assert [n for _, n in suite.attacks(s, "normal").values()] == [30, 30, 30, 20, 30, 10, 10]
    assert [n for _, n in suite.attacks(replace(s, n=15), "normal").values()] == [15, 15, 15, 15, 15, 10, 10]
    assert [n for _, n in suite.attacks(replace(s, pgd_n=12), "pgd").values()] == [12, 12, 12, 12, 12, 10, 10]
    assert suite.attacks(replace(s, pgd_n=12), "normal")["PGD"][1] == 30
    slow = {which: suite.attacks(replace(s, pgd_adam_n=5), which)["OPTMARGIN-adam"][1] for which in suite.MODELS}
    assert slow == {"normal": 10, "pgd": 5}


def test_a_budget_scales_the_steps_of_pgd_with_it() -> None:
    s = settings()
    one, double = suite.pgd(s), suite.pgd(s, budget=2.0)
    assert isinstance(one, partial)
    assert isinstance(double, partial)
    assert (one.keywords["eps"], one.keywords["step_size"]) == (s.eps, s.pgd_step_size)
    assert (double.keywords["eps"], double.keywords["step_size"]) == (2 * s.eps, 2 * s.pgd_step_size)
    assert double.keywords["steps"] == one.keywords["steps"] == s.pgd_steps


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_the_precision_of_a_command_line_reaches_every_attack(precision: str, tmp_path: Path) -> None:
    given = {"targeted": "random", "precision": precision}  # as `-p` does
    s = runner.plan("digits", "smoke", given, tmp_path / "run").settings
    assert s.targeted == "random"
    every = [one for one, _ in suite.attacks(s, "normal").values()] + [one for *_, one in suite.demands(s, (1, 8, 8))]
    assert [one.keywords["precision"] for one in every if isinstance(one, partial)] == [precision] * len(every)


@pytest.mark.parametrize("name", ["PGD", "OPTBRITTLE", "OPTMARGIN"])
def test_a_targeted_success_is_the_target(
    networks: dict[str, nn.Module], digits: ImageSet, tmp_path: Path, name: str
) -> None:
    run = store.open_run(
        tmp_path / "run", dataset="digits", preset="smoke", overrides={"targeted": "random", "precision": "mixed"}
    )
    s, model, (one, n) = run.settings, networks["normal"], suite.attacks(run.settings, "normal")[name]
    few = digits.first(n)
    aims = suite.targets(s, model, few)
    result = run.keep(f"attacks/normal/{name}", one, model, few.x, few.y, each=aims, seed=("attack", name))
    success = result.success
    assert success.sum() > n / 4
    assert torch.equal(runtime.predict(model, result.x_adv)[success], aims["targets"][success])
    assert (aims["targets"] != few.y).all()
    # The vote of every view, for OPTMARGIN, is for the target too.
    views = suite.view_offsets(s, name, few.in_shape) if name == "OPTMARGIN" else torch.zeros(1, *few.in_shape)
    for view in views:
        label = runtime.predict(model, (result.x_adv + view).clamp(0, 1))
        assert torch.equal(label[success], aims["targets"][success])
    flips = suite.flips(s, {"normal": model}, {("normal", name): result}, digits)["normal", name]
    assert len(flips) == int(success.sum())
    assert not flips.alone.any()


# Targets


def test_attacks_without_a_target_are_given_none(networks: dict[str, nn.Module], digits: ImageSet) -> None:
    assert suite.targets(settings(), networks["normal"], digits) == {}


def test_random_targets_are_any_other_class_and_the_same_for_both_models(
    networks: dict[str, nn.Module], digits: ImageSet
) -> None:
    s = settings(targeted="random")
    found, other = (suite.targets(s, networks[which], digits)["targets"] for which in store.MODELS)
    assert torch.equal(found, other)
    assert (found != digits.y).all()
    shift = (found - digits.y) % 10
    assert set(shift.tolist()) == set(range(1, 10))
    assert shift.bincount(minlength=10)[1:].min() > 500 / 9 / 2  # 500 images, nine shifts
    again = suite.targets(replace(s, seed=1), networks["normal"], digits)["targets"]
    assert not torch.equal(found, again)


def test_fewer_images_have_the_same_random_targets(networks: dict[str, nn.Module], digits: ImageSet) -> None:
    s = settings(targeted="random")
    every = suite.targets(s, networks["normal"], digits)["targets"]
    for n in (1, 7, 16, 100):
        few = suite.targets(s, networks["normal"], digits.first(n))["targets"]
        assert torch.equal(few, every[:n])


def test_the_least_likely_target_has_the_smallest_logit(networks: dict[str, nn.Module], digits: ImageSet) -> None:
    s = settings(targeted="least-likely")
    found = {which: suite.targets(s, model, digits)["targets"] for which, model in networks.items()}
    for which, model in networks.items():
        for i in range(0, 500, 25):
            with torch.no_grad():
                z = model.eval()(digits.x[i : i + 1])[0]
            others = [float(value) if j != digits.y[i] else INF for j, value in enumerate(z)]
            assert int(found[which][i]) == others.index(min(others))
    assert not torch.equal(*found.values())


def test_the_least_likely_target_is_never_the_true_class(digits: ImageSet) -> None:
    class OneHot(nn.Module):
        """The first class is the least likely one of every image."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.arange(10.0).expand(len(x), 10)

    found = suite.targets(settings(targeted="least-likely"), OneHot(), digits)["targets"]
    assert torch.equal(found, torch.where(digits.y == 0, 1, 0))


# Which images


def test_correct_is_what_the_models_say(networks: dict[str, nn.Module], digits: ImageSet) -> None:
    found = suite.correct(networks, digits)
    for which, model in networks.items():
        assert torch.equal(found[which], runtime.predict(model, digits.x) == digits.y)
        assert 0.3 < found[which].float().mean() < 1


def test_results_are_filed_by_model() -> None:
    found = {("normal", "a"): 1, ("normal", "b"): 2, ("pgd", "a"): 3}
    assert suite.of_model(found, "normal") == {"a": 1, "b": 2}
    assert suite.by_model(found) == {"normal": {"a": 1, "b": 2}, "pgd": {"a": 3}}
    assert suite.by_model({}) == {"normal": {}, "pgd": {}}, "figures have a panel for each model"


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, [1, 2, 3]), ({"count": 2}, [1, 2]), ({"succeeded": True}, [2]), ({"count": 0}, [])],
)
def test_shown_images_were_attacked_by_all(options: dict[str, Any], rows: list[int]) -> None:
    correct = bools(0, 1, 1, 1, 1)
    results = {"a": attack(bools(0, 0, 1, 1, 1), correct), "b": attack(bools(0, 1, 1, 0), correct[:4])}
    assert suite.shown(results, **options).tolist() == rows


def test_there_is_always_an_image_to_show() -> None:
    never = {"a": attack(bools(0, 0), bools(0, 1))}
    assert suite.shown(never, succeeded=True).tolist() == [1]
    misclassified = {"a": attack(bools(0, 0), bools(0, 0))}
    assert suite.shown(misclassified, succeeded=True, count=1).tolist() == [0]


class ByMean(nn.Module):
    """Class 0 where the mean of an image is below .5, else class 1."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack((0.5 - mean, mean - 0.5), 1)


def flat(*means: float, y: tuple[int, ...]) -> ImageSet:
    """Images of one grey each."""
    x = torch.tensor(means)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    return ImageSet(x, torch.tensor(y), ("dark", "light"), 1.0, "flat")


def test_versions_are_what_is_right_what_succeeded_and_what_is_wrong() -> None:
    images = flat(0.1, 0.2, 0.8, 0.9, 0.9, 0.3, y=(0, 1, 1, 1, 0, 1))  # 1, 4 and 5 are misclassified
    results = {
        ("normal", "PGD"): attack(bools(1, 0, 1, 1), x=images.x[:4] / 2),
        ("pgd", "PGD"): attack(bools(0, 0, 0, 0), x=images.x[:4]),
    }
    models = {"normal": ByMean(), "pgd": ByMean()}
    found = suite.versions(settings(n=4, boundary_n=2), models, results, images)
    keys = [("normal", "benign"), ("normal", "PGD"), ("normal", "errors"), ("pgd", "benign"), ("pgd", "errors")]
    assert list(found) == keys  # nothing is left of the others
    index, x = found["normal", "benign"]
    assert index.tolist() == [0, 2]  # the first two that are right, not those of the first two images
    assert torch.equal(x, images.x[[0, 2]])
    index, x = found["normal", "PGD"]
    assert index.tolist() == [0, 2]
    assert torch.equal(x, images.x[[0, 2]] / 2)
    index, x = found["normal", "errors"]
    assert index.tolist() == [1, 4]  # of all test images, not of the attacked ones alone
    assert torch.equal(x, images.x[[1, 4]])


def test_noise_is_as_far_as_optmargin_and_keeps_the_class() -> None:
    images = flat(*[0.45, 0.49, 0.4, 0.49] * 5, y=(0, 0, 1, 0) * 5)
    success = images.y == 0
    margin = replace(attack(success, x=images.x), rms=torch.linspace(0.05, 0.3, 20))
    found = suite.versions(settings(n=20), {"normal": ByMean()}, {("normal", "OPTMARGIN"): margin}, images)
    index, x = found["normal", "noise"]
    assert 0 < len(index) < int(success.sum())  # some have another class now
    assert success[index].all()
    assert (ByMean()(x).argmax(1) == 0).all()
    rms = (x - images.x[index]).square().flatten(1).mean(1).sqrt()
    assert rms.tolist() == pytest.approx(margin.rms[index].tolist(), rel=1e-4)
    again = suite.versions(settings(n=20), {"normal": ByMean()}, {("normal", "OPTMARGIN"): margin}, images)
    assert torch.equal(again["normal", "noise"][1], x)


def test_noise_goes_as_far_as_clipping_allows() -> None:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    far = torch.tensor([0.1, 0.4, 5.0, 0.0])
    moved = suite.noisy(x, far, generator=torch.Generator().manual_seed(1))
    rms = (moved - x).square().flatten(1).mean(1).sqrt()
    assert rms[:2].tolist() == pytest.approx([0.1, 0.4], rel=1e-4)
    assert float(rms[3]) < 1e-6
    assert ((moved[2] == 0) | (moved[2] == 1)).all()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    step = (moved - x)[0]
    inside = (moved[0] > 0) & (moved[0] < 1)
    ratio = step[inside] / direction[0][inside]
    assert ratio.std() < 1e-4 * ratio.mean()


def test_the_typical_image_is_in_the_middle_of_those_probed_in_all_sets() -> None:
    profiles = {"benign": profile(0.4, 0.1, INF, 0.2), "PGD": profile(0.3, 0.3, 0.3, 0.3)}
    positions = {"benign": torch.tensor([5, 6, 7, 8]), "PGD": torch.tensor([8, 7, 5, 9])}
    # 5, 7 and 8 are in both, with medians .4, inf and .2
    names = ("benign", "PGD", "absent")
    assert suite.typical(profiles, positions, names, radius=0.1) == {"benign": 0, "PGD": 2}
    profiles["OPTMARGIN"] = profile(0.4, 0.1, 0.2, 0.3)
    positions["OPTMARGIN"] = torch.tensor([7, 8, 5, 6])
    # below .25 / sqrt(3) lies the ray of 8 alone; among 5 and 7 decides the median, .2 and .4
    names = ("benign", "PGD", "OPTMARGIN")
    assert suite.typical(profiles, positions, names, radius=0.25) == {"benign": 2, "PGD": 1, "OPTMARGIN": 0}


def test_sets_are_dropped_until_one_image_is_in_all() -> None:
    profiles = {"benign": profile(0.4, 0.1, 0.2), "PGD": profile(0.3)}
    positions = {"benign": torch.tensor([5, 6, 7]), "PGD": torch.tensor([9])}
    assert suite.typical(profiles, positions, ("benign", "PGD"), radius=0.1) == {"benign": 2}
    assert suite.typical({}, {}, ("benign", "PGD"), radius=0.1) == {}


def test_ray_medians_are_per_image() -> None:
    distance = torch.tensor([[0.1, 0.3], [0.1, INF], [INF, INF]])
    one = Profile(
        torch.zeros(3, dtype=torch.int64), distance, torch.zeros(3, 2, dtype=torch.int64), distance.isfinite()
    )
    assert suite.ray_medians(one).tolist() == pytest.approx([0.2, INF, INF])
    assert suite.ray_medians(one.take(slice(0))).shape == (0,)


# Signs of failure


def test_every_sign_of_failure_is_a_row(networks: dict[str, nn.Module], digits: ImageSet) -> None:
    s, few, results = settings(), digits.first(6), {}
    for name in ("FGSM", "PGD", "OPTMARGIN"):
        one, _ = suite.attacks(s, "normal")[name]
        draws = {} if name == "FGSM" else {"generator": runtime.seeded(s.seed, "attack", name)}
        result = one(networks["normal"], few.x, few.y, **draws)
        results["normal", name] = replace(result, falling=result.correct)
    table = suite.warnings(s, networks, results, digits)
    assert list(table) == ["model", "attack", "indicator", "share", "n", "what_to_do"]
    rows = table[table.indicator == "still falling"]
    assert list(zip(rows.model, rows.attack, strict=True)) == list(results)
    assert rows.share.eq(1).all()
    assert rows.n.tolist() == [int(result.correct.sum()) for result in results.values()]
    assert rows.what_to_do.str.contains("raise steps").all()


def test_pgd_is_judged_by_half_and_by_twice_its_budget(
    networks: dict[str, nn.Module], digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    s, given = settings(), []

    def failure_indicators(*arguments: Any, **options: Any) -> tuple[()]:
        given.append(options)
        return ()

    monkeypatch.setattr(kernels, "failure_indicators", failure_indicators)
    results = {("pgd", name): attack(bools(1, 0, 1)) for name in NAMES}
    assert len(suite.warnings(s, networks, results, digits)) == 0
    by_name = dict(zip(NAMES, given, strict=True))
    found = by_name["PGD"]["by_eps"]
    assert list(found) == [s.eps / 2, 2 * s.eps]
    for eps, result in found.items():
        change = (result.x_adv - digits.x[:3]).abs().amax((1, 2, 3))
        assert (change <= eps + 1e-6).all()
        again = kernels.pgd_linf(
            networks["pgd"],
            *(digits.x[:3], digits.y[:3]),
            eps=eps,
            steps=s.pgd_steps,
            step_size=s.pgd_step_size * eps / s.eps,
            generator=runtime.seeded(s.seed, "attack", "PGD"),
        )
        assert torch.equal(result.x_adv, again.x_adv)
    assert {name for name, options in by_name.items() if options.get("eps") == s.eps} == {"FGSM", "PGD"}
    assert all(options.get("eps") is None for name, options in by_name.items() if name not in ("FGSM", "PGD"))
    assert [name for name, options in by_name.items() if options.get("views") is not None] == list(suite.OPTMARGINS)
    assert [name for name, options in by_name.items() if not options.get("clip_views", True)] == ["OPTMARGIN-authors"]


def test_flips_are_of_the_successes(networks: dict[str, nn.Module], digits: ImageSet) -> None:
    model, few = networks["normal"], digits.first(20)
    result = kernels.ddn_l2(model, few.x, few.y, steps=30)
    found = suite.flips(settings(), networks, {("normal", "OPTBRITTLE"): result}, digits)["normal", "OPTBRITTLE"]
    success = result.success
    expected = kernels.stability(model, result.x_adv[success], few.y[success])
    for name, tensor in found.tensors().items():
        assert torch.equal(tensor, expected.tensors()[name])


# OPTMARGIN's demands


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
def test_curves_meet_in_the_published_demand_and_each_lets_one_part_grow(dataset: str) -> None:
    s = presets.settings(dataset)
    found: dict[str, list[tuple[float, ...]]] = {}
    for curve, value, name, one in suite.demands(s, (1, 28, 28)):
        assert isinstance(one, partial)
        assert (one.keywords["solver"], one.keywords["steps"]) == ("ddn", s.ddn_steps)
        parts = tuple(one.keywords[part] for part in ("views", "eps", "confidence"))
        assert value == parts[["number of views", "size of the views", "confidence"].index(curve)]
        assert name == f"views-{parts[0]}_size-{parts[1]:.4f}_confidence-{parts[2]:.4f}"
        found.setdefault(curve, []).append(parts)
    assert set.intersection(*map(set, found.values())) == {(s.views, s.view_eps, 0.0)}
    for demands in found.values():
        grows = [part for part in zip(*demands, strict=True) if len(set(part)) > 1]
        assert len(grows) == 1
        assert list(grows[0]) == sorted(set(grows[0]))


def test_no_more_views_are_asked_for_than_there_are_orthogonal_ones() -> None:
    found = suite.demands(presets.settings("digits", overrides={"views": 5}), (1, 2, 2))
    assert max(value for curve, value, *_ in found if curve == "number of views") == 5


@pytest.mark.parametrize("name", suite.OPTMARGINS)
def test_the_views_are_those_of_the_attack(networks: dict[str, nn.Module], digits: ImageSet, name: str) -> None:
    s, model = settings(search_steps=5, adam_steps=100), networks["normal"]
    few = digits.first(6)
    views = suite.view_offsets(s, name, few.in_shape)
    assert views.shape == (s.views, *few.in_shape)
    rms = views.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(rms, torch.tensor([s.view_eps] * (s.views - 1) + [0.0]))
    one, _ = suite.attacks(s, "normal")[name]
    result = one(model, few.x, few.y, generator=runtime.seeded(s.seed, "attack", name))
    fooled = result.x_adv[result.success]
    assert len(fooled) > 0
    for view in views:  # `authors` leaves its views unclipped
        seen = fooled + view if name == "OPTMARGIN-authors" else (fooled + view).clamp(0, 1)
        assert (runtime.predict(model, seen) != few.y[result.success]).all()


# The vote


def test_kept_is_whether_the_true_label_wins_the_vote_of_the_run(
    networks: dict[str, nn.Module], digits: ImageSet
) -> None:
    s, few = settings(radius=0.4), digits.first(30)
    generator = runtime.seeded(s.seed, "region")
    vote = region.classify(networks["normal"], few.x, radius=0.4, samples=s.samples, generator=generator)
    found = suite.kept(s, networks["normal"], few.x, few.y)
    assert torch.equal(found, vote.label == few.y)
    assert 0 < found.sum() < 30


def test_one_thing_differs_from_the_published_vote() -> None:
    s = settings()
    found = suite.region_variants(s, 64)
    ways = {name: (each["shape"], each["combine"]) for name, each in found.items()}
    assert all(name == "-".join(way) for name, way in ways.items())
    published, *others = ways.values()
    assert published == ("hypercube", "plurality")
    assert len(set(others)) == 4
    assert all((shape == "hypercube") != (combine == "plurality") for shape, combine in others)
    rms = s.radius / math.sqrt(3)
    radii = {"hypercube": s.radius, "ball": rms * math.sqrt(66 / 64), "gaussian": rms}
    for each in found.values():
        assert each["radius"] == pytest.approx(radii[each["shape"]])
        assert each["samples"] == s.samples


# Slices


def test_a_slice_agrees_with_the_model_where_its_images_lie(networks: dict[str, nn.Module], digits: ImageSet) -> None:
    model, few = networks["normal"], digits.first(9)
    brittle = kernels.ddn_l2(model, few.x, few.y, steps=30)
    margin = kernels.optmargin(model, few.x, few.y, eps=0.1, steps=30, generator=runtime.seeded(0))
    row, plane = suite.slice_through(settings(), model, {"OPTBRITTLE": brittle, "OPTMARGIN": margin}, few)
    successes = sorted(margin.rms[margin.success & brittle.success].tolist())
    assert float(margin.rms[row]) == successes[(len(successes) - 1) // 2]
    for name, x in {"benign": few.x, "OPTMARGIN": margin.x_adv, "OPTBRITTLE": brittle.x_adv}.items():
        place = plane.points[name].float() @ torch.stack((plane.u, plane.v))
        torch.testing.assert_close(few.x[row].flatten() + place, x[row].flatten(), rtol=1e-4, atol=1e-5)
    assert float(plane.u @ plane.v) / 64 == pytest.approx(0, abs=1e-5)
    assert float(plane.v @ plane.v) / 64 == pytest.approx(1, abs=1e-5)
    assert plane.labels.shape == (321, 321)
    assert len(plane.across) == len(plane.up) == 321
    for i, j in ((160, 160), (0, 320), (244, 28)):
        place = few.x[row].flatten() + plane.across[i].float() * plane.u + plane.up[j].float() * plane.v
        assert int(plane.labels[j, i]) == int(runtime.predict(model, place.clamp(0, 1).view(1, 1, 8, 8)))


def test_a_slice_reaches_as_far_as_the_vote_and_as_the_attack(networks: dict[str, nn.Module], digits: ImageSet) -> None:
    x = digits.x[0]
    for change, reach in ((0.01, 0.15), (0.3, 0.3)):
        x_adv = (0.5 + (x - 0.5) * 0.4) + change
        length = float((x_adv - x).square().mean().sqrt())
        plane = suite.plane(settings(), networks["pgd"], x, x_adv, "moved", size=5)
        assert float(plane.across[0]) == pytest.approx(-max(0.15, length))
        assert float(plane.across[-1]) == pytest.approx(length + max(0.15, length))
        assert reach > 0


def test_without_a_success_the_slice_is_through_the_first_image(
    networks: dict[str, nn.Module], digits: ImageSet
) -> None:
    failed = attack(bools(0, 0), x=digits.x[:2])
    row, plane = suite.slice_through(
        settings(), networks["normal"], {"OPTBRITTLE": failed, "OPTMARGIN": failed}, digits
    )
    assert row == 0
    assert list(plane.points) == ["benign"]
    label = runtime.predict(networks["normal"], digits.x[:1])
    assert int(plane.labels[160, 160]) == int(label)


def test_attacks_along_one_line_span_no_plane_and_get_a_random_one(
    networks: dict[str, nn.Module], digits: ImageSet
) -> None:
    x = digits.x[:1]
    near, far = (attack(bools(1), x=0.5 + (x - 0.5) * (1 - share)) for share in (0.1, 0.2))
    _, plane = suite.slice_through(settings(), networks["normal"], {"OPTBRITTLE": near, "OPTMARGIN": far}, digits)
    assert list(plane.points) == ["benign", "OPTMARGIN"]


# The boundary


@pytest.mark.parametrize(
    ("overrides", "in_shape", "count"),
    [
        ({}, (1, 8, 8), 128),
        ({"negate": "false"}, (1, 8, 8), 64),
        ({"directions": "none"}, (1, 2, 3), 12),
        ({"directions": "none", "negate": "false"}, (3, 19, 19), 1000),
    ],
)
def test_the_directions_of_a_run(overrides: dict[str, str], in_shape: tuple[int, ...], count: int) -> None:
    s = settings(**overrides)
    found = suite.directions(s, in_shape)
    assert found.shape == (count, math.prod(in_shape))
    torch.testing.assert_close(found.square().mean(1).sqrt(), torch.ones(count))
    assert suite.directions(s, in_shape) is found, "drawn once"
    suite._directions.cache_clear()
    assert torch.equal(found, suite.directions(s, in_shape))


def test_clipping_shortens_the_points_of_the_vote() -> None:
    s = settings()
    expected = s.radius / math.sqrt(3)
    assert suite.clipped_rms(s, torch.full((1, 8, 8), 0.5)) == pytest.approx(expected, rel=0.01)
    half = math.sqrt(0.5)  # every other offset of a pixel at an end is taken away
    assert suite.clipped_rms(s, torch.zeros(1, 8, 8)) == pytest.approx(half * expected, rel=0.02)


# The detector


def test_folds_are_even_over_the_first_images_and_depend_on_the_seed() -> None:
    s = settings(n=52, detector_folds=5)
    found = suite.folds(s, torch.arange(60))
    assert found.dtype == torch.int64
    assert sorted(found[:52].bincount(minlength=5).tolist()) == [10, 10, 10, 11, 11]
    assert found[52:].tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert torch.equal(found, suite.folds(s, torch.arange(60)))
    assert not torch.equal(found, suite.folds(replace(s, seed=1), torch.arange(60)))


def test_a_fold_belongs_to_the_image_wherever_it_is_asked_for() -> None:
    s = settings(n=12)
    positions = torch.tensor([7, 3, 7, 20, 0])
    assert torch.equal(suite.folds(s, positions), suite.folds(s, torch.arange(21))[positions])
    assert len(suite.folds(s, positions[:0])) == 0


def test_the_names_of_stored_detectors() -> None:
    assert [suite.judge("OPTMARGIN", 3), suite.judge("all", 0, 2)] == ["OPTMARGIN-3", "all-0-2"]


def probed(*index: int) -> tuple[Profile, Tensor]:
    """Profiles of the images `index`, told apart by their median."""
    return profile(*(0.01 * (i + 1) for i in index)), torch.tensor(index)


def sets_of(**images: tuple[int, ...]) -> tuple[dict[str, Profile], dict[str, Tensor]]:
    """Profiles and positions of the sets of examples `images`."""
    sets = {name: probed(*index) for name, index in images.items()}
    return {name: one for name, (one, _) in sets.items()}, {name: index for name, (_, index) in sets.items()}


def test_detectors_are_trained_on_pairs_of_two_versions() -> None:
    s = settings(n=12)
    lone = [i for i in range(12) if suite.folds(s, torch.tensor([i])) == suite.folds(s, torch.tensor([0]))]
    profiles, positions = sets_of(
        benign=tuple(range(9)),
        noise=(1, 2),
        errors=(10, 11),
        OPTBRITTLE=(4, 11, 2),  # image 11 has no benign version
        OPTMARGIN=tuple(lone),  # all of one fold
        PGD=(0, 1, 5),
    )
    found = suite.trials(s, profiles, positions)
    assert list(found) == ["OPTBRITTLE", "all"]
    benign, adversarial, at = found["OPTBRITTLE"]
    assert benign.distance[:, 0].tolist() == adversarial.distance[:, 0].tolist() == pytest.approx([0.05, 0.03])
    assert torch.equal(at, suite.folds(s, torch.tensor([4, 2])))
    benign, adversarial, at = found["all"]
    assert benign.distance[:, 0].tolist() == adversarial.distance[:, 0].tolist()
    assert adversarial.distance[:, 0].tolist() == pytest.approx([0.05, 0.03, 0.01, 0.02, 0.06])
    assert torch.equal(at, suite.folds(s, torch.tensor([4, 2, 0, 1, 5])))


def test_every_attack_has_a_detector_where_that_is_asked_for() -> None:
    profiles, positions = sets_of(benign=(0, 1, 2, 3), PGD=(0, 1, 2, 3), OPTMARGIN=(0, 1, 2, 3))
    assert list(suite.trials(settings(n=12), profiles, positions)) == ["OPTMARGIN", "all"]
    assert list(suite.trials(settings(n=12, detector_on="every"), profiles, positions)) == ["PGD", "OPTMARGIN", "all"]


def test_without_profiles_there_is_nothing_to_train_on() -> None:
    s = settings(n=12)
    assert suite.trials(s, {}, {}) == {}
    one, index = probed(0, 1)
    assert suite.trials(s, {"benign": one}, {"benign": index}) == {}
    assert suite.trials(s, {"PGD": one}, {"PGD": index}) == {}


# One image


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 1, 1)])
def test_distortions_have_the_length_that_was_asked_for(shape: tuple[int, int, int]) -> None:
    lengths = [0.01, 0.02]
    grey = torch.full(shape, 0.5)
    found = suite.distorted(grey, lengths, generator=runtime.seeded(0))
    assert list(found) == ["random noise", "random signs", "a constant", "a square"]
    for batch in found.values():
        rms = (batch - grey).square().flatten(1).mean(1).sqrt()
        torch.testing.assert_close(rms, torch.tensor(lengths), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close((found["random signs"] - grey).abs().amax((1, 2, 3)), torch.tensor(lengths))


def test_distortions_are_clipped_to_pixels() -> None:
    x = (2 * torch.rand(1, 8, 8, generator=runtime.seeded(1)) - 0.5).clamp(0, 1)  # many pixels at an end
    for kind, (near, far) in suite.distorted(x, [0.1, 0.6]).items():
        assert 0 <= float(far.min()) <= float(far.max()) <= 1
        assert float((near - x).square().mean().sqrt()) == pytest.approx(0.1, rel=1e-4), kind


@pytest.mark.parametrize("length", [0.0, -1.0, float("nan")])
def test_a_distortion_needs_a_length(length: float) -> None:
    with pytest.raises(ValueError, match="length"):
        suite.distorted(torch.zeros(1, 2, 2), [length])


# What follows looks into one smoke run of all notebooks.


def read(smoke: Run, name: str) -> pd.DataFrame:
    return pd.read_csv(smoke.path("tables", f"{name}.csv"))


@pytest.mark.slow
def test_stored_results_have_the_images_that_they_are_of(smoke: Run) -> None:
    s, results = smoke.settings, smoke.load_all("attacks")
    assert list(results) == [(model, name) for model in store.MODELS for name in suite.attacks(s, "normal")]
    for key, result in results.items():
        inputs = smoke.inputs("/".join(("attacks", *key)))
        few = smoke.test.first(suite.attacks(s, "normal")[key[1]][1])
        assert torch.equal(inputs["index"], torch.arange(len(result)))
        assert torch.equal(inputs["x"], few.x)
        assert torch.equal(inputs["y"], few.y)
    for key, profiles in smoke.load_all("boundary").items():
        x = smoke.inputs("/".join(("boundary", *key)))["x"]
        assert torch.equal(runtime.predict(smoke.model(key[0]), x).cpu(), profiles.center)


@pytest.mark.slow
def test_an_attack_of_the_run_is_what_the_kernel_gives(smoke: Run) -> None:
    stored = smoke.load("attacks/pgd/OPTMARGIN")
    one, n = suite.attacks(smoke.settings, "normal")["OPTMARGIN"]
    few, generator = smoke.test.first(n), smoke.generator("attack", "OPTMARGIN")
    again = one(smoke.model("pgd"), few.x, few.y, generator=generator)
    assert torch.equal(stored.success, again.success)
    torch.testing.assert_close(stored.rms, again.rms, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_the_published_rows_are_the_stored_attacks_against_the_vote(smoke: Run) -> None:
    s, stored = smoke.settings, read(smoke, "evasion")
    rows = stored[stored.curve == "published"].set_index("demand")
    assert [name.split(" ")[0] for name in rows.index] == [*suite.OPTMARGINS, "PGD", "OPTSTRONG"]
    result = smoke.load("attacks/normal/OPTMARGIN-authors")
    result = result.take(slice(min(s.cost_n, len(result))))
    generator = runtime.seeded(s.seed, "region")
    options = {"radius": s.radius, "samples": s.samples, "generator": generator}
    vote = region.classify(smoke.model("normal"), result.x_adv, **options)
    row, won = rows.loc["OPTMARGIN-authors (adam, authors)"], vote.label == smoke.test.y[: len(result)]
    assert row.n == int(result.correct.sum())
    assert row.mean_rms == pytest.approx(result.rms[result.success].mean().item())
    assert row.region_accuracy == pytest.approx(won[result.correct].float().mean().item())


@pytest.mark.slow
def test_the_curves_pass_through_the_stored_optmargin(smoke: Run) -> None:
    stored = read(smoke, "evasion")
    through = stored[stored.demand.isin(["20", "20.0"]) & (stored.curve == "number of views")].iloc[0]
    published = stored[stored.demand == "OPTMARGIN (ddn, equations)"].iloc[0]
    assert through.mean_rms == pytest.approx(published.mean_rms, rel=1e-3)
    assert through.region_accuracy == published.region_accuracy


@pytest.mark.slow
def test_more_views_or_confidence_never_cost_less(smoke: Run) -> None:
    stored = read(smoke, "evasion")
    succeeded = stored[stored.success_rate == 1]
    confidence = succeeded[succeeded.curve == "confidence"].mean_rms
    assert len(confidence) > 1
    assert confidence.is_monotonic_increasing
    views = succeeded[succeeded.curve == "number of views"].mean_rms
    assert len(views) > 1
    assert views.iloc[0] == views.min()  # the zero view, which all have; the others are drawn anew for each number


@pytest.mark.slow
def test_the_best_of_all_attacks_is_no_further_than_any(smoke: Run) -> None:
    table = read(smoke, "nearest")
    pd.testing.assert_frame_equal(table, tables.nearest(smoke.load_all("attacks"), pixel_max=1))
    measured = table[table.n > 0]
    assert "normal" in set(measured.model)
    for _, part in measured.groupby("model"):
        best = part[part.attack == "best of all"].iloc[0]
        assert best.success_rate == part.success_rate.max()
        assert best.mean_excess == pytest.approx(0, abs=1e-6)
        assert (part.mean_excess.dropna() >= 0).all()
        assert part[part.attack != "best of all"].nearest_share.sum() >= best.success_rate


@pytest.mark.slow
def test_only_rounding_to_pixels_undoes_successes(smoke: Run) -> None:
    table = read(smoke, "stability").set_index(["model", "examples"])
    results = smoke.load_all("attacks")
    assert list(table.index) == list(results)
    assert table.n.tolist() == [int(result.success.sum()) for result in results.values()]
    for column in ("flips_alone", "flips_batch", "flips_float64"):
        assert table[column].dropna().eq(0).all()
    assert table.flips_8bit.xs("OPTBRITTLE", level="examples").max() > 0
    assert table.flips_8bit.isna().equals(table.n == 0)


@pytest.mark.slow
def test_instances_are_versions_of_one_image(smoke: Run) -> None:
    profiles = suite.of_model(smoke.load_all("boundary"), "normal")
    positions = {name: smoke.inputs(f"boundary/normal/{name}")["index"] for name in profiles}
    rows = suite.typical(profiles, positions, ("benign", "OPTBRITTLE", "OPTMARGIN"), radius=smoke.settings.radius)
    assert list(rows) == ["benign", "OPTBRITTLE", "OPTMARGIN"]
    assert len({int(positions[name][row]) for name, row in rows.items()}) == 1
    bound = smoke.settings.radius / 3**0.5
    for name, row in rows.items():
        x = smoke.inputs(f"boundary/normal/{name}")["x"][row]
        assert 0.3 * bound < suite.clipped_rms(smoke.settings, x) < bound * 1.02


@pytest.mark.slow
class TestOtherRegions:
    """The table of other regions and votes."""

    EXAMPLES = ("benign", "OPTBRITTLE", "OPTMARGIN")

    def test_the_rows_are_the_variants(self, smoke: Run) -> None:
        table = read(smoke, "region_other")
        rates = [f"{examples}_accuracy{end}" for examples in self.EXAMPLES for end in ("", "_low", "_high")]
        assert list(table.columns) == ["shape", "combine", "radius", "n", *rates]
        variants = suite.region_variants(smoke.settings, 64).values()
        assert list(zip(table["shape"], table["combine"], strict=True)) == [
            (each["shape"], each["combine"]) for each in variants
        ]
        assert table["radius"].tolist() == pytest.approx([each["radius"] for each in variants])

    def test_the_first_row_counts_the_stored_votes(self, smoke: Run) -> None:
        votes, attacks = smoke.load_all("region"), smoke.load_all("attacks")
        counted = attacks["normal", "OPTBRITTLE"].correct
        for examples in self.EXAMPLES:
            label = votes["normal", examples].label[: len(counted)]
            right = (label == smoke.test.y[: len(counted)])[counted]
            rate = wilson(int(right.sum()), len(right))
            cells = ["n", *(f"{examples}_accuracy{end}" for end in ("", "_low", "_high"))]
            row = read(smoke, "region_other").iloc[0][cells]
            assert row.tolist() == pytest.approx([rate.n, rate.value, rate.low, rate.high])

    def test_every_row_is_what_classify_says(self, smoke: Run) -> None:
        s, model, result = smoke.settings, smoke.model("normal"), smoke.load("attacks/normal/OPTMARGIN")
        y = smoke.test.y[: len(result)]
        for row in read(smoke, "region_other").itertuples():
            vote = region.classify(
                model,
                result.x_adv,
                radius=row.radius,  # digits: pixel_max is 1
                shape=row.shape,
                combine=row.combine,
                samples=s.samples,
                generator=runtime.seeded(s.seed, "region"),
            )
            assert row.n == int(result.correct.sum())
            right = (vote.label == y)[result.correct].double().mean()
            assert right.item() == pytest.approx(row.OPTMARGIN_accuracy)


@pytest.mark.slow
def test_the_stored_geometry_is_what_the_kernels_say(smoke: Run) -> None:
    s, profiles, found = smoke.settings, smoke.load_all("boundary"), smoke.load_all("geometry")
    wanted = [key for key in profiles if key[1] in ("benign", "OPTBRITTLE", "OPTMARGIN")]
    assert list(found) == wanted
    assert len(wanted) == 6
    key = ("normal", "OPTMARGIN")
    x, profiled, model = smoke.inputs("boundary/normal/OPTMARGIN")["x"], profiles[key], smoke.model("normal")
    n, rays = min(len(x), s.geometry_n), s.geometry_rays
    d, one = suite.directions(s, tuple(x.shape[1:])), found[key]
    assert one.triple.shape == (n, s.triple_pairs)
    assert torch.equal(one.reached, profiled.reached[:n, :rays])
    again = boundary.reentry(model, x, d, s.magnitudes, profiled)
    assert torch.equal(one.returned, again.returned[:n, :rays])
    assert torch.equal(one.angle.isfinite(), one.reached)
    normals = boundary.normals(model, x, d, profiled, rays=one.reached.nonzero())
    torch.testing.assert_close(one.angle[one.reached], normals.angle)
    planes = {"pairs": s.triple_pairs, "reach": s.magnitudes[-1], "generator": runtime.seeded(s.seed, "planes")}
    assert torch.equal(one.triple, boundary.triple_points(model, x[:n], d[: len(d) // 2], **planes))


@pytest.mark.slow
def test_every_profile_is_audited(smoke: Run) -> None:
    audit = read(smoke, "audit")
    assert [tuple(row) for row in audit[["model", "examples"]].to_numpy()] == list(smoke.load_all("boundary"))
    assert (audit["rays"] == smoke.settings.audit_rays).all()
    assert audit["differing"].between(audit["low"], audit["high"]).all()
    assert audit["differing"].mean() < 0.1  # a stride rarely hides a class


@pytest.mark.slow
def test_the_stored_detectors_are_of_the_attacks_that_succeeded(smoke: Run) -> None:
    profiles, s = smoke.load_all("boundary"), smoke.settings
    found = smoke.load_all("detector")
    assert found
    for which in store.MODELS:
        own = suite.of_model(profiles, which)
        positions = {name: smoke.inputs(f"boundary/{which}/{name}")["index"] for name in own}
        named = [
            suite.judge(name, fold) for name in suite.trials(s, own, positions) for fold in range(s.detector_folds)
        ]
        assert list(suite.of_model(found, which)) == named
    assert all(isinstance(judge, detector.Detector) and judge.sees_purity for judge in found.values())
    assert list(smoke.load_all("detector_no_purity")) == list(found)
    assert not any(judge.sees_purity for judge in smoke.load_all("detector_no_purity").values())
