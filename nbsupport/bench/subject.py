"""What is measured: a normally trained model, and the first test images that it classifies correctly."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nbsupport import data, models, presets, runtime, train
from nbsupport.bench.results import Narrator

EPOCHS, TRAIN_N = {"digits": 8, "mnist": 2}, {"digits": 1297, "mnist": 20000}
_BY_SHAPE = {(1, 8, 8): "digits", (1, 28, 28): "mnist", (3, 32, 32): "cifar10"}
_VALIDATION = 500  # test images that the better epoch is chosen by


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, images that it classifies correctly, and the settings of their data set.

    Attributes
    ----------
    name : str
        Such as "mnist_cnn on mnist".
    model : Module
        In evaluation mode.
    x, y : Tensor (N, C, H, W) float32 in [0, 1], (N,) int64
        On the model's device.
    settings : Settings
        The preset `standard`: budgets, radius, magnitudes, directions.
    flops : float
        Of one forward pass of one image; a backward pass to the pixels costs the same. As a share of the machine's
        float32 matrix rate, passes in mixed precision may exceed 1.
    """

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    settings: presets.Settings
    flops: float

    @property
    def device(self) -> torch.device:
        """The device of model and images."""
        return self.x.device

    def first(self, n: int) -> Subject:
        """Return the subject with its first `n` images (all, where there are fewer)."""
        return replace(self, x=self.x[:n], y=self.y[:n])


def obtain(images: int, model: Path | None, narrator: Narrator) -> Subject:
    """Return the subject with at most `images` images.

    Parameters
    ----------
    images : int
        Correctly classified test images wanted.
    model : Path, optional
        A file of `models.save`; the data set is the one of its image size. None: a model is trained for some
        seconds, on MNIST where $NBSUPPORT_DATA has it, else on the embedded digits.
    narrator : Narrator
        Told what is trained, and for how long.

    Raises
    ------
    ValueError
        For a model of another image size, or one that classifies no image correctly.
    FileNotFoundError
        Where `model`, or the data set that it needs, is not there.
    """
    device = runtime.best_device()
    if model is None:
        settings = presets.settings("mnist" if _mnist_is_here() else "digits")
        net = _trained(settings, device, narrator)
    else:
        net = models.load(model).to(device)
        settings = presets.settings(_dataset(net, model))
    test = data.load(settings.dataset, train=False, limit=max(_VALIDATION, 2 * images))
    keep = (runtime.predict(net, test.x).cpu() == test.y).nonzero().squeeze(1)[:images]
    if not len(keep):
        raise ValueError(f"expected a model that classifies images of {settings.dataset}, got one that is never right")
    x, y = test.x[keep].to(device), test.y[keep].to(device)
    return Subject(f"{vars(net)['spec'].name} on {settings.dataset}", net, x, y, settings, forward_flops(net, x[:1]))


def forward_flops(model: nn.Module, x: Tensor) -> float:
    """Return the FLOP of convolutions and matrix products in one forward pass of `x` (1, C, H, W)."""
    with FlopCounterMode(display=False) as counter, runtime.frozen(model), torch.no_grad():
        model(runtime.laid_out(model, x))
    return float(counter.get_total_flops())


def _mnist_is_here() -> bool:
    """Return whether $NBSUPPORT_DATA names a folder with MNIST: a benchmark downloads nothing unasked."""
    named = os.environ.get("NBSUPPORT_DATA")
    return named is not None and (Path(named).expanduser() / "MNIST" / "raw").is_dir()


def _dataset(model: nn.Module, path: Path) -> str:
    shape = vars(model)["spec"].in_shape
    if shape not in _BY_SHAPE:
        known = ", ".join(f"{'x'.join(map(str, size))} ({name})" for size, name in _BY_SHAPE.items())
        raise ValueError(f"expected a model for images of {known}, got {'x'.join(map(str, shape))} in {path}")
    return _BY_SHAPE[shape]


def _trained(s: presets.Settings, device: torch.device, narrator: Narrator) -> nn.Module:
    """Return a normally trained model of a data set in `EPOCHS`."""
    name, epochs = s.dataset, EPOCHS[s.dataset]
    fitted = data.load(name, train=True, limit=TRAIN_N[name]).to(device)
    validation = data.load(name, train=False, limit=_VALIDATION).to(device)
    with torch.random.fork_rng(devices=[]):  # the initial weights come from torch's global stream
        torch.manual_seed(0)
        model = models.build(s.model, in_shape=fitted.in_shape, num_classes=fitted.num_classes).to(device)

    batches = epochs * math.ceil(len(fitted) / s.batch_size)
    narrator.say(f"{s.model} is trained on {len(fitted):,} images of {name}, {epochs} epochs, {batches} batches")
    tick = narrator.ticker("training", batches, "batches")
    train.fit(
        model,
        fitted,
        epochs=epochs,
        validation=validation,
        generator=runtime.seeded(0, "bench"),
        batch_size=s.batch_size,
        lr=s.lr,
        weight_decay=s.weight_decay,
        progress=lambda done, total: tick(done),
    )
    return model.eval()
