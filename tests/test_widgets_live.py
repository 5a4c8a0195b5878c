"""Images between two others, and slices with views, against the stored results of the smoke run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nbsupport import boundary, files, presets, runtime, store, suite
from nbsupport.models.analytic import HalfSpace
from nbsupport.store import Run
from nbsupport.widgets.single import RAYS, THIRDS, Stored, ViewSlice, look_between, save_live, slice_with_views

pytestmark = pytest.mark.slow  # the smoke run


@pytest.fixture(scope="module")
def stored(smoke: Run) -> Stored:
    return Stored(smoke)


def chosen(stored: Stored, attack: str, condition: str) -> list[int]:
    """The positions of the images of the normal model that fulfil `condition`."""
    positions: list[int] = stored.select("normal", attack, condition)["index"].tolist()
    assert positions
    return positions


def sliced(stored: Stored, attack: str, index: int, **options: Any) -> ViewSlice:
    y = int(stored.row("normal", attack, index).y)
    return slice_with_views(*stored.given("normal", attack, index), y, attack, **options)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_repeat_what_is_stored(stored: Stored, share: float) -> None:
    index = chosen(stored, "OPTMARGIN", "largest")[0]
    shown = stored.single("normal", "OPTMARGIN", index)
    version = shown.adversarial if share else shown.original
    *_, live = look_between(*stored.given("normal", "OPTMARGIN", index), share)
    seen = live.version
    assert live.done == live.total
    assert torch.equal(seen.image, version.image)
    assert live.rms == pytest.approx(share * shown.row.rms, rel=1e-5)
    assert (seen.label, seen.vote, seen.share) == (version.label, version.vote, version.share)
    assert seen.counts is not None
    assert seen.profile is not None
    assert version.counts is not None
    assert version.profile is not None
    assert seen.counts.tolist() == version.counts.tolist()
    assert len(live.directions) == RAYS < version.profile.distance.shape[1]
    assert torch.equal(seen.profile.center, version.profile.center)
    for name in ("distance", "adjacent", "reached"):
        stored_rays = getattr(version.profile, name)[:, live.directions]
        assert torch.equal(getattr(seen.profile, name), stored_rays), name


def settings(**changes: object) -> presets.Settings:
    return presets.settings("digits", "smoke", {"directions": 8, "samples": 30, **changes})


def half_space() -> HalfSpace:
    return HalfSpace(torch.ones(16), 16 * 0.6)  # class 1 where the mean of the pixels is above 0.6


def test_a_step_across_a_half_space_flips_prediction_vote_and_rays_in_turn() -> None:
    x, x_adv = torch.full((1, 4, 4), 0.3), torch.full((1, 4, 4), 0.7)
    labels = []
    for share in (0.0, 0.5, 0.74, 0.76, 1.0, 1.5):
        states = list(look_between(settings(), half_space(), x, x_adv, share))
        assert [state.done for state in states] == list(range(1, states[-1].total + 1))
        assert states[0].version.vote is None
        assert states[1].version.profile is None
        first, last = states[0], states[-1]
        labels.append(last.version.label)
        assert first.version.label == last.version.label == int((x + share * (x_adv - x)).mean() > 0.6)
        assert last.rms == pytest.approx(0.4 * share, rel=1e-5)
        profiles = [state.version.profile for state in states]
        growing = [0 if profile is None else profile.distance.shape[1] for profile in profiles]
        assert growing == [0, 0, 8, 16]  # 8 directions and their negations
        assert [len(state.directions) for state in states] == growing
    assert labels == [0, 0, 0, 1, 1, 1]


def test_few_rays_are_spread_over_the_directions() -> None:
    model, x, s = HalfSpace(torch.ones(64), 64 * 0.6), torch.full((1, 8, 8), 0.3), settings(directions=32)
    *_, live = look_between(s, model, x, x + 0.2, 1.0)
    assert len(live.directions) == RAYS
    assert live.directions[[0, -1]].tolist() == [0, 63]  # of 32 directions and their negations
    assert set(live.directions.diff().tolist()) == {2, 3}
    every = boundary.probe(model, (x + 0.2)[None], suite.directions(s, (1, 8, 8)), s.magnitudes)
    assert live.version.profile is not None
    assert torch.equal(every.distance[:, live.directions], live.version.profile.distance)


def test_only_complete_looks_are_stored_and_read_back(tmp_path: Path) -> None:
    run = store.open_run(tmp_path / "run", dataset="digits", preset="smoke", overrides={"directions": 8})
    x = torch.full((1, 4, 4), 0.3)
    first, *_, last = look_between(run.settings, half_space(), x, x + 0.3, 0.25)
    with pytest.raises(ValueError, match=r"expected a complete look, got 1 of \d parts; let it finish"):
        save_live(run, "normal", "FGSM", 3, first)
    path = save_live(run, "normal", "FGSM", 3, last)
    assert path == run.path("live", "normal", "FGSM-3-0.2500.safetensors")
    tensors = files.load_with_metadata(path)[0]
    assert torch.equal(tensors["image"], last.version.image)
    assert last.version.profile is not None
    assert torch.equal(tensors["distance"], last.version.profile.distance)
    assert int(tensors["index"]) == 3
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "no temporary file is left"


@pytest.mark.parametrize("attack", ["OPTMARGIN", "OPTMARGIN-adam"])
def test_the_views_are_those_that_the_attack_fooled(stored: Stored, attack: str) -> None:
    for index in chosen(stored, attack, "succeeded")[:3]:
        seen = sliced(stored, attack, index, third="random")
        _, network, _, x_adv = stored.given("normal", attack, index)
        assert len(seen.labels) == stored.settings.views
        assert (seen.labels != int(stored.row("normal", attack, index).y)).all()
        assert int(seen.labels[-1]) == int(runtime.predict(network, x_adv[None])[0])


@pytest.mark.parametrize("third", THIRDS)
def test_views_are_projected_onto_the_plane(stored: Stored, third: str) -> None:
    index = chosen(stored, "OPTMARGIN", "largest")[0]
    seen = sliced(stored, "OPTMARGIN", index, third=third)
    place = seen.slice.points["OPTMARGIN"].double()
    assert float(place[0]) == pytest.approx(stored.row("normal", "OPTMARGIN", index).rms, rel=1e-4)
    torch.testing.assert_close(seen.views[-1], place)  # the zero view
    lengths = (seen.views - place).square().sum(1).sqrt()
    assert (lengths <= stored.settings.view_eps * 1.001).all(), "a projection is no longer than the view"
    if third == "view":  # the plane holds the part of this view that is not along the attack's change
        assert float(lengths.max()) == pytest.approx(stored.settings.view_eps, rel=1e-4)


def test_other_attacks_are_looked_at_through_the_views_of_optmargin(stored: Stored) -> None:
    index = chosen(stored, "OPTBRITTLE", "succeeded")[0]
    seen = sliced(stored, "OPTBRITTLE", index)
    wrong = seen.labels != int(stored.row("normal", "OPTBRITTLE", index).y)
    assert bool(wrong[-1])
    assert not bool(wrong.all()), "an image just across the boundary does not fool the views"


def test_the_zero_view_alone_spans_no_plane(stored: Stored) -> None:
    given = stored.given("normal", "FGSM", 1)
    alone = presets.settings("digits", "smoke", {"views": 1}), *given[1:], 0, "FGSM"
    seen = slice_with_views(*alone, third="view")
    assert seen.views.shape == (1, 2)
