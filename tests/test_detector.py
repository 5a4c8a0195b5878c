"""The detector against a slow reference, on synthetic profiles it can and cannot tell apart, and its rules."""

import dataclasses
import inspect
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.metrics import roc_auc_score

from nbsupport import boundary, detector, intervals
from nbsupport.boundary import Profile

CLASSES = 10


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the network is tiny: more threads only wait for each other
    yield
    torch.set_num_threads(threads)


def seed(number):
    return torch.Generator().manual_seed(number)


def profiles(count, *, rays=40, reach=2.0, concentration=1.0, number=0):
    """Return profiles of distances uniform up to `reach`, of which those up to .99 are reached.

    The adjacent class is 3 for the share `concentration` of the rays and any other one for the rest.
    """
    generator = seed(number)
    distance = (reach * torch.rand(count, rays, generator=generator)).clamp(min=0.01)
    reached = distance < 0.99
    adjacent = torch.randint(1, CLASSES, (count, rays), generator=generator)
    adjacent[torch.rand(count, rays, generator=generator) < concentration] = 3
    return Profile(
        center=torch.zeros(count, dtype=torch.int64),
        distance=distance.masked_fill(~reached, torch.inf),
        adjacent=adjacent.masked_fill(~reached, -1),
        reached=reached,
    )


def fit(benign=None, adversarial=None, **options):
    benign = profiles(50, number=1) if benign is None else benign
    adversarial = profiles(50, reach=1.0, number=2) if adversarial is None else adversarial
    options = {"num_classes": CLASSES, "steps": 3, "generator": seed(0), **options}
    return detector.fit(benign, adversarial, **options)


def reference_logits(network, distances, purities):
    """Return the logits of one image as the method describes them: loops over positions, no dropout."""
    weights = {name: value.double().numpy() for name, value in network.state_dict().items()}

    def convolve(signal, name):  # (channels, length)
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        starts = range(0, signal.shape[1] - 8 + 1, 4)
        out = [[bias[o] + (kernel[o] * signal[:, s : s + 8]).sum() for s in starts] for o in range(len(bias))]
        return np.maximum(np.array(out), 0)

    h = convolve(convolve(distances[None], "conv1"), "conv2")
    h = np.concatenate((h.flatten(), purities))
    h = np.maximum(weights["linear1.weight"] @ h + weights["linear1.bias"], 0)
    return weights["linear2.weight"] @ h + weights["linear2.bias"]


@pytest.mark.parametrize(("unreached", "shift", "scale"), [(1.0, 0.0, 1.0), (1.0, 16 / 255, 0.5), (0.7, 0.1, 3.0)])
@pytest.mark.parametrize("rays", [36, 43, 128])
def test_scores_are_those_of_a_slow_reference(rays, unreached, shift, scale):
    settings = {"unreached": unreached, "shift": shift, "scale": scale}
    trained = fit(profiles(20, rays=rays), profiles(20, rays=rays, reach=1.0), **settings)
    tested = profiles(7, rays=rays, concentration=0.5, number=5)
    purities = boundary.purity(tested, num_classes=CLASSES, top=3).numpy()
    distances = tested.distance.double().numpy()
    distances = (np.sort(np.where(np.isinf(distances), unreached, distances), axis=1) - shift) / scale
    expected = []
    for i in range(7):
        z = np.exp(reference_logits(trained.network, distances[i], purities[i]))
        expected.append(z[1] / z.sum())
    score = trained.score(tested)
    assert score.dtype == torch.float64
    assert score.numpy() == pytest.approx(np.array(expected), abs=1e-6)


@pytest.mark.parametrize(("rays", "lengths"), [(1568, (391, 96)), (1000, (249, 61)), (128, (31, 6)), (36, (8, 1))])
def test_the_architecture_is_that_of_the_method(rays, lengths):
    network = detector.initialised(rays, seed(0))
    shapes = []

    def noise(h):
        shapes.append(tuple(h.shape))
        return h

    weights = {name: parameter[None] for name, parameter in network.named_parameters()}
    assert detector.stacked_logits(weights, torch.zeros(1, 2, rays), torch.zeros(1, 2, 3), noise).shape == (1, 2, 2)
    # Dropout after both convolutions and linear 32.
    assert shapes == [(1, 2, lengths[0], 8), (1, 2, lengths[1], 16), (1, 2, 32)]
    assert network.linear1.in_features == 16 * lengths[1] + 3


