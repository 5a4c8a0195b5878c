"""The geometry of stage 05 and the audit, in one smoke run of all notebooks."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from nbsupport import boundary, runtime, stages
from nbsupport.stages.boundary import probed
from nbsupport.store import Run

pytestmark = pytest.mark.slow


def test_the_images_of_a_profile_are_found_again(smoke: Run) -> None:
    profiles = stages.load_profiles(smoke)
    sets = list(probed(smoke, profiles))
    assert [(model, name) for model, name, _, _ in sets] == list(profiles)
    for model, _, x, profile in sets:
        assert torch.equal(runtime.predict(stages.load_model(smoke, model), x).cpu(), profile.center)


def test_what_was_measured_is_what_the_kernels_say(smoke: Run) -> None:
    settings, profiles = smoke.settings, stages.load_profiles(smoke)
    measured = stages.measure_geometry(smoke, profiles)  # reads what is stored
    wanted = [key for key in profiles if key[1] in ("benign", "OPTBRITTLE", "OPTMARGIN")]
    assert list(measured) == wanted
    assert len(wanted) == 6
    key = ("normal", "OPTMARGIN")
    x, profile = next((x, profile) for model, name, x, profile in probed(smoke, profiles) if (model, name) == key)
    n, rays = min(len(x), settings.geometry_n), settings.geometry_rays
    model = stages.load_model(smoke, "normal")
    d = stages.run_directions(settings, tuple(x.shape[1:]))
    found = measured[key]
    assert found.triple.shape == (n, settings.triple_pairs)
    assert torch.equal(found.reached, profile.reached[:n, :rays])
    again = boundary.reentry(model, x, d, settings.magnitudes, profile)
    assert torch.equal(found.returned, again.returned[:n, :rays])
    assert torch.equal(found.angle.isfinite(), found.reached)
    normals = boundary.normals(model, x, d, profile, rays=found.reached.nonzero())
    torch.testing.assert_close(found.angle[found.reached], normals.angle)
    generator = runtime.seeded(settings.seed, "planes")
    planes = {"pairs": settings.triple_pairs, "reach": settings.magnitudes[-1], "generator": generator}
    assert torch.equal(found.triple, boundary.triple_points(model, x[:n], d[: len(d) // 2], **planes))


def test_every_profile_is_audited(smoke: Run) -> None:
    audit = pd.read_csv(smoke.path("tables", "audit.csv"))
    audited = [tuple(row) for row in audit[["model", "examples"]].to_numpy()]
    assert sorted(audited) == sorted(stages.load_profiles(smoke))
    assert (audit["rays"] == smoke.settings.audit_rays).all()
    assert audit["differing"].between(audit["low"], audit["high"]).all()
    assert audit["differing"].mean() < 0.1  # a stride rarely hides a class
