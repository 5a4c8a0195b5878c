"""The loop over epochs, and the accuracy it is judged by."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from nbsupport import checks
from nbsupport.data.image_set import ImageSet
from nbsupport.runtime import device_of, frozen, laid_out, rows_per_batch
from nbsupport.train.adversary import AUGMENTATIONS, Adversary, augmented
from nbsupport.train.checkpoint import Training

Progress = Callable[[int, int], None]
COLUMNS = ("epoch", "loss", "benign_accuracy", "pgd_accuracy", "seconds")
_EXAMINED = 1000  # training images that stand in for a validation part
_WARM_UP = 0.2  # share of all steps in which the learning rate rises


def fit(
    model: nn.Module,
    train_set: ImageSet,
    *,
    epochs: int,
    adversary: Adversary | Sequence[Adversary | None] | None = None,
    validation: ImageSet | None = None,
    generator: torch.Generator | None = None,
    evaluation_adversary: Adversary | None = None,
    batch_size: int = 64,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    augment: str = "none",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Train `model` in place, return it to its best epoch, and return the history.

    SGD with Nesterov momentum .9; the learning rate rises linearly and falls along a cosine. The best epoch is that
    of the highest validation accuracy, under the adversary where there is one: so catastrophic overfitting of
    single-step training is seen in the history and is not what is kept.

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits. Its modes and the device it is on stay as they are.
    train_set, validation : ImageSet
        Images to learn from, and to choose the epoch by (None: the first 1000 training images).
    epochs : int
        Passes over the training images.
    adversary : callable, or one for each epoch, optional
        `adversary(model, x, y)` returns the images to train on instead of `x` (N, C, H, W) [M]_; None in a sequence
        is an epoch without. A sequence expresses a schedule, such as single-step epochs followed by PGD epochs.
    generator : torch.Generator, optional
        A CPU generator for the order of the images, the augmentation, and the seed of each epoch's dropout; None:
        torch's global one. An adversary that draws from it too is resumed with it.
    evaluation_adversary : callable, optional
        What `pgd_accuracy` is measured under; None: the last adversary of the schedule.
    batch_size, lr, weight_decay, label_smoothing
        As usual.
    augment : {"none", "crop", "crop-flip"}
        Random crops of images padded by an eighth of their height, and horizontal flips.
    checkpoint : Path, optional
        Written after every epoch. Where it exists, training resumes there, with the same result as if it had not
        been interrupted; a damaged one is named and training starts anew; a finished one returns at once.
    progress : callable, optional
        Called with the batches done and the batches in all.

    Returns
    -------
    DataFrame
        One row an epoch: epoch, loss (mean over the epoch), benign_accuracy, pgd_accuracy (NaN without an
        adversary), seconds.

    Raises
    ------
    ValueError
        For settings out of range, a schedule of the wrong length, labels that the model has no logit for, a model
        with nothing to train, a checkpoint of other settings, or a loss that is not finite.

    References
    ----------
    .. [M] Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
    """
    checks.count(epochs, name="epochs")
    checks.count(batch_size, name="batch_size")
    checks.number(lr, name="lr", open_low=True)
    checks.number(weight_decay, name="weight_decay")
    checks.number(label_smoothing, name="label_smoothing", high=1.0)
    checks.choice(augment, AUGMENTATIONS, name="augment")
    schedule = list(adversary) if isinstance(adversary, Sequence) else [adversary] * epochs
    if len(schedule) != epochs:
        raise ValueError(f"expected one adversary for each of {epochs} epochs, got {len(schedule)}")
    robust = any(schedule)
    examiner = evaluation_adversary or next((one for one in reversed(schedule) if one is not None), None)
    device = device_of(model, train_set.x)
    train_set = train_set.to(device)
    judged = train_set.first(_EXAMINED) if validation is None else validation.to(device)
    _check_classes(model, train_set, judged)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise ValueError("expected a model with weights to train, got none that requires a gradient")

    optimiser = torch.optim.SGD(weights, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    settings = {
        "epochs": epochs,
        "images": len(train_set),
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "augment": augment,
        "adversarial_epochs": sum(attack is not None for attack in schedule),
    }
    training = Training(model, optimiser, generator, settings)
    if checkpoint is not None:
        training.resume(checkpoint)
    batches = math.ceil(len(train_set) / batch_size)
    modes = [(module, module.training) for module in model.modules()]
    try:
        for epoch in range(len(training.rows), epochs):
            began = time.perf_counter()
            with _own_stream(device, generator):
                model.train()
                total = torch.zeros((), device=device)
                order = torch.randperm(len(train_set), generator=generator)
                for batch, index in enumerate(order.tensor_split(batches)):
                    step = epoch * batches + batch
                    optimiser.param_groups[0]["lr"] = lr * _rate((step + 0.5) / (epochs * batches))
                    x, y = train_set.x[index.to(device)], train_set.y[index.to(device)]
                    if augment != "none":
                        x = augmented(x, generator, flip=augment == "crop-flip")
                    attack = schedule[epoch]
                    if attack is not None:
                        x = attack(model, x, y)
                    loss = F.cross_entropy(model(laid_out(model, x)), y, label_smoothing=label_smoothing)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    total += loss.detach() * len(y)
                    if progress is not None:
                        progress(step + 1, epochs * batches)
                mean_loss = float(total) / len(train_set)
                if not math.isfinite(mean_loss):
                    raise ValueError(f"expected a finite loss, got {mean_loss} in epoch {epoch}; lower lr (now {lr:g})")
                benign = accuracy(model, judged)
                under_attack = math.nan if examiner is None else accuracy(model, judged, examiner)
            row = dict(zip(COLUMNS, (epoch, mean_loss, benign, under_attack, time.perf_counter() - began), strict=True))
            training.keep(row, score=under_attack if robust else benign)
            if checkpoint is not None:
                training.save(checkpoint)
        model.load_state_dict(training.best)
    finally:
        for module, mode in modes:
            module.training = mode
    return pd.DataFrame(training.rows, columns=list(COLUMNS)).astype({"epoch": int})


def accuracy(model: nn.Module, images: ImageSet, adversary: Adversary | None = None) -> float:
    """Return the share of `images` that `model` classifies correctly, after `adversary` where one is given."""
    device = device_of(model, images.x)
    right = torch.zeros((), device=device)
    rows = rows_per_batch(model, images.in_shape, device)
    with frozen(model):
        for x, y in zip(images.x.split(rows), images.y.split(rows), strict=True):
            x, y = x.to(device), y.to(device)
            seen = x if adversary is None else adversary(model, x, y)
            with torch.no_grad():
                right += (model(laid_out(model, seen)).argmax(1) == y).sum()
    return float(right) / len(images)


@contextlib.contextmanager
def _own_stream(device: torch.device, generator: torch.Generator | None) -> Iterator[None]:
    """Run an epoch with torch's global stream, from which dropout draws, seeded by `generator` and restored after."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _check_classes(model: nn.Module, *parts: ImageSet) -> None:
    """Raise ValueError unless `model` gives logits and has one for every label of `parts`."""
    with frozen(model), torch.no_grad():
        x = parts[0].x[:32]
        z = model(laid_out(model, x))
    checks.logits(z, count=len(x))
    checks.not_probabilities(z)
    for part in parts:
        checks.labels(part.y, count=len(part), num_classes=z.shape[1])


def _rate(done: float) -> float:
    """Return the share of the learning rate when the share `done` of all steps is over."""
    return done / _WARM_UP if done < _WARM_UP else 0.5 + 0.5 * math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))
