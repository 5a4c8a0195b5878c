"""Single attacked images: what a run has stored of them, and what the model says of them while one looks on."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from nbsupport import boundary, checks, files, plots, region, runtime, store, suite, tables
from nbsupport.presets import Settings

RAYS = 32  # of the run's directions at most, evenly chosen
_PLACES = 49  # along each side of a slice
THIRDS = {
    "view": "a view of OPTMARGIN, nearest to the true class",
    "gradient": "the gradient, steepest way out of the class",
    "random": "a random direction",
}  # what spans a slice beside the attack's change
# Of every kind of results, of which only the first must be there: their folder, stage, and table of numbers by image.
_KINDS = {
    "attacks": ("attacks", "03_attacks", "images_attacks"),
    "votes": ("region", "04_region_classification", "images_votes"),
    "profiles": ("boundary", "05_boundary_analysis", "images_boundary"),
    "detectors": ("detector", "06_detector", "images_detector"),
}
# Where results about the examples "mimic" are stored, of which notebook 7 makes all: by the folder of all others.
_MIMIC = {"attacks": "adaptive/{}/mimic", "region": "mimicked/{}/region", "boundary": "mimicked/{}/boundary"}
_BY_RMS: dict[str, Any] = {"by": "rms", "ascending": False, "kind": "stable"}
_CHUNK = 8  # rays between two looks at whether to go on

# Conditions in words, and the rows of a table of images that fulfil them, in the order to show. As in the tables,
# images that the model misclassifies without an attack count neither as failed nor as voted wrongly; only probed
# successes have a score and can be missed: it lies below the threshold that flags 5 % of the benign images.
FILTERS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "all": ("all images", lambda frame: frame),
    "succeeded": ("attack succeeded", lambda frame: frame[frame.success]),
    "failed": ("attack failed", lambda frame: frame[frame.correct & ~frame.success]),
    "vote-wrong": ("vote wrong", lambda frame: frame[frame.correct & (frame.vote != frame.y)]),
    "missed": (
        "missed by the detector",
        lambda frame: frame[frame.success & (frame.detector_score < frame.detector_threshold)],
    ),
    "largest": ("succeeded, largest distortion first", lambda frame: frame[frame.success].sort_values(**_BY_RMS)),
}


class Single(NamedTuple):
    """One attacked image: its row in images.csv, and what is known of it before and after the attack."""

    row: "pd.Series[Any]"
    original: plots.Version
    adversarial: plots.Version


class Stored:
    """The stored results of the run `run`, read once.

    Attributes
    ----------
    run, settings, classes, pixel_max
        The run and its parameters; the names of the classes and the unit of the test images.
    look : dict
        What the figures of its images are drawn with: `classes`, `radius` and `pixel_max`.
    results : dict
        "attacks", "region", "boundary" and "detector" -> by (model, examples), as `Run.load_all`; all but the first are
        empty where their stage has not run.
    names : list
        Of the attacks.
    images : dict
        By (model, examples), the rows of images.csv, as far as they are known; lengths are in units of `pixel_max`.
    absent : dict
        Of the words "votes", "profiles" and "detectors", those not stored -> what is missing and what makes it.
    outdated : list
        Of each stage whose results are out of date a sentence that says what has changed since.
    bands : dict
        By model, the 10, 50 and 90 % quantiles (3, K) over its benign images at each rank of their rays. Rays without a
        boundary count as infinitely long; each quantile is a distance that occurs.
    network : callable
        Returns the trained model of a name, read once.

    Raises
    ------
    MissingInput
        Where the attacks have not run, or the data set is not there.
    DamagedArtifact
        Where a file is truncated or altered.
    ValueError
        Where a file lacks an entry, as one made by another version may.
    """

    def __init__(self, run: store.Run) -> None:
        self.run, self.settings, self.network = run, run.settings, functools.cache(run.model)
        self.absent: dict[str, str] = {}
        self.results: dict[str, dict[suite.Keys, Any]] = {}
        frames: list[pd.DataFrame] = []
        try:
            for kind, (folder, stage, table) in _KINDS.items():
                try:
                    self.results[folder], frame = run.load_all(folder), run.read_table(table, stage)
                except store.MissingInput as error:
                    if kind == "attacks":
                        raise
                    self.absent[kind], self.results[folder] = str(error), {}
                else:
                    frames.append(frame)
            images = tables.images(*frames)
            with contextlib.suppress(store.MissingInput):  # notebook 7 has not run
                images = tables.stacked(images, self._mimics())
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"expected results of this version of nbsupport in {run.dir}, got others: {error}; make them anew in "
                f"another folder:\n  {run.command}"
            ) from error
        self.names = list(dict.fromkeys(name for _, name in self.results["attacks"]))
        self.images = {(str(key[0]), str(key[1])): part for key, part in images.groupby(tables.KEY[:2], sort=False)}
        self.outdated = [
            f"Out of date: the results of {stage} ({'; '.join(state.faults)}); run that notebook again."
            for stage in store.STAGES[2:]
            if (state := run.state(stage)).name == "outdated"
        ]
        self.classes, self.pixel_max = run.test.classes, run.test.pixel_max
        self.look: dict[str, Any] = {"classes": self.classes, "radius": self.settings.radius}
        self.look["pixel_max"] = self.pixel_max
        shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        self.bands = {
            model: profile.distance.double().sort(1).values.quantile(shares, 0, interpolation="higher")
            for (model, name), profile in self.results["boundary"].items()
            if name == suite.BENIGN
        }

    def select(self, model: str, attack: str, condition: str, y: int | None = None) -> pd.DataFrame:
        """Return the rows of images[model, attack] that fulfil `condition`, one of FILTERS; in the order to show.

        `y`: only images of this true class.
        """
        frame = FILTERS[condition][1](self.images[model, attack])
        return frame if y is None else frame[frame.y == y]

    def row(self, model: str, examples: str, index: int) -> "pd.Series[Any]":
        """Return the row of images[model, examples] about the image at `index` in the test set."""
        frame = self.images[model, examples]
        return frame[frame["index"] == index].iloc[0]

    def given(self, model: str, attack: str, index: int) -> tuple[Settings, nn.Module, Tensor, Tensor]:
        """Return the settings, the model, the test image (C, H, W) that was attacked, and its adversarial version."""
        return self.settings, self.network(model), *self._pair(model, attack, index)

    def _mimics(self) -> pd.DataFrame:
        """Add what is stored of the examples "mimic" to the results, and return their rows of images.csv."""
        known = {
            f"{folder}/{model}/{name}" for folder in ("adaptive", "mimicked") for model, name in self.run.stored(folder)
        }
        frame = self.run.read_table("images", "07_adaptive_attacks")
        for model in store.MODELS:
            for folder, path in _MIMIC.items():
                if path.format(model) in known:
                    self.results[folder][model, "mimic"] = self.run.load(path.format(model))
        return frame[frame.examples == "mimic"]

    def _inputs(self, folder: str, model: str, examples: str) -> dict[str, Tensor]:
        """Return what is stored beside a result."""
        path = _MIMIC[folder].format(model) if examples == "mimic" else f"{folder}/{model}/{examples}"
        return self.run.inputs(path)

    def _pair(self, model: str, attack: str, index: int) -> tuple[Tensor, Tensor]:
        inputs = self._inputs("attacks", model, attack)
        place = int((inputs["index"] == index).nonzero()[0])
        return inputs["x"][place], self.results["attacks"][model, attack].x_adv[place]

    def single(self, model: str, attack: str, index: int) -> Single:
        """Return all about the image at `index` in the test set, attacked by `attack`."""
        (x, x_adv), row = self._pair(model, attack, index), self.row(model, attack, index)
        original, adversarial = (self._known(model, name, index) for name in (suite.BENIGN, attack))
        if pd.notna(row.detector_score):
            adversarial["score"] = float(row.detector_score)
            if (before := original.get("profile")) is not None:  # the table may have its score by another detector
                names = [suite.judge(name, row.detector_part) for name in (attack, "all")]
                judges = [
                    self.results["detector"][model, name] for name in names if (model, name) in self.results["detector"]
                ]
                original["score"] = float(judges[0].score(before)[0])
        return Single(row, plots.Version(x, **original), plots.Version(x_adv, **adversarial))

    def _known(self, model: str, examples: str, index: int) -> dict[str, Any]:
        """Return what is known of one image of a set of examples, but for its score: attributes of `Version`."""
        known: dict[str, Any] = {}
        if (profile := self._one("boundary", model, examples, index)) is not None:
            shares = boundary.purity(profile, num_classes=len(self.classes))[0]
            known |= {"label": int(profile.center[0]), "profile": profile, "purity": shares}
        if (vote := self._one("region", model, examples, index)) is not None:
            known |= {"label": int(self.row(model, examples, index).point), **counted(vote)}
        return known

    def _one(self, folder: str, model: str, examples: str, index: int) -> Any:
        """Return what a folder holds of one image, as a result of one row; None where it holds nothing."""
        if (model, examples) not in self.results[folder]:
            return None
        rows = (self._inputs(folder, model, examples)["index"] == index).nonzero()[:, 0]
        return self.results[folder][model, examples].take(rows) if len(rows) else None


def counted(vote: region.Vote) -> dict[str, Any]:
    """Return a vote of one image as attributes of `Version`."""
    share = float(vote.p_lower[0]), float(vote.p_upper[0])
    return {"counts": vote.counts[0], "vote": int(vote.label[0]), "share": share}


def telling(frame: pd.DataFrame) -> int:
    """Return the index of the first image in `frame`, rows of one attack, that was probed and attacked with success.

    Where there is none, it is the first success, and else the first image.
    """
    success = frame.success.fillna(False).to_numpy(bool)
    place = (success * (1 + frame.reached_share.notna().to_numpy(int))).argmax()
    return int(frame["index"].iloc[place])


# While one looks on


class Live(NamedTuple):
    """What is known so far of one image between two others.

    Attributes
    ----------
    share : float
        How far it lies from the original (0) to the adversarial image (1).
    rms : float
        Its distance from the original, [0, 1] units.
    logits : Tensor (L,)
        The model's.
    directions : Tensor (R,) int64
        Which of the run's directions have been probed so far.
    version : Version
        The image clip(x + share * (x_adv - x)), its label, vote and rays as far as they are known.
    done, total : int
        Parts of the computation.
    """

    share: float
    rms: float
    logits: Tensor
    directions: Tensor
    version: plots.Version
    done: int
    total: int


def look_between(s: Settings, model: nn.Module, x: Tensor, x_adv: Tensor, share: float) -> Iterator[Live]:
    """Yield what is known of the image at `share` of the way from `x` to `x_adv`, after every part of the work.

    The first comes after a single forward pass, the second with the vote, the others with more and more rays. Vote and
    rays use the run's own random points and directions: at shares 0 and 1 they repeat what the run has stored.

    Parameters
    ----------
    s : Settings
        Of the run.
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x, x_adv : Tensor (C, H, W) float32
        In [0, 1].
    share : float
        0 is `x`, 1 is `x_adv`; may lie beyond.
    """
    image = x_adv if share == 1 else (x + share * (x_adv - x)).clamp(0, 1)  # exactly the adversarial image at its end
    logits = runtime.logits(model, image[None])[0].cpu()
    every = suite.directions(s, tuple(x.shape))
    chosen = torch.linspace(0, len(every) - 1, min(RAYS, len(every))).round().long()
    parts = chosen.split(_CHUNK)
    rms, version = float((image - x).square().mean().sqrt()), plots.Version(image, label=int(logits.argmax()))
    live = Live(share, rms, logits, chosen[:0], version, done=1, total=2 + len(parts))
    yield live
    generator = runtime.seeded(s.seed, "region")  # as notebook 4 draws them
    vote = region.classify(model, image[None], radius=s.radius, samples=s.samples, generator=generator)
    version = replace(version, **counted(vote.to("cpu")))
    yield live._replace(version=version, done=2)
    rays_of: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in parts:
        new = boundary.probe(model, image[None], every[part], s.magnitudes).to("cpu")
        rays_of.append((new.distance, new.adjacent, new.reached))
        profile = boundary.Profile(new.center, *(torch.cat(parts_of, 1) for parts_of in zip(*rays_of, strict=True)))
        version = replace(version, profile=profile)
        yield live._replace(directions=chosen[: profile.distance.shape[1]], version=version, done=2 + len(rays_of))


def save_live(run: store.Run, model: str, attack: str, index: int, live: Live) -> Path:
    """Store a complete `live` as live/<model>/<attack>-<index>-<share>.safetensors in the run folder; return its path.

    Raises ValueError where it is not complete.
    """
    seen = live.version
    if live.done < live.total or seen.counts is None or seen.profile is None:
        raise ValueError(f"expected a complete look, got {live.done} of {live.total} parts; let it finish")
    tensors = {"image": seen.image, "logits": live.logits, "directions": live.directions, "counts": seen.counts}
    tensors |= {"rms": torch.tensor(live.rms), "index": torch.tensor(index), **seen.profile.tensors()}
    path = run.path("live", model, f"{attack}-{index}-{live.share:.4f}.safetensors")
    files.save_tensors(path, tensors, share=repr(live.share))
    return path


class ViewSlice(NamedTuple):
    """A slice through one image and its adversarial version, with OPTMARGIN's views around the latter.

    Attributes
    ----------
    slice : Slice
        The classes in the plane; `points` holds "benign" and, where it differs, the attack's name.
    views : Tensor (V, 2) float64
        Where the views lie when they are projected onto the plane. Nearly all of a view points out of the plane.
    labels : Tensor (V,) int64
        The model's class at each view itself, clipped to [0, 1]; the last one is the adversarial image.
    """

    slice: boundary.Slice
    views: Tensor
    labels: Tensor


def slice_with_views(
    s: Settings, model: nn.Module, x: Tensor, x_adv: Tensor, y: int, name: str, *, third: str = "random"
) -> ViewSlice:
    """Return the plane through an image `x` and its adversarial version `x_adv` (C, H, W), with OPTMARGIN's views.

    Parameters
    ----------
    s : Settings
        Of the run.
    model : Module
        The model that was attacked; maps images in [0, 1] to logits (N, L).
    x, x_adv : Tensor (C, H, W) float32
        In [0, 1].
    y : int
        The true class.
    name : str
        Of the attack. The views are those that an OPTMARGIN attack of the run used; other attacks use none, and get
        OPTMARGIN's.
    third : {"random", "gradient", "view"}
        What spans the plane beside the attack's change: as in `boundary.plane`, or the view that comes nearest to the
        true class (by the margin of its logits).

    Raises
    ------
    ValueError
        As `boundary.plane`.
    """
    offsets = suite.view_offsets(s, name if name in suite.OPTMARGINS else suite.OPTMARGINS[0], tuple(x.shape))
    z = runtime.logits(model, (x_adv + offsets).clamp(0, 1)).cpu()  # (V, L)
    checks.logits(z, count=len(offsets))
    flat = offsets.flatten(1)
    way: str | Tensor = third
    if third == "view":
        margin = (z[:, y] - z.index_fill(1, torch.tensor([y]), -torch.inf).amax(1))[:-1]  # the last view is zero
        way = flat[margin.argmax()] if len(margin) else "random"
    seen = suite.plane(s, model, x, x_adv, name, third=way, size=_PLACES)
    around = list(seen.points.values())[-1].double()  # the adversarial image
    views = flat.double() @ torch.stack((seen.u, seen.v), 1).double() / x.numel()  # projected onto the plane
    return ViewSlice(seen, around + views, z.argmax(1))