def test_initial_weights_are_torchs_usual_ones():
    network = detector.initialised(1568, seed(0))
    fan_in = {"conv1": 8, "conv2": 64, "linear1": 16 * 96 + 3, "linear2": 32}
    for name, parameter in network.named_parameters():
        bound = fan_in[name.split(".")[0]] ** -0.5
        assert parameter.abs().max() <= bound
        if parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_dropout_doubles_or_drops_at_even_odds():
    h = torch.arange(1.0, 100_000.0).view(1, 3, -1)  # not a multiple of sixty-four
    dropped = detector.dropout(h, [seed(0)])
    kept = dropped != 0
    assert dropped[kept].equal(2 * h[kept])
    assert abs(int(kept.sum()) - h.numel() / 2) < 4 * math.sqrt(h.numel() / 4)
    agree = kept.flatten()[1:] == kept.flatten()[:-1]  # neighbours are independent
    assert abs(int(agree.sum()) - h.numel() / 2) < 4 * math.sqrt(h.numel() / 4)


def test_dropout_passes_gradients_to_what_it_kept():
    h = torch.ones(1, 1000, requires_grad=True)
    detector.dropout(h, [seed(0)]).sum().backward()
    assert h.grad.equal(detector.dropout(torch.ones(1, 1000), [seed(0)]))


def test_dropout_of_each_part_has_its_own_generator():
    together = detector.dropout(torch.ones(2, 1000), [seed(0), seed(1)])
    for part, number in zip(together, (0, 1), strict=True):
        assert part.equal(detector.dropout(torch.ones(1, 1000), [seed(number)])[0])
    assert not together[0].equal(together[1])


@pytest.mark.parametrize(("count", "steps", "rows"), [(5, 7, 5), (5, 7, 3), (1, 4, 3), (40, 2, 3)])
def test_orders_visit_everything_before_anything_again(count, steps, rows):
    order = detector.orders(count, steps, rows, seed(0))
    assert order.shape == (steps, rows)
    for visit in order.flatten().split(count):
        assert len(set(visit.tolist())) == len(visit)
        assert set(visit.tolist()) <= set(range(count))


@pytest.mark.parametrize("what", ["distances", "purities"])
def test_it_learns_from_distances_and_from_purities(what):
    changes = {"reach": 1.2} if what == "distances" else {"concentration": 0.2}
    train = profiles(80, number=1), profiles(80, number=2, **changes)
    test = profiles(60, number=3), profiles(60, number=4, **changes)
    rates = fit(*train, steps=150, pairs=64, lr=3e-3).rates(*test)
    assert rates.auc.low > 0.9
    assert rates.false_positive_rate.high < 0.4
    assert rates.false_negative_rate.high < 0.4


def test_it_cannot_tell_equals_apart():
    trained = fit(profiles(60, number=1), profiles(60, number=2), steps=100)
    area = trained.rates(profiles(100, number=3), profiles(100, number=4), confidence=0.999).auc
    assert area.low <= 0.5 <= area.high


def test_the_order_of_the_rays_does_not_matter():
    trained, tested = fit(), profiles(5, concentration=0.3, number=6)
    order = torch.randperm(40, generator=seed(1))
    shuffled = dataclasses.replace(
        tested, distance=tested.distance[:, order], adjacent=tested.adjacent[:, order], reached=tested.reached[:, order]
    )
    assert trained.score(shuffled).equal(trained.score(tested))


def test_a_score_does_not_depend_on_the_batch(monkeypatch):
    trained, tested = fit(), profiles(50, number=6)
    together = trained.score(tested)
    alone = torch.cat([trained.score(tested.take(torch.tensor([i]))) for i in range(50)])
    assert alone.numpy() == pytest.approx(together.numpy(), abs=1e-6)
    monkeypatch.setattr(detector, "_ROWS", 7)
    assert trained.score(tested).numpy() == pytest.approx(together.numpy(), abs=1e-6)


