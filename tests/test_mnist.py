"""The whole method on real MNIST: a small training run, every attack, the vote and the probe on a few images."""

import pytest
import torch

from nbsupport import attacks, boundary, data, models, region, runtime, train

pytestmark = pytest.mark.slow
EPS = 0.3


@pytest.fixture(scope="module")
def trained(mnist_root):
    """A `mnist_cnn` trained on 4,000 images, and the first test images that it classifies correctly."""
    fitted = data.load("mnist", train=True, root=mnist_root, limit=4000)
    test = data.load("mnist", train=False, root=mnist_root, limit=200)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("mnist_cnn", in_shape=fitted.in_shape, num_classes=fitted.num_classes)
    history = train.fit(model, fitted, epochs=2, lr=0.05, validation=test, generator=runtime.seeded(0, "test"))
    correct = (runtime.predict(model, test.x) == test.y).nonzero().squeeze(1)[:4]
    return model, history, test.x[correct], test.y[correct]


def test_training_learns(trained):
    _, history, _, _ = trained
    assert history.benign_accuracy.max() > 0.9
    assert history.loss.is_monotonic_decreasing


@pytest.mark.parametrize(
    "attack",
    [
        lambda model, x, y, g: attacks.fgsm(model, x, y, eps=EPS),
        lambda model, x, y, g: attacks.pgd_linf(model, x, y, eps=EPS, steps=20, step_size=0.03, generator=g),
        lambda model, x, y, g: attacks.ddn_l2(model, x, y),
        lambda model, x, y, g: attacks.carlini_wagner_l2(model, x, y, steps=100),
        lambda model, x, y, g: attacks.carlini_wagner_l2(model, x, y, confidence=10.0, steps=100),
        lambda model, x, y, g: attacks.optmargin(model, x, y, eps=EPS, steps=60, generator=g),
        lambda model, x, y, g: attacks.optmargin(model, x, y, eps=EPS, solver="adam", views=5, steps=100, generator=g),
        lambda model, x, y, g: attacks.optmargin(
            model, x, y, eps=EPS, variant="authors", views=5, steps=50, generator=g
        ),
    ],
    ids=["fgsm", "pgd", "ddn", "brittle", "strong", "optmargin", "optmargin-adam", "optmargin-authors"],
)
def test_every_attack_flips_real_digits(trained, attack):
    model, _, x, y = trained
    result = attack(model, x, y, runtime.seeded(0, "views"))
    assert result.success.float().mean() >= 0.75
    assert torch.equal(runtime.predict(model, result.x_adv) != y, result.success)
    assert 0.01 < result.rms[result.success].median() < 0.3


def test_more_is_demanded_of_optmargin_than_of_optbrittle(trained):
    model, _, x, y = trained
    brittle = attacks.ddn_l2(model, x, y)
    margin = attacks.optmargin(model, x, y, eps=EPS, steps=60, generator=runtime.seeded(0, "views"))
    assert margin.rms.mean() > brittle.rms.mean()


def test_bracket_and_scan_agree_on_real_digits(trained):
    model, _, x, _ = trained
    directions = boundary.directions(784, 40, negate=True, generator=runtime.seeded(0, "directions"))
    grid = [0.01 * (i + 1) for i in range(49)]
    bracket, scan = (boundary.probe(model, x, directions, grid, search=search) for search in ("bracket", "scan"))
    same = (bracket.distance == scan.distance) & (bracket.adjacent == scan.adjacent)
    assert same.float().mean() >= 0.999
    assert 0 < scan.reached.float().mean() < 1


def test_the_vote_keeps_real_digits(trained):
    model, _, x, y = trained
    vote = region.classify(model, x, radius=EPS, generator=runtime.seeded(0, "vote"))
    assert torch.equal(vote.label, y)
    assert (vote.used < 100).all()
