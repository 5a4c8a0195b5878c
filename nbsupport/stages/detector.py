"""Stage 06: detectors of boundary information, trained on each attack and tested on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from nbsupport import detector, runtime, tables
from nbsupport.boundary import Profile
from nbsupport.detector import Detector
from nbsupport.presets import Settings
from nbsupport.stages.attacks import recipes
from nbsupport.stages.boundary import load_profiles
from nbsupport.stages.inputs import MODELS, evaluation_data
from nbsupport.store import MissingInput, Run

STAGE = "06_detector"
ALL = "all"


@dataclass(frozen=True, eq=False)
class Trial:
    """A detector of one model, trained on one attack (or all), with the profiles that it has not seen.

    `adversarial` holds, for every attack, the profiles of the test part; both versions of an image are in one part.
    """

    model: str
    trained_on: str
    detector: Detector
    benign: Profile
    adversarial: dict[str, Profile]


def detect(run: Run) -> dict[tuple[str, str], Trial]:
    """Train a detector on each attack and on all, for both models, and store detector/<model>/<trained_on>.

    Attacks with fewer than two successes in either part (in the training part: on images whose benign version was
    probed as well) are left out, so there may be no detector at all.
    """
    settings, found = run.settings, {}
    num_classes = evaluation_data(run, limit=1).num_classes
    profiles = load_profiles(run)
    for model in MODELS:
        parts = _parts(settings, {name: entry for (of, name), entry in profiles.items() if of == model})
        trained_on = [name for name in parts if name != "benign" and _enough(parts, name)]
        for name in [*trained_on, *([ALL] if trained_on else [])]:
            benign, adversarial = _pairs(parts, trained_on if name == ALL else [name])
            fitted = _fit(run, model, name, benign, adversarial, num_classes)
            unseen = {attack: parts[attack][1][1] for attack in trained_on}
            found[model, name] = Trial(model, name, fitted, parts["benign"][1][1], unseen)
    return found


def load_detectors(run: Run) -> dict[tuple[str, str], Detector]:
    """Return the detectors that `detect` stored, by (model, trained_on); an attack of too few successes has none.

    Raises MissingInput where the stage has not run to its end.
    """
    if run.state(STAGE).name == "missing":
        raise MissingInput(
            f"{run.path('detector')} is not complete; the notebook {STAGE} makes it: run\n  {run.command}"
        )
    names = [(model, name) for model in MODELS for name in (*recipes(run.settings), ALL)]
    return {
        key: Detector.from_tensors(run.load(_path(*key), made_by=STAGE))
        for key in names
        if run.path(_path(*key)).exists()
    }


def detector_table(trials: Mapping[tuple[str, str], Trial]) -> tuple[pd.DataFrame, list[tables.DetectorRow]]:
    """Return detector.csv and its rows: the rates of every detector on every attack."""
    rows = [
        tables.DetectorRow(trial.model, trial.trained_on, tested_on, trial.detector.rates(trial.benign, adversarial))
        for trial in trials.values()
        for tested_on, adversarial in _tests(trial).items()
    ]
    return tables.detector(rows), rows


def own_scores(trials: Mapping[tuple[str, str], Trial], model: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the scores of unseen benign and adversarial images by what the detector was trained and is tested on."""
    return {
        trial.trained_on: (
            trial.detector.score(trial.benign),
            trial.detector.score(_tests(trial)[trial.trained_on]),
        )
        for trial in trials.values()
        if trial.model == model
    }


def _tests(trial: Trial) -> dict[str, Profile]:
    return {**trial.adversarial, ALL: Profile.cat(list(trial.adversarial.values()))}


def training_part(settings: Settings) -> Tensor:
    """Return which of the attacked images, by position in the test set, detectors may be trained on: (n,) bool."""
    order = torch.randperm(settings.n, generator=runtime.seeded(settings.seed, "detector split"))
    train = torch.zeros(settings.n, dtype=torch.bool)
    train[order[: round(settings.detector_train_share * settings.n)]] = True
    return train


Indexed = tuple[Tensor, Profile]  # positions in the test set (N,), and the profiles there


def _parts(settings: Settings, profiles: Mapping[str, Indexed]) -> dict[str, tuple[Indexed, Indexed]]:
    """Split every set of examples into a training and a test part by the position of the image."""
    train = training_part(settings)

    def part(entry: Indexed, mask: Tensor) -> Indexed:
        return entry[0][mask], entry[1].take(mask)

    return {name: (part(entry, train[entry[0]]), part(entry, ~train[entry[0]])) for name, entry in profiles.items()}


def _enough(parts: Mapping[str, tuple[Indexed, Indexed]], name: str) -> bool:
    """Return whether the attack `name` has two pairs to learn from and two images to be tested on."""
    if "benign" not in parts:
        return False
    (seen, _), (unseen, _) = parts[name]
    return int(torch.isin(seen, parts["benign"][0][0]).sum()) >= 2 and len(unseen) >= 2


def _pairs(parts: Mapping[str, tuple[Indexed, Indexed]], attacks: Sequence[str]) -> tuple[Profile, Profile]:
    """Return the training profiles of `attacks` and, row by row, the benign profiles of the same images."""
    (benign_index, benign), _ = parts["benign"]
    row = torch.full((int(benign_index.max()) + 1,), -1)
    row[benign_index] = torch.arange(len(benign_index))
    originals, adversarial = [], []
    for name in attacks:
        (index, profile), _ = parts[name]
        known = torch.isin(index, benign_index)
        originals.append(benign.take(row[index[known]]))
        adversarial.append(profile.take(known))
    return Profile.cat(originals), Profile.cat(adversarial)


def _fit(run: Run, model: str, name: str, benign: Profile, adversarial: Profile, num_classes: int) -> Detector:
    """Train one detector and store it."""
    settings = run.settings
    fitted = detector.fit(
        benign,
        adversarial,
        num_classes=num_classes,
        steps=settings.detector_steps,
        pairs=settings.detector_pairs,
        shift=settings.detector_shift,
        scale=settings.detector_scale,
        generator=runtime.seeded(settings.seed, "detector", model, name),
        progress=lambda done, total: run.report(STAGE, f"detector of {name}, {model}", done, total, "steps"),
    )
    run.save(_path(model, name), fitted.tensors())
    return fitted


def _path(model: str, name: str) -> str:
    return f"detector/{model}/{name}.safetensors"
