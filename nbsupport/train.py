"""Training of a classifier, plain or adversarial, resumable after every epoch."""

import hashlib
import io
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

from nbsupport import checks, files
from nbsupport.data.image_set import ImageSet
from nbsupport.runtime import (
    Precision,
    constant,
    device_of,
    forward,
    frozen,
    laid_out,
    logits,
    predict,
    reduced_precision,
    repeatable,
    rows_per_batch,
    sent,
    usable,
)

Adversary = Callable[[nn.Module, Tensor, Tensor], Tensor]
AUGMENTATIONS = ("none", "crop", "crop-flip")
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
    precision: Precision = "float32",
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
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
    precision : {"float32", "mixed"}
        "mixed": steps of training and of adversaries in bfloat16, where the device is fast in it; weights, their
        updates, and what is counted as correct stay float32.
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
    precision = usable(precision, device)
    train_set = train_set.to(device)
    judged = train_set.first(_EXAMINED) if validation is None else validation.to(device)
    _check_classes(model, train_set, judged)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise ValueError("expected a model with weights to train, got none that requires a gradient")

    optimiser = torch.optim.SGD(weights, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    settings: dict[str, Any] = {"epochs": epochs, "images": len(train_set), "batch_size": batch_size, "lr": lr}
    settings |= {"weight_decay": weight_decay, "label_smoothing": label_smoothing, "augment": augment}
    settings |= {"adversarial_epochs": sum(attack is not None for attack in schedule), "precision": precision}
    stream = generator or torch.default_generator
    kept: dict[str, Any] = {"settings": settings, "rows": [], "best": {}, "best_score": -math.inf}
    if checkpoint is not None and checkpoint.exists():
        kept |= _resume(checkpoint, settings, model, optimiser, stream)
    batches = math.ceil(len(train_set) / batch_size)
    modes = [(module, module.training) for module in model.modules()]
    try:
        for epoch in range(len(kept["rows"]), epochs):
            began = time.perf_counter()
            seed = int(torch.randint(2**62, (), generator=generator))
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), repeatable():
                torch.manual_seed(seed)  # of the global stream, from which dropout draws; restored after the epoch
                model.train()
                total = torch.zeros((), device=device)
                order = torch.randperm(len(train_set), generator=generator).to(device)
                for batch, index in enumerate(order.tensor_split(batches)):
                    step = epoch * batches + batch
                    optimiser.param_groups[0]["lr"] = lr * _rate((step + 0.5) / (epochs * batches))
                    x, y = train_set.x[index], train_set.y[index]
                    if augment != "none":
                        x = augmented(x, generator, flip=augment == "crop-flip")
                    attack = schedule[epoch]
                    with reduced_precision(precision, device):
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
                under_attack = math.nan if examiner is None else accuracy(model, judged, examiner, precision=precision)
            row = {"epoch": epoch, "loss": mean_loss, "benign_accuracy": benign, "pgd_accuracy": under_attack}
            kept["rows"].append(row | {"seconds": time.perf_counter() - began})
            score = under_attack if robust else benign
            if score >= kept["best_score"]:  # of epochs with the same score the later is the better
                best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
                kept |= {"best": best, "best_score": score}
            if checkpoint is not None:
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
                _save(checkpoint, {**kept, **state, "generator": stream.get_state()})
        model.load_state_dict(kept["best"])
    finally:
        for module, mode in modes:
            module.training = mode
    return pd.DataFrame(kept["rows"])


