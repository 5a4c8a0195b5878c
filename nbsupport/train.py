"""Training of a classifier, plain or adversarial, resumable after every epoch."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbsupport import artifacts, checks
from nbsupport.data import ImageSet
from nbsupport.runtime import channels_last, device_of, frozen, rows_per_batch

Adversary = Callable[[nn.Module, Tensor, Tensor], Tensor]
Progress = Callable[[int, int], None]
COLUMNS = ("epoch", "loss", "benign_accuracy", "pgd_accuracy", "seconds")
AUGMENTATIONS = ("none", "crop", "crop-flip")
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
        Images to learn from, and to choose the epoch by (None: the training images).
    epochs : int
        Passes over the training images.
    adversary : callable, or one for each epoch, optional
        `adversary(model, x, y)` returns the images to train on instead of `x` (N, C, H, W) [M]_; None in a sequence
        is an epoch without. A sequence expresses a schedule, such as single-step epochs followed by PGD epochs.
    generator : torch.Generator, optional
        A CPU generator for the order of the images and the augmentation; None: torch's global one.
    evaluation_adversary : callable, optional
        What `pgd_accuracy` is measured under; None: the last adversary of the schedule.
    batch_size, lr, weight_decay, label_smoothing
        As usual.
    augment : {"none", "crop", "crop-flip"}
        Random crops of images padded by an eighth of their height, and horizontal flips.
    checkpoint : Path, optional
        Written after every epoch. Where it exists, training resumes there, with the same result as if it had not
        been interrupted; a damaged one is named and training starts anew.
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
        For settings out of range, a schedule of the wrong length, or a loss that is not finite.

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
    judged = train_set if validation is None else validation.to(device)

    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    training = _Training(model, optimiser, generator)
    if checkpoint is not None:
        training.resume(checkpoint)
    batches = math.ceil(len(train_set) / batch_size)
    modes = [(module, module.training) for module in model.modules()]
    for epoch in range(len(training.rows), epochs):
        began = time.perf_counter()
        model.train()
        total = torch.zeros((), device=device)
        order = torch.randperm(len(train_set), generator=generator)
        for batch, index in enumerate(order.tensor_split(batches)):
            step = epoch * batches + batch
            optimiser.param_groups[0]["lr"] = lr * _rate(step / (epochs * batches))
            x, y = train_set.x[index.to(device)], train_set.y[index.to(device)]
            if augment != "none":
                x = _augmented(x, generator, flip=augment == "crop-flip")
            attack = schedule[epoch]
            if attack is not None:
                x = attack(model, x, y)
            loss = F.cross_entropy(model(channels_last(x)), y, label_smoothing=label_smoothing)
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
                right += (model(channels_last(seen)).argmax(1) == y).sum()
    return float(right) / len(images)


def linf_adversary(*, eps: float, steps: int, step_size: float, generator: torch.Generator | None = None) -> Adversary:
    """Return the inner loop of adversarial training: projected ascent from a random start within `eps` in L-inf.

    Barer than `attacks.pgd_linf`: every image starts elsewhere, the last iterate is returned, nothing is counted or
    re-checked. With one step of 1.25 `eps` it is the single-step schedule of Wong, Rice & Kolter, "Fast is better
    than free", ICLR 2020, arXiv:2001.03994.
    """
    checks.number(eps, name="eps")
    checks.count(steps, name="steps")
    checks.number(step_size, name="step_size")

    def ascend(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
        offset = (2 * torch.rand(x.shape, generator=generator) - 1) * eps
        x_adv = (x + offset.to(x.device)).clamp(low, high)
        with frozen(model), torch.enable_grad():
            for _ in range(steps):
                x_adv = channels_last(x_adv).requires_grad_()
                loss = F.cross_entropy(model(x_adv), y, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x_adv)
                x_adv = (x_adv.detach() + step_size * gradient.sign()).clamp(low, high)
        return x_adv

    return ascend


class _Training:
    """What a checkpoint holds: weights, optimiser, random state, history, and the best epoch's weights."""

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator | None) -> None:
        self.model, self.optimiser, self.generator = model, optimiser, generator
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_score = -math.inf

    def keep(self, row: dict[str, float], *, score: float) -> None:
        """Add an epoch to the history; of epochs with the same score the later is the better."""
        self.rows.append(row)
        if score >= self.best_score:
            self.best_score = score
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def save(self, path: Path) -> None:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state() if self.generator else torch.get_rng_state(),
            "global": torch.get_rng_state(),  # dropout draws from it
            "rows": self.rows,
            "best": self.best,
            "best_score": self.best_score,
        }
        with artifacts.replacing(path) as file:
            torch.save(state, file)

    def resume(self, path: Path) -> None:
        try:
            state = torch.load(path, weights_only=True)
        except FileNotFoundError:
            return
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            print(f"damaged, training starts anew: {path} ({error})")
            return
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["global"])
        if self.generator:
            self.generator.set_state(state["generator"])
        self.rows, self.best, self.best_score = state["rows"], state["best"], state["best_score"]


def _rate(done: float) -> float:
    """Return the share of the learning rate when the share `done` of all steps is over."""
    return done / _WARM_UP if done < _WARM_UP else 0.5 + 0.5 * math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))


def _augmented(x: Tensor, generator: torch.Generator | None, *, flip: bool) -> Tensor:
    """Return `x` (N, C, H, W) cropped at random from a zero-padded frame and, if asked, flipped at random."""
    n, channels, height, width = x.shape
    pad = height // 8
    top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).to(x.device)
    flipped = (torch.rand(n, generator=generator) < 0.5 * flip).to(x.device)
    rows = top[:, None] + torch.arange(height, device=x.device)  # (N, H)
    columns = left[:, None] + torch.arange(width, device=x.device)  # (N, W)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    padded = F.pad(x, (pad, pad, pad, pad))
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
