"""A 2-D slice through a test image: the classes on a grid spanned by an attack's change and a random direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nbsupport import boundary, runtime
from nbsupport.boundary import Slice
from nbsupport.stages.attacks import Examples
from nbsupport.stages.inputs import load_model
from nbsupport.store import Run


def slice_through(run: Run, found: Mapping[tuple[str, str], Examples], model: str, examples: str) -> Slice:
    """Return the plane through an image on which the attack `examples` succeeded, and its result.

    It is the image of the median distortion, a typical one; `points` holds "benign" and `examples`. Where the attack
    never succeeded, both directions are random and the first test image is in the middle.
    """
    attacked = found[model, examples]
    success = attacked.result.success.nonzero().squeeze(1)
    by_rms = success[attacked.result.rms[success].argsort()]
    row = int(by_rms[(len(success) - 1) // 2]) if len(success) else 0
    x = attacked.x[row]
    x_adv = attacked.result.x_adv[row] if len(success) else x
    length = float((x_adv - x).square().mean().sqrt())
    reach = max(run.settings.radius, length)  # every point of a hypercube has an RMS of at most its radius
    generator = runtime.seeded(run.settings.seed, "slice")
    seen = boundary.plane(load_model(run, model), x, x_adv, reach=reach, generator=generator)
    return replace(seen, points=dict(zip(("benign", examples), seen.points.values(), strict=False)))
