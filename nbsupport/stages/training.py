"""Stage 02: the normal and the PGD-trained model."""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch

from nbsupport import models, runtime, train
from nbsupport.presets import Settings
from nbsupport.stages.inputs import MODELS, training_data
from nbsupport.store import Run
from nbsupport.train import Adversary

STAGE = "02_training"


def train_models(run: Run) -> pd.DataFrame:
    """Train both models, resuming after the last finished epoch, and store them in models/.

    Returns
    -------
    DataFrame
        The history of both: model, epoch, loss, benign_accuracy, pgd_accuracy, seconds.
    """
    settings = run.settings
    fitted, validation = (part.to(run.device) for part in training_data(run).split(settings.validation_n))
    histories = []
    for name in MODELS:
        generator = runtime.seeded(settings.seed, "training", name)
        with torch.random.fork_rng(devices=[]):  # the initial weights come from torch's global stream
            torch.manual_seed(settings.seed)
            model = models.build(settings.model, in_shape=fitted.in_shape, num_classes=fitted.num_classes)
        normal = name == "normal"
        pgd, schedule = _adversaries(settings, generator)
        history = train.fit(
            model.to(run.device),
            fitted,
            epochs=settings.epochs if normal else len(schedule),
            adversary=None if normal else schedule,
            evaluation_adversary=pgd,
            validation=validation,
            generator=generator,
            batch_size=settings.batch_size,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            label_smoothing=settings.label_smoothing if normal else 0.0,
            augment=settings.augment if normal else settings.pgd_augment,
            checkpoint=run.path("models", f".{name}.checkpoint"),
            progress=partial(_report, run, name),
        )
        models.save(model, run.path("models", f"{name}.safetensors"))
        histories.append(history.assign(model=name))
    history = pd.concat(histories, ignore_index=True)
    return history[["model", *train.COLUMNS]]


def _report(run: Run, name: str, done: int, total: int) -> None:
    if done % 20 == 0 or done == total:
        run.report(STAGE, f"{name} model", done, total, "batches")


def _adversaries(settings: Settings, generator: torch.Generator) -> tuple[Adversary, list[Adversary]]:
    """Return PGD as in training, and the adversary of every epoch: "fast" starts with single steps."""
    eps = settings.eps
    pgd = train.linf_adversary(
        eps=eps, steps=settings.train_steps, step_size=settings.train_step_size, generator=generator
    )
    single = train.linf_adversary(eps=eps, steps=1, step_size=1.25 * eps, generator=generator)
    fast_epochs = settings.fast_epochs if settings.pgd_schedule == "fast" else 0
    return pgd, [single] * fast_epochs + [pgd] * settings.pgd_epochs


def kept_epochs(history: pd.DataFrame) -> dict[str, int]:
    """Return the epoch of each model in `history` whose weights `train.fit` kept.

    It is the last of those with the best validation accuracy, under PGD for the PGD-trained model.
    """
    scores = {"normal": "benign_accuracy", "pgd": "pgd_accuracy"}
    parts = {model: history[history["model"] == model] for model in scores}
    best = {model: part[part[scores[model]] == part[scores[model]].max()] for model, part in parts.items()}
    return {model: int(part["epoch"].max()) for model, part in best.items() if len(part)}