@pytest.mark.parametrize("counts", [(50, 50), (50, 23)])
def test_a_fit_does_not_depend_on_how_its_inputs_are_cut(counts, monkeypatch):
    sides = profiles(counts[0], number=1), profiles(counts[1], reach=1.2, number=2)
    whole = fit(*sides, steps=20)
    monkeypatch.setattr(detector, "_ROWS", 7)
    assert fit(*sides, steps=20).history.equal(whole.history)


def test_rates_count_errors():
    trained, benign, adversarial = fit(), profiles(31, number=7), profiles(23, reach=1.0, number=8)
    negative, positive = trained.score(benign).numpy(), trained.score(adversarial).numpy()
    threshold = float(np.median(positive))  # equals a score: a score at the threshold is adversarial
    rates = trained.rates(benign, adversarial, threshold=threshold, confidence=0.9)
    expected = intervals.wilson(sum(score >= threshold for score in negative), 31, confidence=0.9)
    assert rates.false_positive_rate == expected
    expected = intervals.wilson(sum(score < threshold for score in positive), 23, confidence=0.9)
    assert rates.false_negative_rate == expected
    assert expected.value == 11 / 23
    scores, labels = np.concatenate((negative, positive)), np.repeat([0, 1], [31, 23])
    assert rates.auc.value == pytest.approx(roc_auc_score(labels, scores))
    assert rates.auc.n == 54


def test_rates_without_profiles_are_not_measured():
    trained, none = fit(), profiles(3).take(torch.tensor([], dtype=torch.int64))
    assert trained.score(none).shape == (0,)
    rates = trained.rates(none, profiles(3))
    assert math.isnan(rates.false_positive_rate.value)
    assert math.isnan(rates.auc.low)
    assert rates.false_negative_rate.n == 3


def same(a, b):
    a, b = a.tensors(), b.tensors()
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def test_training_repeats_with_its_generator_and_leaves_the_global_numbers_alone():
    before = torch.get_rng_state()
    one, two, other = fit(), fit(), fit(generator=seed(1))
    assert torch.get_rng_state().equal(before)
    assert same(one, two)
    assert not same(one, other)
    torch.manual_seed(3)
    from_global = fit(generator=None)
    torch.manual_seed(3)
    assert same(from_global, fit(generator=None))


@pytest.mark.parametrize(("counts", "batches"), [((10, 10), 3), ((10, 4), 3), ((4, 9), 3), ((2, 2), 1)])
def test_epochs_are_visits_of_the_longer_side(counts, batches):
    trained = fit(profiles(counts[0]), profiles(counts[1]), epochs=5, steps=None, pairs=4)
    assert len(trained.history) == 5 * batches


def test_both_versions_of_an_image_share_a_batch(monkeypatch):
    # All distances of row i are (i + 1) / 100, so that the rows of a batch can be told apart.
    seen = []
    logits = detector.stacked_logits

    def watched(weights, distances, *others):
        seen.append(distances[0, :, 0].clone())
        return logits(weights, distances, *others)

    monkeypatch.setattr(detector, "stacked_logits", watched)

    def marked(count):
        marks = torch.arange(1, count + 1)[:, None].expand(count, 40).float() / 100
        return dataclasses.replace(profiles(count, reach=0.9), distance=marks)

    fit(marked(20), marked(20), steps=8, pairs=5)
    assert all(batch[:5].equal(batch[5:]) for batch in seen)
    seen.clear()
    fit(marked(20), marked(7), steps=8, pairs=5)
    benign, adversarial = (100 * torch.stack(seen)).round().split(5, dim=1)
    assert set(benign.flatten()[:20].tolist()) == set(range(1, 21))  # the benign side: each once in four batches
    assert set(adversarial.flatten()[:7].tolist()) == set(range(1, 8))  # the shorter side starts again earlier


# Cross-validation


