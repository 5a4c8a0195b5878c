"""Images between two others, and slices with views, against the stored results of the smoke run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from nbsupport import presets, runtime, stages, store
from nbsupport.boundary import Profile
from nbsupport.models.analytic import HalfSpace
from nbsupport.stages import Stored
from nbsupport.store import Run

pytestmark = pytest.mark.slow  # the smoke run


@pytest.fixture(scope="module")
def stored(smoke: Run) -> Stored:
    return Stored(smoke)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_repeat_what_is_stored(stored: Stored, share: float) -> None:
    row = int(stored.select("normal", "OPTMARGIN", "largest")[0])
    found = stored.examples["normal", "OPTMARGIN"]
    shown = stored.single("normal", "OPTMARGIN", row)
    version = shown.adversarial if share else shown.original
    network = stages.load_model(stored.run, "normal")
    *_, live = stages.look_between(network, found.x[row], found.result.x_adv[row], share, stored.settings, rays=1000)
    assert live.complete
    assert torch.equal(live.image, version.image)
    assert live.rms == pytest.approx(share * shown.rms, rel=1e-5)
    assert live.label == version.label
    assert live.vote is not None
    assert live.profile is not None
    assert version.counts is not None
    assert version.profile is not None
    assert live.vote.counts[0].tolist() == version.counts.tolist()
    assert live.directions.tolist() == list(range(version.profile.distance.shape[1]))
    for field in fields(Profile):
        assert torch.equal(getattr(live.profile, field.name), getattr(version.profile, field.name)), field.name


def settings(**changes: object) -> presets.Settings:
    return presets.settings("digits", "smoke", {"directions": 8, "samples": 30, **changes})


def half_space() -> HalfSpace:
    return HalfSpace(torch.ones(16), 16 * 0.6)  # class 1 where the mean of the pixels is above 0.6


def test_a_step_across_a_half_space_flips_prediction_vote_and_rays_in_turn() -> None:
    x, x_adv = torch.full((1, 4, 4), 0.3), torch.full((1, 4, 4), 0.7)
    labels = []
    for share in (0.0, 0.5, 0.74, 0.76, 1.0, 1.5):
        states = list(stages.look_between(half_space(), x, x_adv, share, settings()))
        assert [state.done for state in states] == list(range(1, states[-1].total + 1))
        assert states[0].vote is None
        assert states[1].profile is None
        first, last = states[0], states[-1]
        labels.append(last.label)
        assert first.label == last.label == int((x + share * (x_adv - x)).mean() > 0.6)
        assert last.rms == pytest.approx(0.4 * share, rel=1e-5)
        assert last.profile is not None
        assert last.profile.distance.shape == (1, 16)  # 8 directions and their negations
        growing = [0 if state.profile is None else state.profile.distance.shape[1] for state in states]
        assert growing == [0, 0, 8, 16]
    assert labels == [0, 0, 0, 1, 1, 1]


def test_few_rays_are_spread_over_the_directions() -> None:
    x = torch.full((1, 4, 4), 0.3)
    *_, live = stages.look_between(half_space(), x, x + 0.1, 0.5, settings(), rays=3)
    assert live.directions.tolist() == [0, 8, 15]
    assert live.profile is not None
    every = stages.run_directions(settings(), (1, 4, 4))
    whole = stages.look_between(half_space(), x, x + 0.1, 0.5, settings(), rays=len(every))
    *_, whole_live = whole
    assert whole_live.profile is not None
    assert torch.equal(whole_live.profile.distance[:, live.directions], live.profile.distance)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": float("nan")}, "expected share"),
        ({"rays": 0}, "expected rays"),
        ({"x_adv": torch.full((1, 4, 4), 2.0)}, r"expected .* in \[0, 1\]"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, object], message: str) -> None:
    known: dict[str, object] = {"x": torch.zeros(1, 4, 4), "x_adv": torch.ones(1, 4, 4), "share": 0.5}
    with pytest.raises(ValueError, match=message):
        next(stages.look_between(half_space(), settings=settings(), **{**known, **changes}))  # type: ignore[arg-type]


def test_only_complete_looks_are_stored_and_read_back(tmp_path: Path) -> None:
    run = store.open_run(tmp_path / "run", dataset="digits", preset="smoke", overrides={"directions": 8})
    x = torch.full((1, 4, 4), 0.3)
    first, *_, last = stages.look_between(half_space(), x, x + 0.3, 0.25, run.settings)
    with pytest.raises(ValueError, match=r"expected a complete look, got 1 of \d parts; let it finish"):
        stages.save_live(run, "normal", "FGSM", 3, first)
    path = stages.save_live(run, "normal", "FGSM", 3, last)
    assert path == run.path("live", "normal", "FGSM-3-0.2500.safetensors")
    tensors = store.load_tensors(path)
    assert torch.equal(tensors["image"], last.image)
    assert last.profile is not None
    assert torch.equal(tensors["distance"], last.profile.distance)
    assert int(tensors["index"]) == 3
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "no temporary file is left"


@pytest.mark.parametrize("attack", ["OPTMARGIN", "OPTMARGIN-adam"])
def test_the_views_are_those_that_the_attack_fooled(stored: Stored, attack: str) -> None:
    network = stages.load_model(stored.run, "normal")
    found = stored.examples["normal", attack]
    rows = stored.select("normal", attack, "succeeded")
    assert len(rows)
    for row in rows.tolist()[:3]:
        seen = stages.slice_with_views(network, found, row, stored.settings, third="random", size=5)
        assert len(seen.labels) == stored.settings.views
        assert (seen.labels != found.y[row]).all()
        assert int(seen.labels[-1]) == int(runtime.predict(network, found.result.x_adv[row][None])[0])


@pytest.mark.parametrize("third", stages.THIRDS)
def test_views_are_projected_onto_the_plane(stored: Stored, third: str) -> None:
    network = stages.load_model(stored.run, "normal")
    found = stored.examples["normal", "OPTMARGIN"]
    row = int(stored.select("normal", "OPTMARGIN", "largest")[0])
    seen = stages.slice_with_views(network, found, row, stored.settings, third=third, size=9)
    place = seen.slice.points["OPTMARGIN"].double()
    assert float(place[0]) == pytest.approx(float(found.result.rms[row]), rel=1e-4)
    torch.testing.assert_close(seen.views[-1], place)  # the zero view
    lengths = (seen.views - place).square().sum(1).sqrt()
    assert (lengths <= stored.settings.view_eps * 1.001).all(), "a projection is no longer than the view"
    if third == "view":  # the plane holds the part of this view that is not along the attack's change
        assert float(lengths.max()) == pytest.approx(stored.settings.view_eps, rel=1e-4)


def test_other_attacks_are_looked_at_through_the_views_of_optmargin(stored: Stored) -> None:
    network = stages.load_model(stored.run, "normal")
    found = stored.examples["normal", "OPTBRITTLE"]
    row = int(stored.select("normal", "OPTBRITTLE", "succeeded")[0])
    seen = stages.slice_with_views(network, found, row, stored.settings, size=5)
    wrong = seen.labels != found.y[row]
    assert bool(wrong[-1])
    assert not bool(wrong.all()), "an image just across the boundary does not fool the views"


def test_the_zero_view_alone_spans_no_plane_and_an_unknown_direction_is_refused(stored: Stored) -> None:
    network, found = stages.load_model(stored.run, "normal"), stored.examples["normal", "FGSM"]
    alone = presets.settings("digits", "smoke", {"views": 1})
    seen = stages.slice_with_views(network, found, 1, alone, third="view", size=5)
    assert seen.views.shape == (1, 2)
    with pytest.raises(ValueError, match="third"):
        stages.slice_with_views(network, found, 1, alone, third="views")
