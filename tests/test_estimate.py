"""What a run will take: passes as the attacks count them, seconds from rates that are given, and no download."""

import math
from dataclasses import replace

import pytest
import torch

from nbsupport import presets, suite
from nbsupport.bench import estimate
from nbsupport.models import HalfSpace
from nbsupport.store import STAGES

SIZES = estimate.Sizes((1, 8, 8), 1297, 500, 30_000, 512)
WHATS = {what for counts in estimate.passes(presets.settings("digits"), SIZES).values() for what in counts}
NOTHING = dict.fromkeys(WHATS, 0.0)


def settings(**changes):
    return presets.settings("digits", "smoke", changes)


def seconds(s, sizes=SIZES, **rates):
    return {stage: each for stage, (each, _) in estimate.expected(s, NOTHING | rates, sizes).items()}


@pytest.mark.parametrize("name", ["FGSM", "PGD", "OPTBRITTLE", "OPTMARGIN"])
def test_attacks_that_take_all_their_steps_take_as_many_passes_as_they_count(name):
    attack, _ = suite.attacks(settings(ddn_steps=20, brittle_steps=30, pgd_restarts=1), "normal")[name]
    x = torch.full((2, 1, 8, 8), 0.6)
    found = attack(HalfSpace(torch.ones(64), 32.0), x, torch.ones(2, dtype=torch.int64))
    spent = float((found.forwards + found.backwards).double().mean())
    assert found.correct.all()
    assert estimate.search(attack) == pytest.approx(spent, rel=0.05, abs=11)


def test_training_takes_every_image_of_every_epoch():
    s = settings(epochs=3, fast_epochs=2, pgd_epochs=1, validation_n=97)
    least = seconds(s)["02_training"]
    assert seconds(s, training=0.5)["02_training"] - least == pytest.approx(0.5 * 6 * 1200)
    more = seconds(replace(s, pgd_epochs=2), training=0.5, inner=0.25)["02_training"]
    once = 0.5 * 1200 + 0.25 * 2 * s.train_steps * (1200 + 97)  # an epoch: the images, and the validation part attacked
    assert more - seconds(s, training=0.5, inner=0.25)["02_training"] == pytest.approx(once)


def test_weights_that_are_given_take_no_training(tmp_path):
    s = settings(weights=str(tmp_path), pgd_weights=str(tmp_path))
    assert seconds(s, training=1.0)["02_training"] == seconds(s)["02_training"]


@pytest.mark.parametrize(
    ("stage", "what", "changes"),
    [
        ("03_attacks", "OPTSTRONG", {"strong_n": 8}),
        ("03_attacks", "OPTMARGIN-adam", {"adam_n": 8}),
        ("06_detector", "boosting", {"detector_folds": 10}),
        ("07_adaptive_attacks", "EOT", {"adaptive_passes": 1200}),
        ("07_adaptive_attacks", "EOT", {"adaptive_n": 8}),
    ],
)
def test_twice_as_much_takes_twice_as_long(stage, what, changes):
    few, many = (seconds(s, **{what: 1.0})[stage] - seconds(s)[stage] for s in (settings(), settings(**changes)))
    assert many == pytest.approx(2 * few)
    assert few > 0


def test_a_demand_on_optmargin_is_searched_once_though_three_curves_run_through_it():
    names = [name for _, _, name, _ in suite.demands(settings(), (1, 8, 8))]
    assert len(names) > len(set(names))
    once = settings(cost_n=1, adaptive_n=1)
    per_image = (
        seconds(replace(once, cost_n=2), OPTMARGIN=1.0)["03_attacks"] - seconds(once, OPTMARGIN=1.0)["03_attacks"]
    )
    costs = {name: estimate.search(attack) for _, _, name, attack in suite.demands(once, (1, 8, 8))}
    assert per_image == pytest.approx(sum(costs.values()))


def test_memory_holds_the_training_images_and_the_activations_of_a_batch():
    s = settings()
    few, many = (
        {stage: held for stage, (_, held) in estimate.expected(s, NOTHING, sizes).items()}
        for sizes in (replace(SIZES, trained=1000), replace(SIZES, trained=60_000))
    )
    assert many["02_training"] - few["02_training"] >= 59_000 * 64 * 4  # in float32
    assert many["03_attacks"] == few["03_attacks"]
    wide = estimate.expected(s, NOTHING, replace(SIZES, kept=1_030_000))["03_attacks"][1]
    assert wide - estimate.expected(s, NOTHING, SIZES)["03_attacks"][1] >= 512 * 1_000_000


def test_everything_that_is_counted_has_a_rate_and_no_random_numbers_are_used_up():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    rates, sizes = estimate.measured(settings(n=5, boundary_n=5, samples=20, views=5))
    assert torch.equal(torch.get_rng_state(), before)
    assert set(rates) == WHATS
    assert all(0 < rate < math.inf for rate in rates.values())
    assert (sizes.in_shape, sizes.trained, sizes.tested) == ((1, 8, 8), 1297, 500)


def test_a_slow_machine_times_one_image_of_each_kernel(monkeypatch):
    monkeypatch.setattr(estimate, "_SECONDS", 1e-9)
    few = {"batch_size": 8, "samples": 20, "views": 2, "directions": 64, "detector_steps": 8}
    rates, _ = estimate.measured(settings(n=5, boundary_n=5, model=f"{__name__}:narrow", **few))
    assert set(rates) == WHATS


def narrow(*, in_shape, num_classes):
    """A network of batches of 8 images: fewer rays than one image has fill the pool."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(in_shape), num_classes))
    model.batch_rows = {"cpu": 8}
    return model


@pytest.mark.parametrize(("dataset", "shape"), [("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_data_that_are_not_at_hand_are_not_downloaded(tmp_path, dataset, shape):
    images = estimate.images_of(presets.settings(dataset, overrides={"root": str(tmp_path)}))
    assert images.in_shape == shape
    assert images.num_classes == 10
    assert not list(tmp_path.iterdir())


def test_the_table_has_the_stages_asked_for_and_their_sum(monkeypatch):
    monkeypatch.setattr(estimate, "measured", lambda s: (NOTHING | {"training": 60.0}, SIZES))
    _, *lines = estimate.as_text(settings(), STAGES[1:3]).splitlines()
    assert [line.split()[0] for line in lines] == [*STAGES[1:3], "all"]
    minutes = [float(line.split()[1]) for line in lines]
    assert minutes[0] >= (8 + 6 + 2) * 1097
    assert minutes[-1] == pytest.approx(sum(minutes[:-1]), abs=0.2)


def test_a_run_that_cannot_be_timed_says_why(monkeypatch):
    def fail(s):
        raise ValueError("a model of another image size")

    monkeypatch.setattr(estimate, "measured", fail)
    assert estimate.as_text(settings()) == "expected minutes: not known (a model of another image size)"
