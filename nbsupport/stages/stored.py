"""Everything that a run has stored of its attacked images: which fulfil a condition, and all about a single one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from nbsupport import checks
from nbsupport.boundary import Profile, purity
from nbsupport.detector import Detector
from nbsupport.plots import Version
from nbsupport.stages.attacks import Examples, load_examples
from nbsupport.stages.boundary import load_profiles
from nbsupport.stages.detector import load_detectors, training_part
from nbsupport.stages.inputs import evaluation_data
from nbsupport.stages.region import Votes, load_votes
from nbsupport.store import MissingInput, Run

T = TypeVar("T")

BENIGN = "benign"
THRESHOLD = 0.5  # a detector calls an image adversarial where its score is at least this
FILTERS = {
    "all": "all images",
    "succeeded": "attack succeeded",
    "failed": "attack failed",
    "vote-wrong": "vote wrong",
    "missed": "missed by the detector",
    "largest": "succeeded, largest distortion first",
}


@dataclass(frozen=True, eq=False)
class Single:
    """One attacked image: its position `index` in the test set, its class, what the attack did, and both versions.

    `rms` is in [0, 1] units. `trained_on`: the image belongs to the part that detectors are trained on.
    """

    index: int
    y: int
    correct: bool
    success: bool
    rms: float
    trained_on: bool
    original: Version
    adversarial: Version


class Stored:
    """The stored results of the run `run`, read once.

    Attributes
    ----------
    examples, votes, profiles, detectors : dict
        By (model, examples), as `load_examples`, `load_votes`, `load_profiles` and `load_detectors` return them;
        all but the first are empty where their stage has not run.
    absent : dict
        Of the words "votes", "profiles" and "detectors", those not stored -> what is missing and what makes it.
    classes, pixel_max
        Of the test images.
    run, settings
        The run and its parameters.

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
        self.absent: dict[str, str] = {}
        self.run, self.settings = run, run.settings
        try:
            self.examples: Mapping[tuple[str, str], Examples] = load_examples(run)
            self.votes: Mapping[tuple[str, str], Votes] = self._optional("votes", load_votes, run)
            self.profiles: Mapping[tuple[str, str], tuple[Tensor, Profile]] = self._optional(
                "profiles", load_profiles, run
            )
            self.detectors: Mapping[tuple[str, str], Detector] = self._optional("detectors", load_detectors, run)
        except KeyError as error:
            raise ValueError(
                f"expected results of this version of nbsupport in {run.dir}, got a file without {error}; make them "
                f"anew in another folder:\n  {run.command}"
            ) from error
        test = evaluation_data(run, limit=1)
        self.classes, self.pixel_max = test.classes, test.pixel_max
        self._trained_on = training_part(run.settings)
        self._scores: dict[tuple[str, str, str], Tensor] = {}
        self._bands: dict[str, Tensor] = {}

    def _optional(
        self, kind: str, load: Callable[[Run], dict[tuple[str, str], T]], run: Run
    ) -> Mapping[tuple[str, str], T]:
        try:
            return load(run)
        except MissingInput as error:
            self.absent[kind] = str(error)
            return {}

    def names(self) -> list[str]:
        """Return the names of the attacks."""
        return list(dict.fromkeys(name for _, name in self.examples))

    def scores(self, model: str, attack: str, examples: str) -> tuple[Tensor, Tensor]:
        """Return the positions (N,) of `examples` in the test set and their scores (N,) by the detector of `attack`.

        Both are empty where there is no such detector or no profile.
        """
        if (model, attack) not in self.detectors or (model, examples) not in self.profiles:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        index, profile = self.profiles[model, examples]
        key = (model, attack, examples)
        if key not in self._scores:
            self._scores[key] = self.detectors[model, attack].score(profile)
        return index, self._scores[key]

    def band(self, model: str) -> Tensor | None:
        """Return the 10, 50 and 90 % quantiles (3, K) over the benign images of `model` at each rank of their rays.

        Rays without a boundary count as infinitely long; each quantile is a distance that occurs. None where no benign
        image was probed.
        """
        if (model, BENIGN) not in self.profiles:
            return None
        if model not in self._bands:
            distance = self.profiles[model, BENIGN][1].distance.double().sort(1).values
            shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
            self._bands[model] = distance.quantile(shares, 0, interpolation="higher")
        return self._bands[model]

    def select(self, model: str, attack: str, condition: str, y: int | None = None) -> Tensor:
        """Return the rows of examples[model, attack] that fulfil `condition`, one of FILTERS; in the order to show.

        As in the tables, images that the model misclassifies without an attack count neither as failed nor as voted
        wrongly, and only probed successes can be missed by the detector. `y`: only images of this true class.
        """
        checks.choice(condition, FILTERS, name="condition")
        if y is not None:
            checks.count(y, name="y", low=0)
        rows = self._fulfilling(model, attack, condition)
        return rows if y is None else rows[self.examples[model, attack].y[rows] == y]

    def _fulfilling(self, model: str, attack: str, condition: str) -> Tensor:
        found = self.examples[model, attack]
        correct, success = found.result.correct, found.result.success
        if condition == "largest":
            rows = success.nonzero().squeeze(1)
            return rows[found.result.rms[rows].argsort(descending=True, stable=True)]
        if condition == "vote-wrong":
            votes = self.votes.get((model, attack))
            mask = torch.zeros_like(correct) if votes is None else votes.counted & (votes.vote.label != votes.y)
        elif condition == "missed":
            index, scores = self.scores(model, attack, attack)
            mask = torch.isin(found.index, index[scores < THRESHOLD])
        else:
            masks = {"all": torch.ones_like(correct), "succeeded": success, "failed": correct & ~success}
            mask = masks[condition]
        return mask.nonzero().squeeze(1)

    def single(self, model: str, attack: str, row: int) -> Single:
        """Return all about the image in `row` of examples[model, attack]."""
        found = self.examples[model, attack]
        index, result = int(found.index[row]), found.result
        return Single(
            index=index,
            y=int(found.y[row]),
            correct=bool(result.correct[row]),
            success=bool(result.success[row]),
            rms=float(result.rms[row]),
            trained_on=bool(self._trained_on[index]),
            original=self._version(model, attack, BENIGN, index, found.x[row]),
            adversarial=self._version(model, attack, attack, index, result.x_adv[row]),
        )

    def _version(self, model: str, attack: str, examples: str, index: int, image: Tensor) -> Version:
        votes, vote_row = self.votes.get((model, examples)), None
        if votes is not None:
            vote_row = _row(votes.index, index)
        probed, profile = self.profiles.get((model, examples)), None
        if probed is not None and (row := _row(probed[0], index)) is not None:
            profile = probed[1].take(torch.tensor([row]))
        scored, scores = self.scores(model, attack, examples)
        score_row = _row(scored, index)
        label = int(profile.center[0]) if profile is not None else None
        counts = vote = share = None
        if votes is not None and vote_row is not None:
            label, vote = int(votes.point[vote_row]), int(votes.vote.label[vote_row])
            counts = votes.vote.counts[vote_row]
            share = float(votes.vote.p_lower[vote_row]), float(votes.vote.p_upper[vote_row])
        return Version(
            image=image,
            label=label,
            counts=counts,
            vote=vote,
            share=share,
            profile=profile,
            purity=None if profile is None else purity(profile, num_classes=len(self.classes))[0],
            score=None if score_row is None else float(scores[score_row]),
        )


def _row(index: Tensor, position: int) -> int | None:
    """Return where `position` stands in `index` (N,), None where it does not."""
    places = (index == position).nonzero()
    return int(places[0]) if len(places) else None
