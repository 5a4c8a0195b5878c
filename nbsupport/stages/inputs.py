"""What every stage starts from: the run's data, its trained models, and results by model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from torch import nn

from nbsupport import data, models
from nbsupport.data import ImageSet
from nbsupport.runtime import rows_per_batch
from nbsupport.store import Run

MODELS = ("normal", "pgd")
T = TypeVar("T")


def by_model(found: Mapping[tuple[str, str], T]) -> dict[str, dict[str, T]]:
    """Return what is filed under (model, examples) as model -> examples, both models always among the keys."""
    return {model: {name: entry for (of, name), entry in found.items() if of == model} for model in MODELS}


def training_data(run: Run) -> ImageSet:
    """Return the run's training images, the validation part among them (its last `validation_n`).

    Raises ValueError where fewer than twice `validation_n` images are there.
    """
    settings = run.settings
    images = data.load(settings.train_data, train=True, root=settings.root, limit=settings.train_n)
    if len(images) < 2 * settings.validation_n:
        raise ValueError(
            f"expected at least {2 * settings.validation_n} training images, of which {settings.validation_n} are kept "
            f"aside for validation, got {len(images)}; lower that with -p validation_n N"
        )
    return images


def evaluation_data(run: Run, limit: int | None = None) -> ImageSet:
    """Return the run's test images, the first `limit` in stored order.

    Raises ValueError where they cannot be classified by a model of the training images.
    """
    settings = run.settings
    test = data.load(settings.test_data, train=False, root=settings.root, limit=limit)
    if settings.test_data != settings.train_data:
        train = data.load(settings.train_data, train=True, root=settings.root, limit=1)
        if (test.in_shape, test.num_classes) != (train.in_shape, train.num_classes):
            raise ValueError(
                f"expected test images like the training images, {train.in_shape} of {train.num_classes} classes, got "
                f"{test.in_shape} of {test.num_classes} classes; choose train_data and test_data that agree"
            )
        test = replace(test, classes=train.classes)  # an npz file knows no names
    return test


def load_model(run: Run, name: str) -> nn.Module:
    """Return the trained model `name` ("normal" or "pgd") on the run's device, its batch size noted in run.json."""
    path = run.require(f"models/{name}.safetensors", made_by="02_training")
    return models.load(path).to(run.device).eval()


def images_per_shard(run: Run, model: nn.Module, in_shape: tuple[int, ...], *, stage: str, share: int) -> int:
    """Return how many images are stored at once: a batch of the model divided by `share`, at least 4.

    It depends on the kind of device and the model alone, and is noted in run.json.
    """
    rows = rows_per_batch(model, in_shape, run.device)
    images = max(4, rows // share)
    run.record(batch_sizes={"rows": rows, f"images_per_shard_{stage}": images})
    return images