def alone(benign, adversarial, folds, fold, *, count, number, **options):
    """The detector of one fold by `fit` alone, with the seed that `cross_fit` promises it."""
    own = torch.randint(2**62, (count,), generator=seed(number))[fold]
    rest = folds != fold
    return fit(benign.take(rest), adversarial.take(rest), generator=seed(int(own)), **options)


@pytest.mark.parametrize("pairs", [8, 100])  # all folds with batches of one size, and of two sizes
def test_a_fold_is_trained_as_it_would_be_alone(pairs):
    benign, adversarial = profiles(23, number=1), profiles(23, reach=1.2, number=2)
    folds = torch.arange(23) % 3
    options = {"steps": 30, "pairs": pairs, "lr": 1e-2, "scale": 0.5}
    together = detector.cross_fit(
        benign, adversarial, folds, count=3, num_classes=CLASSES, generator=seed(5), **options
    )
    tested = profiles(10, number=3)
    for fold, found in enumerate(together):
        expected = alone(benign, adversarial, folds, fold, count=3, number=5, **options)
        assert found.history.numpy() == pytest.approx(expected.history.numpy(), abs=1e-5)
        assert found.score(tested).numpy() == pytest.approx(expected.score(tested).numpy(), abs=1e-5)
    assert len({round(float(one.score(tested)[0]), 6) for one in together}) == 3


def test_a_detector_does_not_depend_on_the_images_of_its_own_fold():
    benign, adversarial, folds = profiles(20, number=1), profiles(20, reach=1.2, number=2), torch.arange(20) % 2
    other = dataclasses.replace(benign, distance=benign.distance.clone())
    other.distance[folds == 1] *= 0.5
    options = {"count": 2, "num_classes": CLASSES, "steps": 10}
    one, two = (detector.cross_fit(b, adversarial, folds, generator=seed(0), **options) for b in (benign, other))
    assert same(one[1], two[1])
    assert not same(one[0], two[0])


def test_progress_counts_the_steps_of_all_folds():
    calls, pairs = [], (profiles(10), profiles(10, reach=1.0))
    options = {"count": 3, "num_classes": CLASSES, "steps": 4, "pairs": 100}  # batches of 6 pairs and of 7
    detector.cross_fit(*pairs, torch.arange(10) % 3, progress=lambda *told: calls.append(told), **options)
    assert calls == [(step, 8) for step in range(1, 9)]


@pytest.mark.parametrize(
    ("sizes", "folds", "count", "message"),
    [
        ((4, 3), [0, 0, 1, 1], 2, "expected pairs, each with its fold, got 4 benign, 3 adversarial, 4 folds"),
        ((3, 3), [0, 1], 2, "expected pairs, each with its fold, got 3 benign, 3 adversarial, 2 folds"),
        ((3, 3), [0, 1, 2], 2, "expected folds from 0 to 1, got 0 to 2"),
        ((3, 3), [1, 1, 1], 2, "expected pairs in two folds or more, got all in one; give the attack more images"),
        ((3, 3), [0, 0, 0], 1, "expected count as a whole number of at least 2, got 1"),
        ((0, 0), [], 2, "at least one benign profile, got none"),
    ],
)
def test_what_cannot_be_cross_validated_is_refused(sizes, folds, count, message):
    with pytest.raises(ValueError, match=message):
        detector.cross_fit(*map(profiles, sizes), torch.tensor(folds), count=count, num_classes=CLASSES)


def test_without_purity_a_detector_sees_distances_alone():
    sides = profiles(60, number=1), profiles(60, concentration=0.2, number=2)
    seeing, blind = (fit(*sides, steps=60, lr=1e-2, sees_purity=sees) for sees in (True, False))
    pure, mixed = profiles(40, number=3), profiles(40, concentration=0.2, number=3)  # the distances are the same
    assert blind.score(pure).equal(blind.score(mixed))
    assert (seeing.score(mixed) > seeing.score(pure)).all()


# The threshold


