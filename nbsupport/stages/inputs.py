"""What every stage starts from: the run's data, and its trained models."""

from __future__ import annotations

from torch import nn

from nbsupport import artifacts, data, models
from nbsupport.data import ImageSet
from nbsupport.runtime import rows_per_batch
from nbsupport.store import MissingInput, Run

MODELS = ("normal", "pgd")


def training_data(run: Run) -> ImageSet:
    """Return the run's training images, the validation part among them (its last `validation_n`)."""
    settings = run.settings
    return data.load(settings.train_data, train=True, root=settings.root, limit=settings.train_n)


def evaluation_data(run: Run, limit: int | None = None) -> ImageSet:
    """Return the run's test images, the first `limit` in stored order.

    Raises ValueError where they cannot be classified by a model of the training images.
    """
    settings = run.settings
    test = data.load(settings.test_data, train=False, root=settings.root, limit=limit)
    if settings.test_data != settings.train_data:
        train = data.load(settings.train_data, train=True, root=settings.root, limit=1)
        if (test.in_shape, test.classes) != (train.in_shape, train.classes):
            raise ValueError(
                f"expected test images like the training images, {train.in_shape} of {train.num_classes} classes "
                f"{train.classes}, got {test.in_shape} of {test.num_classes} classes {test.classes}; "
                "choose train_data and test_data that agree"
            )
    return test


def load_model(run: Run, name: str) -> nn.Module:
    """Return the trained model `name` ("normal" or "pgd") on the run's device, its batch size noted in run.json."""
    path = run.path("models", f"{name}.safetensors")
    if not path.exists():
        raise MissingInput(f"{path} is missing; the notebook 02_training makes it: run\n  {run.command}")
    artifacts.load_tensors(path)  # names the file where it is damaged
    return models.load(path).to(run.device).eval()


def images_per_shard(run: Run, model: nn.Module, in_shape: tuple[int, ...], *, share: int) -> int:
    """Return how many images are stored at once: a batch of the model divided by `share`, at least 4.

    It depends on the kind of device and the model alone, and is noted in run.json.
    """
    rows = rows_per_batch(model, in_shape, run.device)
    images = max(4, rows // share)
    run.record(batch_sizes={"rows": rows, f"shard_of_{share}th": images})
    return images
