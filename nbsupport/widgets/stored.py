"""Everything that a run has stored of its attacked images: which fulfil a condition, and all about a single one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from nbsupport import checks, tables
from nbsupport.boundary import purity
from nbsupport.plots import Version
from nbsupport.presets import Settings
from nbsupport.region import Vote
from nbsupport.store import STAGES, MissingInput, Run
from nbsupport.suite import BENIGN, Keys

THRESHOLD = 0.5  # a detector calls an image adversarial where its score is at least this
# What may be absent: the folder of its results, the stage and the table of numbers for each image.
_OPTIONAL = {
    "votes": ("region", "04_region_classification", "images_votes"),
    "profiles": ("boundary", "05_boundary_analysis", "images_boundary"),
    "detectors": ("detector", "06_detector", "images"),
}


class Filter(NamedTuple):
    """A condition in words, and the rows of a table of images that fulfil it, in the order to show."""

    text: str
    rows: Callable[[pd.DataFrame], pd.DataFrame]


# As in the tables, images that the model misclassifies without an attack count neither as failed nor as voted wrongly;
# only probed successes have a score and can be missed by the detector of their attack.
FILTERS = {
    "all": Filter("all images", lambda frame: frame),
    "succeeded": Filter("attack succeeded", lambda frame: frame[frame.success]),
    "failed": Filter("attack failed", lambda frame: frame[frame.correct & ~frame.success]),
    "vote-wrong": Filter("vote wrong", lambda frame: frame[frame.correct & (frame.vote != frame.y)]),
    "missed": Filter("missed by the detector", lambda frame: frame[frame.success & (frame.detector_score < THRESHOLD)]),
    "largest": Filter(
        "succeeded, largest distortion first",
        lambda frame: frame[frame.success].sort_values("rms", ascending=False, kind="stable"),
    ),
}


class Single(NamedTuple):
    """One attacked image: its row in images.csv, and what is known of it before and after the attack."""

    row: pd.Series[Any]
    original: Version
    adversarial: Version


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

    def __init__(self, run: Run) -> None:
        self.run, self.settings, self.network = run, run.settings, functools.cache(run.model)
        self.absent: dict[str, str] = {}
        self.results: dict[str, dict[Keys, Any]] = {}
        try:
            self.results["attacks"] = run.load_all("attacks")
            frames = [run.read_table("images_attacks", "03_attacks")]
            for kind, (folder, stage, table) in _OPTIONAL.items():
                self.results[folder] = {}
                try:
                    found, frame = run.load_all(folder), run.read_table(table, stage)
                except MissingInput as error:
                    self.absent[kind] = str(error)
                else:
                    self.results[folder] = found
                    scores = [*tables.KEY, "detector_part", "detector_score"]
                    frames.append(frame[scores] if kind == "detectors" else frame)
            images = tables.images(*frames)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"expected results of this version of nbsupport in {run.dir}, got others: {error}; make them anew in "
                f"another folder:\n  {run.command}"
            ) from error
        self.images = {(str(key[0]), str(key[1])): part for key, part in images.groupby(tables.KEY[:2], sort=False)}
        self.outdated = [
            f"Out of date: the results of {stage} ({'; '.join(state.faults)}); run that notebook again."
            for stage in STAGES[2:]
            if (state := run.state(stage)).name == "outdated"
        ]
        self.classes, self.pixel_max = run.test.classes, run.test.pixel_max
        self.look: dict[str, Any] = {"classes": self.classes, "radius": self.settings.radius}
        self.look["pixel_max"] = self.pixel_max
        shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        self.bands = {
            model: profile.distance.double().sort(1).values.quantile(shares, 0, interpolation="higher")
            for (model, name), profile in self.results["boundary"].items()
            if name == BENIGN
        }

    def names(self) -> list[str]:
        """Return the names of the attacks."""
        return list(dict.fromkeys(name for _, name in self.results["attacks"]))

    def select(self, model: str, attack: str, condition: str, y: int | None = None) -> pd.DataFrame:
        """Return the rows of images[model, attack] that fulfil `condition`, one of FILTERS; in the order to show.

        `y`: only images of this true class.
        """
        checks.choice(condition, FILTERS, name="condition")
        if y is not None:
            checks.count(y, name="y", low=0)
        frame = FILTERS[condition].rows(self.images[model, attack])
        return frame if y is None else frame[frame.y == y]

    def row(self, model: str, examples: str, index: int) -> pd.Series[Any]:
        """Return the row of images[model, examples] about the image at `index` in the test set."""
        frame = self.images[model, examples]
        return frame[frame["index"] == index].iloc[0]

    def given(self, model: str, attack: str, index: int) -> tuple[Settings, nn.Module, Tensor, Tensor]:
        """Return the settings, the model, the test image (C, H, W) that was attacked, and its adversarial version."""
        return self.settings, self.network(model), *self._pair(model, attack, index)

    def _pair(self, model: str, attack: str, index: int) -> tuple[Tensor, Tensor]:
        inputs = self.run.inputs(f"attacks/{model}/{attack}")
        place = int((inputs["index"] == index).nonzero()[0])
        return inputs["x"][place], self.results["attacks"][model, attack].x_adv[place]

    def single(self, model: str, attack: str, index: int) -> Single:
        """Return all about the image at `index` in the test set, attacked by `attack`."""
        (x, x_adv), row = self._pair(model, attack, index), self.row(model, attack, index)
        original, adversarial = (self._known(model, name, index) for name in (BENIGN, attack))
        judge, before = self.results["detector"].get((model, attack)), original.get("profile")
        if judge is not None and before is not None:  # the table has the benign images' scores by another detector
            original["score"] = float(judge.score(before)[0])
        if pd.notna(row.detector_score):
            adversarial["score"] = float(row.detector_score)
        return Single(row, Version(x, **original), Version(x_adv, **adversarial))

    def _known(self, model: str, examples: str, index: int) -> dict[str, Any]:
        """Return what is known of one image of a set of examples, but for its score: attributes of `Version`."""
        known: dict[str, Any] = {}
        if (profile := self._one("boundary", model, examples, index)) is not None:
            shares = purity(profile, num_classes=len(self.classes))[0]
            known |= {"label": int(profile.center[0]), "profile": profile, "purity": shares}
        if (vote := self._one("region", model, examples, index)) is not None:
            known |= {"label": int(self.row(model, examples, index).point), **counted(vote)}
        return known

    def _one(self, folder: str, model: str, examples: str, index: int) -> Any:
        """Return what a folder holds of one image, as a result of one row; None where it holds nothing."""
        if (model, examples) not in self.results[folder]:
            return None
        rows = (self.run.inputs(f"{folder}/{model}/{examples}")["index"] == index).nonzero()[:, 0]
        return self.results[folder][model, examples].take(rows) if len(rows) else None


def counted(vote: Vote) -> dict[str, Any]:
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