def fit_schedule(
    model: nn.Module,
    images: ImageSet,
    validation: ImageSet,
    *,
    schedule: Sequence[str],
    eps: float,
    steps: int,
    step_size: float,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Train `model` in place by `fit`, one epoch for each entry of `schedule`, and return the history.

    "benign" is an epoch on the images as they are, "single" one on a single step of 1.25 `eps` from a random start,
    "pgd" one on `steps` steps of PGD within `eps`, under which `pgd_accuracy` is measured too. `settings` are
    `fit`'s. Without an epoch, as for a model that is trained already, the history is one row of what the model is like
    as it stands: its loss is that of the validation images.
    """
    for kind in schedule:
        checks.choice(kind, ("benign", "single", "pgd"), name="schedule")
    pgd = linf_adversary(eps=eps, steps=steps, step_size=step_size, generator=generator)
    single = linf_adversary(eps=eps, steps=1, step_size=1.25 * eps, generator=generator)
    adversaries = {"benign": None, "single": single, "pgd": pgd}
    if not schedule:
        return _as_it_stands(model, validation, pgd)
    settings |= {"validation": validation, "evaluation_adversary": pgd, "generator": generator}
    return fit(model, images, epochs=len(schedule), adversary=[adversaries[kind] for kind in schedule], **settings)


def _as_it_stands(model: nn.Module, judged: ImageSet, adversary: Adversary) -> pd.DataFrame:
    began = time.perf_counter()
    _check_classes(model, judged)
    loss = F.cross_entropy(logits(model, judged.x).cpu(), judged.y)
    rates = {"benign_accuracy": accuracy(model, judged), "pgd_accuracy": accuracy(model, judged, adversary)}
    return pd.DataFrame([{"epoch": 0, "loss": float(loss), **rates, "seconds": time.perf_counter() - began}])


def accuracy(
    model: nn.Module, images: ImageSet, adversary: Adversary | None = None, *, precision: Precision = "float32"
) -> float:
    """Return the share of `images` that `model` classifies correctly, after `adversary` where one is given.

    With `precision` "mixed" the adversary computes in bfloat16; its images are classified in float32.
    """
    images = images.to(device := device_of(model, images.x))
    precision, rows = usable(precision, device), rows_per_batch(model, images.in_shape, device)
    right = []
    with frozen(model):
        for x, y in zip(images.x.split(rows), images.y.split(rows), strict=True):
            with reduced_precision(precision, device):
                seen = adversary(model, x, y) if adversary else x
            right.append(predict(model, seen) == y)
    return int(torch.cat(right).sum()) / len(images)


def _check_classes(model: nn.Module, *parts: ImageSet) -> None:
    """Raise ValueError unless `model` gives logits and has one for every label of `parts`."""
    with frozen(model), torch.no_grad():
        x = parts[0].x[:32]
        z = forward(model, x)
    checks.logits(z, count=len(x))
    checks.not_probabilities(z)
    for part in parts:
        checks.labels(part.y, count=len(part), num_classes=z.shape[1])


def _rate(done: float) -> float:
    """Return the share of the learning rate when the share `done` of all steps is over."""
    return done / _WARM_UP if done < _WARM_UP else 0.5 + 0.5 * math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))


def augmented(x: Tensor, generator: torch.Generator | None, *, flip: bool) -> Tensor:
    """Return `x` (N, C, H, W) cropped at random from a zero-padded frame and, if asked, flipped at random."""
    n, _, height, width = x.shape
    pad = height // 8
    top, left = sent(torch.randint(0, 2 * pad + 1, (2, n), generator=generator), x.device)
    flipped = sent(torch.rand(n, generator=generator) < 0.5 * flip, x.device)
    windows = F.pad(x, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)  # (N, C, top, left, H, W)
    crops = windows[torch.arange(n, device=x.device), :, top, left]
    return torch.where(flipped[:, None, None, None], crops.flip(3), crops)


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
        x_adv = (x + sent(offset, x.device)).clamp(low, high)
        with constant(model), torch.enable_grad():  # in the precision of the step that it is made for
            for _ in range(steps):
                x_adv = x_adv.detach().requires_grad_()
                loss = F.cross_entropy(forward(model, x_adv), y, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x_adv)
                x_adv = (x_adv.detach() + step_size * gradient.sign()).clamp(low, high)
        return x_adv

    return ascend


def _save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, led by the SHA-256 of the rest: `torch.load` does not notice a changed byte."""
    torch.save(state, buffer := io.BytesIO())
    with files.replacing(path) as file:
        file.write(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())


def _resume(
    path: Path, settings: dict[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Any]:
    """Put the checkpoint `path` into the model, the optimiser and the generator, and return the rest of it.

    A damaged one changes nothing, and nothing is returned.
    """
    data = path.read_bytes()
    try:
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            raise RuntimeError("its checksum differs")
        state: dict[str, Any] = torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        print(f"damaged, training starts anew: {path} ({error})")
        return {}
    pairs = [(name, state["settings"].get(name), value) for name, value in settings.items()]
    differing = ", ".join(f"{name}: {stored!r} -> {value!r}" for name, stored, value in pairs if stored != value)
    if differing:
        raise ValueError(
            f"expected a checkpoint of these settings, got others in {path} ({differing}); delete it or name another"
        )
    try:
        model.load_state_dict(state.pop("model"))
    except RuntimeError as error:
        raise ValueError(f"expected a checkpoint of this model, got another in {path}: {error}") from None
    optimiser.load_state_dict(state.pop("optimiser"))
    generator.set_state(state.pop("generator"))
    return state