def slow_threshold(scores, rate):
    """The smallest float above a score such that a further one reaches it in at most the share `rate` of its ranks."""
    for score in sorted(scores):
        # A further score falls into each of the n + 1 places between the others with the same probability.
        if sum(other > score for other in scores) + 1 <= rate * (len(scores) + 1) + 1e-12:
            return np.nextafter(score, np.inf)
    return math.nan


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("n", [1, 9, 10, 18, 19, 20, 39, 57, 98, 199])
def test_the_threshold_is_that_of_a_slow_count(n, rate):
    scores = np.random.default_rng(n).permutation(n) / n
    assert detector.calibrate(scores, false_positive_rate=rate) == pytest.approx(
        slow_threshold(scores, rate), nan_ok=True
    )


@pytest.mark.parametrize(("n", "measured"), [(0, False), (18, False), (19, True)])
def test_five_per_cent_need_nineteen_scores(n, measured):
    assert math.isfinite(detector.calibrate(np.arange(n), false_positive_rate=0.05)) is measured


def test_a_further_score_is_flagged_at_no_more_than_the_rate():
    # n uniform scores: the further one is flagged with a probability of at most 5 %, here within 4 standard errors.
    generator, trials, flagged = np.random.default_rng(0), 4000, 0
    for _ in range(trials):
        *scores, further = generator.random(40)
        flagged += further >= detector.calibrate(scores, false_positive_rate=0.05)
    assert abs(flagged / trials - 0.05) < 4 * math.sqrt(0.05 * 0.95 / trials)  # 40 * .05 is whole: exactly 5 %


def test_equal_scores_are_not_flagged():
    threshold = detector.calibrate([0.3] * 30 + [1.0] * 30, false_positive_rate=0.05)
    assert threshold > 1.0
    assert np.nextafter(threshold, 0) == 1.0
    assert detector.calibrate([-1.0] * 19, false_positive_rate=0.5) > -1.0


@pytest.mark.parametrize(
    ("scores", "rate", "message"),
    [
        ([0.1], 0.0, "expected false_positive_rate above 0"),
        ([0.1], 1.0, "expected false_positive_rate above 0 and at most 1, got 1.0"),
        ([math.nan, 0.1], 0.5, "expected benign scores without NaN; leave out what was not scored"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(scores, rate, message):
    with pytest.raises(ValueError, match=message):
        detector.calibrate(scores, false_positive_rate=rate)


def test_history_and_progress():
    calls = []
    trained = fit(steps=250, pairs=4, progress=lambda done, total: calls.append((done, total)))
    assert trained.history.shape == (250,)
    assert trained.history.isfinite().all()
    assert calls[-1] == (250, 250)
    assert len(calls) <= 130
    calls.clear()
    fit(steps=3, progress=lambda done, total: calls.append(done))
    assert calls == [1, 2, 3]


def test_without_a_length_it_trains_as_long_as_on_mnist():
    def stop(done, total):
        assert total == 2000
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(steps=None, progress=stop)
    assert inspect.signature(detector.fit).parameters["lr"].default == 1e-3


def test_few_rays_are_trained_by_one_thread_which_is_undone():
    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for rays in (40, 600):
            sides = profiles(4, rays=rays), profiles(4, rays=rays, reach=1.0)
            fit(*sides, steps=1, progress=lambda *told: seen.append(torch.get_num_threads()))
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]


def test_training_works_where_gradients_are_off():
    with torch.no_grad():
        trained = fit()
    assert same(trained, fit())
    assert not any(p.requires_grad for p in trained.network.parameters())


def test_logits_are_differentiable_in_both_inputs():
    trained = fit()
    distance = torch.rand(2, 40, generator=seed(0)).requires_grad_()
    purities = torch.rand(2, 3, generator=seed(1)).requires_grad_()
    trained.logits(distance, purities).sum().backward()
    assert distance.grad.abs().sum() > 0
    assert purities.grad.abs().sum() > 0


def test_a_file_gives_the_detector_back(tmp_path):
    trained = fit(shift=0.1, scale=0.5, unreached=0.9, sees_purity=False)
    safetensors.torch.save_file(trained.tensors(), tmp_path / "detector.safetensors")
    before = torch.get_rng_state()
    loaded = detector.Detector.from_tensors(safetensors.torch.load_file(tmp_path / "detector.safetensors"))
    assert torch.get_rng_state().equal(before)
    assert same(loaded, trained)
    for name in ("num_classes", "rays", "unreached", "shift", "scale", "sees_purity"):
        assert getattr(loaded, name) == getattr(trained, name)
        assert type(getattr(loaded, name)) is type(getattr(trained, name))
    assert loaded.score(profiles(5)).equal(trained.score(profiles(5)))
    assert not any(p.requires_grad for p in loaded.network.parameters())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda named: named.pop("scale"), "expected the tensors of a detector; 'scale'"),
        (lambda named: named.pop("network.conv1.bias"), "expected the tensors of a detector; 'network.conv1.bias'"),
        (lambda named: named.update(rays=torch.tensor(128)), "expected the tensors of a detector; .*size mismatch"),
    ],
)
def test_other_files_are_refused(damage, message):
    named = fit().tensors()
    damage(named)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        detector.Detector.from_tensors(named)


NAN = dataclasses.replace(profiles(3), distance=torch.full((3, 40), math.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benign": profiles(3).take(torch.tensor([], dtype=torch.int64))}, "at least one benign profile, got none"),
        ({"adversarial": profiles(0)}, "at least one adversarial profile, got none; give the attack more images"),
        ({"benign": profiles(3, rays=35)}, r"expected benign distances .* K at least 36, got \(3, 35\)"),
        ({"adversarial": profiles(3, rays=4)}, r"expected adversarial distances .* got \(3, 4\); probe more direct"),
        ({"adversarial": profiles(3, rays=41)}, "as many rays on both sides, got 40 benign and 41 adversarial"),
        ({"benign": NAN}, r"expected benign distances without NaN \(inf where a ray meets no boundary\)"),
        ({"adversarial": NAN}, "expected adversarial distances without NaN"),
        ({"epochs": 2, "steps": 3}, r"expected epochs or steps, got both \(2 and 3\); leave one out"),
        ({"epochs": 0, "steps": None}, "expected epochs as a whole number of at least 1, got 0"),
        ({"steps": 0}, "expected steps as a whole number of at least 1, got 0"),
        ({"pairs": 0}, "expected pairs as a whole number of at least 1, got 0"),
        ({"num_classes": 1}, "expected num_classes as a whole number of at least 2, got 1"),
        ({"num_classes": 3}, "expected adjacent classes below num_classes=3"),
        ({"unreached": math.inf}, "expected unreached at least 0, got inf"),
        ({"lr": 0.0}, "expected lr above 0, got 0.0"),
        ({"shift": math.nan}, "expected shift at least -inf, got nan"),
        ({"scale": 0.0}, "expected scale above 0, got 0.0"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit(**options)


@pytest.mark.parametrize(
    ("tested", "message"),
    [
        (profiles(3, rays=64), "expected profiles of 40 rays, as in training, got 64; probe along the same directions"),
        (profiles(3, rays=20), r"expected profile distances of shape \(N, K\) with K at least 36, got \(3, 20\)"),
        (NAN, "expected profile distances without NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused(tested, message):
    with pytest.raises(ValueError, match=message):
        fit().score(tested)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "expected threshold at least 0 and at most 1, got 1.5"),
        ({"confidence": 0.0}, "expected confidence above 0 and at most 1, got 0.0"),
    ],
)
def test_rates_refuse_what_is_no_probability(options, message):
    with pytest.raises(ValueError, match=message):
        fit().rates(profiles(3), profiles(3), **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_trains_the_same_detector_twice_and_like_the_cpu():
    sides = profiles(80, number=1), profiles(80, reach=1.2, number=2)
    moved = [Profile(*(getattr(side, field.name).cuda() for field in dataclasses.fields(side))) for side in sides]
    on_cpu, one, two = fit(*sides, steps=20), fit(*moved, steps=20), fit(*moved, steps=20)
    assert one.score(sides[0]).is_cuda
    assert same(one, two)
    assert one.history.numpy() == pytest.approx(on_cpu.history.numpy(), abs=1e-3)
    assert one.score(sides[0]).cpu().numpy() == pytest.approx(on_cpu.score(sides[0]).numpy(), abs=1e-2)
